"""What users did since the log ended: a bounded store in memory.

Per user and list the newest events are kept, sorted by time, ties in the order they came. When the store is full the
users nobody asked about or added to for longest go first. It belongs to one process and one event loop.
"""

import bisect
from collections import OrderedDict
from collections.abc import Mapping, Sequence

# (time, names of the fields, their values); the names are shared between events.
_Event = tuple[int, tuple[str, ...], tuple]


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

    def __len__(self) -> int:
        """Users."""
        return len(self._users)

    def append(self, user: str, name: str, columns: Mapping[str, Sequence]) -> int:
        """Adds events {"time": [...], feature: [...]} to list `name`; returns how many it holds now."""
        stored = self._users.setdefault(user, {}).setdefault(name, [])
        self._users.move_to_end(user)
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
            _, lists = self._users.popitem(last=False)
            self.count -= sum(map(len, lists.values()))
            self.evicted += 1
        return len(stored)

    def read(
        self, user: str, name: str, columns: Sequence[str], before: int, length: int
    ) -> dict[str, list]:
        """The last `length` events strictly before a time, as columns; {column: []} for an unknown user.

        Events stored under a model that read other fields, and that lack one of `columns`, are left out.
        """
        stored = self._users.get(user, {}).get(name, [])
        if stored:
            self._users.move_to_end(user)
        end = bisect.bisect_left(stored, before, key=_time)
        fields = [c for c in columns if c != "time"]
        rows = [
            (time, dict(zip(names, values, strict=True)))
            for time, names, values in stored[max(0, end - length) : end]
            if set(fields) <= set(names)
        ]
        return {"time": [t for t, _ in rows]} | {n: [v[n] for _, v in rows] for n in fields}


def _time(event: _Event) -> int:
    return event[0]
