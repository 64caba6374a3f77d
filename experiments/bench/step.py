"""Does a training step's cost depend on the vocabulary? python -m experiments.bench.step

Times the full SUAN step (released configuration) over a small and a large item table, on the same Zipf-distributed
ids, and prints the compiler's temporaries. Both tables are donated; batches are made beforehand.
"""

import json
import time

from absl import flags
import jax
import numpy as np

from recjax import command, configs, models
from recjax.runtime.run import set_up
from recjax.schema import NUM_RESERVED, Feature, IdSpace, Schema
from recjax.training.step import init_trees, make_step, settings, zero_window

FIELDS = ("item", "category", "type", "store", "hour")
SMALL = {"category": 300, "type": 2_400, "store": 460, "hour": 200, "user": 2_500}


def schema(items: int) -> Schema:
    """A user, a candidate with five fields, a history with the same."""
    spaces = [IdSpace("item", items), *(IdSpace(k, v) for k, v in SMALL.items())]
    features = [Feature("user_id", "profile", "user")]
    features += [Feature(f, "candidate", f) for f in FIELDS]
    features += [Feature(f"history_{f}", "history", f, list="history") for f in FIELDS]
    return Schema(tuple(spaces), (*features, Feature("click", "label")))


def make_batch(s: Schema, seed: int, batch: int, history: int, ids: int) -> dict:
    """Zipf ids of `ids` distinct values, spread over each vocabulary; unique lists of one size for all tables."""
    r = np.random.default_rng(seed)
    raw = {}
    for f in s.features:
        if f.kind == "id":
            shape = {"B": (batch,), "BC": (batch, 1), "BL": (batch, history)}[f.axes]
            stride = (s.space(f.id_space).size - NUM_RESERVED) // min(ids, s.space(f.id_space).size)
            drawn = np.minimum(r.zipf(1.1, shape), min(ids, s.space(f.id_space).size) - 1)
            raw[f.name] = NUM_RESERVED + drawn * max(stride, 1) % (
                s.space(f.id_space).size - NUM_RESERVED
            )
    out = {"ids": {}, "pos": {}, "dense": {}}
    for space in s.id_spaces:
        names = [f.name for f in s.features if f.id_space == space.name]
        unique, pos = np.unique(
            np.concatenate([raw[n].ravel() for n in names]), return_inverse=True
        )
        capacity = min(space.size, ids) + 8
        padded = space.rows + np.arange(capacity)
        padded[: len(unique)] = unique
        out["ids"][space.name] = padded[None].astype(np.int32)
        for n in names:
            part, pos = np.split(pos, [raw[n].size])
            out["pos"][n] = part.reshape(raw[n].shape).astype(np.int32)
    ones = np.ones((batch, 1), np.float32)
    return out | {
        "mask": {"history": np.ones((batch, history), bool)},
        "age": {
            "history": np.sort(r.integers(1, 10**7, (batch, history)), 1)[:, ::-1].astype(np.int32)
        },
        "label": {"click": (r.random((batch, 1)) < 0.2).astype(np.float32)},
        "weight": ones,
        "valid": ones > 0,
        "group": {},
        "row": np.zeros((batch, 1), np.int32),
    }


def measure(items: int, batch: int, history: int, steps: int) -> dict:
    """Median milliseconds of a donated step, and MiB of the compiler's temporaries."""
    c = configs.base()
    c.model.update(name="suan", table=dict(dim=8), width=40)
    s = schema(items)
    system = models.build(s, c.model)
    batches = [jax.device_put(make_batch(s, i, batch, history, 10_000)) for i in range(4)]
    trees = init_trees(system, c, batches[0])
    window = jax.device_put(zero_window(system, c, trees, batches[0]))
    args = settings(system, c), np.int32(0), np.float32(1)
    step = (
        jax.jit(make_step(system, c, steps), donate_argnums=(0, 1))
        .lower(trees, window, batches[0], *args)
        .compile()
    )
    times = []
    for i in range(steps + 2):
        began = time.perf_counter()
        trees, window = jax.block_until_ready(step(trees, window, batches[i % 4], *args))
        times.append(1e3 * (time.perf_counter() - began))
    temp = step.memory_analysis().temp_size_in_bytes / 2**20
    return {"items": items, "ms": float(np.median(times[2:])), "temp_mib": temp}


def main(_) -> None:
    set_up()
    for items in (10_000, 10_000_000):
        print(json.dumps(measure(items, _BATCH.value, _HISTORY.value, _STEPS.value)), flush=True)


if __name__ == "__main__":
    _BATCH = flags.DEFINE_integer("batch", 512, "examples a step")
    _HISTORY = flags.DEFINE_integer("history", 50, "events")
    _STEPS = flags.DEFINE_integer("steps", 20, "steps timed")
    command.run(main)
