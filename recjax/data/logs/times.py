"""When something happened: cells of a time column as microseconds since 1970, UTC.

Numbers are seconds, milliseconds, microseconds or nanoseconds, each told by its own size. Text is ISO 8601 or one of the forms
that can be meant in one way only. What a cell alone does not tell (day or month first, 20240301 or an hour key or the days
of a spreadsheet) is decided once, from the whole log, before anything is read: `settle`.
"""

from collections.abc import Callable, Iterator
import dataclasses

import numpy as np
import polars as pl

from recjax.data.logs.mapping import DAY_FIRST, MONTH_FIRST, ORDER, UNITS, LogMapping
from recjax.data.logs.notes import Note
from recjax.data.logs.values import as_id
from recjax.data.store.prepared import DataError

SECOND = 1_000_000
CLOCKS = ("", " %H:%M", " %H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p", " %I:%M:%S%.f %p", " %H:%M:%S%.f%#z")  # fmt: skip
DATES = (
    "%Y-%m-%d",
    "%d %b %Y",
    "%d-%b-%Y",
    "%d-%b-%y",
    "%d %B %Y",
    "%b %d, %Y",
    "%b %d %Y",
    "%B %d, %Y",
    "%a, %d %b %Y",
)
FORMS = (
    *(d + c for d in DATES[:1] for c in CLOCKS),
    "%d/%b/%Y:%H:%M:%S%.f %#z",  # Apache
    *(d + c for d in DATES[1:] for c in CLOCKS),
    "%a, %d %b %Y %H:%M:%S %#z",  # RFC 2822
    "%a %b %d %H:%M:%S %Y",  # C
)
# Ways to write the same, and what they become.
OTHER_WAYS = (
    (
        r"^(\d{4})(\d\d)(\d\d)T(\d\d):?(\d\d)(?::?(\d\d))?",
        "${1}-${2}-${3} ${4}:${5}:0${6}",
    ),  # ISO 8601, basic
    (r"^(\d{4}-\d\d-\d\d \d\d:\d\d):0(\d\d)", "${1}:${2}"),
    (r"(:\d\d),(\d+)", "${1}.${2}"),  # Python's logging
    (r"^(\d{4}-\d\d-\d\d[T ]\d\d)$", "${1}:00"),  # the hour alone
    (r"(\d)([AaPp])\.?([Mm])\.?$", "${1} ${2}${3}"),
    (r"^(\d{1,2}[- ][A-Za-z]{3}[- ])([0-6]\d)(\D|$)", "${1}20${2}${3}"),  # 01-Mar-24
    (r"^(\d{1,2}[- ][A-Za-z]{3}[- ])([7-9]\d)(\D|$)", "${1}19${2}${3}"),
)
NUMBER = r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$"
THREE = r"^(\d{1,2})([/.-])(\d{1,2})[/.-](\d{4}|\d{2})(?:$|[ T,])"  # day and month, in either order
KEYS = (
    "%Y%m%d",
    "%y%m%d%H",
    "%Y%m%d%H",
    "%Y%m%d%H%M",
    "%Y%m%d%H%M%S",
)  # dates written as whole numbers
EARLIEST, LATEST = 631_152_000, 4_102_444_800  # 1990 and 2100, seconds
EXCEL_ZERO = 25_569  # 1 January 1970 in days of a spreadsheet
STEADY = 5  # values of one number beside a single one of the other that tell days from a month
HEAD = 1_000  # cells of a file that say whether the whole log must be looked at


def as_moment(x: pl.Series, m: LogMapping) -> pl.Series:
    """Microseconds since 1970, UTC; null where there is no time.

    Raises:
      DataError: The column is no point in time (a duration, a list), or `time_format` is no pattern.
    """
    if x.dtype.is_temporal():
        if x.dtype == pl.Time or x.dtype == pl.Duration:
            raise DataError(f"column {x.name!r} is a {x.dtype}, which is no point in time")
        return x.cast(pl.Datetime("us", getattr(x.dtype, "time_zone", None))).dt.epoch("us")
    if m.time_format and m.time_format not in (DAY_FIRST, MONTH_FIRST):
        return _by_format(as_id(x, m.missing), m.time_format)
    if x.dtype.is_numeric():
        return _by_size(x.cast(pl.Float64, strict=False), m.time_unit)
    text = as_id(x, m.missing)
    numeric = text.str.contains(NUMBER).fill_null(False)
    out = _by_size(text.set(~numeric, None).cast(pl.Float64, strict=False), m.time_unit)
    if numeric.all():
        return out
    words = _read(_plain(text.filter(~numeric), m.time_format))
    return out.scatter(numeric.not_().arg_true(), words)


