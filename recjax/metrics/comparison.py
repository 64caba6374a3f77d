"""Is one model better than another, or was it luck? A paired bootstrap over groups of rows."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from recjax.metrics.classification import (
    Array,
    as_columns,
    auc_of_blocks,
    group_auc,
    log_losses,
    ratio,
    run_starts,
)


class Paired(NamedTuple):
    """metric(b) - metric(a) on the data, with its bootstrap standard error and interval."""

    difference: float
    low: float
    high: float
    std: float
    a: float
    b: float
    groups: int
    resamples: int
    level: float


def paired_bootstrap(
    a,
    b,
    labels,
    groups,
    metric: str = "auc",
    n: int = 200,
    seed: int = 0,
    *,
    weights=None,
    level: float = 0.95,
) -> Paired:
    """Compares two models on the same rows, resampling whole groups (visits, users), one draw for both.

    Args:
      a, b: Scores [N]; probabilities for logloss. Or [S, N], of S training seeds: a model's metric is
        then the mean over its seeds, and the interval is over the groups alone.
      labels: [N].
      groups: [N] group keys: rows of one group are not independent.
      metric: "auc", "gauc" (within the same groups) or "logloss".
      n: Resamples.
      seed: Of the resampling.
      weights: [N] or None.
      level: Of the percentile interval.
    """
    code = np.unique(np.asarray(groups).ravel(), return_inverse=True)[1]
    of_a, of_b = (_mean_of_counts(metric, x, labels, code, weights) for x in (a, b))
    size = int(code.max()) + 1
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n):
        counts = np.bincount(rng.integers(size, size=size), minlength=size).astype(np.float64)
        draws.append(of_b(counts) - of_a(counts))
    once = np.ones(size)
    values = of_a(once), of_b(once)
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    spread = float(np.nanstd(draws, ddof=1))
    return Paired(values[1] - values[0], float(low), float(high), spread, *values, size, n, level)


def _mean_of_counts(metric: str, scores, labels, code: Array, weights):
    """`_of_counts`, averaged over the rows of [S, N] scores."""
    runs = np.atleast_2d(np.asarray(scores))
    each = [_of_counts(metric, x, labels, code, weights) for x in runs]
    return lambda counts: sum(f(counts) for f in each) / len(each)


def _of_counts(metric: str, scores, labels, code: Array, weights) -> Callable[[Array], float]:
    """The metric as a function of how often each group was drawn; sorting happens once."""
    z, y, w = as_columns(scores, labels, weights)
    if not np.isfinite(z).all():
        raise ValueError("a score is not finite: compare models whose predictions are finite")
    if metric == "auc":
        order = np.argsort(z)
        starts, of = run_starts(z[order]), code[order]
        pos, neg = (w * y)[order], (w * (1 - y))[order]
        return lambda c: auc_of_blocks(
            np.add.reduceat(pos * c[of], starts), np.add.reduceat(neg * c[of], starts)
        )
    if metric == "gauc":
        _, area, weight = group_auc(z, y, code, w)
        weight = np.where(np.isfinite(area), weight, 0.0)
        total = np.nan_to_num(area) * weight
    elif metric == "logloss":
        weight = np.bincount(code, w)
        total = np.bincount(code, w * log_losses(z, y))
    else:
        raise ValueError(f"unknown metric {metric!r}; use auc, gauc or logloss")
    return lambda c: ratio(c @ total, c @ weight)


def half_width(values: np.ndarray, level: float = 0.95) -> float:
    """Of Student's t interval of the mean; NaN for one value."""
    n = len(values)
    if n < 2:
        return float("nan")
    return float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / n**0.5)
