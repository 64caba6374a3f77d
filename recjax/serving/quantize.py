"""Row-quantised embedding tables: what an artifact stores and serving reads.

int8 rows carry one float32 scale each, symmetric: row = q * scale with scale = max|row| / 127, so no element is
off by more than scale / 2. (float16 scales would lose bits below 6e-5, where the scales of fresh rows lie.)
"""

import dataclasses

import numpy as np

FORMATS = ("float32", "float16", "int8")
_LEVELS = 127


@dataclasses.dataclass(frozen=True)
class Rows:
    """One table as stored.

    Attributes:
      values: [V, d] in the storage format.
      scale: [V] float32 for int8, else None.
    """

    values: np.ndarray
    scale: np.ndarray | None = None

    @property
    def format(self) -> str:
        return self.values.dtype.name

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Rows of `ids` [n] as float32 [n, d]. Costs O(n): the table itself stays quantised."""
        rows = self.values[ids].astype(np.float32)
        if self.scale is not None:
            rows *= self.scale[ids][:, None]
        return rows

    def dequantized(self) -> np.ndarray:
        """The whole table, float32 [V, d]."""
        rows = self.values.astype(np.float32)
        return rows if self.scale is None else rows * self.scale[:, None]


def quantize(rows: np.ndarray, fmt: str = "int8") -> Rows:
    """Quantises a table [V, d], row by row.

    Args:
      rows: Finite numbers.
      fmt: One of `FORMATS`.

    Raises:
      ValueError: Unknown format, rows that are not finite, or too large for float16.
    """
    if fmt not in FORMATS:
        raise ValueError(f"unknown row format {fmt!r}; use one of {', '.join(FORMATS)}")
    rows = np.asarray(rows).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise ValueError(f"row {bad[0]} is not finite; lower the table's lr and train again")
    if fmt == "int8":
        scale = np.abs(rows).max(axis=1, initial=0) / np.float32(_LEVELS)
        # A row of zeros (PAD) has scale 0 and stays exactly zero.
        steps = rows / np.where(scale > 0, scale, 1)[:, None]
        return Rows(np.clip(np.rint(steps), -_LEVELS, _LEVELS).astype(np.int8), scale)
    if fmt == "float16" and np.abs(rows).max(initial=0) > np.finfo(np.float16).max:
        raise ValueError("rows are too large for float16; use rows_format='int8' or 'float32'")
    return Rows(rows.astype(fmt))
