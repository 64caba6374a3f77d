"""A prepared data set: blocks of impressions, the timelines they point into, and who they are.

One directory holds everything and appears by one rename, so it is either whole or absent:

    dataset_info.json  features.json  metadata.json  *.array_record*    TFDS: version, splits, identity, blocks
    schema.json                                   `Schema.to_json`
    timelines/<list>/part-00000/<column>.npy      `time`, one column per list feature, `start` (offsets per user)
    vocab/<id space>.parquet                      value, id, count
    vectors/<id space>.npy                        float32 [rows, width], of spaces whose ids stand for vectors
    served/...                                    of own logs: their rows in raw values, for serving (`recjax.data.logs.served`)
    report.json  files.json                       what was found; size and SHA-256 of every other file

One TFDS record is one *block* of about `block_size` impressions: a dict of 1-D arrays (a vector or multi-hot
feature keeps its trailing axes), stored as raw bytes, all of one partition:

    time         int64  [R]  request time, seconds
    <list>/end   int64  [R]  history = events [end - count, end) of the list's columns in the block's partition,
    <list>/count int32  [R]  all strictly before `time`, one user's, oldest first, ties in log order
    <feature>    int32 ids or float32 numbers and labels [R, ...]
    weight float32 [R], <group> int32 [R], request int32 [R], row int32 [R], partition int32 scalar

`row` is the impression's place in its split. Training splits lie in the order of one seeded permutation, so the
first n rows are the nested subsets and reading once through is a single pass; the other splits lie in request order.
`recjax.data.store.writing` makes such a directory; this module names its parts and reads them. No TensorFlow and no JAX.
"""

from collections.abc import Mapping
import functools
import hashlib
import json
import os
import pathlib
import re
from typing import Any

from absl import logging
import numpy as np
import polars as pl
import tensorflow_datasets as tfds

from recjax.schema import ROLE_AXES, Feature, Schema, SchemaError

PARTITION = "partition"
FILES = "files.json"


class DataError(ValueError):
    """Prepared data is absent, damaged or contradicts its schema; the message names the file and the remedy."""


# --------------------------------------------------------------------------------------------- form


def prepared_path(
    out_dir: str | os.PathLike, name: str, options: Mapping[str, Any], version: str
) -> pathlib.Path:
    """Where data prepared with these options lives: <out_dir>/<name>/<hash of the options>/<version>."""
    return pathlib.Path(out_dir) / name / _digest(name, options, version) / version


def is_prepared(path: str | os.PathLike) -> bool:
    """True when a whole prepared data set lies at `path` (it is published by one rename)."""
    return (pathlib.Path(path) / "dataset_info.json").exists()


@functools.cache
def say_prepared(what: Any, path: str | os.PathLike) -> None:
    """Says that the data are there, once in a process."""
    logging.info("%s is already prepared in %s", what, path)


