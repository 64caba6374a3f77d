"""Lookups and row gradients across devices, in jax.shard_map: the partitioner would all-reduce whole tensors.

Ids go out once a step, rows come back, row gradients go to the owners, who merge the duplicates that different
devices sent. Tables of one width and type share one exchange; ids of all id spaces share one. Tables keep an array
each rather than being stacked: a stack would put a small table whole on one owner, while its own blocks are balanced
by the vocabulary, and checkpoints, artifacts and `init_from` name tables.

Axes: n devices, U unique ids of a shard, c capacity of a bucket, d width.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from recjax.batch import Batch
from recjax.embedding import lanes
from recjax.embedding.placement import Plan
from recjax.schema import Table

BY_ID = ("all_gather", "columns", "gather")  # exchanges that need everybody's ids


class Merged(NamedTuple):
    """Gradients by row: ids [N] each at most once (out of range: none), in the owner's numbering, and grads [N, d]."""

    ids: jax.Array
    grads: jax.Array

    def only_if(self, ok: jax.Array) -> "Merged":
        """The same where `ok`, and otherwise rows of no table: a step that is left out costs nothing more."""
        past = np.iinfo(np.int32).max - 2 * self.ids.size + jnp.arange(self.ids.size)
        return self._replace(ids=jnp.where(ok, self.ids, past.astype(self.ids.dtype)))


def merge_duplicates(ids: jax.Array, grads: jax.Array, rows: int) -> Merged:
    """Ids [...] and gradients [..., d] -> each id once, ascending, with its gradients summed; [N] and [N, d]."""
    n = ids.size
    flat = ids.reshape(n)
    order = jnp.argsort(flat)
    ids_sorted = flat[order]
    slot = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), ids_sorted[1:] != ids_sorted[:-1]]))
    grads = jax.ops.segment_sum(grads.reshape(n, -1)[order], slot, n, indices_are_sorted=True)
    # Slots past the last distinct id keep an out-of-range id of their own, larger than any filler.
    unique = (rows + n + jnp.arange(n, dtype=flat.dtype)).at[slot].set(ids_sorted)
    return Merged(unique, grads)


def _map(plan: Plan, fn: Callable, in_specs, out_specs, *args, check: bool = True):
    """`fn` on every device; `check` holds it to what out_specs say is the same on all of them.

    `exchange_ids` and `merge` cannot be held to it: they promise P() of what `all_gather` makes, whose result JAX
    takes to differ between devices.
    """
    return jax.shard_map(
        fn, mesh=plan.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check
    )(*args)


def _together(parts: dict, axis: int, exchange: Callable) -> dict:
    """One exchange for arrays that differ only in their size along `axis`, which it leaves as it is."""
    sizes = [x.shape[axis] for x in parts.values()]
    whole = exchange(jnp.concatenate(list(parts.values()), axis))
    edges = list(itertools.accumulate(sizes))[:-1]
    return dict(zip(parts, jnp.split(whole, edges, axis), strict=True))


def _grouped(parts: dict, axis: int, exchange: Callable) -> dict:
    """`_together` for each (width, type)."""
    groups: dict = {}
    for path, x in parts.items():
        groups.setdefault((x.shape[-1], x.dtype), {})[path] = x
    out = {}
    for group in groups.values():
        out |= _together(group, axis, exchange)
    return {path: out[path] for path in parts}


def exchange_ids(plan: Plan, batch: Batch) -> Batch:
    """The batch with what owners must know: `asked` and `everyone` of its `Exchange`.

    Call it once a step; `gather` and `merge` call it when it was not.
    """
    routed = batch.get("exchange", {})
    if "asked" in routed or plan.devices == 1 or "ids" not in batch:
        return batch
    _check_shards(plan, batch)
    send = routed.get("send", {})
    without = [s for s in plan.spaces("all_to_all") if s not in send]
    spaces = dict.fromkeys([*plan.spaces(*BY_ID), *without])
    ids = {s: batch["ids"][s] for s in spaces}

    def body(ids, send):
        swap = functools.partial(
            jax.lax.all_to_all, axis_name=plan.axis, split_axis=0, concat_axis=0, tiled=True
        )
        share = functools.partial(jax.lax.all_gather, axis_name=plan.axis, axis=0, tiled=True)
        asked = _together({s: x[0] for s, x in send.items()}, 1, swap) if send else {}
        return asked, _together(ids, 1, share) if ids else {}

    split, out = (P(plan.axis), P(plan.axis)), (P(plan.axis), P())
    asked, everyone = _map(plan, body, split, out, ids, send, check=False)
    return {**batch, "exchange": {**routed, "asked": asked, "everyone": everyone}}


