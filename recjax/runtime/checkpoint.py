"""Checkpoints with Orbax: all trees, the optimizer, and a JSON part for the loader position and control.

Saving is asynchronous and atomic (Orbax renames a finished step). Restoring goes into an abstract tree made from
the *current* mesh, never through saved shardings, which fail on another topology (orbax #648). Tables are saved as
they lie, packed or not (recjax.embedding.lanes), and converted on restore: a reshape.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import math
import os
import threading
from typing import Any

from absl import logging
from etils import epath
from flax import traverse_util
import jax
import orbax.checkpoint as ocp

from recjax.embedding import lanes
from recjax.runtime import checksums
from recjax.trees import Tree, Trees

WINDOW = "sums"  # what has been added up since the last row of metrics; that of another version begins anew
LAST_SECONDS = 60  # that a failed process waits for the others to finish a checkpoint


def as_stored(tree: Tree) -> Tree:
    """`tree` with every `Trees` in it as a dict by name: the layout of all checkpoints, older than the record."""
    return jax.tree.map(lambda x: x.as_dict() if _is_trees(x) else x, tree, is_leaf=_is_trees)


def from_stored(like: Tree, stored: Tree) -> Tree:
    """`stored` with a `Trees` wherever `like` has one."""
    return jax.tree.map(
        lambda x, found: Trees(**found) if _is_trees(x) else found, like, stored, is_leaf=_is_trees
    )


def _is_trees(x: Any) -> bool:
    return isinstance(x, Trees)


def abstract(tree: Tree) -> Tree:
    """Shapes, dtypes and shardings of a tree of arrays: what to restore into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@contextlib.contextmanager
