"""A trial whose arms are dealt out again: the control in which no arm does anything.

Within a batch the arms go to the rows in the order of a hash of their numbers, so that a row has (nearly) the same arm in every
epoch and false arms can be learnt by heart as well as true ones.

`--config.data.name=experiments.shuffled_treatment`, the trial's own name in `data.prepare.trial` (default hillstrom).
Effects found there, and their Qini areas, are noise.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from recjax import data


class Shuffled:
    """Batches of `inner` with the treatment permuted among their valid rows."""

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
        lot = np.asarray(batch["row"])[real, 0].astype(np.uint64) * 2654435761 % 2**32
        pos[real[np.argsort(lot)]] = np.sort(pos[real])
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
