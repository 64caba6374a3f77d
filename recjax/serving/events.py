"""What users did: the histories an artifact brought, and a bounded store of what has happened since.

Per user and list the newest events are kept, sorted by time, ties in the order they came. When the store is full the
users nobody asked about or added to for longest go first. It belongs to one process and one event loop.

Events that are sent again because their answer was lost are stored once, if both times they carry one key (`Answered`).
"""

import bisect
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
import hashlib
import sys
from typing import Any

import numpy as np
import polars as pl

# (time, names of the fields, their values); the names are shared between events.
_Event = tuple[int, tuple[str, ...], tuple]


class Past:
    """The last events of every user up to a time, from an artifact; read-only.

    Attributes:
      until: Seconds; what happened later is in `Events`.
    """

    def __init__(self, frame: pl.DataFrame, until: int):
        """`frame`: user, time and fields, each user's events together, oldest first."""
        self.until = until
        self._columns = {n: frame[n].to_arrow() for n in frame.columns if n != "user"}
        self._time = frame["time"].to_numpy()
        start = frame["user"].rle_id().to_numpy()
        start = np.flatnonzero(np.r_[True, start[1:] != start[:-1]]) if len(start) else start
        users = frame["user"].gather(pl.Series(start, dtype=pl.UInt32)).to_list()
        ends = [*start[1:], len(frame)]
        self._range = {u: (int(a), int(b)) for u, a, b in zip(users, start, ends, strict=True)}

    def read(self, user: str, columns: Sequence[str], before: int, length: int) -> dict[str, list]:
        """The last `length` events strictly before a time."""
        start, end = self._range.get(user, (0, 0))
        end = start + int(np.searchsorted(self._time[start:end], before))
        start = max(start, end - length)
        return {c: self._columns[c].slice(start, end - start).to_pylist() for c in columns}


