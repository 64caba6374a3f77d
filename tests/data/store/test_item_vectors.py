"""Item vectors know what was taken together, from the training period only."""

import json

import numpy as np
import polars as pl
import pytest

from recjax.data.logs import prepare as logs
from recjax.data.store import item_vectors
from recjax.data.store.item_vectors import Recipe
from recjax.data.store.prepared import DataError, Prepared
from recjax.data.vectors import days
from tests.messages import raises

DAY, FIRST, GROUPS, PER_GROUP = 86_400, 1_700_006_400, 6, 10
MAPPING = """
user, item, time, labels = "user", "item", "at", ["click"]
counters, min_count = False, 1
split = {"validation": 0.1, "test": 0.1}
"""
SMALL = dict(dim=GROUPS, least=3, least_context=5, window_days=7.0)


def log(days_of_log: int = 60, users: int = 120, seed: int = 0) -> pl.DataFrame:
    """Every user clicks items of one group and passes over others; 6 rows a day of every second day."""
    rng = np.random.default_rng(seed)
    n = users * days_of_log * 3
    user = rng.integers(users, size=n)
    at = FIRST + rng.integers(days_of_log, size=n) * DAY + rng.integers(0, 600, size=n)
    click = rng.random(n) < 0.5
    group = np.where(click, user % GROUPS, rng.integers(GROUPS, size=n))
    item = group * PER_GROUP + rng.integers(PER_GROUP, size=n)
    frame = {"user": user, "item": item, "at": at, "click": click.astype(int)}
    return pl.DataFrame(frame).unique(["user", "item", "at"], maintain_order=True).sort("at")


def prepared(folder, frame: pl.DataFrame) -> Prepared:
    folder.mkdir(parents=True)
    frame.write_parquet(folder / "log.parquet")
    (folder / "mapping.py").write_text(MAPPING)
    path = logs.prepare(
        folder / "data",
        source=str(folder / "log.parquet"),
        mapping=str(folder / "mapping.py"),
        exact_dir=True,
        block_size=512,
    )
    return Prepared(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("vectors") / "log", log())


@pytest.fixture(scope="module")
def vectors(data):
    return item_vectors.cooccurrence(data, Recipe("item", **SMALL))


def groups(data) -> np.ndarray:
    """Group of each id, -1 where it is no item."""
    frame = data.vocabulary("item")
    out = np.full(data.schema.space("item").rows, -1)
    out[frame["id"].to_numpy()] = frame["value"].cast(pl.Int64).to_numpy() // PER_GROUP
    return out


def test_items_of_a_group_lie_together(data, vectors):
    of = groups(data)
    known = (of >= 0) & vectors.any(1)
    cosine = vectors[known] @ vectors[known].T
    same = of[known][:, None] == of[known]
    assert known.sum() == GROUPS * PER_GROUP
    np.testing.assert_allclose(np.linalg.norm(vectors[known], axis=1), 1, rtol=1e-5)
    assert cosine[same].min() > 0.5 > 0.3 > cosine[~same].max()


def test_their_cosine_ranks_without_training_and_shuffled_ones_do_not(data, vectors):
    auc = lambda v: item_vectors.untrained_auc(data, "item", v, "validation")  # noqa: E731
    shuffled = [
        item_vectors.cooccurrence(data, Recipe("item", shuffle=True, seed=s, **SMALL))
        for s in range(4)
    ]
    noise = np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32)
    noise *= vectors.any(1)[:, None] / np.linalg.norm(noise, axis=1, keepdims=True)
    # Items that come again are known by any vector, a random one too; what a shuffled one knows is no more than that.
    assert np.mean([auc(v) for v in shuffled]) < auc(noise) + 0.02
    assert auc(vectors) > auc(noise) + 0.1
    for v in shuffled:  # the same vectors, at other places
        np.testing.assert_allclose(np.sort(v, 0), np.sort(vectors, 0), atol=1e-3)


