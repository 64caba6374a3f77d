"""The joint law: planted truth, decisions that invert it, what it sets aside and says, and a sample of its coverage."""

import json

import numpy as np
import pytest

from scaling.law import components, coverage, fit, joint, support, surface
from tests.messages import raises

TRUTH = dict(n_blocks=(3, 0.5), examples=(5, 0.4))


def law(n, d, h=None):
    out = 0.2 + 3 * n**-0.5 + 5 * d**-0.4
    return out if h is None else out + 0.3 * h**-0.6


def grid(noise=0.0, seed=0, shared=0.0, seeds=1, of_size=0.0):
    """(sizes, losses, run of each point): passes over one shape share their run's noise."""
    shapes, data = np.array([3e3, 1e4, 3e4, 1e5, 4e5]), np.geomspace(1e4, 1.5e6, 6)
    rng, n, d, y, runs = np.random.default_rng(seed), [], [], [], []
    every = of_size * rng.normal(size=len(data))
    for i, shape in enumerate(np.repeat(shapes, seeds)):
        own = shared * rng.normal()
        n += [shape] * len(data)
        d += data.tolist()
        y += (law(shape, data) + own + every + noise * rng.normal(size=len(data))).tolist()
        runs += [i] * len(data)
    return dict(n_blocks=np.array(n), examples=np.array(d)), np.array(y), np.array(runs)


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
    with raises(fit.FitError, "2 values", "'n_blocks'"):
        joint.fit_joint({k: v[few] for k, v in sizes.items()}, y[few])
    with raises(fit.FitError, "5 parameters"):
        joint.fit_joint(dict(n_blocks=[1, 2, 3], examples=[1, 2, 3]), [1, 2, 3])
    with pytest.raises(fit.FitError, match="examples must be positive"):
        joint.fit_joint(sizes | {"examples": 0 * y}, y)
    with pytest.raises(fit.FitError, match="auc reaches 1.2"):
        joint.fit_joint(sizes, y + 1.2 - y.max(), metric="auc")


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


# ------------------------------------------------------------------------------------------- numerics


@pytest.mark.parametrize("cross", [False, True])
def test_slopes_are_those_of_the_law(cross):
    rng = np.random.default_rng(0)
    form = surface.Surface(rng.normal(size=(7, 3)), cross)
    c, t = rng.normal(size=(2, 4 + cross)), rng.normal(size=(2, 3)) - 1
    slopes = form.slopes(c, t)
    for k in range(3):
        step = np.zeros(3)
        step[k] = 1e-6
        numeric = (form.values(c, t + step) - form.values(c, t - step)) / 2e-6
        np.testing.assert_allclose(slopes[..., k], numeric, rtol=1e-5, atol=1e-8)


def test_a_negative_floor_is_held_at_zero():
    n, d = (v.ravel() for v in np.meshgrid([1e3, 1e4, 1e5, 1e6], [1e3, 1e4, 1e5, 1e6]))
    got = joint.fit_joint(dict(n=n, examples=d), 2 * n**-0.1 + 3 * d**-0.15 - 0.01, draws=10)
    assert got.E == 0 and got.intervals["E"][0] == 0
    assert any(x.kind == "bound" and "floor" in x.text for x in got.notes)


def test_variances_of_sizes_runs_and_points_are_told_apart():
    found = []
    for i in range(30):
        sizes, y, runs = grid(0.002, i, 0.004, seeds=4, of_size=0.006)
        truth = law(sizes["n_blocks"], sizes["examples"])
        same = [components.sharing(v) for v in (sizes["examples"], runs)]
        ones = np.ones((len(y), 1))
        found.append(components.estimate(y - truth, ones, same, np.ones(len(y)), prior=0).variances)
    np.testing.assert_allclose(np.sqrt(np.mean(found, 0)), (0.006, 0.004, 0.002), rtol=0.2)


def test_noise_that_falls_with_size_is_found_and_equal_noise_is_left_alone():
    x = np.repeat(np.geomspace(1e4, 1e6, 6), 12)
    rng, cell = np.random.default_rng(0), np.searchsorted(np.unique(x), x)
    sd = np.where(x < 1e5, 0.01, 0.002)
    falls = components.relative_noise(np.log(x), cell, sd * rng.normal(size=len(x)))
    assert falls[0] / falls[-1] > 8
    equal = components.relative_noise(np.log(x), cell, rng.normal(size=len(x)))
    assert equal.max() / equal.min() < 3


# ------------------------------------------------------------------------------------------- what it says


def kinds(law):
    return [n.kind for n in law.notes]


