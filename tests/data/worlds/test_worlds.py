"""The planted worlds: reproducible, calibrated, the signal where it is said to be and only there."""

import numpy as np
import pytest

from recjax.data.loading.loader import PreparedData
from recjax.data.store.prepared import Prepared
from recjax.data.worlds import base
from recjax.data.worlds.base import DAY, World, build
from tests.messages import raises

SMALL = dict(users=400, items=100, impressions=8_000, events=20)


def auc(score: np.ndarray, label: np.ndarray) -> float:
    """Probability that a positive outranks a negative, ties half."""
    values, group, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[group]
    positive = label > 0
    n = positive.sum()
    return (rank[positive].sum() - n * (n + 1) / 2) / (n * (len(label) - n))


def read(tmp_path, split="train", **world) -> dict[str, np.ndarray]:
    """All rows of a split, flat, with raw ids."""
    data = PreparedData(Prepared(base.prepare(tmp_path, **SMALL, **world)), history=10)
    out: dict[str, list] = {}
    for batch in data.batches(split, 512):
        keep = batch["valid"][:, 0]
        for name, pos in batch["pos"].items():
            out.setdefault(name, []).append(
                batch["ids"][data.schema.feature(name).id_space][0][pos][keep]
            )
        for kind in ("label", "age", "mask", "dense"):
            for name, x in batch[kind].items():
                out.setdefault(f"{name}/{kind}" if kind in ("age", "mask") else name, []).append(
                    x[keep]
                )
    return {name: np.concatenate(x) for name, x in out.items()}


def test_the_same_world_twice_and_another_seed():
    one, same, other = (build(World(**SMALL, seed=s))[2]["train"] for s in (1, 1, 2))
    for name, column in one.items():
        np.testing.assert_array_equal(column, same[name])
    assert (one["oracle"] != other["oracle"][: len(one["oracle"])]).any()


@pytest.mark.parametrize("signal", base.SIGNALS)
def test_the_oracle_is_calibrated_and_beats_chance(signal):
    rows = build(World(**SMALL, signal=signal))[2]["train"]
    p = 1 / (1 + np.exp(-rows["oracle"]))
    error = (rows["click"] - p).mean() / np.sqrt((p * (1 - p)).mean() / len(p))
    assert abs(error) < 4, "clicks are drawn with the oracle's probabilities"
    assert auc(rows["oracle"], rows["click"]) > 0.7
    shuffled = np.random.default_rng(0).permutation(rows["click"])
    assert abs(auc(rows["oracle"], shuffled) - 0.5) < 0.03


def test_splits_are_in_time_order_and_requests_stay_whole():
    splits = build(World(**SMALL))[2]
    assert list(splits) == ["train", "valid", "test"]
    assert sum(len(s["time"]) for s in splits.values()) == SMALL["impressions"]
    assert splits["train"]["time"].max() < splits["valid"]["time"].min()
    assert splits["valid"]["time"].max() < splits["test"]["time"].min()
    assert not set(splits["train"]["request"]) & set(splits["valid"]["request"])


def test_match_is_in_the_history_and_only_there(tmp_path):
    rows = read(tmp_path, signal="match", recent=10)
    match = ((rows["hist_category"] == rows["category"]) & rows["clicks/mask"]).any(1)
    np.testing.assert_allclose(rows["oracle"][:, 0], -1 + 2 * np.where(match, 1, -1))
    click = rows["click"][:, 0]
    for name in ("user", "category", "item"):  # out-of-sample mean click rate of the id
        half = np.arange(len(click)) < len(click) // 2
        size = rows[name].max() + 1
        ids = rows[name].reshape(-1)
        rate = np.bincount(ids[half], click[half], size) / np.maximum(
            np.bincount(ids[half], minlength=size), 1
        )
        assert abs(auc(rate[ids[~half]], click[~half]) - 0.5) < 0.05, name


def test_recency_is_in_the_ages_and_only_there(tmp_path):
    rows = read(tmp_path, signal="recency")
    age, some = rows["clicks/age"][:, -1].astype(float), rows["clicks/mask"][:, -1]
    assert (age[some] >= 1).all(), "strictly before"
    want = -1 + 2 * (1 - 2 * age / (age + DAY / 2))
    np.testing.assert_allclose(rows["oracle"][some, 0], want[some], rtol=1e-4, atol=1e-4)
    match = ((rows["hist_category"] == rows["category"]) & rows["clicks/mask"]).any(1)
    assert abs(auc(match, rows["click"][:, 0]) - 0.5) < 0.03


def test_scenes_shift_the_logit_and_follow_the_events(tmp_path):
    rows = read(tmp_path, scenes=3, strength=0.0)
    assert rows["hist_scene"].shape == rows["hist_item"].shape
    cells = np.stack([rows["scene"], rows["category"][:, 0]], 1)
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    for c in range(cell.max() + 1):
        assert np.ptp(rows["oracle"][cell == c]) < 1e-5, (
            "the logit is a function of scene and category"
        )
    assert rows["oracle"].std() > 0.3
    assert "scene" not in read(tmp_path / "none")


def test_partitions_hold_the_same_world(tmp_path):
    one, four = read(tmp_path / "1"), read(tmp_path / "4", partitions=4)
    for name in ("oracle", "item_count", "click"):
        np.testing.assert_array_equal(np.sort(one[name], axis=0), np.sort(four[name], axis=0))
    assert one["clicks/age"].sum() == four["clicks/age"].sum()


def test_counters_count_strictly_before():
    world = World(**SMALL)
    splits = build(world)[2]
    rng = np.random.default_rng(world.seed)
    events = base._events(world, base._factors(world, rng), rng)
    requests = base._requests(world, rng)
    n = len(splits["train"]["time"])
    for row in range(0, n, 997):
        earlier = (events["item"] == requests["item"][row]) & (
            events["time"] < requests["time"][row]
        )
        assert splits["train"]["item_count"][row] == earlier.sum()


def test_unknown_signals_are_refused():
    with raises(ValueError, "'magic'", "latent", "match", "recency"):
        World(signal="magic")
