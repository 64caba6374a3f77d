"""Runs on 8 fake devices (tests/embedding/test_sharded.py starts it) and prints what it found as one JSON object."""

import dataclasses
import itertools
import json
import sys
import tempfile

import jax
import numpy as np

from recjax import configs, embedding
from recjax.embedding import hlo, lanes
from recjax.embedding.optimizers import OPTIMIZERS
from recjax.runtime import checkpoint
from recjax.runtime import mesh as meshes
from recjax.schema import IdSpace, Schema, Table
from recjax.training.step import init_trees, settings, zero_window
from recjax.training.step import make_step as training_step
from tests import fakes
from tests.embedding import worlds

N = 8
SCHEMA = worlds.schema(("item", 32_768), ("user", 64))
RULES = ("row:all_to_all", "row:all_gather", "column", "replicated")
# every optimizer, two widths, two tables that share ids, a frozen one
TABLES = (
    *(Table("item", 16, owner=o, optimizer=o, lr=0.1, init_scale=0.5, l1=0.02) for o in OPTIMIZERS),
    Table("user", 8, optimizer="rowwise_adagrad", l2=0.1),
    Table("user", 8, owner="still", optimizer="frozen"),
)
BATCHES = [worlds.batch(SCHEMA, N, 64, k) for k in range(4)]


def plan_for(rule, tables=TABLES, schema=SCHEMA, devices=None, batches=BATCHES):
    mesh = meshes.make(devices)
    skew = embedding.measure(batches, schema, mesh.size)
    return embedding.plan(tables, schema, mesh, skew, tuple((".*", r) for r in rule.split()))


def split(plan, tree):
    return jax.device_put(tree, jax.NamedSharding(plan.mesh, jax.P(plan.axis)))


def make_step(plan):
    """The gradient depends on what was read, so a wrong lookup shows in the tables."""

    def step(values, batch, grads):
        batch = embedding.exchange_ids(batch, plan)
        rows = embedding.gather(TABLES, values, batch, plan)
        grads = {p: g * (1 + rows[p]) for p, g in grads.items()}
        return embedding.update(TABLES, values, batch, grads, plan=plan), rows

    return jax.jit(step, donate_argnums=0)


def run(plan, batches=BATCHES):
    """(tables, rows read, bytes of collectives) after a step on each batch."""
    step = make_step(plan)
    # the start is one device's: initialisation is compared on its own
    values = embedding.init(jax.random.key(0), TABLES, SCHEMA)
    if plan:
        k = {t.path: plan.parts(t) for t in TABLES}
        values = plan.place({p: lanes.pack(v, k[p]) for p, v in values.items()})
    seen, moved = [], []
    for k, host in enumerate(batches):
        grads = worlds.row_gradients(SCHEMA, TABLES, host, k)
        batch = host
        if plan:
            batch, grads = split(plan, plan.route(host)), split(plan, grads)
            if k == 0:
                text = step.lower(values, batch, grads).compile().as_text()
                moved = hlo.collectives(text, N)
        values, rows = step(values, batch, grads)
        used = {t.path: host["ids"][t.id_space] < SCHEMA.space(t.id_space).rows for t in TABLES}
        seen.append({p: np.asarray(rows[p])[m] for p, m in used.items()})
    return jax.device_get(values), seen, moved


