"""The run directory: config.json, metrics.jsonl, TensorBoard events, summary.json, and who may write there.

A finished run is never redone, a second writer is refused, and an interrupted run goes on with the same command.
"""

import collections
import fcntl
import functools
import importlib.util
import json
import logging as std_logging
import math
import os
import secrets
import signal
import threading
from typing import IO, Any

from absl import flags, logging
from etils import epath
import jax
import ml_collections
import numpy as np

from recjax import models
from recjax.data import canonical_name
from recjax.runtime.identity import Use, may
from recjax.runtime.trackers import Tracker, open_trackers


def set_up() -> None:
    """What every command of recjax does first.

    Compiled programs persist under $RECJAX_CACHE (default ~/.cache/recjax), so a second run compiles nothing. INFO lines
    are shown, a user's own too (--verbosity=-1: none), but not those of `NARRATORS`.
    """
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()  # a notebook or a worker process has not called app.run
    logging.get_absl_handler().addFilter(_worth_showing)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = os.environ.get("RECJAX_CACHE") or os.path.expanduser("~/.cache/recjax")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


NARRATORS = (
    "absl", "apache_beam", "array_record", "etils", "flax", "fsspec", "grain", "jax", "jaxlib", "orbax",
    "tensorflow_datasets", "tensorstore",
)  # fmt: skip


def _worth_showing(record: std_logging.LogRecord) -> bool:
    return record.levelno > std_logging.INFO or not record.pathname.startswith(_narrators())


@functools.cache
def _narrators() -> tuple[str, ...]:
    """Folders of the libraries whose INFO lines tell a user nothing."""
    specs = filter(None, map(importlib.util.find_spec, NARRATORS))
    places = (place for spec in specs for place in spec.submodule_search_locations or ())
    return tuple(os.path.join(place, "") for place in places)


_EVENTS: collections.Counter = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: _EVENTS.update([event]))
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_secs, **_: _EVENTS.update([event])
)


def compiled() -> int:
    """Programs that XLA compiled in this process; those that the persistent cache held do not count."""
    compilations = _EVENTS["/jax/core/compile/backend_compile_duration"]
    return compilations - _EVENTS["/jax/compilation_cache/cache_hits"]


class RunError(ValueError):
    """A run cannot start or go on; the message says what to do."""


class Busy(RunError):
    """Another process is writing to the run directory."""


class Interrupted(SystemExit):
    """Raised after a save, when SIGTERM or Ctrl-C asked the run to stop."""


class Stop:
    """Notes SIGTERM and Ctrl-C so that loops can end at a safe point; a second Ctrl-C ends at once.

    Loops poll `stop.raise_if_requested(save)`: training saves first, evaluation is simply repeated. A signal that no poll
    saw is raised again at the end: it ends what this was a part of. Of several processes all stop at the same step: what
    counts there is `agreed` (recjax.runtime.hosts.in_step).
    """

    def __init__(self):
        self.signum, self.agreed = 0, 0
        self._old: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGTERM, signal.SIGINT):
                self._old[s] = signal.signal(s, self._note)
        return self

    def __exit__(self, *exc):
        for s, handler in self._old.items():
            signal.signal(s, signal.SIG_DFL if handler is None else handler)  # None: not Python's
        if exc[0] is None and self.signum in self._old:  # after the last poll: for those outside
            signal.raise_signal(self.signum)

    def _note(self, signum, frame):
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        logging.warning("%s: stopping at the next safe point", signal.Signals(signum).name)

    def raise_if_requested(self, save=lambda: None) -> None:
        signum = self.signum if jax.process_count() == 1 else self.agreed
        if signum:
            save()
            raise Interrupted(128 + signum)


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes through a temporary name, so that readers see the old file or the whole new one."""
    path = epath.Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")  # pids repeat over hosts
    temporary.write_text(text)
    temporary.replace(path)


def write_json(path: epath.PathLike, value: Any, indent: int | None = 1) -> None:
    """Writes `plain` of the value, whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=indent))


