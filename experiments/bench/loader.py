"""Examples per second and CPU per example of the loader, in process and with worker processes.

    python -m experiments.bench.loader                 # a made-up set as wide as Complete Journey's
    python -m experiments.bench.loader --dir=... --history=50,200,1000 --workers=0,1,2
    python -m experiments.bench.loader --dir=... --history=200 --buckets=25,75 --workers=0

Every line is the median of `--repeats` windows of `--window` batches (and their range); a first
window, with start-up and cold blocks, is not counted. CPU is user + system time of this process and
its workers, per example.
"""

import itertools
import os
import pathlib
import tempfile
import time

from absl import flags
import numpy as np

from recjax import command
from recjax.data.loading.loader import PreparedData
from recjax.data.store.prepared import Prepared
from recjax.data.store.writing import write_prepared
from recjax.schema import Feature, IdSpace, Schema

_DIR = flags.DEFINE_string("dir", "", "Prepared directory; empty: a made-up data set.")
_SPLIT = flags.DEFINE_string("split", "train", "Split to read.")
_BATCH = flags.DEFINE_integer("batch_size", 2048, "Requests in a batch.")
_HISTORY = flags.DEFINE_list("history", ["50"], "Numbers of events kept of each list, to measure.")
_BUCKETS = flags.DEFINE_list("buckets", [], "Shorter history lengths, for batches by length.")
_COPY = flags.DEFINE_bool("copy", True, "Compare with copying a batch's bytes in memory.")
_SHARDS = flags.DEFINE_integer("shards", 1, "Device shards, each with its own unique ids.")
_WORKERS = flags.DEFINE_list("workers", ["0", "1", "2"], "Numbers of worker processes to measure.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Windows measured.")
_WINDOW = flags.DEFINE_integer("window", 60, "Batches in a window.")
_SHUFFLE = flags.DEFINE_bool(
    "shuffle", False, "Measure later, shuffled epochs instead of the stored order."
)

# Vocabulary sizes of the made-up set: about those of Complete Journey.
SPACES = {
    "user": 2_469,
    "store": 457,
    "scene": 16,
    "item": 92_331,
    "kind": 2_400,
    "category": 308,
    "maker": 6_476,
    "department": 32,
}
CACHES = 1 << 28  # bytes: more than any cache here holds
FIELDS = ("item", "kind", "category", "maker", "department")
COUNTERS = 14


def make_wide(
    out_dir: str, impressions: int = 400_000, events: int = 1_400_000, seed: int = 0
) -> str:
    """Random columns of realistic widths, vocabularies and history lengths; returns the directory."""
    rng = np.random.default_rng(seed)
    users = SPACES["user"]

    def ids(space: str, n: int) -> np.ndarray:  # Zipf-like, spread over the table
        return 3 + (SPACES[space] * rng.random(n) ** 4).astype(np.int64) * 7919 % SPACES[space]

    start = np.r_[0, np.cumsum(rng.multinomial(events, rng.dirichlet(np.full(users, 2.0))))]
    user = rng.integers(users, size=impressions)
    seen = (rng.random(impressions) * (start[user + 1] - start[user])).astype(np.int32)
    moment = np.sort(rng.integers(10**9, 10**9 + 60_000_000, size=events))
    features = [Feature("user", "profile", "user")]
    features += [Feature(f, "context", f) for f in ("store", "scene")]
    features += [Feature(f, "candidate", f) for f in FIELDS]
    features += [Feature(f"n_{i}", "candidate", transform="log1p") for i in range(COUNTERS)]
    features += [Feature(f"hist_{f}", "history", f, list="purchases") for f in FIELDS]
    features += [Feature("click", "label")]
    schema = Schema(
        tuple(IdSpace(s, n + 3) for s, n in SPACES.items()),
        tuple(features),
        groups=("visit", "uid"),
    )
    columns = {f: ids(f, impressions) for f in (*FIELDS, "store", "scene")} | {
        "user": 3 + user,
        "visit": user,
        "uid": user,
    }
    columns |= {f"n_{i}": rng.random(impressions).astype(np.float32) for i in range(COUNTERS)}
    columns |= {
        "purchases/end": start[user] + seen,
        "purchases/count": seen,
        "time": np.full(impressions, 1_100_000_000),
    }
    columns |= {"click": rng.integers(0, 2, impressions).astype(np.float32)}
    timeline = {"time": moment} | {f"hist_{f}": ids(f, events) for f in FIELDS}
    options = {"impressions": impressions, "events": events, "seed": seed}
    return str(
        write_prepared(
            out_dir, "bench", schema, {"purchases": [timeline]}, {"train": columns}, options=options
        )
    )


