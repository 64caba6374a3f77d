"""What a message must name: fields, files, flags, values, the key word of the remedy. Its prose is free."""

from collections.abc import Iterator
import contextlib

import pytest


def names(text: object, *words: object) -> None:
    """Asserts that `text` (an error, a log) holds every one of `words`, in any order."""
    missing = [w for w in words if str(w) not in str(text)]
    assert not missing, f"{missing} not in: {text}"


@contextlib.contextmanager
def raises(kind: type | tuple[type, ...], *words: object) -> Iterator[pytest.ExceptionInfo]:
    """`pytest.raises` whose error `names` the words."""
    with pytest.raises(kind) as found:
        yield found
    names(found.value, *words)
