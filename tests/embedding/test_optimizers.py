"""Row optimizers against numbers worked out by hand, and against what they should equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.embedding.optimizers import OPTIMIZERS, stochastic_round

ROW = jnp.array([[1.0, -2.0]])
GRADS = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 1.0]])
LR = 0.5


def two_steps(name, rows=ROW, lr=LR, accumulator=0.1, **keys):
    optimizer = OPTIMIZERS[name]
    state, seen = optimizer.init(rows, accumulator), []
    for g in GRADS:
        rows, state = optimizer.update(rows, state, g, lr, **keys)
        seen.append(np.asarray(rows))
    return seen, state


def by_hand(name):
    """Both steps in plain Python floats."""
    if name == "sgd":
        return [[-0.5, -4.0], [-0.5, -4.5]]
    if name == "rowwise_adagrad":  # acc 0.1 + 25/2 = 12.6, then + 1/2 = 13.1
        a = [1 - 0.5 * 3 / 12.6**0.5, -2 - 0.5 * 4 / 12.6**0.5]
        return [a, [a[0], a[1] - 0.5 / 13.1**0.5]]
    if name in ("adagrad", "ftrl"):  # acc 9.1 and 16.1, then 9.1 and 17.1
        a = [1 - 0.5 * 3 / 9.1**0.5, -2 - 0.5 * 4 / 16.1**0.5]
        return [a, [a[0], a[1] - 0.5 / 17.1**0.5]]
    a = [0.5, -2.5]  # lazy Adam: the first step is lr * sign(g)
    mu = [0.9 * 0.3, 0.9 * 0.4 + 0.1]
    nu = [0.999 * 0.009, 0.999 * 0.016 + 0.001]
    c1, c2 = 1 - 0.9**2, 1 - 0.999**2
    return [a, [w - 0.5 * (m / c1) / (v / c2) ** 0.5 for w, m, v in zip(a, mu, nu, strict=True)]]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_steps_by_hand(name):
    (first, second), _ = two_steps(name)
    np.testing.assert_allclose(first[0], by_hand(name)[0], rtol=2e-6)
    np.testing.assert_allclose(second[0], by_hand(name)[1], rtol=2e-6)


def test_sums_from_zero_make_the_first_step_as_large_as_the_rate():
    """Whatever the size of the gradient: w - lr g / sqrt(mean g^2), and an untouched row is no 0 / 0."""
    for scale in (1.0, 1e-5):
        rows, g = jnp.array([[1.0, -2.0], [5.0, 6.0]]), scale * jnp.array([[3.0, 4.0], [0.0, 0.0]])
        for name, step in (
            ("adagrad", [0.5, 0.5]),
            ("rowwise_adagrad", [1.5 / 12.5**0.5, 2 / 12.5**0.5]),
        ):
            optimizer = OPTIMIZERS[name]
            after, _ = optimizer.update(rows, optimizer.init(rows, 0.0), g, LR)
            np.testing.assert_allclose(after, rows - jnp.array([step, [0, 0]]), rtol=2e-3)


def test_lazy_adam_counts_a_row_s_own_steps():
    rows, optimizer = jnp.ones((2, 2)), OPTIMIZERS["lazy_adam"]
    grads = jnp.array([[1.0, 1.0], [0.0, 0.0]])
    after, state = optimizer.update(rows, optimizer.init(rows, 0.1), grads, LR)
    assert state["count"].tolist() == [1, 0]
    np.testing.assert_array_equal(after[1], rows[1])
    assert (after[0] != rows[0]).all()


def test_ftrl_with_l1_makes_zeros_by_hand():
    """z alpha = -w sqrt(.1) + lr g - (sqrt n' - sqrt n) w; w' = -shrink(z alpha, lr l1) / sqrt n'."""
    (first, _), state = two_steps("ftrl", rows=jnp.array([[0.0, 0.0]]), l1=3.5)
    # coordinate 0: |0.5 * 3| < 0.5 * 3.5 gives exactly zero; 1: -(2 - 1.75) / sqrt(16.1)
    np.testing.assert_allclose(first[0], [0.0, -0.25 / 16.1**0.5], rtol=1e-6)
    assert first[0, 0] == 0.0 and state["linear"].shape == (1, 2)


def test_row_optimizers_survive_a_rate_of_zero():
    for name in OPTIMIZERS:
        (first, second), _ = two_steps(name, lr=0.0)
        np.testing.assert_allclose(first, ROW, rtol=1e-6, err_msg=name)
        assert np.isfinite(second).all(), name


def test_stochastic_rounding_keeps_the_mean_and_does_not_depend_on_the_place():
    x = jnp.full((20_000, 2), 1.001)  # bfloat16 neighbours: 1 and 1.0078125
    ids, columns = jnp.arange(20_000), jnp.arange(2)
    out = stochastic_round(x, jax.random.key(0), ids, columns)
    assert set(np.unique(np.asarray(out, np.float32))) == {1.0, 1.0078125}
    # 0.001 / 0.0078125 of the draws go up: a binomial deviation of 1.2e-5 on the mean
    assert abs(float(out.astype(jnp.float32).mean()) - 1.001) < 6e-5
    assert abs(np.corrcoef(np.asarray(out, np.float32).T)[0, 1]) < 0.03
    some = stochastic_round(x[7:9], jax.random.key(0), ids[7:9], columns)
    np.testing.assert_array_equal(some, out[7:9])
    other = stochastic_round(x, jax.random.key(1), ids, columns)
    assert not np.array_equal(out, other)


def test_stochastic_rounding_leaves_bfloat16_values_alone():
    x = jnp.array([[0.0, -1.5, 3.0]])
    out = stochastic_round(x, jax.random.key(0), jnp.arange(1), jnp.arange(3))
    np.testing.assert_array_equal(out.astype(jnp.float32), x)


def test_an_untouched_row_stays_where_its_moments_would_move_it():
    """A batch without a row has zero gradients for it: its moments, counts and values are for its next batch."""
    rows, touched, untouched = ROW, GRADS[0], jnp.zeros((1, 2))
    for name in ("lazy_adam", "ftrl"):
        optimizer = OPTIMIZERS[name]
        first, state = optimizer.update(rows, optimizer.init(rows, 0.1), touched, LR, l1=0.1)
        second, after = optimizer.update(first, state, untouched, 0.1 * LR, l1=0.1)
        np.testing.assert_array_equal(second, first, err_msg=name)
        for k in set(state) - {"linear"}:
            np.testing.assert_array_equal(after[k], state[k], err_msg=k)
