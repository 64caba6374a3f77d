"""Data sets that others publish: one TFDS builder class each, which says what the data is, where from and under which terms.

    python -m recjax.data.published --name=movielens --source=FOLDER --out=DIR [--option=negatives_per_positive=10]
    python -m recjax.train --config=... --config.data.name=movielens --config.data.source=FOLDER

`source` is the publisher's folder, or an archive of it (.zip, .tar, .tar.gz): files are found by name, at any depth, also
gzipped one by one; "" is the set's own folder below $RECJAX_DATA. Nothing is downloaded: the table in docs/data_sets.md says
where each set comes from.

A reader is a subclass of `Published` (import the class; TFDS would need TensorFlow to look it up by name) and a `prepare`.
Those of logs are facts: a `LogMapping`, and a `stage` that writes the publisher's files as the tables that mapping names.
The whole of `recjax.data.logs.prepare` (quarantine, histories, counters, drawn negatives, report) then holds for them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import os
import pathlib
import shutil
import tempfile
from typing import Any

from absl import flags, logging
import numpy as np
import polars as pl
import tensorflow_datasets as tfds

from recjax import command, configs
from recjax.data.logs import prepare as logs
from recjax.data.logs.mapping import LogMapping
from recjax.data.logs.rows import read_log
from recjax.data.logs.sources import fingerprint
from recjax.data.store.histories import Timeline
from recjax.data.store.prepared import DataError, is_prepared, prepared_path, say_prepared
from recjax.data.store.vocabulary import Vocabulary, frames
from recjax.data.store.writing import BLOCK_SIZE, BlockBuilder, write_prepared
from recjax.schema import Schema, SchemaError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
LOG, TEXT = "log.parquet", "text.parquet"  # what `stage` writes

Files = Mapping[str, list[pathlib.Path]]  # pattern -> the files it names


@dataclasses.dataclass(frozen=True)
class File:
    """A file as its publisher ships it, and what is publicly known of it; "" and 0 where nothing is.

    Attributes:
      name: Of the file.
      size: Bytes.
      sha256: Checksum, hexadecimal.
    """

    name: str
    size: int = 0
    sha256: str = ""


class Published(BlockBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The TFDS builder of a published data set; its records are blocks of impressions (`recjax.data.store.prepared`).

    Attributes:
      name: Of the data set, and of its folder below the one that holds prepared data.
      VERSION_OF_READER: A change of what is read makes another data set.
      FOLDER: Below $RECJAX_DATA, where `source` is "".
      DESCRIPTION, CITATION, HOMEPAGE, LICENSE: Kept in dataset_info.json.
      FILES: Of the publisher, as far as their sizes and checksums are known.
    """

    VERSION_OF_READER = "1.0.0"
    FOLDER = ""
    DESCRIPTION = CITATION = HOMEPAGE = LICENSE = ""
    FILES: tuple[File, ...] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(skip_registration=True, **kwargs)

    def about(self) -> dict[str, str]:
        texts = {"description": self.DESCRIPTION, "citation": self.CITATION}
        return texts | {"homepage": self.HOMEPAGE, "license": self.LICENSE}

    def about_tfds(self, other: type[tfds.core.DatasetBuilder], **options) -> dict[str, str]:
        """`about` in the words of TFDS's own builder of the same data."""
        info = other(**options).info
        texts = {"description": info.description, "citation": info.citation}
        return texts | {"homepage": info.homepage, "license": self.LICENSE}

    @classmethod
    def locate(cls, source: str | os.PathLike) -> pathlib.Path:
        """The publisher's folder or archive; raises DataError that says where to get it."""
        root = os.environ.get("RECJAX_DATA", "")
        default = pathlib.Path(root, cls.FOLDER) if root and cls.FOLDER else None
        path = pathlib.Path(source) if source else default
        if path is None or not path.exists():
            where = f"there is no {path}" if path else f"{cls.name} is not here"
            raise DataError(f"{where}; download it from {cls.HOMEPAGE} and give data.source=FOLDER")
        if path.is_file() and not path.name.endswith(ARCHIVES):
            raise DataError(f"{path} is neither a folder nor one of {', '.join(ARCHIVES)}")
        return path

    @classmethod
    def published_state(cls, files: Sequence[pathlib.Path]) -> dict[str, str]:
        """file -> "as published" | "differs from what was published", for those whose checksum is known."""
        known = {f.name: f for f in cls.FILES}
        out = {}
        for file in files:
            fact = known.get(file.name)
            if fact and (fact.size or fact.sha256):
                same = not fact.size or file.stat().st_size == fact.size
                same = same and (not fact.sha256 or _sha256(file) == fact.sha256)
                out[file.name] = "as published" if same else "differs from what was published"
                if not same:
                    logging.warning(
                        "%s is re-packed or another edition; it is read all the same", file
                    )
        return out


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -------------------------------------------------------------------------------------------- files


