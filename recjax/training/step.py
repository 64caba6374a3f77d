"""The compiled programs of a run: initial trees, the training step, and what the compiler says of scoring."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from recjax import embedding
from recjax.batch import Batch
from recjax.system import Sums, System
from recjax.training import optim
from recjax.training.keys import stream
from recjax.trees import Params, Rows, Trees


def microbatch(batch: Batch, shards: int, index: jax.Array, count: int) -> Batch:
    """The index-th of `count` equal parts of every shard; unique ids and their exchange stay whole."""

    def part(x):
        b = x.shape[0] // (shards * count)
        x = x.reshape(shards, count, b, *x.shape[1:])
        return jax.lax.dynamic_index_in_dim(x, index, 1, False).reshape(shards * b, *x.shape[3:])

    whole = ("ids", "exchange")
    return {k: v if k in whole else jax.tree.map(part, v) for k, v in batch.items()}


def gradients(system: System, trees: Trees, rows: Rows, batch: Batch, rng: jax.Array, count: int):
    """Gradients of the mean loss over the batch with respect to (dense, rows), the new state and metric sums.

    With count > 1 microbatches the gradients are weighted by each one's examples, so they equal the whole
    batch's (batch statistics excepted: those are per microbatch).
    """

    def one(state, part, key):
        def loss(dense, rows):
            return system.loss(Params(dense, rows, state, trees.frozen), part, key)

        grads, (state, sums) = jax.grad(loss, argnums=(0, 1), has_aux=True)(trees.dense, rows)
        return grads, state, sums

    if count == 1:
        return one(trees.state, batch, rng)
    shards = next(iter(batch["ids"].values())).shape[0]

    def body(carry, i):
        before, total, weight = carry
        part = microbatch(batch, shards, i, count)
        grads, state, sums = one(before, part, jax.random.fold_in(rng, i))
        w = (part["weight"] * part["valid"]).sum()
        # The last batch of an epoch may leave a part nothing but padding: its batch statistics are 0 / 0.
        real = lambda x, otherwise: jnp.where(part["valid"].any(), x, otherwise)  # noqa: E731
        total = jax.tree.map(lambda t, g: t + real(w * g, 0.0), total, grads)
        state = jax.tree.map(real, state, before)
        return (state, total, weight + w), jax.tree.map(lambda x: real(x, 0.0), sums)

    # float32: many small parts would be lost in a bfloat16 sum
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (trees.dense, rows))
    (state, total, weight), sums = jax.lax.scan(body, (trees.state, zeros, 0.0), jnp.arange(count))
    grads = jax.tree.map(lambda t: t / jnp.maximum(weight, 1e-9), total)
    return grads, state, jax.tree.map(lambda s: s.sum(0), sums)


def make_step(
    system: System, config: ConfigDict, total_steps: int, plan: embedding.Plan | None = None
) -> Callable:
    """step(trees, sums, batch, key, step, lr_scale) -> (trees, sums). Jit it donating the first two.

    One step: gather the unique rows, differentiate with respect to dense parameters and rows, bring the row
    gradients to the rows' owners, clip per group, optax on the dense tree, row optimizers on the rows. The key is an argument, so that runs that differ only in
    their seed share one compiled program.
    """
    tx = optim.transform(config.opt)
    factor = optim.schedule(config.opt, total_steps)
    factors = optim.row_schedules(config, total_steps, system.tables)

    def step_fn(
        trees: Trees, sums: Sums, batch: Batch, key: jax.Array, step: jax.Array, lr_scale: jax.Array
    ):
        batch = embedding.exchange_ids(batch, plan)
        rows = embedding.gather(system.tables, trees.tables, batch, plan)
        (g_dense, g_rows), state, new = gradients(
            system, trees, rows, batch, stream(key, "loss", step), config.train.microbatches
        )
        merged = embedding.merge(system.tables, batch, g_rows, plan)
        g_rows = {p: m.grads for p, m in merged.items()}
        clip = optim.clip_scales(system, g_dense, g_rows, config.opt.clip)
        groups = optim.dense_groups(system, g_dense)
        lrs = optim.learning_rates(config.opt, set(clip))
        g_dense = jax.tree.map(lambda g, n: g * clip[n], g_dense, groups)
        merged = {
            p: m._replace(grads=m.grads * clip[optim.group_of(system, f"tables/{p}")])
            for p, m in merged.items()
        }
        updates, opt = tx.update(g_dense, trees.opt, trees.dense)
        scale = lr_scale * factor(step)
        dense = jax.tree.map(lambda p, u, n: p - lrs[n] * scale * u, trees.dense, updates, groups)
        rates = {path: lr_scale * f(step) for path, f in factors.items()}
        tables = embedding.apply(
            system.tables,
            trees.tables,
            merged,
            rates,
            plan,
            stream(key, "stochastic_rounding", step),
        )
        trees = trees.replace(dense=dense, tables=tables, state=state, opt=opt)
        if system.after_step is not None:
            trees = system.after_step(trees, stream(key, "after_step", step))
        return trees, jax.tree.map(jnp.add, sums, new)

    return step_fn


def init_trees(
    system: System, config: ConfigDict, example: Batch, plan: embedding.Plan | None = None
) -> Trees:
    """Fresh trees from the seed and one batch's shapes; the tables are on the mesh already."""
    key = jax.random.key(config.seed)
    fresh = jax.jit(lambda k: embedding.init(k, system.tables, system.schema, plan))
    tables = fresh(stream(key, "tables_init"))

    @jax.jit
    def init(key, tables, batch):
        rows = embedding.gather(system.tables, tables, batch)  # once: the partitioner may do it
        dense, state = system.init(key, rows, batch)
        return dense, state, optim.transform(config.opt).init(dense)

    dense, state, opt = init(stream(key, "dense_init"), tables, example)
    return Trees(dense, tables, state, {}, opt)


def zero_sums(
    system: System, trees: Trees, example: Batch, plan: embedding.Plan | None = None
) -> Sums:
    """Zeros (NumPy) in the shape of the loss's metric sums."""

    def sums_of(trees, batch):
        rows = embedding.gather(system.tables, trees.tables, batch, plan)
        key = jax.random.key(0)
        return system.loss(trees.params(rows), batch, key)[1][1]

    return jax.tree.map(
        lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(sums_of, trees, example)
    )


def forward_flops(
    system: System, trees: Trees, batch: Batch, plan: embedding.Plan | None = None
) -> float:
    """FLOPs of scoring one example, as the compiler counts them (a scan body counts once)."""

    def forward(trees, batch):
        rows = embedding.gather(system.tables, trees.tables, batch, plan)
        return system.outputs(trees.params(rows), batch)

    cost = jax.jit(forward).lower(trees, batch).cost_analysis() or {}
    examples = batch["valid"].size if "valid" in batch else 1
    return float(cost.get("flops", 0.0)) / examples
