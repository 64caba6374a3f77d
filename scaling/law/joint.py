"""The law in several sizes at once, loss = E + sum_k A_k / x_k^a_k, with effects that all runs of a size and all points of a run share.

With model size N and examples D this is the joint law of Hoffmann et al. (2022, arXiv 2203.15556, eq. 2) for a loss; an
AUC is fitted as the loss 1 - AUC. History length is a third size where it was varied. Where what one of the first two sizes
is worth depends on the other (tested), the law has one term more, C / (x_1^a_1 x_2^a_2).

    y = law + u[size and draw of the data] + v[run] + e

All runs of a study read one order of the data and are judged on one test set, so the points of one data size share noise, and
seven sizes are seven draws of it, however many runs there are; a study with several data seeds has as many times more. The variances are estimated by restricted likelihood on the
linearised law (`scaling.law.components`), the law by generalised least squares (`scaling.law.surface`). Intervals are percentiles of
a parametric bootstrap, widened by t over normal quantile with Satterthwaite's degrees of freedom of the quantity asked for:
what rests on the sizes of the data has few, what rests on seeds has many. `python -m scaling.law.coverage` measures how often they
cover the truth; the table is in `scaling/README.md`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
from scipy import stats

from recjax.metrics import classification
from recjax.runtime.run import plain
from scaling.law import components, surface
from scaling.law.fit import LACK, FitError, count
from scaling.law.notes import Note
from scaling.law.support import Support

Array = np.ndarray
Parameters = tuple[Array, Array]  # linear [P], log exponents [K]
MIN_AXIS = 3  # values of a size, for an exponent of it
DIVERGED = 7.0  # robust standard deviations from the law, and from the other points of its size
INTERACTION = 0.01  # level of its test


@dataclasses.dataclass(frozen=True)
class JointFit:
    """A fitted joint law.

    Attributes:
      axes: Names of the sizes, such as ("n_blocks", "examples").
      metric: What it predicts.
      larger_is_better: The sign: E is a ceiling, or a floor.
      E: Of the metric itself.
      A, a: Coefficient and exponent of each axis. A negative A: larger was worse.
      C: Coefficient of the interaction of the first two axes, or 0.
      found: axis -> whether an effect of it was found; without one its A and a mean nothing.
      sds: Standard deviations of the effects that a size, a run and a point have.
      r2: Share of the variance explained.
      level: Of every interval.
      intervals: "E" and each axis's exponent -> (low, high).
      support: The measured cells.
      points, runs: How many.
      lack_of_fit: p-value that the law misses the means of the cells by no more than seeds scatter; None without replicates.
      notes: What belongs beside its numbers.
    """

    axes: tuple[str, ...]
    metric: str
    larger_is_better: bool
    E: float
    A: tuple[float, ...]
    a: tuple[float, ...]
    C: float
    sds: Mapping[str, float]
    r2: float
    level: float
    support: Support
    points: int
    runs: int
    lack_of_fit: float | None = None
    found: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    _state: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def sign(self) -> int:
        return 1 if self.larger_is_better else -1

    @property
    def spans(self) -> dict[str, tuple[float, float]]:
        """axis -> (smallest, largest) measured."""
        cells = self.support.cells
        return {
            n: (float(c.min()), float(c.max())) for n, c in zip(self.axes, cells.T, strict=True)
        }

    def predict(self, sizes: Mapping[str, float]) -> float:
        """The law at these sizes, one for each axis."""
        return float(self._metric(self._state.values(self._at(sizes))[0]))

    def interval(self, sizes: Mapping[str, float], seeds: int = 0) -> tuple[float, float]:
        """Interval of the law there, or with seeds > 0 of the mean of that many new runs, the size's own effect included."""
        low, high = self._state.interval(
            lambda c, t: self._state.form_values(c, t, self._at(sizes)), self.level
        )
        low, high = sorted((self._metric(low), self._metric(high)))
        middle = self.predict(sizes)
        noise = self._state.new_runs(self.level, seeds, self._at(sizes)[0]) if seeds else 0.0
        low, high = (
            middle - math.hypot(middle - low, noise),
            middle + math.hypot(high - middle, noise),
        )
        return max(low, 0.0), min(high, 1.0 if self.larger_is_better else math.inf)

    def gain(self, start: Mapping[str, float], end: Mapping[str, float]) -> dict[str, float]:
        """How much better `end` is than `start`: value, low, high; what both share cancels."""
        s, a, b = self._state, self._at(start), self._at(end)
        less = lambda c, t: s.form_values(c, t, a) - s.form_values(c, t, b)  # noqa: E731
        low, high = s.interval(less, self.level)
        moved = [n for n in self.axes if start[n] != end[n]]
        if not any(
            self.found.get(n, True) for n in moved
        ):  # a fit to no effect is of noise, and may lie beside nothing
            low, high = min(low, 0.0), max(high, 0.0)
        return dict(value=float(less(*s.best_as_batch)[0]), low=low, high=high)

    def needed(
        self, axis: str, target: float, sizes: Mapping[str, float]
    ) -> dict[str, float | None]:
        """The size of one axis at which the target is reached with the others as given; None: never."""
        s, i = self._state, self.axes.index(axis)
        at = self._at(dict(sizes) | {axis: math.exp(s.centre[i])})  # x^-a is 1 in the middle
        loss = 1 - target if self.larger_is_better else target

        def log_size(c: Array, t: Array) -> Array:
            a = np.exp(t[:, i])
            here = s.form_values(c, t, at)
            slope = c[:, 1 + i]
            if s.surface.cross and i < 2:
                slope = slope + c[:, -1] * s.surface.at(at).powers(t)[:, 0, 1 - i]
            gap = loss - (here - slope)  # what the term of this axis must shrink to
            with np.errstate(divide="ignore", invalid="ignore"):
                reached = np.where((gap > 0) & (slope > 0), np.log(slope / gap) / a, np.inf)
            return reached + s.centre[i]

        value = float(log_size(*s.best_as_batch)[0])
        low, high = s.interval(log_size, self.level)
        return {
            k: math.exp(v) if v < 600 else None
            for k, v in (("value", value), ("low", low), ("high", high))
        }

    def influence(self) -> list[dict[str, Any]]:
        """What each run alone does to the exponents: run, axis, the exponent without it, and `share` of the interval's half-width."""
        out = []
        for run, exponents in self._state.without_each_run().items():
            for axis, own, other in zip(self.axes, self.a, exponents, strict=True):
                low, high = self.intervals[axis]
                share = 2 * abs(other - own) / max(high - low, 1e-12)
                out.append(
                    dict(run=run, axis=axis, exponent=own, without=float(other), share=share)
                )
        return sorted(out, key=lambda r: -r["share"])

    def _at(self, sizes: Mapping[str, float]) -> Array:
        """Centred log sizes, [1, K]."""
        return np.log([[sizes[n] for n in self.axes]]) - self._state.centre

    def _metric(self, loss: float) -> float:
        return 1 - loss if self.larger_is_better else loss

    @property
    def bounded(self) -> dict[str, str]:
        """axis -> "lower" or "upper" where its exponent lies on that bound of the search."""
        ends = {n: surface.on_bound(math.log(a)) for n, a in zip(self.axes, self.a, strict=True)}
        return {n: end for n, end in ends.items() if end}

    @property
    def formula(self) -> str:
        """The law in words. An axis without an effect, or without an exponent, has no term: it is at the middle of its sizes."""
        powers = [n for n in self.axes if self.found[n] and n not in self.bounded]
        c, better = self._state.best[0], self.larger_is_better
        at_one = dict(zip(self.axes, np.exp(self._state.centre * np.array(self.a)), strict=True))
        a = dict(zip(self.axes, self.a, strict=True))
        terms = {n: c[1 + i] for i, n in enumerate(self.axes)}
        level, cross = c[0] + sum(v for n, v in terms.items() if n not in powers), ""
        if self.C:
            n, m = self.axes[:2]
            kept = [k for k in (n, m) if k in powers]
            if len(kept) == 2:
                cross = _term(
                    c[-1] * at_one[n] * at_one[m], f"({n}^{a[n]:.3g} {m}^{a[m]:.3g})", better
                )
            elif kept:
                terms[kept[0]] += c[-1]
            else:
                level += c[-1]
        text = f"{self.metric} = {_metric(better, float(level)):.4f}"
        text += (
            "".join(_term(terms[n] * at_one[n], f"{n}^{a[n]:.3g}", better) for n in powers) + cross
        )
        text += f" (the {'ceiling' if better else 'floor'} on its bound)" if c[0] <= 0 else ""
        none = [n for n in self.axes if not self.found[n]]
        text += f"; no effect of {' or '.join(none)} found" if none else ""
        return text + "".join(f"; no power law of {n} found" for n in self.bounded if self.found[n])

    def to_json(self) -> dict[str, Any]:
        names = [
            f.name for f in dataclasses.fields(self) if f.name not in ("_state", "support", "notes")
        ]
        more = {"law": self.formula, "spans": self.spans, "cells": self.support.cells,
                "notes": [n.to_json() for n in self.notes]}  # fmt: skip
        return plain({n: getattr(self, n) for n in names} | more)


