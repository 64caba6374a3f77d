"""Sets that come as sequences without times: who took what after what, and rows that ask for what comes next.

Time is the place in the sequence, in seconds from 0: the order holds, ages count events. A row's history is a *prefix* of
one sequence, so the sequences are stored once and the loader cuts them; that is what `recjax.data.prepared` stores anyway.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np
import polars as pl

from recjax.data import histories, negatives
from recjax.data.histories import Timeline


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Sequences of items, one after the other.

    Attributes:
      item: Of each event, [E].
      length: Of each sequence, int64 [S].
    """

    item: pl.Series
    length: np.ndarray

    @classmethod
    def of(cls, lists: pl.Series) -> "Sequences":
        """From a column of lists [S]."""
        length = lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()
        return cls(lists.filter(pl.Series(length) > 0).explode(), length)

    @property
    def owner(self) -> np.ndarray:
        """Sequence of each event, int64 [E]."""
        return np.repeat(np.arange(len(self.length)), self.length)

    @property
    def place(self) -> np.ndarray:
        """Place of each event in its sequence, from 0, int64 [E]."""
        return np.arange(len(self.item)) - np.repeat(
            np.cumsum(self.length) - self.length, self.length
        )

    def timelines(self, fields: Mapping[str, np.ndarray], partitions: int = 1) -> list[Timeline]:
        """Of the events, with aligned columns [E]; sequences are what users are elsewhere."""
        return histories.build_timelines(
            self.owner, self.place, fields, len(self.length), partitions
        )


@dataclasses.dataclass(frozen=True)
class Rows:
    """Requests for what follows a prefix.

    Attributes:
      sequence: Number of the sequence, int64 [N].
      after: Length of the prefix that is its history, int64 [N].
      item: The candidate, [N].
      label: 1 where it is what came next, float32 [N].
      request: Rows with the same number belong together, int64 [N].
      log_q: Log-probability of a draw, float32 [N], where negatives are drawn.
    """

    sequence: np.ndarray
    after: np.ndarray
    item: pl.Series
    label: np.ndarray
    request: np.ndarray
    log_q: np.ndarray | None = None

    def columns(self, timelines: Sequence[Timeline], user: np.ndarray) -> dict[str, np.ndarray]:
        """What `write_prepared` takes, but for the features; `user` int64 [N] is the group."""
        cut = histories.cutoffs(timelines, self.sequence, self.after)
        out = {"history/end": cut["end"], "history/count": cut["count"]}
        out |= {"partition": cut["partition"], "time": self.after, "request": self.request}
        out |= {"user": user, "label": self.label}
        return out if self.log_q is None else out | {"log_q": self.log_q}


def with_negatives(
    positive: Rows, catalogue: pl.Series, kind: str, k: int, seed: Sequence[int]
) -> Rows:
    """Positives of known items, and k drawn negatives for each.

    Args:
      positive: What was taken.
      catalogue: Items taken in training, with repetitions.
      kind: "popular" or "uniform".
      k: Negatives per positive.
      seed: Of the draws.
    """
    values = catalogue.unique().sort()
    known = np.flatnonzero(positive.item.is_in(values.implode()).to_numpy())
    c = negatives.Catalogue.of(values.search_sorted(catalogue).cast(pl.Int64).to_numpy(), kind)
    item = values.search_sorted(positive.item.gather(known)).cast(pl.Int64).to_numpy()
    owner, drawn = negatives.draw(np.random.default_rng(seed), c, positive.request[known], item, k)
    at, items = np.concatenate([known, known[owner]]), np.concatenate([item, drawn])
    return Rows(
        positive.sequence[at],
        positive.after[at],
        values.gather(items),
        (np.arange(len(at)) < len(known)).astype(np.float32),
        positive.request[at],
        c.log_q(items),
    )
