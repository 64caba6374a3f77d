"""Pre-ranking one request: TARQ's three read-outs against two towers and exact target attention, in one run on one core.

    python -m experiments.bench.serving_prerank
    python -m experiments.bench.serving_prerank --history=200

Untrained models of one size (D = 64, 2 heads, 3 x 128 codes) over made-up stored items, all of which are candidates; each is
exported and loaded, forms take turns, and a figure is the median of the process's own milliseconds (`cpu_ms`; `p50_ms` is
wall time). Exact target attention has what a server would give it: the items' queries are projected beforehand. Timed are the
whole request (rows of its ids, the request's function, candidates, top 100), the compiled programs of it alone (`programs`:
without this process's Python around the rows), and the candidates alone. Each form scores its candidates in pieces of the size
that is best for it, tried beforehand. `against` are ratios of CPU medians: a read-out's over the towers', and exact target
attention's over the read-out's.
"""

from collections.abc import Callable
import dataclasses
import json
import os
import pathlib
import tempfile
from typing import Any

from absl import flags
import jax
import numpy as np

from experiments.bench.serving_parallel import batch_of, part, schema, take_turns
from recjax import command, configs, embedding, models
from recjax.batch import Batch
from recjax.runtime.run import set_up
from recjax.schema import Schema
from recjax.serving import artifact as artifacts
from recjax.serving import program
from recjax.serving.catalogue import KEY
from recjax.serving.prerank import Preranker
from recjax.training.step import init_trees

READOUTS = ("low_rank", "full", "scalar")
TOWERS, EXACT = "two_tower", "target_attention"
CHUNKS = (0, 2048, 512)
TARGETS = {10_000: (1.8, 10.0), 100_000: (1.3, 30.0)}  # of low_rank: over the towers, under exact
ITEM = ("item", "category", "shop")


def options(form: str, width: int, codes: int) -> dict[str, Any]:
    """A form's model config."""
    how = dict(readout=form) if form in READOUTS else dict(variant=form)
    return dict(
        name="tarq", width=width, codes=codes, item_features=ITEM, table=dict(dim=16), **how
    )


def export(
    path: pathlib.Path, made: Schema, config: dict[str, Any], history: int, stored: int
) -> artifacts.Artifact:
    """An untrained model with `stored` random items, exported for this platform and loaded."""
    system = models.build(made, config)
    batch = batch_of(made, part(made, 2, 2, history), 2, history)
    trees = init_trees(system, configs.base(), batch)
    rows = embedding.gather(system.tables, trees.tables, batch)
    item = jax.eval_shape(system.exports["item"].fn, trees.params(rows), batch)
    rng = np.random.default_rng(0)

    def draw(x):  # the batch has 2 requests of 2 candidates; no other axis is 2 long
        axis = x.shape.index(2, 1)
        shape = tuple(stored if i == axis else n for i, n in enumerate(x.shape))[1:]
        whole = np.issubdtype(x.dtype, np.integer)
        made = rng.integers(0, config["codes"], shape) if whole else rng.normal(size=shape)
        return made.astype(x.dtype)

    items = {f"item/{n}": draw(x) for n, x in item.items()}
    items[KEY + "item"] = np.arange(3, 3 + stored, dtype=np.int32)
    platform = jax.default_backend().replace("gpu", "cuda")
    artifacts.export_artifact(
        path, system, trees, batch=batch, config={}, platforms=(platform,), derive=lambda _: items
    )
    return artifacts.load(path)


def forms(made: Schema, folder: pathlib.Path, history: int, width: int, codes: int, stored: int):
    """Form -> its loaded artifact."""
    return {
        form: export(folder / form, made, options(form, width, codes), history, stored)
        for form in (TOWERS, *READOUTS, EXACT)
    }


def calls_of(made: Schema, preranker: Preranker, history: int, k: int) -> dict[str, Callable]:
    """The whole request, its compiled programs, and its candidates alone."""
    scorer = preranker.request
    batch = batch_of(scorer.schema, part(made, 1, 1, history, 1), 1, history)
    encoded = scorer.score(batch)
    request = request_program(preranker.artifact, batch)
    return {
        "whole": lambda: preranker.top(scorer.score(batch), k),
        "programs": lambda: preranker.top(request(), k),
        "candidates": lambda: preranker.top(encoded, k),
    }


