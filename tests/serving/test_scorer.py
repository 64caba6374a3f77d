import numpy as np
import pytest

from recjax.serving import artifact
from recjax.serving.artifact import ArtifactError
from recjax.serving.requests import RequestError
from recjax.serving.scorer import Scorer, probability
from tests import fakes, messages
from tests.serving.conftest import eager, export


@pytest.fixture(scope="module")
def scorer(loaded):
    return Scorer(loaded, requests=(1, 4), candidates=(1, 8))


def request(user=1003, items=("a3", "a5"), events=((10, "a4"),), **changes):
    history = [{"time": t, "hist_item": i} for t, i in events]
    candidates = [{"item": i, "price": 0.5} for i in items]
    sections = {"profile": {"user": user}, "treatment": {"arm": 1004}}
    return {
        "time": 1000,
        **sections,
        "history": {"history": history},
        "candidates": candidates,
        **changes,
    }


def by_hand(user, items, events):
    """The batch of one such request, ids and all, without the encoder or the assembler."""
    b = fakes.batch_at(0, 1, len(items))
    b["ids"] = {s.name: np.arange(s.rows, dtype=np.int32)[None] for s in fakes.SCHEMA.id_spaces}
    ids = [int(i[1:]) if i != "?" else 1 for i in events]
    n = len(ids[-fakes.LENGTH :])
    past = np.zeros((1, fakes.LENGTH), np.int32)
    past[0, fakes.LENGTH - n :] = ids[-fakes.LENGTH :]
    b["pos"] = {
        "user": np.array([user], np.int32),
        "arm": np.array([4], np.int32),
        "item": np.array([[int(i[1:]) if i != "?" else 1 for i in items]], np.int32),
        "hist_item": past,
    }
    b["mask"]["history"] = np.arange(fakes.LENGTH)[None] >= fakes.LENGTH - n
    b["dense"]["price"] = np.full((1, len(items)), 0.5, np.float32)
    return b


@pytest.mark.parametrize(("b", "c"), [(1, 1), (3, 2), (4, 8), (9, 5), (2, 21)])
def test_any_size_against_one_artifact(scorer, exported, b, c):
    batch = fakes.batch_at(b, b, c)
    want, got = eager(exported, batch), scorer.score(batch)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=1e-6)
    assert len(scorer.compiled) <= 4


def test_shards_and_other_list_lengths(scorer, exported):
    """Two device shards with lists of their own score as one."""
    whole = fakes.batch_at(5, 4, 2)
    halves = [cut(whole, slice(0, 2)), cut(whole, slice(2, 4))]
    sharded = dict(whole, ids={}, pos={})
    for space in fakes.SCHEMA.id_spaces:
        names = [f.name for f in fakes.SCHEMA.features if f.id_space == space.name]
        lists, pos = zip(*(unique(space, names, h) for h in halves), strict=True)
        sharded["ids"][space.name] = np.stack(lists)
        sharded["pos"] |= {n: np.concatenate([p[n] for p in pos]) for n in names}
    np.testing.assert_allclose(
        scorer.score(sharded)["logits"], eager(exported, whole)["logits"], atol=1e-6
    )
    rolled = dict(
        sharded, ids={s: np.roll(x, 1, axis=0) for s, x in sharded["ids"].items()}
    )  # control
    with pytest.raises(RequestError, match="points past its list of unique ids"):
        scorer.score(rolled)


def cut(batch, rows):
    raw = {
        f.name: batch["ids"][f.id_space][0][batch["pos"][f.name]][rows]
        for f in fakes.SCHEMA.features
        if f.kind == "id"
    }
    return raw


def unique(space, names, raw):
    ids, inverse = np.unique(np.concatenate([raw[n].ravel() for n in names]), return_inverse=True)
    full = np.concatenate([ids, space.rows + np.arange(len(ids), space.rows)]).astype(np.int32)
    cuts = np.cumsum([raw[n].size for n in names])[:-1]
    parts = np.split(inverse, cuts)
    return full, {
        n: p.reshape(raw[n].shape).astype(np.int32) for n, p in zip(names, parts, strict=True)
    }


