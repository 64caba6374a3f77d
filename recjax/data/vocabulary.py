"""Vocabularies: log values to table rows.

The k-th most frequent value gets id 3 + (a * k mod (rows - 3)) with a near the golden ratio of rows - 3 and
coprime to it: a fixed bijection onto [3, rows). Ids are table rows and nothing after this permutes them, yet
frequent values are spread over contiguous row blocks as evenly as a sequence can be (three-distance theorem), so
no shard of a row-sharded table is hot.
"""

from collections.abc import Mapping
import dataclasses
import functools
import os

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


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The admitted values of one id space.

    Attributes:
      name: Of the id space.
      values: Admitted values, most frequent first, ties by value.
      counts: int64 [len(values)], their occurrences where the vocabulary was built.
      rows: Table rows, padding included.
    """

    name: str
    values: pl.Series
    counts: np.ndarray
    rows: int

    @classmethod
    def build(
        cls, name: str, column: pl.Series, min_count: int = 1, weights: pl.Series | None = None
    ) -> "Vocabulary":
        """Admits the values of `column` (rows of the training period only) that occur at least `min_count` times.

        Args:
          name: Of the id space.
          column: Values; nulls are not counted (a null encodes as MISSING).
          min_count: Admission threshold; rarer values encode as OOV.
          weights: Occurrences each element stands for, 1 when None.
        """
        frame = pl.DataFrame(
            {"value": column.alias("value"), "n": 1 if weights is None else weights}
        )
        counted = (
            frame.drop_nulls("value")
            .group_by("value")
            .agg(pl.col("n").sum().cast(pl.Int64).alias("count"))
            .filter(pl.col("count") >= min_count)
            .sort(["count", "value"], descending=[True, False])
        )
        rows = padded_rows(NUM_RESERVED + len(counted))
        return cls(name, counted["value"], counted["count"].to_numpy(), rows)

    @property
    def space(self) -> IdSpace:
        return IdSpace(self.name, NUM_RESERVED + len(self.values), self.rows)

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """Id of each admitted value, int32 [len(values)]."""
        return spread(np.arange(len(self.values)), self.rows).astype(np.int32)

    def encode(self, column: pl.Series) -> np.ndarray:
        """Ids int32 of a column: unseen or rare values are OOV, nulls MISSING."""
        if self.values.dtype.is_numeric() != column.dtype.is_numeric():
            raise SchemaError(
                f"id space {self.name!r} holds {self.values.dtype} values, the column {column.name!r} is "
                f"{column.dtype}; cast the column"
            )
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

    def frame(self) -> pl.DataFrame:
        """Columns value, id, count: what a prepared data set stores."""
        return pl.DataFrame({"value": self.values, "id": self.ids, "count": self.counts})

    def save(self, path: str | os.PathLike) -> None:
        """Writes a parquet file under a temporary name and renames it."""
        temporary = f"{os.fspath(path)}.tmp"
        self.frame().write_parquet(temporary)
        os.replace(temporary, path)

    @classmethod
    def load(cls, name: str, source: str | os.PathLike | pl.DataFrame) -> "Vocabulary":
        """Reads what `save` or `write_prepared` wrote; raises SchemaError when the ids are not this bijection's."""
        frame = source if isinstance(source, pl.DataFrame) else pl.read_parquet(source)
        rows = padded_rows(NUM_RESERVED + len(frame))
        vocabulary = cls(name, frame["value"], frame["count"].to_numpy(), rows)
        if not np.array_equal(vocabulary.ids, frame["id"].to_numpy()):
            raise SchemaError(
                f"vocabulary {name!r}: its ids were assigned by another version; prepare the data again"
            )
        return vocabulary


def frames(vocabularies: Mapping[str, Vocabulary]) -> dict[str, pl.DataFrame]:
    """What `write_prepared(vocab=...)` takes."""
    return {name: v.frame() for name, v in vocabularies.items()}
