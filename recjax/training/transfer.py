"""The trees a run begins with: fresh, from earlier runs (`init_from`), or those of a run that goes on with later data
(`continue_from`); and the check that a run goes on with the data it began with.

`config.init_from = [(run, source regex, target), ...]`: every source path ("dense/...", "state/...",
"tables/<path>/rows") that the regex matches whole is copied to the target (groups as in re.sub). A target under
"frozen/" makes the frozen tree; any other must exist. Rows are copied as they are when both vocabularies are the
same, else by key.
"""

import dataclasses
import json
import re
from typing import Any

from absl import logging
from etils import epath
from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from recjax import embedding
from recjax.batch import Batch
from recjax.data.loading import stages
from recjax.data.loading.protocol import Data
from recjax.embedding import lanes
from recjax.runtime import checkpoint
from recjax.runtime import mesh as meshes
from recjax.runtime.run import RunError, read_json
from recjax.schema import NUM_RESERVED, Schema
from recjax.system import System
from recjax.training.step import init_trees, zero_window
from recjax.training.window import Window
from recjax.trees import Trees


def describe(data, config: ConfigDict) -> dict:
    """What a checkpoint says about its data: schema, identity and vocabulary hashes (JSON)."""
    return dict(
        schema=json.loads(data.schema.to_json()),
        identity=data.identity,
        vocabulary={s.name: data.vocabulary_hash(s.name) for s in data.schema.id_spaces},
        seed=config.seed,
    )


def check_data(meta: dict, data, where: epath.PathLike) -> None:
    """Raises when the data's schema or vocabularies are not those the checkpoint was trained on."""
    data.schema.check_same(
        Schema.from_json(json.dumps(meta["schema"])), f"the checkpoint in {where}"
    )
    for space, digest in meta["vocabulary"].items():
        if data.vocabulary_hash(space) != digest:
            raise RunError(
                f"the vocabulary of id space {space!r} is not the one the checkpoint in {where} was trained with; "
                "use that run's data, or start a new --workdir with init_from, which maps rows by key"
            )


def check_resumed(meta: dict, data, where: epath.PathLike) -> None:
    """As `check_data`; raises also when a run that goes on would read other data than it began with."""
    check_data(meta, data, where)
    began = meta.get("identity", {})
    if began.get("hash") is not None and began["hash"] != data.identity.get("hash"):
        raise RunError(
            f"the run in {where} began with data {began['hash']!r}, but this command opens data "
            f"{data.identity.get('hash')!r}; give the data it began with (data.dir: they may have moved), or start a "
            "new --workdir"
        )
    if began.get("vectors", {}) != data.identity.get("vectors", {}):
        raise RunError(
            f"the run in {where} began with other item vectors (data.vectors) than lie beside the data now; make them "
            "again as they were, or start a new --workdir"
        )


def asked_splits(config: ConfigDict) -> list[tuple[str, str]]:
    """(key, split) of all that training with a config reads."""
    during = config.eval.every or config.eval.at_examples  # else eval.splits is not read
    asked = {
        "data.train": (config.data.train,),
        "eval.splits": config.eval.splits if during else (),
        "eval.final": config.eval.final,
    }
    return [(key, split) for key, splits in asked.items() for split in splits]


def check_stages(config: ConfigDict, data: Data, system: System) -> None:
    """Raises BatchError where a system wants its stages apart and the data's share a window of time."""
    if system.stages_apart and hasattr(data, "prepared"):
        for split in dict.fromkeys(split for _, split in asked_splits(config)):
            stages.check_stages(data.prepared, split)


def check_splits(config: ConfigDict, data) -> None:
    """Raises RunError when the config names a split that the data lack: now, not after the training."""
    for key, split in asked_splits(config):
        if split not in data.splits:
            raise RunError(
                f"{key} names the split {split!r}, but the data have {', '.join(data.splits)}; "
                f"set {key} to what they have, or prepare them with that split"
            )


