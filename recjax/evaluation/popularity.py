"""How far candidates can be told apart by popularity alone: what any model should be held against.

The score of a candidate is how often its id occurs in the training period, which vocabularies say. Batches are looked at on
their way to an evaluation, so it costs no reading. `python -m experiments.baselines.popularity` counts positives or
purchases instead, and says more of them.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from recjax.batch import Batch
from recjax.metrics.classification import auc
from recjax.schema import Feature, Schema


class Popularity:
    """AUC of popularity on a split, from the batches that pass through `watch`.

    Args:
      data: Whose vocabularies count their values.
      label: Of the schema.
    """

    def __init__(self, data: Any, label: str):
        self._label, self._feature = label, candidate_id(data.schema)
        self._counts = None if self._feature is None else _counts(data, self._feature.id_space)
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, unchanged."""
        for batch in batches:
            if self._counts is not None and self._feature.name in batch.get("pos", {}):
                self._rows.append(self._of(batch))
            yield batch

    def _of(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(count, label, weight) of the real candidates, each [N]."""
        ids = batch["ids"][self._feature.id_space]  # [S, U]
        position = batch["pos"][self._feature.name]  # [B, C], into the ids of the row's shard
        shards = np.split(position, len(ids))
        candidate = np.concatenate([u[p] for u, p in zip(ids, shards, strict=True)])
        weight = batch["weight"] * batch["valid"]
        real = weight > 0
        return self._counts[candidate[real]], batch["label"][self._label][real], weight[real]

    def auc(self) -> float | None:
        """None where the data have no candidate id or do not count it, or a class is missing."""
        if not self._rows:
            return None
        score, label, weight = (np.concatenate(x) for x in zip(*self._rows, strict=True))
        return float(auc(score, label, weight)) if 0 < label.sum() < len(label) else None


def candidate_id(schema: Schema) -> Feature | None:
    """The id feature that names the candidate: the one of the largest vocabulary; None: there is none."""
    ids = schema.select("candidate", kind="id")
    return max(ids, key=lambda f: schema.space(f.id_space).size, default=None)


def _counts(data: Any, space: str) -> np.ndarray | None:
    """Occurrences of each id of a space, float64 [rows]; None where the data do not say."""
    try:
        frame = data.vocabulary(space)
    except (ValueError, OSError, NotImplementedError):  # a space without a vocabulary
        return None
    if "count" not in frame.columns:
        return None
    counts = np.zeros(data.schema.space(space).rows)
    counts[frame["id"].to_numpy()] = frame["count"].to_numpy()
    return counts
