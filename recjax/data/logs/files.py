"""Reads log files of any of the usual formats: every bad row is found, named and set aside.

A row that cannot be used has a reason, the column it is about, and the file and row number it came from (row 1 is the
first after a CSV's header). A file that a fast parser refuses as a whole is read line by line.
"""

import codecs
from collections.abc import Sequence
import csv
import dataclasses
import glob
import gzip
import io
import json
import os
import time
from typing import Any
import zlib

from absl import logging
from etils import epath
import numpy as np
import polars as pl

from recjax.data.logs.mapping import LogMapping
from recjax.data.logs.values import as_id, as_moment, as_number, as_vector
from recjax.data.store.prepared import DataError
from recjax.data.store.times import seconds_of

FORMATS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".ndjson", ".parquet")
FILE, ROW, REASON, COLUMN, MOMENT = "__file", "__row", "__reason", "__column", "__moment"
PLACE = "__place"  # of a row in a log that is read in pieces (`recjax.data.logs.sharded`)
BAD_SHOWN = 8
DAMAGED = (pl.exceptions.ComputeError, pl.exceptions.SchemaError)


@dataclasses.dataclass(frozen=True)
class RawLog:
    """A log as read.

    Attributes:
      rows: Usable rows by (time, log order), the mapping's columns, and MOMENT: microseconds.
      bad: The others: file, row, column, reason, record (JSON).
      read: Rows read.
      out_of_order: Rows earlier than the row before them in their file.
    """

    rows: pl.DataFrame
    bad: pl.DataFrame
    read: int
    out_of_order: int


# ------------------------------------------------------------------------------------------- files


def list_files(logs: str) -> list[str]:
    """The files of a pattern, or of several after commas; a bucket's are listed through etils.epath.

    A file without a line, such as the log of an hour in which nothing happened, is left out with a warning.

    Raises:
      DataError: No file matches, one has an unknown format, or all are empty.
    """
    files = [f for pattern in logs.split(",") for f in _matches(pattern.strip())]
    if not files:
        raise DataError(f"no file matches {logs!r}; correct --logs")
    for f in files:
        if not f.lower().endswith(FORMATS):
            raise DataError(f"{f}: unknown format; logs are {', '.join(FORMATS)}")
    empty = [f for f in files if _is_empty(f)]
    for f in empty:
        logging.warning("%s is empty and left out", f)
    if len(empty) == len(files):
        raise DataError(f"every file of {logs!r} is empty ({len(files)}); correct --logs")
    return [f for f in files if f not in empty]


def _is_empty(file: str) -> bool:
    """Whether a text file has no line but blank ones."""
    if file.lower().endswith(".parquet"):
        return False
    try:
        with _open(file) as stream:
            return not any(line.removeprefix(codecs.BOM_UTF8).strip() for line in stream)
    except (OSError, EOFError, zlib.error):
        return False  # it is absent or damaged: whoever reads it says so


def _matches(pattern: str) -> list[str]:
    if "://" not in pattern:
        return sorted(f for f in glob.glob(os.path.expanduser(pattern)) if os.path.isfile(f))
    root, _, rest = pattern.partition("*")
    if not rest and "*" not in pattern:
        return [pattern]
    folder, _, first = root.rpartition("/")
    found = epath.Path(folder).glob(f"{first}*{rest}")
    if "/" in rest:
        return sorted(map(str, found))
    return sorted(f"{folder}/{f.name}" for f in found)  # however the file system spells the folder


def fingerprint(files: Sequence[str]) -> list[list[Any]]:
    """Name, size and checksum of each file: an edited log is another data set."""
    out: list[list[Any]] = []
    for f in files:
        crc, path = 0, epath.Path(f)
        if not path.exists():
            raise DataError(f"there is no file {f}; correct the mapping or --logs")
        with path.open("rb") as stream:
            while piece := stream.read(1 << 24):
                crc = zlib.crc32(piece, crc)
        out.append([path.name, path.stat().length, crc])
    return out


def columns_of(file: str, separator: str = ",") -> list[str]:
    """Column names of a file; raises DataError for a CSV without a line."""
    try:
        return _scan(file, separator).collect_schema().names()
    except pl.exceptions.NoDataError as e:
        raise DataError(f"{file} is empty; write it again") from e


def scan_rows(file: str) -> int:
    """Rows of a Parquet file, from its footer."""
    try:
        return pl.scan_parquet(file, glob=False).select(pl.len()).collect().item()
    except DAMAGED as e:
        raise _no_parquet(file, e) from e


def _no_parquet(file: str, e: Exception) -> DataError:
    return DataError(f"{file} is no readable Parquet file ({e}); write it again")


