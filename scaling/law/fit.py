"""Scaling laws with honest intervals.

    AUC = E - A / X^a        logloss = E + A / X^a

The form of the first is reported for the paper after SUAN by the same first author; for SUAN itself
neither its form nor its axis could be confirmed. E is the ceiling, below 1 for AUC and above 0 for
logloss; A >= 0; a > 0.

`scaling.law.rivals` judges a fit, `scaling.law.joint` has the law in two sizes, E + A / N^a + B / D^b.

Fitting is variable projection (`scaling.law.projection`). Intervals come from the profile: every (E, A,
a) whose sum of squares stays within an F threshold of the best is kept, and the interval of anything
(a, E, a prediction, the X that reaches a target) is its range over that set. The means at the sizes are weighted by
what noise they have (`scaling.law.components`: seeds scatter more at some sizes than at others), and where it is known
which run each point is of, what a run's points share, which no scatter around the law shows, is estimated and added to
the intervals of E and of predictions. `python -m scaling.law.coverage` measures how often they cover the truth.

Percentile bootstraps of the points, or of the residuals, covered 0.77 to 0.85 of 0.90 (60 sweeps), so no report uses them. What
all points share, the test set above all, goes into E unseen.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
from scipy import stats

from recjax.metrics import classification
from recjax.runtime.run import plain
from scaling.law import components
from scaling.law.notes import Note
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
LACK = 0.05  # p-value of the lack of fit below which it is noted


class FitError(ValueError):
    """The points cannot support the law; the message says what is missing."""


# ------------------------------------------------------------------------------------------- points


def points(
    rows: Iterable[Mapping[str, Any]], axis: str, metric: str, **where: Any
) -> tuple[Array, Array]:
    """(axis values, metric values) of the rows with every `where` column equal, ascending.

    Rows without the metric (null: it was undefined) are left out; a missing axis is an error.
    """
    x, y, _ = points_of_runs(rows, axis, metric, **where)
    return x, y


def points_of_runs(
    rows: Iterable[Mapping[str, Any]], axis: str, metric: str, **where: Any
) -> tuple[Array, Array, Array]:
    """`points`, and the name of each one's run: that of the pass from which a cooldown was forked."""
    chosen = [r for r in rows if all(r.get(k) == v for k, v in where.items())]
    found = []
    for r in chosen:
        if not isinstance(r.get(axis), int | float):
            raise FitError(
                f"run {r.get('run')!r} has no number in column {axis!r}; it has {sorted(r)}"
            )
        y = r.get(metric, r.get("metrics", {}).get(metric))
        if y is not None and math.isfinite(y):
            found.append((float(r[axis]), float(y), run_of(r)))
    if not found:
        raise FitError(
            f"no row has a finite {metric!r} (of {len(chosen)} rows with {where or 'any values'})"
        )
    x, y, runs = (np.array(v) for v in zip(*sorted(found), strict=True))
    if x[0] <= 0:
        raise FitError(f"{axis} must be positive, the smallest is {x[0]}")
    return x, y, runs


def run_of(row: Mapping[str, Any]) -> str:
    """The run that a row's point shares its seed and its noise with."""
    return f"{row.get('parent') or row.get('run')}/{row.get('member', 0)}"


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
      offset: Variance of the mean over runs of what the points of each share, and its degrees of freedom: part of the intervals of E
        and of predictions; 0 where runs are not known.
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
    offset: tuple[float, int] = (0.0, 1)
    notes: tuple[Note, ...] = ()
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
        ceiling, gap, a = self._region.T
        values = power_law(ceiling, gap, a, self.sign, x)
        units = len(self.x) if self.unit == "seed" else len(set(self.x))
        noise = 0.0
        if seeds:
            share = len(self.x) / units / seeds  # seeds of a unit, for each one asked about
            if self.unit == "size":  # its seeds may share their noise: more of them promise nothing
                share = max(share, 1.0)
            noise = self.sigma**2 * share
        middle = self.predict(x)
        low, high = (
            float(
                middle
                + side * _widened(abs(edge - middle), self.level, units - 3, noise, self.offset)
            )
            for side, edge in ((-1, values.min()), (1, values.max()))
        )
        return low, high

    def gain(self, start: float, end: float) -> dict[str, float]:
        """How much better the law is at `end` than at `start`: value, low, high; what both share cancels."""
        powers = lambda a_, k: a_ * (start**-k - end**-k)  # noqa: E731
        among = powers(*self._region.T[1:])
        return dict(
            value=float(powers(self.A, self.a)), low=float(among.min()), high=float(among.max())
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
        names = [f.name for f in dataclasses.fields(self) if f.name not in ("_region", "notes")]
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
            "notes": [n.to_json() for n in self.notes],
        }
        return plain({n: getattr(self, n) for n in names} | extra)

    @property
    def formula(self) -> str:
        if self.A <= 0:
            return f"{self.metric} = {self.E:.4f}, no effect of {self.axis} found"
        if any(n.kind == "bound" and "search" in n.text for n in self.notes):
            return f"no power law of {self.axis} found"
        law = f"{self.metric} = {self.E:.4f} {'-' if self.sign > 0 else '+'} {self.A:.4g} / {self.axis}^{self.a:.3g}"
        if self.E >= 1 and self.larger_is_better:
            return law + " (the ceiling on its bound)"
        return law + " (the floor on its bound)" * (self.E <= 0)