class Events:
    """Events by user and list.

    Args:
      max_bytes: In all; users are evicted beyond it.
      per_list: Of one user in one list; the oldest go.

    Attributes:
      count: Events stored now.
      bytes: Of memory that they take, as Python counts it.
      evicted: Users dropped so far to make room.
    """

    def __init__(self, max_bytes: int, per_list: int):
        self.count = self.evicted = self.bytes = 0
        self._max_bytes, self._per_list = max_bytes, per_list
        self._users: OrderedDict[str, dict[str, list[_Event]]] = OrderedDict()
        self._versions: dict[str, int] = {}
        self._appended = 0

    def __len__(self) -> int:
        """Users."""
        return len(self._users)

    def append(self, user: str, name: str, columns: Mapping[str, Sequence]) -> int:
        """Adds events {"time": [...], feature: [...]} to list `name`; returns how many it holds now."""
        if not columns["time"]:  # a user without events would never make room
            return len(self._users.get(user, {}).get(name, []))
        if user not in self._users:
            self.bytes += _USER_BYTES + 2 * sys.getsizeof(user)
        lists = self._users.setdefault(user, {})
        if name not in lists:
            self.bytes += _LIST_BYTES
        stored = lists.setdefault(name, [])
        self._users.move_to_end(user)
        self._appended += 1
        self._versions[user] = self._appended
        fields = tuple(map(sys.intern, (n for n in columns if n != "time")))
        before = len(stored)
        rows = (
            zip(*(columns[n] for n in fields), strict=True)
            if fields
            else [()] * len(columns["time"])
        )
        for time, values in zip(columns["time"], rows, strict=True):
            bisect.insort_right(stored, (time, fields, values), key=_time)
            self.bytes += _bytes(values)
        gone = stored[: -self._per_list]
        self.bytes -= sum(_bytes(values) for _, _, values in gone)
        del stored[: len(gone)]
        self.count += len(stored) - before
        while self.bytes > self._max_bytes and len(self._users) > 1:
            self._evict()
        return len(stored)

    def _evict(self) -> None:
        user, lists = self._users.popitem(last=False)
        del self._versions[user]
        events = [values for stored in lists.values() for _, _, values in stored]
        self.bytes -= _USER_BYTES + 2 * sys.getsizeof(user) + _LIST_BYTES * len(lists)
        self.bytes -= sum(map(_bytes, events))
        self.count -= len(events)
        self.evicted += 1

    def version(self, user: str) -> int:
        """Changes with every event of the user; 0 for one without."""
        return self._versions.get(user, 0)

    def read(
        self,
        user: str,
        name: str,
        columns: Sequence[str],
        before: int,
        length: int,
        past: Past | None = None,
    ) -> dict[str, list]:
        """The last `length` events strictly before a time, as columns; {column: []} for an unknown user.

        With a `past`, events up to its end come from there. Events stored under a model that read other fields, and
        that lack one of `columns`, are left out.
        """
        stored = self._users.get(user, {}).get(name, [])
        if stored:
            self._users.move_to_end(user)
        end = bisect.bisect_left(stored, before, key=_time)
        start = bisect.bisect_right(stored, past.until, key=_time) if past else 0
        fields = [c for c in columns if c != "time"]
        rows = [
            (time, dict(zip(names, values, strict=True)))
            for time, names, values in stored[max(start, end - length) : end]
            if set(fields) <= set(names)
        ]
        got = {"time": [t for t, _ in rows]} | {n: [v[n] for _, v in rows] for n in fields}
        if past and len(rows) < length:
            old = past.read(user, list(got), before, length - len(rows))
            got = {n: old[n] + x for n, x in got.items()}
        return got

    @property
    def users(self) -> list[str]:
        return list(self._users)

    def since(self, user: str, name: str, fields: Iterable[str], time: int) -> dict[str, list]:
        """Columns of a user's stored events after a time, of those that have all the fields."""
        stored, fields = self._users.get(user, {}).get(name, []), list(fields)
        rows = [
            (t, dict(zip(names, values, strict=True)))
            for t, names, values in stored[bisect.bisect_right(stored, time, key=_time) :]
            if set(fields) <= set(names)
        ]
        return {"time": [t for t, _ in rows]} | {n: [v[n] for _, v in rows] for n in fields}


def _time(event: _Event) -> int:
    return event[0]


# Beside the values: the entries of two dicts and the dict of lists; a list's head; an event's tuple, its place in the list (which
# grows by an eighth more than it needs), its time, and what the allocator and the garbage collector add.
_USER_BYTES, _LIST_BYTES, _EVENT_BYTES = 600, 128, 160


def _bytes(values: tuple) -> int:
    """Of memory, of one event."""
    sizes = (_size(v) for v in values)
    return _EVENT_BYTES + sys.getsizeof(values) + sum(sizes)


def _size(value: Any) -> int:
    inner = sum(map(_size, value)) if isinstance(value, list) else 0
    return sys.getsizeof(value) + 8 + inner  # rounded up by the allocator


class Answered:
    """Answers to the last requests that carried an idempotency key.

    The keys, and what they were used for, are kept as digests, so that `limit` bounds the bytes too.
    """

    def __init__(self, limit: int = 50_000):
        self._limit = limit
        self._kept: OrderedDict[bytes, tuple[bytes, Any]] = OrderedDict()

    def before(self, key: str, request: Any) -> Any:
        """The answer that was kept; None for a key that is new, or "".

        Raises:
          KeyReused: The key came with another request.
        """
        made, answer = self._kept.get(_digest(key), (b"", None))
        if made and made != _digest(request):
            raise KeyReused(
                "the idempotency key was sent with other events before; send one key for each set of events"
            )
        return answer

    def keep(self, key: str, request: Any, answer: Any) -> None:
        if key:
            self._kept[_digest(key)] = _digest(request), answer
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)


class KeyReused(ValueError):
    """See `Answered`."""


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(repr(value).encode(), digest_size=16).digest()
