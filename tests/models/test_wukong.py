"""Wukong: golden numbers of its layers, exact properties, sizes of the ladder, and an interaction that no sum shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import models
from recjax.layers.mlp import MLP, Logits
from recjax.models.wukong import LADDER, WukongLayer
from tests.models.golden import squares as G
from tests.models.worlds import SCHEMA, auc, close, far, train, world

X = jnp.asarray(G(0.3, (2, 5, 4)), jnp.float32)
LAYER = WukongLayer(rows=2, rank=3, mlp=(6,))


def weights(i: int, n: int) -> dict:
    found = {
        "Y": G(1 + i, (n, 3), 0.6),
        "fm_norm": {"scale": 1 + G(3 + i, (n * 3,), 0.1), "bias": G(5 + i, (n * 3,), 0.1)},
        "mlp": {"dense_0": {"kernel": G(7 + i, (n * 3, 6), 0.4), "bias": G(9 + i, (6,), 0.1)}},
        "mlp_out": {"kernel": G(11 + i, (6, 8), 0.4), "bias": G(13 + i, (8,), 0.1)},
        "W_L": G(15 + i, (2, n), 0.5),
        "out_norm": {"scale": 1 + G(17 + i, (4,), 0.1), "bias": G(19 + i, (4,), 0.1)},
    }
    found |= {"P": G(21 + i, (4, n), 0.5)} if n != 4 else {}
    return jax.tree.map(jnp.float32, found)


PARAMS = (weights(0, 5), weights(1, 4))


def stack(params=PARAMS, x=X):
    for p in params:
        x = LAYER.apply({"params": p}, x)
    return x


def test_golden():
    """float64 of the equations; a public implementation agrees to 2.8e-15."""
    y = stack()
    close(y[0, 0], [-1.397645, 0.073461, 0.438494, 1.114025])
    close(y[1, 3], [0.570482, -1.557166, 1.117040, -0.071262])
    relu = [-1.491105, 0.744253, 0.230382, 0.799015]  # with the last layer of the MLP through ReLU
    assert far(y[0, 0], relu, 0.5)


def test_golden_gradients():
    c = jnp.asarray(G(9, (2, 4, 4)), jnp.float32)
    grads = jax.grad(lambda p: (stack(p) * c).sum())(PARAMS)
    close(grads[0]["Y"][0, 0], 0.660663, 1e-4)
    close(grads[0]["W_L"][0, 0], 0.436157, 1e-4)


def test_exact_properties():
    p = PARAMS[1]
    x = X[:, :4]
    zero = jax.tree.map(jnp.zeros_like, p) | {"out_norm": p["out_norm"]}
    norm = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    want = norm * p["out_norm"]["scale"] + p["out_norm"]["bias"]
    close(LAYER.apply({"params": zero}, x), want)  # no blocks: the residual, normalised
    only_fm = p | {"W_L": 0 * p["W_L"]}
    rotate = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]

    def fmb(x):
        """The MLP's output: what the layer adds to its residual, before the last norm."""
        _, seen = LAYER.apply({"params": only_fm}, x, capture_intermediates=True)
        return seen["intermediates"]["mlp_out"]["__call__"][0]

    close(fmb(x @ rotate), fmb(x), 1e-4)
    close(fmb(-x), fmb(x))
    assert far(fmb(x[:, ::-1]), fmb(x), 0.05)
    close(stack(x=X[1:]), stack()[1:])  # a row alone


@pytest.mark.parametrize(
    ("grade", "size"), [("0", 2_909), ("1", 32_929), ("2", 308_801), ("3", 3_025_857)]
)
def test_sizes_of_the_ladder(grade, size):
    """Blocks and head at 20 rows of 16, by the formula of the parameter count."""
    g = LADDER[grade]

    def whole(x):
        key, total = jax.random.key(0), 0
        for _ in range(g["layers"]):
            layer = WukongLayer(g["rows"], g["rank"], g["mlp"])
            x, params = layer.init_with_output(key, x)
            total += sum(p.size for p in jax.tree.leaves(params))
        x = x.reshape(1, 1, -1)
        for last in (MLP(g["head"]), Logits(("logits",))):
            x, params = last.init_with_output(key, x, train=False)
            total += sum(p.size for p in jax.tree.leaves(params))
        return jnp.zeros(total)

    assert jax.eval_shape(whole, jnp.zeros((1, 20, 16))).shape == (size,)


@pytest.mark.parametrize("grade", LADDER)
def test_a_grade_is_a_config(grade):
    assert models.build(SCHEMA, dict(name="wukong", **LADDER[grade])).tables[0].dim == 16


def test_a_product_is_found():
    w = world(b=2560, c=1, n=2, lengths=1)
    same = (w.raw["age_group"] + w.raw["past_category"][:, -1]) % 2
    w = w.replace(click=same[:, None].astype(np.float32))

    def heldout(**options):
        m = train(models.build(SCHEMA, options), w.select(slice(2048)), steps=300)
        test = w.select(slice(2048, None))
        return auc(m.logits(test).ravel(), test.raw["click"].ravel())

    assert heldout(name="wukong", head=(), **{k: LADDER["1"][k] for k in ("layers", "rows", "rank", "mlp")}) > 0.8  # fmt: skip
    assert 0.4 < heldout(name="logistic", dense_norm="identity") < 0.6
