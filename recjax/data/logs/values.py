"""What a cell of a log holds: an id, a number, a vector or a time, whatever the file's format wrote it as."""

import polars as pl

from recjax.data.logs.mapping import UNITS, LogMapping
from recjax.data.store.prepared import DataError

ISO = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
)


def as_id(x: pl.Series) -> pl.Series:
    """Whole numbers as Int64, anything else as text; empty text is null."""
    if x.dtype.is_integer():
        return x.cast(pl.Int64)
    if x.dtype.is_float():
        x = x.fill_nan(None)
        whole = x.drop_nulls()
        return x.cast(pl.Int64) if (whole == whole.floor()).all() else x.cast(pl.String)
    text = x.cast(pl.String)
    return text.set(text == "", None) if text.len() else text


def as_number(x: pl.Series) -> pl.Series:
    """Float64; text and booleans too. Null where there is no number."""
    if x.dtype == pl.String:
        text = x.str.strip_chars().str.to_lowercase()
        text = text.replace({"true": "1", "false": "0"})
        return text.cast(pl.Float64, strict=False).fill_nan(None).alias(x.name)
    return x.cast(pl.Float64, strict=False).fill_nan(None)


def as_vector(x: pl.Series) -> pl.Series:
    """List(Float32) of lists, arrays, or text like "[0.1, 0.2]"; null where a part is no number."""
    if x.dtype == pl.String:
        parts = x.str.strip_chars(" []").str.replace_all(r"[,;\s]+", " ").str.split(" ")
        x = parts.alias(x.name)
    x = x.cast(pl.List(pl.Float32), strict=False)
    broken = x.list.eval(pl.element().is_null()).list.any().fill_null(True)
    return x.set(broken, None)


def as_moment(x: pl.Series, m: LogMapping) -> pl.Series:
    """Microseconds since 1970, UTC; null where there is no time."""
    if x.dtype.is_temporal():
        if x.dtype == pl.Time or x.dtype == pl.Duration:
            raise DataError(f"column {x.name!r} is a {x.dtype}, which is no point in time")
        return x.cast(pl.Datetime("us", getattr(x.dtype, "time_zone", None))).dt.epoch("us")
    if m.time_format:
        text = x.cast(pl.String)
        return text.str.to_datetime(m.time_format, strict=False, time_unit="us").dt.epoch("us")
    number = as_number(x)
    if number.null_count() > 0.5 * len(x) and x.dtype == pl.String:
        text = x.str.strip_chars()
        moments = [
            text.str.to_datetime(f, strict=False, time_unit="us").dt.epoch("us") for f in ISO
        ]
        return pl.select(pl.coalesce(moments)).to_series()
    unit = m.time_unit if m.time_unit != "auto" else guess_unit(number)
    if unit == "ns":
        return (number / 1_000).floor().cast(pl.Int64, strict=False)
    return (number * UNITS[unit]).round().cast(pl.Int64, strict=False)


def guess_unit(number: pl.Series) -> str:
    """The unit in which most of these numbers lie between 1973 and 5138."""
    size = number.abs().median() or 0
    for unit, above in (("ns", 1e17), ("us", 1e14), ("ms", 1e11)):
        if size >= above:
            return unit
    return "s"
