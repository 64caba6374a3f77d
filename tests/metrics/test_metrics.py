"""Metrics against brute force, hand-computed numbers and scikit-learn's definitions."""

import itertools
import math
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.evaluation.collector import Collector
from recjax.metrics import classification, comparison, ranking, uplift

NAN = float("nan")


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def world(ctr_logit, n, seed, scale=1.0, spread=1.2):
    """Calibrated logits and clicks; `scale` then makes the model overconfident."""
    rng = np.random.default_rng(seed)
    z = rng.normal(ctr_logit, spread, n)
    y = (rng.random(n) < sigmoid(z)).astype(np.float32)
    return (z * scale).astype(np.float32), y


def pair_auc(scores, labels, weights):
    """Every pair, ties 1/2."""
    won = total = 0.0
    for (s, y, w), (t, x, v) in itertools.product(
        zip(scores, labels, weights, strict=True), repeat=2
    ):
        if y == 1 and x == 0:
            total += w * v
            won += w * v * (1.0 if s > t else 0.5 if s == t else 0.0)
    return won / total


def on_device(z, y, w=None, **kw):
    w = np.ones_like(z) if w is None else w
    sums = jax.jit(classification.update)(
        classification.init(**kw), jnp.asarray(z), jnp.asarray(y), jnp.asarray(w)
    )
    return classification.compute(sums)


# ------------------------------------------------------------------------------------------------
# exact AUC


@pytest.mark.parametrize("seed", range(5))
def test_auc_equals_a_count_of_pairs_with_ties_and_weights(seed):
    rng = np.random.default_rng(seed)
    s, y, w = rng.integers(0, 6, 40) / 3, rng.integers(0, 2, 40), rng.integers(0, 4, 40)
    assert classification.auc(s, y, w) == pytest.approx(pair_auc(s, y, w), abs=1e-12)
    assert classification.auc(s, y) == pytest.approx(pair_auc(s, y, np.ones(40)), abs=1e-12)


def test_auc_by_hand():
    assert classification.auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75
    assert classification.auc([3, 2, 1], [1, 0, 0]) == 1.0
    assert classification.auc([1, 2, 3], [1, 0, 0]) == 0.0
    assert classification.auc([1, 1], [1, 0]) == 0.5


def test_auc_agrees_with_scikit_learn():
    sk = pytest.importorskip("sklearn.metrics")
    z, y = world(-3, 20_000, 0)
    w = np.random.default_rng(0).random(len(z))
    assert classification.auc(z, y, w) == pytest.approx(
        sk.roc_auc_score(y, z, sample_weight=w), abs=1e-12
    )
    assert classification.logloss(sigmoid(z), y) == pytest.approx(
        sk.log_loss(y, sigmoid(z)), abs=1e-12
    )


@pytest.mark.parametrize(
    ("scores", "labels", "word"),
    [
        ([0.1, NAN], [0, 1], "1 predictions are not finite"),
        ([0.1, 0.2], [1, 1], "label is 1"),
        ([], [], "weight"),
    ],
)
def test_undefined_auc_is_nan_with_a_reason(scores, labels, word):
    with pytest.warns(classification.UndefinedMetric, match=word):
        assert math.isnan(classification.auc(scores, labels))


def test_one_class_has_a_logloss_but_nan_scores_have_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classification.logloss([0.5, 0.5], [0, 0]) == pytest.approx(math.log(2))
    with pytest.warns(classification.UndefinedMetric):
        assert math.isnan(classification.logloss([NAN, 0.5], [0, 1]))


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (([1], [0, 1]), "1 scores.*2 labels"),
        (([1], [2]), "labels"),
        (([1], [1], [-1]), "weights"),
        (([1], [NAN]), "labels"),
    ],
)
def test_bad_input_is_named(args, word):
    with pytest.raises(ValueError, match=word):
        classification.auc(*args)


# ---------------------------------------------------------------------------------------- device
# histogram