def request_program(loaded: artifacts.Artifact, batch: Batch) -> Callable:
    """A call of the request's compiled function, its rows at hand."""
    about, flat = loaded.manifest["functions"]["request"], program.flatten(batch)
    rows = {}
    for table in about["rows"]:
        space = loaded.manifest["tables"][table]["id_space"]
        ids = batch["ids"][space][0]
        rows[table] = loaded.tables[table].take(
            np.minimum(ids, len(loaded.tables[table].values) - 1)
        )[None]
    parameters = {n: loaded.parameters[n] for n in about["parameters"]}
    args = jax.device_put((parameters, rows, {n: flat[n] for n in about["inputs"]}))
    call = jax.jit(loaded.functions["request"].call)
    return lambda: call(*args)


def best_chunk(loaded: artifacts.Artifact, made: Schema, history: int, n: int, k: int) -> Preranker:
    """The ranker of the first n items with the piece size that is fastest."""
    axes = {name: x.shape.index(max(x.shape)) for name, x in loaded.derived.items()}
    derived = {name: x.take(np.arange(n), axes[name]) for name, x in loaded.derived.items()}
    loaded = dataclasses.replace(loaded, derived=derived)
    rankers = {c: Preranker(loaded, chunk=c) for c in CHUNKS if c < n}
    calls = {c: calls_of(made, r, history, k)["candidates"] for c, r in rankers.items()}
    cpu = take_turns(calls, 3)[1]
    return rankers[min(calls, key=lambda c: np.median(cpu[c]))]


def measure(
    sizes: tuple[int, ...], *, history: int, width: int, codes: int, repeats: int, k: int = 100
) -> dict[str, Any]:
    """Times of every form for every number of candidates, and the ratios."""
    made, out = schema(), {}
    stored = max(sizes)
    with tempfile.TemporaryDirectory() as folder:
        loaded = forms(made, pathlib.Path(folder), history, width, codes, stored)
    for n in sizes:
        least = min(k, n)
        rankers = {f: best_chunk(a, made, history, n, least) for f, a in loaded.items()}
        calls = {f: calls_of(made, r, history, least) for f, r in rankers.items()}
        timed = {}
        for what in ("whole", "programs", "candidates"):
            fast = {f: c[what] for f, c in calls.items() if f != EXACT}
            wall, cpu = take_turns(fast, repeats)
            slow = take_turns({EXACT: calls[EXACT][what]}, max(3, repeats // 10))
            for mine, more in zip((wall, cpu), slow, strict=True):
                mine.update(more)
            timed[what] = summary(wall, cpu)
        out[n] = timed | {"chunk": {f: r.chunk for f, r in rankers.items()}}
        if n in TARGETS:
            out[n]["targets"] = {
                what: judged(timed[what]["against"]["low_rank"], *TARGETS[n])
                for what in ("whole", "programs")
            }
    sizes_of = dict(history=history, width=width, codes=codes, stored=stored, k=k)
    return dict(sizes=sizes_of, candidates=out)


def summary(wall: dict[str, list], cpu: dict[str, list]) -> dict[str, Any]:
    """Medians, quartiles and ratios of medians."""
    median = {f: float(np.median(x)) for f, x in cpu.items()}
    times = {
        f: dict(
            cpu_ms=round(median[f], 3),
            quartiles=[round(float(q), 3) for q in np.percentile(cpu[f], [25, 75])],
            p50_ms=round(float(np.median(wall[f])), 3),
        )
        for f in cpu
    }
    against = {
        f: dict(
            towers=round(median[f] / median[TOWERS], 2), exact=round(median[EXACT] / median[f], 1)
        )
        for f in READOUTS
    }
    return dict(forms=times, against=against)


def judged(ratios: dict[str, float], most: float, least: float) -> dict[str, str]:
    """Each target beside what was found."""
    say = lambda met: "met" if met else "missed"  # noqa: E731
    return {
        f"at most {most} x the two towers": f"{ratios['towers']} {say(ratios['towers'] <= most)}",
        f"at least {least:g} x under exact": f"{ratios['exact']} {say(ratios['exact'] >= least)}",
    }


def main(_) -> None:
    if hasattr(os, "sched_setaffinity"):  # before JAX counts cores for its thread pool
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    set_up()
    result = measure(
        tuple(map(int, _CANDIDATES.value)),
        history=_HISTORY.value,
        width=_WIDTH.value,
        codes=_CODES.value,
        repeats=_REPEATS.value,
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    _CANDIDATES = flags.DEFINE_list("candidates", ["1000", "10000", "100000"], "of a request")
    _HISTORY = flags.DEFINE_integer("history", 50, "events", 1)
    _WIDTH = flags.DEFINE_integer("width", 64, "D", 2)
    _CODES = flags.DEFINE_integer("codes", 128, "K", 1)
    _REPEATS = flags.DEFINE_integer(
        "repeats", 50, "of the fast forms; the exact one has a tenth", 1
    )
    command.run(main)
