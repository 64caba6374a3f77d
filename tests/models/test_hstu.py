"""HSTU: golden numbers of both released forms, exact properties, and a task of counting that only the history tells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import models
from recjax.layers.attention import time_buckets
from recjax.models.hstu import LADDER, HSTULayer
from tests.models.golden import squares as G
from tests.models.worlds import SCHEMA, auc, close, far, make, train, world


def f32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def norm(scale, bias, n):
    return {"scale": 1 + G(scale, (n,), 0.1), "bias": G(bias, (n,), 0.1)}


def ranking(i):
    return f32({
        "norm_in": norm(1 + i, 2 + i, 4),
        "uvqk": {"kernel": G(3 + i, (4, 20), 0.5), "bias": G(5 + i, (20,), 0.1)},
        "norm_out": norm(9 + i, 11 + i, 6),
        "out": {"kernel": G(7 + i, (18, 4), 0.3)},
    })  # fmt: skip


X = jnp.asarray(G(0.2, (2, 5, 4)), jnp.float32)[:1]
LAYER = HSTULayer(heads=2, qk=2, v=3, norm_len=5)
MASK = jnp.ones((1, 3), bool)


PARAMS = (ranking(0), ranking(1))


def two(x, z, mask=MASK, params=PARAMS, layer=LAYER):
    for p in params:
        x, z = layer.apply({"params": p}, x, z, mask)
    return x, z


def test_golden_ranking():
    """float64 of the equations, three events and two candidates; the authors' code agrees to 1e-7."""
    x, z = two(X[:, :3], X[:, 3:])
    close(z[0, 1], [-0.533187, 0.298504, 1.600377, -0.832669])
    close(z[0, 0], [-0.648513, 0.880596, 0.333051, -0.219944])
    close(x[0, 0], [-0.516010, 0.387334, 0.116437, 0.924217])
    alone = two(X[:, :3], X[:, 4:])[1]
    close(alone[0, 0], z[0, 1])  # a candidate never sees another


def test_golden_retrieval():
    """Released rule of times: row i uses the next event's; the authors' module agrees to 1.2e-15."""
    layer = HSTULayer(heads=2, qk=2, v=3, form="retrieval", norm_len=4)
    t = np.array([0, 60, 3600, 90000])
    buckets = np.asarray(time_buckets(np.append(t[1:], t[-1])[:, None] - t))
    assert buckets[0].tolist() == [13, 0, 27, 37]
    x = jnp.asarray(G(0.1, (2, 4, 6)), jnp.float32)[:1]
    z = jnp.zeros((1, 0, 6))
    place = np.arange(4) - np.arange(4)[:, None] + 3
    for i in range(2):
        params = {
            "uvqk": {"kernel": G(1 + i, (6, 20), 0.5)},
            "out": {"kernel": G(11 + i, (6, 6), 0.5), "bias": G(21 + i, (6,), 0.1)},
        }
        rab = G(41 + i, (7,), 0.5)[place] + G(31 + i, (129,), 0.5)[buckets]
        bias = jnp.pad(f32(rab), ((0, 1), (0, 1)))[None, None]
        x, z = layer.apply({"params": f32(params)}, x, z, jnp.ones((1, 4), bool), bias)
    want = [1.258958, -0.636379, 0.684238, -0.337408, 0.831954, 0.381121]
    close(x[0, 3], want, 2e-5)


def test_exact_properties():
    p = ranking(0)
    zero = p | {"uvqk": jax.tree.map(jnp.zeros_like, p["uvqk"])}
    x, z = two(X[:, :3], X[:, 3:], params=(zero,))
    close((x, z), (X[:, :3], X[:, 3:]))  # nothing flows
    before = two(X[:, :3], X[:, 3:])[0]
    after = two(X[:, :3].at[:, 2].add(1.0), X[:, 3:])[0]
    close(after[:, :2], before[:, :2])  # causal
    assert far(after[:, 2], before[:, 2])
    turned = two(X[:, [2, 0, 1]], X[:, 3:], params=(p,))[1]
    close(turned, two(X[:, :3], X[:, 3:], params=(p,))[1])  # one layer without rab: no order
    less = two(X[:, :3], X[:, 3:], MASK.at[0, 0].set(False))[1]
    close(less, two(X[:, 1:3], X[:, 3:], MASK[:, 1:])[1])  # M stays: padding is nothing
    softer = LAYER.clone(norm_len=50)
    assert far(two(X[:, :3], X[:, 3:], layer=softer)[1], two(X[:, :3], X[:, 3:])[1], 1e-2)


def test_time_and_place_bias_the_attention():
    w = world(b=4, c=3, n=6)
    options = dict(name="hstu", layers=1, width=8, head=(8,), dense_norm="identity")
    for rab in (True, False):
        m = make(models.build(SCHEMA, options | dict(rab=rab)), w)
        assert bool(far(m.logits(w.replace(age=w.age // 50)), m.logits(w), 1e-4)) is rab


@pytest.mark.parametrize(
    ("grade", "size"), [("0", 1_920), ("1", 22_272), ("2", 272_640), ("3", 2_855_424)]
)
def test_sizes_of_the_ladder(grade, size):
    """7 D^2 + 8 D a layer, without rab."""
    g = LADDER[grade]
    d, per_head = g["width"], g["width"] // g["heads"]
    layer = HSTULayer(g["heads"], per_head, per_head)
    x = jnp.zeros((1, 2, d))
    params = jax.eval_shape(layer.init, jax.random.key(0), x, x, jnp.ones((1, 2), bool))
    assert g["layers"] * sum(p.size for p in jax.tree.leaves(params)) == size
    models.build(SCHEMA, dict(name="hstu", **g))


def test_heads_must_divide():
    with pytest.raises(ValueError, match="heads=3 must divide width=32"):
        models.build(SCHEMA, dict(name="hstu", heads=3))


@pytest.mark.slow
def test_how_many_events_agree_is_counted():
    """A click when at least three of twelve events are of the candidate's category; without events there is nothing."""
    w = world(b=2560, c=1, n=12, lengths=12)
    rng = np.random.default_rng(0)
    category = rng.integers(1, 5, w.mask.shape).astype(np.int32)
    asked = rng.integers(1, 5, (len(category), 1)).astype(np.int32)
    one = np.ones_like
    w = w.replace(
        past_item=one(category), item=one(asked), past_category=category, category=asked,
        click=((category == asked).sum(1, keepdims=True) >= 3).astype(np.float32),
    )  # fmt: skip
    options = dict(name="hstu", layers=1, width=8, head=(16,), dense_norm="identity")
    system = models.build(SCHEMA, options)

    def heldout(w):
        m = train(system, w.select(slice(2048)), steps=250)
        test = w.select(slice(2048, None))
        return auc(m.logits(test).ravel(), test.raw["click"].ravel())

    assert heldout(w) > 0.9
    assert 0.4 < heldout(w.replace(mask=np.zeros_like(w.mask))) < 0.6
