"""Crossings of two laws against planted ones, and how often their intervals hold the truth."""

import numpy as np
import pytest

from scaling.law import crossing, fit, laws
from tests.messages import raises

SIZES = np.repeat(np.geomspace(1e4, 1e6, 7), 3)
SMALL, LARGE = (0.72, 0.9, 0.30), (0.76, 1.6, 0.28)  # the small system is better with little data


def law(truth, seed=None, noise=0.0, **more):
    e, a, k = truth
    rng = np.random.default_rng(seed)
    y = e - a * SIZES**-k + noise * rng.normal(size=len(SIZES))
    return fit.fit_law(SIZES, y, **more)


def planted():
    x = np.geomspace(1e3, 1e8, 200_001)
    d = (SMALL[0] - SMALL[1] * x ** -SMALL[2]) - (LARGE[0] - LARGE[1] * x ** -LARGE[2])
    return float(x[np.flatnonzero(d[:-1] * d[1:] < 0)[-1]])


def test_the_planted_crossing_is_found():
    found = crossing.cross("small", law(SMALL), "large", law(LARGE))
    assert found.at == pytest.approx(planted(), rel=2e-2) and 1e4 < found.at < 1e6
    assert (found.first, found.later) == ("small", "large") and found.sure
    assert 0.9 * found.at < found.low < found.at < found.high < 1.1 * found.at
    mirrored = crossing.cross("large", law(LARGE), "small", law(SMALL))
    assert mirrored.at == pytest.approx(found.at) and mirrored.first == "small"


def test_a_loss_crosses_where_its_auc_does():
    losses = [fit.fit_law(SIZES, 1 - np.array(law(t).y), metric="logloss") for t in (SMALL, LARGE)]
    found = crossing.cross("small", losses[0], "large", losses[1])
    assert found.at == pytest.approx(planted(), rel=2e-2) and found.first == "small"


def test_intervals_hold_the_crossing_and_noise_widens_them():
    """Ninety per cent intervals of independent laws: at least that often; 110 of 120 were measured."""
    held, widths = 0, {0.0005: [], 0.002: []}
    for noise, own in widths.items():
        for i in range(250, 258):
            c = crossing.cross("s", law(SMALL, 2 * i, noise), "l", law(LARGE, 2 * i + 1, noise))
            low, high = c.low or 1e3, c.high or 1e7
            held += low <= planted() <= high
            own.append(np.log(high / low))
    assert held >= 14
    assert np.median(widths[0.002]) > 1.5 * np.median(widths[0.0005])


def test_what_is_not_told_apart_or_never_crosses_is_said():
    same = crossing.cross("a", law(SMALL, 1, 0.003), "b", law(SMALL, 2, 0.003))
    assert not same.sure and "does not tell them apart" in same.sentence("examples")
    better = tuple(np.array(SMALL) + (0.03, 0, 0))
    found = crossing.cross("a", law(SMALL), "b", law(better))
    assert found.at is None and (found.first, found.later) == ("b", "")
    assert "b is expected" in found.sentence("examples")


def test_laws_of_other_things_are_refused():
    with raises(ValueError, "auc", "logloss"):
        crossing.cross("a", law(SMALL), "b", fit.fit_law(SIZES, 4 * SIZES**-0.4, metric="logloss"))
    far = fit.fit_law(1e4 * SIZES, 0.7 - SIZES**-0.3)
    with raises(ValueError, "no common examples"):
        crossing.cross("a", law(SMALL), "b", far)


def trials(**truths):
    """Rows of a study of several systems, two grades each, the second better."""
    out = []
    for name, truth in truths.items():
        for grade, lift in (("a", 0.0), ("b", 0.01)):
            own = law(np.array(truth) + (lift, 0, 0), 1, 0.0003)
            for i, (x, y) in enumerate(zip(own.x, own.y, strict=True)):
                out.append(dict(system=name, grade=grade, examples=int(x), auc=y, kind="pass", run=f"{name}{grade}{i % 3}",
                                n_blocks=100 * (1 + i % 3), n_dense=100, history=5))  # fmt: skip
    return out


def test_systems_of_a_study_are_compared_at_their_best_grade():
    rows = trials(small=SMALL, large=LARGE)
    found = crossing.best_laws(rows, "auc")
    assert [(s, g) for s, g, _ in found] == [("small", "b"), ("large", "b")]
    text = crossing.compare(rows, "auc")[-1]
    assert "small is better up to" in text and text.endswith("then large.")
    by_system = laws.slices(rows, "examples")
    assert len(by_system) == 4  # never a law of two systems
    with raises(fit.FitError, "large", "small", "--compare"):
        laws.joint_law(rows, "auc")
    with raises(fit.FitError, "sweep.systems"):
        crossing.compare([r for r in rows if r["system"] == "small"], "auc")
