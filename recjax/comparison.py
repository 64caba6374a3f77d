"""Is one model better than another, or was it luck? A paired bootstrap over groups of rows."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from recjax.metrics import (
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
      a, b: Scores [N]; probabilities for logloss.
      labels: [N].
      groups: [N] group keys: rows of one group are not independent.
      metric: "auc", "gauc" (within the same groups) or "logloss".
      n: Resamples.
      seed: Of the resampling.
      weights: [N] or None.
      level: Of the percentile interval.
    """
    return paired_seeds([a], [b], labels, groups, metric, n, seed, weights=weights, level=level)


def paired_seeds(
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
    """`paired_bootstrap` of the mean over pairs of runs: a draw takes groups, and seeds, with replacement.

    Args:
      a, b: Scores of each seed, [seeds, N]; those of one seed belong together.
      labels, groups, metric, n, seed, weights, level: As there.
    """
    code = np.unique(np.asarray(groups).ravel(), return_inverse=True)[1]
    of_a, of_b = ([_of_counts(metric, x, labels, code, weights) for x in side] for side in (a, b))
    pairs = list(zip(of_a, of_b, strict=True))
    size = int(code.max()) + 1
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n):
        counts = np.bincount(rng.integers(size, size=size), minlength=size).astype(np.float64)
        taken = np.bincount(rng.integers(len(pairs), size=len(pairs)), minlength=len(pairs))
        drawn = [(times, pair) for times, pair in zip(taken, pairs, strict=True) if times]
        draws.append(sum(t * (q(counts) - p(counts)) for t, (p, q) in drawn) / len(pairs))
    once = np.ones(size)
    mean_a, mean_b = (float(np.mean([f(once) for f in side])) for side in (of_a, of_b))
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    spread = float(np.nanstd(draws, ddof=1))
    return Paired(mean_b - mean_a, float(low), float(high), spread, mean_a, mean_b, size, n, level)


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
