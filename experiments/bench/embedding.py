"""Measures a training step of embedding tables alone: sparse rows against donated dense optax.adam.

    python -m experiments.bench.embedding                     # the two settings of README.md, at 1 M and 10 M rows
    python -m experiments.bench.embedding --setting=wide --rows=1000000 --optimizer=lazy_adam

`lists` is 2048 requests x 50 ids at D = 32, `wide` 4096 x 26 at D = 16; ids are Zipf(1.1) through the vocabulary's
bijection. Both sides read the rows of a batch and descend the mean square of (row - target): the same work but for
the optimizer. Both get huge pages (recjax.embedding.huge_pages) unless --nohuge_pages. The unique ids are found
off-thread by the loader; their time is printed beside it. `cpu_ms` is the processor time of a step: where it is far
from `ms` times the cores in use, the machine is busy with something else and the row says little.
"""

import json
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from recjax import command, embedding
from recjax.data.loading.batches import unique_ids
from recjax.embedding import huge_pages
from recjax.schema import IdSpace, Schema, Table, spread

SETTINGS = {"lists": (2048, 50, 32), "wide": (4096, 26, 16)}  # requests, ids each, D
EXPONENT = 1.1


def zipf(rows: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Ids int32 whose popularity ranks are Zipf, truncated to the vocabulary."""
    weight = np.arange(1, rows - 2, dtype=np.float64) ** -EXPONENT
    cdf = np.cumsum(weight)
    rank = np.searchsorted(cdf, np.random.default_rng(seed).random(shape) * cdf[-1])
    return spread(rank, rows)


def deduplicated(ids: np.ndarray, rows: int, slots: int) -> dict:
    """A batch with unique ids [1, slots] and positions, by the loader's own code."""
    pos = np.empty(ids.shape, np.int32)
    unique = unique_ids([ids.astype(np.intp)], rows, [pos])
    full = rows + np.arange(slots, dtype=np.int32)
    full[: len(unique)] = unique
    return {"ids": {"item": full[None]}, "pos": pos}


def sparse_step(table: Table):
    def loss(rows, pos, target):
        read = rows["item"][0].at[pos].get(mode="promise_in_bounds")
        return jnp.mean(jnp.square(read - target))

    def step(values, batch, target):
        rows = embedding.gather([table], values, batch)
        value, grads = jax.value_and_grad(loss)(rows, batch["pos"], target)
        return embedding.update([table], values, batch, grads), value

    return jax.jit(step, donate_argnums=0)


def dense_step():
    tx = optax.adam(1e-3)

    def loss(rows, ids, target):
        return jnp.mean(jnp.square(rows[ids] - target))

    def step(values, ids, target):
        rows, opt = values
        value, grads = jax.value_and_grad(loss)(rows, ids, target)
        updates, opt = tx.update(grads, opt, rows)
        return (optax.apply_updates(rows, updates), opt), value

    return jax.jit(step, donate_argnums=0), tx.init


def timed(step, values, batches, target, repeats: int) -> dict:
    """Milliseconds of a step, one after another: median and quartiles; temporaries of the program."""
    compiled = step.lower(values, batches[0], target).compile()
    times, cpu = [], []
    for k in range(repeats + 2):
        began, used = time.perf_counter(), time.process_time()
        values, loss = compiled(values, batches[k % len(batches)], target)
        jax.block_until_ready((values, loss))
        times.append(1e3 * (time.perf_counter() - began))
        cpu.append(1e3 * (time.process_time() - used))
    low, median, high = np.percentile(times[2:], [25, 50, 75])
    temp = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return dict(
        ms=round(median, 2), quartiles=[round(low, 2), round(high, 2)],
        cpu_ms=round(float(np.median(cpu[2:])), 2), temp_mib=round(temp, 1),
    )  # fmt: skip


def measure(setting: str, rows: int, optimizer: str, repeats: int, huge: bool = True) -> dict:
    requests, per_request, dim = SETTINGS[setting]
    shape = (requests, per_request)
    ids = [zipf(rows, shape, seed) for seed in range(4)]
    slots = -(-max(len(np.unique(x)) for x in ids) // 4096) * 4096
    began = time.perf_counter()
    host = [deduplicated(x, rows, slots) for x in ids]
    loader = 1e3 * (time.perf_counter() - began) / len(ids)
    target = jax.random.normal(jax.random.key(1), (*shape, dim))
    table = Table("item", dim, optimizer=optimizer)
    schema = Schema((IdSpace("item", rows, rows),), ())
    values = jax.jit(lambda: embedding.init(jax.random.key(0), [table], schema))()
    if huge:
        huge_pages.use(values)
    sparse = timed(sparse_step(table), values, jax.device_put(host), target, repeats)
    del values
    step, init = dense_step()
    start = lambda: jax.random.normal(jax.random.key(0), (rows, dim)) * 0.01  # noqa: E731
    values = jax.jit(lambda: (start(), init(start())))()
    if huge:
        huge_pages.use(values)
    dense = timed(step, values, jax.device_put(ids), target, max(repeats // 4, 3))
    return dict(
        setting=setting, rows=rows, dim=dim, ids=ids[0].size, unique=int((host[0]["ids"]["item"] < rows).sum()),
        optimizer=optimizer, huge_pages=huge, loader_ms=round(loader, 2), sparse=sparse, dense_adam=dense,
        ratio=round(dense["ms"] / sparse["ms"], 1), device=jax.devices()[0].device_kind,
    )  # fmt: skip


def main(_) -> None:
    for setting in [_SETTING.value] if _SETTING.value else SETTINGS:
        for rows in map(int, _ROWS.value):
            result = measure(setting, rows, _OPTIMIZER.value, _REPEATS.value, _HUGE.value)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    _SETTING = flags.DEFINE_enum("setting", None, list(SETTINGS), "one of them; default: both")
    _ROWS = flags.DEFINE_list("rows", ["1000000", "10000000"], "table sizes")
    _OPTIMIZER = flags.DEFINE_string("optimizer", "rowwise_adagrad", "of the sparse side")
    _REPEATS = flags.DEFINE_integer(
        "repeats", 40, "timed steps; a quarter of them for the dense side"
    )
    _HUGE = flags.DEFINE_bool("huge_pages", True, "tables in huge pages, where Linux has them")
    command.run(main)
