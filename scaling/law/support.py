"""Whether a law is asked about what was measured, about something between, or about something outside of it.

A sweep is seldom a full grid: small models see all the data, long histories little of it. So "inside" is the convex hull of the
measured cells in log sizes, all sizes together, and not the box from the smallest to the largest of each.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np
from scipy import optimize

Array = np.ndarray
SAME = math.log(1.005)  # sizes that differ by less are one


@dataclasses.dataclass(frozen=True)
class Support:
    """The measured cells of a sweep: one row of `cells` for each, its sizes in the order of `axes`."""

    axes: tuple[str, ...]
    cells: Array

    @classmethod
    def of(cls, sizes: Mapping[str, Sequence[float]]) -> "Support":
        table = np.column_stack([np.asarray(v, float) for v in sizes.values()])
        return cls(tuple(sizes), np.unique(table, axis=0))

    def beyond(self, sizes: Mapping[str, float]) -> float:
        """The smallest factor, over all sizes together, that brings a point inside the hull of the cells; 1: it is inside."""
        at = np.log([sizes[a] for a in self.axes])
        cells = np.log(self.cells)
        m, k = cells.shape
        # Minimise sum(up + down) where sum_i share_i cell_i + up - down = at: the L1 distance to the hull.
        cost = np.r_[np.zeros(m), np.ones(2 * k)]
        equal = np.block(
            [[cells.T, np.eye(k), -np.eye(k)], [np.ones((1, m)), np.zeros((1, 2 * k))]]
        )
        found = optimize.linprog(cost, A_eq=equal, b_eq=np.r_[at, 1.0], method="highs")
        return 1.0 if found.fun < SAME else math.exp(found.fun)

    def measured(self, sizes: Mapping[str, float]) -> bool:
        at = np.log([sizes[a] for a in self.axes])
        return bool((abs(np.log(self.cells) - at).max(1) < SAME).any())

    def word(self, sizes: Mapping[str, float]) -> str:
        """ "a measured cell", "interpolated", or "extrapolated, 3.1 x outside what was measured"."""
        if self.measured(sizes):
            return "a measured cell"
        far = self.beyond(sizes)
        return (
            "interpolated" if far <= 1 else f"extrapolated, {far:.1f} x outside what was measured"
        )