def named_plainly(directory: epath.Path) -> Iterator[epath.Path]:
    """A name of a folder, while this lasts, that Orbax and tensorstore take for what it is.

    Orbax takes [ ] in its own path for a pattern and tensorstore a backslash for a slash: checkpoints below such a folder
    were written and never found again. The kernel's name of the open folder has neither.

    Raises:
      ValueError: The system has no such names.
    """
    if "://" in str(directory) or not set("[]\\") & set(str(directory)):
        yield directory
        return
    if not os.path.isdir("/proc/self/fd"):
        raise ValueError(
            f"{directory} has a bracket or a backslash, which checkpoints cannot have here; give another --workdir"
        )
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield epath.Path(f"/proc/self/fd/{folder}")
    finally:
        os.close(folder)


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and under `best/` the best one.

    As a context manager it closes at the end, so that an error does not lose the checkpoint that was being saved.

    Args:
      directory: `<workdir>/checkpoints`.
      keep: How many recent ones to keep.
    """

    def __init__(self, directory: epath.PathLike, keep: int = 2):
        self._dir = (
            epath.Path(directory).absolute()
            if "://" not in str(directory)
            else epath.Path(directory)
        )
        self._dir.mkdir(parents=True, exist_ok=True)
        self._open = contextlib.ExitStack()
        plain = self._open.enter_context(named_plainly(self._dir))
        self._recent = self._manager(plain / "recent", keep)
        self._best = self._manager(plain / "best", 1)
        self._damaged: dict[tuple[str, int], str] = {}  # (which, step) -> why it could not be read

    def _manager(self, path: epath.Path, keep: int) -> ocp.CheckpointManager:
        path.mkdir(parents=True, exist_ok=True)
        # Of several processes: both managers may be writing the same step, and barriers are named by it.
        apart = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=path.name)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, multiprocessing_options=apart)
        return ocp.CheckpointManager(path, options=options)

    @property
    def latest_step(self) -> int | None:
        return self._recent.latest_step()

    @property
    def best_step(self) -> int | None:
        return self._best.latest_step()

    def save(self, step: int, trees: Tree, meta: dict, *, best: bool = False) -> None:
        """Starts an asynchronous save of `trees` and JSON `meta` unless this step is there already, undamaged."""
        manager = self._best if best else self._recent
        if step in manager.all_steps():
            if self._damaged.pop((manager.directory.name, step), None) is None:
                return
            manager.delete(step)
            checksums.drop(self._folder(manager, step))
        stored = ocp.args.StandardSave(as_stored(trees))
        args = ocp.args.Composite(trees=stored, meta=ocp.args.JsonSave(meta))
        manager.save(step, args=args, force=True)
        folder = self._folder(manager, step)
        threading.Thread(target=checksums.seal_when_whole, args=(folder,), daemon=True).start()

    def restore(
        self, target: Tree, *, best: bool = False, check: Callable[[dict], None] = lambda meta: None
    ) -> tuple[int, Tree, dict] | None:
        """(step, trees, meta) of the newest readable checkpoint, or None when there is none.

        A damaged one is skipped, with a warning that names it, for the one before it.

        Args:
          target: Arrays in the shapes and shardings to restore into; the result has its structure.
          best: From the best checkpoint rather than the newest.
          check: Called with meta before the trees are read; raises when they do not belong to this run.
        """
        manager = self._best if best else self._recent
        steps = sorted(manager.all_steps(), reverse=True)
        wanted = as_stored(target)
        for step in steps:
            folder = self._folder(manager, step)
            if reason := checksums.damaged(folder):
                self._skip(folder, reason)
                continue
            meta = self._read(manager, step, meta=ocp.args.JsonRestore())
            if meta is None:
                continue
            check(meta)
            stored = self._layouts(manager, step, abstract(wanted))
            trees = self._read(manager, step, trees=ocp.args.StandardRestore(stored))
            if trees is not None:
                if _form(trees.get(WINDOW)) != _form(wanted.get(WINDOW)):
                    trees = {**trees, WINDOW: wanted[WINDOW]}
                return step, from_stored(target, jax.tree.map(_laid_out, trees, wanted)), meta
        if steps:
            raise ValueError(
                f"no checkpoint under {self._dir} can be read (steps {steps}: "
                f"{next(reversed(self._damaged.values()))}); "
                "restore one from a copy, or use a new --workdir"
            )
        return None

    def _layouts(self, manager: ocp.CheckpointManager, step: int, target: Tree) -> Tree:
        """`target` with tables in the shapes they were saved in: packed where it is not, or the other way round."""
        try:
            found = _shapes(epath.Path(manager.directory) / str(step) / "trees")
            if _form(found.get(WINDOW)) != _form(target.get(WINDOW)):
                sharding = jax.tree.leaves(target[WINDOW])[0].sharding
                like = lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding)  # noqa: E731
                target = {**target, WINDOW: jax.tree.map(like, found[WINDOW])}
            saved = traverse_util.flatten_dict(found)
        except Exception:  # damaged: reading it says so
            return target
        leaves = traverse_util.flatten_dict(target, keep_empty_nodes=True)
        return traverse_util.unflatten_dict(
            {
                k: _stored_as(x, saved[k].shape) if k in saved and "tables" in k else x
                for k, x in leaves.items()
            }
        )

    def _read(self, manager: ocp.CheckpointManager, step: int, **item) -> Any:
        try:
            return manager.restore(step, args=ocp.args.Composite(**item))[next(iter(item))]
        except Exception as e:  # Orbax raises many kinds for a damaged file
            reason = f"{type(e).__name__}: {e}".splitlines()[0][:200]
            self._skip(self._folder(manager, step), reason)
            return None

    def _skip(self, folder: epath.Path, reason: str) -> None:
        self._damaged[folder.parent.name, int(folder.name)] = reason
        logging.warning(
            "checkpoint %s cannot be read (%s); trying the one before it", folder, reason
        )

    def wait(self) -> None:
        for manager in (self._recent, self._best):
            manager.wait_until_finished()
            checksums.seal(self._dir / manager.directory.name)

    def _folder(self, manager: ocp.CheckpointManager, step: int) -> epath.Path:
        """Of a step, as its user names it."""
        return self._dir / manager.directory.name / str(step)

    def close(self) -> None:
        self.wait()
        self._recent.close()
        self._best.close()
        self._open.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
        elif not issubclass(kind, KeyboardInterrupt):  # a second Ctrl-C ends at once
            closing = threading.Thread(target=self._close_after_error, daemon=True)
            closing.start()
            # Saving takes all processes, and others may be dead.
            closing.join(None if jax.process_count() == 1 else LAST_SECONDS)

    def _close_after_error(self) -> None:
        try:
            self.close()
        except Exception as e:  # the error that led here is the one to raise
            logging.warning("the checkpoint that was being saved is lost (%s)", e)


def _form(tree: Tree) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes by path, of records and of the dicts that they are saved as."""
    name = lambda k: str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))  # noqa: E731
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(map(name, path)): tuple(x.shape) for path, x in leaves}


