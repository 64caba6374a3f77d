"""The baselines on a small planted world whose truth is known, with controls that must fail."""

import json

import numpy as np
import pytest

from experiments import compare
from experiments.baselines import judging, popularity
from recjax.data.store.prepared import Prepared
from recjax.data.store.writing import write_prepared
from recjax.metrics import classification
from recjax.schema import NUM_RESERVED, Feature, IdSpace, Schema, SchemaError
from tests.messages import raises

ITEMS, VISITS, PER_VISIT = 60, 1500, 4
SCHEMA = Schema(
    id_spaces=(IdSpace("item", ITEMS + NUM_RESERVED), IdSpace("department", 5 + NUM_RESERVED)),
    features=(
        Feature("item", "candidate", id_space="item"),
        Feature("department", "candidate", id_space="department"),
        Feature("affinity", "candidate"),
        Feature("hour", "context"),
        Feature("past_item", "history", id_space="item", list="purchases"),
        Feature("bought", "label"),
    ),
    groups=("visit",),
)
FAME = np.repeat(np.arange(ITEMS), np.arange(ITEMS))
LATER = np.zeros(1000, np.int64)
TIMELINE = {
    "purchases": [
        {
            "time": np.r_[0, np.arange(len(FAME)), LATER + 10_000],
            "past_item": np.r_[0, FAME, LATER]
            + np.r_[0, np.full(len(FAME) + len(LATER), NUM_RESERVED)],
        }
    ]
}


def world(seed: int, *, popular: bool = True, shuffled: bool = False) -> tuple[dict, np.ndarray]:
    """(columns of one split, true logits): affinity and the department decide, and popular items sell more."""
    rng = np.random.default_rng(seed)
    n = VISITS * PER_VISIT
    item = rng.integers(ITEMS, size=n)
    department = item % 5
    affinity, hour = rng.normal(size=n), rng.integers(24, size=n)
    fame = np.linspace(-2, 2, ITEMS)[item] if popular else 0.0
    logits = 1.5 * affinity * np.where(department < 2, 1, -1) + fame - 1.0
    bought = rng.random(n) < 1 / (1 + np.exp(-logits))
    visit = np.repeat(np.arange(VISITS), PER_VISIT)
    columns = {
        "time": 1_000 + visit.astype(np.int64),
        "purchases/end": np.full(n, 3, np.int64),
        "purchases/count": np.full(n, 3, np.int32),
        "item": (item + NUM_RESERVED).astype(np.int32),
        "department": (department + NUM_RESERVED).astype(np.int32),
        "affinity": affinity.astype(np.float32),
        "hour": hour.astype(np.float32),
        "bought": (rng.permutation(bought) if shuffled else bought).astype(np.float32),
        "visit": visit.astype(np.int32),
        "request": visit.astype(np.int32),
    }
    return columns, logits


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Prepared:
    splits = {
        "train": world(0)[0],
        "train_shuffled": world(0, shuffled=True)[0],
        "test": world(1)[0],
        "test_flat": world(2, popular=False)[0],
    }
    return Prepared(
        write_prepared(tmp_path_factory.mktemp("baselines"), "planted", SCHEMA, TIMELINE, splits)
    )


def trees():
    """The module; LightGBM is an extra."""
    pytest.importorskip("lightgbm", reason="needs the bench extra")
    from experiments.baselines import boosted_trees

    return boosted_trees


def test_popularity_counts_events_up_to_the_last_training_request(data):
    counts = popularity.popularity(data, "train", "item")
    fame = np.arange(ITEMS)  # the timeline holds item i i times, and more after the training period
    np.testing.assert_array_equal(counts[NUM_RESERVED : NUM_RESERVED + ITEMS], fame)
    assert counts[:NUM_RESERVED].sum() == 0


def test_popularity_without_a_list_counts_positives(data):
    assert popularity.events(data, "train", "department") is None
    counts = popularity.popularity(data, "train", "department")
    rows = judging.columns(data, "train", ["department", "bought"])
    assert counts.sum() == rows["bought"].sum()
    assert counts[4] == rows["bought"][rows["department"] == 4].sum() > 0


