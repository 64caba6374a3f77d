"""Point-in-time correctness: what was known strictly before a request.

Events are stored once, sorted by (user, time, log order). A request needs only a number per list: how many of its
user's events lie strictly before it. The same comparison gives the causal counters: how often a key (a product, a
household and a category, ...) had occurred before the request, and how long ago the last time.

Both are one sorted int64 key, `code << bits | seconds`, and `searchsorted(side="left")`: "strictly before" is
decided here and nowhere else. An event at the very second of a request is not in its past.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import polars as pl

NEVER = np.iinfo(
    np.int32
).max  # recency of a key that had not occurred; its log1p lies beyond every real age


@dataclasses.dataclass(frozen=True)
class Clock:
    """Packs (code, time) into one sortable int64.

    Attributes:
      origin: Time of the earliest event, seconds.
      bits: Room for the seconds from there to one past the latest event.
    """

    origin: int
    bits: int

    @classmethod
    def of(cls, time: np.ndarray) -> "Clock":
        """The clock of events at these times [E]."""
        low, high = (int(time.min()), int(time.max())) if len(time) else (0, 0)
        return cls(low, (high + 1 - low).bit_length())

    def pack(self, code: np.ndarray, time: np.ndarray) -> np.ndarray:
        """code << bits | seconds since origin, int64 [N].

        Times outside the events' span (a request's may be) move to its edges, which changes no comparison with an
        event: at the origin nothing is strictly before, one past the latest event all are.
        """
        seconds = np.clip(time.astype(np.int64) - self.origin, 0, (1 << self.bits) - 1)
        return (code.astype(np.int64) << self.bits) | seconds

    def time(self, key: np.ndarray) -> np.ndarray:
        """The time inside a packed key, int64 seconds."""
        return (key & ((1 << self.bits) - 1)) + self.origin


# ---------------------------------------------------------------------------------------------------- timelines


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Events of one list and one partition, sorted by (user, time, log order).

    Attributes:
      columns: "time" int64 [E], the list's fields [E], and "start" int64 [users + 1]: user u's events are
        [start[u], start[u + 1]). What `write_prepared(timelines=...)` takes.
      keys: Their packed (user, time), int64 [E], ascending.
      clock: That packed them.
    """

    columns: Mapping[str, np.ndarray]
    keys: np.ndarray
    clock: Clock

    def cutoffs(self, user: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(end int64, count int32) of requests [N]: their histories are the events [end - count, end)."""
        end = np.searchsorted(self.keys, self.clock.pack(user, time), side="left")
        return end, (end - self.columns["start"][user]).astype(np.int32)


def build_timeline(
    user: np.ndarray, time: np.ndarray, fields: Mapping[str, np.ndarray], users: int
) -> Timeline:
    """Sorts events by (user, time); ties keep the order of the log.

    Args:
      user: Dense user code of each event, in [0, users), any order. [E]
      time: Seconds. [E]
      fields: Aligned columns [E].
      users: Number of users; those without events have an empty range.
    """
    clock = Clock.of(time)
    keys = clock.pack(user, time)
    order = np.argsort(keys, kind="stable")
    columns = {
        "time": time[order].astype(np.int64),
        **{name: x[order] for name, x in fields.items()},
    }
    columns["start"] = np.searchsorted(user[order], np.arange(users + 1)).astype(np.int64)
    return Timeline(columns, keys[order], clock)


def partition_users(user: np.ndarray, partitions: int) -> tuple[np.ndarray, np.ndarray]:
    """(partition, code inside it) of dense user codes: the one place that says which host holds a user."""
    return user % partitions, user // partitions


def build_timelines(
    user: np.ndarray,
    time: np.ndarray,
    fields: Mapping[str, np.ndarray],
    users: int,
    partitions: int = 1,
) -> list[Timeline]:
    """`build_timeline` for each partition of the users."""
    part, local = partition_users(user, partitions)
    out = []
    for p in range(partitions):
        mine = np.flatnonzero(part == p)
        part_fields = {name: x[mine] for name, x in fields.items()}
        out.append(
            build_timeline(local[mine], time[mine], part_fields, -(-(users - p) // partitions))
        )
    return out


def cutoffs(
    timelines: Sequence[Timeline], user: np.ndarray, time: np.ndarray
) -> dict[str, np.ndarray]:
    """Cut-offs of requests over partitioned timelines.

    Args:
      timelines: From `build_timelines`.
      user: Dense user code of each request [N].
      time: Of each request, seconds [N].

    Returns:
      "partition" int32, "end" int64 and "count" int32, each [N].
    """
    part, local = partition_users(user, len(timelines))
    end, count = np.zeros(len(user), np.int64), np.zeros(len(user), np.int32)
    for p, timeline in enumerate(timelines):
        mine = np.flatnonzero(part == p)
        end[mine], count[mine] = timeline.cutoffs(local[mine], time[mine])
    return {"partition": part.astype(np.int32), "end": end, "count": count}


def in_session(
    timelines: Sequence[Timeline], cut: Mapping[str, np.ndarray], time: np.ndarray, gap: int
) -> np.ndarray:
    """How many of each request's last events lie in the session it is part of, int32 [N].

    Args:
      timelines: From `build_timelines`.
      cut: Cut-offs of the requests, from `cutoffs`.
      time: Of each request, seconds [N].
      gap: A pause of more seconds ends a session: between two events, or between the last one and the request.
    """
    out = np.zeros(len(time), np.int32)
    for p, timeline in enumerate(timelines):
        moment, start = timeline.columns["time"], timeline.columns["start"]
        mine = np.flatnonzero((cut["partition"] == p) & (cut["count"] > 0))
        begins = np.diff(moment, prepend=moment[:1]) > gap
        begins[start[:-1][start[:-1] < len(moment)]] = True  # another user
        first = np.maximum.accumulate(np.where(begins, np.arange(len(moment)), 0))
        end = cut["end"][mine]
        running = time[mine] - moment[end - 1] <= gap
        out[mine] = np.where(running, end - first[end - 1], 0)
    return out


def sessions(user: np.ndarray, time: np.ndarray, gap: int) -> np.ndarray:
    """Number of the session each row lies in, int64 [N]: a user's rows without a pause of more than `gap` seconds."""
    order = np.lexsort((time, user))
    by_user, by_time = user[order], time[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (by_user[1:] != by_user[:-1]) | (np.diff(by_time) > gap)
    out = np.empty(len(order), np.int64)
    out[order] = np.cumsum(begins) - 1
    return out


# ----------------------------------------------------------------------------------------------------- counters


@dataclasses.dataclass(frozen=True)
class Counter:
    """A causal counter: count and recency of `keys` before a request, as features <name>_count, <name>_recency.

    Attributes:
      name: Of the counter.
      keys: Columns whose combination is counted; integer codes from 0, the same in events and in requests.
    """

    name: str
    keys: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, str]:
        return f"{self.name}_count", f"{self.name}_recency"


@dataclasses.dataclass(frozen=True)
class CounterIndex:
    """The occurrences of a counter's keys, sorted: answers "how often, and when last, strictly before t".

    Attributes:
      counter: Which keys.
      sizes: Number of codes of each key column.
      clock: Packs the keys.
      keys: int64 [E], ascending.
      dense: Ascending codes that occur, where all possible ones need too many bits; else None.
    """

    counter: Counter
    sizes: tuple[int, ...]
    clock: Clock
    keys: np.ndarray
    dense: np.ndarray | None

    @classmethod
    def build(
        cls, counter: Counter, events: Mapping[str, np.ndarray], sizes: Mapping[str, int]
    ) -> "CounterIndex":
        """Indexes events: "time" (seconds) and the key columns, [E], any order."""
        clock = Clock.of(events["time"])
        radix = tuple(sizes[k] for k in counter.keys)
        if math.prod(radix) > 1 << 62:
            raise ValueError(
                f"counter {counter.name!r}: {math.prod(radix):.3g} combinations of {counter.keys} do not fit 62 bits"
            )
        code = _mixed(counter, events, radix)
        dense = np.unique(code) if math.prod(radix) << clock.bits > 1 << 62 else None
        code = code if dense is None else np.searchsorted(dense, code)
        return cls(counter, radix, clock, np.sort(clock.pack(code, events["time"])), dense)

    def before(self, requests: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Counts and ages strictly before each request.

        Args:
          requests: "time" and the key columns, [N], any order.

        Returns:
          count int32 [N]; recency int32 [N], whole seconds since the last occurrence (1 or more, saturating below
          NEVER), or NEVER when there was none.
        """
        time = requests["time"].astype(np.int64)
        code = _mixed(self.counter, requests, self.sizes)
        if self.dense is not None:
            at = np.searchsorted(self.dense, code)
            known = (
                self.dense[np.minimum(at, len(self.dense) - 1)] == code
                if len(self.dense)
                else False
            )
            code = np.where(known, at, len(self.dense))
        query = self.clock.pack(code, time)
        order = np.argsort(query)  # sorted queries walk the keys in cache order
        end, first = np.empty(len(query), np.int64), np.empty(len(query), np.int64)
        end[order] = np.searchsorted(self.keys, query[order], side="left")
        first[order] = np.searchsorted(self.keys, code[order] << self.clock.bits, side="left")
        count = (end - first).astype(np.int32)
        recency = np.full(len(query), NEVER, np.int32)
        seen = count > 0
        recency[seen] = np.minimum(
            time[seen] - self.clock.time(self.keys[end[seen] - 1]), NEVER - 1
        )
        return count, recency


def _mixed(counter: Counter, columns: Mapping[str, np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """One code per combination of the key columns (mixed radix), int64."""
    code = np.zeros(len(columns["time"]), np.int64)
    for key, size in zip(counter.keys, sizes, strict=True):
        code = code * size + columns[key]
    return code


def count_all(indexes: Sequence[Any], requests: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of several `CounterIndex` (or alike) for requests [N]: <name>_count and <name>_recency."""
    out = {}
    for index in indexes:
        out |= dict(zip(index.counter.columns, index.before(requests), strict=True))
    return out


# --------------------------------------------------------------------------------------------------- quarantine


def quarantine(
    log: pl.DataFrame, *, ids: Sequence[str], time: str, until: int, unique: Sequence[str] = ()
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Takes unusable rows out of a log, and says how many of which kind.

    Args:
      log: Rows in log order, which is kept.
      ids: Columns that must not be null (user, item, request).
      time: Column of seconds.
      until: The log's end, seconds; a later time stamp is some clock's error.
      unique: Columns that name an event; of equal rows the first stays. Empty: whole rows.

    Returns:
      The remaining rows and {"null_id", "future", "duplicate": rows taken out}.
    """
    found = {}
    for reason, keep in (
        ("null_id", pl.all_horizontal(pl.col([*ids, time]).is_not_null())),
        ("future", pl.col(time) <= until),
    ):
        kept = log.filter(keep)
        found[reason], log = log.height - kept.height, kept
    kept = log.unique(unique or None, keep="first", maintain_order=True)
    found["duplicate"] = log.height - kept.height
    return kept, found
