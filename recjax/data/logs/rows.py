"""Usable rows of log files: every cell typed, every bad row found, named and set aside.

A row that cannot be used has a reason, the column it is about, and the file and row number it came from (row 1 is the
first after a CSV's header). A row without user, item, time or label cannot be used; one whose *feature* cannot be read can,
without that value. Rows that differ from an earlier one in their labels only are that impression, and the larger label is its.
"""

from collections.abc import Sequence
import dataclasses
import json
import time

import numpy as np
import polars as pl

from recjax.data.logs.mapping import ORDER, SUFFIX, LogMapping
from recjax.data.logs.notes import Note, added
from recjax.data.logs.progress import phase, steps
from recjax.data.logs.shapes import (
    bucketed,
    check_weight,
    crossed,
    hashed,
    other_separator,
    parts_of,
    shaped,
)
from recjax.data.logs.sources import ROW, check_column, columns_of, read_columns, read_table
from recjax.data.logs.times import EARLIEST, LATEST, as_moment, settle, unit_of
from recjax.data.logs.values import (
    EXACT,
    LOST_DIGITS,
    as_id,
    as_label,
    as_number,
    as_stored,
    as_vector,
    is_missing,
)
from recjax.data.store.dates import seconds_of
from recjax.data.store.prepared import DataError

WEIGHT = "__weight"
FILE, REASON, COLUMN, MOMENT = "__file", "__reason", "__column", "__moment"
PLACE = "__place"  # of a row in a log that is read in pieces (`recjax.data.logs.sharded`)
BAD_SHOWN = 8
DAY = 86_400
NO_LABEL = "not a label in [0, 1]"


@dataclasses.dataclass(frozen=True)
class RawLog:
    """A log as read.

    Attributes:
      rows: Usable rows by (time, log order), the mapping's columns, and MOMENT: microseconds.
      bad: The others: file, row, column, reason, record (JSON).
      read: Rows read.
      out_of_order: Rows earlier than the row before them in their file.
      notes: What was noticed.
    """

    rows: pl.DataFrame
    bad: pl.DataFrame
    read: int
    out_of_order: int
    notes: tuple[Note, ...] = ()


def read_log(files: Sequence[str], m: LogMapping, strict: bool = False, first: int = 0) -> RawLog:
    """All usable rows of some files in time order, and the unusable ones with their reasons.

    Args:
      files: From `list_files`.
      m: The mapping.
      strict: Refuse the first file set with any bad row.
      first: Only so many rows of each file; 0: all.

    Raises:
      DataError: A column is missing; with `strict`, any bad row (file, rows and column are named); nothing is left.
    """
    m, notes = settled(files, m)
    wanted = wanted_columns(files, m)
    piece = (0, first) if first else None
    parts = [read_part(f, wanted, m, piece) for f in steps("read files", files)]
    read, disorder = sum(p.read for p in parts), sum(p.out_of_order for p in parts)
    with phase("sort by time"):
        log, repeated, joined = in_time_order([p.rows for p in parts], m)
    refused = pl.concat([*(p.bad for p in parts), repeated])
    if strict and refused.height:
        raise DataError(f"{refused.height} bad rows, refused by --strict:\n{describe(refused)}")
    if not log.height:
        raise nothing_left(m, len(files), refused)
    notes = added([*notes, *(n for p in parts for n in p.notes), *joined])
    return RawLog(log, refused, read, disorder, tuple(notes))


def nothing_left(m: LogMapping, files: int, bad: pl.DataFrame) -> DataError:
    """What to say of a log without a usable row."""
    hint = ""
    if bad.height and (bad["reason"] == "not a time").all():
        cell = json.loads(bad["record"][0]).get(m.time)
        hint = f"\ntime_format={m.time_format!r} reads none of the times, such as {cell!r}; write a strptime pattern that does"
    if bad.height and (bad["reason"] == NO_LABEL).all():
        column = bad["column"][0]
        cell = json.loads(bad["record"][0]).get(column)
        hint = f"\n{column!r} holds cells such as {cell!r}; say which are positives: labels = {{'taken': \"{column} == {cell!r}\"}}"
    if not bad.height:
        hint = f"\nwhere = {m.where!r} leaves out every row" if m.where else "\nthey hold no row"
    return DataError(f"no usable row in {files} files:\n{describe(bad)}{hint}")


