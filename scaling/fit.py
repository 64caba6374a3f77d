"""Scaling laws with honest intervals.

    AUC = E - A / X^a        logloss = E + A / X^a        logloss = E + A / N^a + B / D^b

The form of the first is reported for the paper after SUAN by the same first author; for SUAN itself
neither its form nor its axis could be confirmed. E is the ceiling, inside (best mean seen, 1) for
AUC and (0, best mean seen) for logloss; A > 0; a > 0.

Fitting is variable projection (Golub & Pereyra 1973): for a given exponent the law is linear in (E,
A), so only the exponent is searched. Intervals come from the profile: every (E, A, a) whose sum of
squares stays within an F threshold of the best is kept, and the interval of anything (a, E, a
prediction, the X that reaches a target) is its range over that set. `tests/scaling/test_fit.py`
measures how often they cover the truth.

Coverage of 90 % intervals, measured on 200 simulated sweeps (6 sizes x 3 seeds, a = 0.35; exponent /
held-out largest size / ceiling), with the mean at each size as the unit, which is the default, and
with every seed as a unit:

    noise                                      size as unit            seed as unit
    independent                                0.915 / 0.925 / 0.915   0.880 / 0.880 / 0.870
    as much again, shared by a size's seeds    0.905 / 0.900 / 0.905   0.715 / 0.700 / 0.720
    most of it shared by the points of a run   0.900 / 0.875 / 0.840   0.980 / 0.985 / 0.955

Percentile bootstraps of the first row covered 0.77 to 0.85 (60 sweeps), so `bootstrap` is only shown
beside it. What all points share, the test set above all, goes into E unseen.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
from scipy import optimize, stats

Array = np.ndarray
EXPONENTS = np.geomspace(0.01, 4.0, 240)
MIN_SIZES = 4


class FitError(ValueError):
    """The points cannot support the law; the message says what is missing."""


# ------------------------------------------------------------------------------------------- points


def read_trials(path) -> list[dict]:
    """Rows of a `trials.jsonl`; a torn last line, left by a killed writer, is ignored."""
    lines = open(path, encoding="utf-8").read().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as e:
            if number < len(lines):
                raise FitError(f"{path}, line {number} is not JSON ({e}); remove it") from None
    return rows


def points(
    rows: Iterable[Mapping[str, Any]], axis: str, metric: str, **where: Any
) -> tuple[Array, Array]:
    """(axis values, metric values) of the rows with every `where` column equal, ascending.

    Rows without the metric (null: it was undefined) are left out; a missing axis is an error.
    """
    chosen = [r for r in rows if all(r.get(k) == v for k, v in where.items())]
    found = []
    for r in chosen:
        if not isinstance(r.get(axis), int | float):
            raise FitError(
                f"run {r.get('run')!r} has no number in column {axis!r}; it has {sorted(r)}"
            )
        y = r.get(metric, r.get("metrics", {}).get(metric))
        if y is not None and math.isfinite(y):
            found.append((float(r[axis]), float(y)))
    if not found:
        raise FitError(
            f"no row has a finite {metric!r} (of {len(chosen)} rows with {where or 'any values'})"
        )
    x, y = np.array(sorted(found)).T
    if x[0] <= 0:
        raise FitError(f"{axis} must be positive, the smallest is {x[0]}")
    return x, y


def count(value: float | None) -> str:
    """A size for reading: 300 k, 1.45 M."""
    if value is None:
        return "–"
    for limit, unit in ((1e15, ""), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}" if unit else f"{value:.1e}"
    return f"{value:.3g}"


def _means(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Distinct sizes, the mean over seeds at each, and how many seeds."""
    sizes, index = np.unique(x, return_inverse=True)
    count = np.bincount(index)
    return sizes, np.bincount(index, y) / count, count


# ------------------------------------------------------------------------------ variable projection


@dataclasses.dataclass(frozen=True)
class _Problem:
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


def _problem(x: Array, y: Array, larger_is_better: bool, w: Array | None = None) -> _Problem:
    w = np.ones_like(y) if w is None else w
    _, means, _ = _means(x[w > 0], y[w > 0])
    # E never lies below the best *mean*: bounding it by the luckiest seed would bias it upwards.
    bounds = (means.max(), 1.0) if larger_is_better else (0.0, means.min())
    return _Problem(x, y, w, 1 if larger_is_better else -1, *bounds)


