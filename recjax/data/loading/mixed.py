"""Several sources of batches as one stream: buckets of history lengths beside each other, periods after each other.

Batch i of the stream is batch j of one source, and both numbers are known before anything is read. So the stream is as
deterministic, resumable and independent of workers as its parts are.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from recjax.batch import Batch
from recjax.data.loading.source import BatchSource


@dataclasses.dataclass(frozen=True)
class MixedSource:
    """Grain source over other sources.

    Attributes:
      sources: Of the batches; each has shapes of its own.
      schedule: (source, its batch) of every batch of the stream, int32 [n, 2].
      per_epoch: Batches in an epoch.
    """

    sources: Sequence[BatchSource]
    schedule: np.ndarray
    per_epoch: int

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, i: int) -> np.ndarray:
        source, j = self.schedule[int(i)]
        return self.sources[source][int(j)]

    def open(self, i: int, buffer: np.ndarray) -> tuple[Batch, int]:
        """Batch i of the stream from its buffer, and its capacity level."""
        return self.sources[self.schedule[i, 0]].open(i, buffer)

    @property
    def levels(self) -> tuple:
        """Of the last source: the longest histories."""
        return self.sources[-1].levels

    @property
    def lists(self) -> tuple[str, ...]:
        return self.sources[0].lists


def side_by_side(sizes: Sequence[int], epochs: int, first: int = 0) -> np.ndarray:
    """A schedule that takes sources of these sizes (batches an epoch) evenly, epoch after epoch, int32 [n, 2].

    Args:
      sizes: Batches in an epoch of each source.
      epochs: Of each source.
      first: Number of the first source.
    """
    source = np.repeat(np.arange(len(sizes)), sizes)
    j = np.concatenate([np.arange(n) for n in sizes]) if len(sizes) else source
    size = np.asarray(sizes)[source]
    order = np.lexsort((source, (j + 0.5) / np.maximum(size, 1)))
    source, j, size = source[order], j[order], size[order]
    epoch = [np.stack([first + source, e * size + j], axis=1) for e in range(epochs)]
    return np.concatenate(epoch).astype(np.int32) if epoch else np.zeros((0, 2), np.int32)
