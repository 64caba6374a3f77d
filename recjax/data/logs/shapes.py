"""Logs of other shapes as one row per event: lists of items in a cell, outcomes in files of their own, columns made of others."""

from collections.abc import Sequence
import functools
import json
import zlib

import numpy as np
import polars as pl

from recjax.data.logs.mapping import SUFFIX, LogMapping
from recjax.data.logs.notes import Note
from recjax.data.logs.sources import list_files, read_columns
from recjax.data.logs.values import as_id, as_number, as_text
from recjax.data.store.prepared import DataError

QUOTED = r'^\s*\[.*"[^"]*[,|;][^"]*"'  # a list with a part that holds a separator
PARTS, TAKEN = "__parts", "__taken"


def shaped(frame: pl.DataFrame, m: LogMapping, notes: list[Note]) -> pl.DataFrame:
    """The rows as they were read, one per item, with the labels that other files hold. ROW is that of the file."""
    if m.explode:
        frame = _exploded(frame, m)
    for label, pattern in m.event_files.items():
        keys = event_keys(pattern, m.event_keys, m)
        spelled = frame.select(as_id(frame[k], m.missing) for k in m.event_keys)
        hit = keys.with_columns(pl.lit(1).alias(TAKEN))
        found = spelled.join(hit, on=list(m.event_keys), how="left", maintain_order="left")[TAKEN]
        met = spelled.filter(found.is_not_null()).unique().height
        notes.append(Note("event", label, met, f"{keys.height:,}"))
        frame = frame.with_columns(found.fill_null(0).alias(label))
    return frame


def _exploded(frame: pl.DataFrame, m: LogMapping) -> pl.DataFrame:
    """A row for each item of a cell such as "N1-0 N2-1" or [1, 2], and which of them were taken."""
    frame = frame.with_columns(parts_of(frame[m.item], m).alias(PARTS))
    label = m.label_columns[0] if m.label_columns else ""
    if m.taken and m.taken != SUFFIX:
        frame = frame.with_columns(parts_of(frame[m.taken], m).alias(TAKEN)).explode(PARTS)
        hit = pl.col(TAKEN).list.contains(pl.col(PARTS)).fill_null(False).cast(pl.Int64)
        return frame.with_columns(pl.col(PARTS).alias(m.item), hit.alias(label)).drop(PARTS, TAKEN)
    frame = frame.explode(PARTS)
    if m.taken == SUFFIX:
        ends = pl.col(PARTS).str.extract(r"-([01])$", 1)
        item = pl.col(PARTS).str.replace(r"-[01]$", "")
        return frame.with_columns(item.alias(m.item), ends.alias(label)).drop(PARTS)
    return frame.with_columns(pl.col(PARTS).alias(m.item)).drop(PARTS)


def parts_of(x: pl.Series, m: LogMapping, separator: str = "") -> pl.Series:
    """The ids of each cell, List(String): of a list, of JSON, of text between `separator` (blanks, commas, bars if it is "")."""
    if not isinstance(x.dtype, pl.List | pl.Array):
        text = as_text(x, m.missing)
        plain = text.str.replace_all(r"""^[\[({]|[\])}]$|["']""", "")
        if not separator:
            plain, separator = plain.str.replace_all(r"[,;|\s]+", " ").str.strip_chars(), " "
        elif text.str.starts_with("[").any():
            plain = plain.str.replace_all(r"\s*,\s*", separator)
        x = _with_quoted(text, plain.str.split(separator)).alias(x.name)
    # One spelling of a part needs a plain column; rows are found again by their number.
    if x.dtype.inner.is_nested():  # type: ignore[attr-defined]
        raise DataError(
            f"column {x.name!r} holds lists of lists or of structs; name what holds single values, or leave it out"
        )
    inner = x.dtype.inner  # type: ignore[attr-defined]  # of a list or an array
    flat = pl.DataFrame({"row": np.arange(len(x)), "part": x.cast(pl.List(inner))})
    flat = flat.explode("part")
    flat = flat.with_columns(as_id(flat["part"], m.missing).alias("part")).drop_nulls("part")
    lists = flat.group_by("row", maintain_order=True).agg("part")
    every = pl.DataFrame({"row": np.arange(len(x))})
    return every.join(lists, on="row", how="left", maintain_order="left")["part"].alias(x.name)


