"""What one shard of a log must know of the whole of it, and the answers only all shards together can give.

A user's rows lie in one shard, so histories, requests, sessions and every counter that names the user need nothing else.
What crosses users adds up over shards: vocabularies and the catalogue are sums of counts; a count of an item before a
request is the sum of the shards' counts, its recency their minimum, and an item's last row before a request the latest
of the shards' last rows. So a shard asks the others' indexes one at a time, and never holds more than one of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses

import numpy as np
import polars as pl

from recjax.data.store.histories import NEVER, Clock, Counter, CounterIndex
from recjax.data.store.vocabulary import Vocabulary

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Whole:
    """Of all shards.

    Attributes:
      partition: This shard's number.
      partitions: How many there are.
      begins: Time each split after the first begins at, seconds.
      values: "item" and every column counted across users -> all its values, ascending.
      positive: Whether every row is a positive.
      vocabularies: By id space; empty while they are being counted.
      widths: Of vector fields; empty while they are being counted.
      items: (item codes, in how many training rows of the catalogue each is).
      trained: Which item codes occur in training rows, bool.
      load: Name of a saved index -> its arrays from each shard, one at a time.
    """

    partition: int
    partitions: int
    begins: tuple[int, ...]
    values: Mapping[str, pl.Series]
    positive: bool
    vocabularies: Mapping[str, Vocabulary]
    widths: Mapping[str, int]
    items: tuple[np.ndarray, np.ndarray]
    trained: np.ndarray
    load: Callable[[str], Iterator[Arrays]]

    def number(self, local: np.ndarray) -> np.ndarray:
        """A number unique among all shards from one unique in this one; `partition_users` takes it apart."""
        return local * self.partitions + self.partition


# ------------------------------------------------------------------------------------------ counters


def index_arrays(index: CounterIndex) -> Arrays:
    """What `load_index` makes the index from again."""
    dense = np.zeros(0, np.int64) if index.dense is None else index.dense
    clock = np.array([index.clock.origin, index.clock.bits, index.dense is not None])
    return {"keys": index.keys, "clock": clock, "dense": dense, "sizes": np.array(index.sizes)}


def load_index(counter: Counter, arrays: Mapping[str, np.ndarray]) -> CounterIndex:
    """The index of one shard."""
    origin, bits, has_dense = (int(x) for x in arrays["clock"])
    sizes = tuple(int(x) for x in arrays["sizes"])
    dense = arrays["dense"] if has_dense else None
    return CounterIndex(counter, sizes, Clock(origin, bits), arrays["keys"], dense)


@dataclasses.dataclass(frozen=True, eq=False)
class SharedCounter:
    """A counter across users: `CounterIndex.before` over all shards.

    Attributes:
      counter: Which keys.
      shards: Gives the shards' arrays, one at a time.
    """

    counter: Counter
    shards: Callable[[], Iterator[Arrays]]

    def before(self, requests: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Counts and ages strictly before each request, as `CounterIndex.before`."""
        count = np.zeros(len(requests["time"]), np.int32)
        recency = np.full(len(count), NEVER, np.int32)
        for arrays in self.shards():
            more, age = load_index(self.counter, arrays).before(requests)
            count += more
            np.minimum(recency, age, out=recency)
        return count, recency


# ----------------------------------------------------------------------------------------- last rows


def last_row_arrays(
    item: np.ndarray, moment: np.ndarray, place: np.ndarray, columns: Mapping[str, np.ndarray]
) -> Arrays:
    """An index of rows by item: columns [N, ...] in the order of (item, moment, place in the log)."""
    order = np.lexsort((place, moment, item))
    out = {"item": item, "moment": moment, "place": place}
    out |= {f"column/{name}": x for name, x in columns.items()}
    return {name: x[order] for name, x in out.items()}


def find_last_rows(
    shards: Callable[[], Iterator[Arrays]],
    item: np.ndarray,
    time: np.ndarray,
    nowhere: Mapping[str, np.ndarray],
) -> Arrays:
    """Columns of each item's last row in a second before the request's, of any shard.

    Args:
      shards: Gives the shards' `last_row_arrays`.
      item: Codes [N].
      time: Of the requests, seconds [N].
      nowhere: column -> its value where there is no such row.
    """
    out = {name: np.repeat(np.asarray(x)[None], len(item), axis=0) for name, x in nowhere.items()}
    best = np.full(len(item), np.iinfo(np.int64).min)
    best_place = best.copy()
    for a in shards():
        if not len(a["item"]):
            continue
        clock = Clock.of(a["moment"] // 1_000_000)
        keys = clock.pack(a["item"], a["moment"] // 1_000_000)
        end = np.searchsorted(keys, clock.pack(item, time), side="left")
        at = np.maximum(end - 1, 0)
        moment, place = a["moment"][at], a["place"][at]
        later = (moment > best) | ((moment == best) & (place > best_place))
        better = (end > 0) & (a["item"][at] == item) & later
        best[better], best_place[better] = moment[better], place[better]
        for name in out:
            out[name][better] = a[f"column/{name}"][at[better]]
    return out


# -------------------------------------------------------------------------------------------- sums


def union(columns: Sequence[pl.Series]) -> pl.Series:
    """All values of some columns, ascending, nulls left out; text where the shards' types differ."""
    if len({x.dtype for x in columns}) > 1:
        columns = [x.cast(pl.String) for x in columns]
    return pl.concat(list(columns)).drop_nulls().unique().sort()


def added(counts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(values, counts) summed over shards; values ascending."""
    values, place = np.unique(np.concatenate([v for v, _ in counts]), return_inverse=True)
    total = np.zeros(len(values), np.int64)
    np.add.at(total, place, np.concatenate([n for _, n in counts]))
    return values, total
