"""One artifact, loaded and warm: what the service switches between."""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import re
import time
from typing import Any

import numpy as np

from recjax.evaluation.probability import probability_names
from recjax.serving import artifact as artifacts
from recjax.serving import bodies, prefix
from recjax.serving.artifact import ArtifactError
from recjax.serving.counters import Counters
from recjax.serving.own_log import OwnCounters, OwnLog
from recjax.serving.prefix import PrefixCache
from recjax.serving.requests import RequestError
from recjax.serving.scorer import Scorer


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A scorer and the bodies that fit it; hashed by identity, so that no batch mixes two.

    Attributes:
      buckets: Of candidates.
      counters: As of the artifact's snapshot, those of the features the model reads; None without any.
      prefix: For requests that stand on stored events; None where the artifact has no such functions.
      own: Of an own log's model: what requests may leave out; None for others.
    """

    scorer: Scorer
    bodies: bodies.Bodies
    buckets: tuple[int, ...]
    counters: Counters | None = None
    prefix: PrefixCache | None = None
    own: OwnLog | None = None

    @property
    def stamp(self) -> str:
        return self.scorer.artifact.stamp

    @property
    def name(self) -> str:
        """Of the experiment that made it, as far as a path can hold it; "default" for none."""
        made = self.scorer.artifact.manifest["made_by"].get("experiment", "")
        return re.sub(r"[^A-Za-z0-9._-]", "_", made) or "default"

    def bucket(self, candidates: int) -> int:
        return next(b for b in self.buckets if b >= candidates)

    def score(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, list] | RequestError]:
        """Outputs and probabilities of each request (`ScoreRequest.values`, complete), or why it has none."""
        try:
            out, counts = self._outputs(requests)
        except RequestError as e:
            return [e] if len(requests) == 1 else [self.score([r])[0] for r in requests]
        out |= {
            p: self.scorer.probability(out[n])
            for n, p in probability_names(self.scorer.logits).items()
        }
        cuts = np.cumsum(counts)[:-1]
        split = {
            n: np.split(x, cuts) if self.scorer.by_candidate(n) else list(x) for n, x in out.items()
        }
        return [_finite({n: x[i] for n, x in split.items()}) for i in range(len(requests))]

    def _outputs(self, requests: Sequence[Mapping[str, Any]]) -> tuple[dict, np.ndarray]:
        if self.prefix and all(prefix.KEY in r for r in requests):
            return self.prefix.score(requests, self.bodies.columns)
        part = self.scorer.encoder.encode(self.bodies.columns(requests))
        return self.scorer.score_part(part), part.counts

    def looked_up(self) -> tuple[Counter, Counter]:
        """Feature -> values looked up so far, and how many of them were unknown."""
        scorers = [self.scorer]
        if self.prefix:
            scorers += [self.prefix.prefix, self.prefix.candidates]
        seen = sum((s.encoder.seen for s in scorers), Counter())
        return seen, sum((s.encoder.unknown for s in scorers), Counter())


def _finite(out: dict[str, np.ndarray]) -> dict[str, list] | RequestError:
    for name, x in out.items():
        if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
            return RequestError(
                f"the model's {name!r} is not finite for this request; some number in it is far from any "
                "seen in training: check the dense features"
            )
    return {n: x.tolist() for n, x in out.items()}


def load(
    path: str | os.PathLike,
    *,
    function: str = "",
    requests: Sequence[int],
    candidates: Sequence[int],
    prefix_bytes: int = 0,
    max_events: int = 1000,
) -> Model:
    """Loads, verifies and compiles an artifact.

    Args:
      path: Its directory.
      function: Its name; "" takes "score", or the only one there is.
      requests, candidates: Bucket sizes.
      prefix_bytes: Of the prefix cache; 0 leaves it out.
      max_events: Of one list, in a request.

    Raises:
      ArtifactError: It cannot be served. A directory replaced meanwhile is read again.
    """
    path = pathlib.Path(path)
    for attempt in range(5):
        here = path.resolve()  # `path` may be a link that is pointed elsewhere
        before = stamp(here)
        try:
            model = _load(here, function, requests, candidates, prefix_bytes, max_events)
        except ArtifactError:
            if attempt == 4 or (before and stamp(path) == before):
                raise
            time.sleep(0.05)  # replaced while it was read
            continue
        # Vocabularies and the check are read lazily: they must come from the export that the rest came from.
        if stamp(here) == model.stamp:
            return model
    raise ArtifactError(f"{path} changes faster than it can be loaded; publish less often")


def _load(
    path: pathlib.Path, function: str, requests, candidates, prefix_bytes, max_events
) -> Model:
    scorer = Scorer(artifacts.load(path), function, requests=requests, candidates=candidates)
    for name, x in scorer.artifact.check.items():
        if "/out/" in name and not np.isfinite(x).all():
            raise ArtifactError(f"{path}: {name.split('/out/')[1]!r} is not finite; train again")
    kinds = bodies.kinds(scorer.artifact, scorer.schema)
    counters, own = _counters(scorer), None
    if scorer.artifact.own:
        own = OwnLog(**scorer.artifact.own, schema=scorer.schema)
        counters = OwnCounters(own, counters, scorer.artifact.manifest["snapshot"]["until"])
    model = Model(
        scorer,
        bodies.Bodies(scorer.schema, kinds, max(candidates), counters, max_events, own),
        tuple(sorted(candidates)),
        counters,
        _prefix_cache(scorer, requests, candidates, prefix_bytes),
        own,
    )
    model.looked_up()  # builds the vocabularies' look-ups now, not in the first request
    scorer.warm()
    if model.prefix:
        model.prefix.warm()
    return model


def _counters(scorer: Scorer) -> Counters | None:
    stored = scorer.artifact.counters
    if stored is None:
        return None
    features = {f.name for f in scorer.schema.features}
    counters = stored.restricted({*features, "time"}, features)
    return counters if counters.specs else None


def _prefix_cache(scorer: Scorer, requests, candidates, limit_bytes: int) -> PrefixCache | None:
    made, functions = scorer.artifact, scorer.artifact.functions
    if (
        not limit_bytes
        or scorer.function != "score"
        or not {"prefix", "candidates"} <= set(functions)
    ):
        return None
    # Compiled alike, so that any batch of the service fits.
    first = Scorer(made, "prefix", requests=requests, candidates=(1,))
    second = Scorer(made, "candidates", requests=requests, candidates=candidates)
    return PrefixCache(first, second, limit_bytes)


def stamp(path: str | os.PathLike) -> str:
    """Of the artifact that lies at a path now, as its manifest says; "" for none that can be read."""
    try:
        return json.loads((pathlib.Path(path) / "manifest.json").read_bytes())["stamp"]
    except (OSError, KeyError, ValueError):
        return ""
