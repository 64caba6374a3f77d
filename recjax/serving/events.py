"""What users did: the histories an artifact brought, and a bounded store of what has happened since.

Per user and list the newest events are kept, sorted by time, ties in the order they came. When the store is full the
users nobody asked about or added to for longest go first. It belongs to one process and one event loop.
"""

import bisect
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

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
        start = np.flatnonzero(np.r_[True, start[1:] != start[:-1]]) if len(start) else []
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
      max_events: In all; users are evicted beyond it.
      per_list: Of one user in one list; the oldest go.

    Attributes:
      count: Events stored now.
      evicted: Users dropped so far to make room.
    """

    def __init__(self, max_events: int, per_list: int):
        self.count = self.evicted = 0
        self._max_events, self._per_list = max_events, per_list
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
        stored = self._users.setdefault(user, {}).setdefault(name, [])
        self._users.move_to_end(user)
        self._appended += 1
        self._versions[user] = self._appended
        fields = tuple(n for n in columns if n != "time")
        before = len(stored)
        rows = (
            zip(*(columns[n] for n in fields), strict=True)
            if fields
            else [()] * len(columns["time"])
        )
        for time, values in zip(columns["time"], rows, strict=True):
            bisect.insort_right(stored, (time, fields, values), key=_time)
        del stored[: -self._per_list]
        self.count += len(stored) - before
        while self.count > self._max_events and len(self._users) > 1:
            gone, lists = self._users.popitem(last=False)
            del self._versions[gone]
            self.count -= sum(map(len, lists.values()))
            self.evicted += 1
        return len(stored)

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
