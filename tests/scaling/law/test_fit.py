"""The laws against planted truth, brute force and simulated sweeps."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import optimize, stats

from scaling.law import fit, projection, rivals
from tests.messages import raises

SIZES = np.array([1e3, 3e3, 1e4, 3e4, 1e5, 3e5])


def sweep(seed=0, noise=0.001, seeds=3, sizes=SIZES, law=(0.75, 2.0, 0.35)):
    """A planted sweep: (x, y)."""
    x = np.repeat(sizes, seeds)
    e, a_, a = law
    return x, e - a_ * x**-a + noise * np.random.default_rng(seed).normal(size=len(x))


# ------------------------------------------------------------------------------------------------- the law


@pytest.mark.parametrize("law", [(0.75, 2.0, 0.35), (0.8, 0.5, 0.12), (0.99, 30.0, 0.9)])
def test_noiseless_points_give_the_law_back(law):
    got = fit.fit_law(SIZES, law[0] - law[1] * SIZES ** -law[2])
    np.testing.assert_allclose((got.E, got.A, got.a), law, rtol=1e-3)
    assert got.r2 == pytest.approx(1.0)
    assert all(high - low < 1e-3 for low, high in (got.intervals["E"], got.intervals["a"]))


def test_noiseless_losses_give_the_law_back():
    got = fit.fit_law(SIZES, 0.2 + 4 * SIZES**-0.4, metric="logloss")
    np.testing.assert_allclose((got.E, got.A, got.a), (0.2, 4, 0.4), rtol=1e-3)
    assert not got.larger_is_better
    assert got.predict(1e6) == pytest.approx(0.2 + 4 * 1e6**-0.4)


def test_it_is_the_least_squares_optimum():
    """Against scipy's general solver from the truth."""
    means = sweep(3)[1].reshape(-1, 3).mean(1)
    cost = lambda t: ((means - t[0] + t[1] * (SIZES / 1e4) ** -t[2]) ** 2).sum()  # noqa: E731
    best = optimize.minimize(
        cost, [0.75, 0.08, 0.35], method="Nelder-Mead", options={"xatol": 1e-12, "fatol": 1e-18}
    )
    got = fit.fit_law(SIZES, means)
    mine = cost([got.E, got.A * 1e4**-got.a, got.a])
    assert mine <= best.fun * (1 + 1e-6)
    assert (got.E, got.a) == pytest.approx((best.x[0], best.x[2]), rel=1e-3)


def test_a_planted_noisy_law_is_within_its_intervals():
    got = fit.fit_law(*sweep(1))
    for name, truth in zip("EAa", (0.75, 2.0, 0.35), strict=True):
        low, high = got.intervals[name]
        assert low <= truth <= high
    assert abs(got.a - 0.35) < 0.03
    assert got.lack_of_fit > 0.05


def test_four_noisy_points_have_wide_intervals():
    got = fit.fit_law(*sweep(0, 0.004, 1, SIZES[:4]))
    low, high = got.intervals["a"]
    assert high / low > 3
    assert got.intervals["E"] == pytest.approx((got.intervals["E"][0], 1.0))
    assert any("ceiling is not determined" in n.text for n in got.notes)
    assert any("too few sizes" in n.text for n in got.notes)


def test_fewer_than_four_sizes_are_refused():
    with raises(fit.FitError, "3 sizes", "'grade'"):
        fit.fit_law([1, 1, 2, 3], [0.6, 0.61, 0.65, 0.66], axis="grade")
    with pytest.raises(fit.FitError, match="reaches 1"):
        fit.fit_law(SIZES, np.linspace(0.5, 1.0, 6))


def test_a_law_with_the_wrong_form_is_noticed():
    x, y = sweep(0, 0.0005)
    bent = y - 0.01 * (x == 1e4)
    got = fit.fit_law(x, bent)
    assert got.lack_of_fit < 0.01
    assert any("misses the means" in n.text for n in got.notes)


def test_pure_noise_has_no_law():
    x, y = sweep(2, 0.002, law=(0.6, 0.0, 0.3))
    got = fit.fit_law(x, y)
    assert got.r2 < 0.5
    low, high = got.intervals["a"]
    assert high / low > 20