def test_raw_requests_score_as_the_batch_made_by_hand(scorer, exported):
    cases = [
        (1003, ("a3", "a5"), ("a4",)),
        (1007, ("a9",), ()),
        (1003, ("a3", "?", "a6"), ("?", *(f"a{i}" for i in range(3, 12)))),
    ]
    requests = [
        request(user, items, [(100 + k, i) for k, i in enumerate(events)])
        for user, items, events in cases
    ]
    unknown = dict(scorer.encoder.unknown)
    for got, (user, items, events) in zip(scorer.score_requests(requests), cases, strict=True):
        want = eager(exported, by_hand(user - 1000, items, events))
        np.testing.assert_allclose(got["logits"], want["logits"][0], atol=1e-6)
        np.testing.assert_allclose(got["buy"], want["buy"][0], atol=1e-6)
        np.testing.assert_allclose(got["probability"], probability(got["logits"], 0.25))
    assert scorer.encoder.unknown["item"] - unknown.get("item", 0) == 1
    assert scorer.encoder.unknown["hist_item"] - unknown.get("hist_item", 0) == 1


def test_more_candidates_and_requests_than_the_largest_bucket(scorer):
    items = [f"a{3 + i % 30}" for i in range(19)]
    alone = [scorer.score_requests([request(items=[i])])[0]["logits"][0] for i in items]
    together = scorer.score_requests([request(items=items)] * 6)
    assert len(together) == 6
    for out in together:
        np.testing.assert_allclose(out["logits"], alone, atol=1e-6)


def test_unknown_user_is_the_oov_row(scorer, exported):
    got = scorer.score_requests([request(user=-5)])[0]
    want = eager(exported, by_hand(1, ("a3", "a5"), ("a4",)))
    np.testing.assert_allclose(got["logits"], want["logits"][0], atol=1e-6)


def test_correction_for_kept_negatives_by_hand(scorer):
    p, w = 0.8, 0.25
    logit = np.log(p / (1 - p))
    np.testing.assert_allclose(probability(logit, w), p / (p + (1 - p) / w), rtol=1e-6)
    np.testing.assert_allclose(probability(np.array([-800.0, 800.0])), [0, 1])
    raw = scorer.score_requests([request()], corrected=False)[0]
    np.testing.assert_allclose(raw["probability"], 1 / (1 + np.exp(-raw["logits"])), rtol=1e-5)
    assert (scorer.score_requests([request()])[0]["probability"] < raw["probability"]).all()


def test_a_batch_without_a_leaf_or_of_another_length_is_refused(scorer):
    batch = fakes.batch_at(0, 2, 2)
    del batch["dense"]["price"]
    with messages.raises(RequestError, "'dense/price'"):
        scorer.score(batch)
    batch = fakes.batch_at(0, 2, 2)
    batch["pos"]["item"] = batch["pos"]["item"] + 39
    with messages.raises(RequestError, "'item'"):
        scorer.score(batch)
    batch = fakes.batch_at(0, 2, 2)
    used = int((batch["ids"]["item"][0] < fakes.SCHEMA.space("item").rows).sum())
    for past in (used, -1):  # the first place that is not there, and one before the first
        batch["pos"]["item"] = np.full_like(batch["pos"]["item"], past)
        with messages.raises(RequestError, "'item'"):
            scorer.score(batch)
    batch = fakes.batch_at(0, 2, 2)
    batch["mask"]["history"] = batch["mask"]["history"][:, 1:]
    with pytest.raises(RequestError, match=r"'mask/history' has shape \(2, 5\)"):
        scorer.score(batch)


def test_verify_notices_another_answer(exported):
    loaded = artifact.load(exported.path)
    loaded.parameters["dense/logits/bias"] += 0.01
    with messages.raises(ArtifactError, "do not serve"):
        Scorer(loaded).verify()


def test_unknown_function_and_missing_vocabulary(exported, tmp_path):
    with messages.raises(ArtifactError, "'rank'", "score"):
        Scorer(artifact.load(exported.path), "rank")
    made = export(tmp_path / "a", "pages", vocab={})
    with messages.raises(ArtifactError, "'user'", "vocab"):
        Scorer(artifact.load(made.path)).score_requests([request()])


def test_warm_compiles_the_buckets_before_traffic(loaded):
    scorer = Scorer(loaded, requests=[1], candidates=[1, 2])
    scorer.warm()
    before = scorer._program._cache_size()
    scorer.score_requests([request()])
    assert scorer._program._cache_size() == before
    assert len(scorer.compiled) == 2


def test_verify_measures_relative_to_the_largest_answer_and_a_nan_is_no_agreement(exported):
    loaded = artifact.load(exported.path)
    (largest,) = (np.abs(x).max() for n, x in loaded.check.items() if n.endswith("out/logits"))
    loaded.parameters["dense/logits/bias"] += 0.01
    assert Scorer(loaded).verify(tolerance=1.0) == pytest.approx(0.01 / largest, rel=1e-2)
    loaded.parameters["dense/logits/bias"] += np.nan
    with pytest.raises(ArtifactError, match="nan"):
        Scorer(loaded).verify()