def _digest(name: str, options: Mapping[str, Any], version: str) -> str:
    text = json.dumps([name, version, dict(options)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def column_dtypes(schema: Schema) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Column name -> (dtype, trailing shape) of the impressions of a schema."""
    dtypes: dict[str, tuple[type, tuple[int, ...]]] = {"time": (np.int64, ())}
    for name in schema.lists:
        dtypes |= {f"{name}/end": (np.int64, ()), f"{name}/count": (np.int32, ())}
    for f in schema.features:
        if "L" not in ROLE_AXES[f.role]:
            dtypes[f.name] = feature_dtype(f)
    dtypes["weight"] = (np.float32, ())
    dtypes |= {key: (np.int32, ()) for key in (*schema.groups, "request", "row")}
    return dtypes


def feature_dtype(feature: Feature) -> tuple[type, tuple[int, ...]]:
    """(dtype, trailing shape) of a feature's column."""
    width = feature.vector or feature.multi
    return (np.int32 if feature.kind == "id" else np.float32), ((width,) if width else ())


def timeline_dir(name: str, partition: int) -> str:
    """Folder of one partition of a list, in the prepared directory."""
    return f"timelines/{file_name(name)}/part-{partition:05d}"


def file_name(name: str) -> str:
    """`name`, if a file can carry it; raises DataError otherwise."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise DataError(
            f"{name!r} cannot name a file; use letters, digits, '_', '-' and '.' for lists and their features"
        )
    return name


# ------------------------------------------------------------------------------------------ reading


DESCRIPTION_BYTES = 1 << 20  # files up to so large are checked when the data are opened
LAZY_BYTES = 1 << 30  # and up to so large when they are first read; `verify` checks all


def file_sha256(file: pathlib.Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def seal(folder: pathlib.Path) -> None:
    """Writes files.json: size and SHA-256 of every file below `folder`, by which damage is noticed."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / FILES)
    facts = {
        os.fspath(f.relative_to(folder)): {"bytes": f.stat().st_size, "sha256": file_sha256(f)}
        for f in files
    }
    (folder / FILES).write_text(json.dumps(facts, indent=1))


class Prepared:
    """A prepared data set on a local disk.

    Cheap to pickle (only the path travels) and safe to read from several threads. A file whose bytes are not those that
    were written is refused by name: descriptions when the data are opened, vocabularies, vectors and timelines of up
    to LAZY_BYTES when they are first read; the records of blocks carry checksums of their own, which reading checks.

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
            # Data prepared by earlier versions have sizes only.
            listed = json.loads(self._read(FILES))
            self._files = {n: f if isinstance(f, dict) else {"bytes": f} for n, f in listed.items()}
            self._check_sizes()
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

    def _check_sizes(self) -> None:
        for name, facts in self._files.items():
            file, size = self.path / name, facts["bytes"]
            if not file.exists():
                raise DataError(f"{file} is missing; delete {self.path} and prepare again")
            if file.stat().st_size != size:
                raise DataError(
                    f"{file} holds {file.stat().st_size} bytes where {size} were written; "
                    f"delete {self.path} and prepare again"
                )
            if size <= DESCRIPTION_BYTES and file.parent == self.path and file.suffix == ".json":
                self._check_bytes(name)

    def _check_bytes(self, name: str, most: int = LAZY_BYTES) -> None:
        """Raises DataError where a listed file of at most so many bytes is not what was written."""
        facts = self._files.get(name, {})
        if "sha256" in facts and facts["bytes"] <= most:
            if file_sha256(self.path / name) != facts["sha256"]:
                raise DataError(
                    f"{self.path / name} is damaged: its bytes are not those that were written; "
                    f"delete {self.path} and prepare again"
                )

    def verify(self) -> int:
        """Checks every file against its SHA-256; returns how many have one. DataError names the first that is damaged."""
        checked = [n for n, facts in self._files.items() if "sha256" in facts]
        for name in checked:
            self._check_bytes(name, most=self._files[name]["bytes"])
        return len(checked)

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
            folder = self.path / timeline_dir(name, partition)
            if not folder.is_dir():
                raise DataError(
                    f"{folder} is missing; lists are {', '.join(self.schema.lists)}, or prepare again"
                )
            files = sorted(f for f in folder.iterdir() if f.suffix == ".npy")
            for file in files:
                self._check_bytes(os.fspath(file.relative_to(self.path)))
            self._timelines[key] = {f.stem: _map(f) for f in files}
        return self._timelines[key]

    def vocabulary(self, space: str) -> pl.DataFrame:
        """The vocabulary of an id space: columns value, id, count."""
        file = self.path / "vocab" / f"{space}.parquet"
        if not file.exists():
            raise DataError(
                f"{file} is missing: id space {space!r} was prepared without a vocabulary"
            )
        self._check_bytes(f"vocab/{space}.parquet")
        return pl.read_parquet(file)

    def vectors(self, space: str) -> np.ndarray:
        """The frozen vectors of an id space with `IdSpace.vectors`, by id: float32 [rows, width], memory-mapped."""
        file, of = self.path / "vectors" / f"{space}.npy", self.schema.space(space)
        if not file.exists():
            raise DataError(
                f"{file} is missing: id space {space!r} was prepared without vectors; prepare again"
            )
        self._check_bytes(f"vectors/{space}.npy")
        vectors = _map(file)
        if vectors.shape != (of.rows, of.vectors):
            raise DataError(
                f"{file} has shape {vectors.shape}, the schema says {(of.rows, of.vectors)}; prepare again"
            )
        return vectors


def _map(file: pathlib.Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r")
    except ValueError:  # an empty file cannot be mapped
        return np.load(file)
