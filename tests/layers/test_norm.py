import jax
import jax.numpy as jnp
import numpy as np

from recjax.layers.norm import RMSNorm, make_norm
from tests.messages import raises


def test_rms_norm_by_hand_with_eps_outside_the_root():
    x = jnp.array([[3.0, 4.0]])
    rms = np.sqrt(12.5)
    y = RMSNorm(eps=0.5).apply({"params": {"scale": jnp.array([1.0, 2.0])}}, x)
    np.testing.assert_allclose(y, [[3 / (rms + 0.5), 8 / (rms + 0.5)]], rtol=1e-6)


def test_rms_norm_has_unit_rms_and_ignores_scale():
    x = jax.random.normal(jax.random.key(0), (5, 16))
    norm = RMSNorm()
    params = norm.init(jax.random.key(1), x)
    y = norm.apply(params, x)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(y), -1)), 1.0, atol=1e-5)
    np.testing.assert_allclose(norm.apply(params, 7 * x), y, atol=1e-5)


def test_a_zero_row_has_a_finite_gradient():
    x = jnp.zeros((2, 4)).at[1].set(1.0)
    norm = RMSNorm()
    params = norm.init(jax.random.key(0), x)
    grad = jax.grad(lambda x: norm.apply(params, x)[1].sum())(x)
    assert np.isfinite(grad).all() and not grad[0].any()


def test_statistics_are_float32_under_bfloat16():
    x = jnp.full((1, 4), 3e19, jnp.bfloat16)  # its square overflows nothing but float16
    y = RMSNorm(dtype=jnp.bfloat16).apply({"params": {"scale": jnp.ones(4)}}, x / 1e3)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), 1.0, rtol=1e-2)


def test_layer_norm_is_an_option_and_others_are_named():
    x = jax.random.normal(jax.random.key(0), (3, 8)) + 5
    norm = make_norm("layer", jnp.float32, jnp.float32)
    y = norm.apply(norm.init(jax.random.key(1), x), x)
    np.testing.assert_allclose(np.mean(y, -1), 0.0, atol=1e-5)
    with raises(ValueError, "rms", "layer"):
        make_norm("group", jnp.float32, jnp.float32)
