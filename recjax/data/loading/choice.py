"""Which impressions of a split to read: the latest, those of a period, of a history length; and the periods of a split.

A nested subset (`examples`) is a prefix of the stored permutation and says how much data; a recency window (`recent`,
`recent_days`) says from when. They are separate: a prefix of a window is a subset of that window.
"""

import dataclasses

import numpy as np

from recjax.data.loading.layout import BatchError
from recjax.data.store.dates import span_of
from recjax.data.store.prepared import Prepared

DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Choice:
    """Impressions of a split; all of them by default.

    Attributes:
      examples: Only the first so many, in stored order, of what the others leave (0: all).
      recent: Only the latest so many (0: all).
      recent_days: Only those of the last so many days of the split (0: all).
      period: Only those with begin <= request time < end, seconds.
      lengths: Only those whose longest history has more than the first and at most the second number of events.
    """

    examples: int = 0
    recent: int = 0
    recent_days: float = 0.0
    period: tuple[int, int] | None = None
    lengths: tuple[int, int] | None = None

    @property
    def prefix_only(self) -> bool:
        return not (self.recent or self.recent_days or self.period or self.lengths)


class Index:
    """Request times and history lengths of a split, read once: 12 bytes an impression.

    Attributes:
      time: Seconds, int64 [N].
      length: Events in the longest history, int32 [N].
    """

    def __init__(self, prepared: Prepared, split: str, lists: tuple[str, ...]):
        time, length = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        for i in range(prepared.blocks(split)):
            block = prepared.block(split, i)
            time.append(block["time"])
            counts = [block[f"{name}/count"] for name in lists]
            length.append(np.max(counts, axis=0) if counts else np.zeros(len(time[-1]), np.int32))
        self.time, self.length = np.concatenate(time), np.concatenate(length)

    def rows(self, c: Choice) -> np.ndarray:
        """Places of the chosen impressions in the split, ascending."""
        keep = np.ones(len(self.time), bool)
        if c.recent and c.recent < len(keep):  # nested in `recent`; ties go by stored order
            keep[np.argsort(self.time, kind="stable")[: -c.recent]] = False
        if c.recent_days:
            keep &= self.time > self.time.max(initial=0) - round(c.recent_days * DAY)
        if c.period:
            keep &= (self.time >= c.period[0]) & (self.time < c.period[1])
        rows = np.flatnonzero(keep)[: c.examples or None]
        if c.lengths:  # last: a prefix is the same impressions whatever the buckets
            length = self.length[rows]
            rows = rows[(length > c.lengths[0]) & (length <= c.lengths[1])]
        return rows

    def periods(self, rows: np.ndarray, span: str) -> list[tuple[int, int]]:
        """(begin, end) of the periods that hold any of `rows`; a span of "1d" gives days of UTC."""
        seconds = span_of(span, "online")
        numbers = np.unique(self.time[rows] // seconds)
        return [(int(n) * seconds, (int(n) + 1) * seconds) for n in numbers]


def buckets_of(lengths: tuple[int, ...], longest: int) -> list[tuple[int, int]]:
    """(more than, at most) of each bucket: the given lengths below `longest`, and the rest."""
    if list(lengths) != sorted(set(lengths)) or any(n < 1 for n in lengths):
        raise BatchError(f"length_buckets={lengths}: give ascending lengths of 1 or more")
    edges = [n for n in lengths if n < longest]
    last = np.iinfo(np.int32).max
    return list(zip([-1, *edges], [*edges, last], strict=True))