def distance(a, b):
    """Largest over the leaves of max |a - b| / max |b|."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return float(max(np.abs(x - y).max() / max(np.abs(y).max(), 1e-6) for x, y in pairs if y.size))


def parity():
    reference, read, _ = run(None)
    out = {}
    for rule in RULES:
        plan = plan_for(rule)
        values, rows, moved = run(plan)
        out[rule] = dict(
            tables=distance(values, reference),
            first_read=distance(rows[0], read[0]),
            read=distance(rows, read),
            padding=max(float(np.abs(v["rows"][0]).max()) for v in values.values()),
            collectives=moved,
            planned=sum(plan.traffic(t) for t in TABLES),
        )
    return out


def packed():
    """The all_to_all path on packed blocks against unpacked ones."""
    plan = plan_for("row:all_to_all packed")
    flat, rows, _ = run(plan_for("row:all_to_all"), BATCHES[:2])
    values, read, _ = run(plan, BATCHES[:2])
    unpacked = {
        t.path: {n: lanes.logical(x, t.dim) for n, x in values[t.path].items()} for t in TABLES
    }
    same = jax.tree.map(np.array_equal, (unpacked, read), (flat, rows))
    start = embedding.init(jax.random.key(0), TABLES, SCHEMA)
    return dict(
        parts=plan.parts(TABLES[0]),
        differ=sorted({p[0].key for p, x in jax.tree_util.tree_leaves_with_path(same[0]) if not x}),
        first_read=all(same[1][0].values()),
        far=distance((unpacked, read), (flat, rows)),
        moved=distance(flat["sgd/item"]["rows"], np.asarray(start["sgd/item"]["rows"])),
    )


def overflow():
    """One owner gets all ids of a batch: the next bucket, then an error; the step in it is right."""
    spread = [worlds.batch(SCHEMA, N, 64, k, _hot(4)) for k in range(4)]
    plan = plan_for("row:all_to_all", batches=spread)
    first, second = plan.capacities("item", 64)
    fits = worlds.batch(SCHEMA, N, 64, 9, _hot(second))
    values, rows, _ = run(plan, [fits])
    reference, read, _ = run(None, [fits])
    try:
        plan.route(worlds.batch(SCHEMA, N, 64, 9, _hot(second + 1)))
        message = ""
    except embedding.CapacityError as e:
        message = str(e)
    return dict(
        capacities=[first, second],
        tables=distance(values, reference),
        counted=dict(plan.overflow),
        message=message,
    )


def _hot(count):
    """`count` ids of owner 2, and users as they come."""
    return {"item": np.arange(count) + 2 * SCHEMA.space("item").rows // N, "user": np.arange(20)}


def checkpoints():
    """8 -> 4 -> 2 -> 1 -> 8 devices and other placements, through files; are all bits the same?"""
    values, _, _ = run(plan_for("row:all_to_all"))
    trees, same, layouts = values, [], []
    hops = [(8, "row"), (4, "row"), (2, "column"), (1, "row"), (8, "column"), (8, "row")]
    with tempfile.TemporaryDirectory() as folder:
        store = checkpoint.Checkpoints(folder)
        for step, (n, rule) in enumerate(hops):
            plan = embedding.plan(
                TABLES, SCHEMA, meshes.make(jax.devices()[:n]), {}, ((".*", rule),)
            )
            placed = plan.place(jax.tree.map(np.zeros_like, values) if step else trees)
            if step:
                placed = store.restore({"tables": placed})[1]["tables"]
            same.append(
                all(jax.tree.leaves(jax.tree.map(np.array_equal, jax.device_get(placed), values)))
            )
            layouts.append(len(placed["sgd/item"]["rows"].sharding.device_set))
            store.save(step, {"tables": placed}, {})
            store.wait()
        store.close()
    return dict(same=same, devices=layouts)


def resharded(batch, shards):
    """A fake batch with one list of unique ids for each of `shards` device shards."""
    out = {**batch, "ids": {}, "pos": {}}
    for s in fakes.SCHEMA.id_spaces:
        names = [f.name for f in fakes.SCHEMA.features if f.id_space == s.name]
        raw = {n: batch["ids"][s.name][0][batch["pos"][n]] for n in names}
        parts = {n: np.split(x, shards) for n, x in raw.items()}
        ids = [np.concatenate([parts[n][k].ravel() for n in names]) for k in range(shards)]
        out["ids"][s.name] = np.stack([worlds.unique_ids(x, s.rows, s.rows) for x in ids])
        for n in names:
            found = [np.searchsorted(out["ids"][s.name][k], parts[n][k]) for k in range(shards)]
            out["pos"][n] = np.concatenate(found).astype(np.int32)
    return out


def training(rule, optimizer, steps=50):
    """50 steps of the real loop's step: one device against 8, clipping on."""
    system = fakes.build(
        fakes.SCHEMA, kind="teacher_student", table=dict(optimizer=optimizer, lr=0.1)
    )
    wide = tuple(dataclasses.replace(t, dim=N) for t in system.tables)
    system = dataclasses.replace(system, tables=wide)
    config = configs.base()
    config.opt.name, config.opt.lr, config.opt.clip = "sgd", 0.1, 0.5
    batches = [fakes.batch_at(k, 32, 2) for k in range(steps)]
    ends = []
    for devices, shards in ((jax.devices()[:1], 1), (jax.devices(), N)):
        host = [resharded(b, shards) for b in batches]
        mesh = meshes.make(devices)
        skew = embedding.measure(host[:4], system.schema, mesh.size)
        plan = embedding.plan(system.tables, system.schema, mesh, skew, ((".*", rule),))
        put = lambda b, m=mesh, p=plan: meshes.put(m, p.route(b))  # noqa: E731
        trees = init_trees(system, config, put(host[0]), plan)
        window = zero_window(system, config, trees, put(host[0]), plan)
        args = settings(system, config)
        step = jax.jit(training_step(system, config, steps, plan), donate_argnums=(0, 1))
        for k, b in enumerate(host):
            trees, window = step(trees, window, put(b), args, np.int32(k), np.float32(1))
        ends.append(jax.device_get((trees, window.sums)))
    (one, one_sums), (many, many_sums) = ends
    return dict(
        tables=distance(many.tables, one.tables),
        dense=distance(many.dense, one.dense),
        loss=distance(many_sums, one_sums),
    )


