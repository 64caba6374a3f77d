"""Vocabularies: log values to table rows.

The k-th most frequent value gets id 3 + (a * k mod (rows - 3)) with a near the golden ratio of rows - 3 and
coprime to it: a fixed bijection onto [3, rows). Ids are table rows and nothing after this permutes them, yet
frequent values are spread over contiguous row blocks as evenly as a sequence can be (three-distance theorem), so
no shard of a row-sharded table is hot.

Places k beyond the values are head-room. When a vocabulary is extended, new values take them, or the places of values
that were not seen for long; every other value keeps its place, hence its id and its row.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
import os
from typing import Any

import numpy as np
import polars as pl

from recjax.schema import (
    MISSING,
    NUM_RESERVED,
    OOV,
    IdSpace,
    SchemaError,
    multiplier,
    padded_rows,
    spread,
)

DAY = 86_400


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The admitted values of one id space.

    Attributes:
      name: Of the id space.
      values: Admitted values, by place: most frequent first, ties by value; those of later days as they came.
      counts: int64 [len(values)], their occurrences in the latest data that has them.
      rows: Table rows, padding and head-room included.
      last: int64 [len(values)], when each was last seen, seconds; None: nobody looked.
      since: int32 [len(values)], the generation (`extend`) that gave each its place; None: all from the first, 0.
    """

    name: str
    values: pl.Series
    counts: np.ndarray
    rows: int
    last: np.ndarray | None = None
    since: np.ndarray | None = None

    @classmethod
    def build(
        cls,
        name: str,
        column: pl.Series,
        min_count: int = 1,
        weights: pl.Series | None = None,
        times: np.ndarray | None = None,
        head_room: float = 0.0,
    ) -> "Vocabulary":
        """Admits the values of `column` (rows of the training period only) that occur at least `min_count` times.

        Args:
          name: Of the id space.
          column: Values; nulls are not counted (a null encodes as MISSING).
          min_count: Admission threshold; rarer values encode as OOV.
          weights: Occurrences each element stands for, 1 when None.
          times: When each element occurred, int64 seconds: what reclaiming goes by later.
          head_room: Spare rows, as a share of the admitted values.
        """
        counted = occurrences(column, weights, times).filter(pl.col("count") >= min_count)
        counted = counted.sort(["count", "value"], descending=[True, False])
        rows = padded_rows(NUM_RESERVED + math.ceil(len(counted) * (1 + head_room)))
        last = None if times is None else counted["last"].to_numpy()
        return cls(name, counted["value"], counted["count"].to_numpy(), rows, last)

    def extend(
        self,
        column: pl.Series,
        min_count: int,
        times: np.ndarray,
        generation: int,
        reclaim_days: float | None = None,
        weights: pl.Series | None = None,
    ) -> "Vocabulary":
        """This vocabulary with the values of later data, in as many rows; every value that stays keeps its id.

        Args:
          column, min_count, times, weights: As for `build`; old values stay however rare they have become.
          generation: How many vocabularies this one goes on from.
          reclaim_days: Where no row is spare, values that are not in `column` and were last seen more than so
            many days before the newest lose theirs, the longest unseen first; None: none does.

        Raises:
          SchemaError: More new values than rows that are spare or may be reclaimed.
        """
        self._check_type(column)
        n, counted = len(self.values), occurrences(column, weights, times)
        old = pl.DataFrame({"value": self.values, "place": np.arange(n)})
        new = counted.join(old, on="value", how="anti").filter(pl.col("count") >= min_count)
        new = new.sort(["count", "value"], descending=[True, False])
        again = counted.join(old, on="value", how="inner")
        counts, last = self.counts.copy(), np.zeros(n, np.int64) if self.last is None else self.last
        last = last.copy()
        seen = again["place"].to_numpy()
        counts[seen] = again["count"].to_numpy()
        last[seen] = np.maximum(last[seen], again["last"].to_numpy())

        spare = self.rows - NUM_RESERVED - n
        places = np.arange(n, n + min(spare, len(new)))
        if len(new) > spare:
            newest = max(last.max(initial=0), int(times.max(initial=0)))
            idle = _idle(last, counts, seen, newest, reclaim_days)
            if len(idle) < len(new) - spare:
                raise SchemaError(self._full(len(new), spare, len(idle), reclaim_days))
            places = np.append(places, idle[: len(new) - spare])
        since = np.zeros(n, np.int32) if self.since is None else self.since

        def put(x: np.ndarray, y: Any) -> np.ndarray:
            out = np.resize(x, n + min(spare, len(new)))
            out[places] = y
            return out

        values = pl.concat([self.values, new["value"].cast(self.values.dtype)])
        take = put(np.arange(n), np.arange(n, n + len(new)))
        return Vocabulary(
            self.name,
            values.gather(take),
            put(counts, new["count"].to_numpy()),
            self.rows,
            put(last, new["last"].to_numpy()),
            put(since, generation).astype(np.int32),
        )

    def _full(self, new: int, spare: int, idle: int, reclaim_days: float | None) -> str:
        unseen = (
            "none may be reclaimed"
            if reclaim_days is None
            else f"{idle} were not seen for {reclaim_days:g} days"
        )
        return (
            f"id space {self.name!r}: {new} new values, but {spare} of its {self.rows} rows are spare and {unseen}; "
            "raise min_count, give (smaller) reclaim_days, or prepare anew with head_room and start a run with init_from"
        )

    def _check_type(self, column: pl.Series) -> None:
        if self.values.dtype.is_numeric() != column.dtype.is_numeric():
            raise SchemaError(
                f"id space {self.name!r} holds {self.values.dtype} values, the column {column.name!r} is "
                f"{column.dtype}; cast the column"
            )

    @property
    def space(self) -> IdSpace:
        return IdSpace(self.name, NUM_RESERVED + len(self.values), self.rows)

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """Id of each admitted value, int32 [len(values)]."""
        return spread(np.arange(len(self.values)), self.rows).astype(np.int32)

    def encode(self, column: pl.Series) -> np.ndarray:
        """Ids int32 of a column: unseen or rare values are OOV, nulls MISSING."""
        self._check_type(column)
        if not len(self.values):
            ids = pl.Series([OOV] * len(column), dtype=pl.Int32)
        else:
            ids = column.replace_strict(
                self.values, pl.Series(self.ids), default=OOV, return_dtype=pl.Int32
            )
        return np.where(column.is_null().to_numpy(), MISSING, ids.to_numpy()).astype(np.int32)

    def decode(self, ids: np.ndarray) -> pl.Series:
        """Values of ids; null for reserved and unassigned ones."""
        modulus = self.rows - NUM_RESERVED
        rank = (
            (np.asarray(ids, np.int64) - NUM_RESERVED)
            * pow(multiplier(modulus), -1, modulus)
            % modulus
        )
        known = (np.asarray(ids) >= NUM_RESERVED) & (rank < len(self.values))
        return self.values.gather(pl.Series(np.where(known, rank, 0)).set(pl.Series(~known), None))

    def by_id(self, x: np.ndarray) -> np.ndarray:
        """Something of each value, [len(values), ...], by id: float32 [rows, ...], zeros where there is no value."""
        out = np.zeros((self.rows, *x.shape[1:]), np.float32)
        out[self.ids] = x
        return out

    def frame(self) -> pl.DataFrame:
        """Columns value, id, count, and last and since where known: what a prepared data set stores."""
        known = {k: x for k in ("last", "since") if (x := getattr(self, k)) is not None}
        return pl.DataFrame({"value": self.values, "id": self.ids, "count": self.counts, **known})

    def save(self, path: str | os.PathLike) -> None:
        """Writes a parquet file under a temporary name and renames it."""
        temporary = f"{os.fspath(path)}.tmp"
        self.frame().write_parquet(temporary)
        os.replace(temporary, path)

    @classmethod
    def load(
        cls, name: str, source: str | os.PathLike | pl.DataFrame, rows: int = 0
    ) -> "Vocabulary":
        """Reads what `save` or `write_prepared` wrote; raises SchemaError when the ids are not this bijection's.

        Args:
          name: Of the id space.
          source: File or frame.
          rows: Of the table (`IdSpace.rows`); 0: as many as the values need.
        """
        frame = source if isinstance(source, pl.DataFrame) else pl.read_parquet(source)
        rows = rows or padded_rows(NUM_RESERVED + len(frame))
        known = {k: frame[k].to_numpy() for k in ("last", "since") if k in frame.columns}
        vocabulary = cls(name, frame["value"], frame["count"].to_numpy(), rows, **known)
        if not np.array_equal(vocabulary.ids, frame["id"].to_numpy()):
            raise SchemaError(
                f"vocabulary {name!r}: its ids were assigned by another version; prepare the data again"
            )
        return vocabulary


