"""Says on standard error which phase a long preparation is in, how far it has come, and how long each took."""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import sys
import time
from typing import TypeVar

T = TypeVar("T")
shown = False  # commands turn it on; a library call says nothing


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """A named part of the work; its seconds are said when it ends well."""
    begin = time.monotonic()
    _say(f"{name} ...")
    yield
    _say(f"{name}: {time.monotonic() - begin:.1f} s", end="\n")


def steps(name: str, items: Sequence[T]) -> Iterable[T]:
    """The items; says which of how many is at work."""
    with phase(name):
        for i, item in enumerate(items, 1):
            if len(items) > 1:
                _say(f"{name} {i:,} of {len(items):,} ...")
            yield item


def _say(text: str, end: str = "") -> None:
    """On a terminal one line that changes, elsewhere only what has ended."""
    if not shown or not (end or sys.stderr.isatty()):
        return
    print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, end=end, file=sys.stderr, flush=True)
