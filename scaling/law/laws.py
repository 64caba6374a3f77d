"""Every law that a sweep's rows support: one per axis, the joint one, and the checks beside them.

    axis       sizes vary                      everything else is one value
    examples   points of the passes            shape, history
    n_blocks   rungs of the ladder             history, examples
    blocks     depth at one width              width, history, examples
    width      width at one depth              depth, history, examples
    history    events of history               shape, examples

Data points are the ends of cooldowns where a sweep has them (what a run planned for that size reaches), else points of
the pass at its constant rate.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

from absl import logging
import numpy as np
from scipy import stats

from recjax.metrics import classification
from recjax.metrics.comparison import half_width
from recjax.runtime.run import plain
from scaling.law import fit, joint, notes, rivals
from scaling.plan.grades import LADDER
from scaling.plan.rows import Row, base_rows, kinds_apart, measured_kind, on_ladder

NAMES = {
    "examples": "examples",
    "n_blocks": "block parameters",
    "blocks": "depth",
    "width": "width",
    "history": "events of history",
}
AS_RELEASED = "as released"  # the model itself, among its variants
CONTROLS = {
    "examples": ("system", "grade", "blocks", "width", "history"),
    "n_blocks": ("system", "history", "examples"),
    "blocks": ("system", "width", "history", "examples"),
    "width": ("system", "blocks", "history", "examples"),
    "history": ("system", "grade", "blocks", "width", "examples"),
}


def slices(rows: Sequence[Row], axis: str) -> dict[tuple, list[Row]]:
    """Rows by the values of the axis's controls; those with enough sizes for a law."""
    found: dict[tuple, list[Row]] = {}
    for r in rows:
        if axis != "n_blocks" or on_ladder(r):
            found.setdefault(tuple(r.get(c) for c in CONTROLS[axis]), []).append(r)
    return {k: v for k, v in found.items() if len({r.get(axis) for r in v}) >= fit.MIN_SIZES}


def axis_laws(
    rows: Sequence[Row], axis: str, metric: str, kind: str = "", **options: Any
) -> list[dict]:
    """The axis's law in every slice: label, the fit as JSON, its held-out point and its rivals.

    The slice with most sizes comes first and is the `headline`.
    """
    out = []
    for values, chosen in slices(base_rows(rows, kind), axis).items():
        label = f"{kind}: " * bool(kind) + named(axis, values)
        try:
            x, y, runs = fit.points_of_runs(chosen, axis, metric)
            law = rivals.fit_judged(x, y, runs, axis=axis, metric=metric, **options)
        except fit.FitError as e:
            logging.warning("%s: no law: %s", label, e)
            continue
        law = dataclasses.replace(law, notes=(*law.notes, *_undefined(chosen, axis, metric)))
        step = 0.01 * law.sign if "auc" in metric else law.predict(x.max()) * -0.01
        needed = [law.needed(round(law.predict(x.max()) + step, 4))]
        where = dict(zip(CONTROLS[axis], values, strict=True))
        out.append({"label": label, "where": where, **law.to_json(), "needed": needed})
    out.sort(key=lambda f: (-f["sizes"], -f["points"], -max(f["x"]), -_amount(f["where"])))
    return [dict(f, headline=i == 0 and not kind) for i, f in enumerate(out)]


def _undefined(rows: Sequence[Row], axis: str, metric: str) -> list[notes.Note]:
    """A note for each row without the metric: `fit.points` leaves it out."""
    left = [r for r in rows if r.get(metric) is None and metric not in r.get("metrics", {})]
    return [
        notes.Note(
            "set aside",
            f"run {fit.run_of(r)} at {axis} {fit.count(r[axis])} was set aside: its {metric} is undefined",
            numbers=dict(run=fit.run_of(r)),
        )
        for r in left
    ]


def _amount(where: Mapping[str, Any]) -> float:
    """Which of two slices is the larger study: by its examples, then by its shape."""
    return 1e6 * (where.get("examples") or 0) + (where.get("blocks") or 0) * (
        where.get("width") or 0
    )


