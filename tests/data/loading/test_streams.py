"""Recency windows, length buckets and online continuation: which rows, in which batches, and exact resumption."""

import json

import numpy as np
import pytest

from recjax import configs
from recjax.data.loading.layout import BatchError
from recjax.data.loading.loader import PreparedData
from recjax.data.loading.mixed import side_by_side
from recjax.data.store.prepared import Prepared
from recjax.data.worlds import base
from recjax.runtime.run import Interrupted, read_jsonl
from recjax.training.loop import Trainer, train
from tests.data.loading.test_loader import assert_equal_streams, rows
from tests.messages import raises

WORLD = dict(users=300, items=80, impressions=4_000, events=15, days=20)
L = 12
BUCKETS = (2, 6)
DAY = 86_400


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return base.prepare(tmp_path_factory.mktemp("world"), block_size=300, **WORLD)


@pytest.fixture(scope="module")
def data(path):
    return PreparedData(Prepared(path), history=L)


@pytest.fixture(scope="module")
def split_data(tmp_path_factory):
    folder = base.prepare(tmp_path_factory.mktemp("parts"), block_size=200, partitions=4, **WORLD)
    return lambda index=0, count=1: PreparedData(
        Prepared(folder), history=L, process_index=index, process_count=count
    )


@pytest.fixture(scope="module")
def stored(data):
    blocks = [data.prepared.block("train", i) for i in range(data.prepared.blocks("train"))]
    return {k: np.concatenate([b[k] for b in blocks]) for k in ("time", "clicks/count")}


# ---------------------------------------------------------------------------------- recency windows


def test_a_window_of_days_is_not_a_prefix(data, stored):
    latest = stored["time"].max()
    stream = data.batches("train", 128, recent_days=3)
    want = np.flatnonzero(stored["time"] > latest - 3 * DAY)
    np.testing.assert_array_equal(rows(stream), want)
    assert stream.examples == len(want) < 0.5 * len(stored["time"])
    np.testing.assert_array_equal(
        rows(data.batches("train", 128, recent_days=3, examples=100)), want[:100]
    )
    shuffled = data.batches("train", 128, recent_days=3, epochs=2, shuffle_seed=0)
    np.testing.assert_array_equal(np.sort(rows(shuffled)), np.sort(np.tile(want, 2)))
    assert len(data.batches("train", 128, recent_days=1_000)) == len(data.batches("train", 128))


def test_a_period_holds_its_own_rows(data, stored):
    begin = int(np.median(stored["time"]))
    got = rows(data.batches("train", 64, period=(begin, begin + DAY)))
    inside = (stored["time"] >= begin) & (stored["time"] < begin + DAY)
    np.testing.assert_array_equal(got, np.flatnonzero(inside))
    assert inside.any()


# ----------------------------------------------------------------------------------- length buckets


def test_buckets_hold_every_row_once_padded_to_its_bucket_only(data, stored):
    options = dict(epochs=2, shuffle_seed=1, examples=2_500)
    stream = data.batches("train", 128, buckets=BUCKETS, **options)
    batches = list(stream)
    n = data.batches("train", 128, **options).examples
    np.testing.assert_array_equal(np.sort(rows(batches)), np.sort(np.tile(np.arange(2_500), 2)))
    assert stream.examples == n == 5_000 and len(batches) == len(stream)
    lengths = [b["mask"]["clicks"].shape[1] for b in batches]
    assert set(lengths) == {2, 6, L}
    for b, length in zip(batches, lengths, strict=True):
        used = b["valid"][:, 0]
        count = stored["clicks/count"][b["row"][used, 0]]
        low = {2: -1, 6: 2, L: 6}[length]
        assert ((count > low) & ((count <= length) | (length == L))).all()
        np.testing.assert_array_equal(b["mask"]["clicks"][used].sum(1), np.minimum(count, length))
    quarter = len(lengths) // 4
    assert len(set(lengths[:quarter])) == 3, "buckets alternate"


def test_what_a_model_sees_of_a_row_does_not_depend_on_the_bucket(data):
    """Ids, ages and numbers of a row in its bucket are the last places of the full-length ones."""
    whole = {}
    for b in data.batches("train", 128, examples=600):
        for i in np.flatnonzero(b["valid"][:, 0]):
            ids = b["ids"]["item"][0][b["pos"]["hist_item"][i]]
            whole[b["row"][i, 0]] = ids, b["age"]["clicks"][i], b["dense"]["item_count"][i]
    seen = 0
    for b in data.batches("train", 128, examples=600, buckets=BUCKETS):
        length = b["mask"]["clicks"].shape[1]
        for i in np.flatnonzero(b["valid"][:, 0]):
            ids, age, count = whole[b["row"][i, 0]]
            np.testing.assert_array_equal(
                b["ids"]["item"][0][b["pos"]["hist_item"][i]], ids[-length:]
            )
            np.testing.assert_array_equal(b["age"]["clicks"][i], age[-length:])
            assert not ids[:-length].any() and b["dense"]["item_count"][i] == count
            seen += 1
    assert seen == 600


