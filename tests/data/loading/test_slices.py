"""Slices of a split, and the figures of a run, an artifact and scored files in them."""

import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from recjax import configs
from recjax.data.loading import slices as slices_
from recjax.data.loading.slices import make_slices
from recjax.data.store.prepared import DataError, Prepared
from recjax.data.store.translate import Translated, translated
from recjax.data.store.writing import write_prepared
from recjax.evaluation import score_files
from recjax.metrics.classification import auc
from recjax.schema import OOV, PAD, Feature, IdSpace, Schema
from recjax.serving import batch_scoring
from recjax.training import inference
from recjax.training.loop import train
from recjax.training.opening import open_run
from tests.messages import raises

ITEMS, USERS, SCENES = 40, 30, 3
TRAINED_ITEMS, TRAINED_USERS = 30, 20  # the others come in the test split only


def schema() -> Schema:
    return Schema(
        (IdSpace("user", USERS + 4), IdSpace("item", ITEMS + 4), IdSpace("scene", SCENES + 4)),
        (
            Feature("user", "profile", "user"),
            Feature("scene", "context", "scene"),
            Feature("item", "candidate", "item"),
            Feature("price", "candidate"),
            Feature("seen", "history", "item", list="past"),
            Feature("click", "label"),
        ),
        ("user_key", "page"),
    )


def vocabulary(values, shift: int) -> pl.DataFrame:
    """Ids 3, 4, ... in an order that `shift` rotates."""
    ids = 3 + np.roll(np.arange(len(values)), shift)
    return pl.DataFrame({"value": values, "id": ids, "count": 1})


