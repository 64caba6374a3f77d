"""How much a past event says about the response: measured on data, and as a trained model has learnt it.

Category-wise target-aware correlation (CTC) of H. Zhou et al., "Temporal Interest Network for User Response Prediction", WWW
2024, arXiv 2308.08487, as their released script computes it: among the requests whose target has category c_t, let
X = 1 where the event at target-relative position p (1: most recent) has category c_i (0 too where the history is
shorter), Y the label:

    CTC(c_i, p, c_t) = sum over x, y of P(x, y) log2(P(x, y) / (P(x) P(y)))

What a trained model makes of the same cell is the mean of its function "correlation" (Cor = exp(attention logit) x norm of the
message; each model's file says which) over the events that fall into it. The script replaces missing counts by 1e-5; here
0 log 0 = 0, which differs by less than 1e-5 bits.
"""

import numpy as np

Array = np.ndarray


def mutual_information(both: Array, x: Array, y: Array, n: Array) -> Array:
    """Bits between two binary variables from counts: X and Y both one, X one, Y one, all. Broadcasts; 0 where n = 0."""
    n = np.asarray(n, np.float64)
    out = np.zeros(np.broadcast_shapes(*(np.shape(a) for a in (both, x, y, n))))
    cells = (
        (both, x, y),
        (x - both, x, n - y),
        (y - both, n - x, y),
        (n - x - y + both, n - x, n - y),
    )
    for joint, of_x, of_y in cells:
        with np.errstate(divide="ignore", invalid="ignore"):
            term = joint / n * np.log2(joint * n / (of_x * of_y))
        out += np.where(np.asarray(joint) > 0, term, 0.0)
    return np.maximum(out, 0.0)  # rounding


def position_counts(events: Array, mask: Array, target: Array, weight: Array, size: int) -> Array:
    """Weight of each (event category, position, target category), [size, L, size]; position 1 (the last slot) first.

    Args:
      events: int [N, L] categories, oldest first, left-padded.
      mask: bool [N, L].
      target: int [N].
      weight: [N], or [N, L] of each event.
      size: Categories are below it.
    """
    length = events.shape[1]
    position = np.broadcast_to(np.arange(length - 1, -1, -1), events.shape)
    cell = (events * length + position) * size + target[:, None]
    each = np.broadcast_to(weight if np.ndim(weight) == 2 else weight[:, None], events.shape)
    counts = np.bincount(cell[mask], each[mask], minlength=size * length * size)
    return counts.reshape(size, length, size)


def ctc(events: Array, mask: Array, target: Array, label: Array, size: int) -> Array:
    """CTC in bits, [size event categories, L positions, size target categories]; arguments as `position_counts`."""
    label = np.asarray(label, np.float64)
    seen = position_counts(events, mask, target, np.ones(len(label)), size)
    clicked = position_counts(events, mask, target, label, size)
    n = np.bincount(target, minlength=size)
    positive = np.bincount(target, label, minlength=size)
    return mutual_information(clicked, seen, positive, n)


def diagonal(grid: Array, weight: Array | None = None) -> Array:
    """Of [size, L, size], the mean over same-category cells by position [L]; NaN cells are left out."""
    same = np.einsum("ipi->ip", grid)
    weight = np.isfinite(same) * (1.0 if weight is None else np.einsum("ipi->ip", weight))
    return (np.nan_to_num(same) * weight).sum(0) / weight.sum(0)


def min_max(x: Array) -> Array:
    """Scaled to [0, 1] for display, as the authors' heat maps are; NaN stays, a constant becomes zeros."""
    low, high = np.nanmin(x), np.nanmax(x)
    return (x - low) / (high - low) if high > low else x - low