def zipf(seed, rows=1_000_000, draws=51_200, exponent=1.1):
    """One shard's unique ids: Zipf ranks through the vocabulary's bijection."""
    from recjax.schema import spread

    r = np.random.default_rng(seed)
    rank = np.minimum(r.zipf(exponent, 2 * draws), 2**31)
    rank = rank[rank < rows - 3][:draws]
    return np.unique(spread(rank, rows))


def traffic(dim=32, rows=1_000_000, steps=24):
    """Bytes of the all_to_all path against the ideal, and batches that overflow the measured capacity."""
    schema = Schema((IdSpace("item", rows, rows),), ())
    shards = [[zipf(N * k + s, rows) for s in range(N)] for k in range(4)]
    slots = -(-max(len(u) for b in shards for u in b) // 256) * 256
    host = [
        {"ids": {"item": np.stack([worlds.unique_ids(u, rows, slots) for u in b])}} for b in shards
    ]
    tables = (Table("item", dim),)
    plan = plan_for("row:all_to_all", tables, schema, batches=host)

    def step(values, batch, grads):
        batch = embedding.exchange_ids(batch, plan)
        read = embedding.gather(tables, values, batch, plan)["item"]
        return embedding.update(tables, values, batch, {"item": grads + read}, plan=plan)

    shapes = jax.eval_shape(lambda: embedding.init(jax.random.key(0), tables, schema))
    values = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        plan.shardings(shapes),
    )
    batch = split(plan, plan.route(host[0]))
    grads = jax.ShapeDtypeStruct(
        (N, slots, dim), np.float32, sharding=batch["ids"]["item"].sharding
    )
    compiled = jax.jit(step, donate_argnums=0).lower(values, batch, grads).compile()
    moved = hlo.collectives(compiled.as_text(), N)
    worst = []
    for k in range(4, steps):  # batches the capacity was not measured on
        counts = [
            np.bincount(zipf(N * k + s, rows) // (rows // N), minlength=N).max() for s in range(N)
        ]
        worst.append(int(max(counts)))
    unique = float(np.mean([len(u) for b in shards for u in b]))
    return dict(
        unique=unique,
        capacity=plan.capacities("item", slots)[0],
        worst=worst,
        collectives=moved,
        ratio=sum(b for _, b in moved) / (unique * dim * 4),
        planned=plan.traffic(tables[0]),
        temporaries=compiled.memory_analysis().temp_size_in_bytes,
    )


if __name__ == "__main__":
    assert jax.device_count() == N
    wanted = {
        "parity": parity,
        "packed": packed,
        "overflow": overflow,
        "checkpoints": checkpoints,
        "traffic": traffic,
        "training": lambda: {
            f"{r} {o}": training(r, o)
            for r, o in (
                itertools.product(RULES, OPTIMIZERS)
                if "all" in sys.argv
                else (("row:all_to_all", "lazy_adam"), ("column", "rowwise_adagrad"))
            )
        },
    }
    names = [a for a in sys.argv[1:] if a in wanted] or list(wanted)
    print(json.dumps({k: wanted[k]() for k in names}))
