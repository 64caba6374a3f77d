"""A prepared data set: blocks of impressions, the timelines they point into, and who they are.

One directory holds everything and appears by one rename, so it is either whole or absent:

    dataset_info.json  features.json  metadata.json  *.array_record*    TFDS: version, splits, identity, blocks
    schema.json                                   `Schema.to_json`
    timelines/<list>/part-00000/<column>.npy      `time`, one column per list feature, `start` (offsets per user)
    vocab/<id space>.parquet                      value, id, count
    report.json  files.json                       what was found; the size of every file

One TFDS record is one *block* of about `block_size` impressions: a dict of 1-D arrays (a vector or multi-hot
feature keeps its trailing axes), stored as raw bytes, all of one partition:

    time         int64  [R]  request time, seconds
    <list>/end   int64  [R]  history = events [end - count, end) of the list's columns in the block's partition,
    <list>/count int32  [R]  all strictly before `time`, one user's, oldest first, ties in log order
    <feature>    int32 ids or float32 numbers and labels [R, ...]
    weight float32 [R], <group> int32 [R], request int32 [R], row int32 [R], partition int32 scalar

`row` is the impression's place in its split. Training splits lie in the order of one seeded permutation, so the
first n rows are the nested subsets and reading once through is a single pass; the other splits lie in request order.
No TensorFlow and no JAX here: a TFDS builder *class* that writes ArrayRecord needs neither.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import hashlib
import json
import os
import pathlib
import re
import tempfile
from typing import Any
import zlib

from absl import logging
import numpy as np
import polars as pl
import tensorflow_datasets as tfds

from recjax.schema import ROLE_AXES, Schema, SchemaError

Columns = Mapping[str, np.ndarray]
BLOCK_SIZE = 4096
PARTITION = "partition"


class DataError(ValueError):
    """Prepared data is absent, damaged or contradicts its schema; the message names the file and the remedy."""


# ----------------------------------------------------------------------------------------------------- identity


def prepared_path(
    out_dir: str | os.PathLike, name: str, options: Mapping[str, Any], version: str
) -> pathlib.Path:
    """Where data prepared with these options lives: <out_dir>/<name>/<hash of the options>/<version>."""
    return pathlib.Path(out_dir) / name / _digest(name, options, version) / version


def is_prepared(path: str | os.PathLike) -> bool:
    """True when a whole prepared data set lies at `path` (it is published by one rename)."""
    return (pathlib.Path(path) / "dataset_info.json").exists()


def _digest(name: str, options: Mapping[str, Any], version: str) -> str:
    text = json.dumps([name, version, dict(options)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _content_options(schema: Schema, timelines: Mapping, splits: Mapping) -> dict[str, Any]:
    """Stands in for options when the caller names none: a checksum of the content itself."""
    crc = zlib.crc32(schema.to_json().encode())
    parts = [(n, part) for n in timelines for part in timelines[n]] + list(splits.items())
    for name, columns in parts:
        if callable(columns):
            raise DataError(
                f"split {name!r} is a function: give write_prepared the options that determine it"
            )
        for column in sorted(columns):
            data = np.ascontiguousarray(columns[column])
            crc = zlib.crc32(
                data.view(np.uint8).reshape(-1), zlib.crc32(f"{name}/{column}".encode(), crc)
            )
    return {"content": crc}


# ------------------------------------------------------------------------------------------------------ writing


def column_dtypes(schema: Schema) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Column name -> (dtype, trailing shape) of the impressions of a schema."""
    dtypes: dict[str, tuple[type, tuple[int, ...]]] = {"time": (np.int64, ())}
    for name in schema.lists:
        dtypes |= {f"{name}/end": (np.int64, ()), f"{name}/count": (np.int32, ())}
    for f in schema.features:
        if "L" not in ROLE_AXES[f.role]:
            dtypes[f.name] = _dtype(f)
    dtypes["weight"] = (np.float32, ())
    dtypes |= {key: (np.int32, ()) for key in (*schema.groups, "request", "row")}
    return dtypes


