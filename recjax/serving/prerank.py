"""Pre-ranking: the best k of up to 100,000 stored items for one user.

    python -m recjax.serving.prerank --artifact=DIR --request=request.json --k=100 [--candidates=items.txt]

For models whose artifact has the functions `item` (stored for the whole catalogue, recjax.serving.catalogue), `request` and
`candidates`, as TARQ's has: the request is encoded once, every candidate costs a few look-ups in what that gave. The
request is `POST /v1/score`'s without candidates; one that names a `user` and brings no history is scored on the user's in the
artifact's snapshot. `--candidates` names a file with an item's raw value a line; without it the whole catalogue is ranked.

Prints one JSON object: the artifact's stamp and the items, best first, with logits and probabilities.
"""

from collections.abc import Mapping, Sequence
import functools
import json
import pathlib
import sys
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from recjax import command
from recjax.runtime.run import set_up
from recjax.schema import NUM_RESERVED
from recjax.serving import artifact as artifacts
from recjax.serving.artifact import Artifact, ArtifactError
from recjax.serving.catalogue import KEY
from recjax.serving.requests import RequestError, Vocabulary
from recjax.serving.scorer import Scorer

LIMIT = 100_000  # candidates of a request
STEP = 2048  # above this candidates are padded to a multiple of it, below to a power of two
FUNCTIONS = ("item", "request", "candidates")


