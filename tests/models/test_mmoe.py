"""MMoE: golden numbers, exact properties, and two tasks that one shared bottom of an expert's width cannot serve."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recjax import models
from recjax.models.mmoe import Mixture, Stacked
from tests.models.golden import squares as G
from tests.models.worlds import SCHEMA, close, far, jit, make, world

X = jnp.asarray(G(0.5, (3, 4)), jnp.float32)
EXPERTS = {"kernel_0": G(1, (3, 4, 3), 0.6), "bias_0": G(2, (3, 3), 0.1)}
GATE = G(3, (2, 4, 3), 0.9)
TOWERS = {
    "kernel_0": G(4, (2, 3, 2), 0.7),
    "bias_0": 0.5 + G(5, (2, 2), 0.1),
    "kernel_1": G(6, (2, 2), 0.8)[..., None],
    "bias_1": G(7, (2,), 0.2)[:, None],
}
PARAMS = jax.tree.map(jnp.float32, {"experts": EXPERTS, "gate": GATE})


def mix(params=PARAMS, **options):
    options = dict(experts=3, widths=(3,)) | options
    return Mixture(2, **options).apply({"params": params}, X)


def logits(params=PARAMS):
    towers = jax.tree.map(jnp.float32, TOWERS)
    return Stacked((2, 1), linear=True).apply({"params": towers}, mix(params)[0])[..., 0]


def test_golden():
    """float64 of the equations; a public implementation's layers agree to 1.2e-16."""
    close(mix()[1][0], [[0.199008, 0.598549, 0.202443], [0.848202, 0.058402, 0.093396]])
    close(logits(), [[-0.049207, 0.113484], [0.106736, 0.001837], [-0.028179, 0.110877]])


def test_golden_gradients():
    click = jnp.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])

    def loss(params):
        each = optax.sigmoid_binary_cross_entropy(logits(params), click)
        return each[:, 0].mean() + (each[:, 1] * click[:, 0]).sum() / 2  # the second where clicked

    grads = jax.grad(loss)(PARAMS)
    close(grads["gate"][0, 0, 0], -0.022102)
    close(grads["experts"]["kernel_0"][0, 0, 0], 0.008988)


def test_own_experts_come_first_and_are_nobody_elses():
    """CGC: the golden block, and no gradient of task 1 in task 2's expert."""
    shared, own = G(11, (2, 4, 3), 0.6), G(13, (2, 1, 4, 3), 0.6)[:, 0]
    bias = np.concatenate([G(12, (2, 3), 0.1), G(14, (2, 1, 3), 0.1)[:, 0]])
    experts = {"kernel_0": np.concatenate([shared, own]), "bias_0": bias}
    params = jax.tree.map(jnp.float32, {"experts": experts, "gate": G(15, (2, 4, 3), 0.9)})
    close(mix(params, experts=2, own=1)[0][0, 0], [0.176098, 0.363648, 0.132548])
    grads = jax.grad(lambda p: mix(p, experts=2, own=1)[0][:, 0].sum())(params)
    kernel = grads["experts"]["kernel_0"]
    assert not kernel[3].any() and all(kernel[i].any() for i in (0, 1, 2))


def test_gates_mix():
    found, gates = mix({**PARAMS, "gate": 0 * PARAMS["gate"]})
    close(gates, np.full(gates.shape, 1 / 3))
    close(found[:, 0], found[:, 1])
    one = jax.tree.map(lambda x: x[:1], PARAMS["experts"])
    same = {"experts": jax.tree.map(lambda x: jnp.repeat(x, 3, 0), one), "gate": PARAMS["gate"]}
    close(mix(same)[0][:, 0], mix(same)[0][:, 1])  # equal experts: no gate matters
    assert far(mix()[0][:, 0], mix()[0][:, 1])


def test_experts_begin_different_and_a_task_is_a_label():
    m = make(models.build(SCHEMA, dict(name="mmoe", labels=["click", "like"])), world())
    assert set(m.outputs(world())) == {"logits", "like"}
    params = Mixture(2, 3, widths=(5,)).init(jax.random.key(0), X)["params"]
    kernel = params["experts"]["kernel_0"]
    assert far(kernel[0], kernel[1], 0.1) and np.abs(kernel).max() <= np.sqrt(6 / 9)
    with pytest.raises(ValueError, match="head_norm='batch'"):
        models.build(SCHEMA, dict(name="mmoe", head_norm="batch"))


def planted(experts, steps=400):
    """Mean squared error of two orthogonal linear tasks behind experts one unit wide: room for one task each."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(4096, 8)), np.ones((4096, 1))], 1).astype(np.float32)
    y = x[:, :8] @ np.linalg.qr(rng.normal(size=(8, 2)))[0].astype(np.float32)
    net, towers = Mixture(2, experts, widths=(1,)), Stacked((1,), linear=True)
    keys = jax.random.split(jax.random.key(0), 2)
    params = {"net": net.init(keys[0], x[:1]), "towers": towers.init(keys[1], jnp.ones((1, 2, 1)))}
    optimizer = optax.adam(3e-2)

    def loss(params, i):
        x_i, y_i = (jax.lax.dynamic_slice_in_dim(a, 64 * (i % 64), 64) for a in (x, y))
        mixed, _ = net.apply(params["net"], x_i)
        return ((towers.apply(params["towers"], mixed)[..., 0] - y_i) ** 2).mean()

    def step(carry, i):
        params, moments = carry
        value, grads = jax.value_and_grad(loss)(params, i)
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(params, updates), moments), value

    run = jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps))[1])
    return float(run((params, optimizer.init(params)))[-64:].mean())


def test_gates_of_their_own_part_tasks_that_one_bottom_cannot_serve():
    many, shared = planted(4), planted(1)
    assert many < 0.15 and shared > 0.35, (many, shared)