def plain(value: Any) -> Any:
    """Numbers, arrays and containers as JSON values; NaN and infinities as null."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.ndarray, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _with_new_names(config: dict) -> dict[str, Any]:
    """A flat config with the names of today: a run that began before a module was renamed goes on."""
    model = models.with_new_names(config.get("model", {}))
    new = flat({**config, "model": model})
    return new | {"data.name": canonical_name(new.get("data.name", ""))}


def flat(config: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    out = {}
    for k, v in config.items():
        out.update(flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v})
    return out


class Run:
    """A run directory opened for writing. Use as a context manager: it holds the lock.

    Args:
      workdir: Local path or bucket; made when absent.
      config: What is run. Resuming with another config is refused, naming the first key that differs.
    """

    def __init__(self, workdir: epath.PathLike, config: ml_collections.ConfigDict):
        self.dir = epath.Path(workdir)
        self.config = plain(config)
        self._lock: IO | None = None
        self._writer = None
        self._trackers: list[Tracker] = []

    def __enter__(self) -> "Run":
        self.dir.mkdir(parents=True, exist_ok=True)
        self._acquire()
        try:
            self._check_config()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *exc):
        for writer in (self._writer, *self._trackers):
            if writer is not None:
                writer.close()
        self._release()

    def _acquire(self):
        if "://" in str(self.dir) or jax.process_index() != 0:
            return  # object stores have no locks; process 0 stands for all
        self._lock = open(self.dir / ".lock", "a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise Busy(
                f"another process is writing to {self.dir}; wait for it, stop it, or give another --workdir"
            ) from None

    def _release(self):
        if self._lock is not None:
            self._lock.close()

    def _check_config(self):
        path = self.dir / "config.json"
        if not path.exists():
            return  # `begin` writes it, once the run is known to start
        old, new = _with_new_names(read_json(path)), _with_new_names(self.config)
        free = Use.FREE if self.summary else Use.FREE | Use.LATE
        for key in sorted(old.keys() | new.keys()):
            if key not in old and not new[key]:  # came with a later version, and is left alone
                continue
            if old.get(key) != new.get(key) and not may(key, free):
                raise RunError(
                    f"{path} has {key}={old.get(key)!r} but this command has {new.get(key)!r}; "
                    "use the same config to go on, or a new --workdir"
                )

    @property
    def summary(self) -> dict | None:
        """summary.json of a finished run, else None."""
        path = self.dir / "summary.json"
        return read_json(path) if path.exists() else None

    def finish(self, summary: dict) -> dict:
        if jax.process_index() == 0:
            # With the free keys of today: the same command leaves it alone, and readers find its data.
            write_json(self.dir / "config.json", self.config)
            write_json(self.dir / "summary.json", summary)
        return plain(summary)

    def begin(self, step: int) -> None:
        """The run is built and goes on from `step`: its config is kept, and metric rows after `step` are dropped.

        A start that fails before leaves no config, so that a misspelt option does not hold the directory. The steps
        between the last save and a crash are done again.
        """
        if jax.process_index() == 0 and not (self.dir / "config.json").exists():
            write_json(self.dir / "config.json", self.config)
        if jax.process_index() == 0 and not self._trackers:
            names = self.config.get("train", {}).get("log_to", ())
            if names:
                path = self.dir / "trackers.json"
                known = read_json(path) if path.exists() else {}
                self._trackers = open_trackers(names, self.dir.name, flat(self.config), known)
                ids = {n: t.id for n, t in zip(names, self._trackers, strict=True)}
                write_json(path, known | ids)
        path = self.dir / "metrics.jsonl"
        if path.exists() and jax.process_index() == 0:
            rows = [r for r in read_jsonl(path) if r["step"] <= step]
            write_text(path, "".join(json.dumps(r) + "\n" for r in rows))

    def log(self, step: int, kind: str, metrics: dict, **keys) -> dict:
        """Appends one row to metrics.jsonl and the event file; returns the row."""
        row = {"step": step, "kind": kind, **keys, **plain(metrics)}
        if jax.process_index() != 0:
            return row
        with (self.dir / "metrics.jsonl").open("a") as f:
            f.write(json.dumps(row) + "\n")
        member = [f"member_{keys['member']}"] if "member" in keys else []
        prefix = "/".join([kind, *(v for v in keys.values() if isinstance(v, str)), *member])
        self.scalars(step, prefix, {k: v for k, v in row.items() if k not in ("step", *keys)})
        return row

    def tell_status(self, status: dict) -> None:
        """How far the run is, in status.json: what the console shows of a run that trains. Nothing reads it to go on."""
        if jax.process_index() == 0:
            write_json(self.dir / "status.json", status)

    def scalars(self, step: int, prefix: str, values: dict) -> None:
        """Numbers for the event file and the trackers alone; process 0's."""
        told = {f"{prefix}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
        for name, value in told.items():
            self._events().add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.scalars(step, told)

    def _events(self):
        if self._writer is None:
            from tensorboardX import SummaryWriter  # slow to import

            self._writer = SummaryWriter(str(self.dir))
        return self._writer


def read_json(path: epath.PathLike) -> Any:
    """What a JSON file holds; RunError names one that is damaged."""
    try:
        return json.loads(epath.Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise RunError(f"{path} is not JSON ({e}); restore it from a copy, or delete it") from None


def read_jsonl(path: epath.PathLike) -> list[dict]:
    """Rows of a JSON-lines file; a half-written last line (a crash) is left out, damage elsewhere raises RunError."""
    rows, lines = [], epath.Path(path).read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as e:
            if number < len(lines):
                raise RunError(f"{path}, line {number} is not JSON ({e}); remove it") from None
    return rows
