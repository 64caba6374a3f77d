"""The shapes of a batch: everything about it that does not depend on the ids in it."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import numpy as np

from recjax.data.loading.transport import Fields
from recjax.schema import Feature, Schema

Capacity = Mapping[str, int]  # id space -> unique ids a shard's list can hold


class BatchError(ValueError):
    """Columns do not make the batch asked for; the message names the column and the remedy."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What to put into batches, and how many of each.

    Attributes:
      schema: Features to put into the batch; columns it does not name are ignored.
      batch_size: B, requests in a batch.
      history: list -> L, events kept of each list.
      candidates: C, candidates a request can hold.
      shards: S, device shards with their own unique ids; B is a multiple of it.
    """

    schema: Schema
    batch_size: int
    history: Mapping[str, int] = dataclasses.field(default_factory=dict)
    candidates: int = 1
    shards: int = 1

    def __post_init__(self):
        if self.batch_size % self.shards or self.batch_size <= 0:
            raise BatchError(
                f"a batch of {self.batch_size} requests does not split over {self.shards} device shards; "
                f"make batch_size a multiple of {self.shards}"
            )
        if self.candidates < 1:
            raise BatchError(f"candidates={self.candidates}: a request has at least one candidate")
        for name in self.schema.lists:
            if self.history.get(name, 0) < 1:
                raise BatchError(
                    f"list {name!r} has no history length; set history (for all lists, or by list)"
                )

    def shape(self, feature: Feature) -> tuple[int, ...]:
        """Shape of a feature's array in the batch."""
        size = {"B": self.batch_size, "C": self.candidates, "L": self.history.get(feature.list, 0)}
        width = feature.vector or feature.multi
        return tuple(size[axis] for axis in feature.axes) + ((width,) if width else ())

    def id_features(self, space: str = "") -> list[Feature]:
        """Id features, of one id space if it is given."""
        return [
            f
            for f in self.schema.features
            if f.kind == "id" and f.id_space in (space or f.id_space,)
        ]

    def worst(self) -> dict[str, int]:
        """Capacity no batch can exceed: every position another id, or every row of the table."""
        used = dict.fromkeys(f.id_space for f in self.id_features())
        positions = {
            s: sum(math.prod(self.shape(f)) for f in self.id_features(s)) // self.shards
            for s in used
        }
        return {s: min(self.schema.space(s).rows, positions[s]) for s in used}

    def fields(self, capacity: Capacity) -> Fields:
        """Path -> (dtype, shape) of every array of a packed batch: "level" first, "ids" last."""
        batch, slots = (self.batch_size,), (self.batch_size, self.candidates)
        fields: dict = {("level",): (np.int32, (1,))}
        for f in self.schema.features:
            kind, dtype = ("pos", np.int32) if f.kind == "id" else ("dense", np.float32)
            fields["label" if f.role == "label" else kind, f.name] = (dtype, self.shape(f))
        for name in self.schema.lists:
            fields["mask", name] = (np.bool_, (*batch, self.history[name]))
            fields["age", name] = (np.int32, (*batch, self.history[name]))
        fields |= {
            ("weight",): (np.float32, slots),
            ("valid",): (np.bool_, slots),
            ("row",): (np.int32, slots),
        }
        fields |= {("group", key): (np.int32, batch) for key in self.schema.groups}
        return fields | {("ids", s): (np.int32, (self.shards, u)) for s, u in capacity.items()}

    def blank(self) -> dict[str, Any]:
        """A batch of zeros in the worst capacity, which takes no memory: for programs that are traced or compiled only."""
        batch: dict[str, Any] = {
            k: {} for k in ("ids", "pos", "dense", "mask", "age", "label", "group")
        }
        for (*outer, name), (dtype, shape) in self.fields(self.worst()).items():
            inner = batch[outer[0]] if outer else batch
            inner[name] = np.broadcast_to(np.zeros((), dtype), shape)
        del batch["level"]
        return batch


def capacity_levels(
    layout: Layout, need: Capacity, headroom: float = 1.2
) -> tuple[dict[str, int], ...]:
    """A few capacities to compile for: the probed need with headroom, half as much again, the worst.

    Args:
      layout: Of the batches.
      need: id space -> most unique ids seen in one shard of the probed batches.
      headroom: Of the first level.
    """
    worst = layout.worst()
    levels: list[dict[str, int]] = []
    for factor in (headroom, 1.5 * headroom, math.inf):
        level = {
            s: min(_round_up(factor * need.get(s, 0)), worst[s]) if factor < math.inf else worst[s]
            for s in worst
        }
        if level not in levels:
            levels.append(level)
    return tuple(levels)


def _round_up(x: float) -> int:
    multiple = 8 if x <= 512 else 128
    return max(-int(-x // multiple) * multiple, 8)
