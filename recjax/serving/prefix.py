"""The prefix cache: what a model keeps of a user's history, computed when the history changes.

An artifact whose functions are `prefix` (history and profile -> keys, values and gate sums of every block) and
`candidates` (those and the candidates -> outputs) is scored in two steps, and the first is skipped for a user whose
events and profile are those it was last done for. A new event therefore costs one prefix, at the user's next request:
the window of a history moves with every event and positions count from its end, so all rows change and nothing of the
old one can be kept exactly.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recjax.serving.scorer import Flat, Scorer

KEY = "prefix key"  # among a request's values: which prefix it stands on; requests without one are scored whole


class PrefixCache:
    """Scores requests by `prefix` and `candidates`. Called by one thread.

    Attributes:
      hits, misses: Requests so far that found their prefix, or not.
      bytes: Held now.
    """

    def __init__(self, prefix: Scorer, candidates: Scorer, limit_bytes: int):
        self.prefix, self.candidates = prefix, candidates
        self.hits = self.misses = self.bytes = 0
        self._limit = limit_bytes
        self._kept: OrderedDict[Any, Flat] = OrderedDict()

    def warm(self) -> None:
        """Verifies and compiles both functions."""
        self.prefix.warm()
        self.candidates.warm()

    def score(self, requests: Sequence[Mapping[str, Any]], columns: Any) -> tuple[Flat, np.ndarray]:
        """Outputs (see `Scorer.score_part`) and candidates of each request.

        Args:
          requests: Complete values with `KEY`.
          columns: (requests, names) -> the Arrow columns that an encoder takes.
        """
        missing = {r[KEY]: r for r in requests if r[KEY] not in self._kept}
        self.hits += sum(r[KEY] in self._kept for r in requests)
        self.misses += len(missing)
        kept = {r[KEY]: self._kept[r[KEY]] for r in requests if r[KEY] in self._kept}
        if missing:
            kept |= self._compute(list(missing.values()), columns)
        part = self.candidates.encoder.encode(columns(requests, self.candidates.encoder.names))
        caches = [kept[r[KEY]] for r in requests]
        stacked = {n: np.stack([c[n] for c in caches]) for n in caches[0]}
        for key in kept:
            if key in self._kept:
                self._kept.move_to_end(key)
        return self.candidates.score_part(part, cache=stacked), part.counts

    def _compute(self, requests: list[Mapping[str, Any]], columns: Any) -> dict[Any, Flat]:
        encoder = self.prefix.encoder
        out = self.prefix.score_part(encoder.encode(columns(requests, encoder.names)))
        made = {r[KEY]: {n: x[i].copy() for n, x in out.items()} for i, r in enumerate(requests)}
        for key, flat in made.items():
            self._kept[key] = flat
            self.bytes += sum(x.nbytes for x in flat.values())
        while self.bytes > self._limit and self._kept:
            _, old = self._kept.popitem(last=False)
            self.bytes -= sum(x.nbytes for x in old.values())
        return made
