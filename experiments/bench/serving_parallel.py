"""One request with many candidates: all at once, from a warm prefix cache, one by one, with replicated histories.

    python -m experiments.bench.serving_parallel --candidates=200 --history=100
    python -m experiments.bench.serving_parallel --candidates=200 --history=1000 --local=50 --dilation=10 --head=released

An untrained LightSUAN of two blocks, D = 40, exported and loaded; encoded requests, so each figure is the gathering of
rows and the program, on one core. In one run, taking turns:

  parallel     one call, candidates side by side (`score`)
  warm         the same from the user's cached prefix (`candidates`)
  prefix       what a new event costs (`prefix`)
  one by one   a call a candidate
  replicated   the history repeated for each candidate, the best of several batch sizes

`cpu_ms` is the process's own time, which neighbours on a busy machine stretch less than `p50_ms` and `p99_ms`.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import json
import os
import pathlib
import tempfile
import time
from typing import Any

from absl import flags
import jax
import numpy as np

from recjax import command, configs, models
from recjax.batch import Batch
from recjax.data.loading.batches import Assembler, Layout, Part
from recjax.runtime.run import set_up
from recjax.schema import Feature, IdSpace, Schema
from recjax.serving import artifact
from recjax.serving.scorer import Scorer
from recjax.training.step import init_trees

HEADS = {
    "small": dict(head=(160, 80), head_norm="rms", head_activation="silu"),
    "released": dict(head=(1024, 512, 256), head_norm="batch", head_activation="dice"),
}
REPLICATED = (8, 50, 200)
_FIELDS = ("item", "category", "shop", "area", "hour")  # n1 = 5, so D = 40 at d = 8
_NOW = 1_700_000_000
_ROWS = {
    "item": 100_000,
    "category": 1_000,
    "shop": 10_000,
    "area": 500,
    "hour": 27,
    "user": 50_000,
}


def schema() -> Schema:
    """Six profile fields, two of context, a candidate of five ids and ten counters, a history of five fields."""
    profile = [Feature(f"profile_{i}", "profile", "user" if not i else "hour") for i in range(6)]
    return Schema(
        id_spaces=tuple(IdSpace(name, rows) for name, rows in _ROWS.items()),
        features=(
            *profile,
            *(Feature(f"context_{i}", "context", "hour") for i in range(2)),
            *(Feature(name, "candidate", name) for name in _FIELDS),
            *(Feature(f"counter_{i}", "candidate", transform="log1p") for i in range(10)),
            *(Feature(f"past_{name}", "history", name, list="past") for name in _FIELDS),
            Feature("click", "label"),
        ),
    )


def part(made: Schema, requests: int, candidates: int, history: int, seed: int = 0) -> Part:
    """Random impressions of whole histories."""
    rng = np.random.default_rng(seed)
    rows, events = requests * candidates, requests * history

    def draw(f: Feature, n: int) -> np.ndarray:
        return rng.integers(3, _ROWS[f.id_space], size=n).astype(np.int32)

    def by_request(x: np.ndarray) -> np.ndarray:
        return np.repeat(x, candidates)

    columns: dict[str, np.ndarray] = {"time": np.full(rows, _NOW)}
    for f in made.features:
        if f.kind == "dense":
            columns[f.name] = rng.exponential(10, rows).astype(np.float32)
        elif f.axes == "BC":
            columns[f.name] = draw(f, rows)
        elif f.axes == "B":
            columns[f.name] = by_request(draw(f, requests))
    columns["past/end"] = by_request(np.arange(1, requests + 1) * history)
    columns["past/count"] = np.full(rows, history, np.int32)
    times = np.sort(_NOW - rng.integers(1, 10**7, (requests, history)), axis=1).reshape(-1)
    timeline = {f.name: draw(f, events) for f in made.features if f.list}
    return Part(columns, {"past": {"time": times, **timeline}}, np.full(requests, candidates))


def batch_of(made: Schema, one: Part, candidates: int, history: int) -> Batch:
    layout = Layout(made, one.requests, {"past": history}, candidates)
    return Assembler(layout).build([one])


def export(path: pathlib.Path, history: int, options: dict[str, Any]) -> artifact.Artifact:
    """An untrained LightSUAN, exported for this platform and loaded."""
    made = schema()
    system = models.build(made, dict(name="lightsuan", **options))
    batch = batch_of(made, part(made, 2, 2, history), 2, history)
    trees = init_trees(system, configs.base(), batch)
    platform = jax.default_backend().replace("gpu", "cuda")
    artifact.export_artifact(path, system, trees, batch=batch, config={}, platforms=(platform,))
    return artifact.load(path)


def replicate(one: Part, candidates: int) -> Part:
    """The candidates of one request as requests of their own."""
    return Part(one.columns, one.timelines, np.ones(candidates, np.int64))


def _first_rows(one: Part) -> Part:
    """A request without its candidates."""
    first = np.cumsum(one.counts) - one.counts
    return Part({n: x[first] for n, x in one.columns.items()}, one.timelines)


def slices(one: Part, size: int) -> list[Part]:
    """The requests in parts of so many."""
    whole = one.rows
    return [
        Part(
            {n: x[lo : lo + size] for n, x in one.columns.items()},
            one.timelines,
            np.ones(min(size, whole - lo), np.int64),
        )
        for lo in range(0, whole, size)
    ]


def forms(
    loaded: artifact.Artifact, made: Schema, one: Part, candidates: int, history: int
) -> dict[str, Callable[[], Any]]:
    """Name -> call that scores the same request and returns its logits; of "prefix" what it caches."""
    score = Scorer(loaded, requests=[1], candidates=[candidates])
    warm = Scorer(loaded, "candidates", requests=[1], candidates=[candidates])
    prefix = Scorer(loaded, "prefix", requests=[1], candidates=[1])
    # Each function in a batch of its own: what it does not read is not encoded.
    together = batch_of(score.schema, one, candidates, history)
    past = batch_of(prefix.schema, _first_rows(one), 1, history)
    cached = {**batch_of(warm.schema, one, candidates, history), "cache": prefix.score(past)}
    out: dict[str, Callable[[], Any]] = {
        "parallel": lambda: score.score(together)["logits"][0],
        "warm": lambda: warm.score(cached)["logits"][0],
        "prefix": lambda: prefix.score(past),
    }
    for size in (1, *(s for s in REPLICATED if s <= candidates)):
        single = Scorer(loaded, requests=[size], candidates=[1])
        parts = slices(replicate(one, candidates), size)
        batches = [batch_of(made, p, 1, history) for p in parts]
        name = "one by one" if size == 1 else f"replicated, {size} at a time"
        out[name] = functools.partial(one_by_one, single, batches)
    return out


def one_by_one(scorer: Scorer, batches: Sequence[Batch]) -> np.ndarray:
    """Logits of requests that are scored one batch after the other."""
    return np.concatenate([scorer.score(b)["logits"][:, 0] for b in batches])


def measure(
    candidates: int, history: int, options: dict[str, Any], repeats: int, slow_repeats: int
) -> dict[str, Any]:
    """Times of every form, what parallel and warm scoring gain, and how far their answers differ."""
    made = schema()
    with tempfile.TemporaryDirectory() as folder:
        loaded = export(pathlib.Path(folder) / "a", history, options)
    calls = forms(loaded, made, part(made, 1, candidates, history, 1), candidates, history)
    answers = {name: call() for name, call in calls.items() if name != "prefix"}
    apart = max(float(np.abs(x - answers["one by one"]).max()) for x in answers.values())
    fast = [name for name in calls if name in ("parallel", "warm", "prefix")]
    slow = [name for name in calls if name not in fast]
    wall, cpu = take_turns({n: calls[n] for n in fast}, repeats)
    for mine, more in zip(
        (wall, cpu), take_turns({n: calls[n] for n in slow}, slow_repeats), strict=True
    ):
        mine.update(more)
    replicated = min((n for n in slow if n != "one by one"), key=lambda n: np.median(cpu[n]))
    gain = lambda a, b: round(float(np.median(cpu[a]) / np.median(cpu[b])), 2)  # noqa: E731
    return {
        "candidates": candidates,
        "history": history,
        "options": options,
        "largest_difference": apart,
        "forms": {n: _summary(wall[n], cpu[n]) for n in calls},
        "parallel_against_one_by_one": gain("one by one", "parallel"),
        "parallel_against_best_replicated": {replicated: gain(replicated, "parallel")},
        "warm_against_parallel": gain("parallel", "warm"),
    }


def take_turns(calls: Mapping[Any, Callable], repeats: int) -> tuple[dict, dict]:
    """Wall and own milliseconds of each call; calls take turns, after one unmeasured round."""
    wall: dict[Any, list] = {n: [] for n in calls}
    cpu: dict[Any, list] = {n: [] for n in calls}
    for i in range(repeats + 1):
        for name, call in calls.items():
            start, own = time.perf_counter(), time.process_time()
            call()
            if i:
                wall[name].append(1e3 * (time.perf_counter() - start))
                cpu[name].append(1e3 * (time.process_time() - own))
    return wall, cpu


def _summary(wall: list[float], cpu: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(wall, [50, 99])
    return {
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "cpu_ms": round(float(np.median(cpu)), 2),
    }


def main(_) -> None:
    if hasattr(os, "sched_setaffinity"):  # before JAX counts cores for its thread pool
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    set_up()
    options = dict(
        blocks=_BLOCKS.value,
        width=40,
        local=_LOCAL.value,
        dilation=_DILATION.value,
        table=dict(dim=8),
    )
    result = measure(
        _CANDIDATES.value,
        _HISTORY.value,
        options | HEADS[_HEAD.value],
        _REPEATS.value,
        _SLOW.value,
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    _CANDIDATES = flags.DEFINE_integer("candidates", 200, "of the request", 1)
    _HISTORY = flags.DEFINE_integer("history", 100, "events", 1)
    _BLOCKS = flags.DEFINE_integer("blocks", 2, "l", 1)
    _LOCAL = flags.DEFINE_integer("local", 16, "k", 1)
    _DILATION = flags.DEFINE_integer("dilation", 4, "r", 1)
    _HEAD = flags.DEFINE_enum("head", "small", list(HEADS), "160-80, or 1024-512-256")
    _REPEATS = flags.DEFINE_integer("repeats", 300, "of the fast forms", 1)
    _SLOW = flags.DEFINE_integer("slow_repeats", 5, "of the others", 1)
    command.run(main)
