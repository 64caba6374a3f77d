"""What lies under the folders that the console was given: runs, sweeps and prepared data, read again only where a file changed.

Nothing here writes or locks. A folder that is half-written, damaged or foreign is shown with a sentence and disturbs nothing else.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import json
import os
import pathlib
import time
from typing import Any

DEPTH = 4  # folders below a given one
STALE_S = 120  # a run that says nothing for so long, and holds no lock, has stopped
MARKS = {"run": "config.json", "sweep": "trials.jsonl", "data": "report.json"}


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder that is something.

    Attributes:
      id: Its path from the folder given, with that folder's name in front: what URLs hold.
      kind: "run", "sweep" or "data".
      path: Where it lies.
    """

    id: str
    kind: str
    path: pathlib.Path


class Files:
    """Parsed files, kept until their time or size changes."""

    def __init__(self):
        self._kept: dict[tuple[pathlib.Path, Any], tuple[tuple[int, int], Any]] = {}

    def read(self, path: pathlib.Path, parse: Callable[[pathlib.Path], Any]) -> Any:
        """`parse(path)`; whatever it raised is raised again without reading."""
        found = path.stat()
        stamp = found.st_mtime_ns, found.st_size
        kept = self._kept.get((path, parse))
        if kept is None or kept[0] != stamp:
            try:
                value: Any = parse(path)
            except Exception as e:
                value = e
            kept = self._kept[path, parse] = stamp, value
        if isinstance(kept[1], Exception):
            raise kept[1]
        return kept[1]


class Index:
    """The places below some folders."""

    def __init__(self, roots: Sequence[str | os.PathLike]):
        self.roots = [pathlib.Path(r).resolve() for r in roots]
        self.files = Files()
        self._found: tuple[float, dict[str, Place]] = (0.0, {})

    def places(self, kind: str = "") -> list[Place]:
        """All, or those of a kind, by id; looked for anew every two seconds at most."""
        if time.monotonic() - self._found[0] > 2 or not self._found[1]:
            found = {p.id: p for root in self.roots for p in _walk(root, root.name, DEPTH)}
            self._found = time.monotonic(), found
        return [p for _, p in sorted(self._found[1].items()) if kind in ("", p.kind)]

    def place(self, id: str, kind: str) -> Place:  # noqa: A002
        """One by its id.

        Raises:
          LookupError: There is none.
        """
        for p in self.places(kind):
            if p.id == id:
                return p
        raise LookupError(f"there is no {kind} {id!r} below {', '.join(map(str, self.roots))}")

    # ---- files

    def json(self, place: Place, name: str) -> Any:
        """A JSON file of a place; None where it has none, {"damaged": sentence} where it is not JSON."""
        path = place.path / name
        if not path.exists():
            return None
        try:
            return self.files.read(path, _json)
        except (ValueError, OSError) as e:
            return {"damaged": f"{name} cannot be read: {e}"}

    def rows(self, place: Place, name: str) -> tuple[list[dict], str]:
        """Rows of a JSON-lines file, and a sentence on lines that are none."""
        path = place.path / name
        if not path.exists():
            return [], ""
        try:
            return self.files.read(path, _rows)
        except OSError as e:
            return [], f"{name} cannot be read: {e}"

    def state(self, place: Place) -> str:
        """ "finished", "running", "stopped" or "damaged"."""
        if isinstance(summary := self.json(place, "summary.json"), dict):
            return "damaged" if "damaged" in summary else "finished"
        if "damaged" in (self.json(place, "config.json") or {}):
            return "damaged"
        if _locked(place.path / ".lock"):
            return "running"
        return "stopped"


def _walk(folder: pathlib.Path, name: str, depth: int) -> Iterable[Place]:
    try:
        entries = {e.name: e for e in os.scandir(folder)}
    except OSError:
        return
    for kind, mark in MARKS.items():
        if mark in entries:
            yield Place(name, kind, folder)
            break
    if depth:
        for entry in entries.values():
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(
                (".", "checkpoints")
            ):
                yield from _walk(pathlib.Path(entry.path), f"{name}/{entry.name}", depth - 1)


def _json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text())


def _rows(path: pathlib.Path) -> tuple[list[dict], str]:
    """Rows that can be read; a half-written last line is nothing to speak of."""
    rows, bad = [], []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines) and line.strip():
            bad.append(str(number))
    return (
        rows,
        f"{path.name}: line {', '.join(bad[:5])} cannot be read and is left out" if bad else "",
    )


def _locked(path: pathlib.Path) -> bool:
    """Whether a process holds the lock of a run, asked of the kernel: taking it would disturb one that starts."""
    try:
        found = path.stat()
        held = pathlib.Path("/proc/locks").read_text()
    except OSError:
        return False
    ending = f":{found.st_ino} "
    return any(ending in f"{line} " for line in held.splitlines())
