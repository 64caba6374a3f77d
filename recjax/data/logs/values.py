"""What a cell of a log holds: an id, a number, a label or a vector, whatever the file's format wrote it as.

A value has one spelling. 17, 17.0, "17" and "17 " are the id "17" in CSV, JSON and Parquet alike, in every file and every piece
of one; so what a value is never depends on its neighbours. Text keeps its digits ("017" and "1.50" are other values than
"17" and "1.5"), whole numbers of any size keep theirs.
"""

from collections.abc import Collection, Iterable

import numpy as np
import polars as pl

from recjax.data.store.prepared import DataError

# What pandas takes for missing, and \N of MySQL, Hive and Postgres, a lone dash, and infinity, which is no id.
NULLS = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A")
    + ("NA", "NULL", "NaN", "None", "n/a", "nan", "null", "\\N", "-", "inf", "-inf", "Infinity", "-Infinity")
)  # fmt: skip
TRUE = ("1", "true", "t", "yes", "y", "on")
FALSE = (
    "0",
    "false",
    "f",
    "no",
    "n",
    "off",
    "-1",
)  # -1 beside +1 says "not taken" in many public sets
WHOLE_FLOAT = r"^(-?(?:0|[1-9]\d*))\.0+$"  # "17.0": a whole number that a program held as a float
LOST_DIGITS = r"^-?\d\.\d+[eE]\+?\d+$"  # "1.23457E+17": an id that a spreadsheet or a float wrote
EXACT = 2.0**53  # above it floats skip whole numbers
LARGEST = float(np.finfo(np.float32).max)


def as_text(x: pl.Series, nulls: Collection[str] = NULLS) -> pl.Series:
    """The cells as text without blanks around it; null where one is missing.

    Raises:
      DataError: The cells are lists, structs or bytes that are no text.
    """
    if x.dtype.is_nested() or x.dtype == pl.Object:
        raise DataError(
            f"column {x.name!r} holds {_kind(x.dtype)}, which is no single value; name it in `multi` (ids) or `vectors` "
            "(numbers), name a field of it as 'column.field', or leave it out"
        )
    if x.dtype.is_float():
        return _spelled(x)
    if x.dtype == pl.Binary:
        x = _decoded(x)
    text = x.cast(pl.String).str.strip_chars()
    return text.set(text.is_in(list(nulls)), None) if len(text) else text


def as_id(x: pl.Series, nulls: Collection[str] = NULLS) -> pl.Series:
    """The one spelling of each value, as text; null where it is missing. Raises DataError as `as_text`."""
    text = as_text(x, nulls)
    if x.dtype.is_integer() or x.dtype.is_float():
        return text
    if text.str.contains(".0", literal=True).any():
        text = text.str.replace(WHOLE_FLOAT, "${1}")
    low = text.str.to_lowercase()
    switch = low.is_in(["true", "false"])
    return text.zip_with(~switch, low) if switch.any() else text


def as_stored(x: pl.Series) -> pl.Series:
    """Ids as a Parquet file types them: whole numbers as Int64, anything else as text; empty text is null."""
    if x.dtype.is_integer():
        return x.cast(pl.Int64)
    if x.dtype.is_float():
        x = x.fill_nan(None)
        whole = x.drop_nulls()
        return x.cast(pl.Int64) if (whole == whole.floor()).all() else x.cast(pl.String)
    text = x.cast(pl.String)
    return text.set(text == "", None) if text.len() else text


def spelling(value: object) -> str:
    """`as_id` of one value of a mapping: 4, 4.0 and "4" are "4"."""
    if isinstance(value, bool | str):
        return as_id(pl.Series([str(value)]), ())[0]
    return as_id(pl.Series([value]), ())[0]


def is_any(ids: pl.Series, values: Iterable[object]) -> pl.Series:
    """Which ids are one of some values, numbers compared as numbers ("4.50" is 4.5); never null."""
    wanted = [spelling(v) for v in values]
    found = ids.cast(pl.String).is_in(wanted)
    numbers = pl.Series(wanted, dtype=pl.String).cast(pl.Float64, strict=False).drop_nulls()
    if len(numbers):
        found |= ids.cast(pl.String).cast(pl.Float64, strict=False).is_in(numbers.to_list())
    return found.fill_null(False)