def _term(coefficient: float, power: str, larger_is_better: bool) -> str:
    """ " - 2.1 / examples^0.23": how a term of the loss enters the metric."""
    mark = "-" if larger_is_better == (coefficient > 0) else "+"
    return f" {mark} {abs(coefficient):.4g} / {power}"


# ------------------------------------------------------------------------------------------- fitting


@dataclasses.dataclass(frozen=True)
class _State:
    """A fit's numbers: the points, their covariance, the best parameters and the bootstrap's."""

    surface: surface.Surface
    centre: Array
    loss: Array
    sizes: Array  # of the data, of each point
    runs: Array
    shared: int | None
    noise: components.Components
    best: Parameters
    dofs: tuple[int, int, int]
    draws: Parameters  # [M, P], [M, K]

    @property
    def best_as_batch(self) -> Parameters:
        return self.best[0][None], self.best[1][None]

    def values(self, at: Array) -> Array:
        return self.form_values(*self.best_as_batch, at)

    def form_values(self, c: Array, t: Array, at: Array) -> Array:
        """The law of each of M parameters at one place [1, K]: [M]."""
        return self.surface.at(at).values(c, t)[:, 0]

    def interval(self, what: Callable[[Array, Array], Array], level: float) -> tuple[float, float]:
        """Of what(linear [M, P], log exponents [M, K]) -> [M]."""
        own = float(what(*self.best_as_batch)[0])
        among = what(*self.draws)
        dof = self._dof(what)
        t = stats.t.ppf(0.5 + level / 2, dof)
        if not (math.isfinite(own) and np.isfinite(among).all()):  # widened by the quantile's level
            at = int(stats.norm.sf(t) * len(among))
            among = np.sort(among)
            return float(among[at]), float(among[-1 - at])
        wider = t / stats.norm.ppf(0.5 + level / 2)
        low, high = np.quantile(among, [(1 - level) / 2, (1 + level) / 2])
        return float(own - wider * max(own - low, 0)), float(own + wider * max(high - own, 0))

    def _dof(self, what) -> float:
        """Satterthwaite's degrees of freedom of a function of the parameters."""
        c, t = self.best
        theta = np.concatenate([c, t])
        steps = 1e-5 * np.maximum(abs(theta), 1e-3)
        moved = np.concatenate([theta + np.diag(steps), theta - np.diag(steps)])
        values = what(moved[:, : len(c)], moved[:, len(c) :])
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            gradient = (values[: len(theta)] - values[len(theta) :]) / (2 * steps)
        if not np.isfinite(gradient).all():
            return float(min(self.dofs))
        return _satterthwaite([gradient @ p @ gradient for p in self.parameter_parts()], self.dofs)

    def parameter_parts(self) -> list[Array]:
        """The covariance of the parameters that sizes, runs and points give."""
        root = self.noise.root()
        weights = np.linalg.pinv(root @ self.surface.jacobian(*self.best), rcond=1e-10) @ root
        return [weights @ p @ weights.T for p in self.noise.parts()]

    def new_runs(self, level: float, seeds: int, at: Array) -> float:
        """Half-width that new runs add to the law's own, at centred log sizes [K]; noise as at the nearest size of the data."""
        nearest = (
            0
            if self.shared is None
            else int(np.argmin(abs(self.surface.logs - at)[:, self.shared]))
        )
        size, run, point = self.noise.variances
        parts = [size, run / seeds, point * self.noise.noise[nearest] / seeds]
        return float(
            stats.t.ppf(0.5 + level / 2, _satterthwaite(parts, self.dofs)) * math.sqrt(sum(parts))
        )

    def without_each_run(self) -> dict[Any, Array]:
        """run -> exponents of the fit without it."""
        out, covariance = {}, self.noise.covariance()
        for run in np.unique(self.runs):
            kept = np.flatnonzero(self.runs != run)
            root = components.inverse_root(covariance[np.ix_(kept, kept)])
            form = self.surface.at(self.surface.logs[kept])
            out[run] = np.exp(
                surface.solve(form, self.loss[None, kept], root, self.best[1][None])[1][0]
            )
        return out