def test_huber_resists_an_outlier():
    x, y = sweep(4, 0.0005, 1, np.geomspace(1e3, 1e6, 9))
    y[4] -= 0.03
    plain, robust = (fit.fit_law(x, y, huber=h) for h in (0.0, 1.345))
    assert abs(robust.a - 0.35) < 0.02 < abs(plain.a - 0.35)


# ----------------------------------------------------------------------------------------- held out, rivals


def test_leaving_the_largest_out_predicts_it():
    x, y = sweep(5)
    held = rivals.leave_largest_out(x, y)
    assert held["x"] == 3e5
    assert held["seeds"] == 3
    assert held["inside"]
    assert held["observed"] == pytest.approx(y[x == 3e5].mean())
    assert abs(held["predicted"] - held["observed"]) < 0.004
    assert held["gain"] == pytest.approx(y[x == 3e5].mean() - y[x == 1e5].mean())
    assert held["decisive"] == (held["half_width"] < held["gain"])
    y[x == 3e5] -= 0.05  # control: the law does not hold there
    assert not rivals.leave_largest_out(x, y)["inside"]


def test_the_true_family_wins_by_held_out_error():
    def best(values):
        table = rivals.compare(x, values)
        return min(
            (v["rolling_rmse"], k) for k, v in table.items() if v["rolling_rmse"] is not None
        )[1]

    x = np.repeat(np.geomspace(1e3, 1e6, 7), 2)
    noise = 0.0003 * np.random.default_rng(0).normal(size=len(x))
    assert best(0.75 - 2 * x**-0.35 + noise) in ("power", "broken power")
    assert best(0.5 + 0.02 * np.log10(x) + noise) == "logarithmic"
    assert best(0.75 - 0.2 * np.exp(-x / 5e4) + noise) == "exponential"
    assert rivals.compare(x, 0.6 + noise)["constant"]["rolling_rmse"] < 0.0005


def test_a_family_with_too_many_parameters_says_so():
    table = rivals.compare(*sweep(0, sizes=SIZES[:5]))
    assert table["power"]["sizes"] == 1
    assert table["broken power"]["largest"] is None
    assert "5 parameters" in table["broken power"]["why"]


def test_broken_power_finds_a_break():
    x = np.geomspace(1e3, 1e6, 9)
    gap = np.where(x < 3e4, (x / 3e4) ** -0.1, (x / 3e4) ** -0.6) * 0.1
    error = {k: rivals.compare(x, 0.8 - gap)[k]["largest"] for k in ("power", "broken power")}
    assert abs(error["broken power"]) < 0.5 * abs(error["power"])


# -------------------------------------------------------------------------------------------------- decisions


def test_needed_size_inverts_the_law_and_knows_the_ceiling():
    law = fit.fit_law(*sweep(1))
    need = law.needed(0.735)
    truth = (2 / 0.015) ** (1 / 0.35)
    assert law.predict(need["value"]) == pytest.approx(0.735)
    assert need["low"] < truth < need["high"]
    beyond = law.needed(0.9)
    assert beyond["value"] is beyond["low"] is None
    assert "beyond the ceiling" in beyond["answer"]
    unsure = law.needed((law.E + law.intervals["E"][1]) / 2)
    assert unsure["value"] is None
    assert unsure["low"] is not None


def test_intervals_widen_away_from_the_points_and_for_new_runs():
    law = fit.fit_law(*sweep(1))
    width = lambda x, **kw: np.diff(law.interval(x, **kw))[0]  # noqa: E731
    assert width(3e4) < width(1e6) < width(1e8)
    assert width(3e5) < width(3e5, seeds=3)
    low, high = law.interval(1e6)
    assert low < law.predict(1e6) < high


def test_study_is_plain_json():
    law = rivals.fit_judged(*sweep(1))
    text = json.dumps(law.to_json(), allow_nan=False)
    back = json.loads(text)
    assert back["E"] == law.E
    assert back["holdout"]["inside"] is True
    assert set(back["competitors"]) == set(rivals.FAMILIES)
    assert back["law"].startswith("auc = 0.7")
    few = rivals.fit_judged(*sweep(1, sizes=SIZES[:4]))
    assert "no held-out prediction" in few.holdout["why"]


