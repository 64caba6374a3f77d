"""Writes a prepared data set: checked columns become blocks in their order, and all of it appears by one rename.

The form is `recjax.data.store.prepared`'s. A TFDS builder *class* that writes ArrayRecord needs no TensorFlow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import json
import os
import pathlib
import tempfile
from typing import Any
import zlib

from absl import logging
from array_record.python import array_record_module
import numpy as np
import polars as pl
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer
import tqdm

from recjax.data.store.blocks import Columns, check_timelines, check_vectors, split_blocks
from recjax.data.store.prepared import (
    PARTITION,
    DataError,
    column_dtypes,
    feature_dtype,
    file_name,
    is_prepared,
    prepared_path,
    say_prepared,
    seal,
    timeline_dir,
)
from recjax.schema import Schema

BLOCK_SIZE = 4096
SHARD_BYTES = 1 << 28  # of a file of blocks, about


def write_prepared(
    out_dir: str | os.PathLike,
    name: str,
    schema: Schema,
    timelines: Mapping[str, Sequence[Columns]],
    splits: Mapping[str, Columns | Callable[[], Columns]],
    *,
    vocab: Mapping[str, pl.DataFrame] | None = None,
    vectors: Columns | None = None,
    report: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    version: str = "1.0.0",
    block_size: int = BLOCK_SIZE,
    unit: str = "impression",
    seed: int = 0,
    builder: "type[BlockBuilder] | None" = None,
    more: Callable[[pathlib.Path], None] | None = None,
) -> pathlib.Path:
    """Writes a prepared data set and returns its directory; does nothing when it is already there.

    Args:
      out_dir: Folder that holds prepared data sets.
      name: Of the data set, snake_case.
      schema: Of the impressions.
      timelines: list -> one mapping per partition: `time` int64 [E] (seconds), the list's features [E],
        optionally `start` int64 [users + 1].
      splits: split -> columns as in `recjax.data.store.prepared`, in any order, or a function that makes them (called
        once, when the split is written, so that one split at a time is in memory); `weight` (1.0), `request`
        (the row's number) and `partition` int [N] (0) have defaults, `row` is made here. Splits whose names
        start with "train" are permuted, the others sorted by request.
      vocab: id space -> frame with columns value, id, count.
      vectors: id space -> float32 [rows, width], of those with `IdSpace.vectors`.
      report: Goes to report.json.
      facts: What `Prepared.identity` should say besides name, version, config and hash: results a reader needs
        (`counters`: names of the causal counters, `keep`: keep probabilities of negatives).
      options: Everything the content depends on (JSON values); it names the directory together with
        `version`, `block_size`, `unit` and `seed`. None: a checksum of the content does (not with functions).
      version: Of the preparation code.
      block_size: Impressions per record.
      unit: What the training permutation moves: "impression", or "request" (its rows stay together).
      seed: Of that permutation.
      builder: A subclass of `BlockBuilder` that documents the data.
      more: Writes further files into the folder, before it is sealed and appears.

    Raises:
      DataError: A column is missing, of another length or type, or a history reaches past its timeline.
    """
    if unit not in ("impression", "request"):
        raise DataError(f"unit {unit!r} is not known; use 'impression' or 'request'")
    options = dict(_content_options(schema, timelines, splits) if options is None else options)
    options |= {"block_size": block_size, "unit": unit, "seed": seed}
    make = functools.partial(
        split_blocks, schema, timelines, block_size=block_size, unit=unit, seed=seed
    )
    blocks = {split: functools.partial(make, split, columns) for split, columns in splits.items()}
    return write_blocks(
        out_dir,
        name,
        schema,
        timelines,
        blocks,
        vocab=vocab,
        vectors=vectors,
        report=report,
        facts=facts,
        options=options,
        version=version,
        builder=builder,
        more=more,
    )


def write_blocks(
    out_dir: str | os.PathLike,
    name: str,
    schema: Schema,
    timelines: Mapping[str, Sequence[Columns]],
    blocks: Mapping[str, Callable[[], Iterator[dict[str, Any]]]],
    *,
    vocab: Mapping[str, pl.DataFrame] | None,
    report: Mapping[str, Any] | None,
    facts: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    version: str,
    vectors: Columns | None = None,
    builder: "type[BlockBuilder] | None" = None,
    more: Callable[[pathlib.Path], None] | None = None,
) -> pathlib.Path:
    """`write_prepared` for splits that are blocks already (`split_blocks`), read one at a time."""
    path = prepared_path(out_dir, name, options, version)
    if is_prepared(path):
        say_prepared(name, path)
        return path
    check_timelines(schema, timelines)
    check_vectors(schema, vectors or {})
    identity = {
        "name": name,
        "version": version,
        "config": dict(options),
        "hash": path.parent.name,
        **(facts or {}),
        "blocks": {},  # filled in while they are written
    }
    extras = functools.partial(
        _write_extras,
        schema=schema,
        timelines=timelines,
        vocab=vocab or {},
        vectors=vectors or {},
        report=report or {},
        more=more,
    )
    make_builder = functools.partial(
        builder or BlockBuilder,
        name,
        tfds.core.BuilderConfig(name=path.parent.name, version=version),
        os.fspath(out_dir),
        schema,
        identity,
        blocks,
        extras,
    )
    _build(path, make_builder)
    return path


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


# ------------------------------------------------------------------------------------------ builder


class BlockBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes blocks; everything else goes into TFDS's incomplete directory, so one rename publishes all.

    `recjax.data.sets.published` has subclasses that say what data it is.
    """

    VERSION = None  # the config carries it

    def __init__(self, name, config, out_dir, schema, identity, splits, write_extras):
        self.name = name
        self._schema, self._identity = schema, identity
        self._splits, self._extras = splits, write_extras
        super().__init__(data_dir=out_dir, config=config)

    def about(self) -> dict[str, str]:
        """description, citation, homepage, license of the data, as far as they are known."""
        return {}

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            name: tfds.features.Tensor(shape=(None, *shape), dtype=dtype, encoding="bytes")
            for name, (dtype, shape) in column_dtypes(self._schema).items()
        }
        features[PARTITION] = tfds.features.Scalar(np.int32)
        return _SealedInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(self._identity),
            disable_shuffling=True,  # the order is ours: it is the single pass
            **self.about(),
        )

    def _split_generators(self, dl_manager):  # abstract there; `_generate_splits` needs none
        raise NotImplementedError

    _generate_examples = _split_generators

    def _generate_splits(self, dl_manager, download_config):
        """Streams the blocks to disk.

        TFDS's own writer holds a split in memory to sort it and, past 1 GiB, wants TensorFlow; blocks are in order.
        """
        del dl_manager, download_config
        return [self._write_split(split) for split in self._splits]

    def _write_split(self, split: str) -> tfds.core.SplitInfo:
        features, template = self.info.features, self._get_filename_template(split)
        serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        rows, partitions, files = [], [], _Files(pathlib.Path(self.data_dir) / split)
        blocks = self._splits[split]()
        for block in tqdm.tqdm(
            blocks, split, unit=" blocks", mininterval=1.0, leave=False, disable=None
        ):
            files.add(serializer.serialize_example(features.encode_example(block)))
            rows.append(len(block["row"]))
            partitions.append(int(block[PARTITION]))
        if not rows:
            raise DataError(f"split {split!r} has no impression; correct what chooses its rows")
        lengths = files.close(template)
        self.info.metadata["blocks"][split] = {"rows": rows, PARTITION: partitions}
        return tfds.core.SplitInfo(
            name=split, shard_lengths=lengths, num_bytes=files.nbytes, filename_template=template
        )

    def _download_and_prepare(self, dl_manager, download_config):
        super()._download_and_prepare(dl_manager, download_config)
        self._extras(pathlib.Path(self.data_dir))

    def _log_download_bytes(self):  # nothing is downloaded
        pass

    _log_download_done = _log_download_bytes