def test_noise_of_a_size_widens_what_rests_on_the_data_and_is_noted():
    """Runs as clusters gave the second the intervals of the first."""
    own, size = (
        joint.fit_joint(s, y, runs=r, draws=60)
        for s, y, r in (grid(0.001, 3, seeds=3), grid(0.001, 3, seeds=3, of_size=0.004))
    )
    width = lambda f, axis: f.intervals[axis][1] - f.intervals[axis][0]  # noqa: E731
    assert width(size, "examples") > 3 * width(own, "examples")
    assert width(size, "n_blocks") < 3 * width(own, "n_blocks")
    assert "lack of fit" in kinds(size) and "lack of fit" not in kinds(own)


def test_draws_of_the_data_tell_more_of_it_than_seeds():
    """Three draws whose sizes each have noise of their own: as clusters they say more; taken for one draw, a point's noise."""
    rng, n, d = np.random.default_rng(3), *np.meshgrid((1e4, 1e5, 1e6), np.geomspace(1e4, 1e6, 7))
    n, d = np.tile(n.ravel(), 3), np.tile(d.ravel(), 3)
    draw = np.repeat(np.arange(3), 21)
    noise = 0.006 * rng.normal(size=(3, 7))
    size = np.unique(d, return_inverse=True)[1]
    y = law(n, d) + noise[draw, size] + 0.0005 * rng.normal(size=len(n))
    sizes, options = dict(n_blocks=n, examples=d), dict(influence=False, draws=60)
    known = joint.fit_joint(sizes, y, data_seeds=draw, **options)
    unknown = joint.fit_joint(sizes, y, **options)
    assert known.sds["size"] == pytest.approx(0.006, rel=0.4)
    assert known.sds["point"] < 0.002 < unknown.sds["point"]


def test_what_failed_or_diverged_is_named_and_set_aside():
    sizes, y, runs = grid(0.001, 1, seeds=3)
    clean = joint.fit_joint(sizes, y, runs=runs, draws=5)
    runs = np.array([f"run-{r}" for r in runs])
    y[4], y[40] = np.nan, y[40] + 0.3
    got = joint.fit_joint(sizes, y, runs=runs, draws=5)
    aside = [n.text for n in got.notes if n.kind == "set aside"]
    assert len(aside) == 2
    assert (
        aside[0].startswith("run run-0 at n_blocks 3 k, examples 551 k")
        and "not finite" in aside[0]
    )
    assert f"run {runs[40]}" in aside[1] and "far from the law" in aside[1]
    assert got.points == clean.points - 2
    assert got.a[1] == pytest.approx(clean.a[1], abs=0.02)
    assert not any(n.kind == "set aside" for n in clean.notes)


def test_a_run_that_moves_the_answer_is_named():
    """The largest model has one run, and nothing tells its bad luck from the law."""
    sizes, y, runs = grid(0.001, 2, seeds=3)
    kept = runs <= 12
    sizes, y, runs = {k: v[kept] for k, v in sizes.items()}, y[kept], runs[kept]
    bent = joint.fit_joint(sizes, y + 0.005 * (runs == 12), runs=runs, draws=40)
    (note,) = (n for n in bent.notes if n.kind == "influence")
    assert note.numbers["run"] == 12 and "run 12 alone moves the exponent of n_blocks" in note.text
    assert "influence" not in kinds(joint.fit_joint(sizes, y, runs=runs, draws=40))


def test_the_robust_fit_resists_what_is_too_little_to_be_set_aside():
    sizes, y, runs = grid(0.002, 2, seeds=2)
    y = y + 0.01 * ((runs == 0) & (sizes["examples"] > 1e5))
    plain, robust = (joint.fit_joint(sizes, y, runs=runs, draws=5, robust=r) for r in (False, True))
    assert "set aside" not in kinds(plain)
    assert abs(robust.a[0] - 0.5) < 0.5 * abs(plain.a[0] - 0.5)


def test_no_effect_is_said_and_no_term_printed():
    sizes, y, runs = grid(0.001, 5, seeds=3)
    flat = y - 3 * sizes["n_blocks"] ** -0.5
    got = joint.fit_joint(sizes, flat, runs=runs, draws=60)
    assert got.found == dict(n_blocks=False, examples=True)
    assert got.formula.endswith("no effect of n_blocks found") and "/ n_blocks" not in got.formula
    # And not what a term that is not printed leaves of the floor.
    level = float(got.formula.split()[2])
    assert level == pytest.approx(0.2, abs=2e-3)
    assert any(n.kind == "effect" and n.doubt for n in got.notes)


