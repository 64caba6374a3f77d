"""The geometry that NIF stands on (section 7 of its specification)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.layers import sphere
from tests.models.worlds import close, far, finite, jit


def points(n, d=32, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def geodesic(p, q, angles):
    """Points on the great circle from p through q, at these angles."""
    v = q - (p @ q) * p
    v /= np.linalg.norm(v)
    return np.stack([np.cos(a) * p + np.sin(a) * v for a in angles]).astype(np.float32)


@pytest.mark.parametrize("d", [8, 64, 256])
def test_exponential_and_logarithm(d):
    p, q = points(40, d), points(40, d, 1)
    v = np.asarray(sphere.log(p, q))
    angle = np.arccos(np.clip((p * q).sum(-1).astype(np.float64), -1, 1))
    assert np.abs(np.asarray(sphere.exp(p, v)) - q).max() < 1e-5
    assert np.abs((p * v).sum(-1)).max() < 1e-5
    assert np.abs(np.linalg.norm(v, axis=-1) - angle).max() < 1e-5
    moved = np.asarray(sphere.transport(p, q, v))
    assert np.abs(moved + np.asarray(sphere.log(q, p))).max() < 1e-5
    assert np.abs(np.linalg.norm(moved, axis=-1) - angle).max() < 1e-5
    other = np.asarray(sphere.transport(p, q, sphere.log(p, points(40, d, 2))))
    assert np.abs((q * other).sum(-1)).max() < 1e-5, "a tangent at q"


def test_gradients_are_finite_where_arccos_is_not():
    p = points(1)[0]
    grad = jax.grad(lambda p, q: sphere.norm(sphere.log(p, q)))
    for q in (p, -p, np.zeros_like(p)):
        assert finite(grad(p, q))
    naive = jax.grad(
        lambda p, q: jnp.arccos((p * q).sum() / jnp.sqrt((p * p).sum() * (q * q).sum()))
    )
    e = np.eye(4, dtype=np.float32)[0]
    assert not finite(naive(e, e)), "control"


@jit
def measured(x, real):
    return sphere.motion(x, real)


def test_an_even_geodesic_is_neither_new_nor_bent():
    p, q = points(2)
    x = geodesic(p, q, 0.2 * np.arange(7))[None]
    m = measured(x, np.ones((1, 7), bool))
    assert np.asarray(m.novelty).max() < 1e-4 and np.asarray(m.acceleration).max() < 1e-5
    np.testing.assert_allclose(m.speed, 0.2, atol=1e-5)
    uneven = measured(geodesic(p, q, 0.05 * np.arange(7) ** 2)[None], np.ones((1, 7), bool))
    assert np.asarray(uneven.novelty).max() < 1e-3 and np.asarray(uneven.acceleration).min() > 0.05
    wild = measured(points(7, seed=3)[None], np.ones((1, 7), bool))
    assert np.asarray(wild.novelty).min() > 0.5 and np.asarray(wild.acceleration).min() > 0.5


def test_novelty_splits_the_step_at_right_angles():
    """|v|^2 = |v_par|^2 + |v_perp|^2 up to the ridge, against a least-squares projection."""
    x = points(7, seed=5)
    m = measured(x[None], np.ones((1, 7), bool))
    for k in range(1, 6):
        w = np.stack([np.asarray(sphere.log(x[k], x[j]), np.float64) for j in range(k)])
        v = np.asarray(sphere.log(x[k], x[k + 1]), np.float64)
        par = w.T @ np.linalg.lstsq(w.T, v, rcond=None)[0]
        perp = float(m.novelty[0, k - 1])
        assert perp == pytest.approx(np.linalg.norm(v - par), abs=2e-3)
        assert v @ v == pytest.approx(par @ par + perp**2, abs=5e-3)


def test_rotations_change_nothing():
    x = points(14, seed=1).reshape(2, 7, 32)
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))
    real = np.ones((2, 7), bool)
    close(measured(x, real), measured((x @ q).astype(np.float32), real), 1e-5)


def test_points_that_do_not_exist_have_no_effect():
    x = points(7, seed=2)[None].repeat(2, 0)
    x[1, 4:] = 0.0
    x[0, 4:] = points(3, seed=9)
    real = np.arange(7) < 4
    m = measured(x, np.stack([real, real]))
    assert m.steps.tolist() == [[True, True, True, False, False, False]] * 2
    for name in ("speed", "novelty", "acceleration"):
        value = np.asarray(getattr(m, name))
        np.testing.assert_array_equal(value[0, :2], value[1, :2])
    first = measured(x, np.stack([real & (np.arange(7) > 0), real]))  # no P_0
    assert far(first.novelty[0, :2], m.novelty[0, :2]) and not first.bends[0, 0]


def test_a_collapsed_trajectory_has_finite_gradients():
    p = points(1)[0]
    x = np.broadcast_to(p, (1, 5, 32)).copy()

    def total(x):
        m = sphere.motion(sphere.unit(x), jnp.ones((1, 5), bool))
        return m.novelty.sum() + m.acceleration.sum() + m.speed.sum()

    assert finite(jit(jax.grad(total))(x))
