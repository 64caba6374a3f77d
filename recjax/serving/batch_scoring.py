"""Offline scoring: a file of raw requests, or a split of prepared data, through an artifact or a run, into a file.

The work of `python -m recjax.score`, which says what the columns are. Input is read, scored and written in chunks; the
output appears under its name when it is whole.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import os
import pathlib
import tempfile
from typing import Any

from absl import logging
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recjax.data.loading.layout import BatchError
from recjax.data.store.prepared import DataError, Prepared, column_dtypes
from recjax.data.store.translate import Translated
from recjax.evaluation import score_files
from recjax.evaluation.probability import probability_names
from recjax.schema import SchemaError
from recjax.serving import artifact as artifacts
from recjax.serving.requests import RequestError, is_list
from recjax.serving.scorer import Scorer
from recjax.training.inference import RunScorer, trained_on


class ScoreError(ValueError):
    """An input or output file cannot be used; the message names it and the remedy."""


ERRORS = (
    ScoreError,
    artifacts.ArtifactError,
    RequestError,
    BatchError,
    DataError,
    SchemaError,
    score_files.ScoredError,
    FileNotFoundError,
)


def score(
    artifact: str,
    source: str,
    out: str,
    *,
    run: str = "",
    best: bool = False,
    split: str = "test",
    function: str = "",
    chunk: int = 512,
    corrected: bool = True,
    shard: tuple[int, int] = (0, 1),
) -> int:
    """Writes the scores of `source` to `out`; returns the number of rows.

    Args:
      artifact: Its directory; "" for a run.
      source: A parquet file of raw requests, or a prepared directory.
      out: Parquet file to write; replaced when it exists. With more than one shard its name says which.
      run: A run's workdir, in place of an artifact; it scores prepared data only.
      best: The run's best checkpoint rather than its newest.
      split: Of a prepared directory.
      function: Of the artifact; "" takes "score", or the only one.
      chunk: Requests scored at a time.
      corrected: Correct probabilities for negatives the training data left out, if the artifact knows their share.
      shard: (index, count) of hosts that score a prepared directory together.

    Raises:
      ValueError: One of `ERRORS`, in one sentence.
    """
    if bool(artifact) == bool(run):
        raise ScoreError("give --artifact or --run, one of them")
    if not pathlib.Path(source).exists():
        raise ScoreError(
            f"{source} does not exist; --in names a parquet file or a prepared directory"
        )
    folder = pathlib.Path(source).is_dir()
    if not folder and (run or shard != (0, 1)):
        raise ScoreError(f"{source} is a file; --run and --shard score a prepared directory")
    if run:
        of_run = RunScorer(run, source, best=best, chunk=chunk)
        about = {
            "objectives": of_run.objectives,
            "trained": of_run.trained,
            "model": of_run.model,
        }
        tables = _prepared_tables(of_run, of_run.prepared, split, chunk, corrected, shard, about)
        return write(score_files.part_name(out, shard), tables)
    scorer = Scorer(artifacts.load(artifact), function, requests=(1, 64, chunk))
    if folder:
        about = {
            "objectives": scorer.artifact.manifest["objectives"],
            "trained": trained_on(scorer.artifact.config),
            "model": f"{scorer.function!r} of artifact {scorer.artifact.stamp[:12]}",
        }
        prepared = _with_ids_of(scorer, Prepared(source))
        tables = _prepared_tables(scorer, prepared, split, chunk, corrected, shard, about)
    else:
        tables = _file_tables(scorer, source, chunk, corrected)
    rows = write(score_files.part_name(out, shard), tables)
    for name, count in scorer.encoder.unknown.items() if "encoder" in vars(scorer) else ():
        logging.info("%s: %d of %d values are unknown", name, count, scorer.encoder.seen[name])
    return rows


def write(out: str, tables: Iterator[pa.Table]) -> int:
    """Writes tables of one schema, one after the other, under a temporary name, then renames; returns the rows."""
    path = pathlib.Path(out)
    if not path.parent.is_dir():
        raise ScoreError(f"{path.parent} does not exist; make it, or give another --out")
    temporary, rows = path.with_name(f".{path.name}.{os.getpid()}"), 0
    try:
        with contextlib.ExitStack() as stack:
            writer = None
            for table in tables:
                writer = writer or stack.enter_context(pq.ParquetWriter(temporary, table.schema))
                writer.write_table(table)
                rows += len(table)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return rows


# --- a file of raw requests


def _file_tables(scorer: Scorer, source: str, chunk: int, corrected: bool) -> Iterator[pa.Table]:
    try:
        file = pq.ParquetFile(source)
    except (pa.ArrowInvalid, OSError) as e:
        raise ScoreError(f"{source} is no parquet file ({str(e).splitlines()[0]})") from e
    with file:
        schema = file.schema_arrow
        kept = _passed_through(scorer, source, schema)
        row = 0
        for batch in _batches(file, schema, chunk):
            try:
                yield _scored(scorer, batch, kept, row, corrected)
            except RequestError as e:
                raise RequestError(f"{source}: {e}") from e
            row += len(batch)


def _batches(file: pq.ParquetFile, schema: pa.Schema, chunk: int) -> Iterator[pa.RecordBatch]:
    """At least one, so that an empty file becomes an empty file."""
    if not file.metadata.num_rows:
        yield pa.RecordBatch.from_pylist([], schema=schema)
    yield from file.iter_batches(batch_size=chunk)


def _passed_through(scorer: Scorer, source: str, schema: pa.Schema) -> list[str]:
    """Columns that go to the output: all but the histories."""
    needed = scorer.encoder.names
    for name in needed:
        if name not in schema.names:
            raise ScoreError(
                f"{source} has no column {name!r}; the model reads {', '.join(needed)}"
            )
    for name in (*_score_names(scorer).values(), *probability_names(scorer.logits).values()):
        if name in schema.names:
            raise ScoreError(
                f"{source} already has a column {name!r}; rename it, the score goes there"
            )
    lists = scorer.artifact.schema.lists
    histories = {f.name for f in scorer.artifact.schema.features if f.list} | {
        f"{n}/time" for n in lists
    }
    return [name for name in schema.names if name not in histories]


def _scored(
    scorer: Scorer, batch: pa.RecordBatch, kept: list[str], first_row: int, corrected: bool
) -> pa.Table:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    part = scorer.encoder.encode(columns, first_row)
    scores = _scores(scorer, scorer.score_part(part), corrected)
    grouped = any(is_list(f, columns[f.name]) for f in scorer.schema.select("candidate"))
    if grouped:  # a list of candidates a row gets a list of scores a row
        ends = np.append(0, np.cumsum(part.counts)).astype(np.int32)
        scores = {n: pa.ListArray.from_arrays(ends, x) for n, x in scores.items()}
    return pa.table({**{n: columns[n] for n in kept}, **scores})


def _score_names(scorer) -> dict[str, str]:
    """Output -> column it goes to: logits as `score_files.score_columns` says, others of [B, C] under their names."""
    names = score_files.score_columns(scorer.logits)
    outputs = scorer.outputs if isinstance(scorer, Scorer) else {}
    return names | {n: n for n in outputs if n not in names and outputs[n]["shape"] == ["b", "c"]}


def _scores(scorer, out: Mapping[str, np.ndarray], corrected: bool) -> dict[str, np.ndarray]:
    columns = {}
    for output, name in _score_names(scorer).items():
        columns[name] = np.asarray(out[output], np.float32)
        if output in scorer.logits:
            probability = probability_names([output])[output]
            columns[probability] = scorer.probability(out[output], corrected)
    return columns


# --- a split of prepared data


def _prepared_tables(
    scorer,
    prepared: Prepared,
    split: str,
    chunk: int,
    corrected: bool,
    shard: tuple[int, int],
    about: Mapping[str, Any],
) -> Iterator[pa.Table]:
    keys = ["row", "request", "time", *prepared.schema.groups, *prepared.schema.labels, "weight"]
    what = score_files.describe(scorer, prepared, split, shard, **about)
    parts = score_files.parts(scorer, prepared, split, chunk, shard)
    first = next(parts, None) or _nothing(scorer, prepared)  # there are more hosts than blocks
    for columns, out in itertools.chain([first], parts):
        table = pa.table({**{k: columns[k] for k in keys}, **_scores(scorer, out, corrected)})
        yield score_files.with_metadata(table, what)


def _nothing(scorer, prepared: Prepared) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What `score_files.parts` yields, of no impressions."""
    dtypes = column_dtypes(prepared.schema)
    columns = {n: np.empty((0, *shape), dtype) for n, (dtype, shape) in dtypes.items()}
    return columns, dict.fromkeys(_score_names(scorer), np.empty(0, np.float32))


