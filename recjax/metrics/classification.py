"""Metrics: mergeable sums on the device, exact figures on the host.

Device side (pure JAX, usable inside jit, vmap and on sharded batches):

    sums = init()                                    # one per objective
    sums = update(sums, logits, labels, weights)     # O(batch)
    sums = merge(sums, other)                        # or jax.tree.map(jnp.add, ...)
    compute(sums)                                    # {"auc": ..., "logloss": ..., ...}

Everything is read off one weighted histogram of the logit, whose bins also carry the predicted
mass, the loss and the count. Batches are added with compensated summation: 2,000 batches of 8,192
equal predictions, all in one bin, leave the logloss wrong by 4.6 % in plain float32 and by 4e-5
here.

The bins are uniform in 1/2 + z / (2 (S + |z|)), S = 4. Measured against the exact AUC
(`tests/metrics/test_metrics.py` holds it; worst of 3 seeds, 16,384 bins): CTR 50 %, 20 %, 3 % and 0.1 %,
2.2e-6 or better; the same logits times 4 (an overconfident model at CTR 3 %) 2e-6. Bins uniform in
the probability are off by 6e-4 at CTR 0.1 % and by 0.15 on the overconfident model, bins uniform
over logits in [-16, 16] by 2e-2: both run out of range. Predictions that differ by less than a bin
(0.0005 logits at z = 0, 0.0020 at z = -4) tie: a nearly constant model (sd 0.02 logits) is off by
7e-5.

Host side (NumPy, float64, ties count 1/2): `auc`, `gauc`, `logloss`, `ece`; `recjax.metrics.ranking`,
`recjax.evaluation.collector` and `recjax.metrics.comparison` stand on them. An undefined figure (one class only, NaN
scores) is NaN and comes with a reason, never 0.5.
"""

from collections.abc import Mapping
import math
import re
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

BINS = 16_384
SHARPNESS = 4.0
CHANNELS = ("positive", "negative", "predicted", "loss", "count")
ECE_BINS = 15
MATMUL_ROWS = 16_384  # bounds the one-hot matrices to 50 MB

Array = np.ndarray
Sums = dict[str, jax.Array]
Metrics = dict[str, Any]  # floats, and "undefined": str where one of them is NaN


class UndefinedMetric(UserWarning):
    """A metric is NaN; the message says why."""


# Names without the split before and the group or cut-off after: "test_auc", "click/gauc_visit", "hr10", "NDCG@10".
LARGER = (
    "auc gauc auuc qini uplift accuracy acc precision recall f1 map mrr ndcg hr hit hitrate hit_rate r2 "
    "average_precision pr_auc roc_auc win_rate bleu rouge"
).split()
SMALLER = (
    "loss logloss log_loss nce_loss nll ne normalized_entropy cross_entropy entropy bce ece ece_width brier mse rmse rmsle mae mape "
    "perplexity ppl bpb bpc bits_per_byte error error_rate wer cer"
).split()
NEITHER = (
    "drop gap regret cost diff delta std se groups covered".split()
)  # as the end of a name: of something else
_SPLITS = "train|training|val|valid|validation|dev|eval|test|heldout"


def larger_is_better(metric: str) -> bool:
    """The direction of a metric whose name is known ("auc", "click/logloss", "val_bpb", "gauc_visit", "HR@10").

    Raises:
      ValueError: The name is not known; a direction is never guessed.
    """
    name = metric.rpartition("/")[2].lower()
    name = re.sub(f"^({_SPLITS})_", "", name)
    if re.fullmatch(rf"({'|'.join(SMALLER)})\d*|\w+_loss", name):
        return False
    known = re.fullmatch(rf"({'|'.join(LARGER)})[@_]?\d*(?:_([a-z]\w*))?", name)
    if known and (known[2] or "").rpartition("_")[2] not in (*SMALLER, *NEITHER):
        return True
    raise ValueError(
        f"whether a larger {metric!r} is better is not known from its name; give it: larger_is_better=True or False"
    )


# ------------------------------------------------------------------------------------------- device


def init(bins: int = BINS) -> Sums:
    """Empty sums: `hist` float32 [bins, 5] (see `CHANNELS`); `low`, what rounding took from it; and
    `bad`, the number of non-finite predictions."""
    zeros = jnp.zeros((bins, len(CHANNELS)), jnp.float32)
    return {"hist": zeros, "low": zeros.copy(), "bad": jnp.zeros((), jnp.float32)}