def _satterthwaite(parts: Sequence[float], dofs: Sequence[int]) -> float:
    kept = np.maximum(parts, 0)
    total = (kept**2 / np.array(dofs)).sum()
    return float(max(kept.sum() ** 2 / total, 1.0)) if total > 0 else float(max(dofs))


@dataclasses.dataclass(frozen=True)
class _Points:
    """What is fitted: [n] each, `logs` [n, K] about `centre`."""

    x: Array
    loss: Array
    runs: Array
    shared: int | None  # which axis's points share the data
    draw: Array  # which draw of the data

    @property
    def centre(self) -> Array:
        return np.log(self.x).mean(0)

    @property
    def logs(self) -> Array:
        return np.log(self.x) - self.centre

    @property
    def cell(self) -> Array:
        return np.unique(self.x, axis=0, return_inverse=True)[1].ravel()

    @property
    def sizes(self) -> Array:
        """Which size and draw of the data each point is of, as a number; without a shared axis each point is its own."""
        if self.shared is None:
            return np.arange(1.0, len(self.x) + 1)
        of_draw = np.unique(self.draw, return_inverse=True)[1]
        both = np.column_stack([self.x[:, self.shared], of_draw])
        return np.unique(both, axis=0, return_inverse=True)[1].ravel().astype(float)

    def noise(self) -> Array:
        at = np.zeros(len(self.x)) if self.shared is None else np.log(self.x[:, self.shared])
        return components.relative_noise(at, self.cell, self.loss)

    def only(self, kept: Array) -> "_Points":
        names = ("x", "loss", "runs", "draw")
        return dataclasses.replace(self, **{n: getattr(self, n)[kept] for n in names})


