"""Sets that come as sequences without times: who took what after what, and rows that ask for what comes next.

`next_item` prepares those that hold nothing but sequences: an event that has others before it is a positive, and negatives
are drawn for it as for anybody's own log (`recjax.data.logs.negatives`). Time is the place in the sequence, in seconds from 0: the order holds, ages count events. A row's history is a *prefix* of
one sequence, so the sequences are stored once and the loader cuts them; that is what `recjax.data.store.prepared` stores anyway.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import pathlib

import numpy as np
import polars as pl

from recjax.data.logs import negatives
from recjax.data.logs.features import LOG_Q
from recjax.data.sets.published import Job
from recjax.data.store import histories
from recjax.data.store.histories import Timeline
from recjax.data.store.vocabulary import Vocabulary
from recjax.schema import MISSING, Feature, Schema


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

    def rows(self, events: np.ndarray) -> "Rows":
        """The positives that events [N] are: what was taken after those before it."""
        one = np.ones(len(events), np.float32)
        item = self.item.gather(pl.Series(events))
        return Rows(self.owner[events], self.place[events], item, one, events)

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
        return out if self.log_q is None else out | {LOG_Q: self.log_q}


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


def next_item(
    job: Job,
    sequences: Sequences,
    user: pl.Series,
    positive: Mapping[str, Rows],
    catalogue: pl.Series,
    items: pl.DataFrame,
    *,
    kind: str,
    k: int,
    min_count: int,
    seed: int,
    partitions: int,
    described: Mapping[str, pl.DataFrame] | None = None,
) -> pathlib.Path:
    """Prepares sequences as positives and drawn negatives.

    Args:
      job: Of the reader.
      sequences: All of them.
      user: Of each sequence.
      positive: split -> what was taken.
      catalogue: Items taken in training, with repetitions: what negatives are drawn from.
      items: "item" and columns that are categories.
      kind, k: Of negatives, and how many for each positive.
      min_count: Admission of items, by `catalogue`.
      seed: Of the draws.
      partitions: Of the sequences.
      described: See `Job.write`.
    """
    trained = user.gather(pl.Series(positive["train"].sequence))
    v = {"user": Vocabulary.build("user", trained)}
    v["item"] = Vocabulary.build("item", catalogue, min_count)
    v |= {c: Vocabulary.build(c, items[c]) for c in items.columns if c != "item"}
    values = {c: v[c].encode(items[c]) for c in items.columns}
    values = {c: np.append(x, np.int32(MISSING)) for c, x in values.items()}  # of no such item
    rows_of = pl.int_range(items.height, eager=True)
    place = lambda x: x.replace_strict(items["item"], rows_of, default=items.height).to_numpy()  # noqa: E731
    at = place(sequences.item)
    timelines = sequences.timelines({f"history_{c}": x[at] for c, x in values.items()}, partitions)
    drawn = {
        split: with_negatives(rows, catalogue, kind, k, [seed, i])
        for i, (split, rows) in enumerate(positive.items())
    }
    groups = user.rank("dense").cast(pl.Int64).to_numpy()

    def columns(rows: Rows) -> dict[str, np.ndarray]:
        mine = user.gather(pl.Series(rows.sequence))
        out = rows.columns(timelines, groups[rows.sequence])
        out |= {c: x[place(rows.item)] for c, x in values.items()}
        return out | {"user_id": v["user"].encode(mine)}

    found = {
        split: {
            "rows": len(rows.label),
            "positives": int(rows.label.sum()),
            "outside_catalogue": len(positive[split].label) - int(rows.label.sum()),
        }
        for split, rows in drawn.items()
    }
    report = {
        "users": user.n_unique(),
        "events": len(sequences.item),
        "items": sequences.item.n_unique(),
        "splits": found,
        "vocabularies": {name: len(x.values) for name, x in v.items()},
    }
    return job.write(
        _schema(v, items.columns),
        {"history": timelines},
        {split: functools.partial(columns, rows) for split, rows in drawn.items()},
        v,
        report,
        {"negatives": kind},
        described,
    )


def _schema(v: Mapping[str, Vocabulary], fields: Sequence[str]) -> Schema:
    """User, candidate, the same columns of the events, the label and the log-probability of a draw."""
    return Schema(
        id_spaces=tuple(x.space for x in v.values()),
        features=(
            Feature("user_id", "profile", "user"),
            *(Feature(c, "candidate", c) for c in fields),
            *(Feature(f"history_{c}", "history", c, list="history") for c in fields),
            Feature("label", "label"),
            Feature(LOG_Q, "label"),
        ),
        groups=("request", "user"),
    )
