"""Packed tables: the same bits as unpacked ones, on one device and through checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import embedding
from recjax.embedding import lanes
from recjax.embedding.optimizers import OPTIMIZERS
from recjax.runtime import checkpoint
from recjax.runtime import mesh as meshes
from recjax.schema import SchemaError, Table
from recjax.trees import Trees
from tests import compiling
from tests.embedding import worlds
from tests.messages import raises

SCHEMA = worlds.schema(("item", 22_528))  # more than what is small
ROWS = SCHEMA.space("item").rows


def plans(t):
    one = meshes.make(jax.devices()[:1])
    return [embedding.plan((t,), SCHEMA, one, rules=((".*", r),)) for r in ("unpacked", "packed")]


def neighbours(k):
    """Ids that share physical rows: runs of a few, PAD among them, and the last row."""
    r = np.random.default_rng(k)
    runs = [np.arange(s, s + 5) for s in r.integers(0, ROWS - 5, 12)]
    return {"item": np.concatenate([[0, 1, 2, ROWS - 1], *runs])}


def run(t, plan):
    """Tables after three steps, and what was read; three shards that share rows."""

    @jax.jit
    def step(values, batch, grads, rng):
        rows = embedding.gather([t], values, batch, plan)
        grads = {p: g * (1 + rows[p].astype(jnp.float32)) for p, g in grads.items()}
        return embedding.update([t], values, batch, grads, {"item": 0.05}, plan, rng), rows

    values, seen = embedding.init(jax.random.key(0), [t], SCHEMA, plan), []
    for k in range(3):
        batch = worlds.batch(SCHEMA, 3, 72, k, neighbours(k))
        grads = worlds.row_gradients(SCHEMA, (t,), batch, k)
        grads["item"][:, 7] = 0  # in the batch, and no gradient: L2 pulls it, lazy Adam leaves it
        values, rows = step(values, batch, grads, jax.random.key(k))
        seen.append(np.asarray(rows["item"].astype(jnp.float32))[batch["ids"]["item"] < ROWS])
    return values["item"], seen


# Newer compilers contract a * b + c of one program where they do not in the other: the last bits differ.
ROUNDING = 0.0 if "xla_cpu_use_fusion_emitters" in compiling.OPTIONS else 3e-7


@pytest.mark.parametrize(
    "optimizer, dim, dtype",
    [*((o, 32, "float32") for o in OPTIMIZERS), ("lazy_adam", 8, "float32"),
     ("rowwise_adagrad", 64, "float32"), ("rowwise_adagrad", 64, "bfloat16"), ("frozen", 64, "float32")],
)  # fmt: skip
def test_packed_and_unpacked_are_the_same(optimizer, dim, dtype):
    t = Table(
        "item", dim, optimizer=optimizer, lr=0.1, l2=0.01, l1=0.02, init_scale=0.5, dtype=dtype
    )
    unpacked, packed = plans(t)
    assert (unpacked.parts(t), packed.parts(t)) == (1, 128 // dim)
    a, read_a = run(t, unpacked)
    b, read_b = run(t, packed)
    assert b["rows"].shape == (ROWS * dim // 128, 128)
    for x, y in zip(read_a, read_b, strict=True):
        np.testing.assert_allclose(x, y, rtol=ROUNDING, atol=ROUNDING)
    for name in a:
        x, y = (np.asarray(v.astype(jnp.float32)) for v in (a[name], lanes.logical(b[name], dim)))
        np.testing.assert_allclose(x, y, rtol=ROUNDING, atol=ROUNDING, err_msg=name)
    if optimizer != "frozen":  # the control: steps that change nothing agree too
        start = embedding.init(jax.random.key(0), [t], SCHEMA, packed)["item"]["rows"]
        assert (np.asarray(start != b["rows"])).sum() > 100 * dim


def test_a_wrong_sibling_would_be_seen():
    """The control of the above: writing whole physical rows, as if each had one owner, loses siblings."""
    x = jnp.zeros((4, 128))
    ids, new = jnp.array([2, 3, 5, 9]), jnp.ones((4, 64))
    right = lanes.logical(lanes.write(x, ids, new), 64)
    assert np.flatnonzero(right.any(1)).tolist() == [2, 3, 5]  # 9 lies past the end
    naive = x.at[ids // 2].set(jnp.where((ids % 2)[:, None] == jnp.arange(128) // 64, 1.0, 0.0))
    assert np.flatnonzero(lanes.logical(naive, 64).any(1)).tolist() != [2, 3, 5]


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "lazy_adam", "ftrl"])
def test_checkpoints_restore_packed_or_not(tmp_path, optimizer):
    t = Table("item", 32, optimizer=optimizer, init_scale=0.5)
    values = [embedding.init(jax.random.key(0), [t], SCHEMA, p) for p in plans(t)]
    meta = {"schema": {"id_spaces": [{"name": "item", "rows": ROWS}]}}
    for k, (saved, other) in enumerate([values, values[::-1]]):
        store = checkpoint.Checkpoints(tmp_path / str(k))
        store.save(1, {"trees": Trees({}, saved)}, meta)
        store.wait()
        for target in (saved, other):
            zeros = {"trees": Trees({}, jax.tree.map(jnp.zeros_like, target))}
            found = store.restore(zeros)[1]["trees"].tables
            jax.tree.map(np.testing.assert_array_equal, found, target)
        store.close()
        host, _ = checkpoint.read(tmp_path / str(k))
        jax.tree.map(np.testing.assert_array_equal, host["trees"].tables, values[0])


def test_only_what_gains_is_packed():
    def parts(t, rows=1_000_000, devices=8, platform="tpu", rules=()):
        mesh, schema = worlds.Mesh(devices, platform), worlds.schema(("item", rows))
        return embedding.plan((t,), schema, mesh, rules=rules).parts(t)

    assert parts(Table("item", 64)) == 2 and parts(Table("item", 16)) == 8
    assert parts(Table("item", 32), platform="cpu") == 1
    assert parts(Table("item", 32), platform="cpu", rules=((".*", "packed"),)) == 4
    assert parts(Table("item", 64), rules=(("item", "unpacked"),)) == 1
    assert parts(Table("item", 128)) == 1 and parts(Table("item", 48)) == 1
    assert parts(Table("item", 1)) == 1  # 128 selects a read
    assert parts(Table("item", 64), rows=5_000) == 1  # small: replicated, summed densely
    assert parts(Table("item", 16), devices=512) == 1  # 1,957 rows a device: 8 do not divide them
    assert parts(Table("item", 64), rules=((".*", "column"),)) == 1


def test_ids_past_32_bits_need_owners():
    big = worlds.schema(("item", 3_000_000_000))
    t = Table("item", 64)
    with raises(SchemaError, "3,000,000,512", "'row:all_to_all'"):
        embedding.plan((t,), big, worlds.Mesh(8, "tpu"))
    skew = {"item": embedding.Skew.uniform(16, 8)}
    plan = embedding.plan((t,), big, worlds.Mesh(8, "tpu"), skew)
    ids = np.zeros((8, 16), np.int64) + np.array([0, 5, *range(2_999_999_000, 2_999_999_014)])
    out = plan.route({"ids": {"item": ids}})
    assert out["ids"]["item"].dtype == np.int32 and out["ids"]["item"][0, :2].tolist() == [0, 5]
    assert out["exchange"]["starts"]["item"][0].tolist() == [0, 2, 2, 2, 2, 2, 2, 2, 16]
    block = 3_000_000_512 // 8
    assert out["exchange"]["send"]["item"].dtype == np.int32
    assert out["exchange"]["send"]["item"][3, 7, :2].tolist() == [
        2_999_999_000 - 7 * block,
        2_999_999_001 - 7 * block,
    ]
