"""Causal counters as they are served: a snapshot of the log, and what has happened since.

Count and recency of a key strictly before a request, the numbers `recjax.data.store.histories.CounterIndex` gave in training.
Keys are raw values, so products too rare for the vocabulary are counted too. The snapshot holds a count and the last
time for each key, as sorted arrays; keys that events touched since then keep their last `TAIL` times as well, so
"strictly before" stays exact for requests that are not older than those.

An artifact holds one .npz a counter and the snapshot's time; events up to that time are in it and are not counted again.
"""

import bisect
from collections.abc import Iterable, Mapping, Sequence
import functools
import hashlib
from typing import Any

import numpy as np
import polars as pl

from recjax.data.store.event_log import USER, ServedCounter
from recjax.data.store.histories import NEVER

TAIL = 16
MAX_LIVE = 200_000  # keys touched since the last merge, of one counter
_NULL = "\0null"
_MIX = np.uint64(0x9E3779B97F4A7C15)


# ---------------------------------------------------------------------------------------------------------- keys


@functools.lru_cache(1 << 16)
def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hashes(values: Iterable[Any]) -> np.ndarray:
    """Of raw values by their text, uint64 [n]; 3 and "3" are one value, null is a value of its own."""
    return np.array([_hash(_NULL if v is None else str(v)) for v in values], np.uint64)


def _hash_column(column: pl.Series) -> np.ndarray:
    """`hashes` of a long column: every distinct value once."""
    distinct = column.unique()
    table = pl.DataFrame({"v": distinct, "h": pl.Series(hashes(distinct.to_list()))})
    joined = (
        column.alias("v")
        .to_frame()
        .join(table, on="v", how="left", nulls_equal=True, maintain_order="left")
    )
    return joined["h"].to_numpy()


def mix(columns: Sequence[np.ndarray]) -> np.ndarray:
    """One key per combination; columns are uint64 and broadcast. A million keys collide with odds of 1 in 10^7."""
    key = np.zeros(1, np.uint64)
    for x in columns:
        key = (key ^ x) * _MIX
        key = key ^ (key >> np.uint64(29))
    return key


# ------------------------------------------------------------------------------------------------------ one counter


class Counter:
    """Counts and last times by key."""

    def __init__(self, keys: np.ndarray, count: np.ndarray, last: np.ndarray):
        """keys uint64 [K] ascending, count int64 [K] >= 1, last int64 [K] seconds."""
        self.keys, self.count, self.last = keys, count, last
        # key -> (events older than the tail, the tail's times ascending)
        self._live: dict[int, tuple[int, list[int]]] = {}

    @classmethod
    def of(cls, keys: np.ndarray, time: np.ndarray) -> "Counter":
        """Of events [E] in any order."""
        order = np.lexsort((time, keys))
        keys, time = keys[order], time[order].astype(np.int64)
        start = (
            np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, int)
        )
        ends = np.r_[start[1:], len(keys)] if len(keys) else start
        return cls(keys[start], ends - start, time[ends - 1])

    def add(self, keys: np.ndarray, times: Sequence[int]) -> None:
        """Events [n] in any order."""
        for key, time in zip(keys.tolist(), times, strict=True):
            older, tail = self._live.get(key) or self._stored(key)
            bisect.insort_right(tail, time)
            if len(tail) > TAIL:
                del tail[0]
                older += 1
            self._live[key] = older, tail
        if len(self._live) > MAX_LIVE:
            self.merge()

    def _stored(self, key: int) -> tuple[int, list[int]]:
        at = int(np.searchsorted(self.keys, np.uint64(key)))
        if at == len(self.keys) or int(self.keys[at]) != key:
            return 0, []
        return int(self.count[at]) - 1, [int(self.last[at])]

    def before(self, keys: np.ndarray, time: int) -> tuple[np.ndarray, np.ndarray]:
        """(count, recency) int64 [n] strictly before `time`; see `histories.CounterIndex.before`.

        For a time before all that a key's tail remembers, the count is an upper bound and the recency 1.
        """
        n = len(keys)
        count, last = np.zeros(n, np.int64), np.full(n, np.iinfo(np.int64).max)
        if len(self.keys):
            at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            known = self.keys[at] == keys
            count[known], last[known] = self.count[at[known]], self.last[at[known]]
            count -= known & (last >= time)
        if self._live:
            for i, key in enumerate(keys.tolist()):
                if (live := self._live.get(key)) is not None:
                    older, tail = live
                    end = bisect.bisect_left(tail, time)
                    count[i], last[i] = older + end, tail[end - 1] if end else time
        recency = np.where(last < time, np.minimum(time - last, NEVER - 1), 1)
        return count, np.where(count > 0, recency, NEVER)

    def merge(self) -> None:
        """Folds what was added into the arrays: of each key the tail is forgotten but for its last time."""
        live = np.fromiter(self._live, np.uint64, len(self._live))
        count = np.array([older + len(tail) for older, tail in self._live.values()], np.int64)
        last = np.array([tail[-1] for _, tail in self._live.values()], np.int64)
        keep = ~np.isin(self.keys, live)
        keys = np.concatenate([self.keys[keep], live])
        order = np.argsort(keys)
        self.keys = keys[order]
        self.count = np.concatenate([self.count[keep], count])[order]
        self.last = np.concatenate([self.last[keep], last])[order]
        self._live = {}