def test_what_comes_after_training_changes_nothing(tmp_path, data, vectors):
    """The same log, but from the end of training on everybody takes items of another group."""
    frame, until = log(), item_vectors.train_until(data)
    other = pl.when(pl.col("at") > until).then((pl.col("item") + 7) % (GROUPS * PER_GROUP))
    changed = prepared(tmp_path / "changed", frame.with_columns(item=other.otherwise("item")))
    assert item_vectors.train_until(changed) == until
    again = item_vectors.cooccurrence(changed, Recipe("item", **SMALL))
    by_value = lambda d, v: v[d.vocabulary("item").sort("value")["id"].to_numpy()]  # noqa: E731
    np.testing.assert_array_equal(by_value(changed, again), by_value(data, vectors))


def test_fewer_events_and_an_earlier_period_are_read_as_asked(data):
    total = sum(len(t) for _, t, _ in item_vectors.events(data, Recipe("item")))
    some = [t for _, t, _ in item_vectors.events(data, Recipe("item", events=500))]
    assert 500 <= sum(map(len, some)) < 520 < total  # events of the last moment go together
    early = FIRST + 20 * DAY
    assert (
        max(t.max() for _, t, _ in item_vectors.events(data, Recipe("item", until=early))) <= early
    )


def test_kept_vectors_are_those_made_and_damage_is_named(data, vectors):
    folder = item_vectors.save(data, "mine", vectors, {"space": "item"})
    np.testing.assert_array_equal(item_vectors.load(data, "item", "mine"), vectors)
    assert Prepared(data.path).identity == data.identity  # they are beside the data, not of it
    file = folder / "vectors.npy"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 4
    file.write_bytes(raw)
    with raises(DataError, "mine/vectors.npy"):
        item_vectors.load(data, "item", "mine")


def test_vectors_of_other_ids_are_refused(data, vectors):
    folder = item_vectors.save(data, "other", vectors, {"space": "item"})
    about = json.loads((folder / "about.json").read_text()) | {"vocabulary": "x"}
    (folder / "about.json").write_text(json.dumps(about))
    with raises(DataError, "'item'", "vocabulary"):
        item_vectors.load(data, "item", "other")
    with raises(DataError, "nowhere", "recjax.data.vectors"):
        item_vectors.load(data, "item", "nowhere")


def test_given_vectors_find_their_ids_and_bad_ones_are_named(data):
    frame = pl.DataFrame(
        {"value": ["0", "59", "absent"], "vector": [[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]}
    )
    out = item_vectors.given(data, "item", frame)
    ids = dict(
        data.vocabulary("item")
        .with_columns(pl.col("value").cast(str))
        .select("value", "id")
        .iter_rows()
    )
    np.testing.assert_array_equal(out[[ids["0"], ids["59"]]], [[1, 0], [0, 2]])
    assert out.any(1).sum() == 2
    for bad, says in (
        (frame.rename({"vector": "v"}), "'vector'"),
        (frame.with_columns(vector=pl.Series([[1.0], [0.0, 2.0], [1.0]])), "widths"),
        (frame.with_columns(value=pl.Series(["x", "y", "z"])), "'item'"),
    ):
        with pytest.raises(DataError, match=says):
            item_vectors.given(data, "item", bad)
    nan = out.copy()
    nan[ids["0"], 0] = np.nan
    with raises(DataError, "1 vectors", "'item'", "finite"):
        item_vectors.save(data, "nan", nan, {"space": "item"})


def test_nothing_taken_together_is_said(tmp_path):
    """Every user clicks once: no two items were ever taken together."""
    n = 3_000
    frame = pl.DataFrame(
        {"user": range(n), "item": [i % 40 for i in range(n)], "at": [FIRST + 60 * i for i in range(n)],
         "click": [i % 3 // 2 for i in range(n)]}
    )  # fmt: skip
    alone = prepared(tmp_path / "alone", frame)
    with pytest.raises(DataError, match="taken together"):
        item_vectors.cooccurrence(alone, Recipe("item", **SMALL))
    with pytest.raises(DataError, match="--dim"):
        item_vectors.cooccurrence(alone, Recipe("item"))


@pytest.mark.parametrize(("text", "value"), [("28d", 28), ("12h", 0.5), ("2w", 14), ("1.5d", 1.5)])
def test_windows(text, value):
    assert days(text) == value


@pytest.mark.parametrize("text", ["28", "d", "-1d", "28 days"])
def test_bad_windows_are_named(text):
    with pytest.raises(DataError, match="--window"):
        days(text)