def fit_joint(
    sizes: Mapping[str, Sequence[float] | Array], y, *, metric: str = "logloss",
    larger_is_better: bool | None = None, runs: Sequence | None = None, shared: str = "examples",
    robust: bool = False, level: float = 0.9, draws: int = 150, seed: int = 0, influence: bool = True,
    data_seeds: Sequence | None = None,
) -> JointFit:  # fmt: skip
    """Fits the joint law.

    Args:
      sizes: axis -> its size at each point.
      y: Metric of the points. One that is not finite is set aside and named, and so is one that diverged: `DIVERGED` robust
        standard deviations from the law and from its replicates.
      metric: Its name.
      larger_is_better: Default: as `metrics.larger_is_better` knows the name.
      runs: Which run each point belongs to; None: each its own.
      shared: The axis whose points share noise whatever their run: that of the data.
      robust: Whether points far from the law count less (Huber's weights).
      level, draws, seed: Of the intervals.
      data_seeds: Which draw of the data each point read: points share the noise of a size within a draw. None: one draw.
      influence: Whether to refit without each run, for notes on those that move the exponents.

    Raises:
      FitError: Fewer than 3 values on an axis, no more points than parameters, or a size that is not positive.
    """
    names, y = tuple(sizes), np.asarray(y, np.float64)
    better = (
        classification.larger_is_better(metric) if larger_is_better is None else larger_is_better
    )
    x = np.column_stack([np.asarray(sizes[n], np.float64) for n in names])
    for name, column in zip(names, x.T, strict=True):
        if not (np.isfinite(column).all() and (column > 0).all()):
            raise FitError(f"{name} must be positive and finite in every point")
    of_run = np.arange(len(y)) if runs is None else np.asarray(runs)
    points = _Points(
        x, 1 - y if better else y, of_run, names.index(shared) if shared in names else None,
        np.zeros(len(y)) if data_seeds is None else np.asarray(data_seeds),
    )  # fmt: skip
    finite = np.isfinite(y)
    notes = [
        _set_aside(names, points, int(i), "its value is not finite")
        for i in np.flatnonzero(~finite)
    ]
    points = points.only(finite)
    _check(names, metric, points, better)
    for _ in range(2):
        kept = ~_diverged(points)
        notes += [_set_aside(names, points, int(i), f"it lies far from the law and from its replicates ({_metric(better, points.loss[i]):.4g})")
                  for i in np.flatnonzero(~kept)]  # fmt: skip
        points = points.only(kept)
    _check(names, metric, points, better)
    state, notes_of_form = _fit(names, points, robust, level)
    state = _with_draws(state, draws, seed)
    law = _described(names, metric, better, points, state, level)
    own = [*_notes(law), *(_notes_of_runs(law) if influence else ())]
    return dataclasses.replace(law, notes=(*own, *notes_of_form, *notes))


