"""Histories and causal counters against a brute-force as-of join."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import polars as pl

from recjax.data.loading.batches import Assembler, Part
from recjax.data.loading.layout import Layout
from recjax.data.store import histories
from recjax.data.store.histories import NEVER, Clock, Counter, CounterIndex
from recjax.schema import NUM_RESERVED, Feature, IdSpace, Schema
from tests.messages import raises

USERS, ITEMS = 4, 3  # few users, items and seconds: ties and duplicates in every example
COUNTERS = (Counter("item", ("item",)), Counter("user_item", ("user", "item")))

row = st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1), st.integers(-5, 5))
rows = st.lists(row, max_size=30)
examples = settings(max_examples=200, deadline=None)
SEEN = Schema(
    (IdSpace("item", NUM_RESERVED + ITEMS), IdSpace("place", NUM_RESERVED + 30)),
    (
        Feature("item", "candidate", "item"),
        Feature("seen", "history", "item", list="past"),
        Feature("place", "history", "place", list="past"),
        Feature("y", "label"),
    ),
)
SHORT = 4  # events a batch keeps: less than many a history


def columns(table, origin):
    user, item, time = (np.array([r[i] for r in table], np.int64) for i in range(3))
    return {"user": user, "item": item, "time": time + origin}


def timelines(events, partitions=1):
    fields = {"item": events["item"], "log": np.arange(len(events["time"]))}
    return histories.build_timelines(events["user"], events["time"], fields, USERS, partitions)


def history(parts, cut, i):
    """Rows of the log in request i's history, as the store gives them."""
    log = parts[cut["partition"][i]].columns["log"]
    return log[cut["end"][i] - cut["count"][i] : cut["end"][i]].tolist()


def brute_history(events, user, time):
    past = [
        j
        for j in range(len(events["time"]))
        if events["user"][j] == user and events["time"][j] < time
    ]
    return sorted(past, key=lambda j: (events["time"][j], j))


def brute_counter(counter, events, requests, i):
    ages = [
        requests["time"][i] - events["time"][j]
        for j in range(len(events["time"]))
        if events["time"][j] < requests["time"][i]
        and all(events[k][j] == requests[k][i] for k in counter.keys)
    ]
    return len(ages), min(min(ages, default=NEVER), NEVER)


@examples
@given(rows, rows, st.sampled_from([0, 1_500_000_000]), st.integers(1, 3))
def test_every_history_is_the_brute_force_join(event_rows, request_rows, origin, partitions):
    events, requests = columns(event_rows, origin), columns(request_rows, origin)
    parts = timelines(events, partitions)
    cut = histories.cutoffs(parts, requests["user"], requests["time"])
    for i in range(len(request_rows)):
        assert history(parts, cut, i) == brute_history(
            events, requests["user"][i], requests["time"][i]
        )


@settings(max_examples=2_000, deadline=None)
@given(rows, rows, st.sampled_from([0, 1_500_000_000]), st.integers(1, 3))
def test_from_an_unsorted_log_with_repeats_to_a_batch_every_history_is_the_brute_force_join(
    log_rows, request_rows, origin, partitions
):
    """The whole way: repeats are taken out, events stored, requests cut off, a batch assembled."""
    log = pl.DataFrame(columns(log_rows, origin)).with_row_index("place")
    event = ["user", "item", "time"]
    kept, found = histories.quarantine(
        log, ids=("user", "item"), time="time", until=origin + 5, unique=event
    )
    assert found == {"null_id": 0, "future": 0, "duplicate": len(log_rows) - len(set(log_rows))}
    events = {c: kept[c].to_numpy().astype(np.int64) for c in kept.columns}
    fields = {"seen": NUM_RESERVED + events["item"], "place": NUM_RESERVED + events["place"]}
    parts = histories.build_timelines(events["user"], events["time"], fields, USERS, partitions)
    requests = columns(request_rows, origin)
    mask, age, seen, place = batch_of(parts, requests)
    for i, (user, _, _) in enumerate(request_rows):
        past = brute_history(events, user, requests["time"][i])[-SHORT:]
        n = len(past)
        assert mask[i].tolist() == [False] * (SHORT - n) + [True] * n
        for got, want in ((seen, events["item"][past]), (place, events["place"][past])):
            assert got[i].tolist() == [0] * (SHORT - n) + (NUM_RESERVED + want).tolist()
        assert age[i, SHORT - n :].tolist() == (requests["time"][i] - events["time"][past]).tolist()