def settled(files: Sequence[str], m: LogMapping) -> tuple[LogMapping, list[Note]]:
    """The mapping with what only the whole log tells (`recjax.data.logs.times`)."""

    def cells(file: str, rows: int) -> pl.Series:
        piece = (0, rows) if rows else None
        if m.time not in columns_of(file, m.text_form):  # whoever lacks it is named later
            file = next((f for f in m.joins if m.time in _joined_columns(f, m)), file)
        return read_columns(file, [m.time], m.text_form, piece).rows[m.time]

    return settle(m, list(files), cells)


def latest_second(m: LogMapping) -> int:
    """The last second a time stamp may have: of the day `as_of`, where it is a day."""
    if not m.as_of:
        return LATEST
    second = seconds_of(m.as_of)
    return second + DAY - 1 if len(str(m.as_of)) <= len("2024-05-01") else second


def wanted_columns(files: Sequence[str], m: LogMapping) -> list[str]:
    """The columns to read from every file; raises DataError for one that no file has."""
    names = {file: columns_of(file, m.text_form) for file in files}
    inside = {c for found in names.values() for c in found}
    elsewhere = {c for f in m.joins for c in _joined_columns(f, m)} - inside
    wanted = [c for c in log_columns(m, inside | elsewhere) if c not in elsewhere]
    wanted = list(dict.fromkeys([*wanted, *m.joins.values()]))
    for file, found in names.items():
        for column in wanted:
            check_column(file, column, found, m.text_form)
    return wanted


def _joined_columns(file: str, m: LogMapping) -> list[str]:
    return columns_of(file, m.text_form.of_table())


def _joined(frame: pl.DataFrame, m: LogMapping) -> pl.DataFrame:
    """The rows with the columns that files of `joins` add; null where a file lacks the key."""
    for file, key in m.joins.items():
        there = _joined_columns(file, m)
        more = [c for c in log_columns(m, {*there}) if c in there and c not in frame.columns]
        table = read_table(file, key, more, m.text_form)
        table = table.with_columns(as_id(table[key], m.missing)).unique(key, keep="first")
        keyed = frame.with_columns(as_id(frame[key], m.missing))
        frame = keyed.join(table, on=key, how="left", maintain_order="left")
    return frame


def log_columns(m: LogMapping, names: set[str]) -> list[str]:
    """The columns to read from the log: side columns it lacks must come from a side table."""
    sides = [(c, m.item_table) for c in m.item_columns] + [
        (c, m.user_table) for c in m.user_columns
    ]
    inside = [c for c, table in sides if not table or c in names] + list(m.context_columns)
    made = {*m.label_columns} - {*m.read_labels}
    asked = [c for condition in m.conditions for c in condition.columns if c not in made]
    keys = [*m.key_columns, m.time, m.scene, m.action, *m.read_labels, *m.event_keys, m.weight]
    keys += [m.taken] if m.taken != SUFFIX else []
    inside += [c for pair in m.crosses for c in pair]
    return list(dict.fromkeys(c for c in (*keys, *inside, *asked) if c))


def read_part(
    file: str, wanted: Sequence[str], m: LogMapping, piece: tuple[int, int] | None = None
) -> RawLog:
    """The usable rows of one file, or of a piece of it (first row, rows), in the log's order, with FILE and ROW."""
    read = read_columns(file, wanted, m.text_form, piece)
    try:
        return _usable(file, read.rows, read.bad, m, list(read.notes))
    except DataError as e:
        raise DataError(f"{file}: {e}") from None


def _usable(
    file: str, frame: pl.DataFrame, lines: pl.DataFrame, m: LogMapping, notes: list[Note]
) -> RawLog:
    read = frame.height + lines.height
    frame = shaped(_joined(frame, m), m, notes)
    if m.where:
        holds = m.conditions[0].holds(frame, m.missing)
        notes.append(Note("where", "", int((~holds).sum()), m.where))
        frame = frame.filter(holds)
    typed = _typed(frame, m, notes)
    disorder = int((typed[MOMENT].drop_nulls().diff() < 0).sum() or 0)
    wrong = typed[REASON].is_not_null()
    kept = typed.filter(~wrong).drop(REASON, COLUMN).with_columns(pl.lit(file).alias(FILE))
    _note_times(kept[MOMENT], m, notes)
    bad = pl.concat([lines, _rejected(file, frame, typed, wrong)])
    return RawLog(kept, bad, read, disorder, tuple(added(notes)))


