"""Vocabularies from one day to the next: head-room for new values, old values keep their ids, idle ones give theirs back.

    python -m recjax.data.prepare --logs=MONDAY --mapping=M --out=A --head_room=0.5
    python -m recjax.data.prepare --logs=TUESDAY --mapping=M --out=B --extends=A --reclaim_days=30
    python -m recjax.train --config=C --config.data.dir=B --config.continue_from=runs/a --workdir=runs/b

A vocabulary's rows never change in number, so tables and optimizer state go on as they are; only the rows of ids that
mean another value than before start anew.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np
import polars as pl

from recjax.data.store.prepared import DataError, Prepared
from recjax.data.store.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Growth:
    """How the vocabularies of a data set begin, or go on from an earlier one's.

    Attributes:
      head_room: Spare rows of a new vocabulary, as a share of its values.
      extends: Prepared directory whose vocabularies go on; "": they are new.
      reclaim_days: Values not seen for so many days before the newest give their ids to new values when no row is
        spare, the longest unseen first; None: never.
    """

    head_room: float = 0.0
    extends: str = ""
    reclaim_days: float | None = None

    def __post_init__(self):
        if self.head_room < 0 or (self.reclaim_days or 0) < 0:
            raise DataError("head_room and reclaim_days are not below zero; 0 or leave them out")
        if self.extends and self.head_room:
            raise DataError(
                "head_room is decided when a vocabulary is first built; leave it out where extends is given"
            )
        if self.reclaim_days is not None and not self.extends:
            raise DataError("reclaim_days needs extends, the directory whose ids may be reclaimed")

    def vocabulary(
        self,
        name: str,
        column: pl.Series,
        min_count: int,
        times: np.ndarray,
        weights: pl.Series | None = None,
    ) -> Vocabulary:
        """A new vocabulary of `column`, or the earlier one with its values; see `Vocabulary`."""
        if not self.extends:
            return Vocabulary.build(name, column, min_count, weights, times, self.head_room)
        before = Prepared(self.extends)
        if name not in {s.name for s in before.schema.id_spaces}:
            raise DataError(
                f"{self.extends} has no id space {name!r}, so it cannot be extended; prepare anew, without extends"
            )
        old = Vocabulary.load(name, before.vocabulary(name), before.schema.space(name).rows)
        generation = len(_history(before, name)) + 1
        return old.extend(column, min_count, times, generation, self.reclaim_days, weights)

    def options(self) -> dict[str, Any]:
        """What a prepared directory's name should depend on; empty where nothing is asked for."""
        asked = {"head_room": self.head_room} if self.head_room else {}
        if self.extends:
            asked |= {
                "extends": Prepared(self.extends).identity["hash"],
                "reclaim_days": self.reclaim_days,
            }
        return asked

    def facts(self, vocabularies: Mapping[str, Vocabulary]) -> dict[str, Any]:
        """For the data's identity: `vocabulary_history`, id space -> hashes of the vocabularies before, oldest first."""
        if not self.extends:
            return {}
        before = Prepared(self.extends)
        history = {s: [*_history(before, s), vocabulary_hash(before.path, s)] for s in vocabularies}
        return {"vocabulary_history": history}


NEW = Growth()


def _history(data: Prepared, space: str) -> list[str]:
    return data.identity.get("vocabulary_history", {}).get(space, [])


def vocabulary_hash(path: pathlib.Path, space: str) -> str:
    """Same hash, same rows: a checkpoint's tables fit. "" for a space without a vocabulary."""
    file = path / "vocab" / f"{space}.parquet"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