def _scan(file: str, separator: str) -> pl.LazyFrame:
    name = file.lower()
    if name.endswith(".parquet"):
        return pl.scan_parquet(file, glob=False)
    if ".csv" in name or ".tsv" in name:
        # As text: what a cell holds is decided here, where a bad one can be named.
        separator = "\t" if ".tsv" in name else separator
        return pl.scan_csv(file, separator=separator, infer_schema=False, glob=False)
    return pl.scan_ndjson(file, infer_schema_length=None)


def head(file: str, rows: int, separator: str = ",") -> pl.DataFrame:
    """The first rows of a file, CSV columns with the types their text suggests."""
    name = file.lower()
    if ".csv" in name or ".tsv" in name:
        separator = "\t" if ".tsv" in name else separator
        return pl.read_csv(
            file,
            n_rows=rows,
            separator=separator,
            infer_schema_length=rows,
            try_parse_dates=False,
            truncate_ragged_lines=True,
        )
    if name.endswith(".parquet"):
        return pl.scan_parquet(file, glob=False).head(rows).collect()
    with _open(file) as stream:
        lines = b"".join(line for line, _ in zip(stream, range(rows), strict=False))
    return pl.read_ndjson(io.BytesIO(lines), infer_schema_length=None, ignore_errors=True)


def read_table(file: str, key: str, columns: Sequence[str], separator: str) -> pl.DataFrame:
    """Some columns of a side table, by key; of rows with the same key the first counts.

    Raises:
      DataError: It is empty or damaged, or lacks a column.
    """
    try:
        names = columns_of(file, separator)
        for column in (key, *columns):
            if column not in names:
                raise DataError(f"{file} has no column {column!r}; it has {', '.join(names)}")
        frame = _scan(file, separator).select(key, *columns).collect()
    except DAMAGED as e:
        raise DataError(f"{file} is no readable table ({e}); write it again") from e
    return frame.unique(key, keep="first", maintain_order=True)


def _load(
    file: str, wanted: Sequence[str], separator: str, piece: tuple[int, int] | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The wanted columns of a file (or of a piece: first row, rows) with ROW, and the lines no parser takes."""
    try:
        names = columns_of(file, separator)
        for column in wanted:
            if column not in names:
                raise DataError(
                    f"{file} has no column {column!r}; it has {', '.join(names)}: correct the mapping"
                )
        rows = _scan(file, separator).with_row_index(ROW, 1).select(ROW, *wanted)
        frame = (rows.slice(*piece) if piece else rows).collect()
        return frame, _bad_lines(file, [])
    except DAMAGED as e:
        if file.lower().endswith(".parquet"):
            raise _no_parquet(file, e) from e
        logging.warning("%s is damaged (%s): reading it line by line", file, e)
    frame, bad = _salvage(file, separator)
    missing = [c for c in wanted if c not in frame.columns]
    if missing:
        raise DataError(f"{file} has no column {missing[0]!r}; it has {', '.join(frame.columns)}")
    return frame.select(ROW, *wanted), bad


def _open(file: str) -> Any:
    """The bytes of a file, local or in a bucket, unpacked."""
    stream = epath.Path(file).open("rb")
    return gzip.GzipFile(fileobj=stream) if file.lower().endswith(".gz") else stream


def _salvage(file: str, separator: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Reads line by line what can be read."""
    # A spreadsheet's export begins with a byte order mark, which polars drops too.
    encoding = "utf-8-sig"
    with io.TextIOWrapper(_open(file), encoding, errors="replace", newline="") as stream:
        if ".csv" in file.lower() or ".tsv" in file.lower():
            reader = csv.reader(stream, delimiter="\t" if ".tsv" in file.lower() else separator)
            header = next(reader)
            good, bad = [], []
            for i, cells in enumerate(reader, 1):
                if len(cells) > len(header):
                    reason = f"{len(cells)} fields where the header has {len(header)}"
                    bad.append((i, reason, separator.join(cells)))
                else:
                    row = {c: x or None for c, x in zip(header, cells, strict=False)}
                    good.append({ROW: i, **row})
            schema = {ROW: pl.UInt32, **dict.fromkeys(header, pl.String)}
            return pl.DataFrame(good, schema=schema), _bad_lines(file, bad)
        good, bad = [], []
        for i, line in enumerate(stream, 1):
            try:
                good.append({ROW: i, **json.loads(line)})
            except (ValueError, TypeError):
                bad.append((i, "not a JSON object", line.strip()[:200]))
    return pl.DataFrame(good, infer_schema_length=None, strict=False), _bad_lines(file, bad)


def _bad_lines(file: str, bad: list[tuple[int, str, str]]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "file": [file] * len(bad),
            "row": [b[0] for b in bad],
            "column": [""] * len(bad),
            "reason": [b[1] for b in bad],
            "record": [b[2] for b in bad],
        },
        schema=dict(
            zip(
                ("file", "row", "column", "reason", "record"),
                (pl.String, pl.UInt32, *[pl.String] * 3),
                strict=True,
            )
        ),
    )