def test_popularity_is_worth_its_share_and_nothing_without_it(data):
    found = popularity.run(data, "train", ["test", "test_flat"])[0]["test"]
    assert found["test"]["auc"] > 0.65 and found["test"]["gauc_visit"] > 0.65
    assert (
        abs(found["test_flat"]["auc"] - 0.5) < 0.03
    )  # the control: same items, sold equally often
    assert "logloss" not in found["test"]


def test_trees_come_near_the_truth_and_shuffled_labels_do_not(data):
    boosted_trees = trees()
    params = dict(max_categories=20, num_iterations=60, num_leaves=15, seed=0)
    truth, logits = world(2, popular=False)
    best = classification.auc(logits, truth["bought"])
    found = boosted_trees.run(data, "train", ["test_flat"], **params)[0]["test"]["test_flat"]
    assert best - 0.04 < found["auc"] < best + 0.01
    assert (
        found["ece"] < 0.1 and found["logloss"] < 0.65 and found["examples"] == VISITS * PER_VISIT
    )
    shuffled, _ = boosted_trees.run(data, "train_shuffled", ["test_flat"], **params)
    shuffled = shuffled["test"]["test_flat"]
    assert (
        abs(shuffled["auc"] - 0.5) < 0.08
    )  # of few inputs, a random function errs by some hundredths


def test_recent_rows_are_the_ones_a_model_would_train_on(data):
    times = judging.columns(data, "train", ["time"])["time"]
    latest = judging.columns(data, "train", ["time"], recent=100)["time"]
    np.testing.assert_array_equal(np.sort(latest), np.sort(times)[-100:])


def test_trees_see_counters_and_small_vocabularies_only():
    names, categories = trees().inputs(SCHEMA, max_categories=20)
    assert names == ["affinity", "hour", "department"] and categories == ["department"]
    assert not set(names) & {"bought", "past_item", "item"}
    assert trees().inputs(SCHEMA, 0, ["item"]) == (["affinity", "hour", "item"], ["item"])
    with raises(SchemaError, "'bought'", "item, department"):
        trees().inputs(SCHEMA, 0, ["bought"])


def test_figures_are_the_metrics_module_s(data):
    rows = judging.columns(data, "test", ["affinity", *judging.judged(SCHEMA)])
    found = judging.figures(rows["affinity"], rows, SCHEMA)
    p = 1 / (1 + np.exp(-rows["affinity"].astype(np.float64)))
    assert found["auc"] == pytest.approx(classification.auc(p, rows["bought"]), abs=1e-9)
    assert found["logloss"] == pytest.approx(classification.logloss(p, rows["bought"]), abs=1e-6)
    assert found["gauc_visit"] == pytest.approx(
        classification.gauc(p, rows["bought"], rows["visit"]).value, abs=1e-9
    )


def test_a_wrong_feature_is_named():
    with raises(SchemaError, "'items'", "'item'"):
        judging.candidate_id(SCHEMA, "items")
    assert judging.candidate_id(SCHEMA) == "item"


def test_the_command_prints_figures_and_keeps_scores_to_compare(data, tmp_path, run_python):
    for name, feature in (("items", "item"), ("departments", "department")):
        args = ["--test=test", f"--feature={feature}", f"--keep={tmp_path / name}"]
        done = run_python(
            "experiments.baselines.popularity", f"--data={data.path}", *args, devices=1
        )
        printed, kept = json.loads(done.stdout), tmp_path / name / "summary.json"
        assert json.loads(kept.read_text())["test"] == printed["test"]["test"]
        assert printed["data"]["hash"] == data.identity["hash"]
    both = compare.entries([str(tmp_path / "departments"), str(tmp_path / "items")])
    found = compare.run(both, tmp_path / "compared", 1, splits=["test"], resamples=20)
    d = found["differences"]["items"]["test"]["auc"]
    values = [found["models"][m]["test"]["auc"]["mean"] for m in ("departments", "items")]
    assert d["difference"] == pytest.approx(values[1] - values[0], abs=1e-6)
    assert d["interval_over_groups"][0] > 0.1