def go_on(fresh: Trees, window: Window, system: System, config: ConfigDict, data, plan) -> Trees:
    """Trees of the last checkpoint of `config.continue_from`; rows whose ids mean another value now are fresh.

    Args:
      fresh, window: From `start`.
      system, config, data, plan: Of the run that begins.

    Raises:
      RunError: There is no checkpoint, or `data` does not extend the data it was trained on.
    """
    run, gone = epath.Path(config.continue_from), {}
    if not (run / "checkpoints").exists():
        raise RunError(f"continue_from: {run} has no checkpoints; name the workdir of a run")

    def check(meta: dict) -> None:
        _check_grown(meta, data, run)
        gone.update(_changed_ids(meta, data, run))

    saved = checkpoint.Checkpoints(run / "checkpoints")
    restored = saved.restore(dict(trees=fresh, sums=window), check=check)
    saved.close()
    if restored is None:
        raise RunError(f"continue_from: {run} has saved no checkpoint yet; let it save one first")
    step, saved, _ = restored
    trees = saved["trees"]
    logging.info(
        "going on from step %d of %s; rows begun anew: %s",
        step,
        run,
        {s: len(x) for s, x in gone.items()} or "none",
    )
    tables = embedding.reset(system.tables, trees.tables, fresh.tables, gone, plan)
    return trees.replace(tables=tables)


def _check_grown(meta: dict, data, run: epath.PathLike) -> None:
    """Raises unless the schemas differ in the sizes of vocabularies only."""
    old = Schema.from_json(json.dumps(meta["schema"]))
    sizes = {s.name: s.size for s in data.schema.id_spaces}
    for s in old.id_spaces:
        if s.name in sizes and data.schema.space(s.name).rows != s.rows:
            raise RunError(
                f"continue_from: id space {s.name!r} has {data.schema.space(s.name).rows} rows and in {run} {s.rows}; "
                "prepare the data with extends, the directory that run was trained on"
            )
    spaces = [dataclasses.replace(s, size=sizes.get(s.name, s.size)) for s in old.id_spaces]
    data.schema.check_same(dataclasses.replace(old, id_spaces=tuple(spaces)), f"{run}")


def _changed_ids(meta: dict, data, run: epath.PathLike) -> dict[str, np.ndarray]:
    """id space -> ids that were given to a value after the run's vocabulary."""
    out = {}
    for space, digest in meta["vocabulary"].items():
        if digest == data.vocabulary_hash(space):
            continue
        history = data.identity.get("vocabulary_history", {}).get(space, [])
        if digest not in history:
            raise RunError(
                f"continue_from: the vocabulary of id space {space!r} does not go on from that of {run}; prepare the "
                "data with extends, the directory that run was trained on, or use init_from, which maps rows by key"
            )
        frame = data.vocabulary(space)
        out[space] = frame.filter(frame["since"] > history.index(digest))["id"].to_numpy()
    return out


def _remap(rows: np.ndarray, target: np.ndarray, source_vocab, target_vocab) -> np.ndarray:
    """Rows of `target` overwritten by those of `source` that carry the same key; reserved rows are copied."""
    out = np.array(target)
    out[:NUM_RESERVED] = rows[:NUM_RESERVED]
    both = target_vocab.join(source_vocab, on="value", suffix="_source")
    out[both["id"].to_numpy()] = rows[both["id_source"].to_numpy()]
    logging.info("%d of %d rows found by key", both.height, target_vocab.height)
    return out


class _Source:
    """A finished run's trees, flat, and its vocabularies."""

    def __init__(self, run: epath.Path):
        saved, self.meta = checkpoint.read(run / "checkpoints")
        self.run = run
        self.leaves = {"/".join(k): v for k, v in _flatten(saved["trees"]).items()}

    def vocabulary(self, space: str):
        from recjax.data import open_data

        config = ConfigDict(read_json(self.run / "config.json"))
        return open_data(config.data).vocabulary(space)


def _flatten(trees: Trees, **how) -> dict[tuple[str, ...], Any]:
    """Leaves by path, the optimizer's left out."""
    parts = {k: x for k, x in trees.as_dict().items() if k != "opt"}
    return traverse_util.flatten_dict(parts, **how)