def _note_times(moment: pl.Series, m: LogMapping, notes: list[Note]) -> None:
    if m.time_unit == ORDER:
        return
    early, late = moment < EARLIEST * 1_000_000, moment > int(time.time()) * 1_000_000
    for kind, which, worst in (("early", early, "min"), ("late", late, "max")):
        if which.any() and not (kind == "late" and m.as_of):
            at = getattr(moment.filter(which), worst)()
            notes.append(
                Note(kind, m.time, int(which.sum()), str(np.datetime64(int(at), "us"))[:19])
            )


def in_time_order(
    frames: Sequence[pl.DataFrame], m: LogMapping
) -> tuple[pl.DataFrame, pl.DataFrame, list[Note]]:
    """Rows by (time, log order), each impression once; the repeats; notes. `frames` follow each other in the log."""
    log = pl.concat(list(frames), how="vertical_relaxed")
    return _each_once(log.sort(MOMENT, maintain_order=True), m)


# --------------------------------------------------------------------------------------------- cells


def _typed(frame: pl.DataFrame, m: LogMapping, notes: list[Note]) -> pl.DataFrame:
    """Columns with their final types, MOMENT, and for bad rows COLUMN and REASON."""
    out: dict[str, pl.Series] = {ROW: frame[ROW]}
    problems: list[tuple[str, str, pl.Series]] = []  # column, reason, where
    for column in m.key_columns:
        out[column] = as_key(frame[column], m, notes)
        problems.append((column, "missing", out[column].is_null()))
    moment = as_moment(frame[m.time], m)
    _note_units(frame[m.time], m, notes)
    out[MOMENT] = moment
    problems += [
        (m.time, "missing", is_missing(frame[m.time], m.missing)),
        (m.time, "not a time", moment.is_null()),
        (m.time, "not after 1970: is the unit right?", moment <= 0),
        (m.time, "in the future", moment > latest_second(m) * 1_000_000 + 999_999),
    ]
    for column in m.label_columns:
        out[column] = label = _label(frame[column], m, notes)
        problems.append((column, NO_LABEL, label.is_null()))
    for name, condition in m.label_conditions.items():
        if name in frame.columns:
            raise DataError(f"mapping: label {name!r} is called like a column; rename the label")
        out[name] = condition.holds(frame, m.missing).cast(pl.Float64).alias(name)
    if m.weight:
        out[WEIGHT] = weight = check_weight(frame[m.weight], m)
        problems.append((m.weight, "not a weight", weight.is_null()))
    sides = {*m.user_columns, *m.item_columns, *m.context_columns, m.scene, m.action}
    for column in (c for c in frame.columns if c not in out and c in sides):
        out[column] = as_feature(frame[column], m, notes)
    for a, b in m.crosses:
        made = crossed(*(out[c] if c in out else as_feature(frame[c], m, notes) for c in (a, b)))
        out[made.name] = made
    reason, where = _first_problem(problems, frame.height)
    return pl.DataFrame(out).with_columns(reason.alias(REASON), where.alias(COLUMN))


def as_key(x: pl.Series, m: LogMapping, notes: list[Note] | None = None) -> pl.Series:
    """Ids of a column as the mapping wants them; `notes` gets what was noticed."""
    notes = [] if notes is None else notes
    if m.ids == "stored":
        return as_stored(x)
    if x.dtype.is_float():
        above = x.filter((x.abs() > EXACT) & x.is_finite())
        notes.append(_note("float", x.name, above))
    out = as_id(x, m.missing)
    if x.dtype == pl.String:
        notes.append(_note("null", x.name, x.filter(out.is_null() & (x.str.strip_chars() != ""))))
        if x.str.contains("+", literal=True).any():
            notes.append(_note("digits", x.name, x.filter(x.str.contains(LOST_DIGITS).fill_null(False))))  # fmt: skip
    return out


def _note(kind: str, column: str, cells: pl.Series) -> Note:
    return Note(kind, column, len(cells), str(cells[0])[:60] if len(cells) else "")


def _note_units(x: pl.Series, m: LogMapping, notes: list[Note]) -> None:
    """Numbers of several units in one column of times, and such as have lost digits."""
    coarse = x.filter(_lost_seconds(x))
    notes.append(_note("coarse", m.time, coarse))
    if m.time_unit != "auto" or m.time_format or x.dtype.is_temporal():
        return
    number = (as_id(x, m.missing) if x.dtype == pl.String else x).cast(pl.Float64, strict=False)
    number = number.filter(number > EARLIEST)
    counts = unit_of(number).value_counts(sort=True)
    for unit, n in counts.rows()[1:]:
        notes.append(Note("units", m.time, n, unit))