@pytest.mark.parametrize(
    ("ctr_logit", "scale", "n", "tolerance"),
    [
        (0.0, 1, 200_000, 3e-6),
        (-1.8, 1, 200_000, 3e-6),
        (-4.2, 1, 200_000, 6e-6),
        (-4.2, 4, 200_000, 6e-6),
        (-7.8, 1, 500_000, 2e-5),
    ],
)
def test_histogram_auc_is_close_to_exact(ctr_logit, scale, n, tolerance):
    z, y = world(ctr_logit, n, 1, scale)
    assert on_device(z, y)["auc"] == pytest.approx(classification.auc(z, y), abs=tolerance)


def test_control_two_hundred_bins_are_not_enough():
    z, y = world(-4.2, 200_000, 1)
    assert abs(on_device(z, y, bins=200)["auc"] - classification.auc(z, y)) > 1e-5


def test_histogram_of_separated_scores_is_exact_with_weights():
    rng = np.random.default_rng(0)
    z = rng.integers(-3, 4, (8, 10)).astype(np.float32)
    y, w = (rng.integers(0, n, (8, 10)).astype(np.float32) for n in (2, 4))
    got = on_device(z, y, w)
    zz, yy, ww = (x.ravel().astype(np.float64) for x in (z, y, w))
    assert got["auc"] == pytest.approx(classification.auc(zz, yy, ww), abs=1e-6)
    assert got["logloss"] == pytest.approx(classification.logloss(sigmoid(zz), yy, ww), rel=1e-5)
    assert got["rate"] == pytest.approx((ww * yy).sum() / ww.sum(), rel=1e-6)
    assert got["calibration"] == pytest.approx((ww * sigmoid(zz)).sum() / (ww * yy).sum(), rel=1e-5)
    assert got["ece"] == pytest.approx(classification.ece(sigmoid(zz), yy, ww), abs=1e-6)
    assert got["ece_width"] == pytest.approx(
        classification.ece(sigmoid(zz), yy, ww, scheme="width"), abs=1e-6
    )
    assert got["examples"] == (w > 0).sum()


def test_order_of_merging_does_not_matter():
    z, y = world(-3, 3_000, 0)
    w = np.ones_like(z)
    update = jax.jit(classification.update)
    whole = update(classification.init(), z, y, w)
    parts = [update(classification.init(), z[i::3], y[i::3], w[i::3]) for i in range(3)]
    merged = classification.merge(parts[2], classification.merge(parts[0], parts[1]))
    running = classification.init()
    for i in range(3):
        running = update(running, z[i::3], y[i::3], w[i::3])
    for other in (merged, running):
        a, b = classification.compute(whole), classification.compute(other)
        assert all(a[k] == pytest.approx(b[k], rel=1e-5) for k in a)


def test_matmul_histogram_equals_the_scatter(monkeypatch):
    monkeypatch.setattr(classification, "MATMUL_ROWS", 64)  # several chunks, the last one padded
    rng = np.random.default_rng(0)
    for bins in (1, 7, 512, 1000):
        index, values = rng.integers(0, bins, 300), rng.random((300, 5)).astype(np.float32)
        np.testing.assert_allclose(
            classification._matmul(jnp.asarray(index), jnp.asarray(values), bins),
            classification._scatter(jnp.asarray(index), jnp.asarray(values), bins),
            rtol=1e-5,
        )


def test_update_maps_over_seeds():
    z, y = world(-1, 500, 0)
    both = jnp.stack([z, -z])
    sums = jax.vmap(lambda s: classification.update(classification.init(), s, y, jnp.ones_like(s)))(
        both
    )
    first, second = (
        classification.compute(jax.tree.map(lambda x, i=i: x[i], sums)) for i in range(2)
    )
    assert first["auc"] == pytest.approx(classification.auc(z, y), abs=5e-5)
    assert second["auc"] == pytest.approx(1 - first["auc"], abs=1e-5)