def _with_quoted(text: pl.Series, lists: pl.Series) -> pl.Series:
    """`lists`, those of cells read as JSON where a value in quotation marks may hold a separator."""
    quoted = text.str.contains(QUOTED).fill_null(False)
    if not quoted.any():
        return lists
    cells = text.filter(quoted).unique()
    read = pl.DataFrame({"text": cells, "parts": [_json_parts(t) for t in cells]}, schema_overrides={"parts": pl.List(pl.String)})  # fmt: skip
    both = pl.DataFrame({"text": text, "plain": lists}).join(read, on="text", how="left", maintain_order="left")  # fmt: skip
    return both.select(pl.coalesce("parts", "plain")).to_series()


def _json_parts(text: str) -> list[str] | None:
    try:
        return [str(v) for v in json.loads(text) if v is not None]
    except (TypeError, ValueError):
        return None


def other_separator(x: pl.Series, separator: str, m: LogMapping) -> str:
    """What separates the values of most cells, where `separator` does in none; "" where all is well."""
    if x.dtype != pl.String or not separator:
        return ""
    text = as_text(x, m.missing).drop_nulls()
    if not len(text) or text.str.contains(separator, literal=True).any():
        return ""
    others = (s for s in "|;," if text.str.contains(s, literal=True).mean() > 0.5)
    return next(others, "")


def event_keys(pattern: str, keys: Sequence[str], m: LogMapping) -> pl.DataFrame:
    """The distinct keys of files that hold one kind of outcome (the clicks), as text."""
    return _event_keys(pattern, tuple(keys), m.separator, m.encoding, m.missing)


@functools.lru_cache(maxsize=4)
def _event_keys(pattern: str, keys: tuple[str, ...], separator, encoding, missing) -> pl.DataFrame:
    m = LogMapping("user", "item", "time", separator=separator, encoding=encoding)
    parts = [read_columns(f, keys, m.text_form).rows for f in list_files(pattern)]
    frames = [p.select(as_id(p[k], missing) for k in keys) for p in parts]
    return pl.concat(frames).drop_nulls().unique(maintain_order=True)


# ----------------------------------------------------------------------------------- columns of columns


def bucketed(x: pl.Series, edges: Sequence[float], m: LogMapping) -> pl.Series:
    """The interval each number lies in, as text: "<18", "18-25", ">=25"; null where there is no number."""
    names = [f"<{edges[0]:g}", *(f"{a:g}-{b:g}" for a, b in zip(edges, edges[1:], strict=False))]
    names.append(f">={edges[-1]:g}")
    number = as_number(x, m.missing)
    place = np.searchsorted(np.asarray(edges, float), number.fill_null(0).to_numpy(), side="right")
    return pl.Series(x.name, names).gather(place).set(number.is_null(), None).alias(x.name)


def hashed(ids: pl.Series, size: int) -> pl.Series:
    """CRC-32 of each value modulo `size`, as text: an open vocabulary in a fixed number of ids."""
    distinct = ids.drop_nulls().unique()
    codes = [str(zlib.crc32(v.encode()) % size) for v in distinct]
    return ids.replace_strict(distinct, pl.Series(codes, dtype=pl.String), default=None, return_dtype=pl.String)  # fmt: skip


def crossed(a: pl.Series, b: pl.Series) -> pl.Series:
    """Both values in one, "DE|phone"; null where either is."""
    return (a.cast(pl.String) + "|" + b.cast(pl.String)).alias(cross_name(a.name, b.name))


def cross_name(a: str, b: str) -> str:
    return f"{a}_x_{b}"


def check_weight(x: pl.Series, m: LogMapping) -> pl.Series:
    """Weights, Float64; null where there is none that is not below zero."""
    number = as_number(x, m.missing)
    return number.set((number < 0).fill_null(False), None)
