"""Scaling laws with honest intervals.

    AUC = E - A / X^a        logloss = E + A / X^a

The form of the first is reported for the paper after SUAN by the same first author; for SUAN itself
neither its form nor its axis could be confirmed. E is the ceiling, below 1 for AUC and above 0 for
logloss; A >= 0; a > 0.

`scaling.law.rivals` judges a fit, `scaling.law.joint` has the law in two sizes, E + A / N^a + B / D^b.

Fitting is variable projection (`scaling.law.projection`). Intervals come from the profile: every (E, A,
a) whose sum of squares stays within an F threshold of the best is kept, and the interval of anything
(a, E, a prediction, the X that reaches a target) is its range over that set.
`tests/scaling/test_fit.py` measures how often they cover the truth.

Coverage of 90 % intervals, measured on 200 simulated sweeps (6 sizes x 3 seeds, a = 0.35; exponent /
held-out largest size / ceiling), with the mean at each size as the unit, which is the default, and
with every seed as a unit:

    noise                                      size as unit            seed as unit
    independent                                0.880 / 0.915 / 0.890   0.860 / 0.870 / 0.855
    as much again, shared by a size's seeds    0.890 / 0.910 / 0.890   0.725 / 0.705 / 0.735
    most of it shared by the points of a run   0.900 / 0.875 / 0.840   0.980 / 0.985 / 0.955   (with E beyond the best mean)
    independent, of a flat curve (A = 0)             - / 0.970 / 0.960

Percentile bootstraps of the first row (`scaling.law.joint.bootstrap`) covered 0.77 to 0.85 (60 sweeps), so
no report uses them. What all points share, the test set above all, goes into E unseen.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
from scipy import stats

from recjax.metrics import classification
from recjax.runtime.run import plain
from scaling.law.projection import (
    EXPONENTS,
    Array,
    Problem,
    huber_weights,
    problem,
    profile_region,
    size_means,
    solve,
)

MIN_SIZES = 4


class FitError(ValueError):
    """The points cannot support the law; the message says what is missing."""


# ------------------------------------------------------------------------------------------- points


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
    for limit, unit in ((1e15, ""), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}" if unit else f"{value:.1e}"
    return f"{value:.3g}"


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
        few points has a high one: judge the law by `holdout` and `competitors` (`scaling.law.rivals`).
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
        return float(power_law(self.E, self.A, self.a, self.sign, x))

    def interval(self, x: float, seeds: int = 0) -> tuple[float, float]:
        """Interval of the law at X, or with seeds > 0 of the mean of that many new runs there."""
        values = power_law(*self._region.T, self.sign, x)
        noise = 0.0
        if seeds:
            units = len(self.x) if self.unit == "seed" else len(set(self.x))
            share = len(self.x) / units / seeds  # seeds of a unit, for each one asked about
            if self.unit == "size":  # its seeds may share their noise: more of them promise nothing
                share = max(share, 1.0)
            noise = _t(self.level, units - 3) * self.sigma * math.sqrt(share)
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
        return plain({n: getattr(self, n) for n in names} | extra)

    @property
    def formula(self) -> str:
        if self.A <= 0:
            return f"{self.metric} = {self.E:.4f}, whatever {self.axis}"
        return f"{self.metric} = {self.E:.4f} {'-' if self.sign > 0 else '+'} {self.A:.4g} / {self.axis}^{self.a:.3g}"


def power_law(e, a_, k, sign, x):
    """E - sign * A / x^a."""
    return e - sign * a_ * np.exp(-k * np.log(x))


def _t(level: float, dof: int) -> float:
    return float(stats.t.ppf(0.5 + level / 2, max(dof, 1)))


def _lack_of_fit(x: Array, y: Array, rss: float) -> float | None:
    """p-value of the F test of scatter around the law against scatter between seeds."""
    sizes, means, count = size_means(x, y)
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
        usual). Down-weighted residuals shrink sigma: intervals are then some 10 % too narrow.
      level: Of the intervals.
      unit: What varies independently: "size" (the mean at each size), or "seed" (every point):
        narrower, and too narrow as soon as the seeds of a size share noise, such as the data prefix.

    Raises:
      FitError: Fewer than 4 sizes: three parameters go through any three sizes and nothing is
        tested.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    better = (
        classification.larger_is_better(metric) if larger_is_better is None else larger_is_better
    )
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
    lack = _lack_of_fit(x, y, solve(problem(x, y, better))[3])
    u, v, count = size_means(x, y) if unit == "size" else (x, y, np.ones_like(x))
    p = problem(u, v, better, count.astype(float) * len(u) / count.sum())
    if huber:
        p = dataclasses.replace(p, w=huber_weights(p, huber))
    ceiling, gap, a, rss = best = solve(p)
    dof = len(u) - 3
    threshold = rss * (1 + _t(level, dof) ** 2 / dof) * (1 + 1e-9) + 1e-30
    region = profile_region(p, best, threshold)
    region[:, 1] *= p.scale ** region[:, 2]
    spread = ((y - y.mean()) ** 2).sum()
    return LawFit(
        axis, metric, ceiling, gap * p.scale**a, a, level,
        {n: (float(c.min()), float(c.max())) for n, c in zip("EAa", region.T, strict=True)},
        math.sqrt(rss / dof), float(1 - ((y - power_law(ceiling, gap, a, p.sign, x / p.scale)) ** 2).sum() / spread),
        lack, tuple(x.tolist()), tuple(y.tolist()), better, huber, unit,
        _notes(x, p, best, region, lack, unit), _region=region,
    )  # fmt: skip


def _notes(
    x: Array, p: Problem, best, region: Array, lack: float | None, unit: str
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