class _SealedInfo(tfds.core.DatasetInfo):
    """TFDS writes its description last, before the rename that publishes everything; then the list of files is made."""

    def write_to_directory(self, dataset_info_dir, all_metadata: bool = True) -> None:
        super().write_to_directory(dataset_info_dir, all_metadata)
        seal(pathlib.Path(dataset_info_dir))

    def initialize_from_bucket(self) -> None:
        """Nothing: our sets lie in no bucket, and TFDS makes a temporary folder, which it never removes, before it looks."""


class _Files:
    """ArrayRecord files of about `SHARD_BYTES`, one after the other.

    Attributes:
      nbytes: Of all records.
    """

    def __init__(self, stem: pathlib.Path):
        self.nbytes = 0
        self._stem = stem
        self._writer: Any = None
        self._files: list[pathlib.Path] = []
        self._lengths: list[int] = []
        self._room = 0

    def add(self, record: bytes) -> None:
        if self._writer is None or self._room <= 0:
            self._finish()
            self._files.append(
                self._stem.with_name(f"{self._stem.name}-{len(self._files)}.writing")
            )
            self._lengths.append(0)
            self._room = SHARD_BYTES
            path = os.fspath(self._files[-1])
            self._writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
        self._writer.write(record)
        self._lengths[-1] += 1
        self._room -= len(record)
        self.nbytes += len(record)

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def close(self, template) -> list[int]:
        """Names the files, now that their number is known; returns their numbers of records."""
        self._finish()
        for i, file in enumerate(self._files):
            file.rename(template.sharded_filepath(shard_index=i, num_shards=len(self._files)))
        return self._lengths


def _build(path: pathlib.Path, make_builder: Callable[[], BlockBuilder]) -> None:
    builder = make_builder()
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
    logging.info("Prepared %s in %s", builder.name, path)


def _write_extras(
    folder: pathlib.Path, *, schema: Schema, timelines, vocab, vectors, report, more
) -> None:
    (folder / "schema.json").write_text(schema.to_json())
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    for space, frame in vocab.items():
        (folder / "vocab").mkdir(exist_ok=True)
        frame.write_parquet(folder / "vocab" / f"{space}.parquet")
    for space, rows in vectors.items():
        (folder / "vectors").mkdir(exist_ok=True)
        np.save(folder / "vectors" / f"{file_name(space)}.npy", np.asarray(rows, np.float32))
    for name, parts in timelines.items():
        dtypes = {f.name: feature_dtype(f)[0] for f in schema.features if f.list == name}
        dtypes |= {"time": np.int64, "start": np.int64}
        for p, part in enumerate(parts):
            at = folder / timeline_dir(name, p)
            at.mkdir(parents=True)
            for column in part:
                np.save(
                    at / f"{file_name(column)}.npy",
                    np.asarray(part[column]).astype(dtypes[column], copy=False),
                )
    if more is not None:
        more(folder)