def _check_shards(plan: Plan, batch: Batch) -> None:
    for space, ids in batch["ids"].items():
        if ids.shape[0] != plan.devices:
            raise ValueError(
                f"ids of {space!r} come in {ids.shape[0]} shards, the mesh has {plan.devices} devices; "
                f"ask the data for shards={plan.devices}"
            )


class _Local:
    """What a device knows inside shard_map: its number, its ids and what others ask of it."""

    def __init__(self, plan: Plan, parts: dict):
        self.plan, self.ids = plan, parts["ids"]
        self.asked, self.everyone = parts["asked"], parts["everyone"]
        self.starts = parts["starts"]
        self.index = jax.lax.axis_index(plan.axis)

    def path_of(self, t: Table) -> str:
        """A table's exchange; without `send` (a caller that did not route) all_to_all is all_gather."""
        e = self.plan.placed[t.path].exchange
        return "all_gather" if e == "all_to_all" and t.id_space not in self.asked else e

    def width(self, t: Table) -> int:
        """Columns of a table that I hold."""
        column = self.plan.placed[t.path].rule == "column"
        return t.dim // self.plan.devices if column else t.dim

    def slots(self, space: str) -> jax.Array:
        """[U], where the answer to each of my ids lies among the n * c answers."""
        capacity, starts = self.asked[space].shape[1], self.starts[space][0]  # [n + 1]
        mine = jnp.arange(self.ids[space].size, dtype=jnp.int32)
        owner = (starts[1:-1] <= mine[:, None]).sum(1, dtype=jnp.int32)
        return owner * capacity + mine - starts[owner]

    def mine(self, space: str) -> jax.Array:
        """Everyone's ids [n, U] in my numbering; those of other owners, and fillers, are one past my last row."""
        block = self.plan.block(space)
        local = self.everyone[space] - self.index * block
        return jnp.where((local >= 0) & (local < block), local, block)

    def swap(self, x: jax.Array, split: int = 0, concat: int = 0) -> jax.Array:
        return jax.lax.all_to_all(x, self.plan.axis, split, concat, tiled=True)


def _parts(plan: Plan, batch: Batch) -> tuple[dict, dict]:
    """What `_Local` needs, and its specs."""
    routed = batch["exchange"]
    parts = {k: routed.get(k, {}) for k in ("starts", "asked", "everyone")} | {"ids": batch["ids"]}
    return parts, {**dict.fromkeys(parts, P(plan.axis)), "everyone": P()}


def gather(plan: Plan, tables: Sequence[Table], values: dict, batch: Batch) -> dict[str, jax.Array]:
    """`embedding.gather` on a mesh: {path: [S, U, d]}, split over the devices."""
    batch = exchange_ids(plan, batch)
    parts, specs = _parts(plan, batch)
    rows = {t.path: values[t.path]["rows"] for t in tables}

    def body(rows, parts):
        at = _Local(plan, parts)
        out, paths = {}, {t.path: at.path_of(t) for t in tables}
        pick = lambda t, ids: lanes.read(rows[t.path], ids, at.width(t))  # noqa: E731
        of = lambda path: [t for t in tables if paths[t.path] == path]  # noqa: E731

        swapped = {t.path: pick(t, at.asked[t.id_space]) for t in of("all_to_all")}  # [n, c, d]
        swapped = _grouped(swapped, 1, at.swap)
        for t in of("all_to_all"):
            answers = swapped[t.path].reshape(-1, t.dim)
            out[t.path] = answers.at[at.slots(t.id_space)].get(mode="clip")[None]

        masked = {}
        for t in of("all_gather"):
            ids = at.mine(t.id_space)  # [n, U]
            found = (ids < plan.block(t.id_space))[..., None]
            masked[t.path] = jnp.where(found, pick(t, ids), 0)
        reduce = functools.partial(
            jax.lax.psum_scatter, axis_name=plan.axis, scatter_dimension=0, tiled=True
        )
        out |= _grouped(masked, 1, reduce)

        columns = {t.path: pick(t, at.everyone[t.id_space]) for t in of("columns")}  # [n, U, d/n]
        out |= _grouped(columns, 1, lambda x: at.swap(x, 0, 2))
        for t in tables:
            if t.path not in out:
                out[t.path] = pick(t, at.ids[t.id_space])
        return out

    return _map(plan, body, (plan.specs(rows), specs), P(plan.axis), rows, parts)


