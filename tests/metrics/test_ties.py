"""Metrics do not depend on the order in which a log is stored, ties included."""

import numpy as np
import pytest

from recjax.metrics import classification, ranking, uplift


def log(levels: int, n: int = 4000):
    """Predicted effects of a few levels, arms, and outcomes that an arm raises."""
    r = np.random.default_rng(levels)
    treated = r.integers(0, 2, n)
    tau = r.integers(0, levels, n) / 20
    return tau, treated, (r.random(n) < 0.1 + treated * tau).astype(float)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("share", uplift.SHARES)
def test_uplift_at_a_share_is_the_mean_over_orders_of_ties(levels, share):
    tau, treated, outcome = log(levels)
    got = uplift.uplift_at(share)(tau, treated, outcome)
    for order in (np.argsort(-outcome, kind="stable"), np.argsort(outcome, kind="stable")):
        stored = [x[order] for x in (tau, treated, outcome)]
        assert uplift.uplift_at(share)(*stored) == pytest.approx(got, abs=1e-12)
    drawn = []
    for seed in range(200):
        order = np.random.default_rng(seed).permutation(len(tau))
        top = order[np.argsort(-tau[order], kind="stable")[: round(share * len(tau))]]
        on = treated[top] == 1
        drawn.append(outcome[top][on].mean() - outcome[top][~on].mean())
    assert got == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 200**0.5 + 1e-9)


def test_calibration_of_effects_whatever_the_order():
    tau, treated, outcome = log(3)
    got = uplift.calibration(tau, treated, outcome, 5)
    order = np.argsort(-outcome, kind="stable")
    stored = uplift.calibration(tau[order], treated[order], outcome[order], 5)
    np.testing.assert_allclose(stored, got, atol=1e-12)
    constant = uplift.calibration(0 * tau, treated, outcome, 5)
    np.testing.assert_allclose([seen for _, seen in constant], uplift.effect(treated, outcome)[0])


def test_without_ties_it_is_the_plain_cut():
    tau, treated, outcome = log(3)
    tau = tau + np.random.default_rng(9).normal(size=len(tau))
    top = np.argsort(-tau)[:400]
    assert uplift.uplift_at(0.1)(tau, treated, outcome) == pytest.approx(
        uplift.effect(treated[top], outcome[top])[0]
    )


def test_places():
    np.testing.assert_allclose(
        uplift.in_places(np.array([5, 1, 1, 1]), 0, 2), [0, 2 / 3, 2 / 3, 2 / 3]
    )
    np.testing.assert_allclose(
        uplift.in_places(np.array([5, 1, 1, 1]), 2, 4), [1, 1 / 3, 1 / 3, 1 / 3]
    )


def test_no_other_metric_of_clicks_depends_on_the_order():
    r = np.random.default_rng(0)
    n = 600
    score, label, group = (
        r.integers(0, 5, n) / 5,
        (r.random(n) < 0.3).astype(float),
        r.integers(0, 40, n),
    )
    order = np.argsort(-label, kind="stable")
    metrics = {
        "auc": lambda s, y, g: classification.auc(s, y),
        "gauc": lambda s, y, g: classification.gauc(s, y, g).value,
        "ece": lambda s, y, g: classification.ece(s, y),
        "recall": lambda s, y, g: ranking.recall(s, y, g, 3),
        "map": ranking.mean_average_precision,
    }
    for name, metric in metrics.items():
        stored = metric(score[order], label[order], group[order])
        assert stored == pytest.approx(metric(score, label, group), abs=1e-12), name