# --------------------------------------------------------------------------------------------- rows


def read_log(files: Sequence[str], m: LogMapping, strict: bool = False) -> RawLog:
    """All usable rows of some files in time order, and the unusable ones with their reasons.

    Args:
      files: From `list_files`.
      m: The mapping.
      strict: Refuse the first file set with any bad row.

    Raises:
      DataError: A column is missing; with `strict`, any bad row (file, rows and column are named); nothing is left.
    """
    wanted, now = wanted_columns(files, m), latest_second(m)
    parts = [read_part(file, wanted, m, now) for file in files]
    read, disorder = sum(p.read for p in parts), sum(p.out_of_order for p in parts)
    log, repeated = in_time_order([p.rows for p in parts], m)
    refused = pl.concat([*(p.bad for p in parts), repeated])
    if strict and refused.height:
        raise DataError(f"{refused.height} bad rows, refused by --strict:\n{describe(refused)}")
    if not log.height:
        raise DataError(f"no usable row in {len(files)} files:\n{describe(refused)}")
    return RawLog(log, refused, read, disorder)


def latest_second(m: LogMapping) -> int:
    """The last second a time stamp may have."""
    return seconds_of(m.until) + 86_400 if m.until else int(time.time())


def wanted_columns(files: Sequence[str], m: LogMapping) -> list[str]:
    """The columns to read from every file."""
    return log_columns(m, {c for file in files for c in columns_if_sound(file, m.separator)})


def read_part(
    file: str,
    wanted: Sequence[str],
    m: LogMapping,
    now: int,
    piece: tuple[int, int] | None = None,
) -> RawLog:
    """The usable rows of one file, or of a piece of it (first row, rows), in the log's order, with FILE and ROW."""
    frame, lines = _load(file, wanted, m.separator, piece)
    typed = _typed(frame, m, now)
    disorder = int((typed[MOMENT].drop_nulls().diff() < 0).sum() or 0)
    wrong = typed[REASON].is_not_null()
    kept = typed.filter(~wrong).drop(REASON, COLUMN).with_columns(pl.lit(file).alias(FILE))
    bad = pl.concat([lines, _rejected(file, frame, typed, wrong)])
    return RawLog(kept, bad, frame.height + lines.height, disorder)