def _with_ids_of(scorer: Scorer, prepared: Prepared) -> Prepared:
    """The data as it is where its ids mean what the artifact's mean, else translated."""
    if all(_same_vocabulary(scorer, prepared, s) for s in scorer.artifact.manifest["vocab"]):
        _check_same_data(scorer, prepared)
        return prepared
    spaces = dict.fromkeys(f.id_space for f in scorer.schema.features if f.kind == "id")
    vocabularies = {s: scorer.artifact.vocabulary(s) for s in spaces}
    labels = tuple(f for f in prepared.schema.features if f.role == "label")
    features = tuple(f for f in scorer.schema.features if f.role != "label")
    schema = dataclasses.replace(scorer.schema, features=features + labels)
    return Translated(prepared.path, schema, vocabularies)


def _same_vocabulary(scorer: Scorer, prepared: Prepared, space: str) -> bool:
    if not (prepared.path / "vocab" / f"{space}.parquet").exists():
        return True
    mine = scorer.artifact.vocabulary(space)
    theirs = prepared.vocabulary(space).select("value", "id").sort("id")
    return mine.equals(theirs.cast(mine.schema, strict=False))


def _check_same_data(scorer: Scorer, prepared: Prepared) -> None:
    """What the model reads must mean the same in the data: the same features and id spaces."""
    for f in scorer.schema.features:
        mine: Any = f
        theirs: Any = prepared.schema.feature(f.name)
        if f.kind == "id":
            mine, theirs = (
                (mine, scorer.schema.space(f.id_space)),
                (theirs, prepared.schema.space(f.id_space)),
            )
        if mine != theirs:
            raise ScoreError(
                f"feature {f.name!r} is {theirs} in {prepared.path}, the artifact was trained on {mine}; "
                "score the data it was trained on, or a file of raw requests"
            )


# --- an artifact, judged


def evaluate(artifact: str, data_dir: str, splits, wanted: Sequence[str]) -> dict:
    """split -> metrics of an artifact on prepared data."""
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for split in splits:
            file = f"{folder}/{split}.parquet"
            score(artifact, data_dir, file, split=split)
            out |= score_files.evaluate(file, data_dir, wanted)
    return out