def _by_size(number: pl.Series, unit: str) -> pl.Series:
    """Epoch numbers, each in the unit that its size tells, or all in `unit`."""
    number = number.set(~number.is_finite(), None)
    if unit == ORDER:
        return number.round().cast(pl.Int64, strict=False) * SECOND
    if unit == "excel":
        return ((number - EXCEL_ZERO) * 86_400).round().cast(pl.Int64, strict=False) * SECOND
    units = unit_of(number) if unit == "auto" else pl.Series([unit]).new_from_index(0, len(number))
    scale = units.replace_strict(UNITS | {"ns": 1}, return_dtype=pl.Int64, default=1)
    scaled = (number * scale).round()
    if (units == "ns").any():
        scaled = scaled.zip_with(units != "ns", (number / 1_000).floor())
    return scaled.cast(pl.Int64, strict=False)


def unit_of(number: pl.Series) -> pl.Series:
    """The unit in which each number lies between 1973 and 5138; "s" for smaller ones."""
    size = number.abs().fill_null(0)
    place = size.to_numpy()[:, None] >= np.array([1e11, 1e14, 1e17])
    return pl.Series(["s", "ms", "us", "ns"]).gather(place.sum(1))


def guess_unit(number: pl.Series) -> str:
    """The unit of most of these numbers."""
    return unit_of(pl.Series([number.abs().median() or 0.0]))[0]


def _by_format(text: pl.Series, form: str) -> pl.Series:
    """By a strptime pattern; one that names the hour alone is of the full hour."""
    if ("%H" in form or "%I" in form) and "%M" not in form:
        text, form = text + " 00", f"{form} %M"
    if "%z" in form or "%#z" in form:
        text = text.str.replace(r"\s*(UTC|GMT|Z)$", " +0000")
    try:
        moment = text.str.to_datetime(form, strict=False, time_unit="us")
        if moment.null_count() == len(moment):  # fractions of seconds may be there or not
            text = text.str.replace(r"\s*(UTC|GMT|Z)$", "")
            moment = text.str.to_datetime(form, strict=False, time_unit="us")
        return moment.dt.epoch("us")
    except pl.exceptions.PolarsError:
        raise DataError(
            f"mapping: time_format={form!r} is no strptime pattern of a time; write it like %Y-%m-%d %H:%M:%S"
        ) from None


def _plain(text: pl.Series, order: str) -> pl.Series:
    """Text with the year first and a dash between, and no name of UTC."""
    text = text.str.replace(r"\s*\(?(?:UTC|GMT)\)?$|\s*Z$", "")
    for form, plain in OTHER_WAYS:
        text = text.str.replace(form, plain)
    text = text.str.replace(r"^(\d{4})[/.](\d{1,2})[/.](\d{1,2})", "${1}-${2}-${3}")
    text = text.str.replace(r"^(\d{4}-\d{1,2}-\d{1,2})T", "${1} ")
    day, month = ("${1}", "${2}") if order == DAY_FIRST else ("${2}", "${1}")
    if order:
        text = text.str.replace(r"^(\d{1,2})[/.-](\d{1,2})[/.-](\d{4})[T,]?", f"${{3}}-{month}-{day}")  # fmt: skip
        for years, century in (("[0-6]", "20"), ("[7-9]", "19")):
            form = rf"^(\d{{1,2}})[/.-](\d{{1,2}})[/.-]({years}\d)(?:[T,]|\b)"
            text = text.str.replace(form, f"{century}${{3}}-{month}-{day}")
    return text.str.replace(r"([+-]\d\d):?(\d\d)$", "${1}${2}").str.replace(
        r" ([+-]\d{4})$", "${1}"
    )


def _read(text: pl.Series) -> pl.Series:
    """Each cell by the first form that takes it; forms that the column's beginning has are tried first."""
    out = pl.Series(text.name, [None] * len(text), dtype=pl.Int64)
    first = text.drop_nulls().head(50)
    for form in sorted(FORMS, key=lambda f: -_parse(first, f).count()):
        left = (out.is_null() & text.is_not_null()).arg_true()
        if not len(left):
            break
        out = out.scatter(left, _parse(text.gather(left), form))
    return out


def _parse(text: pl.Series, form: str) -> pl.Series:
    if "/%b/" in form or form.endswith(" %#z"):
        text = text.str.replace(r"(\S)([+-]\d{4})$", "${1} ${2}")
    return text.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("us")


# ------------------------------------------------------------------------- what only the whole log tells

Cells = Callable[[str, int], pl.Series]  # file, rows at most (0: all) -> its time column


