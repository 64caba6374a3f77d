"""Served counters are the as-of counters of preparation, from a snapshot and what came after it."""

import numpy as np
import polars as pl
import pytest

from recjax.data.store.event_log import ServedCounter
from recjax.data.store.histories import NEVER, Counter, CounterIndex
from recjax.serving import counters as served
from recjax.serving.counters import Counters

SPECS = (
    ServedCounter(("item_count", "item_recency"), ("item",), ("past_item",)),
    ServedCounter(("both_count", "both_recency"), ("user", "item"), ("user", "past_item")),
)


def events(n=400, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "user": rng.integers(0, 5, n),
        "item": rng.integers(0, 9, n),
        "time": np.sort(rng.integers(0, 150, n)),  # many at the same second
    }


def frame(e):
    return pl.DataFrame({"user": e["user"].astype(str), "past_item": e["item"], "time": e["time"]})


def add(kept, e, low, high):
    for i in np.flatnonzero((e["time"] >= low) & (e["time"] < high)):
        one = {"time": [int(e["time"][i])], "past_item": [int(e["item"][i])]}
        kept.add(str(e["user"][i]), one)


@pytest.mark.parametrize("merge", [False, True])
def test_snapshot_and_events_count_as_preparation_did(merge, monkeypatch):
    monkeypatch.setattr(served, "MAX_LIVE", 3 if merge else 10**9)
    e = events()
    kept = Counters.snapshot(SPECS, frame(e), "past", until=60)
    indexes = [
        CounterIndex.build(Counter(n, k), e, {"user": 5, "item": 9})
        for n, k in (("item", ("item",)), ("both", ("user", "item")))
    ]
    at = 0
    for time in (61, 90, 120, 200):
        add(kept, e, at, time)
        at = time
        for user in range(5):
            asked = {"time": time, "user": user, "item": [0, 3, 8, 77]}
            got = kept.fill(asked, 4)
            known = {
                "time": np.full(3, time),
                "user": np.full(3, user),
                "item": np.array([0, 3, 8]),
            }
            for spec, index in zip(SPECS, indexes, strict=True):
                for name, want in zip(spec.features, index.before(known), strict=True):
                    np.testing.assert_array_equal(got[name][:3], want.astype(np.float32))
                assert [got[n][3] for n in spec.features] == [0, np.float32(NEVER)]


def test_an_event_at_the_second_of_the_request_is_not_in_its_past():
    kept = Counters.snapshot(SPECS, frame(events(0)), "past", until=0)
    kept.add("1", {"time": [10, 20], "past_item": [3, 3]})
    at = lambda t: kept.fill({"time": t, "user": 1, "item": [3]}, 1)["item_count"]  # noqa: E731
    assert [at(t) for t in (10, 11, 20, 21)] == [[0], [1], [1], [2]]


def test_what_a_request_sends_is_kept_and_what_the_snapshot_holds_is_not_counted_twice():
    e = events()
    kept = Counters.snapshot(SPECS, frame(e), "past", until=60)
    before = kept.fill({"time": 500, "user": 1, "item": [3]}, 1)
    add(kept, e, 0, 61)
    assert kept.added == 0 and kept.fill({"time": 500, "user": 1, "item": [3]}, 1) == before
    sent = {"item_count": [5.0], "item_recency": [1.0]}
    assert set(kept.fill({"time": 500, "user": 1, "item": [3], **sent}, 1)) == set(
        SPECS[1].features
    )


def test_null_is_a_value_and_numbers_are_their_text():
    assert served.hashes([3])[0] == served.hashes(["3"])[0] != served.hashes([None])[0]
    column = pl.Series([None, 3, None, 4])
    np.testing.assert_array_equal(served._hash_column(column), served.hashes([None, 3, None, 4]))


def test_the_snapshot_s_last_event_is_not_in_the_past_of_its_own_second():
    counter = served.Counter.of(np.array([7, 7], np.uint64), np.array([5, 9]))
    counts = [counter.before(np.array([7], np.uint64), t)[0].tolist() for t in (9, 10)]
    assert counts == [[1], [2]]