def merge(
    plan: Plan, tables: Sequence[Table], batch: Batch, grads: dict[str, jax.Array]
) -> dict[str, Merged]:
    """Row gradients [S, U, d] at the owners of the rows, duplicates summed: what each owner has to apply."""
    batch = exchange_ids(plan, batch)
    parts, specs = _parts(plan, batch)
    send = batch["exchange"].get("send", {})
    grads = {t.path: grads[t.path] for t in tables}

    def body(grads, send, parts):
        at, ready = _Local(plan, parts), {}
        paths = {t.path: at.path_of(t) for t in tables}
        of = lambda path: [t for t in tables if paths[t.path] == path]  # noqa: E731

        buckets = {t.path: _to_buckets(at, t, send, grads[t.path][0]) for t in of("all_to_all")}
        for path, g in _grouped(buckets, 1, at.swap).items():
            ready[path] = g
        shared = {t.path: grads[t.path] for t in [*of("all_gather"), *of("gather")]}
        ready |= _grouped(shared, 1, lambda x: jax.lax.all_gather(x, plan.axis, axis=0, tiled=True))
        columns = {t.path: grads[t.path] for t in of("columns")}
        ready |= _grouped(columns, 1, lambda x: at.swap(x, 2, 0))
        return {t.path: _merge_one(at, t, paths[t.path], ready, grads) for t in tables}

    out = {t.path: _merged_spec(plan, t) for t in tables}
    split = (P(plan.axis), P(plan.axis), specs)
    return _map(plan, body, split, out, grads, send, parts, check=False)


def _to_buckets(at: _Local, t: Table, send: dict, grads: jax.Array) -> jax.Array:
    """My gradients [U, d] by owner, [n, c, d]; zero in unused slots."""
    ids = send[t.id_space][0]  # [n, c]
    take = at.starts[t.id_space][0, :-1, None] + jnp.arange(ids.shape[1], dtype=jnp.int32)
    used = (ids < at.plan.block(t.id_space))[..., None]
    return jnp.where(used, grads.at[take].get(mode="clip"), 0)


def _merge_one(at: _Local, t: Table, path: str, ready: dict, grads: dict) -> Merged:
    rows, space = at.plan.rows[t.id_space], t.id_space
    if path == "sum":
        return _sum(at, rows, at.ids[space], grads[t.path])
    if path == "all_to_all":
        ids, g, rows = at.asked[space], ready[t.path], at.plan.block(space)
    elif path == "all_gather":
        ids, rows = at.mine(space), at.plan.block(space)
        g = jnp.where((ids < rows)[..., None], ready[t.path], 0)
    else:
        ids, g = at.everyone[space], ready[t.path]
    return merge_duplicates(ids, g, rows)


def _sum(at: _Local, rows: int, ids: jax.Array, grads: jax.Array) -> Merged:
    """A small replicated table: dense gradients and touch counts in one sum over the devices."""
    wide = jnp.concatenate([grads[0], jnp.ones_like(grads[0, :, :1])], -1)
    total = jnp.zeros((rows, wide.shape[1]), wide.dtype).at[ids[0]].add(wide, mode="drop")
    total = jax.lax.psum(total, at.plan.axis)
    every = jnp.arange(rows, dtype=ids.dtype)
    return Merged(jnp.where(total[:, -1] > 0, every, every + rows), total[:, :-1])


def apply(
    plan: Plan,
    tables: Sequence[Table],
    values: dict,
    merged: dict,
    rates: dict,
    rng,
    step: Callable,
) -> dict:
    """{path: (value, squared change)} of `step(table, value, merged, rate, rng, place...)`, run on every device's part."""
    specs = {t.path: _merged_spec(plan, t) for t in tables}
    values = {t.path: values[t.path] for t in tables}
    merged = {t.path: merged[t.path] for t in tables}

    def body(values, merged, rates, rng):
        index = jax.lax.axis_index(plan.axis)
        out = {}
        for t in tables:
            where = plan.placed[t.path]
            first = index * plan.block(t.id_space) if where.rule == "row" else 0
            keys: dict[str, Any] = dict(
                first_row=first,
                has_padding=index == 0 if where.rule == "row" else True,
                ascending=where.exchange != "sum",
            )
            if where.rule == "column":
                keys["first_column"] = index * (t.dim // plan.devices)
                keys["mean"] = lambda x, d=t.dim: jax.lax.psum(x.sum(-1), plan.axis) / d
            value, moved = step(t, values[t.path], merged[t.path], rates[t.path], rng, **keys)
            if where.rule in ("row", "column"):
                moved = jax.lax.psum(moved, plan.axis)
            out[t.path] = value, moved
        return out

    tables_specs = plan.specs(values)
    out_specs = {path: (spec, P()) for path, spec in tables_specs.items()}
    return _map(plan, body, (tables_specs, specs, P(), P()), out_specs, values, merged, rates, rng)


def _merged_spec(plan: Plan, t: Table) -> Any:
    """How `Merged` of a table is split: a pytree like it of partition specs."""
    rule = plan.placed[t.path].rule
    ids = P(plan.axis) if rule == "row" else P()
    grads: Any = P(None, plan.axis) if rule == "column" else ids
    return Merged(cast(Any, ids), grads)
