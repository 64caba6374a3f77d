"""Ranking within groups, and uplift: exact figures on the host (NumPy, float64)."""

import numpy as np

from recjax.metrics import Array, as_columns, ratio, run_starts, tie_blocks

# ------------------------------------------------------------------------------------------ ranking


def _ranked(scores, labels, groups) -> tuple[Array, Array, Array]:
    """(group code, rank from 1, label) by group and falling score; ties rank negatives first."""
    z, y, _ = as_columns(scores, labels, None)
    if not np.isfinite(z).all():
        raise ValueError("a score is not finite: ranking metrics need finite scores")
    code = np.unique(np.asarray(groups).ravel(), return_inverse=True)[1]
    order = np.lexsort((y, -z, code))
    code = code[order]
    starts = run_starts(code)
    rank = np.arange(len(code)) - starts[code] + 1
    return code, rank, y[order]


def hit_rate(scores, labels, groups, k: int) -> float:
    """HR@k: share of the groups with a positive that have one in their top k, ties at their worst."""
    code, rank, y = _ranked(scores, labels, groups)
    positives = np.bincount(code, y) > 0
    hits = np.bincount(code, y * (rank <= k)) > 0
    return ratio(hits[positives].sum(), positives.sum())


def recall(scores, labels, groups, k: int) -> float:
    """Recall@k: share of a group's positives among its top k, mean over groups with a positive."""
    code, rank, y = _ranked(scores, labels, groups)
    positives = np.bincount(code, y)
    found = np.bincount(code, y * (rank <= k))[positives > 0] / positives[positives > 0]
    return ratio(found.sum(), len(found))


def mean_average_precision(scores, labels, groups) -> float:
    """mAP: mean over groups with a positive of the mean precision at its positives."""
    code, rank, y = _ranked(scores, labels, groups)
    positives = np.bincount(code, y)
    found = np.cumsum(y) - (np.cumsum(positives) - positives)[code]
    precision = np.bincount(code, y * found / rank)[positives > 0] / positives[positives > 0]
    return ratio(precision.sum(), len(precision))


# ------------------------------------------------------------------------------------------- uplift


def _uplift_curve(uplift, treated, outcome) -> tuple[Array, ...]:
    """Cumulative (people, treated, control, outcomes of either), best predicted first, from 0."""
    u, t, y = (np.asarray(x, np.float64).ravel() for x in (uplift, treated, outcome))
    if not len(u) == len(t) == len(y):
        raise ValueError(
            f"{len(u)} uplifts, {len(t)} treatments and {len(y)} outcomes: give one of each per row"
        )
    if not np.isfinite(u).all() or set(np.unique(t)) != {0.0, 1.0}:
        raise ValueError("uplift must be finite and `treated` must hold both 0 (control) and 1")
    blocks = tie_blocks(-u, np.ones_like(u), t, 1 - t, t * y, (1 - t) * y)
    return tuple(np.r_[0.0, np.cumsum(b)] for b in blocks)


def auuc(uplift, treated, outcome) -> float:
    """Area under u(f) = f (mean outcome treated - control) over the top share f by predicted uplift.

    In outcomes per person (Gutierrez & Gerardy 2017); random targeting gives half the average effect.
    """
    n, nt, nc, yt, yc = _uplift_curve(uplift, treated, outcome)
    known = (nt > 0) & (nc > 0)
    gain = np.where(known, yt / np.maximum(nt, 1) - yc / np.maximum(nc, 1), 0.0) * n / n[-1]
    return float(np.trapezoid(gain, n / n[-1]))


def qini(uplift, treated, outcome) -> float:
    """Area between Q(f) = (Yt - Yc Nt / Nc) / N (Radcliffe 2007) and the straight line to its end."""
    n, nt, nc, yt, yc = _uplift_curve(uplift, treated, outcome)
    curve = np.where(nc > 0, yt - yc * nt / np.maximum(nc, 1), 0.0) / n[-1]
    return float(np.trapezoid(curve, n / n[-1]) - curve[-1] / 2)
