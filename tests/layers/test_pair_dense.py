"""The layer on pairs against the dense layer on their features, written out."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.layers.mlp import ACTIVATIONS, MLP
from recjax.layers.pair_dense import EventPairs, PairDense

B, L, D, W = 3, 5, 4, 7


def pairs(candidates: int, scale: float = 1.0) -> EventPairs:
    k = jax.random.split(jax.random.key(candidates), 2)
    return EventPairs(
        scale * jax.random.normal(k[0], (B, L, D)),
        scale * jax.random.normal(k[1], (B, candidates, D)),
    )


@pytest.mark.parametrize("candidates", [1, 6])
def test_it_is_the_dense_layer_on_the_features(candidates):
    """Same parameters, by name, shape and first value: a checkpoint of either is one of the other."""
    x = pairs(candidates)
    dense, ours = nn.Dense(W, kernel_init=nn.initializers.he_normal()), PairDense(W)
    params = dense.init(jax.random.key(0), x.features())
    jax.tree.map(np.testing.assert_array_equal, params, ours.init(jax.random.key(0), x))
    params = jax.tree.map(lambda p: p + 0.1, params)  # a bias that counts
    want = dense.apply(params, x.features())
    assert want.shape == (B, candidates, L, W)
    np.testing.assert_allclose(ours.apply(params, x), want, atol=2e-6)

    def loss(layer, make):
        return lambda p, x: jnp.sin(layer.apply(p, make(x))).sum()

    for a, b in zip(
        jax.tree.leaves(jax.grad(loss(dense, EventPairs.features), (0, 1))(params, x)),
        jax.tree.leaves(jax.grad(loss(ours, lambda x: x), (0, 1))(params, x)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=3e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_mlp_of_any_activation_takes_pairs(activation):
    x = pairs(2)
    mlp = MLP((W, 3), activation=activation, norm="batch" if activation == "relu" else "none")
    valid = jnp.arange(L) < jnp.array([5, 2, 0])[:, None]
    valid = jnp.broadcast_to(valid[:, None], (B, 2, L))
    v = mlp.init(jax.random.key(0), x.features(), train=False, valid=valid)
    call = jax.jit(lambda x: mlp.apply(v, x, train=True, valid=valid, mutable=["batch_stats"])[0])
    np.testing.assert_allclose(call(x), call(x.features()), atol=5e-6)


def test_without_a_layer_pairs_are_their_features():
    x = pairs(2)
    np.testing.assert_array_equal(MLP(()).apply({}, x, train=False), x.features())
    e, q = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    one = EventPairs(jnp.asarray(e)[None, None], jnp.asarray(q)[None, None])
    np.testing.assert_array_equal(one.features().ravel(), [1, 2, 3, 5, -2, -3, 3, 10])


def test_no_tensor_of_all_features_is_made():
    """In the program before and after the compiler, backward pass included; the dense layer has it."""
    x = pairs(6)
    mlp = MLP((W,))
    v = mlp.init(jax.random.key(0), x, train=False)
    loss = lambda v, x: jnp.square(mlp.apply(v, x, train=False)).sum()  # noqa: E731
    size = f"{B},6,{L},{4 * D}]"
    texts = [
        jax.jit(jax.grad(loss, (0, 1))).lower(v, x).compile().as_text(),
        jax.jit(jax.grad(lambda v, x: loss(v, x.features()), (0, 1)))
        .lower(v, x)
        .compile()
        .as_text(),
    ]
    assert [size in t or f"{B * 6 * L},{4 * D}]" in t for t in texts] == [False, True]


def test_bfloat16_rounds_weights_once():
    x = pairs(1)
    layer = PairDense(W, dtype=jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)
    want = nn.Dense(W).apply(params, x.features())
    assert layer.apply(params, x).dtype == jnp.bfloat16
    np.testing.assert_allclose(layer.apply(params, x), want, atol=0.1)
