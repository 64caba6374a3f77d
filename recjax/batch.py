"""What a batch holds: the border between data, loop and models. NumPy arrays on the host, JAX arrays on the devices.

Sizes: B requests (S device shards of b each), C candidates, L events of a list, U unique ids of a shard.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

Array = Any  # numpy.ndarray or jax.Array; this module is read where there is no JAX


class Batch(TypedDict, total=False):
    """A pytree of fixed-shape arrays: a plain dict, to which a data set or a model may add parts of its own (`part`).

    Attributes:
      ids: Id space -> int32 [S, U], the unique ids of each shard, ascending; unused slots hold rows + slot, out of
        range for gather (clipped, unused) and scatter (dropped).
      pos: Id feature -> int32 [B, ...], the position of each id in its shard's list.
      dense: Dense or vector feature -> float32 [B, ...].
      mask: List -> bool [B, L]; left-padded, oldest first.
      age: List -> int32 [B, L], request minus event in seconds, saturating; 0 where masked.
      label: Label -> float32 [B, C].
      weight: float32 [B, C], in training and metrics.
      valid: bool [B, C], False on slots that only fill up the shape.
      group: Group key -> int32 [B].
      row: int32 [B, C], index of the impression in its split, -1 on filling slots.
      teacher: Teacher -> float32 [B, C], its logits (`recjax.data.loading.taught`).
      exchange: What the devices tell each other about ids; made and read by `recjax.embedding` alone.
    """

    ids: dict[str, Array]
    pos: dict[str, Array]
    dense: dict[str, Array]
    mask: dict[str, Array]
    age: dict[str, Array]
    label: dict[str, Array]
    weight: Array
    valid: Array
    group: dict[str, Array]
    row: Array
    teacher: dict[str, Array]
    exchange: Mapping[str, Any]


def part(batch: Batch, name: str) -> Any:
    """A part that is no impression's: a graph's edges, or what another exported function answered (`Export.reads`)."""
    return dict(batch)[name]
