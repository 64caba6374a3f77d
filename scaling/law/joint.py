"""The law in several sizes at once, value = E -+ sum_k A_k / x_k^a_k, and bootstrap intervals of both kinds of law.

With model size N and examples D this is the joint law of Hoffmann et al. (2022, arXiv 2203.15556, eq. 2) for a loss; an
AUC is fitted as the loss 1 - AUC. History length is a third size where it was varied.

A run's points share its seed and its order of examples, so the run is what is resampled: each draw flips the sign of
all residuals of a run at once (wild cluster bootstrap), and the percentiles are widened by t over normal quantiles for
the number of runs. `tests/scaling/test_joint.py` measures the coverage.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import math
from typing import Any

import numpy as np
from scipy import optimize, stats

from recjax.metrics import classification
from recjax.runtime.run import plain
from scaling.law.fit import MIN_SIZES, FitError, fit_law, power_law
from scaling.law.projection import Array, problem, solve

MIN_AXIS = 3  # values of a size, for an exponent of it
GRID = {1: 60, 2: 16, 3: 9, 4: 6}  # starting exponents of each axis, by number of axes


@dataclasses.dataclass(frozen=True)
class JointFit:
    """A fitted joint law.

    Attributes:
      axes: Names of the sizes, such as ("n_blocks", "examples").
      metric: What it predicts.
      larger_is_better: The sign: E is a ceiling, or a floor.
      E: Of the metric itself.
      A, a: Coefficient and exponent of each axis.
      sigma: Residual standard deviation of one point.
      r2: Share of the variance explained.
      level: Of every interval.
      intervals: "E" and each axis's exponent -> (low, high).
      spans: axis -> (smallest, largest) measured.
      points, runs: How many.
    """

    axes: tuple[str, ...]
    metric: str
    larger_is_better: bool
    E: float
    A: tuple[float, ...]
    a: tuple[float, ...]
    sigma: float
    r2: float
    level: float
    intervals: Mapping[str, tuple[float, float]]
    spans: Mapping[str, tuple[float, float]]
    points: int
    runs: int
    _draws: Any = dataclasses.field(default=None, repr=False, compare=False)  # [M, 1 + 2 K]

    @property
    def sign(self) -> int:
        return 1 if self.larger_is_better else -1

    def predict(self, sizes: Mapping[str, float]) -> float:
        """The law at these sizes, one for each axis."""
        return float(self._values(self._parameters, sizes)[0])

    def interval(self, sizes: Mapping[str, float], seeds: int = 0) -> tuple[float, float]:
        """Interval of the law there, or with seeds > 0 of the mean of that many new runs."""
        middle = self.predict(sizes)
        low, high = self.interval_of(self._values(self._draws, sizes), middle)
        noise = _t(self.level, self.runs) * self.sigma / math.sqrt(seeds) if seeds else 0.0
        return middle - math.hypot(middle - low, noise), middle + math.hypot(high - middle, noise)

    def gain(self, start: Mapping[str, float], end: Mapping[str, float]) -> dict[str, float]:
        """How much better `end` is than `start`: value, low, high; what both share cancels."""
        own = self.sign * (self.predict(end) - self.predict(start))
        draws = self.sign * (self._values(self._draws, end) - self._values(self._draws, start))
        low, high = self.interval_of(draws, own)
        return dict(value=own, low=low, high=high)

    def needed(
        self, axis: str, target: float, sizes: Mapping[str, float]
    ) -> dict[str, float | None]:
        """The size of one axis at which the target is reached with the others as given; None: never."""
        i, others = self.axes.index(axis), {k: v for k, v in sizes.items() if k != axis}

        def reach(parameters: Array) -> Array:
            e, a_, k = self._split(parameters)
            rest = sum(
                a_[:, j] * others[name] ** -k[:, j] for j, name in enumerate(self.axes) if j != i
            )
            gap = self.sign * (e - target) - rest
            with np.errstate(divide="ignore", over="ignore"):
                return np.where(
                    gap > 0, (a_[:, i] / np.maximum(gap, 1e-300)) ** (1 / k[:, i]), np.inf
                )

        among = np.sort(reach(self._draws))
        # Widened as `interval_of` widens, but by the quantile's level: these draws may be infinite.
        at = int(float(stats.norm.sf(_t(self.level, self.runs))) * len(among))
        low, high = among[at], among[-1 - at]
        found = dict(value=float(reach(self._parameters)[0]), low=float(low), high=float(high))
        return {k: v if math.isfinite(v) else None for k, v in found.items()}

    def interval_of(self, draws: Array, middle: float) -> tuple[float, float]:
        low, high = np.quantile(draws, [(1 - self.level) / 2, (1 + self.level) / 2])
        wider = widening(self.level, self.runs)
        return float(middle + wider * min(low - middle, 0)), float(
            middle + wider * max(high - middle, 0)
        )

    @property
    def _parameters(self) -> Array:
        return np.array([[self.E, *self.A, *self.a]])

    def _split(self, parameters: Array) -> tuple[Array, Array, Array]:
        k = len(self.axes)
        return parameters[:, 0], parameters[:, 1 : 1 + k], parameters[:, 1 + k :]

    def _values(self, parameters: Array, sizes: Mapping[str, float]) -> Array:
        e, a_, k = self._split(parameters)
        x = np.array([sizes[name] for name in self.axes], float)
        return e - self.sign * (a_ * x**-k).sum(1)

    @property
    def formula(self) -> str:
        mark = "-" if self.larger_is_better else "+"
        terms = (
            f"{a:.4g} / {n}^{k:.3g}" for n, a, k in zip(self.axes, self.A, self.a, strict=True)
        )
        return f"{self.metric} = {self.E:.4f} {mark} " + f" {mark} ".join(terms)

    def to_json(self) -> dict[str, Any]:
        names = [f.name for f in dataclasses.fields(self) if f.name != "_draws"]
        return plain({n: getattr(self, n) for n in names} | {"law": self.formula})


def _t(level: float, runs: int) -> float:
    return float(stats.t.ppf(0.5 + level / 2, max(runs - 3, 2)))


def widening(level: float, runs: int) -> float:
    """t over normal quantile: percentiles of few runs are too narrow."""
    return _t(level, runs) / float(stats.norm.ppf(0.5 + level / 2))


def fit_joint(
    sizes: Mapping[str, Sequence[float] | Array], y, *, metric: str = "logloss",
    larger_is_better: bool | None = None, runs: Sequence | None = None,
    level: float = 0.9, draws: int = 120, seed: int = 0,
) -> JointFit:  # fmt: skip
    """Fits the joint law.

    Args:
      sizes: axis -> its size at each point.
      y: Metric of the points.
      metric: Its name.
      larger_is_better: Default: unless the metric is a loss.
      runs: Which run each point belongs to; None: each its own.
      level, draws, seed: Of the intervals.

    Raises:
      FitError: Fewer than 3 values on an axis, or no more points than parameters.
    """
    names, y = tuple(sizes), np.asarray(y, np.float64)
    better = (
        classification.larger_is_better(metric) if larger_is_better is None else larger_is_better
    )
    x = np.column_stack([np.asarray(sizes[n], np.float64) for n in names])
    for name, column in zip(names, x.T, strict=True):
        if len(np.unique(column)) < MIN_AXIS:
            raise FitError(
                f"{len(np.unique(column))} values of {name!r} cannot support an exponent: measure at least {MIN_AXIS}"
            )
    parameters = 1 + 2 * len(names)
    if len(y) <= parameters:
        raise FitError(f"{len(y)} points cannot support {parameters} parameters")
    loss = 1 - y if better else y
    logs = np.log(x)
    centre = logs.mean(0)
    logs -= centre
    linear, exponents, norm = _solve(logs, loss)
    fitted = _design(logs, exponents) @ linear
    residual = (loss - fitted) * math.sqrt(len(y) / (len(y) - parameters))
    _, run = np.unique(np.arange(len(y)) if runs is None else np.asarray(runs), return_inverse=True)
    rng, count, found = np.random.default_rng(seed), int(run.max()) + 1, []
    for _ in range(draws):
        flips = rng.choice([-1.0, 1.0], count)[run]
        c, k, _ = _solve(logs, fitted + flips * residual, np.log(exponents))
        found.append(_metric_parameters(c, k, centre, better))
    best = _metric_parameters(linear, exponents, centre, better)
    k = len(names)
    law = JointFit(
        names, metric, better, float(best[0]), tuple(best[1 : 1 + k].tolist()), tuple(exponents.tolist()),
        norm / math.sqrt(len(y) - parameters), float(1 - norm**2 / ((y - y.mean()) ** 2).sum()), level, {},
        {n: (float(c.min()), float(c.max())) for n, c in zip(names, x.T, strict=True)}, len(y), count, np.array(found),
    )  # fmt: skip
    columns = {"E": 0, **{n: 1 + k + i for i, n in enumerate(names)}}
    intervals = {n: law.interval_of(law._draws[:, i], float(best[i])) for n, i in columns.items()}
    most = {"E": 1.0 if better else math.inf}  # widened percentiles may leave what is possible
    intervals = {n: (max(a, 0.0), min(b, most.get(n, b))) for n, (a, b) in intervals.items()}
    return dataclasses.replace(law, intervals=intervals)


def _metric_parameters(linear: Array, exponents: Array, centre: Array, better: bool) -> Array:
    """(E of the metric, A at size 1, a) from the loss's (E, A) at the middle of the range."""
    floor = 1 - linear[0] if better else linear[0]
    return np.concatenate([[floor], linear[1:] * np.exp(centre * exponents), exponents])


