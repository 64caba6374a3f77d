"""The correlation estimator: golden values of the planted world, and what any mutual information obeys."""

import numpy as np
import pytest

from recjax.data.worlds import tin
from recjax.metrics import correlation


def direct(x, y) -> float:
    """Mutual information of two binary columns from the joint table, in bits."""
    joint = np.histogram2d(x, y, bins=[[-0.5, 0.5, 1.5]] * 2)[0] / len(x)
    independent = joint.sum(1)[:, None] * joint.sum(0)
    some = joint > 0
    return float((joint[some] * np.log2(joint[some] / independent[some])).sum())


def world(n=30_000, **changes):
    r = tin.sample(tin.World(categories=5, **changes), n, np.random.default_rng(0))
    return r.events["hist_category"] - 3, r.mask, r.columns["category"] - 3, r.columns["click"]


def test_ctc_is_the_mutual_information_of_the_joint_table():
    events, mask, target, label = world(5_000)
    bits = correlation.ctc(events, mask, target, label, 5)
    for ci, p, ct in [(0, 1, 0), (3, 1, 3), (2, 4, 1), (4, 10, 4)]:
        rows = target == ct
        want = direct(events[rows, -p] == ci, label[rows])
        assert bits[ci, p - 1, ct] == pytest.approx(want, abs=1e-12)
    assert (bits >= 0).all()


def test_a_short_history_counts_as_not_seen():
    events, mask, target, label = world(5_000)
    short = mask & (np.arange(10) >= 7)
    bits = correlation.ctc(events, short, target, label, 5)
    assert not bits[:, 3:].any() and bits[:, :3].any()
    rows = target == 1
    seen = short[rows, -2] & (events[rows, -2] == 1)
    assert bits[1, 1, 1] == pytest.approx(direct(seen, label[rows]), abs=1e-12)


def test_it_is_symmetric_and_zero_without_a_link():
    r = np.random.default_rng(1)
    x, y = r.random(4000) < 0.3, r.random(4000) < 0.6
    y = np.where(r.random(4000) < 0.3, x, y)
    args = (x & y).sum(), x.sum(), y.sum(), len(x)
    one = correlation.mutual_information(*args)
    other = correlation.mutual_information(args[0], args[2], args[1], args[3])
    assert one == pytest.approx(float(other)) and one == pytest.approx(direct(x, y))
    assert one > 0.01
    events, mask, target, label = world(30_000, label="shuffled")
    assert correlation.ctc(events, mask, target, label, 5).max() <= 2e-3
    assert correlation.ctc(events, mask, target, label, 5).mean() <= 1e-3
    assert correlation.mutual_information(0, 0, 3, 10) == 0


def test_scaling_and_the_diagonal():
    x = np.array([[1.0, np.nan], [3.0, 2.0]])
    np.testing.assert_array_equal(correlation.min_max(x), [[0, np.nan], [1, 0.5]])
    assert not correlation.min_max(np.ones(3)).any()
    grid = np.zeros((2, 3, 2))
    grid[0, :, 0], grid[1, :, 1] = [4, 2, 1], [2, np.nan, 1]
    np.testing.assert_allclose(correlation.diagonal(grid), [3, 2, 1])
    weight = np.ones_like(grid)
    weight[0] = 3
    np.testing.assert_allclose(correlation.diagonal(grid, weight), [3.5, 2, 1])
