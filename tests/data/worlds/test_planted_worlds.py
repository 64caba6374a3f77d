"""The planted worlds of the papers: their constants, as the oracle sees them, before any model."""

import numpy as np
import pytest

from recjax.data.loading.loader import PreparedData
from recjax.data.store.prepared import DataError, Prepared
from recjax.data.store.writing import write_prepared
from recjax.data.worlds import aw_moe, ccn, nif, qin, tin
from recjax.metrics.classification import auc, gauc
from recjax.metrics.correlation import ctc
from recjax.schema import NUM_RESERVED
from tests.messages import raises


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


@pytest.mark.parametrize("cold", [False, True])
def test_qin_is_what_its_docstring_says(cold):
    world, rng = qin.World(), np.random.default_rng(0)
    items = qin.catalogue(world, rng)
    r = qin.sample(world, items, 60_000, rng, cold=cold)
    click, mood = r.columns["click"], (r.columns["mood"] - NUM_RESERVED) * 2 - 1
    past = r.events["hist_vector"] - NUM_RESERVED
    target = r.columns["vector"] - NUM_RESERVED
    assert click.mean() == pytest.approx(0.368, abs=0.01)
    assert auc(r.columns["oracle"], click) == pytest.approx(0.851, abs=0.006)
    near, crossed = qin.terms(world, items.latent, past, target, mood)
    assert auc(near, click) == pytest.approx(0.79, abs=0.01)
    assert auc(crossed, click) == pytest.approx(0.685, abs=0.015)
    seen = np.maximum(np.einsum("nld,nd->nl", items.vector[past], items.vector[target]), 0)
    assert auc(world.strength * seen.mean(1) + crossed, click) == pytest.approx(0.846, abs=0.006)
    # controls: neither side alone, nor the ids of cold items, nor other items' vectors say anything
    half = len(click) // 2
    rate = np.bincount(target[:half], click[:half], 2_000) / np.maximum(np.bincount(target[:half], minlength=2_000), 1)  # fmt: skip
    assert auc(rate[target[half:]], click[half:]) < 0.53 and abs(auc(mood, click) - 0.5) < 0.015
    assert (len(np.unique(r.columns["item"])) == 1) == cold
    other = items.vector[rng.permutation(len(items.vector))]
    seen = np.maximum(np.einsum("nld,nd->nl", other[past], other[target]), 0).mean(1)
    assert abs(auc(seen, click) - 0.5) < 0.015


def test_qin_vectors_are_written_by_id(tmp_path):
    sizes = dict(train=60, validation=20, test=20, test_cold=20)
    data = Prepared(qin.prepare(tmp_path, **sizes, seed=3))
    items = qin.catalogue(qin.World(seed=3), np.random.default_rng(3))
    vectors = data.vectors("vector")
    assert vectors.shape == (data.schema.space("vector").rows, 16)
    np.testing.assert_array_equal(vectors[NUM_RESERVED:][:2_000], items.vector)
    assert not vectors[:NUM_RESERVED].any() and not vectors[NUM_RESERVED + 2_000 :].any()
    table = next(t for t in data.schema.tables(4) if t.id_space == "vector")
    assert (table.dim, table.optimizer, table.init_scale) == (16, "frozen", 0.0)
    with raises(DataError, "vectors", "shape"):
        none = dict.fromkeys(("time", "hist_item", "hist_vector"), np.zeros(0, int))
        write_prepared(tmp_path, "no", data.schema, {"history": [none]}, {}, options={})


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
    data = PreparedData(Prepared(module.prepare(tmp_path, **sizes, seed=3)), history=20)
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


def within_pages(columns, name, label="click"):
    return gauc(columns[name], columns[label], columns["page"]).value


def test_ccn_is_what_its_docstring_says():
    found = ccn.splits(ccn.World(test=5_000, train=200))
    for split, scenes in (("test", set(range(12))), ("test_unseen", {12})):
        c = found[split]
        assert set(c["scene"] - NUM_RESERVED) == scenes
        assert 0.3 < c["click"].mean() < 0.45
        assert auc(c["oracle"], c["click"]) == pytest.approx(0.94, abs=0.012)
        assert within_pages(c, "oracle") == pytest.approx(0.918, abs=0.012)
        clicks = [np.bincount(c["page"], c[label]) for label in ("click", "shuffled")]
        np.testing.assert_array_equal(*clicks)
        assert abs(within_pages(c, "oracle", "shuffled") - 0.5) < 0.015
    assert set(found["train"]["scene"]) <= set(found["test"]["scene"])
    pages = [set(c["page"]) for c in found.values()]
    assert sum(map(len, pages)) == len(set().union(*pages)), "no page is in two splits"


def test_ccn_depends_on_the_trigger_as_much_as_it_is_told_to():
    worlds = [ccn.splits(ccn.World(own=a, test=3_000, train=50))["test"] for a in (0.2, 0.5, 0.8)]
    for side, want in (("trigger_axis", (0.76, 0.67, 0.56)), ("user_axis", (0.56, 0.67, 0.76))):
        np.testing.assert_allclose([within_pages(w, side) for w in worlds], want, atol=0.02)


def test_ccn_pages_are_written_as_they_are_sampled(tmp_path):
    sizes = dict(train=60, validation=20, test=20)
    data = PreparedData(Prepared(ccn.prepare(tmp_path, **sizes, seed=3)), candidates=8)
    assert data.splits == dict(train=480, validation=160, test=160, test_unseen=160)
    world = ccn.splits(ccn.World(**sizes, seed=3))
    batch = next(iter(data.batches("test_unseen", 20)))
    assert batch["valid"].all()
    for name in ccn.LABELS:
        want = world["test_unseen"][name].reshape(20, 8)
        np.testing.assert_array_equal(batch["label"][name], want)
    np.testing.assert_array_equal(
        batch["dense"]["item"], world["test_unseen"]["item"].reshape(20, 8, 8)
    )
    np.testing.assert_array_equal(
        batch["dense"]["trigger_item"], world["test_unseen"]["trigger_item"][::8]
    )
    train = next(iter(data.batches("train", 60)))
    by_page = world["train"]["click"].reshape(60, 8)[train["group"]["page"]]
    np.testing.assert_array_equal(train["label"]["click"], by_page)