def test_padding_waste_is_reported_and_falls(data):
    plain, bucketed = (data.batches("train", 128, buckets=b) for b in ((), BUCKETS))
    list(plain), list(bucketed)
    a, b = plain.stats["padding"]["clicks"], bucketed.stats["padding"]["clicks"]
    assert 0 < b < 0.7 * a
    assert plain.stats["by_length"].keys() == {L} and bucketed.stats["by_length"].keys() == {
        2,
        6,
        L,
    }
    assert sum(bucketed.stats["by_length"].values()) == bucketed.stats["batches"] == len(bucketed)


@pytest.mark.parametrize("mode", [dict(buckets=BUCKETS), dict(online="2d", buckets=BUCKETS)])
def test_mixed_streams_resume_at_every_batch_whatever_the_workers(data, mode):
    options = dict(epochs=2, shuffle_seed=3, shards=2, examples=1_200, **mode)
    want = list(data.batches("train", 128, **options))
    for start in range(0, len(want) + 1, 3):
        assert_equal_streams(data.batches("train", 128, start=start, **options), want[start:])
    if mode.get("online"):  # the harder of the two; starting workers takes seconds
        assert_equal_streams(data.batches("train", 128, start=5, workers=2, **options), want[5:])
    with raises(BatchError, "'train'"):
        data.batches("train", 128, start=len(want) + 1, **options)


def test_hosts_agree_on_the_buckets(split_data):
    options = dict(shards=4, examples=2_000, buckets=BUCKETS)
    whole = split_data().batches("train", 64, **options)
    hosts = [split_data(i, 2).batches("train", 64, **options) for i in range(2)]
    for want, *got in zip(whole, *hosts, strict=True):
        assert {g["mask"]["clicks"].shape[1] for g in got} == {want["mask"]["clicks"].shape[1]}
        np.testing.assert_array_equal(np.concatenate([g["row"] for g in got]), want["row"])
        np.testing.assert_array_equal(
            np.concatenate([g["ids"]["item"] for g in got]), want["ids"]["item"]
        )


def test_buckets_that_do_not_ascend_are_refused(data):
    with raises(BatchError, "ascending"):
        data.batches("train", 64, buckets=(6, 2))


def test_sources_alternate_in_proportion():
    schedule = side_by_side([2, 4, 0], epochs=2, first=5)
    assert schedule[:, 0].tolist() == [6, 5, 6, 6, 5, 6] * 2
    assert schedule[schedule[:, 0] == 6, 1].tolist() == list(range(8))


# --------------------------------------------------------------------------------------- online


def test_days_follow_each_other_and_every_row_is_read_once(data, stored):
    stream = data.batches("train", 64, online="1d")
    batches = list(stream)
    got = rows(batches)
    np.testing.assert_array_equal(np.sort(got), np.arange(data.splits["train"]))
    days = stored["time"][got] // DAY
    assert (np.diff(days) >= 0).all() and len(set(days)) > 8
    assert len(stream.periods) == len(set(days)) - 1
    for p in stream.periods:  # all before, none after; what follows is the named day
        times = stored["time"][rows(batches[: p.step])]
        assert times.max() < p.begin and p.end - p.begin == DAY
        following = stored["time"][rows(batches[p.step : p.step + 1])]
        assert ((following >= p.begin) & (following < p.end)).all()


def config(path, **train_keys):
    c = configs.base()
    c.data.name, c.data.dir, c.data.history = "", str(path), 6
    c.model.name = "logistic"
    c.model.table = dict(lr=0.5)
    c.train.batch = c.eval.batch = 64
    c.train.log_every, c.train.checkpoint_every = 5, 7
    c.train.online = "4d"
    c.data.length_buckets = (3,)
    c.eval.splits, c.eval.final = ("valid",), ("test",)
    for key, value in train_keys.items():
        c.train[key] = value
    return c


class StopInThePeriod(Trainer):
    """Receives SIGTERM some steps into the second period."""

    def put(self, batch):
        if getattr(self, "trees", None) is not None and self.step == sorted(self.periods)[0] + 3:
            self.stop._note(15, None)
        return super().put(batch)


def test_training_goes_on_day_by_day_and_resumes_exactly(path, tmp_path, monkeypatch):
    whole = train(config(path), str(tmp_path / "whole"))
    with monkeypatch.context() as m:
        m.setattr("recjax.training.loop.Trainer", StopInThePeriod)
        with pytest.raises(Interrupted):
            train(config(path), str(tmp_path / "cut"))
    resumed = train(config(path), str(tmp_path / "cut"))
    assert json.dumps(whole["test"]) == json.dumps(resumed["test"])
    a, b = (read_jsonl(tmp_path / n / "metrics.jsonl") for n in ("whole", "cut"))
    assert a == b
    online = [r for r in a if r["kind"] == "online"]
    steps = [p.step for p in PreparedData(Prepared(path), history=6).batches(
        "train", 64, online="4d", buckets=(3,)).periods]  # fmt: skip
    assert [r["step"] for r in online] == steps and len(steps) > 2
    assert all(r["evaluated"] > 50 and 0 < r["logloss"] < 2 for r in online)
    assert len({r["split"] for r in online}) == len(online)
