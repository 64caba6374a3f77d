"""Latency of one request, in this process.

    python -m recjax.serving.bench --artifact=DIR --candidates=100

Requests are made up: values drawn from the vocabularies, histories as long as the model keeps. One caller, one
request at a time; the command also pins itself to one core, so the figures are one core's. Two are reported: a
request in raw values (encoding, gathering, the program) and the same one already encoded (gathering, the program).
"""

from collections.abc import Callable
import json
import os
import sys
import time
from typing import Any

from absl import flags
import numpy as np
import pyarrow as pa

from recjax import command
from recjax.data.loading.batches import Assembler, Layout
from recjax.schema import Feature
from recjax.serving import artifact as artifacts
from recjax.serving.scorer import Scorer

_NOW = 1_700_000_000


def measure(
    artifact: str | artifacts.Artifact,
    candidates: int = 100,
    requests: int = 300,
    *,
    function: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """Times `requests` requests after compiling and 10 unmeasured ones.

    Args:
      artifact: Its directory, or a loaded one; with vocabularies.
      candidates: Of each request.
      requests: How many.
      function: Of the artifact.
      seed: Of the made-up values.

    Returns:
      p50_ms and p99_ms of raw requests, encoded_p50_ms and encoded_p99_ms of encoded ones, and what was measured.
    """
    loaded = artifact if isinstance(artifact, artifacts.Artifact) else artifacts.load(artifact)
    scorer = Scorer(loaded, function, requests=[1], candidates=[candidates])
    rng = np.random.default_rng(seed)
    values = {s: loaded.vocabulary(s)["value"].to_numpy() for s in loaded.manifest["vocab"]}
    made = [columns(scorer, values, candidates, rng) for _ in range(requests + 10)]
    parts = [scorer.encoder.encode(c) for c in made]
    assembler = Assembler(Layout(scorer.schema, 1, scorer.history, candidates))
    raw = times(lambda c: scorer.score_part(scorer.encoder.encode(c)), made)
    encoded = times(scorer.score, [assembler.build([p]) for p in parts])
    return {
        "p50_ms": percentile(raw, 50),
        "p95_ms": percentile(raw, 95),
        "p99_ms": percentile(raw, 99),
        "encoded_p50_ms": percentile(encoded, 50),
        "encoded_p99_ms": percentile(encoded, 99),
        "requests": requests,
        "candidates": candidates,
        "history": scorer.history,
        "rows": next((t.format for t in loaded.tables.values()), ""),
        "stamp": loaded.stamp[:12],
    }


def columns(
    scorer: Scorer, values: dict, candidates: int, rng: np.random.Generator
) -> dict[str, pa.Array]:
    """A made-up request in raw values, as columns of one row."""
    sizes = {"B": None, "C": candidates}
    out = {"time": pa.array([_NOW])}
    for name, length in scorer.history.items():
        out[f"{name}/time"] = pa.array([np.sort(_NOW - rng.integers(1, 10**7, length))])
        sizes[name] = length
    for f in scorer.schema.features:
        size = sizes[f.list or f.axes[-1]]
        drawn = _draw(f, values, size or 1, rng)
        out[f.name] = pa.array(drawn if size is None else [drawn])
    return out


def _draw(f: Feature, values: dict, n: int, rng: np.random.Generator) -> list:
    shape = (n, f.multi or f.vector) if f.multi or f.vector else (n,)
    return (
        rng.choice(values[f.id_space], shape) if f.kind == "id" else rng.exponential(size=shape)
    ).tolist()


def times(call: Callable, arguments: list, warm: int = 10) -> np.ndarray:
    """Milliseconds of each call after the first `warm`."""
    out = []
    for argument in arguments:
        start = time.perf_counter()
        call(argument)
        out.append(time.perf_counter() - start)
    return 1e3 * np.array(out[warm:])


def percentile(ms: np.ndarray, q: int) -> float:
    return round(float(np.percentile(ms, q)), 3)


def main(_) -> None:
    if hasattr(os, "sched_setaffinity"):  # before JAX counts cores for its thread pool
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    try:
        result = measure(
            _ARTIFACT.value, _CANDIDATES.value, _REQUESTS.value, function=_FUNCTION.value
        )
    except artifacts.ArtifactError as e:
        sys.exit(f"error: {e}")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    _ARTIFACT = flags.DEFINE_string("artifact", None, "directory of the artifact", required=True)
    _CANDIDATES = flags.DEFINE_integer("candidates", 100, "candidates a request", lower_bound=1)
    _REQUESTS = flags.DEFINE_integer("requests", 300, "requests to time", lower_bound=1)
    _FUNCTION = flags.DEFINE_string(
        "function", "", "function of the artifact; default: score, or the only one"
    )
    command.run(main)