def find(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    """Files called so, or so and ".gz", below `folder`: those nearest to it, by name; a trailing "?" says they may be absent."""
    name = pattern.removesuffix("?")
    found = [f for glob in (name, f"{name}.gz") for f in folder.rglob(glob) if _counts(f)]
    if not found and name == pattern:
        raise DataError(f"there is no {name} (or {name}.gz) in {folder} or below it")
    nearest = min((len(f.parts) for f in found), default=0)
    by_name = {f.name.removesuffix(".gz"): f for f in found if len(f.parts) == nearest}
    return [by_name[n] for n in sorted(by_name)]


def _counts(file: pathlib.Path) -> bool:
    """No folder, and none of what macOS adds to an archive."""
    return file.is_file() and "__MACOSX" not in file.parts and not file.name.startswith("._")


@contextlib.contextmanager
def unpacked(path: pathlib.Path, near: pathlib.Path):
    """The folder itself, or that of an archive, unpacked into a temporary folder in `near`."""
    if path.is_dir():
        yield path
        return
    near.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=near) as folder:
        logging.info("Unpacking %s", path)
        safe = {} if path.suffix == ".zip" else {"filter": "data"}
        try:
            shutil.unpack_archive(path, folder, **safe)
        except (shutil.ReadError, OSError, EOFError) as e:
            raise DataError(f"{path} is no readable archive ({e}); download it again") from e
        yield pathlib.Path(folder)


# ---------------------------------------------------------------------------------------------- job


@dataclasses.dataclass(frozen=True)
class Job:
    """One preparation: which files, into which directory.

    Attributes:
      reader: Whose data it is.
      out_dir: Folder that holds prepared data sets.
      path: The publisher's folder or archive.
      patterns: Files to read, for `find`.
      read: What makes the data what it is: the archive, or each file of the folder.
      options: What else the content depends on, and the checksums of `read`.
      layout: block_size, unit and seed, for `write_prepared`.
    """

    reader: type[Published]
    out_dir: str | os.PathLike
    path: pathlib.Path
    patterns: Sequence[str]
    read: Sequence[pathlib.Path]
    options: Mapping[str, Any]
    layout: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        reader: type[Published],
        out_dir: str | os.PathLike,
        source: str,
        patterns: Sequence[str],
        options: Mapping[str, Any],
        *,
        seed: int,
        block_size: int,
        unit: str = "impression",
    ) -> "Job":
        path = reader.locate(source)
        read = [path] if path.is_file() else [f for p in patterns for f in find(path, p)]
        options = {**options, "source": fingerprint([os.fspath(f) for f in read])}
        layout = {"block_size": block_size, "unit": unit, "seed": seed}
        return cls(reader, out_dir, path, patterns, read, options, layout)

    @property
    def target(self) -> pathlib.Path:
        """The prepared directory."""
        version = self.reader.VERSION_OF_READER
        return prepared_path(
            self.out_dir, self.reader.name, {**self.options, **self.layout}, version
        )

    @property
    def done(self) -> bool:
        """Whether the same files were prepared in the same way before."""
        if is_prepared(self.target):
            say_prepared(self.reader.name, self.target)
        return is_prepared(self.target)

    @contextlib.contextmanager
    def files(self) -> Iterator[Files]:
        """The files by pattern; those of an archive live in a temporary folder meanwhile."""
        with logs.staging(self.target) as folder, unpacked(self.path, folder) as raw:
            yield {p: find(raw, p) for p in self.patterns}

    def write(
        self,
        schema: Schema,
        timelines: Mapping[str, Sequence[Timeline]],
        splits: Mapping[str, Callable[[], Mapping[str, np.ndarray]]],
        vocabularies: Mapping[str, Vocabulary],
        report: Mapping[str, Any],
        facts: Mapping[str, Any],
        described: Mapping[str, pl.DataFrame] | None = None,
        vectors: Mapping[str, np.ndarray] | None = None,
    ) -> pathlib.Path:
        """`write_prepared` with all that the job knows.

        `described` has columns (texts) of an id space's values, `vectors` the frozen vectors of its ids.
        """
        return write_prepared(
            self.out_dir,
            self.reader.name,
            schema,
            {name: [t.columns for t in parts] for name, parts in timelines.items()},
            splits,
            vocab=frames(vocabularies, described),
            vectors=vectors,
            report={**report, "files": self.reader.published_state(self.read)},
            facts={"counters": [], **facts},
            options=self.options,
            version=self.reader.VERSION_OF_READER,
            builder=self.reader,
            **self.layout,
        )


