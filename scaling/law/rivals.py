"""What a fitted law is judged by: its prediction of the largest size, and rival families beside it."""

from collections.abc import Callable, Mapping
import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from scaling.law.fit import MIN_SIZES, FitError, LawFit, fit_law, power_law
from scaling.law.projection import linear, problem, size_means, solve


def _power(x, y, better):
    p = problem(x, y, better)
    e, g, a, _ = solve(p)
    return lambda t: power_law(e, g, a, p.sign, np.asarray(t) / p.scale)


def _constant(x, y, better):
    return lambda t: np.full(np.shape(t), y.mean())


def _logarithmic(x, y, better):
    slope, at = np.polyfit(np.log(x), y, 1)
    return lambda t: at + slope * np.log(t)


def _exponential(x, y, better):
    p = problem(x, y, better)
    rates = 1 / np.geomspace(x.min() / 3, x.max() * 10, 300)
    e, g, rss = linear(p, np.exp(-rates[:, None] * x))
    i = int(np.argmin(rss))
    return lambda t: e[i] - p.sign * g[i] * np.exp(-rates[i] * np.asarray(t))


def _broken_power(x, y, better):
    """Two exponents, one break between interior sizes, continuous."""
    p = problem(x, y, better)
    logs = np.log(x / p.scale)
    exponents = np.geomspace(0.02, 3, 24)
    grid = np.array(list(itertools.product(exponents, exponents, np.unique(logs)[1:-1])))

    def basis(rows, t):
        return np.exp(-np.where(t < rows[:, 2:], rows[:, :1], rows[:, 1:2]) * (t - rows[:, 2:]))

    e, g, rss = linear(p, basis(grid, logs))
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
    sizes, means, _ = size_means(x, y)
    usable = [k for _, k in FAMILIES.values() if k < len(sizes) - 1]
    first = max(MIN_SIZES, *usable) if usable else MIN_SIZES
    out: dict[str, dict[str, Any]] = {}
    for name, (fit, parameters) in FAMILIES.items():
        if first >= len(sizes) or parameters > first:
            why = (
                f"{parameters} parameters need at least {max(MIN_SIZES + 1, parameters + 2)} sizes"
            )
            out[name] = {"largest": None, "rolling_rmse": None, "sizes": 0, "why": why}
            continue
        errors = []
        for size, mean in zip(sizes[first:], means[first:], strict=True):
            curve = fit(x[x < size], y[x < size], larger_is_better)
            errors.append(float(np.ravel(curve(size))[0] - mean))
        rmse = math.sqrt(np.mean(np.square(errors)))
        out[name] = {"largest": errors[-1], "rolling_rmse": rmse, "sizes": len(errors)}
    return out


def leave_largest_out(x, y, runs=None, **options) -> dict[str, Any]:
    """Fits without the largest size and predicts the mean of its runs, with an interval of `level`.

    `decisive`: the interval is narrower (half its width) than the gain from the second-largest size, so that a law
    which predicts nothing new would have been caught.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    top = x == x.max()
    runs = None if runs is None else np.asarray(runs)[~top]
    law = fit_law(x[~top], y[~top], runs=runs, **options)
    low, high = law.interval(x.max(), seeds=int(top.sum()))
    observed, second = float(y[top].mean()), x[~top].max()
    gain = abs(observed - float(y[x == second].mean()))
    return {
        "gain": gain, "half_width": (high - low) / 2, "decisive": bool((high - low) / 2 < gain),
        "x": float(x.max()), "seeds": int(top.sum()), "observed": observed, "predicted": law.predict(x.max()),
        "low": low, "high": high, "inside": bool(low <= observed <= high), "level": law.level,
    }  # fmt: skip


def fit_judged(x, y, runs=None, **options) -> LawFit:
    """`fit_law` with its held-out prediction and rivals: what the report shows."""
    law = fit_law(x, y, runs=runs, **options)
    try:
        held = leave_largest_out(x, y, runs, **options)
    except FitError as e:
        held = {"why": f"no held-out prediction: {e}"}
    rivals = compare(x, y, larger_is_better=law.larger_is_better)
    return dataclasses.replace(law, holdout=held, competitors=rivals)