def _dtype(feature) -> tuple[type, tuple[int, ...]]:
    width = feature.vector or feature.multi
    return (np.int32 if feature.kind == "id" else np.float32), ((width,) if width else ())


class _BlockBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes blocks; everything else goes into TFDS's incomplete directory, so one rename publishes all."""

    VERSION = None  # the config carries it

    def __init__(self, name, config, out_dir, schema, identity, splits, write_extras):
        self.name = name
        self._schema, self._identity = schema, identity
        self._splits, self._extras = splits, write_extras
        super().__init__(data_dir=out_dir, config=config)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            name: tfds.features.Tensor(shape=(None, *shape), dtype=dtype, encoding="bytes")
            for name, (dtype, shape) in column_dtypes(self._schema).items()
        }
        features[PARTITION] = tfds.features.Scalar(np.int32)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(self._identity),
            disable_shuffling=True,  # the order is ours: it is the single pass
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split):
        rows, partitions = [], []
        for i, block in enumerate(self._splits[split]()):
            rows.append(len(block["row"]))
            partitions.append(int(block[PARTITION]))
            yield i, block
        self.info.metadata["blocks"][split] = {"rows": rows, PARTITION: partitions}

    def _download_and_prepare(self, dl_manager, download_config):
        super()._download_and_prepare(dl_manager, download_config)
        self._extras(pathlib.Path(self.data_dir))

    def _log_download_bytes(self):  # nothing is downloaded
        pass

    _log_download_done = _log_download_bytes


def write_prepared(
    out_dir: str | os.PathLike,
    name: str,
    schema: Schema,
    timelines: Mapping[str, Sequence[Columns]],
    splits: Mapping[str, Columns | Callable[[], Columns]],
    *,
    vocab: Mapping[str, pl.DataFrame] | None = None,
    report: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    version: str = "1.0.0",
    block_size: int = BLOCK_SIZE,
    unit: str = "impression",
    seed: int = 0,
) -> pathlib.Path:
    """Writes a prepared data set and returns its directory; does nothing when it is already there.

    Args:
      out_dir: Folder that holds prepared data sets.
      name: Of the data set, snake_case.
      schema: Of the impressions.
      timelines: list -> one mapping per partition: `time` int64 [E] (seconds), the list's features [E],
        optionally `start` int64 [users + 1].
      splits: split -> columns as in the module docstring, in any order, or a function that makes them (called
        once, when the split is written, so that one split at a time is in memory); `weight` (1.0), `request`
        (the row's number) and `partition` int [N] (0) have defaults, `row` is made here. Splits whose names
        start with "train" are permuted, the others sorted by request.
      vocab: id space -> frame with columns value, id, count.
      report: Goes to report.json.
      facts: What `Prepared.identity` should say besides name, version, config and hash: results a reader needs
        (`counters`: names of the causal counters, `keep`: keep probabilities of negatives).
      options: Everything the content depends on (JSON values); it names the directory together with
        `version`, `block_size`, `unit` and `seed`. None: a checksum of the content does (not with functions).
      version: Of the preparation code.
      block_size: Impressions per record.
      unit: What the training permutation moves: "impression", or "request" (its rows stay together).
      seed: Of that permutation.

    Raises:
      DataError: A column is missing, of another length or type, or a history reaches past its timeline.
    """
    if unit not in ("impression", "request"):
        raise DataError(f"unit {unit!r} is not known; use 'impression' or 'request'")
    options = dict(_content_options(schema, timelines, splits) if options is None else options)
    options |= {"block_size": block_size, "unit": unit, "seed": seed}
    path = prepared_path(out_dir, name, options, version)
    if is_prepared(path):
        logging.info("%s is already prepared in %s", name, path)
        return path
    _check_timelines(schema, timelines)
    identity = {
        "name": name,
        "version": version,
        "config": options,
        "hash": path.parent.name,
        **(facts or {}),
        "blocks": {},  # filled in while they are written
    }
    make = functools.partial(
        _split_blocks, schema, timelines, block_size=block_size, unit=unit, seed=seed
    )
    blocks = {split: functools.partial(make, split, columns) for split, columns in splits.items()}
    extras = functools.partial(
        _write_extras, schema=schema, timelines=timelines, vocab=vocab or {}, report=report or {}
    )
    _build(path, name, version, out_dir, schema, identity, blocks, extras)
    return path