def test_an_exponent_on_its_bound_is_no_power_law():
    sizes, y, runs = grid(0.0005, 5, seeds=3)
    step = y - 3 * sizes["n_blocks"] ** -0.5 + 0.02 * (sizes["n_blocks"] < 5e3)
    got = joint.fit_joint(sizes, step, runs=runs, draws=40)
    assert got.bounded == dict(n_blocks="upper")
    assert "no power law of n_blocks found" in got.formula and "/ n_blocks" not in got.formula
    assert any(n.kind == "bound" and "n_blocks" in n.text for n in got.notes)


def test_an_interaction_is_found_and_used():
    sizes, y, runs = grid(0.0005, 6, seeds=3)
    n, d = sizes["n_blocks"], sizes["examples"]
    more = lambda n, d: 0.06 * (1e4 / n) ** 0.5 * ((d / 1e5) ** -0.4 - 1)  # noqa: E731
    got = joint.fit_joint(sizes, y - more(n, d), runs=runs, draws=60)
    assert got.C < 0 and "interaction" in kinds(got)
    for data in (3e4, 1e6):
        gain = got.gain(dict(n_blocks=1e4, examples=data), dict(n_blocks=2e4, examples=data))
        want = law(1e4, data) - more(1e4, data) - law(2e4, data) + more(2e4, data)
        assert gain["value"] == pytest.approx(want, abs=3e-4)
        assert np.sign(gain["low"]) == np.sign(gain["high"]) == np.sign(want)
    need = got.needed("examples", 0.30, dict(n_blocks=1e5))
    assert got.predict(dict(n_blocks=1e5, examples=need["value"])) == pytest.approx(0.30)
    assert joint.fit_joint(sizes, y, runs=runs, draws=5).C == 0  # control: the additive law


# ------------------------------------------------------------------------------------------- support


def test_support_is_of_all_sizes_together():
    """Long histories see little data: the corner of the box was not measured."""
    d, h = [1e4, 1e5, 1e6, 1e4, 1e5, 1e4, 1e5], [20, 20, 20, 50, 50, 200, 200]
    got = support.Support.of(dict(examples=d, history=h))
    assert got.word(dict(examples=1e5, history=200)) == "a measured cell"
    assert got.word(dict(examples=5e4, history=100)) == "interpolated"
    assert got.beyond(dict(examples=1e6, history=200)) == pytest.approx(10, rel=0.01)
    assert got.word(dict(examples=1e6, history=200)).startswith("extrapolated, 10.0 x")
    assert got.beyond(dict(examples=4e6, history=20)) == pytest.approx(4)


# ------------------------------------------------------------------------------------------- coverage


def test_a_sample_of_the_coverage_command(tmp_path):
    some = [("joint law", n) for n in ("flat", "broken power", "one outlier")]
    some += [("one size", n) for n in coverage.ONE_SIZE]
    rows = [coverage.sweep_row(law, name, 0) for law, name in some]
    held = [h for r in rows if r["design"] != "broken power" for h in r["hits"].values()]
    assert np.mean(held) > 0.7  # 0.9 of about 50, many of them correlated
    broken = [r for r in rows if r["design"] == "broken power"]
    assert all("lack of fit" in r["notes"] for r in broken)
    (outlier,) = (r for r in rows if r["design"] == "one outlier" and r["law"] == "joint law")
    assert "set aside" in outlier["notes"]
    todo = list(coverage.missing(rows, 2, "joint law: flat"))
    assert todo == [("joint law", "flat", 1)]
    assert "| flat | 1 |" in coverage.document(rows, 1.0)


def test_coverage_that_falls_short_is_said():
    row = dict(law="joint law", design="flat", notes=[])
    rows = [
        row | dict(sweep=i, hits={"E": i > 3, "4 x": True, "held out": i > 0}) for i in range(10)
    ]
    short, wide = coverage.outside(rows, "joint law")
    assert short == "Less than 0.85: E in 'flat' (0.60)."
    assert wide == "More than 0.95, wider than need be: 4 x in 'flat' (1.00)."
    broken = [r | dict(design="broken power") for r in rows]
    assert coverage.outside(broken, "joint law")[0] == "Less than 0.85: nothing."


@pytest.mark.slow
@pytest.mark.parametrize("name", ["independent noise", "shared by both", "ragged"])
def test_ninety_percent_intervals_cover_about_that(name):
    """100 simulated studies each, some minutes; `python -m scaling.law.coverage` has all designs."""
    rows = [coverage.sweep_row("joint law", name, i)["hits"] for i in range(100)]
    shares = {k: np.mean([r[k] for r in rows]) for k in rows[0]}
    print(f"coverage, {name}: {shares}")
    assert all(v >= 0.8 for v in shares.values()), shares
