"""The joint law: planted truth, intervals that cover it, decisions that invert it."""

import json

import numpy as np
import pytest

from scaling.law import fit, joint

TRUTH = dict(n_blocks=(3, 0.5), examples=(5, 0.4))


def law(n, d, h=None):
    out = 0.2 + 3 * n**-0.5 + 5 * d**-0.4
    return out if h is None else out + 0.3 * h**-0.6


def grid(noise=0.0, seed=0, shared=0.0, seeds=1):
    """(sizes, losses, run of each point): passes over one shape share their run's noise."""
    shapes, data = np.array([3e3, 1e4, 3e4, 1e5, 4e5]), np.geomspace(1e4, 1.5e6, 6)
    rng, n, d, y, runs = np.random.default_rng(seed), [], [], [], []
    for i, shape in enumerate(np.repeat(shapes, seeds)):
        own = shared * rng.normal()
        n += [shape] * len(data)
        d += data.tolist()
        y += (law(shape, data) + own + noise * rng.normal(size=len(data))).tolist()
        runs += [i] * len(data)
    return dict(n_blocks=np.array(n), examples=np.array(d)), np.array(y), runs


def test_it_is_recovered():
    sizes, y, _ = grid()
    got = joint.fit_joint(sizes, y, draws=3)
    assert got.E == pytest.approx(0.2, rel=1e-3)
    np.testing.assert_allclose(got.A, (3, 5), rtol=2e-2)
    np.testing.assert_allclose(got.a, (0.5, 0.4), rtol=1e-3)
    at = dict(n_blocks=1e5, examples=1e5)
    assert got.predict(at) == pytest.approx(law(1e5, 1e5), rel=1e-6)
    json.dumps(got.to_json(), allow_nan=False)


def test_a_third_size_and_a_score():
    n, d, h = (v.ravel() for v in np.meshgrid([3e3, 1e4, 1e5, 4e5], [1e4, 1e5, 1e6], [10, 50, 200]))
    auc = 1 - law(n, d, h)
    got = joint.fit_joint(dict(n_blocks=n, examples=d, history=h), auc, metric="auc", draws=3)
    assert got.larger_is_better and got.E == pytest.approx(0.8, abs=2e-3)
    np.testing.assert_allclose(got.a, (0.5, 0.4, 0.6), rtol=2e-2)
    at = dict(n_blocks=2e4, examples=2e5, history=100)
    assert got.predict(at) == pytest.approx(1 - law(2e4, 2e5, 100), abs=1e-5)


def test_it_needs_three_values_on_each_axis_and_more_points_than_parameters():
    sizes, y, _ = grid()
    few = sizes["n_blocks"] < 2e4
    with pytest.raises(fit.FitError, match="2 values of 'n_blocks'"):
        joint.fit_joint({k: v[few] for k, v in sizes.items()}, y[few])
    with pytest.raises(fit.FitError, match="cannot support 5 parameters"):
        joint.fit_joint(dict(n_blocks=[1, 2, 3], examples=[1, 2, 3]), [1, 2, 3])


def test_needed_inverts_the_law_and_knows_its_floor():
    sizes, y, runs = grid(0.0005, seeds=3, shared=0.0005)
    got = joint.fit_joint(sizes, y, runs=runs, draws=40)
    target = law(1e5, 3e6)
    need = got.needed("examples", target, dict(n_blocks=1e5))
    assert got.predict(dict(n_blocks=1e5, examples=need["value"])) == pytest.approx(target)
    assert need["low"] < 3e6 < need["high"]
    assert got.needed("examples", 0.19, dict(n_blocks=1e5)) == dict(value=None, low=None, high=None)
    gain = got.gain(dict(n_blocks=1e4, examples=1e5), dict(n_blocks=1e4, examples=2e5))
    assert gain["low"] < law(1e4, 1e5) - law(1e4, 2e5) < gain["high"]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.001])
def test_ninety_percent_intervals_cover_about_that(shared):
    """200 simulated studies (about 3 min): both exponents, and a prediction at 4 x the largest size of both axes."""
    covered = dict(n_blocks=0, examples=0, prediction=0)
    at, tries = dict(n_blocks=1.6e6, examples=6e6), 200
    for i in range(tries):
        sizes, y, runs = grid(0.001, i, shared, seeds=3)
        got = joint.fit_joint(sizes, y, runs=runs, draws=60, seed=i)
        for axis, (_, a) in TRUTH.items():
            covered[axis] += got.intervals[axis][0] <= a <= got.intervals[axis][1]
        low, high = got.interval(at)
        covered["prediction"] += low <= law(1.6e6, 6e6) <= high
    print(f"coverage, shared noise {shared}: { {k: v / tries for k, v in covered.items()} }")
    assert all(0.85 <= v / tries <= 0.95 for v in covered.values()), covered