def batch_of(parts, requests):
    """Mask, ages, items and places [N, SHORT] of each request's history, as a model would get them."""
    cut = histories.cutoffs(parts, requests["user"], requests["time"])
    out = [np.zeros((len(cut["end"]), SHORT), t) for t in (bool, np.int32, np.int32, np.int32)]
    for p, timeline in enumerate(parts):
        mine = np.flatnonzero(cut["partition"] == p)
        if not len(mine):
            continue
        impressions = {f"past/{c}": cut[c][mine] for c in ("end", "count")}
        impressions |= {"time": requests["time"][mine], "item": requests["item"][mine]}
        batch = Assembler(Layout(SEEN, len(mine), {"past": SHORT})).build(
            [Part(impressions, {"past": timeline.columns})]
        )
        ids = [
            batch["ids"][SEEN.feature(f).id_space][0][batch["pos"][f]] for f in ("seen", "place")
        ]
        for whole, x in zip(out, (batch["mask"]["past"], batch["age"]["past"], *ids), strict=True):
            whole[mine] = x
    return out


@examples
@given(rows, rows, st.sampled_from([0, 1_500_000_000]))
def test_every_counter_is_the_brute_force_join(event_rows, request_rows, origin):
    events, requests = columns(event_rows, origin), columns(request_rows, origin)
    for counter in COUNTERS:
        index = CounterIndex.build(counter, events, {"user": USERS, "item": ITEMS})
        count, recency = index.before(requests)
        got = list(zip(count.tolist(), recency.tolist(), strict=True))
        assert got == [
            brute_counter(counter, events, requests, i) for i in range(len(request_rows))
        ]


@examples
@given(rows, row, rows)
def test_nothing_at_or_after_the_request_is_seen(event_rows, request_row, other_rows):
    """Replacing every event from the request on by others of that time or later changes nothing."""
    now = request_row[2]
    past = [r for r in event_rows if r[2] < now]
    future = [(u, i, now + abs(t)) for u, i, t in other_rows]
    request = columns([request_row], 0)
    seen = []
    for table in (event_rows, past + future):
        table = sorted(table, key=lambda r: r[2] >= now)  # equal log order for what they share
        events = columns(table, 0)
        parts = timelines(events)
        cut = histories.cutoffs(parts, request["user"], request["time"])
        indexes = [CounterIndex.build(c, events, {"user": USERS, "item": ITEMS}) for c in COUNTERS]
        counts = histories.count_all(indexes, request)
        seen.append((history(parts, cut, 0), {k: v.tolist() for k, v in counts.items()}))
    assert seen[0] == seen[1]


def test_an_event_one_second_earlier_is_seen():
    """The control of the test above: what it calls invisible becomes visible a second earlier."""
    request = columns([(0, 0, 5)], 0)
    counted = []
    for time in (4, 5):
        events = columns([(0, 0, time)], 0)
        assert (
            histories.cutoffs(timelines(events), request["user"], request["time"])["count"]
            == 5 - time
        )
        index = CounterIndex.build(COUNTERS[1], events, {"user": USERS, "item": ITEMS})
        counted.append([int(x[0]) for x in index.before(request)])
    assert counted == [[1, 1], [0, NEVER]]


def test_timeline_is_sorted_by_user_time_and_log_order():
    events = columns([(1, 0, 5), (0, 1, 9), (1, 2, 3), (1, 1, 3), (3, 0, 1)], 100)
    (timeline,) = timelines(events)
    assert timeline.columns["log"].tolist() == [1, 2, 3, 0, 4]
    assert timeline.columns["start"].tolist() == [0, 1, 4, 4, 5]  # user 2 has no events
    assert timeline.columns["time"].tolist() == [109, 103, 103, 105, 101]