# --------------------------------------------------------------------------------------------- logs


def prepare_log(
    reader: type[Published],
    out_dir: str | os.PathLike,
    source: str,
    mapping: LogMapping,
    patterns: Sequence[str],
    stage: Callable[[Files, pathlib.Path], Mapping[str, Any] | None],
    *,
    options: Mapping[str, Any] | None = None,
    strict: bool = False,
    unit: str = "impression",
    block_size: int = BLOCK_SIZE,
    partitions: int = 1,
    **changes,
) -> pathlib.Path:
    """Prepares a published log; does nothing when the same files were prepared in the same way.

    Args:
      reader: Whose data it is.
      out_dir: Folder that holds prepared data sets.
      source: See the module docstring.
      mapping: What the staged columns mean; its tables are names that `stage` writes.
      patterns: Files to read, for `find`.
      stage: Takes the files by pattern and an empty folder, and writes "log.parquet" and the mapping's tables into it, and
        perhaps "text.parquet" (value and texts of items); what it returns goes into the report.
      options: What else `stage` depends on.
      strict: Refuse bad rows; else they go to quarantine.parquet and are counted.
      unit: What the training order permutes, "impression" or "request".
      block_size: Impressions per record.
      partitions: Of the users.
      **changes: Other values of the mapping's fields (`negatives_per_positive=10`).

    Raises:
      DataError: Files are missing or not as their publisher describes them.
    """
    m = changed(mapping, changes)
    identity = {"mapping": m.as_json(), "partitions": partitions, **(options or {})}
    layout = {"seed": m.seed, "block_size": block_size, "unit": unit}
    job = Job.of(reader, out_dir, source, patterns, identity, **layout)
    if job.done:
        return job.target
    with logs.staging(job.target) as folder:
        with job.files() as files:
            found = stage(files, folder) or {}
        m, text = _placed(m, folder), folder / TEXT
        log = read_log([os.fspath(folder / LOG)], m, strict)
        made = logs.write_log(
            folder,
            log,
            m,
            job.options,
            job.layout,
            partitions,
            name=reader.name,
            version=reader.VERSION_OF_READER,
            builder=reader,
            found={**found, "files": reader.published_state(job.read)},
            described={"item": pl.read_parquet(text)} if text.exists() else None,
        )
        log.bad.write_parquet(made / "quarantine.parquet")
        logs.publish(made, job.target)
    return job.target


def share_of_users(column: str, share: float) -> pl.Expr:
    """Rows of a share of the users, the same ones in every file and on every machine."""
    if not 0 < share <= 1:
        raise DataError(f"users={share!r}; give the share to keep, above 0 and at most 1")
    # A multiplicative hash (Knuth): polars' own may change from one version to the next.
    return (pl.col(column) * 2_654_435_761 % 2**32) < int(share * 2**32)


def changed(mapping: LogMapping, changes: Mapping[str, Any]) -> LogMapping:
    """The mapping with other values; raises DataError naming an option there is not."""
    names = [f.name for f in dataclasses.fields(LogMapping)]
    for name in changes:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise DataError(f"data.prepare has no option {name!r}; {hint}")
    return dataclasses.replace(mapping, **changes)


def _placed(m: LogMapping, folder: pathlib.Path) -> LogMapping:
    place = lambda name: os.fspath(folder / name) if name else ""  # noqa: E731
    # Staged files are Parquet: whole numbers stay numbers, and no word of a title means "missing".
    tables = {"user_table": place(m.user_table), "item_table": place(m.item_table)}
    return dataclasses.replace(m, **tables, ids="stored", catalogue="taken")


# ------------------------------------------------------------------------------------------ command


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.ERROR)  # what matters is printed
    tfds.disable_progress_bar()
    f = flags.FLAGS
    try:
        module = importlib.import_module(f"recjax.data.sets.{f.name}")
        options = dict(_option(text) for text in f.option)
        print(f"Prepared {module.prepare(f.out, source=f.source, **options)}")
    except ModuleNotFoundError:
        raise SystemExit(f"error: there is no reader {f.name!r}; see docs/data_sets.md") from None
    except (DataError, SchemaError) as e:
        raise SystemExit(f"error: {e}") from None


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise DataError(f"--option={text!r} is no assignment; write name=value")
    return name, configs.value_of(value)


if __name__ == "__main__":
    flags.DEFINE_string("name", None, "Of the data set: a module of recjax.data.", required=True)
    flags.DEFINE_string("source", "", "The publisher's folder or archive.")
    flags.DEFINE_string("out", None, "Folder that holds prepared data sets.", required=True)
    flags.DEFINE_multi_string("option", [], "An option of its prepare, as name=value.")
    command.run(main)
