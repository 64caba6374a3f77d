"""Pre-ranking: stored items come from the quantised rows, and the best k are those of the model itself."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from recjax import embedding, models
from recjax.data.loading.loader import PreparedData
from recjax.data.store.prepared import Prepared
from recjax.data.worlds import tarq
from recjax.serving import artifact as artifacts
from recjax.serving import catalogue
from recjax.serving.prerank import Preranker, answer, padded_size
from recjax.serving.requests import RequestError
from recjax.serving.scorer import Scorer
from recjax.trees import Trees
from tests import messages
from tests.models.worlds import jit

WORLD = dict(clusters=8, per_cluster=5, users=30, events=6, train=400, validation=40, test=40)
SIZES = dict(width=8, levels=2, codes=6, tower=(8,), encoder=(8,), teacher_head=(8,), rank=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An untrained TARQ with low-rank read-out, rows as int8, and its data."""
    folder = tmp_path_factory.mktemp("prerank")
    data = PreparedData(Prepared(tarq.prepare(folder / "data", **WORLD)), history=6)
    config = dict(name="tarq", readout="low_rank", table=dict(init_scale=1.0), **SIZES)
    system = models.build(data.schema, config)
    batch = next(iter(data.batches("train", 8)))
    tables = embedding.init(jax.random.key(0), system.tables, data.schema)
    rows = embedding.gather(system.tables, tables, batch)
    dense, state = jit(system.init)(jax.random.key(1), rows, batch)
    dense["read"] = 30 * dense["read"]  # so that codes matter
    trees = Trees(dense, tables, state)
    artifacts.export_artifact(
        folder / "a", system, trees, batch=batch, config={}, platforms=("cpu",),
        vocab={"item": data.vocabulary("item")}, derive=catalogue.derive(system, data.prepared, batch),
    )  # fmt: skip
    loaded = artifacts.load(folder / "a")
    return types.SimpleNamespace(data=data, system=system, trees=trees, artifact=loaded)


@pytest.fixture(scope="module")
def preranker(made):
    return Preranker(made.artifact)


def with_candidates(made, batch, at):
    """A batch of one request with stored items as its candidates."""
    items = catalogue.items(made.data.prepared, made.data.schema)
    space = made.data.schema.space("item").rows
    past = batch["ids"]["item"][0][batch["pos"]["hist_item"]]
    n = len(at)
    return {
        **batch,
        "ids": {"item": np.arange(space, dtype=np.int32)[None]},
        "pos": {"item": items["item"][at][None], "hist_item": past},
        "dense": {**batch["dense"], "content": items["content"][at][None]},
        "valid": np.ones((1, n), bool),
        "weight": np.ones((1, n), np.float32),
        "row": np.zeros((1, n), np.int32),
        "label": {k: np.zeros((1, n), np.float32) for k in batch["label"]},
    }


def test_stored_items_are_the_item_function_on_the_quantised_rows(made):
    derived, items = made.artifact.derived, catalogue.items(made.data.prepared, made.data.schema)
    assert len(np.unique(items["item"])) == len(items["item"]) == derived["item/codes"].shape[1]
    np.testing.assert_array_equal(derived["key/item"], items["item"])
    batch = next(iter(made.data.batches("test", 1)))
    every = with_candidates(made, batch, np.arange(len(items["item"])))
    now = Scorer(made.artifact, "item").score(every)
    np.testing.assert_array_equal(now["codes"][0], derived["item/codes"])
    np.testing.assert_allclose(now["vector"][0], derived["item/vector"], atol=1e-6)
    # control: the rows as they were trained say something else, if little
    t = made.trees
    exact = {p: np.asarray(x["rows"])[None] for p, x in t.tables.items()}
    raw = jit(made.system.exports["item"].fn)(t.params(exact), every)
    assert np.abs(np.asarray(raw["vector"])[0] - derived["item/vector"]).max() > 1e-4
    assert made.artifact.stamp == made.artifact.manifest["stamp"]
    assert "derived.npz" in made.artifact.manifest["files"], "under the one stamp"


def test_the_best_are_those_of_the_whole_model(made, preranker):
    batch = next(iter(made.data.batches("test", 1)))
    at = np.random.default_rng(0).permutation(len(preranker.keys))[:20].astype(np.int32)
    whole = Scorer(made.artifact, "score").score(with_candidates(made, batch, at))["logits"][0]
    encoded = preranker.request.score(batch)
    best, logits = preranker.top(encoded, 20, at)
    np.testing.assert_array_equal(best, at[np.argsort(-whole, kind="stable")])
    np.testing.assert_allclose(logits, np.sort(whole)[::-1], atol=1e-5)
    every, _ = preranker.top(encoded, len(preranker.keys))
    np.testing.assert_array_equal(every[np.isin(every, at)], best)
    few, _ = preranker.top(encoded, 3, at[::-1])
    np.testing.assert_array_equal(few, best[:3])
    pieces, same = Preranker(made.artifact, chunk=16).top(encoded, 20, at)
    np.testing.assert_array_equal(pieces, best)
    np.testing.assert_allclose(same, logits, atol=1e-6)
    derived = {**made.artifact.derived, "item/codes": made.artifact.derived["item/codes"][:, ::-1]}
    other = Preranker(dataclasses.replace(made.artifact, derived=derived))
    assert np.abs(np.sort(other.top(encoded, 20, at)[1])[::-1] - logits).max() > 1e-3, "control"


def test_raw_requests(made, preranker):
    content = made.data.prepared.timeline("history")["hist_content"][:2].tolist()
    events = [{"time": 10 + i, "hist_item": 4, "hist_content": content[i]} for i in range(2)]
    request = {"time": 100, "history": {"history": events}}
    out = answer(preranker, request, 5)
    assert out["stamp"] == made.artifact.stamp and out["candidates"] == len(preranker.keys)
    logits = [i["logit"] for i in out["items"]]
    assert logits == sorted(logits, reverse=True) and len({i["item"] for i in out["items"]}) == 5
    chosen = answer(preranker, request, 2, candidates=[7, 9, 11])
    assert {i["item"] for i in chosen["items"]} <= {7, 9, 11}
    with messages.raises(RequestError, "999"):
        answer(preranker, request, 2, candidates=[7, 999])
    with pytest.raises(RequestError, match="3 candidates and k=4"):
        answer(preranker, request, 4, candidates=[7, 9, 11])


def test_artifacts_that_cannot_prerank_say_why(made):
    without = dataclasses.replace(made.artifact, derived={})
    with messages.raises(artifacts.ArtifactError, "export"):
        Preranker(without)
    functions = {"score": made.artifact.functions["score"]}
    with messages.raises(artifacts.ArtifactError, "'item'"):
        Preranker(dataclasses.replace(made.artifact, functions=functions))


def test_programs_are_few():
    sizes = {padded_size(n) for n in range(1, 100_001)}
    assert len(sizes) <= 60 and all(padded_size(n) >= n for n in (1, 16, 17, 2048, 2049, 100_000))
    assert padded_size(10_000) == 10_240