def test_partitions_hold_all_events_once():
    rng = np.random.default_rng(0)
    user, time = rng.integers(0, 10, 100), rng.integers(0, 50, 100)
    parts = histories.build_timelines(user, time, {"log": np.arange(100)}, 10, 3)
    assert sorted(np.concatenate([p.columns["log"] for p in parts])) == list(range(100))
    assert [len(p.columns["start"]) - 1 for p in parts] == [4, 3, 3]


def test_recency_saturates_below_never():
    events = {"item": np.zeros(1, np.int64), "time": np.array([-(2**33)])}
    index = CounterIndex.build(COUNTERS[0], events, {"item": 1})
    count, recency = index.before({"item": np.zeros(1, np.int64), "time": np.array([2**33])})
    assert count[0] == 1 and recency[0] == NEVER - 1


def test_keys_too_many_for_the_bits_are_made_dense():
    """2**60 possible combinations and 26 bits of time do not fit 63: the answers must not change."""
    rng = np.random.default_rng(0)
    events = {
        "a": rng.integers(0, 3, 50) << 28,
        "b": rng.integers(0, 3, 50) << 27,
        "time": rng.integers(0, 2**25, 50),
    }
    requests = {k: np.r_[x[:20], x[:20] + 1] for k, x in events.items()}
    index = CounterIndex.build(Counter("ab", ("a", "b")), events, {"a": 1 << 30, "b": 1 << 30})
    assert index.dense is not None
    count, recency = index.before(requests)
    for i in range(40):
        assert (count[i], recency[i]) == brute_counter(index.counter, events, requests, i)


def test_keys_beyond_62_bits_are_refused():
    events = {"a": np.zeros(1, np.int64), "b": np.zeros(1, np.int64), "time": np.zeros(1, np.int64)}
    with raises(ValueError, "'ab'"):
        CounterIndex.build(Counter("ab", ("a", "b")), events, {"a": 1 << 40, "b": 1 << 40})


def test_clock_has_room_after_the_last_event():
    clock = Clock.of(np.array([10, 13]))
    keys = clock.pack(np.array([1, 1, 1]), np.array([13, 14, 10**9]))
    assert keys[0] < keys[1] <= keys[2] < clock.pack(np.array([2]), np.array([0]))[0]


def test_quarantine_counts_what_it_takes_out():
    log = pl.DataFrame(
        {"user": [1, None, 2, 2, 3, 4], "item": [1, 1, 2, 2, None, 4], "time": [5, 5, 6, 6, 7, 99]}
    )
    kept, found = histories.quarantine(log, ids=("user", "item"), time="time", until=50)
    assert found == {"null_id": 2, "future": 1, "duplicate": 1}
    assert kept.rows() == [(1, 1, 5), (2, 2, 6)]


def test_a_session_ends_with_a_longer_pause_and_with_its_user():
    """Pauses of exactly the gap go on; the first user's last event is within the gap of the second's first."""
    user, time = np.array([0, 0, 1, 1]), np.array([0, 50, 110, 210])
    timelines = histories.build_timelines(user, time, {}, users=2)
    for asked, sessions in ((310, 2), (311, 0), (210, 1)):
        at = np.array([asked])
        cut = histories.cutoffs(timelines, np.array([1]), at)
        assert histories.in_session(timelines, cut, at, gap=100).tolist() == [sessions], asked
    numbers = histories.sessions(np.array([1, 0, 1, 1]), np.array([211, 5, 10, 110]), gap=100)
    assert numbers.tolist() == [2, 0, 1, 1]


def test_of_rows_that_name_one_event_the_first_stays():
    log = pl.DataFrame({"user": [1, 1, 2], "time": [5, 5, 6], "price": [3, 4, 5]})
    kept, found = histories.quarantine(
        log, ids=("user",), time="time", until=6, unique=("user", "time")
    )
    assert found["duplicate"] == 1 and kept.rows() == [(1, 5, 3), (2, 6, 5)]
