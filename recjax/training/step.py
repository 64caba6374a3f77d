"""The compiled programs of a run: initial trees, the training step, and what the compiler says of scoring."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from recjax import embedding
from recjax.batch import Batch
from recjax.runtime import flops
from recjax.system import System
from recjax.training import optim
from recjax.training.keys import stream
from recjax.training.window import Window, all_of, finite, norms
from recjax.trees import Params, Rows, Trees


def microbatch(batch: Batch, shards: int, index: jax.Array, count: int) -> Batch:
    """The index-th of `count` equal parts of every shard; unique ids and their exchange stay whole."""

    def part(x):
        b = x.shape[0] // (shards * count)
        x = x.reshape(shards, count, b, *x.shape[1:])
        return jax.lax.dynamic_index_in_dim(x, index, 1, False).reshape(shards * b, *x.shape[3:])

    whole = ("ids", "exchange")
    out: Any = {k: v if k in whole else jax.tree.map(part, v) for k, v in batch.items()}
    return out


def gradients(system: System, trees: Trees, rows: Rows, batch: Batch, rng: jax.Array, count: int):
    """The mean loss over the batch, its gradients by (dense, rows), the new state and metric sums.

    With count > 1 microbatches losses and gradients are weighted by each one's examples, so they equal the whole
    batch's (batch statistics excepted: those are per microbatch).
    """

    def one(state, part, key):
        def loss(dense, rows):
            return system.loss(Params(dense, rows, state, trees.frozen), part, key)

        of_both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, (state, sums)), grads = of_both(trees.dense, rows)
        return (value, grads), state, sums

    if count == 1:
        return one(trees.state, batch, rng)
    shards = next(iter(batch["ids"].values())).shape[0]

    def body(carry, i):
        before, total, weight = carry
        part = microbatch(batch, shards, i, count)
        found, state, sums = one(before, part, jax.random.fold_in(rng, i))
        w = (part["weight"] * part["valid"]).sum()
        # The last batch of an epoch may leave a part nothing but padding: its batch statistics are 0 / 0.
        real = lambda x, otherwise: jnp.where(part["valid"].any(), x, otherwise)  # noqa: E731
        total = jax.tree.map(lambda t, g: t + real(w * g, 0.0), total, found)
        state = jax.tree.map(real, state, before)
        return (state, total, weight + w), jax.tree.map(lambda x: real(x, 0.0), sums)

    # float32: many small parts would be lost in a bfloat16 sum
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (trees.dense, rows))
    (state, total, weight), sums = jax.lax.scan(
        body, (trees.state, (0.0, zeros), 0.0), jnp.arange(count)
    )
    found = jax.tree.map(lambda t: t / jnp.maximum(weight, 1e-9), total)
    return found, state, jax.tree.map(lambda s: s.sum(0), sums)


class Settings(NamedTuple):
    """What runs that share a compiled step may differ in: its arguments, not its constants.

    Attributes:
      seed: uint32 [].
      dense: group -> learning rate [].
      tables: path of a trained table -> learning rate [].
      clip: Joint norm of a group's dense and row gradients; 0: no clipping. [].
    """

    seed: Any
    dense: dict[str, Any]
    tables: dict[str, Any]
    clip: Any


def settings(system: System, config: ConfigDict) -> Settings:
    """Those of a run (NumPy)."""
    rates = optim.learning_rates(config.opt, dict.fromkeys(name for _, name in system.groups))
    tables = {t.path: np.float32(t.lr) for t in system.tables if not t.frozen}
    return Settings(
        np.uint32(config.seed),
        {name: np.float32(rate) for name, rate in rates.items()},
        tables,
        np.float32(config.opt.clip),
    )


def make_step(
    system: System, config: ConfigDict, total_steps: int, plan: embedding.Plan | None = None
) -> Callable:
    """step(trees, window, batch, settings, number, lr_scale) -> (trees, window). Jit it donating the first two.

    One step: gather the unique rows, differentiate with respect to dense parameters and rows, bring the row
    gradients to the rows' owners, clip per group, optax on the dense tree, row optimizers on the rows. A step whose loss,
    gradients or state are not finite changes nothing and is counted in the window.
    """
    tx = optim.transform(config.opt)
    factor = optim.schedule(config.opt, total_steps)
    factors = optim.row_schedules(config, total_steps, system.tables)

    def step_fn(
        trees: Trees, window: Window, batch: Batch, settings: Settings,
        number: jax.Array, lr_scale: jax.Array,
    ) -> tuple[Trees, Window]:  # fmt: skip
        key = jax.random.key(settings.seed)
        with jax.named_scope("gather"):
            batch = embedding.exchange_ids(batch, plan)
            rows = embedding.gather(system.tables, trees.tables, batch, plan)
        with jax.named_scope("loss"):
            (loss, (g_dense, g_rows)), state, sums = gradients(
                system, trees, rows, batch, stream(key, "loss", number), config.train.microbatches
            )
        with jax.named_scope("merge"):
            merged = embedding.merge(system.tables, batch, g_rows, plan)
            g_rows = {path: m.grads for path, m in merged.items()}
        with jax.named_scope("clip"):
            clip = optim.clip_scales(system, g_dense, g_rows, settings.clip)
            groups = optim.dense_groups(system, g_dense)
            clipped = jax.tree.map(lambda g, n: g * clip[n], g_dense, groups)
        with jax.named_scope("update_dense"):
            rates = {n: rate * (lr_scale * factor(number)) for n, rate in settings.dense.items()}
            updates, opt = tx.update(clipped, trees.opt, trees.dense)
            moves = jax.tree.map(lambda u, n: rates[n] * u, updates, groups)
            dense = jax.tree.map(jnp.subtract, trees.dense, moves)
            ok = finite(loss, {n: (g_dense[n], moves[n]) for n in dense}, g_rows, state)
            good = all_of(ok.values())
            new = dict(dense=dense, state=state, opt=opt)
            old = dict(dense=trees.dense, state=trees.state, opt=trees.opt)
            new = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
        with jax.named_scope("update_rows"):
            merged = {
                p: m._replace(grads=m.grads * clip[optim.group_of(system, f"tables/{p}")])
                for p, m in merged.items()
            }
            row_rates = {p: r * (lr_scale * factors[p](number)) for p, r in settings.tables.items()}
            tables, moved = embedding.apply(
                system.tables,
                trees.tables,
                {path: m.only_if(good) for path, m in merged.items()},
                row_rates,
                plan,
                stream(key, "stochastic_rounding", number),
            )
        trees = trees.replace(**new, tables=tables)
        if system.after_step is not None:
            with jax.named_scope("after_step"):
                trees = system.after_step(trees, stream(key, "after_step", number))
        ok |= {f"tables/{p}": ok[f"tables/{p}"] & jnp.isfinite(x) for p, x in moved.items()}
        sums |= norms("grad_norm", *jax.tree.map(optim.square, (g_dense, g_rows)))
        sums |= norms("update_norm", jax.tree.map(optim.square, moves), moved)
        rates |= {f"tables/{path}": rate for path, rate in row_rates.items()}
        sums |= {f"lr/{name}": (rate, jnp.float32(1)) for name, rate in rates.items()}
        return trees, window.add(number, sums, ok)

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


def zero_window(
    system: System,
    config: ConfigDict,
    trees: Trees,
    example: Batch,
    plan: embedding.Plan | None = None,
) -> Window:
    """An empty window (NumPy), of the shapes that a step adds to it."""

    def sums_of(trees, batch):
        rows = embedding.gather(system.tables, trees.tables, batch, plan)
        key = jax.random.key(0)
        return system.loss(trees.params(rows), batch, key)[1][1]

    sums = jax.tree.map(
        lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(sums_of, trees, example)
    )
    rates = settings(system, config)
    dense, tables = trees.dense, rates.tables
    means = {f"lr/{name}" for name in (*rates.dense, *(f"tables/{path}" for path in tables))}
    trained = ["dense"] * bool(jax.tree.leaves(dense)) + ["rows"] * bool(tables)
    means |= {f"{kind}_norm/{tree}" for kind in ("grad", "update") for tree in trained}
    parts = ["loss", *(f"dense/{n}" for n in dense), *(f"tables/{p}" for p in tables)]
    parts += [f"state/{name}" for name in trees.state]
    zero: Any = np.float32(0)
    none: Any = np.int32(0)
    false: Any = np.bool_(False)
    return Window(
        sums | dict.fromkeys(sorted(means), (zero, zero)),
        none,
        none,
        none,
        dict.fromkeys(parts, false),
    )


def forward_flops(
    system: System, trees: Trees, batch: Batch, plan: embedding.Plan | None = None
) -> float:
    """FLOPs of scoring one example, a loop's body times its length (`recjax.runtime.flops`)."""

    def forward(trees, batch):
        rows = embedding.gather(system.tables, trees.tables, batch, plan)
        return system.outputs(trees.params(rows), batch)

    examples = batch["valid"].size if "valid" in batch else 1
    return flops.of(forward, trees, batch) / examples
