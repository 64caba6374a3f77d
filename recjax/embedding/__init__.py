"""Embedding tables: init, gather the rows a batch needs, update just those.

    tables = init(rng, system.tables, schema)
    rows = gather(system.tables, tables, batch)                  # {path: [S, U, d]}
    tables = update(system.tables, tables, batch, row_grads)     # inside a step that donates `tables`

This package is the only place that knows how a table is laid out or placed. Row PAD is zero and stays zero.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from recjax.embedding.optimizers import OPTIMIZERS
from recjax.schema import PAD, Schema, SchemaError, Table

Tables = dict[str, dict[str, jax.Array]]


def check(tables: Sequence[Table]) -> None:
    """Raises SchemaError on an unknown optimizer or two tables of one path."""
    seen = set()
    for t in tables:
        if not t.frozen and t.optimizer not in OPTIMIZERS:
            raise SchemaError(
                f"table {t.path!r}: unknown optimizer {t.optimizer!r}; use frozen or one of {', '.join(OPTIMIZERS)}"
            )
        if t.path in seen:
            raise SchemaError(f"table {t.path!r} is declared twice; give each model an owner")
        seen.add(t.path)


def init(rng: jax.Array, tables: Sequence[Table], schema: Schema) -> Tables:
    """Initial rows N(0, init_scale) and row-optimizer state: {path: {"rows": [V, d], ...}}."""
    check(tables)
    out = {}
    for key, t in zip(jax.random.split(rng, max(len(tables), 1)), tables, strict=False):
        shape = (schema.space(t.id_space).rows, t.dim)
        rows = (jax.random.normal(key, shape) * t.init_scale).at[PAD].set(0).astype(t.dtype)
        out[t.path] = {"rows": rows, **({} if t.frozen else OPTIMIZERS[t.optimizer].init(rows))}
    return out


def gather(tables: Sequence[Table], values: Tables, batch: dict) -> dict[str, jax.Array]:
    """Rows of the batch's unique ids, {path: [S, U, d]}; unused slots hold some in-range row nobody reads."""
    return {
        t.path: values[t.path]["rows"].at[batch["ids"][t.id_space]].get(mode="clip") for t in tables
    }


def _merge_shards(ids: jax.Array, grads: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """[S, U] ids and [S, U, d] gradients -> [N] ids, each once, and their summed gradients, N = S * U."""
    n = ids.size
    flat = ids.reshape(n)
    order = jnp.argsort(flat)
    ids_sorted = flat[order]
    slot = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), ids_sorted[1:] != ids_sorted[:-1]]))
    grads = jax.ops.segment_sum(grads.reshape(n, -1)[order], slot, n, indices_are_sorted=True)
    # Slots past the last distinct id keep an out-of-range id of their own, larger than any filler.
    unique = (rows + n + jnp.arange(n, dtype=flat.dtype)).at[slot].set(ids_sorted)
    return unique, grads


def update(
    tables: Sequence[Table],
    values: Tables,
    batch: dict,
    grads: dict[str, jax.Array],
    lr_scale: dict[str, jax.Array] | float = 1.0,
) -> Tables:
    """One row-optimizer step on the touched rows.

    Args:
      tables: Declarations.
      values: From `init`; donate them to the step, or every step copies the tables.
      batch: Its `ids` name the touched rows.
      grads: path -> [S, U, d], with respect to `gather`'s result.
      lr_scale: Multiplies `Table.lr` (schedule), one number or one per path.

    Returns:
      Tables with the touched rows changed. PAD rows and frozen tables are returned as they were.
    """
    out = dict(values)
    for t in tables:
        if not t.frozen:
            scale = lr_scale[t.path] if isinstance(lr_scale, dict) else lr_scale
            out[t.path] = _update_one(
                t, values[t.path], batch["ids"][t.id_space], grads[t.path], scale
            )
    return out


def _update_one(t: Table, value: dict, ids: jax.Array, grads: jax.Array, scale) -> dict:
    shards, rows = ids.shape[0], value["rows"].shape[0]
    if shards == 1:
        ids, grads = ids[0], grads[0]
    else:
        ids, grads = _merge_shards(ids, grads, rows)
    # CPU and TPU profit from the ascending order; XLA:GPU is slower when told (xla #22233).
    hints = dict(unique_indices=True, indices_are_sorted=jax.default_backend() != "gpu")
    old = jax.tree.map(lambda x: x.at[ids].get(mode="clip", **hints), value)
    before = old.pop("rows").astype(jnp.float32)
    grads = grads.astype(jnp.float32)
    if t.l2:
        grads = grads + t.l2 * before
    after, state = OPTIMIZERS[t.optimizer].update(before, old, grads, t.lr * scale)
    after = jnp.where((ids == PAD)[:, None], before, after).astype(value["rows"].dtype)
    return jax.tree.map(
        lambda x, new: x.at[ids].set(new.astype(x.dtype), mode="drop", **hints),
        value,
        {"rows": after, **state},
    )


def num_parameters(values: Tables) -> int:
    """Rows times width over all tables."""
    return int(sum(np.prod(v["rows"].shape) for v in values.values()))