def bin_of(logits, bins: int):
    """Index of the histogram bin, rising with the logit; for NumPy and JAX arrays alike."""
    unit = 0.5 + 0.5 * logits / (SHARPNESS + abs(logits))
    return (unit * bins).astype("int32").clip(0, bins - 1)


def channels(xp, logits, labels, weights):
    """What each example adds to its bin, [N, 5]."""
    probability = xp.exp(-xp.logaddexp(0.0, -logits))  # accurate at 1e-6 too, unlike 0.5 + 0.5 tanh
    loss = xp.logaddexp(0.0, logits) - labels * logits
    columns = (labels, 1.0 - labels, probability, loss)
    return xp.stack([*(weights * c for c in columns), (weights > 0).astype(logits.dtype)], axis=-1)


def _scatter(index: jax.Array, values: jax.Array, bins: int) -> jax.Array:
    return jnp.zeros((bins, values.shape[-1]), values.dtype).at[index].add(values)


def _matmul(index: jax.Array, values: jax.Array, bins: int) -> jax.Array:
    """The same histogram as a product of two one-hot matrices, without colliding scatters.

    Scores crowd into few bins, and a contended float32 scatter-add is a compare-and-swap loop on
    GPU (xla #46225).
    """
    low = 1 << (max(bins - 1, 1).bit_length() // 2)
    high = -(-bins // low)
    chunks = -(-len(index) // MATMUL_ROWS)
    padding = (0, chunks * MATMUL_ROWS - len(index)) if chunks > 1 else (0, 0)
    index, values = jnp.pad(index, padding), jnp.pad(values, (padding, (0, 0)))

    def add(hist, chunk):
        i, v = chunk
        rows = (
            jax.nn.one_hot(i // low, high, dtype=v.dtype)[:, :, None] * v[:, None, :]
        )  # [n, high, 5]
        columns = jax.nn.one_hot(i % low, low, dtype=v.dtype)  # [n, low]
        return hist + jnp.einsum(
            "nhc,nl->hlc", rows, columns, precision=jax.lax.Precision.HIGHEST
        ), None

    zeros = jnp.zeros((high, low, values.shape[-1]), values.dtype)
    split = index.reshape(chunks, -1), values.reshape(chunks, -1, values.shape[-1])
    return jax.lax.scan(add, zeros, split)[0].reshape(high * low, -1)[:bins]


def update(sums: Sums, logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Sums:
    """Adds a batch.

    Args:
      sums: From `init`.
      logits: Any shape. Where negatives were kept with probability w, pass logits + log(w): that is
        `calibrated` in logits.
      labels: Same shape, in [0, 1].
      weights: Same shape, >= 0; zero-weight slots may hold anything, NaN included. Weight negatives
        by 1 / w.

    Returns:
      The new sums. A non-finite logit of positive weight is counted as bad and makes the metrics
      NaN.
    """
    bins = sums["hist"].shape[0]
    z, y, w = (x.astype(jnp.float32).ravel() for x in (logits, labels, weights))
    used = w > 0
    bad = used & ~jnp.isfinite(z)
    good = used & ~bad
    z, y, w = (jnp.where(good, x, 0.0) for x in (z, y, w))
    hist = jax.lax.platform_dependent(
        bin_of(z, bins),
        channels(jnp, z, y, w),
        cpu=lambda i, v: _scatter(i, v, bins),
        default=lambda i, v: _matmul(i, v, bins),
    )
    return merge(sums, {"hist": hist, "low": jnp.zeros_like(hist), "bad": bad.sum()})


def merge(a: Sums, b: Sums) -> Sums:
    """Sums over both sets of examples; a plain sum of the trees (psum) only rounds a little more."""
    x, y = a["hist"], b["hist"]
    total = x + y
    seen = total - x
    lost = (x - (total - seen)) + (y - seen)  # Knuth's two-sum: total + lost == x + y exactly
    return {"hist": total, "low": a["low"] + b["low"] + lost, "bad": a["bad"] + b["bad"]}


def compute(sums: Mapping[str, Any]) -> Metrics:
    """Metrics of everything added, on the host.

    Returns:
      auc; logloss (nats); ece (15 bins of equal weight) and ece_width (15 bins of equal width in
      probability); calibration (predicted / observed positives); rate (share of positives);
      prediction (mean); examples. Where one is NaN, "undefined" says why.
    """
    hist = np.asarray(sums["hist"], np.float64) + np.asarray(sums.get("low", 0.0), np.float64)
    pos, neg, predicted, loss, count = hist[hist[:, 4] > 0].T
    total, positives = (pos + neg).sum(), pos.sum()
    bad = int(sums["bad"])
    reason = _problem(bad, positives, neg.sum())
    out = {
        "auc": auc_of_blocks(pos, neg),
        "logloss": ratio(loss.sum(), total),
        "ece": _ece(pos + neg, predicted, pos, ECE_BINS, "mass"),
        "ece_width": _ece(pos + neg, predicted, pos, ECE_BINS, "width"),
        "calibration": ratio(predicted.sum(), positives),
        "rate": ratio(positives, total),
        "prediction": ratio(predicted.sum(), total),
        "examples": int(count.sum()) + bad,
    }
    if bad:
        out |= dict.fromkeys(set(out) - {"examples"}, math.nan)
    return out | ({"undefined": reason} if reason else {})


# ------------------------------------------------------------ shared by histogram and exact figures


def _problem(bad: int, positives: float, negatives: float, both_classes: bool = True) -> str:
    """Why a metric is undefined, or ""."""
    if bad:
        return f"{bad} predictions are not finite (did training diverge?)"
    if positives + negatives <= 0:
        return "no example has a positive weight"
    if both_classes and (positives <= 0 or negatives <= 0):
        return f"every label is {int(positives > 0)}: AUC needs both classes"
    return ""


def ratio(a: float, b: float) -> float:
    """a / b, NaN unless b > 0."""
    return float(a / b) if b > 0 else math.nan


def auc_of_blocks(pos: Array, neg: Array) -> float:
    """AUC from the weights of either class in tie blocks of ascending score."""
    below = np.cumsum(neg) - neg / 2
    return ratio(float(pos @ below), pos.sum() * neg.sum())


def _ece(weight: Array, predicted: Array, observed: Array, bins: int, scheme: str) -> float:
    """Expected calibration error from tie blocks of ascending score; a block is never split."""
    total = weight.sum()
    if total <= 0:
        return math.nan
    where = {"mass": (np.cumsum(weight) - weight / 2) / total, "width": predicted / weight}[scheme]
    index = np.clip((where * bins).astype(int), 0, bins - 1)
    return float(abs(np.bincount(index, predicted - observed)).sum() / total)


# -------------------------------------------------------------------------------------- host: exact


def as_columns(scores, labels, weights) -> tuple[Array, Array, Array]:
    """(scores, labels, weights) as float64 [N], without weights ones; ValueError if they cannot be."""
    z = np.asarray(scores, np.float64).ravel()
    y = np.asarray(labels, np.float64).ravel()
    w = np.ones_like(z) if weights is None else np.asarray(weights, np.float64).ravel()
    if not len(z) == len(y) == len(w):
        raise ValueError(
            f"{len(z)} scores, {len(y)} labels and {len(w)} weights: give one of each per row"
        )
    if len(y) and not (y.min() >= 0 and y.max() <= 1):
        raise ValueError("labels must lie in [0, 1]")
    if len(w) and not w.min() >= 0:
        raise ValueError("weights must be numbers >= 0")
    return z, y, w


def _checked(name: str, scores, labels, weights, both_classes: bool = True):
    """Columns without zero-weight rows, or None and a warning where the metric is undefined."""
    z, y, w = as_columns(scores, labels, weights)
    z, y, w = (x[w > 0] for x in (z, y, w))
    positives = (w * y).sum()
    reason = _problem(int((~np.isfinite(z)).sum()), positives, (w * (1 - y)).sum(), both_classes)
    if reason:
        warnings.warn(f"{name} is undefined: {reason}", UndefinedMetric, stacklevel=3)
        return None
    return z, y, w


def tie_blocks(scores: Array, *columns: Array) -> list[Array]:
    """Sums of each column over runs of equal score, ascending."""
    order = np.argsort(scores)
    return [np.add.reduceat(c[order], run_starts(scores[order])) for c in columns]


def run_starts(*keys: Array) -> Array:
    """First index of each run of equal keys."""
    change = np.zeros(len(keys[0]), bool)
    for k in keys:
        change[1:] |= k[1:] != k[:-1]
    return np.flatnonzero(np.r_[True, change[1:]]) if len(change) else np.zeros(0, int)


def auc(scores, labels, weights=None) -> float:
    """Exact area under the ROC curve, ties 1/2; NaN and an `UndefinedMetric` warning if undefined."""
    checked = _checked("AUC", scores, labels, weights)
    if checked is None:
        return math.nan
    z, y, w = checked
    return auc_of_blocks(*tie_blocks(z, w * y, w * (1 - y)))


def logloss(p, labels, weights=None) -> float:
    """Mean cross-entropy in nats of probabilities `p`, clipped to [1e-15, 1 - 1e-15]."""
    checked = _checked("logloss", p, labels, weights, both_classes=False)
    if checked is None:
        return math.nan
    return float(np.average(log_losses(*checked[:2]), weights=checked[2]))


def log_losses(p: Array, y: Array) -> Array:
    """Cross-entropy of each row in nats, p clipped to [1e-15, 1 - 1e-15]."""
    p = np.clip(p, 1e-15, 1 - 1e-15)
    return -(y * np.log(p) + (1 - y) * np.log1p(-p))


def ece(p, labels, weights=None, bins: int = ECE_BINS, scheme: str = "mass") -> float:
    """Expected calibration error of probabilities, in bins of equal weight ("mass") or "width".

    At a click rate of 3 % equal widths put nearly every example in the first bin; "mass" is the
    default for that.
    """
    checked = _checked("ECE", p, labels, weights, both_classes=False)
    if checked is None:
        return math.nan
    p, y, w = checked
    weight, predicted, observed = tie_blocks(p, w, w * p, w * y)
    return _ece(weight, predicted, observed, bins, scheme)


def calibrated(p, keep_prob: float):
    """Undoes negative sampling: p / (p + (1 - p) / w), negatives kept with probability w."""
    if not 0 < keep_prob <= 1:
        raise ValueError(f"keep_prob is a probability in (0, 1], not {keep_prob}")
    return p / (p + (1 - p) / keep_prob)


def negative_weight(keep_prob: float) -> float:
    """Weight of a kept negative, 1 / w, for calibration figures on sampled data."""
    return 1.0 / keep_prob


class Gauc(NamedTuple):
    """Mean AUC of the groups that hold both classes, weighted by the weight of their rows.

    Attributes:
      value: The mean.
      groups: Number of groups with both classes.
      total_groups: Number of groups.
      covered: Share of the weight of all rows that lies in groups with both classes.
    """

    value: float
    groups: int
    total_groups: int
    covered: float


def group_auc(scores, labels, groups, weights=None) -> tuple[Array, Array, Array]:
    """(group keys, AUC of each group, NaN where it has one class, weight of each group), all [G]."""
    z, y, w = as_columns(scores, labels, weights)
    keys, code = np.unique(np.asarray(groups).ravel(), return_inverse=True)
    if len(code) != len(z):
        raise ValueError(f"{len(z)} scores but {len(code)} group keys: give one per row")
    order = np.lexsort((z, code))
    starts = run_starts(code[order], z[order])
    of = code[order][starts]
    pos, neg = (np.add.reduceat((w * c)[order], starts) if len(z) else w for c in (y, 1 - y))
    weight, positives = np.bincount(code, w, len(keys)), np.bincount(of, pos, len(keys))
    negatives = np.bincount(of, neg, len(keys))
    below = np.cumsum(neg) - neg / 2 - (np.cumsum(negatives) - negatives)[of]
    pairs = positives * negatives
    area = np.bincount(of, pos * below, len(keys)) / np.where(pairs > 0, pairs, np.nan)
    return keys, area, weight


def gauc(scores, labels, groups, weights=None) -> Gauc:
    """Impression-weighted mean AUC within groups; a group with one class has none and is left out."""
    checked = _checked("GAUC", scores, labels, weights)
    keys = len(np.unique(np.asarray(groups)))
    if checked is None:
        return Gauc(math.nan, 0, keys, 0.0)
    used = np.ones(np.size(groups), bool) if weights is None else np.asarray(weights).ravel() > 0
    z, y, w = checked
    _, area, weight = group_auc(z, y, np.asarray(groups).ravel()[used], w)
    mixed = np.isfinite(area)
    if not mixed.any():
        warnings.warn(
            "GAUC is undefined: no group holds both classes", UndefinedMetric, stacklevel=2
        )
        return Gauc(math.nan, 0, keys, 0.0)
    value = float(np.average(area[mixed], weights=weight[mixed]))
    return Gauc(value, int(mixed.sum()), keys, float(weight[mixed].sum() / weight.sum()))
