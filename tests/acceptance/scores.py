"""Scores of features and applications, and agreement of verdicts with labels (specification 8.6).

v(case) = 1 for Pass, else 0; feature = sum w v / sum w; app = sum W feature / sum W, 0 where it is not executable
coverage = 1 - (Uncertain + BLOCKED) / cases
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np
import scipy.stats

from tests.acceptance.judge import BLOCKED, PASS, UNCERTAIN

SUFFICIENT = (60, 15)  # labelled cases, of which Fails: below, agreement is not printed


def feature_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """{feature: weighted share of Pass}."""
    out = {}
    for feature in dict.fromkeys(r["feature"] for r in rows):
        own = [r for r in rows if r["feature"] == feature]
        total = sum(r["weight"] for r in own)
        out[feature] = sum(r["weight"] * (r["result"] == PASS) for r in own) / total
    return out


def executable(rows: Sequence[Mapping[str, Any]]) -> bool:
    """More than a fifth of the cases pass."""
    return bool(rows) and sum(r["result"] == PASS for r in rows) > 0.2 * len(rows)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Score, coverage, flaky share and features of one application's rows; repetitions of a case are put together.

    A case is flaky if it was recovered or if its repetitions disagree.
    """
    cases = {(r["app"], r["case"]) for r in rows}
    flaky = set()
    for key in cases:
        own = [r for r in rows if (r["app"], r["case"]) == key]
        if len({r["result"] for r in own}) > 1 or any(r["recovered"] for r in own):
            flaky.add(key)
    features = feature_scores(rows)
    weights = {r["feature"]: r["feature_weight"] for r in rows}
    score = sum(weights[f] * v for f, v in features.items()) / sum(weights.values())
    open_ = sum(r["result"] in (UNCERTAIN, BLOCKED) for r in rows)
    return dict(
        score=score if executable(rows) else 0.0,
        executable=executable(rows),
        coverage=1 - open_ / len(rows),
        flaky=len(flaky) / len(cases),
        cases=len(cases),
        seconds=sum(r["seconds"] for r in rows),
        features=features,
    )


def kappa(a: Sequence[bool], b: Sequence[bool]) -> float | None:
    """Cohen's; None where either never varies."""
    x, y = np.asarray(a, bool), np.asarray(b, bool)
    if len({*x.tolist()}) < 2 or len({*y.tolist()}) < 2:
        return None
    by_chance = x.mean() * y.mean() + (1 - x.mean()) * (1 - y.mean())
    return float(((x == y).mean() - by_chance) / (1 - by_chance))


def correlation(a: Sequence[float], b: Sequence[float], rank: bool = False) -> float | None:
    """Pearson's r, or Spearman's; None where it has no meaning."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    r = (scipy.stats.spearmanr if rank else scipy.stats.pearsonr)(a, b)[0]
    return None if math.isnan(r) else float(r)


def agreement(
    pairs: Sequence[tuple[str, bool, bool]], resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """How verdicts agree with labels.

    Args:
      pairs: (feature, verdict is Pass, label is Pass) of each case.
      resamples: Of the bootstrap, over features: cases of one depend on each other.

    Returns:
      accuracy, kappa, defect precision and recall, pearson and spearman of feature scores, mae and bias (mean verdict minus
      label), each number with its 95 % interval under "<name>/interval"; numbers are None where they have no meaning.
      "sufficient" says whether there are enough labels to quote them.
    """
    features = list(dict.fromkeys(f for f, _, _ in pairs))
    by = {f: [(v, h) for g, v, h in pairs if g == f] for f in features}
    measured = _agreement([by[f] for f in features])
    draws: dict[str, list[float]] = {k: [] for k in measured}
    r = np.random.default_rng(seed)
    for _ in range(resamples):
        chosen = [by[features[i]] for i in r.integers(0, len(features), len(features))]
        for k, v in _agreement(chosen).items():
            if v is not None:
                draws[k].append(v)
    out: dict[str, Any] = dict(measured)
    for k, values in draws.items():
        ends = np.quantile(values, [0.025, 0.975]).tolist() if len(values) > resamples / 2 else None
        out[f"{k}/interval"] = ends
    fails = sum(not h for _, _, h in pairs)
    return out | dict(
        cases=len(pairs),
        fails=fails,
        sufficient=len(pairs) >= SUFFICIENT[0] and fails >= SUFFICIENT[1],
    )


def _agreement(by_feature: Sequence[Sequence[tuple[bool, bool]]]) -> dict[str, float | None]:
    verdicts = [v for own in by_feature for v, _ in own]
    labels = [h for own in by_feature for _, h in own]
    v, h = np.asarray(verdicts), np.asarray(labels)
    score, truth = ([float(np.mean([p[i] for p in own])) for own in by_feature] for i in (0, 1))
    found = int((~v & ~h).sum())
    return dict(
        accuracy=float((v == h).mean()),
        kappa=kappa(verdicts, labels),
        defect_precision=found / int((~v).sum()) if (~v).any() else None,
        defect_recall=found / int((~h).sum()) if (~h).any() else None,
        pearson=correlation(score, truth),
        spearman=correlation(score, truth, rank=True),
        mae=float(np.mean(np.abs(np.subtract(score, truth)))),
        bias=float(np.mean(np.subtract(score, truth))),
    )
