"""What a reader of a fitted number must know, as data: a report, a command and a test read the same notes."""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

KINDS = {
    "points": "how many sizes, points and runs the fit rests on",
    "range": "too few sizes, or too narrow a range, to tell one curve from another",
    "bound": "a parameter lies on a bound of its search, so its value is the bound's and not the data's",
    "effect": "the effect of a size is not told apart from none",
    "lack of fit": "the law misses what was measured by more than the seeds scatter",
    "interaction": "what one size is worth depends on another",
    "set aside": "a trial was left out: it failed, diverged, or has no finite value",
    "influence": "a single run moves the answer",
}


@dataclasses.dataclass(frozen=True)
class Note:
    """One thing to know.

    Attributes:
      kind: Of `KINDS`.
      text: A full sentence without its full stop.
      doubt: Whether a number of this fit should not be quoted without it.
      numbers: What the sentence is made of.
    """

    kind: str
    text: str
    doubt: bool = True
    numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a note's kind is one of {list(KINDS)}, not {self.kind!r}")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def doubts(notes: Iterable[Note]) -> list[str]:
    """The sentences that belong beside a number."""
    return [n.text for n in notes if n.doubt]