def power_law(e, a_, k, sign, x):
    """E - sign * A / x^a."""
    return e - sign * a_ * np.exp(-k * np.log(x))


def _t(level: float, dof: float) -> float:
    return float(stats.t.ppf(0.5 + level / 2, max(dof, 1)))


def _widened(half: float, level: float, dof: int, noise: float, offset: tuple[float, int]) -> float:
    """A half-width by t of `dof` degrees of freedom, with a variance as well known and one of its own degrees of freedom added."""
    own = (half / _t(level, dof)) ** 2 + noise
    variance, number = offset
    if not variance:
        return _t(level, dof) * math.sqrt(own)
    total = own + variance
    return _t(level, total**2 / (own**2 / max(dof, 1) + variance**2 / number)) * math.sqrt(total)


@dataclasses.dataclass(frozen=True)
class _Noise:
    """What the means at the sizes scatter by, besides what the runs share.

    Attributes:
      weight: Inverse variance of each size's mean, 1 in the mean over sizes.
      offset: As `LawFit` has it.
      lack_of_fit: p-value.
    """

    weight: Array
    offset: tuple[float, int]
    lack_of_fit: float | None


def _noise_of(x: Array, y: Array, runs: Array | None, best, p: Problem) -> _Noise:
    """From the residuals of an unweighted fit, where sizes have replicates."""
    sizes, _, count = size_means(x, y)
    if len(x) == len(sizes):
        return _Noise(np.ones(len(sizes)), (0.0, 1), None)
    ceiling, gap, a, _ = best
    index = np.searchsorted(sizes, x)
    means = np.eye(len(sizes))[index].T / count[:, None]  # [S, n]: the mean at each size
    basis = p.basis(a) if len(p.x) == len(x) else p.basis(a)[index]
    rest = y - (ceiling - p.sign * gap * basis)
    noise = components.relative_noise(np.log(x), index, y)
    run = np.zeros((len(x), len(x))) if runs is None else components.sharing(runs)
    jacobian = np.column_stack([np.ones(len(x)), basis, np.log(x / p.scale) * basis])
    found = components.estimate(rest, jacobian, (components.sharing(x), run), noise)
    size, shared, point = (means @ v @ means.T for v in found.parts())
    common = float(shared.sum() / shared.size)  # of the mean over sizes
    variance = np.diag(size + point) + np.maximum(np.diag(shared) - common, 0)
    number = 0 if runs is None else len(np.unique(runs))
    offset = (max(common, 0.0), number - 1) if number > 1 else (0.0, 1)
    weight = 1 / np.maximum(variance, 1e-300)
    return _Noise(weight / weight.mean(), offset, _lack_of_fit(x, y, run, noise, p))


