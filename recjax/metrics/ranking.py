"""Ranking within groups, and uplift: exact figures on the host (NumPy, float64)."""

import numpy as np

from recjax.metrics.classification import Array, as_columns, ratio, run_starts, tie_blocks

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


def kept_share(scores, reference, k: int) -> float:
    """HR@k of pre-ranking: share of the reference's top k that the scores' top k keeps; ties by place."""
    ours, theirs = (
        np.argsort(-np.asarray(x), axis=None, kind="stable") for x in (scores, reference)
    )
    if not 0 < k <= len(ours) == len(theirs):
        raise ValueError(
            f"k={k} of {len(ours)} and {len(theirs)} candidates: give 1 to their number"
        )
    return len(np.intersect1d(ours[:k], theirs[:k])) / k


def mean_average_precision(scores, labels, groups) -> float:
    """mAP: mean over groups with a positive of the mean precision at its positives."""
    code, rank, y = _ranked(scores, labels, groups)
    positives = np.bincount(code, y)
    found = np.cumsum(y) - (np.cumsum(positives) - positives)[code]
    precision = np.bincount(code, y * found / rank)[positives > 0] / positives[positives > 0]
    return ratio(precision.sum(), len(precision))


# ------------------------------------------------------------------------------------------- uplift


def _uplift_curve(uplift, treated, outcome, weights) -> tuple[Array, ...]:
    """Cumulative (people, treated, control, outcomes of either), best predicted first, from 0."""
    u, t, y = (np.asarray(x, np.float64).ravel() for x in (uplift, treated, outcome))
    w = np.ones_like(u) if weights is None else np.asarray(weights, np.float64).ravel()
    if not len(u) == len(t) == len(y) == len(w):
        raise ValueError(
            f"{len(u)} uplifts, {len(t)} treatments and {len(y)} outcomes: give one of each per row"
        )
    if not np.isfinite(u).all() or set(np.unique(t)) != {0.0, 1.0}:
        raise ValueError("uplift must be finite and `treated` must hold both 0 (control) and 1")
    blocks = tie_blocks(-u, w, w * t, w * (1 - t), w * t * y, w * (1 - t) * y)
    return tuple(np.r_[0.0, np.cumsum(b)] for b in blocks)


def uplift_curve(uplift, treated, outcome, weights=None) -> tuple[Array, Array]:
    """(share targeted f, f (mean outcome treated - control) in it), best predicted first; 0 / 0 is 0.

    Equal predictions are one step, as in scikit-uplift, whose curves are these times the squared number of people.
    """
    n, nt, nc, yt, yc = _uplift_curve(uplift, treated, outcome, weights)
    gain = yt / np.where(nt > 0, nt, 1) - yc / np.where(nc > 0, nc, 1)
    return n / n[-1], gain * n / n[-1]


def qini_curve(uplift, treated, outcome, weights=None) -> tuple[Array, Array]:
    """(share targeted f, Q(f) = (Yt - Yc Nt / Nc) / N), Radcliffe 2007; Yt / N where nobody is in control yet."""
    n, nt, nc, yt, yc = _uplift_curve(uplift, treated, outcome, weights)
    return n / n[-1], (yt - yc * nt / np.where(nc > 0, nc, 1)) / n[-1]


def auuc(uplift, treated, outcome, weights=None) -> float:
    """Area under the uplift curve.

    In outcomes per person (Gutierrez & Gerardy 2017); random targeting gives half the average effect.
    """
    share, gain = uplift_curve(uplift, treated, outcome, weights)
    return float(np.trapezoid(gain, share))


def qini(uplift, treated, outcome, weights=None) -> float:
    """Area between the Qini curve and the straight line to its end, in outcomes per person."""
    share, curve = qini_curve(uplift, treated, outcome, weights)
    return float(np.trapezoid(curve, share) - curve[-1] / 2)
