"""The numerics of a law with three parameters: its least-squares fit, and all parameters nearly as good.

Variable projection (Golub & Pereyra 1973): for a given exponent the law is linear in (E, A), so only
the exponent is searched.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import optimize

Array = np.ndarray
EXPONENTS = np.geomspace(0.01, 4.0, 240)


def size_means(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Distinct sizes, the mean over seeds at each, and how many seeds."""
    sizes, index = np.unique(x, return_inverse=True)
    count = np.bincount(index)
    return sizes, np.bincount(index, y) / count, count


@dataclasses.dataclass(frozen=True)
class Problem:
    """y = E - sign * A * basis, E in [low, high], A >= 0; `sign` is +1 where larger is better."""

    x: Array
    y: Array
    w: Array
    sign: int
    low: float
    high: float

    @property
    def scale(self) -> float:
        """Sizes are divided by this, so that A is the gap to the ceiling mid-range."""
        return float(np.exp(np.mean(np.log(np.unique(self.x)))))

    def basis(self, exponent) -> Array:
        """(x / scale)^-a, [..., n] for exponents [...]."""
        return np.exp(-np.asarray(exponent)[..., None] * np.log(self.x / self.scale))


def problem(x: Array, y: Array, larger_is_better: bool, w: Array | None = None) -> Problem:
    """The points (weights 1 by default) with the bounds of the ceiling."""
    w = np.ones_like(y) if w is None else w
    _, means, _ = size_means(x[w > 0], y[w > 0])
    # A >= 0 keeps E beyond the curve. Beyond the best mean would be too much: that one was lucky, and a flat
    # curve (A = 0) would have to pass through it.
    bounds = (means.min(), 1.0) if larger_is_better else (0.0, means.max())
    return Problem(x, y, w, 1 if larger_is_better else -1, *bounds)


def linear(p: Problem, basis: Array) -> tuple[Array, Array, Array]:
    """Best bounded (E, A) and its weighted sum of squares, [G] each, for every basis [G, n].

    Two unknowns in a box: the optimum is the free one, or lies on an edge. All candidates are
    compared.
    """
    y, w, b = p.y, p.w, -p.sign * basis
    sw, sb, sbb = w.sum(), b @ w, b**2 @ w
    sy, sby = y @ w, (b * y) @ w
    det = np.maximum(sw * sbb - sb**2, 1e-300)
    free = (sw * sby - sb * sy) / det
    candidates = [((sy - free * sb) / sw, free), (np.clip(sy / sw, p.low, p.high) + 0 * sb, 0 * sb)]
    candidates += [
        (edge + 0 * sb, np.maximum((sby - edge * sb) / sbb, 0)) for edge in (p.low, p.high)
    ]
    best: Any = tuple(np.full(np.shape(sb), v) for v in (np.nan, np.nan, np.inf))
    for ceiling, gap in candidates:
        rss = (w * (y - ceiling[..., None] - gap[..., None] * b) ** 2).sum(-1)
        slack = 1e-12 * (1 + abs(p.high))
        ok = (ceiling >= p.low - slack) & (ceiling <= p.high + slack) & (gap >= 0) & (rss < best[2])
        best = tuple(
            np.where(ok, new, old) for new, old in zip((ceiling, gap, rss), best, strict=True)
        )
    return best


def _rss(p: Problem, exponent: float) -> float:
    return float(linear(p, p.basis([exponent]))[2][0])


def solve(p: Problem, refine: bool = True) -> tuple[float, float, float, float]:
    """(E, A at `p.scale`, a, sum of squares): best on the grid, then refined between its
    neighbours."""
    ceilings, gaps, rss = linear(p, p.basis(EXPONENTS))
    i = int(np.argmin(rss))
    if not refine:
        return float(ceilings[i]), float(gaps[i]), float(EXPONENTS[i]), float(rss[i])
    bracket = np.log(EXPONENTS[[max(i - 1, 0), min(i + 1, len(EXPONENTS) - 1)]])
    found = optimize.minimize_scalar(
        lambda t: _rss(p, math.exp(t)),
        bounds=tuple(bracket),
        method="bounded",
        options={"xatol": 1e-10},
    )
    a = math.exp(found.x) if found.fun <= rss[i] else float(EXPONENTS[i])
    ceiling, gap, best = (float(v[0]) for v in linear(p, p.basis([a])))
    return ceiling, gap, a, best