def _linear(p: _Problem, basis: Array) -> tuple[Array, Array, Array]:
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
    best = tuple(np.full(np.shape(sb), v) for v in (np.nan, np.nan, np.inf))
    for ceiling, gap in candidates:
        rss = (w * (y - ceiling[..., None] - gap[..., None] * b) ** 2).sum(-1)
        slack = 1e-12 * (1 + abs(p.high))
        ok = (ceiling >= p.low - slack) & (ceiling <= p.high + slack) & (gap >= 0) & (rss < best[2])
        best = tuple(
            np.where(ok, new, old) for new, old in zip((ceiling, gap, rss), best, strict=True)
        )
    return best


def _rss(p: _Problem, exponent: float) -> float:
    return float(_linear(p, p.basis([exponent]))[2][0])


def _solve(p: _Problem, refine: bool = True) -> tuple[float, float, float, float]:
    """(E, A at `p.scale`, a, sum of squares): best on the grid, then refined between its
    neighbours."""
    ceilings, gaps, rss = _linear(p, p.basis(EXPONENTS))
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
    ceiling, gap, best = (float(v[0]) for v in _linear(p, p.basis([a])))
    return ceiling, gap, a, best


def _huber_weights(p: _Problem, delta: float) -> Array:
    """Weights of the Huber loss by iterated reweighting; `delta` in robust standard deviations."""
    w = p.w
    for _ in range(30):
        ceiling, gap, a, _ = _solve(dataclasses.replace(p, w=w))
        residual = abs(p.y - ceiling + p.sign * gap * p.basis(a))
        limit = delta * max(1.4826 * float(np.median(residual)), 1e-12)
        new = p.w * np.minimum(1.0, limit / np.maximum(residual, 1e-300))
        if abs(new - w).max() < 1e-6:
            break
        w = new
    return w


# ------------------------------------------------------------------------------------------ profile


def _region(p: _Problem, best: tuple[float, float, float, float], threshold: float) -> Array:
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


def _exponents_within(p: _Problem, best: float, threshold: float, count: int = 81) -> Array:
    """A grid over the exponents whose best fit is within the threshold, its two ends refined."""
    grid = np.unique(np.r_[EXPONENTS, best])
    inside = np.flatnonzero((_linear(p, p.basis(grid))[2] <= threshold) | (grid == best))
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


def _ceilings_within(p: _Problem, basis: Array, threshold: float, count: int = 25) -> Array:
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


# ---------------------------------------------------------------------------------------------- law