def _check(names: Sequence[str], metric: str, points: _Points, better: bool) -> None:
    for name, column in zip(names, points.x.T, strict=True):
        if len(np.unique(column)) < MIN_AXIS:
            raise FitError(
                f"{len(np.unique(column))} values of {name!r} cannot support an exponent: measure at least {MIN_AXIS}"
            )
    parameters = 1 + 2 * len(names)
    if len(points.loss) <= parameters:
        raise FitError(f"{len(points.loss)} points cannot support {parameters} parameters")
    if better and points.loss.min() <= 0:
        raise FitError(
            f"{metric} reaches {1 - points.loss.min():.4g}, and the ceiling of the law lies below 1: is the metric right?"
        )


def _metric(better: bool, loss: float) -> float:
    return 1 - loss if better else loss


def _diverged(points: _Points) -> Array:
    """Which points lie far from a robust law, their size's median residual taken off, and from the other points of their cell."""
    form, noise = surface.Surface(points.logs), points.noise()
    c, t, _ = surface.search(form, points.loss, np.diag(noise**-0.5))
    weight = 1.345 / np.maximum(
        abs(_standardised(points, points.loss - form.values(c[None], t[None])[0], noise)), 1.345
    )
    for _ in range(4):
        (c,), (t,), _ = surface.solve(
            form, points.loss[None], np.diag(np.sqrt(weight / noise)), t[None]
        )
        z = _standardised(points, points.loss - form.values(c[None], t[None])[0], noise)
        weight = 1.345 / np.maximum(abs(z), 1.345)
    alone = np.array([_from_replicates(points, i, noise) for i in range(len(noise))])
    scale = 1.4826 * np.median(
        abs((points.loss - form.values(c[None], t[None])[0]) / np.sqrt(noise))
    )
    far = (abs(z) > DIVERGED) & (alone > DIVERGED * max(scale, 1e-12))
    return far if far.mean() <= 0.1 else np.zeros_like(far)


def _standardised(points: _Points, rest: Array, noise: Array) -> Array:
    rest = rest.copy()
    for size in np.unique(points.sizes) if points.shared is not None else ():
        rest[points.sizes == size] -= np.median(rest[points.sizes == size])
    z = rest / np.sqrt(noise)
    return z / max(1.4826 * float(np.median(abs(z))), 1e-12)


def _from_replicates(points: _Points, i: int, noise: Array) -> float:
    """How far a point lies from the median of its cell's others, over its relative noise; infinite without others."""
    others = (points.cell == points.cell[i]) & (np.arange(len(noise)) != i)
    if not others.any():
        return math.inf
    return float(abs(points.loss[i] - np.median(points.loss[others])) / math.sqrt(noise[i]))


def _fit(
    names: Sequence[str], points: _Points, robust: bool, level: float
) -> tuple[_State, list[Note]]:
    """The additive law, or with the interaction where it is tested to be there."""
    state = _fitted(surface.Surface(points.logs), points, robust)
    if len(names) < 2 or len(points.loss) <= 2 + 2 * len(names):
        return state, []
    value, p = _interaction(state)
    if p >= INTERACTION:
        return state, []
    rises = "more" if value < 0 else "less"
    note = Note(
        "interaction",
        f"what {names[0]} is worth depends on {names[1]} (p = {p:.2g}): it pays {rises} where there are more {names[1]}, and the law has a "
        "term for it", numbers=dict(p=p),
    )  # fmt: skip
    return _fitted(dataclasses.replace(state.surface, cross=True), points, robust), [note]


