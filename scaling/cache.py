"""The JSON file that a stage leaves, so that the same command goes on from it."""

from collections.abc import Callable
import json
from typing import Any

from etils import epath

from recjax.runtime.run import plain, read_json, write_json, write_text


def cached(path: epath.Path, make: Callable[[], Any], of: Any = None, again: bool = False) -> Any:
    """The JSON in `path`, made and written when absent; what it was made `of` (JSON) is noted beside it.

    Args:
      path: The file.
      make: Its content.
      of: What that depends on.
      again: Make it again where it was made of something else, as what takes minutes may.

    Raises:
      ValueError: It was made of something else, and not `again`.
    """
    note, text = path.with_name(f".{path.stem}.of"), json.dumps(plain(of), sort_keys=True)
    stale = path.exists() and (note.read_text() != text if note.exists() else again)
    if stale and not again:
        raise ValueError(
            f"{path} was made with other settings; delete it and what it made, or use a new --workdir"
        )
    if stale or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, text)
        write_json(path, make())
    return read_json(path)