@dataclasses.dataclass(frozen=True)
class LawFit:
    """A fitted law value = E - A / X^a (AUC) or E + A / X^a (logloss), with its intervals.

    Attributes:
      axis, metric: Of the points.
      E, A, a: Ceiling, coefficient, exponent.
      level: Of every interval.
      intervals: "E", "A", "a" -> (low, high), by profile.
      sigma: Residual standard deviation of one unit.
      r2: Share of the variance of the points that the law explains. Any saturating curve through
        few points has a high one: judge the law by `holdout` and `competitors`.
      lack_of_fit: p-value that the scatter around the law is no larger than the scatter between
        seeds, or None without replicates; a small one says the law's form is wrong or points share noise.
      x, y: The points.
      larger_is_better, huber, unit: How it was fitted; `sigma` is that of one unit.
      notes: What a reader must know.
    """

    axis: str
    metric: str
    E: float
    A: float
    a: float
    level: float
    intervals: Mapping[str, tuple[float, float]]
    sigma: float
    r2: float
    lack_of_fit: float | None
    x: tuple[float, ...]
    y: tuple[float, ...]
    larger_is_better: bool
    huber: float
    unit: str
    notes: tuple[str, ...] = ()
    holdout: Mapping[str, Any] | None = None
    competitors: Mapping[str, Any] | None = None
    _region: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def sign(self) -> int:
        return 1 if self.larger_is_better else -1

    def predict(self, x: float) -> float:
        """The law at X."""
        return float(_law(self.E, self.A, self.a, self.sign, x))

    def interval(self, x: float, seeds: int = 0) -> tuple[float, float]:
        """Interval of the law at X, or with seeds > 0 of the mean of that many new runs there."""
        values = _law(*self._region.T, self.sign, x)
        noise = 0.0
        if seeds:  # a mean over seeds is one unit where the unit is the size
            units, mean_of = (len(self.x), seeds) if self.unit == "seed" else (len(set(self.x)), 1)
            noise = _t(self.level, units - 3) * self.sigma / math.sqrt(mean_of)
        middle = self.predict(x)
        return tuple(
            float(middle + side * math.hypot(abs(edge - middle), noise))
            for side, edge in ((-1, values.min()), (1, values.max()))
        )

    def needed(self, target: float) -> dict[str, Any]:
        """The X at which the law reaches `target`, with its interval; None: "beyond the ceiling"."""

        def reach(e, a_, k):
            gap = self.sign * (np.asarray(e) - target)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                return np.where(gap > 0, (a_ / np.maximum(gap, 1e-300)) ** (1 / k), np.inf)

        value, among = float(reach(self.E, self.A, self.a)), reach(*self._region.T)
        out = {"target": target, **{k: v if math.isfinite(v) else None for k, v in (
            ("value", value), ("low", float(among.min())), ("high", float(among.max())))}}  # fmt: skip
        return out | {"answer": self._in_words(out)}

    def _in_words(self, need: Mapping[str, Any]) -> str:
        if need["low"] is None:
            return f"beyond the ceiling: under this law no {self.axis} is enough"
        low = count(need["low"])
        if need["value"] is None:
            return f"beyond the ceiling of the best fit ({self.E:.4f}), though {low} or more is possible"
        high = "no upper end" if need["high"] is None else count(need["high"])
        return f"{count(need['value'])} {self.axis} (from {low} to {high})"

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and strings; not finite becomes null. `curve` reaches 10 x the largest X."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "_region"]
        curve = [
            {"x": float(x), "value": self.predict(x), "low": low, "high": high}
            for x in np.geomspace(min(self.x), 10 * max(self.x), 48)
            for low, high in [self.interval(x)]
        ]
        extra = {
            "law": self.formula,
            "sizes": len(set(self.x)),
            "points": len(self.x),
            "curve": curve,
        }
        return _plain({n: getattr(self, n) for n in names} | extra)

    @property
    def formula(self) -> str:
        return f"{self.metric} = {self.E:.4f} {'-' if self.sign > 0 else '+'} {self.A:.4g} / {self.axis}^{self.a:.3g}"


def _law(e, a_, k, sign, x):
    return e - sign * a_ * np.exp(-k * np.log(x))


