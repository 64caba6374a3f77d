"""Tables narrower than the 128 lanes of a TPU register, stored as physical rows of 128 lanes.

A TPU lays the last axis of an array out in tiles of 128 lanes, so a [V, 64] table would take twice its bytes, or be
copied into another layout and back each step. Packed, a physical row holds K = 128 / D logical rows, in order: the
same bytes as [V, D] row by row, so packing and unpacking is a reshape and logical row i lies in physical row i // K,
part i % K. Optimizer state of a table's width ([V, D]) is packed likewise; state with one number a row stays [V].

The row optimizers see logical rows and know nothing of this. Only `read` and `write` do, and they know a packed table
by its shape: wider than what it is read as.

Axes: V logical rows, P = V / K physical ones, N rows of a batch, D width.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

A = TypeVar("A", jax.Array, np.ndarray)

LANES = 128
NARROWEST = 8  # below it the selects of `read` and `write` cost more than the lanes


def parts(dim: int, block: int) -> int:
    """K: logical rows in a physical row of a table of width `dim`, of which a device holds `block` rows; 1: unpacked."""
    k = LANES // dim if NARROWEST <= dim < LANES and LANES % dim == 0 else 1
    return k if block % k == 0 else 1


def pack(values: dict, k: int) -> dict:
    """A table's logical arrays {"rows": [V, D], ...} packed, {"rows": [P, K D], ...}."""
    return {n: x.reshape(x.shape[0] // k, -1) if x.ndim == 2 else x for n, x in values.items()}


def logical(x: A, dim: int) -> A:
    """A table's array as logical rows: [P, 128] -> [V, dim]; others as they are."""
    return x.reshape(-1, dim) if held_together(x, dim) > 1 else x


def held_together(x: jax.Array | np.ndarray, dim: int) -> int:
    """K of an array of a table of width `dim`."""
    return LANES // dim if x.ndim == 2 and x.shape[1] == LANES > dim else 1


def read(x: jax.Array, ids: jax.Array, dim: int, **hints) -> jax.Array:
    """Logical rows [..., dim] (or numbers [...]) of `ids` [...]; ids past the end read some row nobody wants."""
    k = held_together(x, dim)
    hints = {**hints, "wrap_negative_indices": False}  # whose constant could pass 32 bits
    if k == 1:
        return x.at[ids].get(mode="clip", **hints)
    # siblings ask for the same physical row, so the ids are not unique any more
    whole = x.at[ids // k].get(mode="clip", **{**hints, "unique_indices": False})
    part = (ids % k)[..., None]
    out = whole[..., :dim]
    for i in range(1, k):
        out = jnp.where(part == i, whole[..., i * dim : (i + 1) * dim], out)
    return out


def write(x: jax.Array, ids: jax.Array, new: jax.Array, **hints) -> jax.Array:
    """`x` with logical rows (or numbers) `new` [N, ...] at `ids` [N]: ascending, each once; those past the end drop."""
    k = held_together(x, new.shape[-1])
    if k == 1:
        return x.at[ids].set(new, mode="drop", **hints)
    rows, whole = _together(x, ids, new, k, hints.get("indices_are_sorted", False))
    return x.at[rows].set(whole, mode="drop", unique_indices=True)


def _together(
    x: jax.Array, ids: jax.Array, new: jax.Array, k: int, ascending: bool
) -> tuple[jax.Array, jax.Array]:
    """Physical rows [N], each at most once, and what they become [N, K D].

    Ids ascend, so the siblings of a physical row stand beside each other: its first one collects the K - 1 that may
    follow, with selects alone, and writes for all; the others point past the table.
    """
    n, dim = new.shape
    row, part = ids // k, ids % k
    whole = x.at[row].get(
        mode="clip", indices_are_sorted=ascending
    )  # as `read`: one gather for both
    lane_part = jnp.arange(k * dim) // dim  # [K D]
    everywhere = jnp.concatenate([new] * k, 1)  # [N, K D]
    for shift in range(k):
        row_s, part_s = (jnp.pad(a[shift:], (0, shift), constant_values=-1) for a in (row, part))
        values = jnp.pad(everywhere[shift:], ((0, shift), (0, 0)))
        mine = (row_s == row)[:, None] & (part_s[:, None] == lane_part)
        whole = jnp.where(mine, values, whole)
    first = jnp.concatenate([jnp.ones(1, bool), row[1:] != row[:-1]])
    past = jnp.maximum(x.shape[0], row[-1] + 1) + jnp.arange(n, dtype=ids.dtype)
    return jnp.where(first, row, past), whole
