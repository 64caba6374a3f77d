"""SHA-256 of every file of a checkpoint, kept beside it, so that a flipped bit is noticed and not trained on.

    <workdir>/checkpoints/sums/<recent | best>-<step>.json    {file of the step: SHA-256}

Written when the checkpoint is whole, by the first process. A checkpoint without one (of an earlier version, or of a run
that was killed between the two) is read as it is.
"""

import hashlib
import json
import threading
import time

from absl import logging
from etils import epath
import jax

CHUNK = 1 << 24
PATIENCE = 600  # seconds that a thread waits for a step to be saved
_LOCK = threading.Lock()


def sums_file(step_dir: epath.Path) -> epath.Path:
    """Where the sums of <checkpoints>/<recent | best>/<step> are."""
    which = step_dir.parent
    return which.parent / "sums" / f"{which.name}-{step_dir.name}.json"


def seal_when_whole(step_dir: epath.Path) -> None:
    """`seal` as soon as a step that is being saved has its name, which it gets when it is whole; for a thread."""
    deadline = time.monotonic() + PATIENCE
    while not step_dir.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        seal(step_dir.parent)
    except OSError as e:  # the folder is gone, or the disk full: saving says that
        logging.warning("no checksums for checkpoint %s (%s)", step_dir, e)


def seal(which: epath.Path) -> None:
    """Writes the sums of every whole step in <checkpoints>/<recent | best> that has none, and drops those of steps gone."""
    if jax.process_index() == 0 and which.exists():
        with _LOCK:
            _seal(which)


def _seal(which: epath.Path) -> None:
    steps = {p.name: p for p in which.iterdir() if p.name.isdigit()}
    for step in steps.values():
        file = sums_file(step)
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}")
            temporary.write_text(json.dumps(_sums(step), indent=1))
            temporary.replace(file)
    folder = which.parent / "sums"
    for file in folder.iterdir() if folder.exists() else ():
        name, _, step_name = file.name.removesuffix(".json").rpartition("-")
        if name == which.name and step_name not in steps:
            file.unlink(missing_ok=True)


def drop(step_dir: epath.Path) -> None:
    """Forgets the sums of a step that is written again."""
    if jax.process_index() == 0:
        sums_file(step_dir).unlink(missing_ok=True)


def damaged(step_dir: epath.Path) -> str:
    """What is wrong with a step's files, "" for nothing or where nothing is known."""
    file = sums_file(step_dir)
    if not file.exists():
        return ""
    try:
        written = json.loads(file.read_text())
    except ValueError:
        return f"{file} is damaged"
    found = _sums(step_dir)
    changed = sorted(n for n in written if found.get(n) != written[n])
    return f"{step_dir / changed[0]} is not what was written" if changed else ""


def _sums(folder: epath.Path) -> dict[str, str]:
    out, todo = {}, [folder]
    while todo:
        for path in todo.pop().iterdir():
            if path.is_dir():
                todo.append(path)
            else:
                out[str(path.relative_to(folder))] = _sha256(path)
    return dict(sorted(out.items()))


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
