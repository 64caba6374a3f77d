"""Degrees of freedom and variances of the laws, by hand: what simulated sweeps would notice only in hundreds."""

import dataclasses
import math
import types

import numpy as np
import pytest
from scipy import stats

from scaling.law import components, fit, joint, projection
from tests.scaling.law.test_joint import grid


def test_lack_of_fit_is_an_f_of_sizes_less_three_and_seeds():
    """y = 0.75 - 2 / x^0.35 and a misfit m of the means that the law's slopes do not reach: F = 3 sum(m^2) / dof / variance."""
    x = np.geomspace(1e3, 3e5, 6)
    slopes = np.column_stack([np.ones(6), x**-0.35, np.log(x) * x**-0.35])
    free = np.linalg.svd(slopes.T)[2][3:]  # orthogonal to all three
    misfit = 1e-5 * free.sum(0)
    seeds = 1e-5 * np.array([-1.0, 0.0, 1.0])  # variance 1e-10 at each size
    y = (0.75 - 2 * x**-0.35 + misfit)[:, None] + seeds
    xs, ys = np.repeat(x, 3), y.ravel()
    p = projection.problem(xs, ys, True)
    got = fit._lack_of_fit(xs, ys, np.zeros((18, 18)), np.ones(18), p)
    ratio = 3 * (misfit**2).sum() / (6 - 3) / 1e-10
    assert got == pytest.approx(stats.f.sf(ratio, 3, 12), rel=0.02)


def test_a_variance_of_its_own_freedom_is_added_as_satterthwaite_says():
    """Half-width 2 at t of 4, and a variance of 5 known by 3: (1 + 5)^2 / (1 / 4 + 25 / 3) degrees of freedom."""
    t = lambda dof: stats.t.ppf(0.95, dof)  # noqa: E731
    want = t(36 / (1 / 4 + 25 / 3)) * math.sqrt(6)
    assert fit._widened(t(4), 0.9, 4, 0.0, (5.0, 3)) == pytest.approx(want)
    assert fit._widened(t(4), 0.9, 4, 2.0, (0.0, 1)) == pytest.approx(t(4) * math.sqrt(3))


def test_satterthwaite():
    assert joint._satterthwaite([4.0, 1.0, 0.0], [2, 10, 5]) == pytest.approx(
        25 / (16 / 2 + 1 / 10)
    )
    assert joint._satterthwaite([0.0, 0.0, 0.0], [2, 10, 5]) == 10
    assert joint._satterthwaite([1.0, -1.0, 0.0], [1, 9, 9]) == 1


def test_new_runs_share_the_size_and_average_the_rest():
    noise = components.Components(
        np.array([4.0, 2.0, 1.0]), (np.zeros(()), np.zeros(())), np.array([1.0, 3.0])
    )
    state = types.SimpleNamespace(
        shared=0,
        surface=types.SimpleNamespace(logs=np.array([[-1.0], [1.0]])),
        noise=noise,
        dofs=(5, 10, 20),
    )
    parts = np.array([4, 2 / 4, 1 * 3 / 4])  # four seeds, at the second size
    dof = parts.sum() ** 2 / (parts**2 / np.array([5, 10, 20])).sum()
    want = stats.t.ppf(0.95, dof) * math.sqrt(parts.sum())
    assert joint._State.new_runs(state, 0.9, 4, np.array([0.8])) == pytest.approx(want)


def test_quantiles_of_the_draws_are_widened_by_t_over_normal():
    normal = stats.norm.ppf((np.arange(20_001) + 0.5) / 20_001)
    state = types.SimpleNamespace(
        best_as_batch=(np.zeros((1, 1)), np.zeros((1, 1))),
        draws=(normal[:, None], np.zeros((20_001, 1))),
        _dof=lambda what: 3.0,
    )
    low, high = joint._State.interval(state, lambda c, t: c[:, 0], 0.9)
    assert (low, high) == pytest.approx((-2.3534, 2.3534), abs=2e-3)  # t of 3 at 0.95


def test_a_gain_of_what_has_no_effect_may_be_nothing():
    sizes, y, runs = grid(0.0005, 5, seeds=3)
    got = joint.fit_joint(sizes, y, runs=runs, draws=40)
    start, end = dict(n_blocks=1e4, examples=1e5), dict(n_blocks=2e4, examples=1e5)
    sure = got.gain(start, end)
    assert sure["low"] > 0
    unsure = dataclasses.replace(got, found=dict(n_blocks=False, examples=True)).gain(start, end)
    assert (unsure["low"], unsure["high"]) == (0.0, sure["high"])


def test_points_that_share_nothing_have_no_common_effect():
    assert not components.sharing(np.arange(3)).any()
    shared = components.sharing(np.array([7, 7, 8]))
    np.testing.assert_array_equal(shared, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])


def test_a_variance_of_few_replicates_is_read_as_larger_than_it_looks():
    """Three cells of variance 1 with 1, 4 and 8 degrees of freedom: log variances 1, 1/4, 1/8, weighted by dof / 2, with a prior slope."""
    cells = [np.linspace(-1, 1, n) for n in (2, 5, 9)]
    y = np.concatenate([c / c.std(ddof=1) for c in cells])
    at = np.repeat([0.0, 1.0, 2.0], [2, 5, 9])
    z = (np.array([0.0, 1.0, 2.0]) - 1) / math.sqrt(2 / 3)
    w, value = np.array([1, 4, 8]) / 2, np.array([1, 1 / 4, 1 / 8])
    normal = np.array([[w.sum(), (w * z).sum()], [(w * z).sum(), (w * z * z).sum() + 1 / 0.5**2]])
    slope = np.linalg.solve(normal, [(w * value).sum(), (w * z * value).sum()])[1]
    line = slope * (at - 1) / math.sqrt(2 / 3)
    got = components.relative_noise(at, at.astype(int), y)
    np.testing.assert_allclose(got, np.exp(line - line.mean()), rtol=1e-9)
    assert got[0] > got[-1]
