import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.layers.mlp import MLP, Dice, Logits, MaskedBatchNorm, PReLU, ReluFFN, SwiGLU
from tests.messages import raises


def test_swiglu_by_hand():
    x = jnp.array([[2.0]])
    one = lambda k, b: {"kernel": jnp.array(k), "bias": jnp.array(b)}  # noqa: E731
    params = {
        "w1": one([[1.0]], [0.5]),
        "w2": one([[3.0]], [-1.0]),
        "w3": one([[2.0]], [0.25]),
    }
    want = 2 * (2.5 / (1 + np.exp(-2.5))) * 5 + 0.25
    np.testing.assert_allclose(SwiGLU(multiple=1).apply({"params": params}, x), [[want]], rtol=1e-6)


def test_relu_ffn_has_the_weights_of_swiglu():
    x = jnp.zeros((1, 8))
    sizes = []
    for module in (SwiGLU(), ReluFFN()):
        params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        sizes.append(sum(p["kernel"].size for p in params.values()))
    assert sizes[0] == sizes[1] == 9 * 8 * 8


def test_batch_statistics_ignore_invalid_rows():
    x = jax.random.normal(jax.random.key(0), (6, 2, 3))
    valid = jnp.arange(6)[:, None] < jnp.array([4, 5])
    norm = MaskedBatchNorm()
    variables = norm.init(jax.random.key(1), x, train=False)

    def run(x, valid):
        return norm.apply(variables, x, train=True, valid=valid, mutable=["batch_stats"])

    y, stats = run(x, valid)
    rows = np.asarray(x)[np.asarray(valid)]
    np.testing.assert_allclose(
        y[valid], (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5), atol=1e-5
    )
    garbage, other = run(jnp.where(valid[..., None], x, 1e6), valid)
    np.testing.assert_allclose(garbage[valid], y[valid], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stats, other)
    assert np.abs(run(x, None)[0] - y).max() > 1e-2  # the control: without the mask it differs


def test_evaluation_uses_moving_averages():
    x = jnp.full((4, 1), 3.0)
    norm = MaskedBatchNorm(eps=0.0)
    variables = {
        "params": {"norm": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}},
        "batch_stats": {"norm": {"mean": jnp.ones(1), "var": jnp.full(1, 4.0)}},
    }
    np.testing.assert_allclose(norm.apply(variables, x, train=False), 1.0)


def test_dice_is_a_prelu_around_the_batch_mean():
    x = jnp.array([[-1.0], [1.0], [3.0]])
    dice = Dice()
    variables = dice.init(jax.random.key(0), x, train=False)
    assert variables["params"]["a"] == 0.0
    variables = {**variables, "params": {**variables["params"], "a": jnp.array([0.5])}}
    y, _ = dice.apply(variables, x, train=True, mutable=["batch_stats"])
    s = 1 / (1 + np.exp(-(np.asarray(x) - 1) / np.sqrt(8 / 3)))
    np.testing.assert_allclose(y, s * x + (1 - s) * 0.5 * x, atol=1e-5)


def test_prelu():
    y = PReLU().apply({"params": {"a": jnp.array([0.1])}}, jnp.array([[-2.0], [3.0]]))
    np.testing.assert_allclose(y, [[-0.2], [3.0]])


@pytest.mark.parametrize("norm", ["batch", "rms", "layer", "none"])
@pytest.mark.parametrize("activation", ["dice", "silu"])
def test_mlp_shapes_and_types(norm, activation):
    mlp = MLP((5, 4), norm, activation, dtype=jnp.bfloat16)
    x = jnp.ones((2, 3, 6), jnp.bfloat16)
    y, variables = jax.eval_shape(
        lambda k: mlp.init_with_output(k, x, train=False), jax.random.key(0)
    )
    assert y.shape == (2, 3, 4) and y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_unknown_activation_is_named():
    with raises(ValueError, "dice", "prelu", "relu"):
        MLP((2,), activation="swish2").init(jax.random.key(0), jnp.ones((1, 2)), train=False)


def test_logits_are_float32_and_per_output():
    x = jnp.ones((2, 3, 4), jnp.bfloat16)
    read = Logits(("logits", "like"), dtype=jnp.bfloat16)
    out = read.apply(read.init(jax.random.key(0), x, train=False), x, train=False)
    assert out["like"].shape == (2, 3) and out["logits"].dtype == jnp.float32
    assert (out["like"] != out["logits"]).all()


def test_dropout_drops_and_scales_in_training_alone():
    x, mlp = jnp.ones((50, 4)), MLP((8,), activation="sigmoid", dropout=0.5)
    variables = mlp.init(jax.random.key(0), x, train=False)
    whole = mlp.apply(variables, x, train=False)
    assert (whole > 0).all()
    some = mlp.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})
    dropped = np.asarray(some == 0)
    assert 0.3 < dropped.mean() < 0.7
    np.testing.assert_allclose(some, np.where(dropped, 0, 2 * whole), rtol=1e-6)


def test_prelu_begins_at_a_quarter():
    assert PReLU().init(jax.random.key(0), jnp.ones((1, 2)))["params"]["a"].tolist() == [0.25] * 2


def test_logits_are_normalised_over_valid_slots_alone():
    x = jax.random.normal(jax.random.key(0), (6, 2, 3))
    valid = jnp.arange(6)[:, None] < jnp.array([4, 5])
    read = Logits(("logits",), batchnorm=True)
    variables = read.init(jax.random.key(1), x, train=False)
    logits = read.apply(variables, x, train=True, valid=valid, mutable=["batch_stats"])[0]["logits"]
    np.testing.assert_allclose(logits[valid].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(logits[valid].var(), 1, atol=1e-3)