def named(axis: str, values: tuple) -> str:
    """A slice in words: "grade 0, history 20"."""
    where = dict(zip(CONTROLS[axis], values, strict=True))
    rung = LADDER.get(str(where.get("grade")))
    if rung and (where.get("blocks"), where.get("width")) in (
        (rung.blocks, rung.width),
        (None, None),
    ):
        where.pop("blocks", None), where.pop("width", None)
    words = (
        f"{k} {fit.count(v) if k == 'examples' else v}" for k, v in where.items() if v is not None
    )
    return ", ".join(words)


def joint_law(rows: Sequence[Row], metric: str, **options: Any) -> joint.JointFit:
    """The law in block parameters, examples, and history where it was varied, over all shapes.

    Raises:
      FitError: Too few values on an axis.
    """
    chosen = [r for r in base_rows(rows) if metric in r]
    systems = sorted({r["system"] for r in chosen if "system" in r})
    if len(systems) > 1:
        raise fit.FitError(
            f"{', '.join(systems)} are several systems, which have a law each: python -m scaling.decide --compare"
        )
    if not any(r[metric] is not None for r in chosen):
        raise fit.FitError(f"no row has a finite {metric!r}")
    axes = ["n_blocks", "examples"]
    if len({r.get("history") for r in chosen}) >= joint.MIN_AXIS:
        axes.append("history")
    sizes = {a: [float(r[a]) for r in chosen] for a in axes}
    values = [math.nan if r[metric] is None else r[metric] for r in chosen]  # named in the notes
    runs = [fit.run_of(r) for r in chosen]
    seeds = [r.get("data_seed", 0) for r in chosen]
    return joint.fit_joint(sizes, values, metric=metric, runs=runs, data_seeds=seeds, **options)


def joint_holdout(rows: Sequence[Row], metric: str, axis: str, **options: Any) -> dict[str, Any]:
    """The joint law without the largest value of one axis, and how it predicts the means there."""
    top = max(r[axis] for r in base_rows(rows) if axis != "n_blocks" or on_ladder(r))
    kept = [r for r in rows if r[axis] < top]
    values = len({r[axis] for r in base_rows(kept) if r.get(metric) is not None})
    if values < fit.MIN_SIZES:  # as many parameters as values: nothing is predicted
        raise fit.FitError(
            f"{values} values of {axis!r} are left, and a prediction needs {fit.MIN_SIZES}"
        )
    law = joint_law(kept, metric, **options)
    cells: dict[tuple, list[Row]] = {}
    for r in base_rows(rows):
        if r[axis] == top and r.get(metric) is not None:
            cells.setdefault(tuple(r[a] for a in law.axes), []).append(r)
    out = []
    for cell, group in sorted(cells.items()):
        sizes = dict(zip(law.axes, cell, strict=True))
        low, high = law.interval(sizes, len(group))
        observed = float(np.mean([r[metric] for r in group]))
        out.append({
            **sizes, "seeds": len(group), "observed": observed, "predicted": law.predict(sizes), "low": low,
            "high": high, "inside": bool(low <= observed <= high),
        })  # fmt: skip
    errors = [c["predicted"] - c["observed"] for c in out]
    rmse = float(np.sqrt(np.mean(np.square(errors)))) if errors else None
    return {"axis": axis, "left_out": top, "cells": out, "rmse": rmse}


# ---------------------------------------------------------------------------------------- the checks


def difference(
    a: Sequence[float], b: Sequence[float], level: float = 0.9
) -> dict[str, float | None]:
    """Mean of b minus mean of a, with Welch's interval; None where one has a single value."""
    out: dict[str, float | None] = dict(value=float(np.mean(b) - np.mean(a)), low=None, high=None)
    if min(len(a), len(b)) > 1:
        va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
        if va + vb > 0:
            dof = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
            half = float(stats.t.ppf(0.5 + level / 2, dof) * np.sqrt(va + vb))
            out |= dict(low=out["value"] - half, high=out["value"] + half)
    return out