class Preranker:
    """Ranks stored items, from several threads if need be.

    Args:
      artifact: With the functions `item`, `request`, `candidates` and the stored items.
      chunk: Candidates scored at a time; 0: all at once. Smaller pieces stay in the cache where a candidate is large.

    Attributes:
      keys: Ids of the stored items, ascending, int32 [V].
      feature: Whose ids they are.

    Raises:
      ArtifactError: The artifact cannot be used for this; the message says what is missing.
    """

    def __init__(self, artifact: Artifact, *, chunk: int = 0):
        for name in FUNCTIONS:
            if name not in artifact.functions:
                raise ArtifactError(
                    f"{artifact.path} has no function {name!r}; pre-ranking wants a model that exports "
                    f"{', '.join(FUNCTIONS)}, such as tarq"
                )
        key = next((n for n in artifact.derived if n.startswith(KEY)), "")
        if not key:
            raise ArtifactError(
                f"{artifact.path} holds no stored items; export it again with python -m recjax.serving.export"
            )
        self.artifact, self.chunk = artifact, chunk
        self.feature, self.keys = key.removeprefix(KEY), artifact.derived[key]
        self.request = Scorer(artifact, "request", requests=[1], candidates=[1])
        about = artifact.manifest["functions"]["candidates"]
        self._axes = {
            n: about["inputs"][n]["shape"].index("c") - 1
            for n in about["inputs"]
            if n.startswith("item/")
        }
        self._store = {n: artifact.derived[n] for n in self._axes}
        self._parameters = jax.device_put({n: artifact.parameters[n] for n in about["parameters"]})
        self._program = jax.jit(self._run, static_argnames="k")

    @functools.cached_property
    def _all(self) -> dict[str, jax.Array]:
        """The whole catalogue on the device, padded."""
        more = padded_size(len(self.keys)) - len(self.keys)
        return jax.device_put({n: _pad(x, self._axes[n], more) for n, x in self._store.items()})

    def _some(self, at: np.ndarray) -> dict[str, np.ndarray]:
        """Some items, padded; NumPy copies whole rows, where XLA:CPU would gather each number (3 x slower)."""
        more = padded_size(len(at)) - len(at)
        padded = np.concatenate([at, np.zeros(more, at.dtype)])
        return {n: np.take(x, padded, self._axes[n]) for n, x in self._store.items()}

    def _run(self, parameters, request, items, count, k):
        """Logits and places of the best k of `items`, of which the first `count` are real."""
        call = self.artifact.functions["candidates"].call

        def score(items):
            return call(parameters, {}, {**request, **{n: x[None] for n, x in items.items()}})[
                "logits"
            ][0]

        name, axis = next(iter(self._axes.items()))
        size = items[name].shape[axis]
        if self.chunk and size > self.chunk and size % self.chunk == 0:

            def piece(i):
                cut = jax.lax.dynamic_slice_in_dim
                return score(
                    {n: cut(x, i * self.chunk, self.chunk, self._axes[n]) for n, x in items.items()}
                )

            logits = jax.lax.map(piece, jnp.arange(size // self.chunk)).reshape(-1)
        else:
            logits = score(items)
        return jax.lax.top_k(jnp.where(jnp.arange(size) < count, logits, -jnp.inf), k)

    def encode(self, request: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What a raw request costs once: outputs of `request`, for `top`."""
        encoder = self.request.encoder
        return self.request.score_part(encoder.encode(encoder.columns([request])))

    def top(
        self, encoded: Mapping[str, np.ndarray], k: int, at: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best k: places among the stored items int32 [k], best first, and their logits float32 [k].

        Args:
          encoded: From `encode`.
          k: At most as many as there are candidates.
          at: Candidates, places among the stored items [N]; None: all of them.
        """
        n = len(self.keys if at is None else at)
        if not 0 < k <= n <= LIMIT:
            raise RequestError(
                f"{n} candidates and k={k}: give 1 to {LIMIT} candidates and a k up to their number"
            )
        items = self._all if at is None else self._some(np.asarray(at, np.int32))
        request = {f"request/{n}": x for n, x in encoded.items()}
        logits, best = self._program(self._parameters, request, items, np.int32(n), k=k)
        best = np.asarray(best)
        return (best if at is None else np.asarray(at, np.int32)[best]), np.asarray(logits)

    def places(self, values: Sequence[Any]) -> np.ndarray:
        """Where items of these raw values are stored, int32 [N].

        Raises:
          RequestError: One is not in the catalogue.
        """
        ids = self._vocabulary.encode(self.feature, pa.array(values))
        at = np.minimum(np.searchsorted(self.keys, ids), len(self.keys) - 1)
        gone = np.flatnonzero((self.keys[at] != ids) | (ids < NUM_RESERVED))
        if len(gone):
            raise RequestError(
                f"{self.feature} {values[gone[0]]!r} (candidate {gone[0]}, and {len(gone) - 1} more) is not among the "
                f"{len(self.keys)} stored items; leave it out, or export with data that has it"
            )
        return at.astype(np.int32)

    def values(self, at: np.ndarray) -> list:
        """Raw values of stored items; None of one the vocabulary does not name."""
        frame = self._frame
        names = dict(zip(frame["id"].to_list(), frame["value"].to_list(), strict=True))
        return [names.get(int(i)) for i in self.keys[at]]

    @functools.cached_property
    def _frame(self):
        space = self.artifact.schema.feature(self.feature).id_space
        return self.artifact.vocabulary(space)

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._frame["value"].to_arrow(), self._frame["id"].to_numpy())


def _pad(x: np.ndarray, axis: int, more: int) -> np.ndarray:
    """x with `more` zeros at the end of an axis."""
    return np.pad(x, [(0, more * (i == axis)) for i in range(x.ndim)])


def padded_size(n: int) -> int:
    """A power of two, or a multiple of `STEP`: at most 60 programs up to `LIMIT`."""
    return max(16, 1 << (n - 1).bit_length()) if n <= STEP else -(-n // STEP) * STEP


def complete(preranker: Preranker, request: Mapping[str, Any]) -> dict[str, Any]:
    """The request with the time, and the stored history of the user it names where it brings none."""
    request = {"time": int(time.time()), **request}
    history = dict(request.get("history") or {})
    for name, length in preranker.request.history.items():
        past = preranker.artifact.past.get(name)
        if name not in history and past is not None and "user" in request:
            fields = [f.name for f in preranker.request.schema.features if f.list == name]
            user = str(request["user"])
            history[name] = past.read(user, ["time", *fields], request["time"], length)
    return {**request, "history": history}


def answer(
    preranker: Preranker, request: Mapping[str, Any], k: int, candidates: Sequence | None = None
) -> dict[str, Any]:
    """The best k of `candidates` (raw values; None: the catalogue), JSON values."""
    at = None if candidates is None else preranker.places(candidates)
    best, logits = preranker.top(preranker.encode(complete(preranker, request)), k, at)
    rows = zip(
        preranker.values(best),
        logits.tolist(),
        preranker.request.probability(logits).tolist(),
        strict=True,
    )
    names = (preranker.feature, "logit", "probability")
    return {
        "stamp": preranker.artifact.stamp,
        "candidates": len(preranker.keys if at is None else at),
        "items": [dict(zip(names, row, strict=True)) for row in rows],
    }


def read_values(path: str, preranker: Preranker) -> list:
    """Raw item values, one a line, as the vocabulary holds them (whole numbers or text)."""
    lines = [line for line in pathlib.Path(path).read_text().splitlines() if line]
    if preranker._vocabulary.kind != "integer":
        return lines
    try:
        return [int(line) for line in lines]
    except ValueError as e:
        raise RequestError(f"{path}: items are whole numbers, one a line ({e})") from e


def main(_) -> None:
    set_up()
    try:
        preranker = Preranker(artifacts.load(_ARTIFACT.value))
        text = (
            sys.stdin.read() if _REQUEST.value == "-" else pathlib.Path(_REQUEST.value).read_text()
        )
        wanted = read_values(_CANDIDATES.value, preranker) if _CANDIDATES.value else None
        print(json.dumps(answer(preranker, json.loads(text), _K.value, wanted), indent=1))
    except json.JSONDecodeError as e:
        sys.exit(f"error: {_REQUEST.value} is no JSON ({e})")
    except (ArtifactError, RequestError, OSError) as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    _ARTIFACT = flags.DEFINE_string("artifact", None, "directory of the artifact", required=True)
    _REQUEST = flags.DEFINE_string(
        "request", "-", "JSON file with the request; - is standard input"
    )
    _CANDIDATES = flags.DEFINE_string(
        "candidates", "", "file of raw item values; '': the catalogue"
    )
    _K = flags.DEFINE_integer("k", 100, "items to return", lower_bound=1)
    command.run(main)
