"""What the reader of a log noticed and did not refuse: counted by kind and column, added over files, said in the report."""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

# kind -> (whether it is a WARNING, sentence)
KINDS: Mapping[str, tuple[bool, str]] = {
    "encoding": (True, "{column} is not UTF-8; it was read as {example} (set encoding in the mapping if names look wrong)"),
    "dates": (False, "times of {column!r} are read as {example}"),
    "units": (True, "{column!r} mixes units: {count:,} numbers are read as {example}"),
    "coarse": (True, "{count:,} times of {column!r} have lost digits on their way, such as {example!r}; export them as whole numbers or as text"),
    "early": (True, "{count:,} rows lie before 1990 by {column!r}, the first {example}: is it a time, and are time_unit or time_format right?"),
    "late": (True, "{count:,} rows lie after this clock's present by {column!r}, the last {example}; set as_of to a date to set later rows aside"),
    "null": (False, "{count:,} cells of {column!r} count as missing, such as {example!r}"),
    "number": (False, "{count:,} cells of {column!r} are no number and count as missing, such as {example!r}"),
    "below": (False, "{count:,} cells of {column!r} lie below zero, where log1p ends, and count as missing, such as {example!r}"),
    "vector": (False, "{count:,} cells of {column!r} are no vector of finite numbers and count as missing, such as {example!r}"),
    "width": (False, "{count:,} vectors of {column!r} have another width than the others and count as missing, such as {example}"),
    "separator": (True, "no cell of {column!r} holds the separator that multi names; is it {example!r}?"),
    "float": (True, "{count:,} values of {column!r} are floats above 2^53, which do not keep every digit, such as {example}; write ids as integers or text"),
    "digits": (True, "{count:,} values of {column!r} have lost digits on their way, such as {example!r}; export ids as text"),
    "minus": (True, "{column!r} holds -1, 0 and 1: the {count:,} cells of -1 are read as 0"),
    "empty": (False, "{count:,} empty cells of {column!r} are read as {example} (label_missing)"),
    "joined": (False, "{count:,} rows differ from an earlier one in the label only: they are one impression with the larger label"),
    "event": (
        False,
        "{count:,} rows of the log are among the {example} of event_files[{column!r}]",
    ),
    "where": (False, "{count:,} rows are left out by where = {example!r}"),
    "twice": (True, "{column} has {count:,} more rows of keys that it has already, with other values, such as {example!r}: the first counts"),
    "strangers": (True, "{column} knows less than half of the log's keys; it lacks {example!r}, for instance: is it the right table, and are keys spelled alike?"),
    "hidden": (True, "{count:,} rows of {column} match no row of the log"),
    "absent": (True, "{column} names {example}"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Note:
    """Attributes:
    kind: A key of `KINDS`.
    column: It is about (or a file).
    count: Of cells or rows.
    example: One of them.
    """

    kind: str
    column: str
    count: int = 1
    example: str = ""

    @property
    def warning(self) -> bool:
        return KINDS[self.kind][0]

    @property
    def text(self) -> str:
        what = {"column": self.column, "count": self.count, "example": self.example}
        return KINDS[self.kind][1].format(**what)

    def plain(self) -> list[Any]:
        """What `Note(*...)` makes it from again; JSON."""
        return [self.kind, self.column, self.count, self.example]


def added(notes: Iterable[Note]) -> list[Note]:
    """One note of each kind and column, counts added, in the order of `KINDS`; notes of nothing are dropped."""
    out: dict[tuple[str, str], Note] = {}
    for n in notes:
        if n.count:
            old = out.get((n.kind, n.column))
            out[n.kind, n.column] = (
                dataclasses.replace(old, count=old.count + n.count) if old else n
            )
    kinds = list(KINDS)
    return sorted(out.values(), key=lambda n: kinds.index(n.kind))