def test_padding_may_hold_nan_but_a_used_nan_is_reported():
    z, y = np.array([0.0, 1.0, NAN], np.float32), np.array([0, 1, 0], np.float32)
    good = on_device(z, y, np.array([1, 1, 0], np.float32))
    assert good["auc"] == 1.0
    assert "undefined" not in good
    bad = on_device(z, y)
    assert math.isnan(bad["auc"])
    assert math.isnan(bad["logloss"])
    assert bad["undefined"].startswith("1 predictions are not finite")


def test_device_reports_one_class_and_nothing():
    one = on_device(np.zeros(3, np.float32), np.zeros(3, np.float32))
    assert math.isnan(one["auc"])
    assert math.isnan(one["calibration"])
    assert one["logloss"] == pytest.approx(math.log(2))
    assert "every label is 0" in one["undefined"]
    assert "no example" in classification.compute(classification.init())["undefined"]


def test_extreme_logits_stay_in_range():
    z = np.array([-1e30, -1e3, 1e3, 1e30], np.float32)
    got = on_device(z, np.array([0, 0, 1, 1], np.float32))
    assert got["auc"] == 1.0
    assert got["logloss"] == pytest.approx(0.0, abs=1e-6)


def test_sums_of_many_batches_stay_accurate():
    """Plain float32 sums would be off by 4.6 %: 2,000 batches of 8,192 equal losses, all in one
    bin."""
    sums = classification.init()
    z, y, w = jnp.full(8192, -3.5), jnp.zeros(8192), jnp.ones(8192)
    sums = jax.jit(
        lambda s: jax.lax.fori_loop(0, 2000, lambda _, t: classification.update(t, z, y, w), s)
    )(sums)
    got = classification.compute(sums)
    assert got["examples"] == 2000 * 8192
    assert got["logloss"] == pytest.approx(math.log1p(math.exp(-3.5)), rel=1e-4)


# ----------------------------------------------------------------------------------------------
# calibration


def test_calibration_undoes_negative_sampling():
    assert classification.calibrated(0.5, 0.1) == pytest.approx(1 / 11)
    assert classification.negative_weight(0.1) == 10
    z, y = world(-4.2, 400_000, 2)
    keep = (np.random.default_rng(0).random(len(z)) < 0.1) | (y == 1)
    sampled = z[keep] - np.log(0.1)  # what a calibrated model of the sampled data says
    weights = np.where(y[keep] == 1, 1.0, classification.negative_weight(0.1))
    p = classification.calibrated(sigmoid(sampled), 0.1)
    np.testing.assert_allclose(p, sigmoid(z[keep]), rtol=1e-5)
    assert classification.ece(p, y[keep], weights) < 0.002
    assert classification.ece(sigmoid(sampled), y[keep], weights) > 0.1  # control: uncorrected
    with pytest.raises(ValueError, match="keep_prob"):
        classification.calibrated(0.5, 0)


def test_ece_by_hand():
    p, y = np.array([0.1] * 10 + [0.9] * 10), np.array([1] * 3 + [0] * 7 + [1] * 9 + [0])
    assert classification.ece(p, y, bins=2) == pytest.approx(0.5 * 0.2)
    assert classification.ece(p, y, scheme="width", bins=10) == pytest.approx(0.5 * 0.2)


def test_ece_of_the_histogram_is_close_to_exact():
    z, y = world(-3, 100_000, 3, scale=1.3)
    assert on_device(z, y)["ece"] == pytest.approx(classification.ece(sigmoid(z), y), abs=2e-5)


# ------------------------------------------------------------------------------------------------------
# GAUC


