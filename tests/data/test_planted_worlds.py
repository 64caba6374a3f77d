"""The planted worlds of the papers: their constants, as the oracle sees them, before any model."""

import numpy as np
import pytest

from recjax.correlation import ctc
from recjax.data.loader import Data
from recjax.data.prepared import Prepared
from recjax.data.synthetic import aw_moe, nif, tin
from recjax.metrics import auc
from recjax.schema import NUM_RESERVED


def test_tin_is_what_its_docstring_says():
    world = tin.World()
    r = tin.sample(world, 160_000, np.random.default_rng(0))
    click, logit = r.columns["click"], r.columns["oracle"]
    assert click.mean() == pytest.approx(0.388, abs=0.005)
    assert auc(logit, click) == pytest.approx(0.784, abs=0.004)
    events, target = r.events["hist_category"] - 3, r.columns["category"] - 3
    bits = ctc(events, r.mask, target, click, 20)
    same = np.einsum("ipi->ip", bits).mean(0)
    np.testing.assert_allclose(same[:4], [0.120, 0.053, 0.016, 0.004], atol=0.006)
    other = bits[~np.eye(20, dtype=bool)[:, None].repeat(10, 1)]
    assert same[4:].max() < 0.002 and other.mean() < 0.001
    # controls: neither side alone says anything
    rate = np.bincount(target[:80_000], click[:80_000]) / np.bincount(target[:80_000])
    assert abs(auc(rate[target[80_000:]], click[80_000:]) - 0.5) < 0.01


def test_tin_shuffled_labels_say_nothing():
    r = tin.sample(tin.World(label="shuffled"), 20_000, np.random.default_rng(0))
    assert abs(auc(r.columns["oracle"], r.columns["click"]) - 0.5) < 0.015


def majority(r, half=10):
    upper = (r.events["hist_category"] - NUM_RESERVED >= half) * 2 - 1
    vote = (upper * r.mask).sum(1)
    tie = np.random.default_rng(5).choice([-1, 1], len(vote))
    return np.where(vote == 0, tie, np.sign(vote))


def test_aw_moe_is_what_its_docstring_says():
    rng = np.random.default_rng(0)
    r = aw_moe.sample(aw_moe.World(), 60_000, rng)
    click, taste = r.columns["click"], r.columns["taste"] * 2 - 1
    assert click.mean() == pytest.approx(0.5, abs=0.01)
    assert auc(r.columns["oracle"], click) == pytest.approx(0.860, abs=0.005)
    vote, late = majority(r), majority(aw_moe.cut(r, rng))
    assert (vote == taste).mean() == pytest.approx(0.990, abs=0.003)
    assert (late == taste).mean() == pytest.approx(0.85, abs=0.01)
    x1, x2, x3 = (r.columns[k] for k in aw_moe.NUMBERS)
    assert auc(3 * vote * x1 * x2 + 0.3 * x3, click) == pytest.approx(0.853, abs=0.005)
    assert auc(x3, click) == pytest.approx(0.552, abs=0.01)
    assert abs(auc(x1 * x2, click) - 0.5) < 0.01
    other = aw_moe.sample(aw_moe.World(label="shuffled"), 60_000, rng)
    x1, x2, x3 = (other.columns[k] for k in aw_moe.NUMBERS)
    assert auc(3 * majority(other) * x1 * x2 + 0.3 * x3, other.columns["click"]) < 0.56
    null = aw_moe.sample(aw_moe.World(label="independent"), 20_000, rng)
    assert auc(null.columns["x1"] * null.columns["x2"], null.columns["click"]) > 0.8


def test_nif_is_what_its_docstring_says():
    t = nif.sample(nif.World())
    test = t.step >= nif.STEPS["test"][1]
    click = t.click[test]
    assert t.click.mean() == pytest.approx(0.113, abs=0.003)
    assert auc(t.logit[test], click) == pytest.approx(0.848, abs=0.006)
    intent = (t.intent[t.user, t.step] * t.points[t.item]).sum(1)[test]
    assert auc(intent, click) == pytest.approx(0.831, abs=0.006)
    match = (t.item_scene[t.item] == t.cause)[test]
    assert auc(match.astype(float), click) == pytest.approx(0.596, abs=0.015)
    before = np.bincount(t.item[t.click & (t.step < 52)], minlength=len(t.points))
    assert abs(auc(before[t.item][test].astype(float), click) - 0.5) < 0.03  # control
    step = np.arccos(np.clip((t.intent[:, 1:] * t.intent[:, :-1]).sum(-1), -1, 1))
    assert np.mean(np.isclose(step, 0.15, atol=1e-6)) == pytest.approx(0.85, abs=0.01)
    assert np.mean(np.isclose(step, 0.8, atol=1e-6)) == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize("module", [tin, aw_moe])
def test_worlds_are_written_as_they_are_sampled(module, tmp_path):
    sizes = dict(train=500, validation=80, test=90)
    data = Data(Prepared(module.prepare(tmp_path, **sizes, seed=3)), history=20)
    assert {s: data.splits[s] for s in sizes} == sizes
    world = module.World(**sizes, seed=3)
    rng = np.random.default_rng(3)
    train = module.sample(world, 500, rng)
    valid = module.sample(world, 80, rng) if module is tin else module.sample(world, 80, rng, 500)
    batch = next(iter(data.batches("validation", 80)))
    np.testing.assert_array_equal(batch["label"]["oracle"][:, 0], valid.columns["oracle"])
    width = train.age.shape[1]
    mask = batch["mask"]["history"]
    np.testing.assert_array_equal(mask.sum(1), valid.length)
    for name, events in valid.events.items():
        f = data.schema.feature(name)
        ids = batch["ids"][f.id_space][0][batch["pos"][name]]
        np.testing.assert_array_equal(ids[:, -width:][valid.mask], events[valid.mask])
    np.testing.assert_array_equal(
        batch["age"]["history"][:, -width:][valid.mask], valid.age[valid.mask]
    )
