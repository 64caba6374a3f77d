import asyncio
import json
import tracemalloc

import pytest

from recjax.serving.batching import Batcher, DeadlinePassed, Overloaded, fit
from recjax.serving.events import Answered, Events, KeyReused
from tests import messages


@pytest.mark.parametrize(
    ("waiting", "taken"),
    [(0, 0), (1, 1), (2, 1), (3, 3), (4, 4), (5, 4), (8, 4), (9, 9), (16, 16), (40, 16)],
)
def test_batches_are_at_least_half_full(waiting, taken):
    assert fit(waiting, (1, 4, 16)) == taken


def test_fit_without_a_size_of_one():
    assert fit(1, (8,)) == 1


class Recorder:
    """A worker that takes its time and remembers what it was given."""

    def __init__(self, seconds=0.0):
        self.batches, self.seconds = [], seconds

    def __call__(self, group, requests):
        import time

        time.sleep(self.seconds)
        self.batches.append((group, list(requests)))
        return [ValueError("bad") if r == "bad" else r * 2 for r in requests]


def serve(run, calls, **options):
    """Submits (group, request, seconds) together; returns answers and exceptions."""

    async def main():
        options.setdefault("queue", 100)
        batcher = Batcher(run, sizes=(1, 2, 4), **options)
        now = asyncio.get_running_loop().time()
        async with batcher.running():
            asked = [batcher.submit(g, r, now + s) for g, r, s in calls]
            out = await asyncio.gather(*asked, return_exceptions=True)
            assert batcher.waiting == 0
            return out

    return asyncio.run(main())


def test_groups_do_not_mix_and_answers_find_their_askers():
    run = Recorder(0.01)
    calls = [("ab"[i % 2], i, 10) for i in range(20)]
    assert serve(run, calls) == [2 * i for i in range(20)]
    assert len(run.batches) < 20
    for group, requests in run.batches:
        assert len(requests) <= 4 and {"ab"[r % 2] for r in requests} == {group}


def test_one_bad_request_fails_alone_and_a_broken_program_only_its_batch():
    out = serve(Recorder(), [("a", 1, 10), ("a", "bad", 10), ("a", 3, 10), ("a", 4, 10)])
    assert out[0] == 2 and isinstance(out[1], ValueError) and out[2:] == [6, 8]

    def broken(group, requests):
        if group == "broken":
            raise RuntimeError("broken")
        return requests

    out = serve(broken, [("broken", 1, 10), ("fine", 2, 10)])
    assert isinstance(out[0], RuntimeError) and out[1] == 2


def test_full_queue_and_hopeless_deadline():
    out = serve(Recorder(0.05), [("a", i, 10) for i in range(6)], queue=4)
    assert [type(o) for o in out[4:]] == [Overloaded] * 2 and out[:4] == [0, 2, 4, 6]
    run = Recorder(0.2)
    out = serve(run, [("a", 0, 10), ("b", 1, 0.05)])
    assert out[0] == 0 and isinstance(out[1], DeadlinePassed)
    assert [r for _, r in run.batches] == [[0]]  # the second was never computed


def test_waiting_fills_a_batch():
    async def trickle(wait_s):
        run = Recorder()
        batcher = Batcher(run, sizes=(1, 2, 4), queue=10, wait_s=wait_s)
        async with batcher.running():
            tasks = []
            for i in range(3):
                deadline = asyncio.get_running_loop().time() + 10
                tasks.append(asyncio.create_task(batcher.submit("a", i, deadline)))
                await asyncio.sleep(0.02)
            await asyncio.gather(*tasks)
        return [r for _, r in run.batches]

    assert asyncio.run(trickle(0.5)) == [[0, 1, 2]]
    assert asyncio.run(trickle(0.0)) == [[0], [1], [2]]


def test_events_keep_the_newest_and_forget_whom_nobody_asks_for():
    events = Events(max_bytes=1 << 20, per_list=3)
    for user in ("a", "b"):
        events.append(user, "views", {"time": [3, 1, 2], "item": ["z", "x", "y"]})
    assert events.append("a", "views", {"time": [2], "item": ["w"]}) == 3
    read = lambda user, before=9, n=9: events.read(user, "views", ("time", "item"), before, n)  # noqa: E731
    assert read("a") == {"time": [2, 2, 3], "item": ["y", "w", "z"]}  # ties as they came
    assert read("a", before=3, n=1) == {"time": [2], "item": ["w"]}
    events._max_bytes = events.bytes  # full
    events.append("c", "views", {"time": [5], "item": ["v"]})  # b was idle for longest
    assert len(events) == 2 and events.count == 4 and events.evicted == 1
    assert read("b") == {"time": [], "item": []}
    version = events.version("c")
    assert events.append("c", "views", {"time": [], "item": []}) == 1
    assert events.append("nobody", "views", {"time": [], "item": []}) == 0
    assert len(events) == 2 and events.version("c") == version  # nothing came, nobody came
    wider = events.read("c", "views", ("time", "item", "price"), 9, 9)
    assert wider == {"time": [], "item": [], "price": []}


@pytest.mark.parametrize(
    ("columns", "each"),
    [
        (lambda i: {"item": [f"item {i} {k}" + 900 * "x" for k in range(4)]}, 4),  # long
        (lambda i: {"item": [f"{i} {k}" for k in range(4)], "price": [0.1 * i] * 4}, 4),
        (lambda i: {"item": [10**6 * i]}, 1),  # a user an event
        (lambda i: {"tags": [[f"{i} {k}" for k in range(5)]] * 4}, 4),
        (lambda i: {"item": [f"\U0001f600{i}" * 50]}, 1),  # four bytes a character
    ],
)
def test_stored_events_take_the_memory_they_may(columns, each):
    limit = 2 << 20
    events = Events(max_bytes=limit, per_list=1000)
    tracemalloc.start()
    try:
        i = 0
        while events.evicted < 50:
            body = {"time": [10**9 + k for k in range(each)], **columns(i)}
            events.append(f"user {i}", "views", json.loads(json.dumps(body)))
            i += 1
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.5 * limit < held < 1.1 * limit, held / limit
    assert events.bytes <= limit


def test_bytes_return_to_nothing():
    events = Events(max_bytes=0, per_list=2)
    for user in ("a", "b"):
        events.append(user, "views", {"time": [1, 2, 3], "item": ["x", ["y", "z"], None]})
        events.append(user, "buys", {"time": [1], "item": ["x"]})
    while len(events):
        events._evict()
    assert events.bytes == events.count == 0


def test_answers_to_keys_are_kept_up_to_a_number():
    answered = Answered(limit=2)
    for key in ("a", "b", "c"):
        assert answered.before(key, "x") is None
        answered.keep(key, "x", key.upper())
    assert answered.before("a", "x") is None and answered.before("c", "x") == "C"
    assert answered.before("", "x") is None
    with messages.raises(KeyReused, "key"):
        answered.before("c", "y")