def _spelled(x: pl.Series) -> pl.Series:
    """Floats: whole ones without a point, infinities and NaN null."""
    x = x.set(~x.is_finite(), None)
    whole = ((x == x.floor()) & (x.abs() < 1e38)).fill_null(True)  # what 128 bits can hold
    numbers = x.set(~whole, None).cast(pl.Int128).cast(pl.String)
    return numbers if whole.all() else numbers.zip_with(whole, x.cast(pl.String))


def _decoded(x: pl.Series) -> pl.Series:
    try:
        return x.cast(pl.String)
    except pl.exceptions.ComputeError:
        raise DataError(
            f"column {x.name!r} holds bytes that are no UTF-8 text; write it as text, for instance hexadecimal"
        ) from None


def _kind(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.List | pl.Array):
        return "lists"
    return "structs" if isinstance(dtype, pl.Struct) else f"{dtype} values"


# --------------------------------------------------------------------------------- numbers and labels


def as_number(x: pl.Series, nulls: Collection[str] = NULLS) -> pl.Series:
    """Float64; null where there is no number that float32 can hold. Text and booleans too."""
    if x.dtype.is_nested():
        return pl.Series(x.name, [None] * len(x), dtype=pl.Float64)
    x = _plain_text(x)
    if x.dtype == pl.String:
        x = x.str.strip_chars()
        low = x.str.to_lowercase().replace({"true": "1", "false": "0"})
        x = low.set(x.is_in(list(nulls)), None).alias(x.name) if len(x) else low
    number = x.cast(pl.Float64, strict=False)
    return number.set(~(number.abs() <= LARGEST).fill_null(False), None)


def _plain_text(x: pl.Series) -> pl.Series:
    """Categories and bytes as text."""
    if x.dtype == pl.Binary:
        return _decoded(x)
    return x.cast(pl.String) if x.dtype in (pl.Categorical, pl.Enum) else x


def as_label(x: pl.Series, nulls: Collection[str] = NULLS) -> pl.Series:
    """Float64 from 0 to 1: numbers, and Y/N, yes/no, on/off, T/F, true/false, -1/+1; null elsewhere."""
    x = _plain_text(x)
    if x.dtype == pl.String:
        low = as_text(x, nulls).str.to_lowercase()
        words = {w: "1" for w in TRUE} | {w: "0" for w in FALSE}
        x = low.str.replace(r"^\+", "").replace(words).alias(x.name)
    number = as_number(x, nulls)
    number = number.set((number == -1).fill_null(False), 0.0)
    return number.set(~number.is_between(0, 1).fill_null(False), None)


def is_missing(x: pl.Series, nulls: Collection[str] = NULLS) -> pl.Series:
    """Which cells say nothing at all, rather than something that cannot be read; bool."""
    x = _plain_text(x)
    if x.dtype == pl.String:
        return as_text(x, nulls).is_null()
    return x.is_null() | x.is_nan() if x.dtype.is_float() else x.is_null()


def as_vector(x: pl.Series, nulls: Collection[str] = NULLS) -> pl.Series:
    """List(Float32) of lists, arrays, or text like "[0.1, 0.2]"; null where a part is no finite number."""
    x = _plain_text(x)
    if x.dtype == pl.String:
        text = as_text(x, nulls).str.strip_chars(" []()").str.replace_all(r"[,;|\s]+", " ")
        x = text.set(text == "", None).str.split(" ").alias(x.name)
    if not isinstance(x.dtype, pl.List | pl.Array):
        return pl.Series(x.name, [None] * len(x), dtype=pl.List(pl.Float32))
    x = x.cast(pl.List(pl.Float64), strict=False)
    sound = (pl.element().abs() <= LARGEST).fill_null(False)
    broken = (~x.list.eval(sound).list.all()).fill_null(True) | (x.list.len() == 0).fill_null(True)
    return x.set(broken, None).cast(pl.List(pl.Float32))
