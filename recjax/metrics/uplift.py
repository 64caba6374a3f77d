"""Judging a trial with several arms: uplift by arm, balance, an audit and decisions. Host, NumPy, float64.

Arm 0 is the control. Every figure of arm t compares it with the control alone; averages weigh arms by their rows.
Areas are those of `recjax.metrics.ranking`, with the Qini area per *treated* person. Weights are 1 in a randomised trial;
elsewhere they are share(t) / e(t | x). Rows of arms that training never had (arm -1) are left out.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from recjax.metrics import ranking

Array = np.ndarray
MOST_IMBALANCE = 0.1  # standardised mean difference beyond which arms are not comparable
CLIP = (0.1, 10.0)  # of inverse propensities
SHARES = (0.1, 0.2, 0.3)


def qini(tau, treated, outcome, weights=None) -> float:
    """(area under q - half its end) / (n N_t): the Qini coefficient per treated person."""
    t = np.asarray(treated, np.float64)
    w = np.ones_like(t) if weights is None else weights
    return ranking.qini(tau, t, outcome, w) * float(w.sum() / (w * t).sum())


def by_arm(metric: Callable, tau: Array, arm: Array, outcome: Array, weights=None) -> list[float]:
    """`metric(tau_t, treated, outcome, weights)` of each arm t = 1 .. R among its rows and the control's.

    Args:
      metric: As `ranking.auuc`.
      tau: [N, R] predicted effects.
      arm: int [N].
      outcome: [N].
      weights: [N] or None.
    """
    w = np.ones(len(arm)) if weights is None else np.asarray(weights)
    out = []
    for t in range(1, tau.shape[1] + 1):
        own = (arm == 0) | (arm == t)
        if not (arm == t).any() or not (arm == 0).any():
            out.append(float("nan"))
            continue
        out.append(metric(tau[own, t - 1], arm[own] == t, outcome[own], w[own]))
    return out


def averaged(values: list[float], arm: Array) -> float:
    """Mean of per-arm values, weighted by the arms' rows."""
    counts = np.array([(arm == t).sum() for t in range(1, len(values) + 1)], float)
    known = np.isfinite(values)
    return (
        float(np.average(np.array(values)[known], weights=counts[known])) if known.any() else np.nan
    )


def effect(treated: Array, outcome: Array, weights: Array | None = None) -> tuple[float, float]:
    """Difference of (weighted) means and its standard error."""
    treated = np.asarray(treated, bool)
    w = np.ones(len(outcome)) if weights is None else np.asarray(weights, np.float64)
    means, variances = [], []
    for own in (treated, ~treated):
        share = w[own] / w[own].sum()
        m = (share * outcome[own]).sum()
        means.append(m)
        variances.append((share**2 * (outcome[own] - m) ** 2).sum())
    return float(means[0] - means[1]), float(np.sqrt(sum(variances)))


def in_places(key: Array, low: float, high: float) -> Array:
    """Share of each row [N] that lies in places [low, high) of ascending `key`, its ties in random order.

    Rows that a model does not tell apart have no order of their own: a tie that a cut goes through counts on both sides, by
    its expected share, so a metric of the places does not depend on how the log is stored.
    """
    _, inverse, count = np.unique(np.asarray(key), return_inverse=True, return_counts=True)
    end = np.cumsum(count)
    start = end - count
    inside = np.clip(np.minimum(end, high) - np.maximum(start, low), 0, None)
    return (inside / count)[inverse]


def uplift_at(share: float) -> Callable:
    """Observed effect among the `share` with the largest predicted ones, as a `by_arm` metric; ties as `in_places`."""

    def metric(tau, treated, outcome, weights=None):
        kept = in_places(-np.asarray(tau), 0, max(1, round(share * len(tau))))
        return _effect_of(kept, treated, outcome, weights)

    return metric


def calibration(tau, treated, outcome, bins: int = 10) -> list[tuple[float, float]]:
    """(mean predicted, observed effect) in bins of equal size by predicted effect; ties as `in_places`."""
    tau = np.asarray(tau)
    edges = np.linspace(0, len(tau), bins + 1)
    out = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        kept = in_places(tau, low, high)
        out.append((float((kept * tau).sum() / kept.sum()), _effect_of(kept, treated, outcome)))
    return out


def _effect_of(kept: Array, treated, outcome, weights=None) -> float:
    """`effect` of rows by the share of each that is kept; NaN without one of both arms."""
    treated, w = np.asarray(treated, bool), kept if weights is None else kept * weights
    if not (w[treated].sum() > 0 and w[~treated].sum() > 0):
        return float("nan")
    return effect(treated, np.asarray(outcome), w)[0]


def inverse(share, given):
    """share(t) / e(t | x), clipped to `CLIP`; NumPy or JAX."""
    return (share / given.clip(1e-6)).clip(*CLIP)


def of_known_arms(columns: Mapping[str, Any]) -> dict[str, Array]:
    """The rows whose arm is one that training had."""
    known = np.asarray(columns["arm"]) >= 0
    return {name: np.asarray(x)[known] for name, x in columns.items()}


def imbalance(covariates: Array, arm: Array, weights: Array | None = None) -> float:
    """Largest standardised mean difference of a covariate [N, K] between an arm and the control."""
    w = np.ones(len(arm)) if weights is None else np.asarray(weights, np.float64)
    worst = 0.0
    control = _moments(covariates[arm == 0], w[arm == 0])
    for t in np.unique(arm[arm > 0]):
        mean, variance = _moments(covariates[arm == t], w[arm == t])
        scale = np.sqrt((variance + control[1]) / 2)
        each = np.abs(mean - control[0]) / np.where(scale > 0, scale, np.inf)
        worst = max(worst, float(each.max(initial=0)))
    return worst


