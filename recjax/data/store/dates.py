"""Dates and spans of time, as people write them, in seconds."""

import datetime
import re

from recjax.data.store.prepared import DataError

SPAN = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def seconds_of(date: str | datetime.date) -> int:
    """UTC seconds of a date ("2024-05-01", "2024-05-01 12:00"); DataError if it is none."""
    try:
        moment = datetime.datetime.fromisoformat(str(date))
    except ValueError:
        raise DataError(f"mapping: {date!r} is not a date; write it as 2024-05-01") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return int(moment.timestamp())


def span_of(gap: str, name: str = "mapping: gap") -> int:
    """Seconds of "1d", "12h", "30m"; DataError, which calls it `name`, if it is none."""
    parts = re.fullmatch(r"(\d+)([smhdw])", gap)
    if not parts:
        raise DataError(f"{name}={gap!r}; write it as 1d, 12h or 30m")
    return int(parts[1]) * SPAN[parts[2]]
