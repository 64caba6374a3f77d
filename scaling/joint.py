"""The joint law of model size and examples, and bootstrap intervals: of it, and of the law in one size."""

from collections.abc import Mapping
import dataclasses
import itertools
import math
from typing import Any

import numpy as np
from scipy import optimize

from scaling.fit import MIN_SIZES, FitError, fit_law, plain, power_law
from scaling.projection import Array, problem, solve


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
        return plain(dataclasses.asdict(self))


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
