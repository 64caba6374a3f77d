"""One device: sparse updates against dense ones, the padding row, memory, and the merging of shards."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import embedding
from recjax.embedding.optimizers import OPTIMIZERS
from recjax.schema import IdSpace, Schema, SchemaError, Table
from tests.embedding import worlds
from tests.messages import raises

ROWS, DIM = 64, 4
SCHEMA = worlds.schema(("item", ROWS))


def table(optimizer, **keys):
    return Table("item", DIM, optimizer=optimizer, lr=0.1, init_scale=0.5, **keys)


def dense_step(t, value, grad):
    """The same optimizer on every row of the table."""
    state = {k: v for k, v in value.items() if k != "rows"}
    g = grad + t.l2 * value["rows"]
    rows, state = OPTIMIZERS[t.optimizer].update(value["rows"], state, g, t.lr, l1=t.l1)
    return {"rows": rows.at[0].set(value["rows"][0]), **state}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sparse_equals_dense_when_a_batch_covers_every_row(optimizer, shards):
    t = table(optimizer, l2=0.01, l1=0.05 if optimizer == "ftrl" else 0.0)
    values = embedding.init(jax.random.key(0), [t], SCHEMA)
    dense = values["item"]
    step = jax.jit(lambda v, b, g: embedding.update([t], v, b, g))
    for k in range(3):
        batch = worlds.batch(SCHEMA, shards, ROWS + 8, k, {"item": np.arange(ROWS)})
        grads = worlds.row_gradients(SCHEMA, (t,), batch, k)
        values = step(values, batch, grads)
        dense = dense_step(t, dense, worlds.dense_gradient(t, batch, grads["item"], ROWS))
    for k, v in dense.items():
        np.testing.assert_allclose(values["item"][k][1:], v[1:], rtol=2e-5, atol=1e-6, err_msg=k)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_untouched_rows_and_padding_stay(optimizer):
    t = table(optimizer, l2=0.1)
    values = embedding.init(jax.random.key(0), [t], SCHEMA)
    batch = worlds.batch(SCHEMA, 2, 9, 0, {"item": np.array([0, 5, 7])})
    grads = jax.tree.map(np.ones_like, worlds.row_gradients(SCHEMA, (t,), batch, 0))
    after = embedding.update([t], values, batch, grads)
    changed = np.flatnonzero((after["item"]["rows"] != values["item"]["rows"]).any(1))
    assert changed.tolist() == [5, 7]
    assert not after["item"]["rows"][0].any()
    for k in values["item"]:
        moved = np.asarray(after["item"][k] != values["item"][k]).reshape(ROWS, -1).any(1)
        assert set(np.flatnonzero(moved)) <= {5, 7}, k


def test_shards_that_share_rows_equal_one_shard():
    t = table("rowwise_adagrad")
    values = embedding.init(jax.random.key(0), [t], SCHEMA)
    many = worlds.batch(SCHEMA, 4, 20, 3)
    grads = worlds.row_gradients(SCHEMA, (t,), many, 3)
    whole = worlds.unique_ids(many["ids"]["item"].ravel(), ROWS, 80)[None]
    whole[whole >= ROWS] = ROWS + np.arange((whole >= ROWS).sum())
    total = np.asarray(worlds.dense_gradient(t, many, grads["item"], ROWS))
    one = {"item": np.where((whole < ROWS)[..., None], total[np.minimum(whole, ROWS - 1)], 0)}
    a = embedding.update([t], values, many, grads)
    b = embedding.update([t], values, {"ids": {"item": whole}}, one)
    for k in values["item"]:
        np.testing.assert_allclose(a["item"][k], b["item"][k], rtol=1e-6, atol=1e-7)
    assert not np.array_equal(a["item"]["rows"], values["item"]["rows"])


def test_merged_norm_is_the_table_gradient_s():
    t = table("sgd")
    batch = worlds.batch(SCHEMA, 4, 20, 3)
    grads = worlds.row_gradients(SCHEMA, (t,), batch, 3)
    merged = embedding.merge([t], batch, grads)["item"].grads
    dense = worlds.dense_gradient(t, batch, grads["item"], ROWS)
    np.testing.assert_allclose(jnp.linalg.norm(merged), jnp.linalg.norm(dense), rtol=1e-6)


def test_a_rate_per_table():
    tables = [table("sgd", owner=o) for o in ("a", "b")]
    values = embedding.init(jax.random.key(0), tables, SCHEMA)
    batch = worlds.batch(SCHEMA, 1, 9, 0)
    grads = worlds.row_gradients(SCHEMA, tables, batch, 0)
    after = embedding.update(tables, values, batch, grads, {"a/item": 0.0, "b/item": 1.0})
    np.testing.assert_array_equal(after["a/item"]["rows"], values["a/item"]["rows"])
    assert not np.array_equal(after["b/item"]["rows"], values["b/item"]["rows"])


def test_bfloat16_tables_learn_from_steps_they_cannot_represent():
    """1,000 steps of -1e-3 on weights of 1.0: rounding to nearest would not move them at all."""
    t = dataclasses.replace(table("sgd"), dtype="bfloat16", lr=1e-3)
    values = embedding.init(jax.random.key(0), [t], SCHEMA)
    values["item"]["rows"] = jnp.ones_like(values["item"]["rows"])
    batch = jax.device_put(worlds.batch(SCHEMA, 1, 32, 0, {"item": np.arange(3, 35)}))
    grads = {"item": jnp.ones((1, 32, DIM))}

    @jax.jit
    def train(values):
        body = lambda i, v: embedding.update(  # noqa: E731
            [t], v, batch, grads, rng=jax.random.fold_in(jax.random.key(1), i)
        )
        return jax.lax.fori_loop(0, 1000, body, values)

    rows = train(values)["item"]["rows"]
    assert rows.dtype == jnp.bfloat16
    moved = rows[3:35].astype(jnp.float32)
    assert abs(float(moved.mean())) < 0.02  # 1 - 1000 * 1e-3
    with raises(ValueError, "rng"):
        embedding.update([t], values, batch, grads)


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "lazy_adam", "ftrl"])
def test_temporaries_do_not_grow_with_the_table(optimizer):
    """10 M x 16, 4096 x 26 ids: under 64 MiB, the table in place."""
    rows, slots = 10_000_000, 65_536
    t = Table("item", 16, optimizer=optimizer)
    spaces = Schema((IdSpace("item", rows, rows),), ())
    values = jax.eval_shape(lambda: embedding.init(jax.random.key(0), [t], spaces))
    batch = {"ids": {"item": jax.ShapeDtypeStruct((1, slots), jnp.int32)}}
    grads = {"item": jax.ShapeDtypeStruct((1, slots, 16), jnp.float32)}

    def step(values, batch, grads):
        read = embedding.gather([t], values, batch)["item"]
        return embedding.update([t], values, batch, {"item": grads["item"] + read})

    memory = jax.jit(step, donate_argnums=0).lower(values, batch, grads).compile()
    stats = memory.memory_analysis()
    assert stats.temp_size_in_bytes < 64 << 20
    assert stats.alias_size_in_bytes >= rows * 16 * 4  # donated: updated in place


def test_bad_tables_are_named():
    with raises(SchemaError, "'item'", "'adam'"):
        embedding.check([table("adam")])
    with raises(SchemaError, "'item'", "twice"):
        embedding.check([table("sgd"), table("sgd")])


def test_rows_begin_at_their_scale():
    t = dataclasses.replace(table("sgd"), dim=512, init_scale=0.02)
    rows = np.asarray(embedding.init(jax.random.key(0), [t], SCHEMA)["item"]["rows"])
    assert not rows[0].any()
    np.testing.assert_allclose(rows[1:].std(), 0.02, rtol=0.02)
