"""A pytree of arrays as one aligned buffer, and back as views of it: NumPy only, no JAX.

A worker process pays for the hand-over of a batch per array, not per byte.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math

import numpy as np

Fields = Mapping[tuple[str, ...], tuple[type, tuple[int, ...]]]  # path -> (dtype, shape)

ALIGN = 64  # a cache line; XLA:CPU takes arrays so aligned without a copy


@dataclasses.dataclass(frozen=True)
class Spec:
    """Where each array of a pytree lies in its buffer: (path, dtype, shape, byte offset)."""

    fields: tuple[tuple[tuple[str, ...], np.dtype, tuple[int, ...], int], ...]
    nbytes: int

    @classmethod
    def of(cls, fields: Fields) -> "Spec":
        placed, offset = [], 0
        for path, (dtype, shape) in fields.items():
            placed.append((path, np.dtype(dtype), shape, offset))
            offset += -(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGN) * ALIGN
        return cls(tuple(placed), offset)


def aligned_empty(nbytes: int) -> np.ndarray:
    """Uninitialised uint8 [nbytes] that starts on an `ALIGN` boundary."""
    raw = np.empty(nbytes + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + nbytes]


def pack(tree: Mapping, spec: Spec) -> np.ndarray:
    """Copies a nested dict of arrays into one uint8 buffer."""
    buffer = aligned_empty(spec.nbytes)
    for path, dtype, shape, offset in spec.fields:
        leaf = functools.reduce(lambda node, key: node[key], path, tree)
        view(buffer, dtype, shape, offset)[...] = leaf
    return buffer


def unpack(buffer: np.ndarray, spec: Spec) -> dict:
    """Opens a packed buffer as a nested dict of views; nothing is copied."""
    tree: dict = {}
    for path, dtype, shape, offset in spec.fields:
        node = functools.reduce(lambda n, key: n.setdefault(key, {}), path[:-1], tree)
        node[path[-1]] = view(buffer, dtype, shape, offset)
    return tree


def view(buffer: np.ndarray, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """One array of a packed buffer."""
    return np.ndarray(shape, dtype, buffer=buffer, offset=offset)