def test_gauc_equals_the_mean_over_groups_with_both_classes():
    rng = np.random.default_rng(0)
    s, y, g = rng.integers(0, 4, 60), rng.integers(0, 2, 60), rng.integers(0, 12, 60) * 1000
    w = rng.integers(1, 4, 60).astype(float)
    y[g == 0] = 0  # a group without a click
    total = weight = groups = 0
    for key in np.unique(g):
        m = g == key
        if 0 < y[m].sum() < m.sum():
            total += w[m].sum() * pair_auc(s[m], y[m], w[m])
            weight += w[m].sum()
            groups += 1
    got = classification.gauc(s, y, g, w)
    assert got.value == pytest.approx(total / weight, abs=1e-12)
    assert (got.groups, got.total_groups) == (groups, len(np.unique(g)))
    assert got.covered == pytest.approx(weight / w.sum())


def test_gauc_without_a_mixed_group_is_undefined():
    with pytest.warns(classification.UndefinedMetric, match="no group"):
        got = classification.gauc([0.1, 0.2], [0, 1], [1, 2])
    assert math.isnan(got.value)
    assert got.groups == 0


def test_gauc_does_not_reward_knowing_the_group():
    """A score that only orders groups has GAUC 1/2 whatever its AUC."""
    rng = np.random.default_rng(0)
    g = rng.integers(0, 50, 5_000)
    y = rng.random(5_000) < g / 50
    assert classification.auc(g, y) > 0.8
    assert classification.gauc(g, y, g).value == pytest.approx(0.5)


# ---------------------------------------------------------------------------------------------------
# ranking


def brute_ranking(scores, labels, groups, k):
    hits, recalls, precisions = [], [], []
    for key in np.unique(groups):
        rows = sorted(((-s, y) for s, y, g in zip(scores, labels, groups, strict=True) if g == key))
        y = [r[1] for r in rows]
        if sum(y):
            hits.append(any(y[:k]))
            recalls.append(sum(y[:k]) / sum(y))
            precisions.append(np.mean([sum(y[: i + 1]) / (i + 1) for i in range(len(y)) if y[i]]))
    return np.mean(hits), np.mean(recalls), np.mean(precisions)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_ranking_metrics_equal_brute_force(k):
    rng = np.random.default_rng(k)
    s, y, g = rng.integers(0, 5, 80), (rng.random(80) < 0.3).astype(int), rng.integers(0, 9, 80) + 7
    hit, rec, ap = brute_ranking(s, y, g, k)
    assert ranking.hit_rate(s, y, g, k) == pytest.approx(hit)
    assert ranking.recall(s, y, g, k) == pytest.approx(rec)
    assert ranking.mean_average_precision(s, y, g) == pytest.approx(ap)


def test_a_constant_score_hits_nothing():
    y, g = np.tile([0, 0, 0, 1], 5), np.repeat(np.arange(5), 4)
    assert ranking.hit_rate(np.zeros(20), y, g, 1) == 0.0
    assert ranking.recall(np.zeros(20), y, g, 3) == 0.0


# ----------------------------------------------------------------------------------------------------
# uplift


def brute_uplift(u, t, y):
    """Areas by looping over every prefix of distinct scores."""
    xs, gains, qs = [0.0], [0.0], [0.0]
    n = len(u)
    for cut in sorted(set(u), reverse=True):
        top = u >= cut
        nt, nc = (top & (t == 1)).sum(), (top & (t == 0)).sum()
        yt, yc = y[top & (t == 1)].sum(), y[top & (t == 0)].sum()
        xs.append(top.sum() / n)
        gains.append(((yt / nt if nt else 0.0) - (yc / nc if nc else 0.0)) * top.sum() / n)
        qs.append((yt - (yc * nt / nc if nc else 0.0)) / n)
    area = lambda f: sum((xs[i] - xs[i - 1]) * (f[i] + f[i - 1]) / 2 for i in range(1, len(xs)))  # noqa: E731
    return area(gains), area(qs) - qs[-1] / 2


@pytest.mark.parametrize("distinct", [4, 1000])
def test_uplift_metrics_equal_brute_force(distinct):
    rng = np.random.default_rng(distinct)
    u, t, y = rng.integers(0, distinct, 60), rng.integers(0, 2, 60), rng.integers(0, 2, 60)
    area, coefficient = brute_uplift(u, t, y)
    assert ranking.auuc(u, t, y) == pytest.approx(area, abs=1e-12)
    assert ranking.qini(u, t, y) == pytest.approx(coefficient, abs=1e-12)


