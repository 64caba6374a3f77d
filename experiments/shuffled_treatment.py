"""A trial whose arms are dealt out again: the control in which no arm does anything.

Within a batch the arms go to the rows in the order of a hash of their numbers, so that a row has (nearly) the same arm in every
epoch and false arms can be learnt by heart as well as true ones.

`--config.data.name=experiments.shuffled_treatment`, the trial's own name in `data.prepare.trial` (default hillstrom).
Effects found there, and their Qini areas, are noise.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from recjax import data
from recjax.batch import Batch


class Shuffled:
    """Batches of `inner`, with the treatment permuted among their valid rows."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __iter__(self) -> Iterator[Batch]:
        return (self._shuffled(b) for b in self.inner)

    @staticmethod
    def _shuffled(batch: Batch) -> Batch:
        pos = np.array(batch["pos"]["treatment"])
        real = np.flatnonzero(np.asarray(batch["valid"]).any(1))
        lot = np.asarray(batch["row"])[real, 0].astype(np.uint64) * 2654435761 % 2**32
        pos[real[np.argsort(lot)]] = np.sort(pos[real])
        return {**batch, "pos": {**batch["pos"], "treatment": pos}}


class ShuffledTrial:
    """A trial (recjax.data) whose batches have their treatment permuted."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def identity(self) -> dict[str, Any]:
        return {**self.inner.identity, "shuffled": "treatment"}

    def batches(self, *args: Any, **options: Any) -> Shuffled:
        return Shuffled(self.inner.batches(*args, **options))


def open_data(config: Mapping[str, Any]) -> ShuffledTrial:
    """The trial of `data.prepare.trial`, shuffled; one device."""
    options = dict(config.get("prepare", {}))
    name = options.pop("trial", "hillstrom")
    return ShuffledTrial(data.open_data({**config, "name": name, "prepare": options}))