def _design(logs: Array, exponents: Array) -> Array:
    return np.column_stack([np.ones(len(logs)), np.exp(-logs * exponents)])


def _solve(logs: Array, y: Array, start: Array | None = None) -> tuple[Array, Array, float]:
    """((E, A...) >= 0, a, residual norm): a grid unless `start` is given, then Nelder-Mead on the logarithms."""

    def exponents(t):
        return np.exp(np.clip(t, -5, 1.5))

    def cost(t):
        return optimize.nnls(_design(logs, exponents(t)), y)[1]

    axes = logs.shape[1]
    if start is None:
        grid = np.log(np.geomspace(0.03, 2.5, GRID[axes]))
        start = np.array(min(itertools.product(grid, repeat=axes), key=cost))
    options = {"xatol": 1e-9, "fatol": 1e-15, "maxiter": 400 * axes}
    found = optimize.minimize(cost, start, method="Nelder-Mead", options=options)
    linear, norm = optimize.nnls(_design(logs, exponents(found.x)), y)
    return linear, exponents(found.x), float(norm)


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
    fitted = power_law(law.E, law.A, law.a, law.sign, x)
    residual = (y - fitted) * math.sqrt(len(x) / (len(x) - 3))
    draws: list[tuple[float, float, float]] = []
    while len(draws) < n:
        rows = rng.integers(len(x), size=len(x))
        if kind == "cases" and len(np.unique(x[rows])) < MIN_SIZES:
            continue
        u, v = (x[rows], y[rows]) if kind == "cases" else (x, fitted + residual[rows])
        p = problem(u, v, law.larger_is_better)
        e, g, a, _ = solve(p, refine=False)
        draws.append((e, a, float(power_law(e, g, a, p.sign, at / p.scale))))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {k: (float(low[i]), float(high[i])) for i, k in enumerate(("E", "a", "prediction"))}