GOLDEN = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], [1, 0] * 4, [1, 0, 1, 0, 0, 0, 0, 1]


def test_uplift_golden_case():
    """By hand, and frozen from scikit-uplift 0.5.1 (uplift_curve, qini_curve, areas 21.8333 and 12.5)."""
    _, q = ranking.qini_curve(*GOLDEN)
    np.testing.assert_allclose(8 * q, [0, 1, 1, 2, 2, 2, 2, 2, 1])
    _, u = ranking.uplift_curve(*GOLDEN)
    np.testing.assert_allclose(8 * u, [0, 1, 2, 3, 4, 10 / 3, 4, 3.5, 2])
    assert ranking.auuc(*GOLDEN) == pytest.approx(21.83333333 / 64)
    assert ranking.qini(*GOLDEN) == pytest.approx((12.5 - 4) / 64)


def test_uplift_curves_are_scikit_uplifts():
    sklift = pytest.importorskip("sklift.metrics", reason="scikit-uplift is not installed")
    rng = np.random.default_rng(0)
    u, t, y = rng.integers(0, 40, 500) / 40, rng.integers(0, 2, 500), rng.integers(0, 2, 500)
    for mine, theirs in (
        (ranking.uplift_curve, "uplift_curve"),
        (ranking.qini_curve, "qini_curve"),
    ):
        share, curve = mine(u, t, y)
        people, want = getattr(sklift, theirs)(y, u, t)
        np.testing.assert_allclose(500 * share, people)
        np.testing.assert_allclose(500 * curve, want, atol=1e-9)


def test_uplift_weights_are_copies():
    rng = np.random.default_rng(0)
    u, t, y = rng.random(60), rng.integers(0, 2, 60), rng.integers(0, 2, 60)
    w = rng.integers(1, 4, 60)
    copies = [np.repeat(x, w) for x in (u, t, y)]
    for metric in (ranking.auuc, ranking.qini):
        assert metric(u, t, y, w) == pytest.approx(metric(*copies))
        assert metric(u, t, y) != pytest.approx(metric(*copies))


def test_uplift_orders_the_truth_above_chance_above_its_opposite():
    rng = np.random.default_rng(0)
    effect = rng.random(20_000) * 0.4
    t = rng.integers(0, 2, 20_000)
    y = rng.random(20_000) < 0.2 + t * effect
    good, none, bad = (ranking.qini(u, t, y) for u in (effect, np.zeros(20_000), -effect))
    assert good > 0.005
    assert none == pytest.approx(0.0, abs=1e-12)
    assert bad < -0.005
    assert ranking.auuc(np.zeros(20_000), t, y) == pytest.approx(
        0.1, abs=0.01
    )  # half the average effect of 0.2
    with pytest.raises(ValueError, match="control"):
        ranking.auuc([1, 2], [1, 1], [0, 1])


# -------------------------------------------------------------------------------------------------
# collector