# ----------------------------------------------------------------------------------------------------- points


def test_points_of_trials():
    rows = [
        {"run": "a", "kind": "train", "examples": 10, "auc": 0.6},
        {"run": "b", "kind": "train", "examples": 5, "metrics": {"auc": 0.5}},
        {"run": "c", "kind": "rate", "examples": 5, "auc": 0.9},
        {"run": "d", "kind": "train", "examples": 7, "auc": None},
    ]
    x, y = fit.points(rows, "examples", "auc", kind="train")
    assert x.tolist() == [5, 10]
    assert y.tolist() == [0.5, 0.6]
    with raises(fit.FitError, "'ece'"):
        fit.points(rows, "examples", "ece")
    with raises(fit.FitError, "'a'", "'grade'"):
        fit.points(rows, "grade", "auc")


# --------------------------------------------------------------------------------------------------- coverage


def test_a_flat_curve_keeps_its_level_inside():
    covered, flat = 0, 0
    for i in range(20):
        law = fit.fit_law(*sweep(i, law=(0.75, 0.0, 0.35)))
        low, high = law.intervals["E"]
        covered += low <= 0.75 <= high
        flat += any("no growth" in note.text for note in law.notes)
    assert covered >= 17 and flat >= 3  # half of all lines through noise fall


def test_what_a_run_shares_widens_predictions_and_no_gain():
    x, y = sweep(1, 0.0003)
    runs = np.tile(np.arange(3), len(SIZES))
    y = y + np.array([-0.004, 0.0, 0.004])[runs]
    unaware, law = fit.fit_law(x, y), fit.fit_law(x, y, runs=runs)
    wide = lambda f: float(np.diff(f.interval(1e6))[0])  # noqa: E731
    assert law.offset[0] == pytest.approx(0.004**2 / 3, rel=0.3) and law.offset[1] == 2
    assert wide(law) > 3 * wide(unaware) and unaware.offset[0] == 0
    span = lambda g: g["high"] - g["low"]  # noqa: E731
    assert span(law.gain(3e5, 6e5)) < 2 * span(unaware.gain(3e5, 6e5)) < wide(law)
    low, high = law.intervals["E"]
    assert high - low > 2 * 0.004 / np.sqrt(3)


def test_half_widths_of_two_variances_have_satterthwaite_s_degrees_of_freedom():
    """Variances 1 with 3 degrees of freedom and 3 with 2: 4 with 4^2 / (1/3 + 9/2) = 3.3103, whose t is 2.2661."""
    t3 = 2.3534  # of 90 %
    assert fit._widened(t3, 0.9, 3, 0.0, (0.0, 1)) == pytest.approx(t3, abs=1e-4)
    assert fit._widened(t3, 0.9, 3, 0.0, (3.0, 2)) == pytest.approx(2 * 2.2661, abs=2e-4)
    # A variance of new runs is as well known as the law: 2 with 3 degrees, and 2 with 2: 4 with 16 / (4/3 + 4/2) = 4.8.
    want = 2 * stats.t.ppf(0.95, 4.8)
    assert fit._widened(t3, 0.9, 3, 1.0, (2.0, 2)) == pytest.approx(want, abs=2e-4)


def test_lack_of_fit_is_f_of_sizes_less_three_and_of_replicates():
    """Five sizes of two seeds, the law missed by 0.003 at the middle one, seeds 0.002 off their mean: 2 and 5 degrees."""
    x, off, wrong = SIZES[:5], 0.002, np.array([0, 0, 0.003, 0, 0])
    means = 0.75 - 2.0 * x**-0.35 + wrong
    miss = lambda t: means - t[0] + np.exp(t[1] - t[2] * np.log(x / 1e4))  # noqa: E731
    best = optimize.least_squares(miss, (0.75, np.log(2 * 1e4**-0.35), 0.35), xtol=1e-14, ftol=1e-14)  # fmt: skip
    between = 2 * (best.fun**2).sum() / 2  # two seeds a mean, over 5 sizes - 3 parameters
    within = 10 * off**2 / 5  # ten seeds, over 10 - 5 means
    law = fit.fit_law(np.repeat(x, 2), np.repeat(means, 2) + off * np.tile([1, -1], 5))
    assert law.lack_of_fit == pytest.approx(stats.f.sf(between / within, 2, 5), rel=1e-3)
    assert 0.01 < law.lack_of_fit < 0.99