def _lack_of_fit(x: Array, y: Array, run: Array, noise: Array, p: Problem) -> float | None:
    """p-value of the law's misfit of the means at the sizes, against the scatter of seeds; runs may have effects."""
    sizes, means, count = size_means(x, y)
    index = np.searchsorted(sizes, x)
    dof, pure_dof = len(sizes) - 3, len(x) - len(sizes)
    rest = y - means[index]
    if dof < 1 or pure_dof < 1 or not (rest**2).sum() > 0:
        return None
    cells = np.eye(len(sizes))[index]
    own = components.estimate(rest, cells, (np.zeros_like(run), run), noise).variances[2]
    # A level that all sizes share is the ceiling's, so what runs share leaves the misfit as it is.
    weighted = dataclasses.replace(p, x=sizes, y=means, w=count**2 / (cells.T @ noise))
    return float(stats.f.sf(solve(weighted)[3] / dof / own, dof, pure_dof))


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
    runs: Sequence[Any] | None = None,
) -> LawFit:
    """Fits value = E -+ A / X^a.

    Args:
      x, y: Sizes and metric values; several seeds of one size are several points.
      axis, metric: Their names.
      larger_is_better: Default: as `metrics.larger_is_better` knows the name.
      huber: 0 for least squares, else the Huber threshold in robust standard deviations (1.345 is
        usual). Down-weighted residuals shrink sigma: intervals are then some 10 % too narrow.
      level: Of the intervals.
      unit: What varies independently: "size" (the mean at each size), or "seed" (every point):
        narrower, and too narrow as soon as the seeds of a size share noise, such as the data prefix.
      runs: Which run each point is of; None: not known, and then what the points of a run share is not in the intervals.

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
    means, values, _ = size_means(x, y)
    p = problem(means, values, better) if unit == "size" else problem(x, y, better)
    of_run = None if runs is None else np.unique(np.asarray(runs), return_inverse=True)[1]
    noise = _noise_of(x, y, of_run, solve(p), p)
    if unit == "size":
        p = dataclasses.replace(p, w=noise.weight)
    if huber:
        p = dataclasses.replace(p, w=huber_weights(p, huber))
    ceiling, gap, a, rss = best = solve(p)
    dof = len(p.x) - 3
    threshold = rss * (1 + _t(level, dof) ** 2 / dof) * (1 + 1e-9) + 1e-30
    region = profile_region(p, best, threshold)
    region[:, 1] *= p.scale ** region[:, 2]
    intervals = {n: (float(c.min()), float(c.max())) for n, c in zip("EAa", region.T, strict=True)}
    low, high = (
        float(
            np.clip(
                ceiling + side * _widened(abs(end - ceiling), level, dof, 0.0, noise.offset),
                0.0,
                1.0 if better else math.inf,
            )
        )
        for side, end in zip((-1, 1), intervals["E"], strict=True)
    )
    intervals["E"] = low, high
    spread = ((y - y.mean()) ** 2).sum()
    return LawFit(
        axis, metric, ceiling, gap * p.scale**a, a, level, intervals,
        math.sqrt(rss / dof), float(1 - ((y - power_law(ceiling, gap, a, p.sign, x / p.scale)) ** 2).sum() / spread),
        noise.lack_of_fit, tuple(x.tolist()), tuple(y.tolist()), better, huber, unit, noise.offset,
        _notes(x, p, best, region, noise.lack_of_fit, unit), _region=region,
    )  # fmt: skip


def _notes(
    x: Array, p: Problem, best, region: Array, lack: float | None, unit: str
) -> tuple[Note, ...]:
    """What the fit cannot tell."""
    sizes, span = len(np.unique(x)), math.log10(x.max() / x.min())
    about = f"{sizes} sizes over {span:.1f} orders of magnitude, {len(x)} points"
    notes = [Note("points", about, False, dict(sizes=sizes, orders=span, points=len(x)))]
    if sizes < 5 or span < 1.5:
        notes.append(Note(
            "range", "too few sizes, or too narrow a range, to tell a power law from other saturating curves"
        ))  # fmt: skip
    if best[1] <= 0:
        return (*notes, Note("effect", "no growth with size was found"))
    if best[2] >= EXPONENTS[-1] * 0.99:
        notes.append(
            Note(
                "bound",
                "the exponent lies on the upper bound of its search: the larger sizes look saturated",
            )
        )
    elif best[2] <= EXPONENTS[0] * 1.01:
        notes.append(
            Note(
                "bound",
                "the exponent lies on the lower bound of its search: a logarithm fits as well",
            )
        )
    elif region[:, 2].max() >= EXPONENTS[-1] * 0.99:
        notes.append(
            Note(
                "bound",
                "the exponent has no upper limit here: the larger sizes look saturated",
                False,
            )
        )
    if region[:, 0].max() >= p.high - 1e-9 and p.sign > 0:
        notes.append(
            Note(
                "bound",
                "the ceiling is not determined: the interval reaches 1",
                best[0] >= p.high - 1e-9,
            )
        )
    if lack is not None and lack < LACK:
        notes.append(Note(
            "lack of fit",
            f"the law misses the means by more than the seeds scatter (p = {lack:.2g}): its form is wrong, or "
            "the seeds of a size share noise"
            + ("; intervals by seed are then too narrow, use unit='size'" if unit == "seed" else ""),
            numbers=dict(p=lack),
        ))  # fmt: skip
    return tuple(notes)