def cpu_seconds(workers: bool) -> float:
    """User + system time of this process and, from /proc, of its living children (Linux)."""
    own = sum(os.times()[:2])
    if not workers:
        return own
    pids = [
        p
        for task in pathlib.Path("/proc/self/task").iterdir()
        for p in (task / "children").read_text().split()
    ]
    ticks = os.sysconf("SC_CLK_TCK")
    return own + sum(sum(map(int, _stat(pid)[11:13])) for pid in pids) / ticks


def _stat(pid: str) -> list[str]:
    return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()


def measure(data: PreparedData, workers: int) -> tuple[list[float], list[float], dict]:
    """(examples/s, CPU microseconds an example) of each window, and the stream's stats."""
    split, size = _SPLIT.value, _BATCH.value
    epochs = 2 + (_REPEATS.value + 1) * _WINDOW.value * size // data.splits[split]
    start = -(-data.splits[split] // size) if _SHUFFLE.value else 0
    batches = data.batches(
        split,
        size,
        start=start,
        shuffle_seed=0 if _SHUFFLE.value else None,
        shards=_SHARDS.value,
        workers=workers,
        epochs=epochs,
        buckets=tuple(map(int, _BUCKETS.value)),
    )
    stream = iter(batches)
    speeds, costs = [], []
    for window in range(_REPEATS.value + 1):
        wall, cpu = time.perf_counter(), cpu_seconds(workers > 0)
        rows = sum(int(b["valid"].sum()) for b in itertools.islice(stream, _WINDOW.value))
        wall, cpu = time.perf_counter() - wall, cpu_seconds(workers > 0) - cpu
        if window:
            speeds.append(rows / wall)
            costs.append(1e6 * cpu / rows)
    stats = batches.stats
    stream.close()
    return speeds, costs, stats


def measure_copy(data: PreparedData) -> tuple[list[float], int]:
    """(examples/s of each window, bytes of a batch) when a batch's bytes are merely copied from memory to memory.

    The floor of any loader that hands over fresh arrays. The source is rotated through copies that together exceed the
    caches, as batches that come from elsewhere do.
    """
    batch = next(iter(data.batches(_SPLIT.value, _BATCH.value, shards=_SHARDS.value)))
    size = sum(x.nbytes for x in _leaves(batch))
    copies = [np.full(size, i, np.uint8) for i in range(max(2, CACHES // size))]
    target, speeds = np.empty(size, np.uint8), []
    for window in range(_REPEATS.value + 1):
        began = time.perf_counter()
        for i in range(_WINDOW.value):
            np.copyto(target, copies[i % len(copies)])
        if window:
            speeds.append(_WINDOW.value * _BATCH.value / (time.perf_counter() - began))
    return speeds, size


def _leaves(tree):
    for x in tree.values():
        yield from _leaves(x) if isinstance(x, dict) else [x]


def show(what: str, speeds: list[float], more: str) -> None:
    print(
        f"{what}: {np.median(speeds):,.0f} examples/s ({min(speeds):,.0f}-{max(speeds):,.0f}), {more}",
        flush=True,
    )


def main(argv):
    del argv
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Prepared(_DIR.value or make_wide(scratch))
        print(
            f"{os.cpu_count()} CPUs, B={_BATCH.value}, S={_SHARDS.value}, shuffle={_SHUFFLE.value}, "
            f"buckets={_BUCKETS.value}"
        )
        for length in map(int, _HISTORY.value):
            data = PreparedData(prepared, history=length)
            if _COPY.value:
                speeds, size = measure_copy(data)
                show(f"L={length} memory copy", speeds, f"{size / _BATCH.value:,.0f} bytes/example")
            for workers in map(int, _WORKERS.value):
                speeds, costs, stats = measure(data, workers)
                cpu = f"CPU {np.median(costs):.2f} us/example ({min(costs):.2f}-{max(costs):.2f})"
                show(f"L={length} workers={workers}", speeds, f"{cpu}, {stats}")


if __name__ == "__main__":
    command.run(main)