def _t(level: float, dof: int) -> float:
    return float(stats.t.ppf(0.5 + level / 2, max(dof, 1)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lack_of_fit(x: Array, y: Array, rss: float) -> float | None:
    """p-value of the F test of scatter around the law against scatter between seeds."""
    sizes, means, count = _means(x, y)
    dof, pure_dof = len(sizes) - 3, len(x) - len(sizes)
    if dof < 1 or pure_dof < 1:
        return None
    pure = ((y - means[np.searchsorted(sizes, x)]) ** 2).sum()
    if pure <= 0:
        return None
    return float(stats.f.sf(max(rss - pure, 0) / dof / (pure / pure_dof), dof, pure_dof))


def fit_law(
    x: Sequence[float] | Array,
    y: Sequence[float] | Array,
    *,
    axis: str = "examples",
    metric: str = "auc",
    larger_is_better: bool | None = None,
    huber: float = 0.0,
    level: float = 0.9,
    unit: str = "size",
) -> LawFit:
    """Fits value = E -+ A / X^a.

    Args:
      x, y: Sizes and metric values; several seeds of one size are several points.
      axis, metric: Their names.
      larger_is_better: Default: unless the metric is a loss.
      huber: 0 for least squares, else the Huber threshold in robust standard deviations (1.345 is
        usual).
      level: Of the intervals.
      unit: What varies independently: "size" (the mean at each size), or "seed" (every point):
        narrower, and too narrow as soon as the seeds of a size share noise, such as the data prefix.

    Raises:
      FitError: Fewer than 4 sizes: three parameters go through any three sizes and nothing is
        tested.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    better = "loss" not in metric if larger_is_better is None else larger_is_better
    sizes = len(np.unique(x))
    if sizes < MIN_SIZES:
        raise FitError(
            f"{sizes} sizes of {axis!r} cannot support a law with three parameters: measure at least "
            f"{MIN_SIZES}, better 5, over two orders of magnitude"
        )
    if not (np.isfinite(y).all() and (x > 0).all()):
        raise FitError(f"{metric} must be finite and {axis} positive")
    if better and y.max() >= 1:
        raise FitError(
            f"{metric} reaches {y.max()}, and the ceiling of the law lies below 1: is the metric right?"
        )
    if unit not in ("size", "seed"):
        raise ValueError(f"unit is 'size' or 'seed', not {unit!r}")
    lack = _lack_of_fit(x, y, _solve(_problem(x, y, better))[3])
    u, v, count = _means(x, y) if unit == "size" else (x, y, np.ones_like(x))
    p = _problem(u, v, better, count.astype(float) * len(u) / count.sum())
    if huber:
        p = dataclasses.replace(p, w=_huber_weights(p, huber))
    ceiling, gap, a, rss = best = _solve(p)
    dof = len(u) - 3
    threshold = rss * (1 + _t(level, dof) ** 2 / dof) * (1 + 1e-9) + 1e-30
    region = _region(p, best, threshold)
    region[:, 1] *= p.scale ** region[:, 2]
    spread = ((y - y.mean()) ** 2).sum()
    return LawFit(
        axis, metric, ceiling, gap * p.scale**a, a, level,
        {n: (float(c.min()), float(c.max())) for n, c in zip("EAa", region.T, strict=True)},
        math.sqrt(rss / dof), float(1 - ((y - _law(ceiling, gap, a, p.sign, x / p.scale)) ** 2).sum() / spread),
        lack, tuple(x.tolist()), tuple(y.tolist()), better, huber, unit,
        _notes(x, p, best, region, lack, unit), _region=region,
    )  # fmt: skip


def _notes(
    x: Array, p: _Problem, best, region: Array, lack: float | None, unit: str
) -> tuple[str, ...]:
    """What the fit cannot tell, in words."""
    sizes, span = len(np.unique(x)), math.log10(x.max() / x.min())
    notes = [f"{sizes} sizes over {span:.1f} orders of magnitude, {len(x)} points"]
    if sizes < 5 or span < 1.5:
        notes.append(
            "too few sizes, or too narrow a range, to tell a power law from other saturating curves"
        )
    if best[2] >= EXPONENTS[-1] * 0.99 or region[:, 2].max() >= EXPONENTS[-1] * 0.99:
        notes.append("the exponent has no upper limit here: the larger sizes look saturated")
    if region[:, 0].max() >= p.high - 1e-9 and p.sign > 0:
        notes.append("the ceiling is not determined: the interval reaches 1")
    if lack is not None and lack < 0.1:
        notes.append(
            f"the law misses the means by more than the seeds scatter (p = {lack:.2g}): its form is wrong, or "
            "the seeds of a size share noise"
            + ("; intervals by seed are then too narrow, use unit='size'" if unit == "seed" else "")
        )
    if best[1] <= 0:
        notes.append("no growth with size was found")
    return tuple(notes)


# --------------------------------------------------------------------- held out, and rival families


def _power(x, y, better):
    p = _problem(x, y, better)
    e, g, a, _ = _solve(p)
    return lambda t: _law(e, g, a, p.sign, np.asarray(t) / p.scale)


def _constant(x, y, better):
    return lambda t: np.full(np.shape(t), y.mean())


def _logarithmic(x, y, better):
    slope, at = np.polyfit(np.log(x), y, 1)
    return lambda t: at + slope * np.log(t)


def _exponential(x, y, better):
    p = _problem(x, y, better)
    rates = 1 / np.geomspace(x.min() / 3, x.max() * 10, 300)
    e, g, rss = _linear(p, np.exp(-rates[:, None] * x))
    i = int(np.argmin(rss))
    return lambda t: e[i] - p.sign * g[i] * np.exp(-rates[i] * np.asarray(t))


def _broken_power(x, y, better):
    """Two exponents, one break between interior sizes, continuous."""
    p = _problem(x, y, better)
    logs = np.log(x / p.scale)
    exponents = np.geomspace(0.02, 3, 24)
    grid = np.array(list(itertools.product(exponents, exponents, np.unique(logs)[1:-1])))

    def basis(rows, t):
        return np.exp(-np.where(t < rows[:, 2:], rows[:, :1], rows[:, 1:2]) * (t - rows[:, 2:]))

    e, g, rss = _linear(p, basis(grid, logs))
    i = int(np.argmin(rss))
    return lambda t: (
        e[i] - p.sign * g[i] * basis(grid[i : i + 1], np.log(np.atleast_1d(t) / p.scale))[0]
    )


# name -> (fit, number of parameters)
FAMILIES: Mapping[str, tuple[Callable, int]] = {
    "power": (_power, 3),
    "constant": (_constant, 1),
    "logarithmic": (_logarithmic, 2),
    "exponential": (_exponential, 3),
    "broken power": (_broken_power, 5),
}


def compare(x, y, *, larger_is_better: bool = True) -> dict[str, dict[str, Any]]:
    """Each family's error in predicting the mean at a size from the smaller sizes only.

    Returns:
      family -> {"largest": predicted - observed at the largest size, "rolling_rmse": over the last
      `sizes` sizes, the same ones for every family}; None and "why" for a family with as many
      parameters as there are smaller sizes.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    sizes, means, _ = _means(x, y)
    usable = [k for _, k in FAMILIES.values() if k < len(sizes)]
    first = max(MIN_SIZES, *usable) if usable else MIN_SIZES
    out: dict[str, dict[str, Any]] = {}
    for name, (fit, parameters) in FAMILIES.items():
        if first >= len(sizes) or parameters > first:
            why = f"{parameters} parameters need at least {max(MIN_SIZES, parameters) + 1} sizes"
            out[name] = {"largest": None, "rolling_rmse": None, "sizes": 0, "why": why}
            continue
        errors = []
        for size, mean in zip(sizes[first:], means[first:], strict=True):
            curve = fit(x[x < size], y[x < size], larger_is_better)
            errors.append(float(np.ravel(curve(size))[0] - mean))
        rmse = math.sqrt(np.mean(np.square(errors)))
        out[name] = {"largest": errors[-1], "rolling_rmse": rmse, "sizes": len(errors)}
    return out


def leave_largest_out(x, y, **options) -> dict[str, Any]:
    """Fits without the largest size and predicts the mean of its runs, with an interval of
    `level`."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    top = x == x.max()
    law = fit_law(x[~top], y[~top], **options)
    low, high = law.interval(x.max(), seeds=int(top.sum()))
    observed = float(y[top].mean())
    return {
        "x": float(x.max()), "seeds": int(top.sum()), "observed": observed, "predicted": law.predict(x.max()),
        "low": low, "high": high, "inside": bool(low <= observed <= high), "level": law.level,
    }  # fmt: skip


def study(x, y, **options) -> LawFit:
    """`fit_law` with its held-out prediction and rivals: what the report shows."""
    law = fit_law(x, y, **options)
    try:
        held = leave_largest_out(x, y, **options)
    except FitError as e:
        held = {"why": f"no held-out prediction: {e}"}
    rivals = compare(x, y, larger_is_better=law.larger_is_better)
    return dataclasses.replace(law, holdout=held, competitors=rivals)


# ---------------------------------------------------------------------------------------- bootstrap


def bootstrap(
    x,
    y,
    *,
    at: float,
    kind: str = "cases",
    n: int = 400,
    seed: int = 0,
    level: float = 0.9,
    **options,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of E, a and the prediction at `at`, beside the profile's.

    Args:
      x, y: Points.
      at: X of the prediction.
      kind: "cases" draws (size, seed) points anew, keeping at least 4 sizes; "residuals" draws the
        residuals, inflated
        by sqrt(n / (n - 3)), around the fitted law. Both cover less than they say on a few points;
        see the tests.
      n, seed, level: Resamples, their seed, and the level of the interval.
      **options: Of `fit_law`.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    law, rng = fit_law(x, y, **options), np.random.default_rng(seed)
    fitted = _law(law.E, law.A, law.a, law.sign, x)
    residual = (y - fitted) * math.sqrt(len(x) / (len(x) - 3))
    draws: list[tuple[float, float, float]] = []
    while len(draws) < n:
        rows = rng.integers(len(x), size=len(x))
        if kind == "cases" and len(np.unique(x[rows])) < MIN_SIZES:
            continue
        u, v = (x[rows], y[rows]) if kind == "cases" else (x, fitted + residual[rows])
        p = _problem(u, v, law.larger_is_better)
        e, g, a, _ = _solve(p, refine=False)
        draws.append((e, a, float(_law(e, g, a, p.sign, at / p.scale))))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {k: (float(low[i]), float(high[i])) for i, k in enumerate(("E", "a", "prediction"))}


# ---------------------------------------------------------------------------------------- joint law


@dataclasses.dataclass(frozen=True)
class JointFit:
    """value = E + A / N^a + B / D^b, N the model's size and D the examples; for a loss.

    `intervals` are percentiles of a residual bootstrap: E, a, b -> (low, high).
    """

    size: str
    data: str
    metric: str
    E: float
    A: float
    a: float
    B: float
    b: float
    sigma: float
    r2: float
    level: float
    intervals: Mapping[str, tuple[float, float]]
    points: int

    def predict(self, n: float, d: float) -> float:
        """The law at model size n and d examples."""
        return self.E + self.A * n**-self.a + self.B * d**-self.b

    def to_json(self) -> dict[str, Any]:
        return _plain(dataclasses.asdict(self))


def _joint_linear(logs: Array, y: Array, exponents) -> tuple[Array, float]:
    """Best (E, A, B) >= 0 at the middle of the range, and the residual norm."""
    return optimize.nnls(
        np.column_stack([np.ones(len(y)), np.exp(-logs * np.asarray(exponents))]), y
    )


def _joint_solve(logs: Array, y: Array, start: Array | None = None) -> tuple[Array, Array, float]:
    """((E, A, B), (a, b), residual norm): a grid unless `start` is given, then Nelder-Mead on the
    logarithms."""
    cost = lambda t: _joint_linear(logs, y, np.exp(np.clip(t, -5, 1.5)))[1]  # noqa: E731
    if start is None:
        grid = np.log(np.geomspace(0.03, 2.5, 16))
        start = np.array(min(itertools.product(grid, grid), key=cost))
    found = optimize.minimize(
        cost, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15}
    )
    exponents = np.exp(np.clip(found.x, -5, 1.5))
    coefficients, norm = _joint_linear(logs, y, exponents)
    return coefficients, exponents, float(norm)


def fit_joint(
    n, d, y, *, size: str = "n_blocks", data: str = "examples", metric: str = "logloss",
    level: float = 0.9, draws: int = 60, seed: int = 0,
) -> JointFit:  # fmt: skip
    """Fits the joint law to a grid of model sizes `n`, examples `d` and losses `y` (all [points]).

    Raises:
      FitError: Fewer than 3 sizes on an axis, or no more points than the law's five parameters.
    """
    n, d, y = (np.asarray(v, np.float64) for v in (n, d, y))
    for name, v in ((size, n), (data, d)):
        if len(np.unique(v)) < 3:
            raise FitError(
                f"{len(np.unique(v))} values of {name!r} cannot support an exponent: measure at least 3"
            )
    if len(y) <= 5:
        raise FitError(f"{len(y)} points cannot support five parameters")
    logs = np.log(np.column_stack([n, d]))
    centre = logs.mean(0)
    logs -= centre
    linear, exponents, norm = _joint_solve(logs, y)
    fitted = linear[0] + np.exp(-logs * exponents) @ linear[1:]
    residual = (y - fitted) * math.sqrt(len(y) / (len(y) - 5))
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        c, k, _ = _joint_solve(logs, fitted + rng.choice(residual, len(y)), np.log(exponents))
        found.append((c[0], *k))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
    a_, b_ = linear[1:] * np.exp(centre * exponents)
    return JointFit(
        size, data, metric, float(linear[0]), float(a_), float(exponents[0]), float(b_), float(exponents[1]),
        norm / math.sqrt(len(y) - 5), float(1 - norm**2 / ((y - y.mean()) ** 2).sum()), level,
        {k: (float(low[i]), float(high[i])) for i, k in enumerate("Eab")}, len(y),
    )  # fmt: skip