def occurrences(
    column: pl.Series, weights: pl.Series | None, times: np.ndarray | None
) -> pl.DataFrame:
    """Columns value, count, last (when it last occurred); nulls are left out."""
    frame = pl.DataFrame(
        {
            "value": column.alias("value"),
            "n": 1 if weights is None else weights,
            "time": 0 if times is None else times,
        }
    )
    return (
        frame.drop_nulls("value")
        .group_by("value")
        .agg(
            pl.col("n").sum().cast(pl.Int64).alias("count"),
            pl.col("time").max().cast(pl.Int64).alias("last"),
        )
    )


def _idle(
    last: np.ndarray, counts: np.ndarray, seen: np.ndarray, newest: int, days: float | None
) -> np.ndarray:
    """Places that may be reclaimed, the longest unseen first, then the rarest."""
    if days is None:
        return np.empty(0, np.int64)
    idle = last < newest - days * DAY
    idle[seen] = False
    places = np.flatnonzero(idle)
    return places[np.lexsort((counts[places], last[places]))]


def frames(
    vocabularies: Mapping[str, Vocabulary], described: Mapping[str, pl.DataFrame] | None = None
) -> dict[str, pl.DataFrame]:
    """What `write_prepared(vocab=...)` takes; `described`: id space -> "value" and further columns of it, such as texts."""
    out = {name: v.frame() for name, v in vocabularies.items()}
    for name, table in (described or {}).items():
        table = table.unique("value", keep="first")
        out[name] = out[name].join(table, on="value", how="left", maintain_order="left")
    return out