def huber_weights(p: Problem, delta: float) -> Array:
    """Weights of the Huber loss by iterated reweighting; `delta` in robust standard deviations."""
    w = p.w
    for _ in range(30):
        ceiling, gap, a, _ = solve(dataclasses.replace(p, w=w))
        residual = abs(p.y - ceiling + p.sign * gap * p.basis(a))
        limit = delta * max(1.4826 * float(np.median(residual)), 1e-12)
        new = p.w * np.minimum(1.0, limit / np.maximum(residual, 1e-300))
        if abs(new - w).max() < 1e-6:
            break
        w = new
    return w


# ------------------------------------------------------------------------------------------ profile


def profile_region(p: Problem, best: tuple[float, float, float, float], threshold: float) -> Array:
    """Parameters (E, A, a) with a sum of squares up to `threshold`, as points along its boundary,
    [M, 3].

    At a given (a, E) the sum of squares is a parabola in A, so its ends are exact; a and E run over
    grids fitted to the region. Extremes of any function linear in A are therefore attained on these
    points.
    """
    a = _exponents_within(p, best[2], threshold)
    basis = p.basis(a)
    ceiling = _ceilings_within(p, basis, threshold)  # [G, K]
    b, w = -p.sign * basis[:, None, :], p.w
    y = p.y - ceiling[..., None]
    sbb, sby, syy = (b**2 * w).sum(-1), (b * y * w).sum(-1), (y**2 * w).sum(-1)
    centre = sby / sbb
    half = np.sqrt(np.maximum((threshold - syy + sby * centre) / sbb, 0))
    inside = (threshold >= syy - sby * centre) & (centre + half >= 0)
    a = np.broadcast_to(a[:, None], ceiling.shape)
    ends = [
        np.stack([ceiling, np.maximum(g, 0), a], -1)[inside] for g in (centre - half, centre + half)
    ]
    return np.concatenate([np.array([best[:3]]), *ends])


def _exponents_within(p: Problem, best: float, threshold: float, count: int = 81) -> Array:
    """A grid over the exponents whose best fit is within the threshold, its two ends refined."""
    grid = np.unique(np.r_[EXPONENTS, best])
    inside = np.flatnonzero((linear(p, p.basis(grid))[2] <= threshold) | (grid == best))
    ends = []
    for i, outside in ((inside[0], inside[0] - 1), (inside[-1], inside[-1] + 1)):
        if (
            not 0 <= outside < len(grid)
        ):  # the region is open: the interval ends at the edge of the search
            ends.append(grid[i])
            continue
        excess = lambda t: _rss(p, math.exp(t)) - threshold  # noqa: E731
        u, v = math.log(grid[i]), math.log(grid[outside])
        ends.append(
            math.exp(optimize.brentq(excess, u, v)) if excess(u) < 0 < excess(v) else grid[i]
        )
    return np.unique(np.r_[np.geomspace(ends[0], ends[1], count), best])


def _ceilings_within(p: Problem, basis: Array, threshold: float, count: int = 25) -> Array:
    """For each exponent a grid [G, count] over the E within the threshold (A free), cut to the
    bounds."""
    b, w = -p.sign * basis, p.w
    sw, sb, sbb = w.sum(), b @ w, b**2 @ w
    sy, sby = p.y @ w, (b * p.y) @ w
    left = np.maximum(sw - sb**2 / sbb, 1e-300)
    centre = (sy - sb * sby / sbb) / left
    best = ((p.y**2) @ w - sby**2 / sbb) - left * centre**2
    half = np.sqrt(np.maximum((threshold - best) / left, 0))
    low, high = (np.clip(centre + s * half, p.low, p.high) for s in (-1, 1))
    return np.linspace(low, high, count, axis=-1)