def test_noisy_sizes_count_less():
    """The smallest sizes scatter ten times more, which the seeds show: weighted, the exponent is nearer to the truth."""
    x = np.repeat(SIZES, 6)
    noise, errors = np.where(x < 1e4, 0.01, 0.001), {"weighted": [], "control": []}
    for i in range(20):
        y = 0.75 - 2 * x**-0.35 + noise * np.random.default_rng(i).normal(size=len(x))
        errors["weighted"].append(fit.fit_law(x, y).a - 0.35)
        errors["control"].append(fit.fit_law(SIZES, y.reshape(-1, 6).mean(1)).a - 0.35)
    rms = {k: float(np.sqrt(np.mean(np.square(v)))) for k, v in errors.items()}
    assert rms["weighted"] < 0.8 * rms["control"], rms


def test_notes_are_data():
    x, y = sweep(0, 0.0005)
    notes = {n.kind: n for n in fit.fit_law(x, y - 0.01 * (x == 1e4)).notes}
    assert notes["lack of fit"].doubt and notes["lack of fit"].numbers["p"] < 0.01
    assert not notes["points"].doubt
    json.dumps([n.to_json() for n in notes.values()])
    flat = fit.fit_law(SIZES, [0.60, 0.6, 0.59, 0.59, 0.58, 0.58])  # falls: no growth
    assert flat.formula.endswith("no effect of examples found")


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.001])
def test_ninety_percent_intervals_cover_about_that(shared):
    """200 simulated sweeps, with and without noise that the seeds of a size share."""
    rng = np.random.default_rng(1)
    covered = {"a": 0, "prediction": 0}
    for i in range(200):
        x, y = sweep(i)
        y = y + np.repeat(shared * rng.normal(size=len(SIZES)), 3)
        low, high = fit.fit_law(x, y).intervals["a"]
        covered["a"] += low <= 0.35 <= high
        covered["prediction"] += rivals.leave_largest_out(x, y)["inside"]
    print(
        f"coverage of 90 % intervals, shared noise {shared}: { {k: v / 200 for k, v in covered.items()} }"
    )
    assert all(0.85 <= v / 200 <= 0.95 for v in covered.values()), covered


@pytest.mark.slow
def test_control_seeds_as_units_cover_too_little_under_shared_noise():
    rng = np.random.default_rng(1)
    covered = 0
    for i in range(200):
        x, y = sweep(i)
        y = y + np.repeat(0.001 * rng.normal(size=len(SIZES)), 3)
        low, high = fit.fit_law(x, y, unit="seed").intervals["a"]
        covered += low <= 0.35 <= high
    assert covered / 200 < 0.85


def test_sigma_is_what_three_parameters_leave():
    x, y = sweep(3, seeds=1)
    law = fit.fit_law(x, y)
    rest = y - np.array([law.predict(size) for size in x])
    assert law.sigma == pytest.approx(np.sqrt((rest**2).sum() / (len(x) - 3)), rel=1e-6)


def test_new_runs_of_a_size_add_the_noise_of_its_mean_and_more_of_them_promise_nothing():
    law = fit.fit_law(*sweep(1))
    width = {n: np.diff(law.interval(1e6, seeds=n))[0] for n in (1, 3, 100)}
    assert width[1] > 1.05 * width[3] and width[100] == pytest.approx(width[3])


def test_huber_weights_begin_at_robust_standard_deviations():
    """A residual beyond 1.345 x 1.4826 medians of the residuals weighs by that over itself."""
    x, y = sweep(2, noise=0.003)
    p = projection.problem(x, y, True)
    w = projection.huber_weights(p, 1.345)
    ceiling, gap, a, _ = projection.solve(dataclasses.replace(p, w=w))
    rest = abs(y - ceiling + gap * p.basis(a))
    np.testing.assert_allclose(w, np.minimum(1, 1.345 * 1.4826 * np.median(rest) / rest), atol=1e-3)
    assert (w < 1).any()
