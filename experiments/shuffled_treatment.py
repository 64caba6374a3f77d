"""A trial whose arms are dealt out again within every batch: the control in which no arm does anything.

`--config.data.name=experiments.shuffled_treatment`, the trial's own name in `data.prepare.trial` (default hillstrom).
Effects found there, and their Qini areas, are noise.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from recjax import data


class Shuffled:
    """Batches of `inner` with the treatment permuted among their valid rows, by their first row's number."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def __iter__(self):
        return (self._shuffled(b) for b in self.inner)

    @staticmethod
    def _shuffled(batch: dict) -> dict:
        pos = np.array(batch["pos"]["treatment"])
        real = np.flatnonzero(np.asarray(batch["valid"]).any(1))
        rng = np.random.default_rng(int(np.asarray(batch["row"]).max()))
        pos[real] = pos[rng.permutation(real)]
        return {**batch, "pos": {**batch["pos"], "treatment": pos}}


def open_data(config: Mapping[str, Any]):
    """The trial of `data.prepare.trial`, shuffled; one device."""
    options = dict(config.get("prepare", {}))
    name = options.pop("trial", "hillstrom")
    opened = data.open_data({**config, "name": name, "prepare": options})
    batches = opened.batches
    opened.batches = lambda *args, **kw: Shuffled(batches(*args, **kw))
    opened.identity = {**opened.identity, "shuffled": "treatment"}
    return opened