def _moments(x: Array, w: Array) -> tuple[Array, Array]:
    """Mean and variance."""
    share = (w / w.sum())[:, None]
    mean = (share * x).sum(0)
    return mean, (share * (x - mean) ** 2).sum(0)


def audit(
    mu1: Array, mu2: Array, click: Array, conversion: Array, here: Array, share: float | Array
):
    """Doubly robust level of the conversion rate among clicks under one arm, and the plug-in mean beside it.

        psi = mean[mu2 / mu1] + mean[1{A = a} / (pi mu1^2) ((Y2 - mu2) mu1 - (Y1 - mu1) mu2)]

    (arXiv 2608.13461, discrete arms.) A network whose two figures differ is biased.

    Args:
      mu1, mu2: Predicted click and click-and-conversion probabilities under the arm, [N], held out; mu1 >= 0.01.
      click, conversion: Observed, [N].
      here: Whether a row has the arm, bool [N].
      share: pi, the arm's share or e(a | x).

    Returns:
      (doubly robust, plug-in).
    """
    mu1 = np.maximum(np.asarray(mu1, np.float64), 0.01)
    plug_in = (mu2 / mu1).mean()
    correction = here / (share * mu1**2) * ((conversion - mu2) * mu1 - (click - mu1) * mu2)
    return float(plug_in + correction.mean()), float(plug_in)


def audits(
    columns: Mapping[str, Any], tasks: Mapping[str, str], arm: Array, weights: Array | None
) -> dict[str, float]:
    """cvr_robust/t and cvr_plug_in/t: `audit` of every arm t; weights are share(arm) / e(arm | x), None: a trial."""
    click, conversion = columns[tasks["ctr"]], columns[tasks["ctcvr"]]
    out = {}
    for t in np.unique(arm):
        here = arm == t
        share = here.mean() if weights is None else here.mean() / weights
        mu = columns["ctr_arms"][:, t], columns["ctcvr_arms"][:, t]
        both = audit(*mu, click, conversion, here, share)
        out |= dict(zip((f"cvr_robust/{t}", f"cvr_plug_in/{t}"), both, strict=True))
    return out


def decide(tau: Array, value: float, costs: Array) -> Array:
    """argmax_t tau_t value - cost_t over the arms 0 .. R, where doing nothing is 0: int [...].

    Args:
      tau: [..., R] effects on conversion.
      value: Of a conversion.
      costs: [R].
    """
    gain = np.asarray(tau) * value - np.asarray(costs)
    return np.concatenate([np.zeros_like(gain[..., :1]), gain], axis=-1).argmax(-1)


def interval(
    tau: Array, arm: Array, outcome: Array, metric: Callable = qini, n: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval, rows resampled, of a `by_arm` metric averaged over arms."""
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n):
        rows = rng.integers(len(arm), size=len(arm))
        draws.append(averaged(by_arm(metric, tau[rows], arm[rows], outcome[rows]), arm[rows]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def report(
    columns: Mapping[str, Any], tasks: Mapping[str, str], weighted: bool
) -> dict[str, float]:
    """Figures of a split.

    Args:
      columns: arm [N], -1 where it is none that training had; covariates [N, K]; propensity [N], e(arm | x); and for each task
        "uplift_<task>" [N, R] and its outcome under the name that `tasks` gives.
      tasks: Task -> column of its outcome.
      weighted: Whether propensity comes from a model. Without one, arms that differ by more than `MOST_IMBALANCE` get no
        uplift figures, also where chance would explain it: NaN and a reason.

    Returns:
      imbalance, unknown_arms (rows left out); for each task qini, auuc, uplift@10/20/30 (averages and /t for arm t), ate/t, ate_se/t, tau/t; where
      the columns hold every arm's probabilities, `audits`.
    """
    rows, columns = len(columns["arm"]), of_known_arms(columns)
    arm, w = columns["arm"].astype(int), None
    if weighted:
        shares = np.bincount(arm) / max(len(arm), 1)
        w = inverse(shares[arm], columns["propensity"].astype(np.float64))
    out: dict[str, Any] = {
        "imbalance": imbalance(columns["covariates"], arm, w),
        "unknown_arms": rows - len(arm),
    }
    comparable = weighted or out["imbalance"] <= MOST_IMBALANCE
    for task, label in tasks.items():
        tau, y = np.asarray(columns[f"uplift_{task}"], np.float64), columns[label]
        measured = {"qini": qini, "auuc": ranking.auuc}
        measured |= {f"uplift@{round(100 * s)}": uplift_at(s) for s in SHARES}
        for name, metric in measured.items():
            values = by_arm(metric, tau, arm, y, w) if comparable else [np.nan] * tau.shape[1]
            out[f"{name}_{task}"] = averaged(values, arm)
            out |= {f"{name}_{task}/{t}": v for t, v in enumerate(values, 1)}
        for t in range(1, tau.shape[1] + 1):
            own = (arm == 0) | (arm == t)
            found = effect(arm[own] == t, y[own], None if w is None else w[own])
            found = found if comparable else (np.nan, np.nan)
            names = (f"ate_{task}/{t}", f"ate_se_{task}/{t}", f"tau_{task}/{t}")
            out |= dict(zip(names, (*found, float(tau[:, t - 1].mean())), strict=True))
    if comparable and {"ctr_arms", "ctcvr_arms"} <= set(columns):
        out |= audits(columns, tasks, arm, w)
    if not comparable:
        out["undefined"] = (
            f"arms differ by {out['imbalance']:.2f} standard deviations, more than {MOST_IMBALANCE}: no uplift "
            "without model.propensity=True"
        )
    return out
