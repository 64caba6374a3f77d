"""One artifact, loaded and warm: what the service switches between."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import time
from typing import Any

import numpy as np

from recjax.serving import artifact as artifacts
from recjax.serving import bodies
from recjax.serving.artifact import ArtifactError
from recjax.serving.requests import RequestError
from recjax.serving.scorer import Scorer, probability_names


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A scorer and the bodies that fit it; hashed by identity, so that no batch mixes two."""

    scorer: Scorer
    bodies: bodies.Bodies
    buckets: tuple[int, ...]  # of candidates

    @property
    def stamp(self) -> str:
        return self.scorer.artifact.stamp

    def bucket(self, candidates: int) -> int:
        return next(b for b in self.buckets if b >= candidates)

    def score(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, list] | RequestError]:
        """Outputs and probabilities of each request (`ScoreRequest.values`, complete), or why it has none."""
        try:
            part = self.scorer.encoder.encode(self.bodies.columns(requests))
        except RequestError as e:
            return [e] if len(requests) == 1 else [self.score([r])[0] for r in requests]
        out = self.scorer.score_part(part)
        out |= {
            p: self.scorer.probability(out[n])
            for n, p in probability_names(self.scorer.logits).items()
        }
        cuts = np.cumsum(part.counts)[:-1]
        split = {
            n: np.split(x, cuts) if self.scorer.by_candidate(n) else list(x) for n, x in out.items()
        }
        return [_finite({n: x[i] for n, x in split.items()}) for i in range(len(requests))]


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
) -> Model:
    """Loads, verifies and compiles an artifact.

    Raises:
      ArtifactError: It cannot be served. A directory replaced meanwhile is read again.
    """
    path = pathlib.Path(path)
    for attempt in range(5):
        here = path.resolve()  # `path` may be a link that is pointed elsewhere
        before = _stamp(here)
        try:
            model = _load(here, function, requests, candidates)
        except ArtifactError:
            if attempt == 4 or (before and _stamp(path) == before):
                raise
            time.sleep(0.05)  # replaced while it was read
            continue
        # Vocabularies and the check are read lazily: they must come from the export that the rest came from.
        if _stamp(here) == model.stamp:
            return model
    raise ArtifactError(f"{path} changes faster than it can be loaded; publish less often")


def _load(path: pathlib.Path, function: str, requests, candidates) -> Model:
    scorer = Scorer(artifacts.load(path), function, requests=requests, candidates=candidates)
    for name, x in scorer.artifact.check.items():
        if "/out/" in name and not np.isfinite(x).all():
            raise ArtifactError(f"{path}: {name.split('/out/')[1]!r} is not finite; train again")
    kinds = bodies.kinds(scorer.artifact, scorer.schema)
    model = Model(
        scorer, bodies.Bodies(scorer.schema, kinds, max(candidates)), tuple(sorted(candidates))
    )
    assert (
        scorer.encoder is not None
    )  # builds the vocabularies' look-ups now, not in the first request
    scorer.warm()
    return model


def _stamp(path: pathlib.Path) -> str:
    try:
        return json.loads((path / "manifest.json").read_bytes())["stamp"]
    except (OSError, KeyError, ValueError):
        return ""