def agreement(rows: Sequence[Row], metric: str) -> list[dict]:
    """Independent runs of a size against the cooldowns forked from one pass, and against the pass itself."""
    own = [r for r in rows if r.get("variant", "") == "" and r.get(metric) is not None]
    cells: dict[tuple, dict[str, list[float]]] = {}
    for r in own:
        key = tuple(r.get(k) for k in ("grade", "blocks", "width", "history", "examples"))
        cells.setdefault(key, {}).setdefault(r["kind"], []).append(r[metric])
    out = []
    for (grade, _, _, history, examples), kinds in sorted(cells.items(), key=str):
        if "independent" not in kinds:
            continue
        for kind in ("cooldown", "pass"):
            if kind in kinds:
                d = difference(kinds["independent"], kinds[kind])
                inside = d["low"] is not None and d["low"] <= 0 <= d["high"]
                means = {k: float(np.mean(v)) for k, v in kinds.items()}
                out.append(dict(grade=grade, history=history, examples=examples, kind=kind, agrees=inside,
                                independent=means["independent"], mean=means[kind], **d))  # fmt: skip
    return out


Tried = dict[float, dict[int, float]]  # of one grade: rate -> seed -> metric, larger better


def rates(rows: Sequence[Row], metric: str, larger_is_better: bool | None = None) -> list[dict]:
    """Whether the rule for dense rates transfers: a multiple of it chosen at the smaller grades, checked at all.

    The rule is the rate that the sweep used in each grade; its multiples are matched to the nearest rate that was tried. One
    multiple is chosen for the smaller half of the grades together. Grades come by size, with

      tuned      whether it is one of those the multiple was chosen at
      rates      rate -> mean metric on validation
      best, at_edge   the best rate, and whether it is the smallest or largest tried
      used, used_cost   the sweep's rate, and what it loses to the best one: value and paired interval over seeds, 0 where they are one
      rule, rule_cost   the same of the chosen multiple of the rule; `multiple`
    """
    if larger_is_better is None:
        larger_is_better = classification.larger_is_better(metric)
    sign = 1 if larger_is_better else -1
    found = [r for r in rows if r["kind"] == "rate" and r.get(metric) is not None]
    size = {r["grade"]: r["n_blocks"] for r in found}
    tried: dict[str, Tried] = {g: {} for g in sorted(size, key=size.get)}
    for r in found:
        tried[r["grade"]].setdefault(r["lr"], {})[r["seed"]] = sign * r[metric]
    rule = {r["grade"]: r["lr"] for r in base_rows(rows) if on_ladder(r)}
    tuned = [g for g in tried if g in rule][: (len(tried) + 1) // 2]
    multiple = multiple_of([(tried[g], rule[g]) for g in tuned])
    out = []
    for grade, by_rate in tried.items():
        best = max(by_rate, key=lambda lr: value(by_rate[lr]))
        row: dict[str, Any] = dict(
            grade=grade, tuned=grade in tuned, best=best, used=rule.get(grade), multiple=multiple,
            rates={lr: sign * value(v) for lr, v in sorted(by_rate.items())},
            at_edge=best in (min(by_rate), max(by_rate)),
        )  # fmt: skip
        if grade in rule:
            row["rule"] = nearest(by_rate, multiple * rule[grade])
            at = {"used": nearest(by_rate, rule[grade]), "rule": row["rule"]}
            row |= {f"{k}_cost": lost(by_rate[lr], by_rate[best]) for k, lr in at.items()}
        out.append(row)
    return out


def value(by_seed: Mapping[int, float]) -> float:
    """What a rate is worth."""
    return float(np.mean(list(by_seed.values())))


def nearest(by_rate: Iterable[float], lr: float) -> float:
    """The rate tried that is nearest to `lr`, by its ratio."""
    return min(by_rate, key=lambda tried: abs(np.log(tried / lr)))


def multiple_of(grades: Sequence[tuple[Tried, float]]) -> float | None:
    """The multiple of the rule that serves several grades best, each (what was tried, its rate by the rule); None of none."""

    def worth(multiple: float) -> float:
        return sum(value(tried[nearest(tried, multiple * rule)]) for tried, rule in grades)

    multiples = sorted({round(float(lr / rule), 3) for tried, rule in grades for lr in tried})
    # Of equal ones the nearest to the rule itself.
    return max(multiples, key=lambda m: (worth(m), -abs(np.log(m))), default=None)


def lost(
    own: Mapping[int, float], best: Mapping[int, float], level: float = 0.9
) -> dict[str, float | int | None]:
    """What seeds of one rate lose to the same seeds of another: mean, and t interval where there are two or more."""
    shared = sorted(own.keys() & best.keys())
    d = np.array([best[s] - own[s] for s in shared])
    out: dict[str, float | int | None] = dict(
        value=float(d.mean()) if len(d) else None, low=None, high=None, seeds=len(d)
    )
    if len(d) > 1:
        half = half_width(d, level)
        out |= dict(low=out["value"] - half, high=out["value"] + half)
    return out


def ablations(rows: Sequence[Row], metric: str, larger_is_better: bool | None = None) -> list[dict]:
    """Each variant against the model itself, by grade, history and examples, and each one's law in examples.

    All laws are fitted to the sizes at which variants were measured, the model's own too.
    """
    kind, names = measured_kind(rows), ("grade", "blocks", "width", "history", "examples")
    cells: dict[str, dict[tuple, list[float]]] = {}
    for r in rows:
        if r["kind"] == kind and r.get(metric) is not None:
            key = tuple(r.get(k) for k in names)
            cells.setdefault(r.get("variant", ""), {}).setdefault(key, []).append(r[metric])
    compared = {k for variant, own in cells.items() if variant for k in own}
    out = []
    for variant in sorted(cells):
        shared = [k for k in cells[variant] if k in cells.get("", {})]
        if variant and not shared:
            continue
        deltas = [dict(grade=k[0], history=k[3], examples=k[4], **difference(cells[""][k], cells[variant][k]))
                  for k in sorted(shared, key=str) if variant]  # fmt: skip
        laws = []
        own = [r for r in rows if r["kind"] == kind and r.get("variant", "") == variant]
        own = [r for r in own if tuple(r.get(k) for k in names) in compared]
        for values, chosen in slices(own, "examples").items():
            try:
                x, y, runs = fit.points_of_runs(chosen, "examples", metric)
                law = rivals.fit_judged(
                    x, y, runs, axis="examples", metric=metric, larger_is_better=larger_is_better
                )
            except fit.FitError as e:
                logging.warning("%s, %s: no law: %s", variant, named("examples", values), e)
                continue
            laws.append(dict(label=named("examples", values), a=law.a, interval=law.intervals["a"],
                             r2=law.r2, holdout=law.holdout))  # fmt: skip
        out.append(dict(variant=variant or AS_RELEASED, deltas=deltas, laws=laws))
    return out if len(out) > 1 else []


def fit_all(
    rows: Sequence[Row], metric: str = "auc", draws: int = 150, second: str = "logloss",
    directions: Mapping[str, bool] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All of it as JSON, with a joint law of `second` too; what cannot be fitted says why.

    Args:
      rows: Of trials.jsonl.
      metric, second: Columns.
      draws: Of the joint laws' bootstrap.
      directions: Metric -> whether larger is better, for names that `larger_is_better` does not know.
    """
    larger = {m: (directions or {}).get(m) for m in (metric, second)}
    for name, given in larger.items():
        larger[name] = classification.larger_is_better(name) if given is None else given
    own = larger[metric]
    out: dict[str, Any] = dict(metric=metric, larger_is_better=own, kind=measured_kind(rows))
    out["axes"] = {a: axis_laws(rows, a, metric, larger_is_better=own) for a in CONTROLS}
    out["axes"] |= {
        k: axis_laws(rows, "examples", metric, k, larger_is_better=own) for k in kinds_apart(rows)
    }
    out["joint"], out["joint_holdouts"] = {}, []
    for name, better in larger.items():
        try:
            law = joint_law(rows, name, draws=draws, larger_is_better=better)
            out["joint"][name] = law.to_json()
        except fit.FitError as e:
            out["joint"][name] = {"why": str(e)}
    for axis in ("examples", "n_blocks"):
        try:
            held = joint_holdout(rows, metric, axis, draws=draws, larger_is_better=own)
            out["joint_holdouts"].append(held)
        except fit.FitError as e:
            out["joint_holdouts"].append({"axis": axis, "why": str(e)})
    out["agreement"], out["rates"] = agreement(rows, metric), rates(rows, metric, own)
    out["ablations"] = ablations(rows, metric, own)
    return plain(out)