def write(folder, rows=3_000, shift=0, name="planted", users=USERS) -> Prepared:
    """Odd items are clicked, in scene 2 even ones: a model that reads items alone is wrong there."""
    rng = np.random.default_rng(5)
    vocab = {
        "user": vocabulary([f"u{i}" for i in range(users)], shift),
        "item": vocabulary(list(range(100, 100 + ITEMS)), shift),
        "scene": vocabulary([f"s{i}" for i in range(SCENES)], 0),
    }
    ids = {k: dict(zip(range(len(v)), v["id"].to_list(), strict=True)) for k, v in vocab.items()}
    to_id = lambda space, x: np.array([ids[space].get(i, OOV) for i in x.tolist()])  # noqa: E731
    timeline = {"time": np.arange(200), "seen": to_id("item", rng.integers(0, TRAINED_ITEMS, 200))}

    def split(n, items, users):
        item, user = rng.integers(items, size=n), rng.integers(users, size=n)
        scene = rng.integers(SCENES, size=n)
        likely = (item % 2 == 1) ^ (scene == 2)
        end = rng.integers(0, 201, n)
        return {
            "time": np.full(n, 1_000),
            "user": to_id("user", user),
            "item": to_id("item", item),
            "scene": to_id("scene", scene),
            "price": np.zeros(n, np.float32),
            "click": (rng.random(n) < np.where(likely, 0.9, 0.1)).astype(np.float32),
            "past/end": end,
            "past/count": np.minimum(end, rng.integers(0, 150, n)),
            "user_key": user,
            "page": np.arange(n) // 5,
        }

    splits = {
        "train": split(rows, TRAINED_ITEMS, TRAINED_USERS),
        "test": split(rows // 3, ITEMS, USERS),
    }
    options = {"rows": rows, "shift": shift, "users": users}
    return Prepared(
        write_prepared(
            folder, name, schema(), {"past": [timeline]}, splits,
            vocab=vocab, options=options, block_size=128,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sliced"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A logistic regression of the item: good in scenes 0 and 1, upside down in scene 2."""
    c = configs.base()
    c.data.name, c.data.dir, c.data.history = "", str(data.path), 4
    c.model.name = "logistic"
    c.model.table = dict(lr=0.5)
    c.train.batch, c.train.epochs = 128, 4
    c.eval.batch, c.eval.splits, c.eval.final = 128, ("test",), ("test",)
    folder = tmp_path_factory.mktemp("run") / "logistic"
    train(c, str(folder))
    return folder


def rows_of(data, split="test"):
    names = ["user", "item", "scene", "past/count", "click"]
    return slices_.read_columns(data, split, names)


# ------------------------------------------------------------------------------------ which rows


def test_parts_are_the_rows_they_name(data):
    rows, train_rows = rows_of(data), rows_of(data, "train")
    trained = dict(prepared=data, split="train")
    names = ("new:user", "new:item", "by:scene", "length:past")
    assert slices_.default_slices(data.schema) == names
    users, items, scene, length = make_slices(data, "test", ("default",), trained)
    np.testing.assert_array_equal(users.code == 1, ~np.isin(rows["user"], train_rows["user"]))
    np.testing.assert_array_equal(items.code == 1, ~np.isin(rows["item"], train_rows["item"]))
    assert 0.1 < (items.code == 1).mean() < 0.4 and users.values == ("known", "new")
    assert scene.values == ("s0", "s1", "s2")
    np.testing.assert_array_equal(scene.code, rows["scene"] - 3)
    assert length.values == ("0", "1-4", "5-19", "20-99", "100+")
    for i, (low, high) in enumerate(((0, 1), (1, 5), (5, 20), (20, 100), (100, 10**9))):
        part = (rows["past/count"] >= low) & (rows["past/count"] < high)
        np.testing.assert_array_equal(length.code == i, part)
        assert part.any()


def test_new_depends_on_the_prefix_that_was_trained_on(data):
    whole, prefix = (
        make_slices(data, "test", ["new:item"], dict(prepared=data, split="train", examples=n))[0]
        for n in (0, 5)
    )
    first = slices_.read_columns(data, "train", ["item"], 5)["item"]
    np.testing.assert_array_equal(prefix.code == 0, np.isin(rows_of(data)["item"], first))
    assert prefix.code.sum() > whole.code.sum() > 0


def test_rare_values_are_put_together(data, monkeypatch):
    monkeypatch.setattr(slices_, "SHOWN", 2)
    (by,) = make_slices(data, "test", ["by:item"])
    assert len(by.values) == 3 and by.values[-1] == "other"
    ids, counts = np.unique(rows_of(data)["item"], return_counts=True)
    assert np.bincount(by.code)[:2].sum() == np.sort(counts)[-2:].sum()


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("new:seen", ("'seen'", "user, scene, item")),
        ("length:views", ("'views'", "past")),
        ("scene", ("new:", "by:", "length:")),
    ],
)
def test_a_slice_that_is_not_understood_is_refused(data, wanted, words):
    with raises(DataError, *words):
        make_slices(data, "test", [wanted])


# -------------------------------------------------------------------------------------- figures


def test_the_planted_difference_shows_in_its_slice_only(data, run):
    found = inference.evaluate(str(run), "", ["test"], best=False, wanted=["default"])["test"]
    scene = found["slices"]["by:scene"]
    assert scene["s0"]["auc"] > 0.7 and scene["s1"]["auc"] > 0.7 and scene["s2"]["auc"] < 0.35
    items = found["slices"]["new:item"]
    assert items["known"]["auc"] > 0.55 and abs(items["new"]["auc"] - 0.5) < 0.1
    users = found["slices"]["new:user"]
    assert abs(users["known"]["auc"] - users["new"]["auc"]) < 0.1, "nothing is planted there"
    for parts in found["slices"].values():
        assert sum(p["examples"] for p in parts.values()) == data.splits["test"]
        assert all({"auc", "gauc_user_key", "logloss", "ece"} <= p.keys() for p in parts.values())
    assert found["auc"] == json.loads((run / "summary.json").read_text())["test"]["auc"]


def test_scored_by_three_hosts_it_measures_as_by_one(data, run, tmp_path):
    whole = inference.evaluate(str(run), "", ["test"], best=False, wanted=["default"])
    rows = [
        batch_scoring.score(
            "", str(data.path), str(tmp_path / "s.parquet"), run=str(run), shard=(i, 3)
        )
        for i in range(3)
    ]
    assert sum(rows) == data.splits["test"] and min(rows) > 200
    none = str(tmp_path / "none.parquet")  # eight blocks, nine hosts
    assert batch_scoring.score("", str(data.path), none, run=str(run), shard=(8, 9)) == 0
    first, last = (pq.read_schema(f) for f in sorted(tmp_path.glob("*0000[08]-of*"))[::-1])
    assert last.equals(first)
    pattern = str(tmp_path / "s-*.parquet")
    parts = score_files.evaluate(pattern, str(data.path), ["default"])
    assert parts["test"]["auc"] == pytest.approx(whole["test"]["auc"], abs=1e-6)
    for name, want in whole["test"]["slices"].items():
        for value, figures in want.items():
            got = parts["test"]["slices"][name][value]
            assert got["examples"] == figures["examples"]
            for key in ("auc", "logloss", "ece", "gauc_page"):
                assert got[key] == pytest.approx(figures[key], abs=2e-5), (name, value, key)
    frame = pl.read_parquet(pattern)
    assert sorted(frame["row"]) == list(range(data.splits["test"]))
    assert auc(frame["logit"], frame["click"]) == pytest.approx(whole["test"]["auc"], abs=1e-6)
    (tmp_path / "s-00001-of-00003.parquet").unlink()
    with raises(score_files.ScoredError, "[1]", "--shard=1/3"):
        score_files.evaluate(pattern, str(data.path), [])


def test_parts_of_two_models_are_refused(data, run, tmp_path):
    """The same run a step later, and of another config; parts of earlier versions do not say, and are taken."""
    pattern, out = str(tmp_path / "s-*.parquet"), str(tmp_path / "s.parquet")
    batch_scoring.score("", str(data.path), out, run=str(run), shard=(0, 2))
    later, other = (shutil.copytree(run, tmp_path / name) for name in ("later", "other"))
    (saved,) = (later / "checkpoints" / "recent").iterdir()
    step = int(saved.name)
    saved.rename(saved.with_name(f"{step + 1}"))
    config = json.loads((other / "config.json").read_text())
    config["data"]["workers"] = 2  # changes nothing
    (other / "config.json").write_text(json.dumps(config))
    batch_scoring.score("", str(data.path), out, run=str(other), shard=(1, 2))
    assert score_files.evaluate(pattern, str(data.path), [])["test"]["auc"] > 0.5
    (other / "config.json").write_text(json.dumps(config | {"seed": 7}))
    for wrong, steps in (
        (later, (step + 1, step)),
        (other, (step, step)),
    ):
        batch_scoring.score("", str(data.path), out, run=str(wrong), shard=(1, 2))
        with raises(score_files.ScoredError, "model", *(f"step {s} " for s in steps)):
            score_files.evaluate(pattern, str(data.path), [])
    part = tmp_path / "s-00001-of-00002.parquet"
    table = pq.read_table(part)
    said = json.loads(table.schema.metadata[score_files.KEY])
    del said["model"]
    pq.write_table(score_files.with_metadata(table, json.dumps(said).encode()), part)
    measured = score_files.evaluate(pattern, str(data.path), [])["test"]
    assert measured["evaluated"] == data.splits["test"]


def test_an_artifact_measures_as_its_run(data, run, tmp_path):
    from recjax.data import open_data
    from recjax.serving import artifact

    config, opened, system, trees, _ = open_run(str(run))
    batch = next(iter(open_data(config.data).batches("train", 8)))
    vocab = {s: opened.vocabulary(s) for s in ("user", "item", "scene")}
    artifact.export_artifact(
        tmp_path / "artifact", system, trees, batch=batch, config=config.to_dict(),
        platforms=("cpu",), rows_format="float32", vocab=vocab,
    )  # fmt: skip
    whole = inference.evaluate(str(run), "", ["test"], best=False, wanted=["by:scene"])
    exported = batch_scoring.evaluate(
        str(tmp_path / "artifact"), str(data.path), ["test"], ["by:scene"]
    )
    for scene, figures in whole["test"]["slices"]["by:scene"].items():
        got = exported["test"]["slices"]["by:scene"][scene]
        assert got["auc"] == pytest.approx(figures["auc"], abs=1e-4)
    other = write(tmp_path, shift=7)
    again = batch_scoring.evaluate(
        str(tmp_path / "artifact"), str(other.path), ["test"], ["by:scene"]
    )
    assert again["test"]["auc"] == pytest.approx(exported["test"]["auc"], abs=1e-6)


# ---------------------------------------------------------------------------- ids of another log


def test_a_log_with_other_ids_is_scored_by_its_values(data, run, tmp_path):
    other = write(tmp_path, shift=7)
    assert not other.vocabulary("item").equals(data.vocabulary("item"))
    mine, theirs = (
        inference.evaluate(str(run), d, ["test"], best=False, wanted=["new:item"])["test"]
        for d in ("", str(other.path))
    )
    assert theirs["auc"] == mine["auc"] and theirs["logloss"] == mine["logloss"]
    assert set(theirs["slices"]["new:item"]) == {"known"}, "all are in the vocabulary"


def test_translation_carries_values_and_makes_unknown_what_the_model_lacks(data, tmp_path):
    other = write(tmp_path, shift=7)
    read = translated(other, data)
    assert read.block("test", 0)["item"].tolist() == data.block("test", 0)["item"].tolist()
    seen = read.timeline("past")["seen"]
    np.testing.assert_array_equal(seen, data.timeline("past")["seen"])
    known = data.vocabulary("item").filter(pl.col("value") != 101)
    fewer = Translated(other.path, data.schema, {**_vocabularies(data), "item": known})
    item = data.block("test", 0)["item"]
    gone = data.vocabulary("item").filter(pl.col("value") == 101)["id"][0]
    np.testing.assert_array_equal(fewer.block("test", 0)["item"], np.where(item == gone, OOV, item))
    assert (item == gone).any()
    strangers = data.vocabulary("item").with_columns(pl.col("value") + 10**6)
    with pytest.raises(DataError, match="no item of it is known to the model"):
        Translated(other.path, data.schema, {**_vocabularies(data), "item": strangers})
    wider = dataclasses.replace(
        data.schema, features=(*data.schema.features, Feature("brand", "candidate", "item"))
    )
    with raises(DataError, "'brand'"):
        Translated(other.path, wider, _vocabularies(data))


def _vocabularies(data):
    return {s.name: data.vocabulary(s.name) for s in data.schema.id_spaces}


def test_without_a_training_split_only_ids_outside_the_vocabulary_are_new():
    known = slices_._known_ids("item", 6, None)
    assert known.tolist() == [i not in (PAD, OOV) for i in range(6)]
