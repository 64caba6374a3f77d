"""The comparison command: pairing, intervals, resumption, and refusals in words."""

import numpy as np
import pytest

from experiments import boards, compare
from recjax.evaluation import kept_scores
from recjax.metrics import classification
from recjax.training import inference

DIN = "experiments/din_complete_journey.py:runlocal"
SMALL = ("data.name=worlds.base", "data.prepare.impressions=3000", "data.prepare.users=200",
         "data.history=5", "train.examples=512", "eval.splits=[\"valid\"]", "eval.final=[\"test\"]")  # fmt: skip
LOGISTIC = "experiments/logistic_complete_journey.py:runlocal"


def entries(*texts):
    common = [s for s in SMALL if "prepare" not in s]
    out = compare.entries(texts, common)
    for e in out:
        e.config.data.prepare = dict(impressions=3_000, users=200)
    return out


def rows(logits, seed=0):
    rng = np.random.default_rng(seed)
    n = len(logits)
    label = (rng.random(n) < 0.4).astype(np.float32)
    return dict(
        logit=np.asarray(logits, np.float32) + label,
        label=label,
        weight=np.ones(n, np.float32),
        row=np.arange(n),
        **{"group/visit": np.arange(n) // 4},
    )


def test_runs_are_trained_once_and_compared_on_the_same_rows(tmp_path, monkeypatch):
    both = entries(LOGISTIC, DIN)
    first = compare.run(both, tmp_path, 1, resamples=5, tails=["36", "20%", "0"])
    trained = []
    train = inference.train
    monkeypatch.setattr(inference, "train", lambda c, *a: trained.append(c.seed) or train(c, *a))
    stamp = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("seed-0/predictions-test.npz")}
    found = compare.run(both, tmp_path, 2, resamples=5)
    tail = first["differences"]["din_complete_journey+runlocal"]
    few, share = (tail[k] for k in tail if "(36)" in k or "(20%)" in k)
    assert all(0 < x["rows"] < tail["test"]["rows"] and "auc" in x for x in (few, share))
    none = next(tail[k] for k in tail if "(0)" in k)
    assert none["rows"] == 0 and "auc" not in none and "undefined" in compare.table(first)
    assert trained == [0, 0, 1, 1] and len(stamp) == 2
    assert all(p.stat().st_mtime_ns == t for p, t in stamp.items())
    models, difference = found["models"], found["differences"]["din_complete_journey+runlocal"]
    d = difference["test"]["auc"]
    means = [m["test"]["auc"]["mean"] for m in models.values()]
    assert d["difference"] == pytest.approx(means[1] - means[0], abs=1e-6)
    assert d["difference"] == pytest.approx(np.mean(d["by_seed"]))
    assert d["by_seed"][0] == first["differences"]["din_complete_journey+runlocal"]["test"]["auc"]["by_seed"][0]  # fmt: skip
    assert difference["test"]["group"] == "group/request"
    assert "din_complete_journey+runlocal | test |" in compare.table(found)


def test_a_real_difference_is_found_and_noise_is_not():
    rng = np.random.default_rng(1)
    noise = [rng.normal(0, 1.0, 4000) for _ in range(6)]
    worse = [rows(2 * z) for z in noise[:3]]
    better = [rows(0.5 * z) for z in noise[:3]]
    same = [rows(2 * z) for z in noise[3:]]
    for metric in ("auc", "gauc"):
        d = compare.compare(worse, better, metric, "group/visit", n=50)
        assert d["interval_over_seeds"][0] > 0 and d["interval_over_groups"][0] > 0
        none = compare.compare(worse, same, metric, "group/visit", n=50)
        assert none["interval_over_seeds"][0] < 0 < none["interval_over_seeds"][1]
    d = compare.compare(worse, better, "auc", "", n=5)
    want = [classification.auc(b["logit"], b["label"]) - classification.auc(a["logit"], a["label"]) for a, b in zip(worse, better, strict=True)]  # fmt: skip
    np.testing.assert_allclose(d["by_seed"], want, atol=1e-9)


def test_the_interval_over_seeds_is_students():
    assert compare.over_seeds([0.3]) is None
    low, high = compare.over_seeds([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)))


def test_entries_are_files_arguments_and_overrides():
    one = compare.entry(DIN + " model.softmax=true model.attention=[8] opt.lr=0.01", ["seed=3"])
    assert (
        one.name
        == "din_complete_journey+runlocal+model.softmax=true+model.attention=-8-+opt.lr=0.01"
    )
    assert one.config.model.softmax is True and one.config.model.attention == (8,)
    assert (one.config.opt.lr, one.config.seed, one.of_seed(7).seed) == (0.01, 3, 7)
    assert compare.entry(DIN.replace("runlocal", "decisive")).config.train.recent == 300_000
    for bad, words in (("train.bacth=2", "bacth"), ("train.batch", "no assignment"),
                       ("train.batch=many", "train.batch=many")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            compare.entry(f"{DIN} {bad}")
    with pytest.raises(ValueError, match="given twice"):
        compare.entries([DIN, DIN])
    with pytest.raises(ValueError, match="at least two"):
        compare.entries([DIN])


def test_the_scores_that_training_keeps_are_those_of_the_finished_run(tmp_path):
    both = entries(LOGISTIC, DIN)
    compare.run(both, tmp_path, 1, resamples=5)
    for e in both:
        run = tmp_path / e.name / "seed-0"
        first = kept_scores.load(run, "test")
        (run / "predictions-test.npz").unlink()
        inference.keep_missing(run, ("test",))
        again = kept_scores.load(run, "test")
        assert first.keys() == again.keys() and "past" in first
        for k in first:
            np.testing.assert_allclose(first[k], again[k], rtol=1e-6, atol=1e-6, err_msg=k)
        _, judged = boards.scored(run, ("test",))  # of the newest checkpoint: there is no best one
        rows = judged["test"]
        np.testing.assert_allclose(np.sort(rows["logit"]), np.sort(first["logit"]), atol=1e-6)
