"""DCN-V2: golden numbers of its crosses, exact properties, and an interaction that a linear model cannot see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import models
from recjax.models.dcnv2 import CrossNet
from tests.models.golden import squares as G
from tests.models.worlds import SCHEMA, auc, close, train, world

X0 = G(0.4, (2, 5))
FULL = {f"cross_{i}_kernel": G(1 + i, (5, 5), 0.5) for i in range(2)}
BIAS = {f"cross_{i}_bias": G(3 + i, (5,), 0.1) for i in range(2)}
MIX = BIAS | {"gate": G(11, (3, 5), 0.7)}
for i in range(2):
    MIX |= {f"cross_{i}_U": G(5 + i, (3, 5, 2), 0.6), f"cross_{i}_V": G(7 + i, (3, 5, 2), 0.6)}
    MIX[f"cross_{i}_C"] = G(9 + i, (3, 2, 2), 0.8)
LOW = BIAS | {k: v[:1] for k, v in MIX.items() if k[-1] in "UV"}


def cross(params, x=X0, **options):
    return CrossNet(2, **options).apply({"params": params}, jnp.asarray(x, jnp.float32))


# float64 of the equations on the inputs above; two public implementations agree to 5e-16.
@pytest.mark.parametrize(
    ("options", "params", "row"),
    [
        ({}, FULL | BIAS, [1.427456, 0.755111, -1.508351, 1.283524, -1.380821]),
        (dict(rank=2), LOW, [0.722032, 0.403063, -1.833068, 0.719649, -2.391699]),
        (dict(rank=2, experts=3), MIX, [0.366435, 0.758667, -0.990756, 0.945118, -0.956700]),
    ],
    ids=["full", "low rank", "mix"],
)
def test_golden(options, params, row):
    close(cross(params, **options)[0], row, 1e-5)
    close(cross(params, X0[:1], **options), cross(params, **options)[:1])  # a batch of one


def test_golden_gradients():
    weights = jnp.asarray(G(9, (2, 5)), jnp.float32)

    def total(params, **options):
        return (cross(params, **options) * weights).sum()

    full = jax.grad(total)(jax.tree.map(jnp.float32, FULL | BIAS))
    close(full["cross_0_kernel"][0, :2], [-0.281481, -0.465854])
    mix = jax.grad(lambda p: total(p, rank=2, experts=3))(jax.tree.map(jnp.float32, MIX))
    close(mix["gate"][0, 0], -0.011090)


def test_exact_properties():
    zero = jax.tree.map(np.zeros_like, FULL | BIAS)
    close(cross(zero), X0)
    ones = {k: np.ones_like(v) if "bias" in k else v for k, v in zero.items()}
    close(cross(ones), 3 * X0)  # the bias lies inside the product
    close(cross(FULL | BIAS, 0 * X0), 0 * X0)
    same = {k: np.eye(5) if "kernel" in k else v for k, v in zero.items()}
    close(CrossNet(1).apply({"params": same}, X0), X0**2 + X0)
    alike = {k: v if "bias" in k or k == "gate" else np.stack([v[0]] * 3) for k, v in MIX.items()}
    other = alike | {"gate": -3 * MIX["gate"]}
    close(cross(alike, rank=2, experts=3), cross(other, rank=2, experts=3))


def test_each_expert_is_initialised_alone():
    """Glorot over [K, d, r] as one kernel would take K for a convolution."""
    params = CrossNet(1, 32, 4).init(jax.random.key(0), jnp.ones((2, 400)))["params"]
    assert np.std(params["cross_0_U"]) == pytest.approx(np.sqrt(2 / 432), rel=0.03)


def test_full_rank_needs_no_experts():
    with pytest.raises(ValueError, match="model.rank"):
        models.build(SCHEMA, dict(name="dcnv2", experts=2))
    with pytest.raises(ValueError, match="structure='deep'"):
        models.build(SCHEMA, dict(name="dcnv2", structure="deep"))


@pytest.mark.parametrize(("layers", "low", "high"), [(1, 0.8, 1.0), (0, 0.4, 0.6)])
def test_a_product_is_found_by_a_cross_and_by_nothing_linear(layers, low, high):
    w = world(b=2560, c=1, n=2, lengths=1)
    same = (w.raw["age_group"] + w.raw["past_category"][:, -1]) % 2
    w = w.replace(click=same[:, None].astype(np.float32))
    options = dict(name="dcnv2", structure="cross", layers=layers, dense_norm="identity")
    m = train(models.build(SCHEMA, options), w.select(slice(2048)), steps=300)
    test = w.select(slice(2048, None))
    assert low < auc(m.logits(test).ravel(), test.raw["click"].ravel()) <= high
