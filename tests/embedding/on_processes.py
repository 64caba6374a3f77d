"""One of two processes with 4 fake devices each, or one with all 8 (port 0): digests of rows read and of tables.

python -m tests.embedding.on_processes <process> <port or 0> <out.json> [<checkpoint to write> [<one to read>]]
"""

import hashlib
import json
from pathlib import Path
import sys

import jax
import numpy as np


def digest(x) -> str:
    return hashlib.md5(np.asarray(x).tobytes()).hexdigest()


def run(mine: slice) -> dict[str, str]:
    from recjax import embedding
    from recjax.runtime import mesh as meshes
    from tests.embedding import worlds
    from tests.embedding.on_mesh import BATCHES, SCHEMA, TABLES

    mesh, out = meshes.make(), {}
    local = lambda tree: jax.tree.map(lambda x: x[mine], tree)  # noqa: E731
    for rule in ("row:all_to_all", "row:all_gather", "column"):
        skew = embedding.measure([local(b) for b in BATCHES], SCHEMA, mesh.size)
        plan = embedding.plan(TABLES, SCHEMA, mesh, skew, ((".*", rule),))
        init = jax.jit(lambda k, plan=plan: embedding.init(k, TABLES, SCHEMA, plan))
        values = init(jax.random.key(0))

        def step(values, batch, grads, plan=plan):
            batch = embedding.exchange_ids(batch, plan)
            rows = embedding.gather(TABLES, values, batch, plan)
            return embedding.update(TABLES, values, batch, grads, plan=plan), rows

        step = jax.jit(step, donate_argnums=0)
        for k, batch in enumerate(BATCHES):
            grads = local(worlds.row_gradients(SCHEMA, TABLES, batch, k))
            put = meshes.put(mesh, plan.route(local(batch)) | {"grads": grads})
            grads = put.pop("grads")
            values, rows = step(values, put, grads)
            if k == 0:  # the same tables everywhere: what is read must be the same bits
                for t in TABLES:
                    used = batch["ids"][t.id_space] < SCHEMA.space(t.id_space).rows
                    for s in rows[t.path].addressable_shards:
                        shard = s.index[0].start or 0
                        out[f"read {rule} {t.path} {shard}"] = digest(s.data[0][used[shard]])
        for path, x in jax.tree_util.tree_leaves_with_path(values):
            name = f"{rule} {jax.tree_util.keystr(path)}"
            out |= {f"{name} {s.index}": digest(s.data) for s in x.addressable_shards}
    return out


def checkpoints(write: str, read: str = "") -> dict[str, str]:
    """Digests of random tables and row-optimizer state, written, and of those read."""
    from recjax import embedding
    from recjax.runtime import checkpoint
    from recjax.runtime import mesh as meshes
    from tests.embedding.on_mesh import SCHEMA, TABLES

    plan, r = embedding.plan(TABLES, SCHEMA, meshes.make(), {}, ((".*", "row"),)), np.random
    shapes = jax.eval_shape(lambda: embedding.init(jax.random.key(0), TABLES, SCHEMA))
    draw = lambda s: r.default_rng(s.size).normal(size=s.shape).astype(s.dtype)  # noqa: E731
    values = plan.place(jax.tree.map(draw, shapes))
    store = checkpoint.Checkpoints(write)
    store.save(1, {"tables": values}, {})
    store.close()
    trees = {"written": values}
    if read:
        zeros = plan.place(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes))
        store = checkpoint.Checkpoints(read)
        trees["read"] = store.restore({"tables": zeros})[1]["tables"]
        store.close()
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    return {
        f"{jax.tree_util.keystr(p)} {s.index}": digest(s.data)
        for p, x in leaves
        for s in x.addressable_shards
    }


if __name__ == "__main__":
    process, port = int(sys.argv[1]), sys.argv[2]
    mine = slice(None)
    if port != "0":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
        mine = slice(4 * process, 4 * process + 4)
    found = checkpoints(*sys.argv[4:]) if sys.argv[4:] else run(mine)
    Path(sys.argv[3]).write_text(json.dumps(found))
