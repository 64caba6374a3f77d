"""Every item once: what functions of cadence "item" make of a data set's whole catalogue, at export.

They are computed from the quantised rows, the ones serving reads, and lie in the artifact's derived.npz under its one
stamp: "<function>/<output>", the function's [B, C, ...] (or [B, ..., C]) without B and with C the catalogue's V items, and
"key/<feature>" int32 [V], which item each of the V places is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from recjax.data.loading.batches import Assembler, Layout, Part
from recjax.data.store.prepared import feature_dtype
from recjax.schema import NUM_RESERVED, Feature, Schema
from recjax.serving.files import ArtifactError
from recjax.system import System
from recjax.trees import Trees

SIZE = 4099  # items at a time; no other axis is so long
KEY = "key/"


def key_feature(schema: Schema) -> Feature:
    """The candidate's own id: of the candidate ids, the one with the largest vocabulary."""
    ids = schema.select("candidate", kind="id")
    if not ids:
        raise ArtifactError("the schema has no candidate id, so there is no catalogue of items")
    return max(ids, key=lambda f: schema.space(f.id_space).size)


def items(prepared: Any, schema: Schema) -> dict[str, np.ndarray]:
    """Candidate features [V, ...] of every item that was a candidate and has an id of its own (those too rare for the
    vocabulary share one, and cannot be told apart), by rising id, as its split's last block has it.

    Args:
      prepared: `recjax.data.store.prepared.Prepared`.
      schema: Of the batches; features it lacks are left out.
    """
    names = [f.name for f in schema.select("candidate")]
    key, parts = key_feature(schema).name, {name: [] for name in names}
    for split in prepared.splits:
        for i in range(prepared.blocks(split)):
            block = prepared.block(split, i)
            ids, first = np.unique(block[key], return_index=True)
            for name in names:
                parts[name].append(block[name][first[ids >= NUM_RESERVED]])
    columns = {name: np.concatenate(parts[name][::-1]) for name in names}
    _, last = np.unique(columns[key], return_index=True)
    return {name: x[last] for name, x in columns.items()}


def derive(system: System, prepared: Any, batch: Mapping[str, Any]) -> Callable | None:
    """For `export_artifact(derive=...)`: trees -> arrays of every item; None where no function has cadence "item".

    Args:
      system: Its functions of cadence "item" return arrays with the candidates on one axis.
      prepared: Where the items are.
      batch: One of the run's, for history lengths.
    """
    functions = {name: e for name, e in system.exports.items() if e.cadence == "item"}
    if not functions:
        return None
    catalogue = items(prepared, system.schema)
    history = {name: x.shape[1] for name, x in batch["mask"].items()}
    assembler = Assembler(Layout(system.schema, 1, history, SIZE))

    def arrays(trees: Trees) -> dict[str, np.ndarray]:
        key = key_feature(system.schema).name
        out: dict[str, np.ndarray] = {KEY + key: catalogue[key].astype(np.int32)}
        for name, export in functions.items():
            call, parts, axes = jax.jit(export.fn), {}, {}
            for at in range(0, len(catalogue[key]), SIZE):
                some = {n: x[at : at + SIZE] for n, x in catalogue.items()}
                count = len(some[key])
                one = assembler.build([_part(system.schema, some, count)])
                answer = call(trees.params(_rows(system, trees.tables, one)), one)
                for output, x in answer.items():
                    axes[output] = next(i for i, n in enumerate(x.shape) if i and n == SIZE)
                    part = np.take(np.asarray(x), np.arange(count), axes[output])[0]
                    parts.setdefault(output, []).append(part)
            out |= {f"{name}/{n}": np.concatenate(x, axes[n] - 1) for n, x in parts.items()}
        return out

    return arrays


def _part(schema: Schema, some: Mapping[str, np.ndarray], count: int) -> Part:
    """One request with these candidates and nothing else: what is no item's is zero, and not read."""
    columns: dict[str, np.ndarray] = {"time": np.ones(count, np.int64), **some}
    for f in schema.features:
        if not f.list and f.role not in ("candidate", "label"):
            dtype, shape = feature_dtype(f)
            columns[f.name] = np.zeros((count, *shape), dtype)
    timelines: dict[str, dict[str, np.ndarray]] = {}
    for name in schema.lists:
        own = [f for f in schema.features if f.list == name]
        if any(f.role == "target" for f in own):
            continue
        timelines[name] = {"time": np.zeros(1, np.int64)}
        for f in own:
            dtype, shape = feature_dtype(f)
            timelines[name][f.name] = np.zeros((1, *shape), dtype)
        columns |= {
            f"{name}/end": np.zeros(count, np.int64),
            f"{name}/count": np.zeros(count, np.int32),
        }
    return Part(columns, timelines, np.array([count]))


def _rows(system: System, tables: Mapping[str, Any], batch: Mapping[str, Any]) -> dict:
    """Rows of the batch's ids; zeros of tables that no function reads."""
    out = {}
    for t in system.tables:
        ids = batch["ids"].get(t.id_space, np.zeros((1, 1), np.int32))
        if t.path in tables:
            whole = tables[t.path]["rows"]
            out[t.path] = whole[np.minimum(ids, len(whole) - 1)]
        else:
            out[t.path] = np.zeros((*ids.shape, t.dim), np.float32)
    return out