def in_time_order(
    frames: Sequence[pl.DataFrame], m: LogMapping
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows by (time, log order) without repeats, and the repeats. `frames` follow each other in the log."""
    return _without_duplicates(_concat(list(frames)).sort(MOMENT, maintain_order=True), m)


def columns_if_sound(file: str, separator: str) -> list[str]:
    """Column names, or none where the file is damaged (`_load` says how)."""
    try:
        return columns_of(file, separator)
    except DAMAGED:
        return []


def log_columns(m: LogMapping, names: set[str]) -> list[str]:
    """The columns to read from the log: side columns it lacks must come from a side table."""
    sides = [(c, m.item_table) for c in m.item_columns] + [
        (c, m.user_table) for c in m.user_columns
    ]
    inside = [c for c, table in sides if not table or c in names] + list(m.context_columns)
    keys = [*m.key_columns, m.time, m.scene, m.action, *m.label_columns]
    return list(dict.fromkeys(c for c in (*keys, *inside) if c))


def _typed(frame: pl.DataFrame, m: LogMapping, now: int) -> pl.DataFrame:
    """Columns with their final types, MOMENT, and for bad rows COLUMN and REASON."""
    out: dict[str, pl.Series] = {ROW: frame[ROW]}
    problems: list[tuple[str, str, pl.Series]] = []  # column, reason, where
    for column in m.key_columns:
        out[column] = as_id(frame[column])
        problems.append((column, "missing", out[column].is_null()))
    moment = as_moment(frame[m.time], m)
    out[MOMENT] = moment
    problems += [
        (m.time, "missing", frame[m.time].is_null()),
        (m.time, "not a time", moment.is_null()),
        (m.time, "not after 1970: is the unit right?", moment <= 0),
        (m.time, "in the future", moment > now * 1_000_000),
    ]
    for column in m.label_columns:
        out[column] = label = as_number(frame[column])
        problems.append((column, "not a label in [0, 1]", ~label.is_between(0, 1).fill_null(False)))
    for column in (c for c in frame.columns if c not in out and c not in (m.time, ROW)):
        out[column], found = _feature(frame[column], m)
        problems += [(column, reason, where) for reason, where in found]
    reason, where = _first_problem(problems, frame.height)
    return pl.DataFrame(out).with_columns(reason.alias(REASON), where.alias(COLUMN))


def _feature(x: pl.Series, m: LogMapping) -> tuple[pl.Series, list[tuple[str, pl.Series]]]:
    if x.name in m.vectors:
        vector = as_vector(x)
        return vector, [("not a vector", vector.is_null() & x.is_not_null())]
    if x.name not in m.dense:
        return as_id(x), []
    number = as_number(x)
    found = [("not a finite number", ~(number.is_finite().fill_null(False)) & _present(x))]
    if m.dense[x.name] == "log1p":
        found.append(("below zero under log1p", (number < 0).fill_null(False)))
    return number, found


def _present(x: pl.Series) -> pl.Series:
    return x.is_not_null() & x.is_not_nan() if x.dtype.is_float() else x.is_not_null()


def _first_problem(problems, n: int) -> tuple[pl.Series, pl.Series]:
    """Reason and column of each row's first problem; null where there is none."""
    index = np.full(n, len(problems))
    for i, (_, _, where) in reversed(list(enumerate(problems))):
        index[where.fill_null(False).to_numpy()] = i
    at = pl.Series(index)
    reasons = pl.Series([p[1] for p in problems] + [None], dtype=pl.String)
    columns = pl.Series([p[0] for p in problems] + [None], dtype=pl.String)
    return reasons.gather(at), columns.gather(at)


def _rejected(
    file: str, frame: pl.DataFrame, typed: pl.DataFrame, wrong: pl.Series
) -> pl.DataFrame:
    raw = frame.filter(wrong).drop(ROW)
    return typed.filter(wrong).select(
        pl.lit(file).alias("file"),
        pl.col(ROW).cast(pl.UInt32).alias("row"),
        pl.col(COLUMN).alias("column"),
        pl.col(REASON).alias("reason"),
        _records(raw).alias("record"),
    )


def _records(raw: pl.DataFrame) -> pl.Series:
    return pl.Series(
        [json.dumps(r, default=str) for r in raw.iter_rows(named=True)], dtype=pl.String
    )


def _without_duplicates(log: pl.DataFrame, m: LogMapping) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One row of each (user, item, time, action), the first of the log; and the others."""
    event = [*m.key_columns, MOMENT, *filter(None, [m.action])]
    again = ~log.select(pl.struct(event).is_first_distinct()).to_series()
    repeated = log.filter(again)
    bad = repeated.select(
        pl.col(FILE).alias("file"),
        pl.col(ROW).cast(pl.UInt32).alias("row"),
        pl.lit(m.item).alias("column"),
        pl.lit("duplicate").alias("reason"),
        _records(repeated.drop(FILE, ROW, PLACE, strict=False)).alias("record"),
    )
    return log.filter(~again).drop(FILE, ROW), bad


def _concat(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """All rows; a column whose type differs between files becomes text."""
    for column in frames[0].columns:
        if len({f[column].dtype for f in frames}) > 1:
            nested = any(f[column].dtype.is_nested() for f in frames)
            if not nested:
                frames = [f.with_columns(pl.col(column).cast(pl.String)) for f in frames]
    return pl.concat(frames, how="vertical_relaxed")


def describe(bad: pl.DataFrame) -> str:
    """File, row ranges, column and reason of bad rows, a line for each kind."""
    lines = []
    groups = bad.group_by("file", "column", "reason", maintain_order=True).agg("row")
    for file, column, reason, rows in groups.head(BAD_SHOWN).iter_rows():
        what = f"column {column!r}" if column else "the line"
        lines.append(f"  {file}, {_ranges(sorted(rows))}, {what}: {reason}")
    if groups.height > BAD_SHOWN:
        lines.append(f"  and {groups.height - BAD_SHOWN} more kinds")
    return "\n".join(lines)


def _ranges(rows: list[int], shown: int = 5) -> str:
    """ "rows 3-7, 9" of ascending row numbers."""
    x = np.asarray(rows)
    cuts = np.flatnonzero(np.diff(x) > 1) + 1
    runs = [(int(r[0]), int(r[-1])) for r in np.split(x, cuts)]
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs[:shown])
    more = f", ... ({len(rows)} rows)" if len(runs) > shown else ""
    return f"row{'s' if len(rows) > 1 else ''} {text}{more}"