def _stored_as(target: jax.ShapeDtypeStruct, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """What to read for `target` where a table was saved as `shape`; any other difference is Orbax's to report."""
    if shape == target.shape or len(shape) != 2 or math.prod(shape) != math.prod(target.shape):
        return target
    sharding = target.sharding
    try:
        sharding.shard_shape(shape)
    except ValueError:  # the devices do not divide the stored rows
        sharding = jax.NamedSharding(sharding.mesh, jax.P())
    return jax.ShapeDtypeStruct(shape, target.dtype, sharding=sharding)


def _laid_out(x: Any, target: Any) -> Any:
    if x.shape == target.shape:
        return x
    return jax.jit(lambda x: x.reshape(target.shape), out_shardings=target.sharding)(x)


def saved_steps(directory: epath.PathLike, *, best: bool = False) -> list[int]:
    """Steps of a run's checkpoints in `<workdir>/checkpoints`, ascending; none where it has none."""
    root = epath.Path(directory) / ("best" if best else "recent")
    return sorted(
        int(p.name) for p in (root.iterdir() if root.exists() else ()) if p.name.isdigit()
    )


def read(directory: epath.PathLike, *, best: bool = False) -> tuple[Tree, dict]:
    """{"trees": Trees, ...} (host arrays, tables unpacked) and meta of a run, without knowing its shapes."""
    root = epath.Path(directory).absolute() / ("best" if best else "recent")
    if not root.exists():
        raise FileNotFoundError(
            f"{root} does not exist; name the workdir of a run that has saved a checkpoint"
        )
    steps = saved_steps(directory, best=best)
    if not steps:
        raise FileNotFoundError(f"{root} holds no checkpoint yet; let that run save one first")
    folder = root / str(steps[-1])
    if reason := checksums.damaged(folder):
        raise ValueError(f"{reason}; restore {folder} from a copy, or delete it for the one before")
    cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    with named_plainly(folder) as plain, ocp.StandardCheckpointer() as reader:
        target = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=cpu), _shapes(plain / "trees")
        )
        stored = reader.restore(plain / "trees", target)
    meta = json.loads((folder / "meta" / "metadata").read_text())
    rows = {s["name"]: s["rows"] for s in meta.get("schema", {}).get("id_spaces", ())}
    trees = Trees(**stored["trees"])
    for path, value in trees.tables.items():
        held = rows.get(path.split("/")[-1], len(value["rows"]))
        width = value["rows"].size // held
        trees.tables[path] = {n: lanes.logical(x, width) for n, x in value.items()}
    return {**stored, "trees": trees}, meta


def shapes(directory: epath.PathLike) -> Tree | None:
    """Shapes and dtypes of the newest checkpoint that says them, as stored; None where there is none."""
    root = epath.Path(directory).absolute() / "recent"
    for step in reversed(saved_steps(directory)):
        try:
            with named_plainly(root / str(step)) as plain:
                return _shapes(plain / "trees")
        except Exception as e:  # damaged: reading it says so, and falls back as this does
            logging.warning("checkpoint %s does not say its shapes (%s)", root / str(step), e)
    return None


def _shapes(folder: epath.Path) -> Tree:
    """What was saved there. A checkpointer would warn that an item has no metadata of a whole checkpoint."""
    found = ocp.StandardCheckpointHandler().metadata(folder)
    return getattr(found, "tree", found)