# --------------------------------------------------------------------------------------------------------- all of them


class Counters:
    """The counters of an artifact, kept up to date. Not thread-safe: it belongs to one event loop.

    Attributes:
      specs: What is counted.
      list: The list of events they count.
      until: Seconds; what happened until then is in the snapshot.
      each: What was counted, spec by spec.
      added: Events counted since.
    """

    def __init__(
        self,
        specs: Sequence[ServedCounter],
        counters: Sequence[Counter],
        list: str,  # noqa: A002
        until: int,
    ):
        self.specs, self.list, self.until, self.added = tuple(specs), list, until, 0
        self.each = tuple(counters)

    @classmethod
    def snapshot(
        cls,
        specs: Sequence[ServedCounter],
        frame: pl.DataFrame,
        list: str,  # noqa: A002
        until: int,
    ) -> "Counters":
        """Of the events of a log (see `EventLog.frame`) up to and including `until`."""
        frame = frame.filter(pl.col("time") <= until)
        fields = dict.fromkeys(name for s in specs for name in s.event)
        columns = {name: _hash_column(frame[name]) for name in fields}
        time, made = frame["time"].to_numpy(), []
        for s in specs:
            keys = _key(s.event, columns, len(time))
            counts = frame[s.where].to_numpy() if s.where else slice(None)
            made.append(Counter.of(keys[counts], time[counts]))
        return cls(specs, made, list, until)

    @property
    def fields(self) -> dict[str, str]:
        """Fields of events that counters read, but for "user" -> feature of requests with the same values."""
        pairs = (p for s in self.specs for p in zip(s.event, s.request, strict=True))
        return {event: request for event, request in pairs if event != USER}

    def add(self, user: str, events: Mapping[str, Sequence]) -> None:
        """Counts one user's events {"time": [...], field: [...]}; those in the snapshot already are left out."""
        new = [i for i, t in enumerate(events["time"]) if t > self.until]
        if not new:
            return
        fields = {n for s in self.specs for n in s.event} - {USER}
        columns = {n: hashes(events[n][i] for i in new) for n in fields}
        columns[USER] = hashes([user])
        times = np.array([events["time"][i] for i in new])
        for spec, counter in zip(self.specs, self.each, strict=True):
            keys = _key(spec.event, columns, len(new))
            counts = np.array([not spec.where or events[spec.where][i] for i in new], bool)
            counter.add(keys[counts], times[counts].tolist())
        self.added += len(new)

    def fill(self, values: Mapping[str, Any], candidates: int) -> dict[str, list[float]]:
        """The counter features that a request left out: {feature: [C]}.

        Args:
          values: Column -> value, or list of values for candidates; with "time".
          candidates: C.
        """
        wanted = [s for s in self.specs if not set(s.features) <= values.keys()]
        names = dict.fromkeys(n for s in wanted for n in s.request)
        columns = {n: hashes(v if isinstance(v := values[n], list) else [v]) for n in names}
        out: dict[str, list[float]] = {}
        for spec, counter in zip(self.specs, self.each, strict=True):
            if spec in wanted:
                got = counter.before(_key(spec.request, columns, candidates), values["time"])
                for name, x in zip(spec.features, got, strict=True):
                    if name not in values:
                        out[name] = x.astype(np.float32).tolist()
        return out

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Count feature -> {"keys", "count", "last"}, to be stored."""
        return {
            s.features[0]: {"keys": c.keys, "count": c.count, "last": c.last}
            for s, c in zip(self.specs, self.each, strict=True)
        }

    def restricted(self, names: Iterable[str], features: Iterable[str]) -> "Counters":
        """A fresh copy of the snapshot: the counters of some `features` whose request columns are among `names`."""
        names, features = set(names), set(features)
        pairs = [
            (s, Counter(c.keys, c.count, c.last))
            for s, c in zip(self.specs, self.each, strict=True)
            if set(s.request) <= names and features.intersection(s.features)
        ]
        return Counters([s for s, _ in pairs], [c for _, c in pairs], self.list, self.until)


def _key(names: Sequence[str], columns: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    return np.broadcast_to(mix([columns[name] for name in names]), n)