def _lost_seconds(x: pl.Series) -> pl.Series:
    """Which times are numbers that are rounded to more than a second: 1.709e+09, or float32."""
    if x.dtype == pl.Float32:
        return (x.abs() > 2.0**24).fill_null(False)
    if x.dtype != pl.String or not x.str.contains(r"\d[eE]").any():
        return pl.Series(np.zeros(len(x), bool))
    parts = x.str.extract_groups(r"^\s*\d(?:\.(\d*))?[eE]\+?(\d+)\s*$").struct.unnest()
    digits = parts["1"].str.len_chars().fill_null(0).cast(pl.Int64)
    return (digits < pl.Series([9] * len(x)).zip_with(parts["2"].cast(pl.Int64) >= 9, parts["2"].cast(pl.Int64))).fill_null(False)  # fmt: skip


def _label(x: pl.Series, m: LogMapping, notes: list[Note]) -> pl.Series:
    label = as_label(x, m.missing)
    if m.label_missing is not None:
        empty = is_missing(x, m.missing)
        notes.append(Note("empty", x.name, int(empty.sum()), str(m.label_missing)))
        label = label.set(empty, float(m.label_missing))
    number = as_number(x, m.missing)
    if (number == 0).any():
        notes.append(Note("minus", x.name, int((number == -1).sum() or 0)))
    return label


def as_feature(x: pl.Series, m: LogMapping, notes: list[Note]) -> pl.Series:
    """A feature's values, null where they are missing or cannot be read."""
    if x.name in m.vectors:
        vector = as_vector(x, m.missing)
        notes.append(_note("vector", x.name, x.filter(vector.is_null() & ~is_missing(x, m.missing))))  # fmt: skip
        return vector
    if x.name in m.multi:
        if other := other_separator(x, m.multi[x.name], m):
            notes.append(Note("separator", x.name, 1, other))
        return parts_of(x, m, m.multi[x.name])
    if x.name in m.buckets:
        return bucketed(x, m.buckets[x.name], m)
    if x.name not in m.dense:
        ids = as_key(x, m, notes)
        return hashed(ids, m.hashed[x.name]) if x.name in m.hashed else ids
    number, empty = as_number(x, m.missing), is_missing(x, m.missing)
    notes.append(_note("number", x.name, x.filter(number.is_null() & ~empty)))
    if x.dtype == pl.String:
        notes.append(_note("null", x.name, x.filter(empty & (x.str.strip_chars() != ""))))
    if m.dense[x.name] == "log1p":
        below = (number < 0).fill_null(False)
        notes.append(_note("below", x.name, x.filter(below)))
        number = number.set(below, None)
    return number


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


def _each_once(log: pl.DataFrame, m: LogMapping) -> tuple[pl.DataFrame, pl.DataFrame, list[Note]]:
    """One row of each (user, item, time, action), the first of the log, with the largest labels; those that repeat it."""
    event = [*m.key_columns, MOMENT, *filter(None, [m.action])]
    again = ~log.select(pl.struct(event).is_first_distinct()).to_series()
    if not again.any():
        return log.drop(FILE, ROW), _repeated(log.clear(), m), []
    labels = [*m.label_columns, *m.label_conditions]
    largest = log.select(*event, *(pl.col(c).max().over(event) for c in labels))
    other = pl.Series(np.zeros(log.height, bool))
    for c in labels:  # rows that say something else than the impression does without them
        other |= log[c] != log.select(pl.col(c).first().over(event)).to_series()
    log = log.with_columns(largest[c] for c in labels)
    joined = Note("joined", m.item, int((again & other).sum()))
    return log.filter(~again).drop(FILE, ROW), _repeated(log.filter(again & ~other), m), [joined]


def _repeated(rows: pl.DataFrame, m: LogMapping) -> pl.DataFrame:
    return rows.select(
        pl.col(FILE).alias("file"),
        pl.col(ROW).cast(pl.UInt32).alias("row"),
        pl.lit(m.item).alias("column"),
        pl.lit("duplicate").alias("reason"),
        _records(rows.drop(FILE, ROW, PLACE, strict=False)).alias("record"),
    )


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