def _fitted(form: surface.Surface, points: _Points, robust: bool) -> _State:
    """Least squares, then twice: the variances of its residuals, and generalised least squares with them."""
    base = points.noise()
    groups = (
        components.sharing(points.sizes),
        components.sharing(np.unique(points.runs, return_inverse=True)[1]),
    )
    noise = base
    c, t, _ = surface.search(form, points.loss, np.diag(noise**-0.5))
    for _ in range(2):
        rest = points.loss - form.values(c[None], t[None])[0]
        if robust:
            noise = base * np.maximum(abs(_standardised(points, rest, base)) / 1.345, 1)
        found = components.estimate(rest, form.jacobian(c, t), groups, noise)
        c, t, _ = surface.search(form, points.loss, found.root())
    n, sizes, runs = len(points.loss), len(np.unique(points.sizes)), len(np.unique(points.runs))
    dofs = max(sizes - 3, 1), max(runs - 3, 1), max(n - sizes - runs, n // 4, 1)
    return _State(
        form,
        points.centre,
        points.loss,
        points.sizes,
        points.runs,
        points.shared,
        found,
        (c, t),
        dofs,
        (c[None], t[None]),
    )


def _interaction(state: _State) -> tuple[float, float]:
    """(coefficient, p-value) of the product of the first two log sizes beside the law."""
    logs, root = state.surface.logs, state.noise.root()
    columns = np.column_stack([logs[:, 0] * logs[:, 1], state.surface.jacobian(*state.best)])
    weights = (np.linalg.pinv(root @ columns, rcond=1e-10) @ root)[0]
    value = float(weights @ (state.loss - state.surface.values(*state.best_as_batch)[0]))
    parts = [weights @ p @ weights for p in state.noise.parts()]
    t = value / math.sqrt(sum(parts))
    return value, float(2 * stats.t.sf(abs(t), _satterthwaite(parts, state.dofs)))


def _with_draws(state: _State, draws: int, seed: int) -> _State:
    """Laws refitted to losses drawn around the fitted one with the noise that was found."""
    rng, covariance = np.random.default_rng(seed), state.noise.covariance()
    mean = state.surface.values(*state.best_as_batch)
    losses = mean + rng.normal(size=(draws, len(state.loss))) @ np.linalg.cholesky(covariance).T
    # An exponent of next to no effect has several optima, and a draw may prefer another than the fit's.
    starts = state.best[1], np.log(np.full_like(state.best[1], 0.3))
    found = [
        surface.solve(state.surface, losses, state.noise.root(), np.tile(s, (draws, 1)))
        for s in starts
    ]
    best = np.argmin([cost for *_, cost in found], 0)
    c, t = (np.stack([f[i] for f in found])[best, np.arange(draws)] for i in (0, 1))
    return dataclasses.replace(state, draws=(c, t))


# ------------------------------------------------------------------------------------------- in words


def _described(names, metric, better, points: _Points, state: _State, level: float) -> JointFit:
    c, t = state.best
    k, a = len(names), np.exp(t)
    at_one = c[1 : 1 + k] * np.exp(state.centre * a)
    cross = float(c[-1] * np.exp(state.centre[:2] @ a[:2])) if state.surface.cross else 0.0
    rest = points.loss - state.surface.values(*state.best_as_batch)[0]
    law = JointFit(
        names, metric, better, _metric(better, float(c[0])), tuple(at_one.tolist()), tuple(a.tolist()), cross,
        dict(zip(components.PARTS, np.sqrt(state.noise.variances).tolist(), strict=True)),
        float(1 - (rest**2).sum() / ((points.loss - points.loss.mean()) ** 2).sum()), level,
        Support.of(dict(zip(names, points.x.T, strict=True))), len(points.loss), len(np.unique(points.runs)),
        lack_of_fit(state, points), _state=state,
    )  # fmt: skip
    floor = state.interval(lambda c, t: c[:, 0], level)
    ends = sorted(
        _metric(better, max(v, 0.0)) for v in floor
    )  # widened percentiles may leave what is possible
    intervals = {"E": (ends[0], ends[1])}
    for i, name in enumerate(names):
        of_axis: Callable = lambda c, t, i=i: np.exp(t[:, i])  # noqa: E731
        low, high = state.interval(of_axis, level)
        intervals[name] = max(low, surface.LOWEST), min(high, surface.HIGHEST)
    middle = dict(zip(names, np.exp(state.centre).tolist(), strict=True))
    found = {}
    for i, (name, (small, large)) in enumerate(law.spans.items()):
        gain = law.gain(middle | {name: small}, middle | {name: large})
        found[name] = gain["low"] > 0 or gain["high"] < 0 or (state.surface.cross and i < 2)
    return dataclasses.replace(law, intervals=intervals, found=found)


def lack_of_fit(state: _State, points: _Points) -> float | None:
    """p-value of the law's misfit of the cells' means, against the scatter of seeds; runs may have effects, sizes may not."""
    cells = np.eye(points.cell.max() + 1)[points.cell]
    n, m = cells.shape
    parameters = len(state.best[0]) + len(state.best[1])
    if n - m < 2 or m <= parameters:
        return None
    rest = points.loss - cells @ (cells.T @ points.loss / cells.sum(0))
    if not (rest**2).sum() > 0:
        return None
    none, run = np.zeros_like(state.noise.groups[0]), state.noise.groups[1]
    root = components.estimate(rest, cells, (none, run), state.noise.noise).root()
    w, x = root @ points.loss, root @ cells
    pure = float(((w - x @ np.linalg.lstsq(x, w, rcond=None)[0]) ** 2).sum())
    law = float(surface.solve(state.surface, points.loss[None], root, state.best[1][None])[2][0])
    dof = m - parameters
    return float(stats.f.sf(max(law - pure, 0) / dof / (pure / (n - m)), dof, n - m))


def _set_aside(names: Sequence[str], points: _Points, i: int, why: str) -> Note:
    where = ", ".join(f"{n} {count(v)}" for n, v in zip(names, points.x[i], strict=True))
    return Note(
        "set aside",
        f"run {points.runs[i]} at {where} was set aside: {why}",
        numbers=dict(run=str(points.runs[i])),
    )


def _notes(law: JointFit) -> list[Note]:
    notes = [
        Note(
            "points",
            f"{law.points} points of {law.runs} runs, {len(law.support.cells)} cells",
            False,
        )
    ]
    if law.lack_of_fit is not None and law.lack_of_fit < LACK:
        notes.append(Note(
            "lack of fit",
            f"the law misses the means of the cells by more than seeds scatter (p = {law.lack_of_fit:.2g}): its form is wrong, or points "
            "of one size share noise; the intervals allow for the second and not for the first",
            numbers=dict(p=law.lack_of_fit, sds=dict(law.sds)),
        ))  # fmt: skip
    for name in law.axes:
        notes += _notes_of_axis(law, name, law.bounded.get(name, ""))
    if law._state.best[0][0] <= 0:
        end, bound = ("ceiling", 1) if law.larger_is_better else ("floor", 0)
        notes.append(
            Note("bound", f"the {end} lies on its bound {bound}: these data do not determine it")
        )
    return notes


def _notes_of_runs(law: JointFit) -> list[Note]:
    """The runs, three at most, that alone move an exponent by more than half of its interval."""
    return [
        Note(
            "influence",
            f"run {r['run']} alone moves the exponent of {r['axis']} from {r['without']:.3g} to {r['exponent']:.3g}",
            numbers=r,
        )
        for r in law.influence()[:3]
        if r["share"] > 1 and law.found[r["axis"]]
    ]


def _notes_of_axis(law: JointFit, name: str, bound: str) -> list[Note]:
    if not law.found[name]:
        small, large = law.spans[name]
        middle = dict(zip(law.axes, np.exp(law._state.centre).tolist(), strict=True))
        gain = law.gain(middle | {name: small}, middle | {name: large})
        return [
            Note(
                "effect",
                f"the effect of {name} from {count(small)} to {count(large)} is not told apart from none: "
                f"{gain['value']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f}), since so few sizes cannot say how much of it "
                "their points share by chance",
                numbers=gain,
            )
        ]
    if not bound:
        return []
    means = (
        "a logarithm fits as well"
        if bound == "lower"
        else "all of its effect is at the smallest sizes"
    )
    return [
        Note("bound", f"the exponent of {name} lies on the {bound} bound of its search: {means}")
    ]