def _build(path, name, version, out_dir, schema, identity, blocks, extras) -> None:
    config = tfds.core.BuilderConfig(name=path.parent.name, version=version)
    builder = _BlockBuilder(name, config, os.fspath(out_dir), schema, identity, blocks, extras)
    with tempfile.TemporaryDirectory() as unused_downloads:
        try:
            builder.download_and_prepare(
                download_dir=unused_downloads,
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
        except OSError:
            if not is_prepared(path):  # another process published the same data first
                raise
    logging.info("Prepared %s in %s", name, path)


def _check_timelines(schema: Schema, timelines: Mapping[str, Sequence[Columns]]) -> None:
    for name in schema.lists:
        if name not in timelines:
            raise DataError(f"list {name!r} has no timeline; pass timelines[{name!r}]")
        for p, part in enumerate(timelines[name]):
            for column in ("time", *(f.name for f in schema.features if f.list == name)):
                if column not in part:
                    raise DataError(
                        f"timeline {name!r}, partition {p}: column {column!r} is missing"
                    )
                if len(part[column]) != len(part["time"]):
                    raise DataError(
                        f"timeline {name!r}, partition {p}: {column!r} and 'time' differ in length"
                    )


def _checked(
    schema: Schema, split: str, columns: Columns, timelines: Mapping
) -> dict[str, np.ndarray]:
    """Columns of a split with defaults filled in, types settled and bounds checked."""
    n = len(columns["time"])
    if not n:
        raise DataError(f"split {split!r} has no rows; leave it out")
    full = {
        "weight": np.ones(n, np.float32),
        "request": np.arange(n, dtype=np.int32),
        PARTITION: np.zeros(n, np.int32),
    }
    full |= columns
    out = {PARTITION: np.asarray(full[PARTITION])}
    for name, (dtype, shape) in column_dtypes(schema).items():
        if name == "row":
            continue
        if name not in full:
            raise DataError(f"split {split!r}: column {name!r} is missing; the schema asks for it")
        column = np.asarray(full[name])
        if column.shape != (n, *shape):
            raise DataError(
                f"split {split!r}: column {name!r} has shape {column.shape}, expected {(n, *shape)}"
            )
        if not np.can_cast(column.dtype, dtype, "same_kind"):
            raise DataError(
                f"split {split!r}: column {name!r} is {column.dtype}, expected {np.dtype(dtype)}"
            )
        out[name] = column
    for f in schema.features:
        if f.name in out and f.kind == "id" and n:
            _check_range(
                f"split {split!r}: ids of {f.name!r}", out[f.name], schema.space(f.id_space).rows
            )
    for name in schema.lists:
        for p, part in enumerate(timelines[name]):
            _check_history(
                schema,
                f"split {split!r}, list {name!r}",
                name,
                part["time"],
                out,
                out[PARTITION] == p,
            )
    return out


def _check_history(
    schema: Schema, what: str, name: str, event: np.ndarray, columns: Columns, mine: np.ndarray
) -> None:
    """Every history lies inside its timeline and, unless it holds targets, strictly before its request."""
    end, count = columns[f"{name}/end"][mine], columns[f"{name}/count"][mine]
    _check_range(f"{what}: ends", end, len(event) + 1)
    _check_range(f"{what}: starts", end - count, len(event) + 1)
    if schema.select("target", list=name):
        return
    last = event[(end - 1)[count > 0]]
    late = int((last >= columns["time"][mine][count > 0]).sum())
    if late:
        raise DataError(
            f"{what}: {late} histories reach their request or pass it; cut them strictly before its time"
        )


def _check_range(what: str, x: np.ndarray, stop: int) -> None:
    if len(x) and (x.min() < 0 or x.max() >= stop):
        raise DataError(
            f"{what} go from {x.min()} to {x.max()}, outside [0, {stop}); prepare the columns again"
        )


def _layout(
    split: str, columns: Columns, block_size: int, unit: str, seed: int
) -> list[tuple[int, np.ndarray]]:
    """(partition, row numbers [R]) of each block, in the order they are written."""
    n = len(columns["time"])
    request = np.asarray(columns["request"])
    permuted = split.startswith("train")
    if permuted and unit == "impression":
        order = np.random.default_rng(seed).permutation(n)
    else:
        _, key = np.unique(request, return_inverse=True)
        if permuted:
            key = np.random.default_rng(seed).permutation(n and key.max() + 1)[key]
        order = np.argsort(key, kind="stable")
    whole = None if permuted and unit == "impression" else request
    partition = columns[PARTITION][order]
    blocks = []
    for p in np.unique(partition):
        at = np.flatnonzero(partition == p)  # positions in the order
        rows = order[at]
        cuts = _cuts(len(rows), block_size, None if whole is None else whole[rows])
        blocks += [
            (int(at[a]), int(p), rows[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)
        ]
    return [(p, rows) for _, p, rows in sorted(blocks, key=lambda b: b[0])]


def _cuts(n: int, block_size: int, request: np.ndarray | None) -> list[int]:
    """Block edges; with `request` [n], a request never straddles two blocks (a larger one is its own block)."""
    edges = (
        np.arange(n + 1)
        if request is None
        else np.flatnonzero(np.r_[True, request[1:] != request[:-1], True])
    )
    cuts = [0]
    while cuts[-1] < n:
        cut = edges[np.searchsorted(edges, cuts[-1] + block_size, side="right") - 1]
        cuts.append(
            int(cut if cut > cuts[-1] else edges[np.searchsorted(edges, cuts[-1], side="right")])
        )
    return cuts


def _split_blocks(
    schema, timelines, split, columns, *, block_size, unit, seed
) -> Iterator[dict[str, Any]]:
    """The records of one split, in order."""
    columns = _checked(schema, split, columns() if callable(columns) else columns, timelines)
    dtypes = column_dtypes(schema)
    row = 0
    for partition, rows in _layout(split, columns, block_size, unit, seed):
        block = {
            name: columns[name][rows].astype(dtypes[name][0], copy=False)
            for name in dtypes
            if name != "row"
        }
        block["row"] = np.arange(row, row + len(rows), dtype=np.int32)
        block[PARTITION] = np.int32(partition)
        row += len(rows)
        yield block


def _write_extras(folder: pathlib.Path, *, schema: Schema, timelines, vocab, report) -> None:
    (folder / "schema.json").write_text(schema.to_json())
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    for space, frame in vocab.items():
        (folder / "vocab").mkdir(exist_ok=True)
        frame.write_parquet(folder / "vocab" / f"{space}.parquet")
    for name, parts in timelines.items():
        dtypes = {f.name: _dtype(f)[0] for f in schema.features if f.list == name}
        dtypes |= {"time": np.int64, "start": np.int64}
        for p, part in enumerate(parts):
            at = folder / _timeline_dir(name, p)
            at.mkdir(parents=True)
            for column in part:
                np.save(
                    at / f"{_safe(column)}.npy",
                    np.asarray(part[column]).astype(dtypes[column], copy=False),
                )
    sizes = {
        os.fspath(f.relative_to(folder)): f.stat().st_size
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }
    (folder / "files.json").write_text(json.dumps(sizes, indent=1))


def _timeline_dir(name: str, partition: int) -> str:
    return f"timelines/{_safe(name)}/part-{partition:05d}"


def _safe(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name):
        raise DataError(
            f"{name!r} cannot name a file; use letters, digits, '_', '-' and '.' for lists and their features"
        )
    return name


# ------------------------------------------------------------------------------------------------------ reading


class Prepared:
    """A prepared data set on a local disk.

    Cheap to pickle (only the path travels) and safe to read from several threads.

    Attributes:
      path: Its directory.
      schema: Of its impressions.
      identity: name, version, config, hash.
      report: What preparation found.
      splits: split -> number of impressions.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens `path`; raises DataError when it is not a whole prepared data set."""
        self.path = pathlib.Path(path)
        if not self.path.is_dir():
            raise DataError(
                f"there is no prepared data in {self.path}; prepare it, or correct data.dir"
            )
        try:
            self._check_files(json.loads(self._read("files.json")))
            self.schema = Schema.from_json(self._read("schema.json"))
            identity = json.loads(self._read("metadata.json"))
            self.report = json.loads(self._read("report.json"))
            self._layout = identity.pop("blocks")
            self.splits: dict[str, int] = {s: sum(b["rows"]) for s, b in self._layout.items()}
        except (SchemaError, DataError):
            raise
        except (KeyError, TypeError, ValueError) as e:
            raise DataError(
                f"a description file in {self.path} is damaged ({e}); delete the folder and prepare again"
            ) from e
        self.identity: dict[str, Any] = identity
        self._sources: dict[str, Any] = {}
        self._timelines: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def __reduce__(self):
        return Prepared, (os.fspath(self.path),)

    def __repr__(self) -> str:
        return f"Prepared({os.fspath(self.path)!r})"

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text()
        except OSError as e:
            raise DataError(
                f"{self.path / name} cannot be read ({e.strerror}); delete the folder and prepare again"
            ) from e

    def _check_files(self, sizes: Mapping[str, int]) -> None:
        for name, size in sizes.items():
            file = self.path / name
            if not file.exists():
                raise DataError(f"{file} is missing; delete {self.path} and prepare again")
            if file.stat().st_size != size:
                raise DataError(
                    f"{file} holds {file.stat().st_size} bytes where {size} were written; "
                    f"delete {self.path} and prepare again"
                )

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            raise DataError(
                f"{self.path} has no split {split!r}; there are {', '.join(self.splits)}"
            )

    def block_rows(self, split: str) -> np.ndarray:
        """Impressions of each block, int64 [blocks]."""
        self._check_split(split)
        return np.asarray(self._layout[split]["rows"], np.int64)

    def block_partitions(self, split: str) -> np.ndarray:
        """Partition of each block, int64 [blocks]: a host maps only the timelines of its own blocks."""
        self._check_split(split)
        return np.asarray(self._layout[split][PARTITION], np.int64)

    def blocks(self, split: str) -> int:
        """Number of blocks of a split."""
        self._check_split(split)
        return len(self._layout[split]["rows"])

    def block(self, split: str, i: int) -> dict[str, np.ndarray]:
        """Block `i` of a split: columns as in the module docstring, read-only."""
        if not 0 <= i < self.blocks(split):
            raise IndexError(f"block {i} of split {split!r}: there are {self.blocks(split)}")
        try:
            block = self._source(split)[i]
        except Exception as e:  # array_record raises bare RuntimeErrors and IndexErrors on damage
            raise DataError(
                f"block {i} of split {split!r} in {self.path} cannot be read; delete the folder and prepare again"
            ) from e
        return block

    def _source(self, split: str):
        source = self._sources.get(split)
        if source is None:  # two threads may both open it; either result serves
            source = self._sources.setdefault(
                split, tfds.builder_from_directory(self.path).as_data_source(split)
            )
        return source

    def timeline(self, name: str, partition: int = 0) -> dict[str, np.ndarray]:
        """Columns of one partition's events of a list, memory-mapped: `time` int64 [E], its features [E]."""
        key = (name, partition)
        if key not in self._timelines:
            folder = self.path / _timeline_dir(name, partition)
            if not folder.is_dir():
                raise DataError(
                    f"{folder} is missing; lists are {', '.join(self.schema.lists)}, or prepare again"
                )
            self._timelines[key] = {f.stem: _map(f) for f in sorted(folder.glob("*.npy"))}
        return self._timelines[key]

    def vocabulary(self, space: str) -> pl.DataFrame:
        """The vocabulary of an id space: columns value, id, count."""
        file = self.path / "vocab" / f"{space}.parquet"
        if not file.exists():
            raise DataError(
                f"{file} is missing: id space {space!r} was prepared without a vocabulary"
            )
        return pl.read_parquet(file)


def _map(file: pathlib.Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r")
    except ValueError:  # an empty file cannot be mapped
        return np.load(file)
