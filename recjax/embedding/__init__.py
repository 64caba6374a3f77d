"""Embedding tables: init, gather the rows a batch needs, update just those, on one device or a pod.

    p = plan(system.tables, schema, mesh, skew, rules)           # None: one device
    tables = init(rng, system.tables, schema, p)
    batch = exchange_ids(batch, p)                               # once a step
    rows = gather(system.tables, tables, batch, p)               # {path: [S, U, d]}
    tables = update(system.tables, tables, batch, row_grads, plan=p)  # inside a step that donates `tables`

This package is the only place that knows how a table is laid out or placed. Row PAD is zero and stays zero.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from recjax.batch import Batch
from recjax.embedding import exchange, lanes
from recjax.embedding.exchange import Merged
from recjax.embedding.optimizers import OPTIMIZERS, row_mean, stochastic_round
from recjax.embedding.placement import RULES, CapacityError, Plan, Skew, measure, plan
from recjax.schema import PAD, Schema, SchemaError, Table

__all__ = [
    "CapacityError", "Merged", "Plan", "RULES", "Skew", "Tables", "apply", "check", "exchange_ids", "gather", "init",
    "measure", "merge", "num_parameters", "plan", "reset", "update",
]  # fmt: skip

Tables = dict[str, dict[str, jax.Array]]


def check(tables: Sequence[Table]) -> None:
    """Raises SchemaError on an unknown optimizer, sums that begin below 0, or two tables of one path."""
    seen = set()
    for t in tables:
        if not t.frozen and t.optimizer not in OPTIMIZERS:
            raise SchemaError(
                f"table {t.path!r}: unknown optimizer {t.optimizer!r}; use frozen or one of {', '.join(OPTIMIZERS)}"
            )
        if not t.accumulator >= 0:
            raise SchemaError(f"table {t.path!r}: accumulator={t.accumulator!r} is below 0")
        if t.path in seen:
            raise SchemaError(f"table {t.path!r} is declared twice; give each model an owner")
        seen.add(t.path)


def init(
    rng: jax.Array, tables: Sequence[Table], schema: Schema, plan: Plan | None = None
) -> Tables:
    """Initial rows N(0, init_scale) and row-optimizer state: {path: {"rows": [V, d], ...}}, placed as planned."""
    check(tables)
    out = {}
    for key, t in zip(jax.random.split(rng, max(len(tables), 1)), tables, strict=False):
        k = 1 if plan is None else plan.parts(t)
        out[t.path] = _init_table(key, t, schema.space(t.id_space).rows, k)
    if plan is not None and plan.devices > 1:
        out = jax.lax.with_sharding_constraint(out, plan.shardings(out))
    return out


def _init_table(key: jax.Array, t: Table, rows: int, k: int) -> dict:
    """One table, k logical rows in a physical one. Random bits depend on an element's number alone, not on the shape."""
    value = jax.random.normal(key, (rows // k, k * t.dim)) * t.init_scale
    value = value.at[PAD, : t.dim].set(0).astype(t.dtype)
    if t.frozen:
        return {"rows": value}
    wide = OPTIMIZERS[t.optimizer].init(value, t.accumulator)
    # numbers a row holds one of are counted by logical rows (the reshape is never computed: they are constants)
    narrow = OPTIMIZERS[t.optimizer].init(lanes.logical(value, t.dim), t.accumulator)
    return {"rows": value, **{n: x if x.ndim == 2 else narrow[n] for n, x in wide.items()}}


def exchange_ids(batch: Batch, plan: Plan | None = None) -> Batch:
    """The batch with each device's ids where rows are looked up; once a step, so that they travel once."""
    return batch if plan is None else exchange.exchange_ids(plan, batch)


def gather(
    tables: Sequence[Table], values: Tables, batch: Batch, plan: Plan | None = None
) -> dict[str, jax.Array]:
    """Rows of the batch's unique ids, {path: [S, U, d]}; unused slots hold some in-range row nobody reads."""
    if plan is not None and plan.devices > 1 and tables:
        return exchange.gather(plan, tables, values, batch)
    return {
        t.path: lanes.read(values[t.path]["rows"], batch["ids"][t.id_space], t.dim) for t in tables
    }


def merge(
    tables: Sequence[Table], batch: Batch, grads: dict[str, jax.Array], plan: Plan | None = None
) -> dict[str, Merged]:
    """Row gradients summed over the shards, at the owners of the rows: path -> (ids [N], grads [N, d]).

    Their norm is the norm of the table's gradient: each row counts once and PAD not at all.
    """
    trained = [t for t in tables if not t.frozen]
    real = {t.path: (batch["ids"][t.id_space] != PAD)[..., None] for t in trained}
    grads = {p: jnp.where(keep, grads[p].astype(jnp.float32), 0) for p, keep in real.items()}
    if plan is not None and plan.devices > 1 and trained:
        return exchange.merge(plan, trained, batch, grads)
    return {t.path: _merge_local(t, batch["ids"][t.id_space], grads[t.path]) for t in trained}


def _merge_local(t: Table, ids: jax.Array, grads: jax.Array) -> Merged:
    if ids.shape[0] == 1:
        return Merged(ids[0], grads[0])
    # fillers lie past the table; so must what the merge puts behind the last id
    return exchange.merge_duplicates(ids, grads, np.iinfo(np.int32).max - 2 * ids.size)


def apply(
    tables: Sequence[Table],
    values: Tables,
    merged: dict[str, Merged],
    rates: Mapping[str, jax.Array | float] | None = None,
    plan: Plan | None = None,
    rng: jax.Array | None = None,
) -> tuple[Tables, dict[str, jax.Array]]:
    """One row-optimizer step on the touched rows.

    Args:
      tables: Declarations.
      values: From `init`; donate them to the step, or every step copies the tables.
      merged: From `merge`.
      rates: Learning rate of each table; None: its `Table.lr`.
      plan: As for `init`.
      rng: For the stochastic rounding of bfloat16 tables, another each step.

    Returns:
      Tables with the touched rows changed (PAD rows and frozen tables are returned as they were), and of each trained
      table the sum of squares [] by which its rows have changed.
    """
    trained = [t for t in tables if not t.frozen]
    rounded = [t.path for t in trained if jnp.dtype(t.dtype) == jnp.bfloat16]
    if rounded and rng is None:
        raise ValueError(f"table {rounded[0]!r} is bfloat16: give apply an rng for its rounding")
    rng = jax.random.key(0) if rng is None else rng
    rate = {t.path: jnp.float32(t.lr if rates is None else rates[t.path]) for t in trained}
    if plan is not None and plan.devices > 1 and trained:
        changed = exchange.apply(plan, trained, values, merged, rate, rng, _step)
    else:
        changed = {
            t.path: _step(t, values[t.path], merged[t.path], rate[t.path], rng) for t in trained
        }
    after = {path: value for path, (value, _) in changed.items()}
    return values | after, {path: moved for path, (_, moved) in changed.items()}


def update(
    tables: Sequence[Table],
    values: Tables,
    batch: Batch,
    grads: dict[str, jax.Array],
    rates: Mapping[str, jax.Array | float] | None = None,
    plan: Plan | None = None,
    rng: jax.Array | None = None,
) -> Tables:
    """`merge` and `apply`: gradients [S, U, d] with respect to `gather`'s result change the rows they came from."""
    return apply(tables, values, merge(tables, batch, grads, plan), rates, plan, rng)[0]


def _step(
    t: Table,
    value: dict,
    merged: Merged,
    rate: jax.Array,
    rng: jax.Array,
    *,
    first_row: jax.Array | int = 0,
    has_padding: jax.Array | bool = True,
    first_column: jax.Array | int = 0,
    mean: Callable = row_mean,
    ascending: bool = True,
) -> tuple[dict, jax.Array]:
    """One table, or one device's block of it that begins at (first_row, first_column); and its rows' squared change."""
    ids, grads = merged
    # CPU and TPU profit from the ascending order; XLA:GPU is slower when told (xla #22233).
    hints = dict(
        unique_indices=True, indices_are_sorted=ascending and jax.default_backend() != "gpu"
    )
    dim = grads.shape[1]
    old = jax.tree.map(lambda x: lanes.read(x, ids, dim, **hints), value)
    before = old.pop("rows").astype(jnp.float32)
    if t.l2:
        grads = grads + t.l2 * before
    optimizer = OPTIMIZERS[t.optimizer]
    after, state = optimizer.update(before, old, grads, rate, mean=mean, l1=t.l1)
    after = jnp.where(((ids == PAD) & has_padding)[:, None], before, after)
    if value["rows"].dtype == jnp.bfloat16:
        after = stochastic_round(
            after, rng, ids + first_row, first_column + jnp.arange(after.shape[-1])
        )
    written = ids < value["rows"].size // dim
    moved = jnp.sum(jnp.square(jnp.where(written[:, None], after - before, 0)), dtype=jnp.float32)
    new = {"rows": after, **state}
    return jax.tree.map(
        lambda x, new: lanes.write(x, ids, new.astype(x.dtype), **hints), value, new
    ), moved


def reset(
    tables: Sequence[Table],
    values: Tables,
    fresh: Tables,
    ids: Mapping[str, np.ndarray],
    plan: Plan | None = None,
) -> Tables:
    """`values` with the rows of some ids, and their optimizer state, as in `fresh`: as `init` made them.

    Args:
      tables: Declarations.
      values, fresh: Alike; on the mesh, if there is a plan.
      ids: id space -> int32 [n].
      plan: As for `init`.
    """

    def one(x: jax.Array, new: jax.Array, gone: jax.Array) -> jax.Array:
        rows = lambda a: a.reshape(gone.size, -1)  # noqa: E731
        return jnp.where(gone[:, None], rows(new), rows(x)).reshape(x.shape)

    def body(values: Tables, fresh: Tables, gone: dict) -> Tables:
        out = {
            p: jax.tree.map(lambda x, f, p=p: one(x, f, gone[p]), values[p], fresh[p]) for p in gone
        }
        return jax.lax.with_sharding_constraint(out, plan.shardings(out)) if plan else out

    gone = {}
    for t in tables:
        if len(ids.get(t.id_space, ())):
            gone[t.path] = np.zeros(values[t.path]["rows"].size // t.dim, bool)  # packed or not
            gone[t.path][ids[t.id_space]] = True
    return values | (jax.jit(body)(values, fresh, gone) if gone else {})


def num_parameters(values: Tables) -> int:
    """Rows times width over all tables."""
    return int(sum(np.prod(v["rows"].shape) for v in values.values()))
