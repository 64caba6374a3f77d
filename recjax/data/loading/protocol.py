"""What the training loop asks of data: `Data`, and the `Batches` it gives. Any class with these members will do.

`recjax.data.loading.loader.PreparedData` is the one of prepared directories. One that is there says more: `prepared`, `report`,
`history`, and `vectors(space)` for id spaces whose rows begin from vectors.
"""

from collections.abc import Generator, Mapping, Sequence
import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from recjax.batch import Batch
from recjax.data.loading.layout import BatchError, Capacity
from recjax.schema import Schema

if TYPE_CHECKING:
    import polars as pl


@dataclasses.dataclass(frozen=True)
class Period:
    """After `step` batches of a stream the next impressions are those with begin <= time < end."""

    step: int
    begin: int
    end: int

    def __str__(self) -> str:
        return f"{np.datetime64(self.begin, 's')}/{np.datetime64(self.end, 's')}"


class Batches(Protocol):
    """A resumable stream of batches. Iterating builds them, from the `start` that was asked for.

    Attributes:
      examples: Impressions in the whole stream, over all epochs and processes.
      levels: Capacities of the unique-id lists, small to large: the shapes a step is compiled for. Empty: one shape.
      periods: Of a stream in time (`online`): where a period ends, and which comes next.
    """

    @property
    def examples(self) -> int: ...
    @property
    def levels(self) -> Sequence[Capacity]: ...
    @property
    def periods(self) -> Sequence[Period]: ...

    def __len__(self) -> int:
        """Batches of the whole stream, whatever `start` is."""

    def __iter__(self) -> Generator[Batch, None, None]:
        """Closing it ends what builds batches."""


class Data(Protocol):
    """A data set as the training loop reads it.

    Attributes:
      schema: Of the batches.
      identity: Name, version, options and hash of the data; JSON values.
      splits: Split -> its number of impressions.
    """

    @property
    def schema(self) -> Schema: ...
    @property
    def identity(self) -> Mapping[str, Any]: ...
    @property
    def splits(self) -> Mapping[str, int]: ...

    def vocabulary(self, space: str) -> "pl.DataFrame":
        """Columns value, id and count of an id space."""

    def vocabulary_hash(self, space: str) -> str:
        """Same hash, same rows: a checkpoint's tables fit. "" for a space without a vocabulary."""

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        start: int = 0,
        examples: int = 0,
        recent: int = 0,
        recent_days: float = 0.0,
        period: tuple[int, int] | None = None,
        online: str = "",
        buckets: Sequence[int] = (),
        epochs: int = 1,
        shards: int = 1,
        workers: int = 0,
        shuffle_seed: int | None = None,
        levels: Sequence[Capacity] = (),
    ) -> Batches:
        """Batches of a split. A source takes every option, and refuses (`refuse`) those it cannot honour.

        Args:
          split: One of `splits`.
          batch_size: Requests in a global batch; the last batch of an epoch is filled up with
            valid=False.
          start: First batch to build: to resume, the number of batches already taken.
          examples: Only the first so many impressions of the split (0: all).
          recent: Only its latest so many (0: all), in stored order; `examples` is a prefix of these.
          recent_days: Only those of its last so many days (0: all).
          period: Only those with begin <= request time < end, seconds.
          online: "1d", "6h", ...: period after period, in time; within one, stored order and all epochs.
          buckets: History lengths below `history`; a batch then holds requests of one bucket, padded to its
            length only. Batches of the buckets alternate evenly.
          epochs: Passes over them.
          shards: Device shards of the global batch, each with its own unique ids.
          workers: Worker processes (0: a thread of this one). Changes nothing in the stream.
          shuffle_seed: Of the order of the second and later epochs; None keeps the stored order.
          levels: Capacities, small to large, for instance those of another stream; none: derived
            from the data.

        Raises:
          BatchError: The sizes do not divide, `start` is past the end, or an option that this source cannot honour is
            set.
        """


def refuse(source: str, **options: Any) -> None:
    """Raises BatchError when one of the options is set, of those that `source` cannot honour."""
    given = [name for name, value in options.items() if value]
    if given:
        raise BatchError(f"{source} cannot read by {given[0]}={options[given[0]]!r}; leave it out")