def fill(collector, n=6_000, batch=500):
    z, y = world(-2, n, 5)
    visit = np.random.default_rng(5).integers(0, n // 10, n // 2)
    for i in range(0, n // 2, batch):
        s = slice(2 * i, 2 * (i + batch))
        weights = np.ones((batch, 2), np.float32)
        weights[0, 1] = 0
        collector.add(
            z[s].reshape(-1, 2), y[s].reshape(-1, 2), weights,
            np.arange(n, dtype=np.int32)[s].reshape(-1, 2), {"visit": visit[i : i + batch]},
        )  # fmt: skip
    return collector


def test_collector_is_exact():
    c = fill(Collector())
    rows, got = c.rows(), c.compute()
    assert got["exact"]
    assert got["examples"] == 6_000 - 6 == len(np.unique(rows["row"]))
    assert got["auc"] == pytest.approx(classification.auc(rows["logit"], rows["label"]), abs=1e-12)
    expected = classification.gauc(rows["logit"], rows["label"], rows["group/visit"])
    assert got["gauc_visit"] == pytest.approx(expected.value)
    assert got["gauc_visit_groups"] == expected.groups
    assert got["ece"] == pytest.approx(
        classification.ece(sigmoid(rows["logit"]), rows["label"]), abs=1e-9
    )


def test_collector_falls_back_to_a_histogram_and_says_so(caplog):
    with caplog.at_level("WARNING", logger="absl"):
        small = fill(Collector(max_rows=2_500))
    assert "2500" in caplog.text
    full, got = fill(Collector()).compute(), small.compute()
    assert not got["exact"]
    assert "gauc_visit" not in got
    assert got["examples"] == full["examples"]
    for key in ("auc", "logloss", "calibration", "ece"):
        assert got[key] == pytest.approx(full[key], abs=1e-4)
    with pytest.raises(RuntimeError, match="max_rows"):
        small.rows()


def test_empty_collector_reports_nothing():
    assert "no example" in Collector().compute()["undefined"]


def test_collector_reports_nan():
    c = Collector()
    c.add(np.array([NAN, 1.0]), np.array([0.0, 1.0]), np.ones(2), groups={"user": np.array([1, 1])})
    got = c.compute()
    assert math.isnan(got["auc"])
    assert math.isnan(got["gauc_user"])
    assert "not finite" in got["undefined"]


# ------------------------------------------------------------------------------------------ paired
# bootstrap


def visits(n, seed, noise):
    """Two models of the same visits; b has less noise than a."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, n // 8, n)
    z = rng.normal(-1, 1, n) + rng.normal(0, 1, n // 8)[group]
    y = (rng.random(n) < sigmoid(z)).astype(int)
    return sigmoid(z + noise * rng.normal(0, 1, n)), sigmoid(z), y, group


@pytest.mark.parametrize("metric", ["auc", "gauc", "logloss"])
def test_bootstrap_draws_equal_recomputing_on_the_resampled_rows(metric):
    a, b, y, g = visits(400, 0, 0.5)
    a = np.round(a, 1)  # ties
    size = len(np.unique(g))
    code = np.unique(g, return_inverse=True)[1]
    draw = np.random.default_rng(0).integers(size, size=size)
    rows = np.concatenate([np.flatnonzero(code == d) for d in draw])
    new_group = np.concatenate([np.full((code == d).sum(), i) for i, d in enumerate(draw)])
    expected = {
        "auc": lambda: classification.auc(a[rows], y[rows]),
        "gauc": lambda: classification.gauc(a[rows], y[rows], new_group).value,
        "logloss": lambda: classification.logloss(a[rows], y[rows]),
    }[metric]()
    counts = np.bincount(draw, minlength=size).astype(float)
    assert comparison._of_counts(metric, a, y, code, None)(counts) == pytest.approx(
        expected, abs=1e-12
    )


def test_bootstrap_finds_a_real_difference_and_none_where_there_is_none():
    a, b, y, g = visits(8_000, 1, 0.8)
    found = comparison.paired_bootstrap(a, b, y, g, "auc", n=100)
    assert found.low > 0
    assert found.difference == pytest.approx(classification.auc(b, y) - classification.auc(a, y))
    rng = np.random.default_rng(9)
    c, d = (b + 0.05 * rng.normal(0, 1, len(b)) for _ in range(2))
    none = comparison.paired_bootstrap(c, d, y, g, "auc", n=100)
    assert none.low < 0 < none.high
    assert comparison.paired_bootstrap(b, b, y, g, "logloss", n=20).high == 0.0


def test_bootstrap_of_the_test_set_is_fast_enough():
    a, b, y, g = visits(130_000, 2, 0.3)
    start = time.process_time()
    comparison.paired_bootstrap(a, b, y, g, "auc", n=200)
    assert time.process_time() - start < 20  # CPU seconds; 1.3 measured


def test_bootstrap_names_a_bad_metric():
    with pytest.raises(ValueError, match="auc, gauc or logloss"):
        comparison.paired_bootstrap([0.1, 0.2], [0.1, 0.2], [0, 1], [0, 1], "f1")


def test_bootstrap_of_several_seeds_averages_their_metrics():
    a, b, y, g = visits(2_000, 3, 0.5)
    both = comparison.paired_bootstrap([a, b], [b, b], y, g, "auc", n=30)
    one = comparison.paired_bootstrap(a, b, y, g, "auc", n=30)
    assert both.difference == pytest.approx(one.difference / 2)
    assert both.low == pytest.approx(one.low / 2)  # the same draws


# ------------------------------------------------------------------------------------------- directions


@pytest.mark.parametrize("metric", ["auc", "click/auc", "gauc_visit", "test_auc", "HR@10", "hr10", "hr10_last", "ndcg@10",
                                    "qini_ctcvr", "map", "average_precision"])  # fmt: skip
def test_scores_are_better_when_large(metric):
    assert classification.larger_is_better(metric)


@pytest.mark.parametrize("metric", ["logloss", "click/logloss", "nce_loss", "val_loss", "ece", "ece_width", "mse", "test/rmse",
                                    "NE", "normalized_entropy", "val_bpb", "rmse", "mae", "perplexity"])  # fmt: skip
def test_losses_and_errors_are_better_when_small(metric):
    assert not classification.larger_is_better(metric)


@pytest.mark.parametrize(
    "metric",
    [
        "calibration",
        "auc_drop",
        "auc_user_gap",
        "auc_error",
        "gauc_visit_groups",
        "slot_1",
        "sharpness",
    ],
)
def test_the_direction_of_an_unknown_name_is_not_guessed(metric):
    with pytest.raises(ValueError, match=f"'{metric}'.*larger_is_better"):
        classification.larger_is_better(metric)


def test_bins_of_equal_weight_are_cut_in_the_middle_of_a_block():
    """Four blocks of one row, two bins: two rows each, one off by +0.2 in all, the other by -0.4."""
    p, y = [0.1, 0.5, 0.6, 0.8], [0, 1, 1, 1]
    want = (abs(0.1 + 0.5 - 1) + abs(0.6 + 0.8 - 2)) / 4
    assert classification.ece(p, y, bins=2) == pytest.approx(want)


def test_predictions_that_are_not_finite_are_examples_too():
    z, y = np.array([0.0, 1.0, NAN], np.float32), np.array([0, 1, 1], np.float32)
    assert on_device(z, y)["examples"] == 3


def test_a_half_width_is_student_s():
    """Standard deviation 1 of three values, t of two degrees of freedom."""
    assert comparison.half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3))
    assert math.isnan(comparison.half_width([1.0]))


def test_an_effect_its_error_and_the_mean_over_arms_by_hand():
    """Variances of the two means: 2 (1/2)^2 (1/2)^2 and 4 (1/4)^2 (1/2)^2."""
    treated, outcome = np.array([1, 1, 0, 0, 0, 0]), np.array([0, 1, 0, 0, 1, 1.0])
    assert uplift.effect(treated, outcome) == pytest.approx((0.0, math.sqrt(3 / 16)))
    arm = np.array([0, 1, 1, 1, 2])
    assert uplift.averaged([1.0, 3.0], arm) == pytest.approx(1.5)
    assert uplift.averaged([1.0, NAN], arm) == 1.0


def test_a_folded_collector_counts_what_is_not_finite_and_leaves_out_what_has_no_weight():
    folded = Collector(max_rows=1)
    folded.add([0.0, 1.0, NAN, 5.0], [0, 1, 1, 1], [1, 1, 1, 0])
    got = folded.compute()
    assert not got["exact"] and got["examples"] == 3 and folded.count == 3
    assert math.isnan(got["auc"]) and "1 predictions" in got["undefined"]
