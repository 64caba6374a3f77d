"""The JSON file that a stage leaves, so that the same command goes on from it."""

from collections.abc import Callable, Mapping
import json
from types import MappingProxyType
from typing import Any

from etils import epath

from recjax.runtime.run import plain, read_json, write_json, write_text


def cached(
    path: epath.Path,
    make: Callable[[], Any],
    of: Any = None,
    again: bool = False,
    usual: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """The JSON in `path`, made and written when absent; what it was made `of` (JSON) is noted beside it.

    Args:
      path: The file.
      make: Its content.
      of: What that depends on.
      again: Make it again where it was made of something else, as what takes minutes may.
      usual: key -> its default, in `of`: what came with a later version, and is left alone, changes nothing.

    Raises:
      ValueError: It was made of something else, and not `again`.
    """
    note, depends = path.with_name(f".{path.stem}.of"), plain(of)
    known = note.exists()
    stale = path.exists() and (
        said(read_json(note), usual) != said(depends, usual) if known else again
    )
    if stale and not again:
        raise ValueError(
            f"{path} was made with other settings; delete it and what it made, or use a new --workdir"
        )
    if stale or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, json.dumps(depends, sort_keys=True))
        write_json(path, make())
    return read_json(path)


def said(of: Any, usual: Mapping[str, Any]) -> Any:
    """JSON without the keys that have their default."""
    if isinstance(of, list):
        return [said(v, usual) for v in of]
    if isinstance(of, dict):
        return {k: said(v, usual) for k, v in of.items() if k not in usual or usual[k] != v}
    return of