def _rows(source: _Source, path: str, value, target: str, old, system: System, data):
    """A table leaf for `target`: copied when the vocabularies agree, mapped by key otherwise."""
    table = next(t for t in system.tables if target.startswith(f"tables/{t.path}/"))
    space = path.split("/")[-2]
    if source.meta["vocabulary"].get(space) == data.vocabulary_hash(table.id_space):
        return value
    if not old.is_fully_addressable:
        old = multihost_utils.process_allgather(old, tiled=True)
    return _remap(
        np.asarray(value),
        lanes.logical(np.asarray(old), table.dim),
        source.vocabulary(space),
        data.vocabulary(table.id_space),
    )


def start(
    system: System,
    config: ConfigDict,
    data,
    workdir: epath.Path,
    example: Batch,
    plan: embedding.Plan,
) -> tuple[Trees, Window]:
    """(trees, window) a run begins with, placed on the plan's mesh; a checkpoint restores into their like.

    Args:
      system, config, data, workdir: Of the run.
      example: A batch on the devices.
      plan: Placement of the tables; all else is replicated.
    """
    trees = init_trees(system, config, example, plan)
    own = checkpoint.shapes(workdir / "checkpoints") if config.init_from else None
    if own is None:
        trees = apply(trees, system, config, data, workdir)
    else:  # the run's own checkpoint holds all of it; what it began from may be gone
        zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), own["trees"].get("frozen", {}))
        trees = trees.replace(frozen=zeros)
    trees = trees.replace(tables=with_vectors(trees.tables, system, data))
    window = zero_window(system, config, trees, example, plan)
    rest, window = jax.device_put((trees.replace(tables={}), window), meshes.replicated(plan.mesh))
    return rest.replace(tables=plan.place(trees.tables)), window


def with_vectors(tables: embedding.Tables, system: System, data) -> embedding.Tables:
    """`tables` with the data's vectors, of id spaces that have them (`IdSpace.vectors`)."""
    out = dict(tables)
    for t in system.tables:
        if system.schema.space(t.id_space).vectors:
            old = tables[t.path]["rows"]  # packed, perhaps: the same bytes
            vectors = jnp.asarray(data.vectors(t.id_space), old.dtype).reshape(old.shape)
            out[t.path] = {**tables[t.path], "rows": vectors}
    return out


def apply(trees: Trees, system: System, config: ConfigDict, data, workdir: epath.Path) -> Trees:
    """`trees` with everything `config.init_from` names copied in.

    Runs are paths, taken relative to `workdir` when they begin with "needs/".

    Raises:
      RunError: A rule that matches nothing, a target that does not exist, or a shape that differs.
    """
    leaves = _flatten(trees, keep_empty_nodes=True)
    keys = {"/".join(k): k for k in leaves}  # a table's path may hold a "/" itself
    for run, pattern, target in config.init_from:
        source = _Source(workdir / run if str(run).startswith("needs/") else epath.Path(run))
        matched = [p for p in source.leaves if re.fullmatch(pattern, p)]
        if not matched:
            raise RunError(
                f"init_from: {pattern!r} matches nothing in {run}; it has {sorted(source.leaves)[:8]} ..."
            )
        for path in matched:
            name, value = re.sub(pattern, target, path), source.leaves[path]
            if name.startswith("frozen/"):
                leaves[tuple(name.split("/"))] = jnp.asarray(value)
                continue
            if name not in keys:
                raise RunError(
                    f"init_from: target {name!r} (from {path!r}) does not exist in this model"
                )
            old = leaves[keys[name]]
            if name.startswith("tables/"):
                value = _rows(source, path, value, name, old, system, data)
                packed = value.ndim == 2 and value.size == old.size  # or not: the same rows
                value = value.reshape(old.shape) if packed else value
            if value.shape != old.shape:
                raise RunError(
                    f"init_from: {path!r} has shape {value.shape}, {name!r} has {old.shape}"
                )
            leaves[keys[name]] = jnp.asarray(value, old.dtype)
    if any(k[0] == "frozen" and len(k) > 1 for k in leaves):
        leaves.pop(("frozen",), None)  # it was empty
    return trees.replace(**traverse_util.unflatten_dict(leaves))
