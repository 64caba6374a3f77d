"""A prepared data set read with the ids of another: a new log scored by a model that an earlier one trained.

Ids mean something only together with the vocabularies they were made with. Here they are carried over by their log
values; a value the model's vocabulary lacks becomes the unknown id. What the other log's own preparation left out of
its vocabulary (too rare there) is unknown too, even if the model would know it.
"""

from collections.abc import Mapping
import dataclasses
import os

from absl import logging
import numpy as np
import polars as pl

from recjax.data.store.prepared import DataError, Prepared
from recjax.schema import NUM_RESERVED, OOV, Feature, Schema

KEYS = ("user", "item", "household", "product")  # id spaces of whom and what


class Translated(Prepared):
    """`Prepared` whose ids are those of another schema and its vocabularies.

    Attributes:
      schema: The other one, with this data's groups.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        schema: Schema,
        vocabularies: Mapping[str, pl.DataFrame],
    ):
        """Args:
        path: Of the data to read.
        schema: Whose ids are wanted; its features must be among the data's.
        vocabularies: id space -> frame with columns value, id.

        Raises:
          DataError: A feature is missing or of another kind, an id space has no vocabulary to translate with, or not one
            user (or item) of the data is known there.
        """
        super().__init__(path)
        self._given = schema, dict(vocabularies)
        _check_features(self, schema)
        spaces = dict.fromkeys(f.id_space for f in schema.features if f.kind == "id")
        self._maps = {s: self._map_of(s, schema, vocabularies) for s in spaces}
        self._read: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        self._features = {f.name: f for f in schema.features}
        self.schema = dataclasses.replace(schema, groups=self.schema.groups)

    def __reduce__(self):
        return Translated, (os.fspath(self.path), *self._given)

    def _map_of(self, space: str, schema: Schema, vocabularies) -> np.ndarray:
        """Id here -> id there, int32 [rows]."""
        if space not in vocabularies:
            raise DataError(f"id space {space!r} was prepared without a vocabulary; its ids cannot be carried over")  # fmt: skip
        feature = next(f.name for f in schema.features if f.id_space == space)
        own = self.schema.space(self.schema.feature(feature).id_space)
        out = np.full(own.rows, OOV, np.int32)
        out[:NUM_RESERVED] = np.arange(NUM_RESERVED)
        mine = super().vocabulary(own.name).select(_text, "id")
        theirs = vocabularies[space].select(_text, pl.col("id").alias("to"))
        both = mine.join(theirs, on="value")
        out[both["id"].to_numpy()] = both["to"].to_numpy()
        logging.info("id space %s: %d of %d values are known", space, both.height, mine.height)
        if space in KEYS and mine.height and not both.height:
            raise DataError(
                f"{self.path}: no {space} of it is known to the model (here {mine['value'][0]!r}, there "
                f"{theirs['value'][0] if theirs.height else 'none'!r}); is it the right data, prepared with the same mapping?"
            )
        return out

    def _translated(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = dict(columns)
        for name in columns:
            f = self._features.get(name)
            if f is not None and f.kind == "id":
                out[name] = self._maps[f.id_space][columns[name]]
        return out

    def block(self, split: str, i: int) -> dict[str, np.ndarray]:
        return self._translated(super().block(split, i))

    def timeline(self, name: str, partition: int = 0) -> dict[str, np.ndarray]:
        key = (name, partition)
        if key not in self._read:  # translated ids are held in memory, the rest stays mapped
            self._read[key] = self._translated(super().timeline(name, partition))
        return self._read[key]

    def vocabulary(self, space: str) -> pl.DataFrame:
        return self._given[1][space]


def translated(prepared: Prepared, into: Prepared) -> Translated:
    """`prepared` with the ids of `into`."""
    spaces = dict.fromkeys(f.id_space for f in into.schema.features if f.kind == "id")
    return Translated(prepared.path, into.schema, {s: into.vocabulary(s) for s in spaces})


_text = pl.col("value").cast(pl.String)


def _check_features(prepared: Prepared, schema: Schema) -> None:
    own = {f.name: f for f in prepared.schema.features}
    for f in schema.features:
        if f.name not in own or _form(own[f.name]) != _form(f):
            raise DataError(
                f"feature {f.name!r} of the model is {_form(own[f.name]) if f.name in own else 'missing'} in "
                f"{prepared.path}, the model was trained on {_form(f)}; prepare the log with the same mapping"
            )


def _form(f: Feature) -> tuple:
    """What must agree for a feature to mean the same; how it is transformed is the model's."""
    return f.role, f.kind, f.vector, f.multi, f.list