def settle(m: LogMapping, files: list[str], cells: Cells) -> tuple[LogMapping, list[Note]]:
    """The mapping with what only the whole log tells about its times, and what there is to say of it.

    Args:
      m: With an empty `time_format` and `time_unit` "auto"; any other says all there is.
      files: Of the log.
      cells: Reads a file's time column.

    Raises:
      DataError: Every date of the log can be read with the day first and with the month first.
    """
    if m.time_format or m.time_unit != "auto":
        return m, []
    heads = [_heads(cells(f, HEAD), m) for f in files]
    if any(kind == "three" for kind in heads):
        order, why = date_order(lambda: (as_id(cells(f, 0), m.missing) for f in files), m.time)
        return dataclasses.replace(m, time_format=order), [
            Note("dates", m.time, 1, f"{order}: {why}")
        ]
    if any(kind == "number" for kind in heads):
        found = number_kind(lambda: (_numbers(cells(f, 0), m) for f in files))
        if found:
            unit = {"time_unit": "excel"} if found == "excel" else {"time_format": found}
            return dataclasses.replace(m, **unit), [Note("dates", m.time, 1, found)]
    return m, []


def _heads(x: pl.Series, m: LogMapping) -> str:
    """ "three": dates with day and month in some order; "number": numbers that are hardly epochs; "": neither."""
    if x.dtype == pl.String and as_id(x, m.missing).str.contains(THREE).any():
        return "three"
    number = _numbers(x, m).drop_nulls()
    if not len(number):
        return ""
    moment = _by_size(number, "auto") // SECOND
    odd = ~moment.is_between(EARLIEST, LATEST) | number.is_between(1_990_010_100, 2_030_010_100)
    return "number" if odd.fill_null(True).mean() > 0.5 else ""


def _numbers(x: pl.Series, m: LogMapping) -> pl.Series:
    if x.dtype.is_temporal() or x.dtype.is_nested():
        return pl.Series([], dtype=pl.Float64)
    return (as_id(x, m.missing) if x.dtype == pl.String else x).cast(pl.Float64, strict=False)


def number_kind(columns: Callable[[], Iterator[pl.Series]]) -> str:
    """A strptime pattern, "excel" or "" (epochs) for all numbers of a log. `columns`: gives them, file by file."""
    fits = dict.fromkeys((*KEYS, "excel"), True)
    seen = False
    for number in columns():
        number = number.drop_nulls()
        seen |= len(number) > 0
        whole = number == number.floor()
        text = as_id(number)
        for form in KEYS:
            if fits[form]:
                moment = _by_format(text, form) // SECOND
                fits[form] = bool((whole & moment.is_between(EARLIEST, LATEST)).fill_null(False).mean() >= 0.99) if len(number) else True  # fmt: skip
        excel = number.is_between(32_874, 73_415)
        fits["excel"] &= bool(excel.all())
    return next((k for k, v in fits.items() if v and seen), "")


def date_order(columns: Callable[[], Iterator[pl.Series]], name: str) -> tuple[str, str]:
    """ "day first" or "month first" for all dates of a log, and why.

    Args:
      columns: Gives the time cells as text, file by file.
      name: Of the column.

    Raises:
      DataError: Both fit, and neither follows the order of the rows.
    """
    large = np.zeros(2, np.int64)  # cells whose first, whose second number is above 12
    falls = np.zeros(2, np.int64)  # rows earlier than the one before: day first, month first
    dots = differ = False
    days: list[set[int]] = [set(), set()]  # what the first and the second number are
    for text in columns():
        parts = text.drop_nulls().str.extract_groups(THREE).struct.unnest()
        first, second = (parts[c].cast(pl.Int64, strict=False) for c in ("1", "3"))
        large += [int((first > 12).sum()), int((second > 12).sum())]
        dots |= bool((parts["2"] == ".").any())
        differ |= bool((first != second).any())
        days[0] |= set(first.unique().drop_nulls())
        days[1] |= set(second.unique().drop_nulls())
        if not large.any():
            for i, order in enumerate((DAY_FIRST, MONTH_FIRST)):
                falls[i] += int((_read(_plain(text, order)).drop_nulls().diff() < 0).sum())
    if large.any():
        first = bool(large[0] >= large[1])
        where = "first" if first else "second"
        return (DAY_FIRST if first else MONTH_FIRST), f"the {where} number is above 12 in {large.max():,} rows"  # fmt: skip
    if not differ:
        return DAY_FIRST, "day and month are the same number in every row"
    if not falls.all() and falls.any():
        return (
            DAY_FIRST if falls[0] == 0 else MONTH_FIRST
        ), "the rows are in the order of these times"
    for i, order in enumerate((DAY_FIRST, MONTH_FIRST)):
        fixed = days[1 - i]
        if (
            len(days[i]) >= STEADY and len(fixed) == 1 and fixed != {1}
        ):  # the 1st of months it may be
            return order, f"one number is {fixed.pop()} in every row, so it is the month"
    if dots:
        return DAY_FIRST, "dates with points are"
    raise DataError(
        f"column {name!r}: every date can be read with the day or the month first; write time_format = {DAY_FIRST!r} or "
        f"time_format = {MONTH_FIRST!r} in the mapping"
    )
