"""What to buy next: what to expect of a size, the cheapest training for a target, what doubling a size is worth.

Answers come from the joint law in block parameters, examples and history, which is fitted to the sweep's rows, and carry
its intervals; an answer outside the measured sizes says how far. FLOPs are training FLOPs, three times the forward ones.
`python -m scaling.decide` prints them.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from recjax.runtime.run import read_json
from scaling.law import laws, notes
from scaling.law.fit import FitError, count
from scaling.law.joint import JointFit
from scaling.plan.counts import TRAIN_FACTOR
from scaling.plan.rows import Row, base_rows, ladder_of, on_ladder


@dataclasses.dataclass(frozen=True)
class Option:
    """A model that could be trained: a rung at a history length, and what it costs."""

    grade: str
    history: int
    n_blocks: int
    flops_per_example: int

    def sizes(self, examples: float) -> dict[str, float]:
        return dict(n_blocks=self.n_blocks, history=self.history, examples=examples)

    def train_flops(self, examples: float) -> float:
        return TRAIN_FACTOR * self.flops_per_example * examples


def options(rows: Iterable[Row]) -> list[Option]:
    """The rungs and lengths that the sweep measured; costs between them are not guessed."""
    found, rows = {}, list(rows)
    for r in base_rows(rows):
        if on_ladder(r):
            key = r["grade"], r["history"]
            found[key] = Option(*key, r["n_blocks"], r["flops_per_example"])
    order = ladder_of(rows)
    return sorted(found.values(), key=lambda o: (order.index(o.grade), o.history))


def expected(law: JointFit, option: Option, examples: float) -> dict[str, Any]:
    """The metric that the law expects of an option after so many examples, with its interval."""
    sizes = _of(law, option.sizes(examples))
    low, high = law.interval(sizes)
    return dict(
        grade=option.grade, history=option.history, examples=examples, value=law.predict(sizes), low=low, high=high,
        train_flops=option.train_flops(examples), beyond=law.support.beyond(sizes), where=law.support.word(sizes),
    )  # fmt: skip


def _of(law: JointFit, sizes: Mapping[str, float]) -> dict[str, float]:
    return {a: sizes[a] for a in law.axes}


def best_measured(
    rows: Iterable[Row], metric: str, larger_is_better: bool
) -> dict[str, Any] | None:
    """The cell of grade, history and examples with the best mean, of cells with two seeds or more where there are any.

    Returns:
      grade, history, examples, value (the mean), sd and seeds, and `single`: a better value of a cell with one seed, or None.
    """
    cells: dict[tuple, list[float]] = {}
    for r in base_rows(list(rows)):
        if on_ladder(r) and r.get(metric) is not None:
            cells.setdefault((r["grade"], r["history"], r["examples"]), []).append(r[metric])
    if not cells:
        return None
    sign = 1 if larger_is_better else -1
    mean = {k: float(np.mean(v)) for k, v in cells.items()}
    sure = [k for k, v in cells.items() if len(v) > 1] or list(cells)
    key = max(sure, key=lambda k: sign * mean[k])
    one = max((sign * mean[k] for k, v in cells.items() if len(v) == 1), default=-math.inf)
    sd = float(np.std(cells[key], ddof=1)) if len(cells[key]) > 1 else None
    single = sign * one if one > sign * mean[key] else None
    return dict(zip(("grade", "history", "examples"), key, strict=True), value=mean[key], sd=sd,
                seeds=len(cells[key]), single=single)  # fmt: skip


def cheapest(law: JointFit, choices: Sequence[Option], target: float) -> list[dict[str, Any]]:
    """Options that reach the target, by training FLOPs; examples and FLOPs with their intervals (None: never)."""
    out = []
    for option in choices:
        need = law.needed("examples", target, _of(law, option.sizes(1.0)))
        if need["value"] is None:
            continue
        flops = {k: None if v is None else option.train_flops(v) for k, v in need.items()}
        at = _of(law, option.sizes(need["value"]))
        out.append(dict(
            grade=option.grade, history=option.history, examples=need, flops=flops,
            beyond=law.support.beyond(at), where=law.support.word(at),
        ))  # fmt: skip
    return sorted(out, key=lambda r: r["flops"]["value"])


def doubling(
    law: JointFit, choices: Sequence[Option], option: Option, examples: float
) -> list[dict[str, Any]]:
    """What doubling each size is worth from here: the gain with its interval, and the extra training FLOPs.

    The cost of another size of model or history is that of the option at hand, scaled by its nearest measured
    neighbour along that size; without one it is left out.
    """
    here = _of(law, option.sizes(examples))
    base, out = option.train_flops(examples), []
    for axis in law.axes:
        there = dict(here) | {axis: 2 * here[axis]}
        flops = 2.0 if axis == "examples" else _cost_of_doubling(choices, option, axis)
        extra = None if flops is None else base * (flops - 1)
        gain = law.gain(here, there)
        per = None if not extra else gain["value"] / (extra / base)
        out.append(
            dict(
                axis=axis,
                start=here[axis],
                end=there[axis],
                extra_flops=extra,
                per_flops=per,
                where=law.support.word(there),
                **gain,
            )
        )
    return sorted(out, key=lambda r: -r["value"])


def _cost_of_doubling(choices: Sequence[Option], option: Option, axis: str) -> float | None:
    """Forward FLOPs at twice the size over those here, by the power between the two nearest measured ones."""
    fixed = "history" if axis == "n_blocks" else "grade"
    line = [o for o in choices if getattr(o, fixed) == getattr(option, fixed) and o != option]
    here = getattr(option, axis)
    line = [o for o in line if getattr(o, axis) != here]
    if not line:
        return None
    other = min(line, key=lambda o: abs(math.log(getattr(o, axis) / (2 * here))))
    power = math.log(other.flops_per_example / option.flops_per_example) / math.log(
        getattr(other, axis) / here
    )
    return 2.0**power


def best_split(
    law: JointFit, choices: Sequence[Option], flops: float, most: float = math.inf
) -> dict[str, Any]:
    """The option that the law prefers for a training budget, with at most `most` examples."""
    found = []
    for o in choices:
        examples = min(flops / (TRAIN_FACTOR * o.flops_per_example), most)
        found.append(expected(law, o, examples))
    return max(found, key=lambda r: law.sign * r["value"])


def frontier(
    law: JointFit, choices: Sequence[Option], latency_ms: Mapping[str, float], examples: float
) -> list[dict]:
    """Each timed grade's expected metric and latency; `best`: nothing faster is expected to be as good.

    Args:
      law: Joint.
      choices: Options; a grade counts with its longest measured history unless the key is "grade/history".
      latency_ms: "grade" or "grade/history" -> milliseconds a request.
      examples: To train on.
    """
    rows = []
    for name, ms in latency_ms.items():
        grade, _, history = name.partition("/")
        fitting = [o for o in choices if o.grade == grade and history in ("", str(o.history))]
        if fitting:
            at = max(fitting, key=lambda o: o.history)
            rows.append(dict(expected(law, at, examples), ms=ms))
    rows.sort(key=lambda r: r["ms"])
    top = -math.inf
    for r in rows:
        r["best"] = law.sign * r["value"] > top
        top = max(top, law.sign * r["value"])
    return rows


# ---------------------------------------------------------------------------------------- in words


def measured_sentence(metric: str, r: Mapping[str, Any]) -> str:
    """What was measured and not expected of a law."""
    spread = "one seed" if r["sd"] is None else f"± {r['sd']:.4f}, {r['seeds']} seeds"
    text = (
        f"Best of what was measured: grade {r['grade']} at history {r['history']} after {count(r['examples'])} examples, "
        f"{metric} {r['value']:.4f} ({spread})."
    )
    return text if r["single"] is None else f"{text} A cell of one seed has {r['single']:.4f}."


def sentence(metric: str, r: Mapping[str, Any]) -> str:
    return (
        f"Grade {r['grade']} at history {r['history']} after {count(r['examples'])} examples: the law expects {metric} {r['value']:.4f} "
        f"({r['low']:.4f} to {r['high']:.4f}), {r['train_flops']:.2g} training FLOPs; {r['where']}."
    )


def cheapest_sentence(metric: str, target: float, found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return f"No measured grade and length reaches {metric} {target} under this law, with any number of examples."
    r = found[0]
    need = r["examples"]
    low, high = (count(need[k]) if need[k] is not None else "no end" for k in ("low", "high"))
    return (
        f"{metric} {target} is cheapest with grade {r['grade']} at history {r['history']}: {count(need['value'])} examples "
        f"({low} to {high}), {r['flops']['value']:.2g} training FLOPs; {r['where']}."
    )


def doubling_sentence(metric: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Which size is worth most; says so when the intervals do not decide."""
    parts = [
        f"{laws.NAMES[r['axis']]} {r['value']:+.4f} ({r['low']:+.4f} to {r['high']:+.4f}; {r['where']})"
        for r in rows
    ]
    text = f"Under the law, doubling one size improves {metric} by: " + "; ".join(parts) + "."
    if len(rows) > 1 and rows[0]["low"] <= max(r["high"] for r in rows[1:]):
        return text + " The intervals overlap: this sweep does not decide."
    if rows[0]["low"] <= 0:
        return text + " That may be nothing: this sweep does not decide."
    return text + f" More {laws.NAMES[rows[0]['axis']]} first."


def doubt_sentence(law: JointFit) -> str:
    """The notes that belong beside every number of the law; "" where there are none."""
    doubts = notes.doubts(law.notes)
    return f"Beside these numbers: {'; '.join(doubts)}." if doubts else ""


def answers(
    rows: Sequence[Row],
    metric: str = "auc",
    latency_ms: Mapping[str, float] | None = None,
    draws: int = 150,
    larger_is_better: bool | None = None,
) -> dict[str, Any]:
    """The report's section: the best measured cell, what doubling is worth from there, targets and the frontier."""
    law = laws.joint_law(rows, metric, draws=draws, larger_is_better=larger_is_better)
    choices = options(rows)
    best = best_measured(rows, metric, law.larger_is_better)
    if best is None:
        raise FitError("no trial is a rung of the ladder, so there is nothing to choose from")
    most = law.spans["examples"][1]
    now = [expected(law, o, most) for o in choices]
    at = next(o for o in choices if (o.grade, o.history) == (best["grade"], best["history"]))
    step = 0.01 * law.sign if "auc" in metric else -0.01 * best["value"]
    target = round(best["value"] + step, 3)
    reach = cheapest(law, choices, target)
    twice = doubling(law, choices, at, best["examples"])
    budgets = [best_split(law, choices, at.train_flops(most) * f, most * f) for f in (0.1, 1, 10)]
    out = dict(
        law=law.to_json(), best=best, expected=now, target=target, cheapest=reach, doubling=twice, budgets=budgets,
        frontier=frontier(law, choices, latency_ms or {}, most),
    )  # fmt: skip
    words = [
        measured_sentence(metric, best),
        sentence(metric, expected(law, at, best["examples"])),
        doubling_sentence(metric, twice),
        cheapest_sentence(metric, target, reach),
        doubt_sentence(law),
    ]
    return {**out, "sentences": [w for w in words if w]}


def read_latency(path: str) -> dict[str, float]:
    """{"grade": ms} from JSON: that mapping itself, or rows with "grade" and "p50_ms"."""
    found = read_json(path)
    rows = found.get("rows", found) if isinstance(found, dict) else found
    if isinstance(rows, dict):
        return {k: v["p50_ms"] if isinstance(v, dict) else float(v) for k, v in rows.items()}
    out = {str(r["grade"]): r["p50_ms"] for r in rows if "grade" in r}
    if not out:
        raise ValueError(
            f"{path} has no times by grade; give distill/latency-<candidates>.json of python -m scaling.distill"
        )
    return out


def advice(
    rows: Sequence[Row], metric: str, *, grade: str = "", history: int = 0, examples: float = 0.0,
    target: float | None = None, latency_ms: Mapping[str, float] | None = None, larger_is_better: bool | None = None,
) -> list[str]:  # fmt: skip
    """The answers as lines to print: the law, what to expect, what to double, and what reaches a target.

    Args:
      rows: Of trials.jsonl.
      metric: Its column.
      grade, history: Only options of this grade ("": any) and this length (0: any).
      examples: To train on; 0: the most measured.
      target: Value of the metric to reach; None: not asked.
      latency_ms: As of `frontier`; None: not asked.
      larger_is_better: Of the metric; None: as its name says, if it is known.

    Raises:
      FitError: The rows support no joint law.
      ValueError: Nothing of that grade and length was measured.
    """
    law, choices = laws.joint_law(rows, metric, larger_is_better=larger_is_better), options(rows)
    examples = examples or law.spans["examples"][1]
    chosen = [
        o for o in choices if o.grade == (grade or o.grade) and o.history == (history or o.history)
    ]
    if not chosen:
        measured = ", ".join(f"{o.grade}/{o.history}" for o in choices)
        raise ValueError(
            f"--grade={grade} --history={history} was not measured; there are {measured or 'none of the ladder'}"
        )
    best = max(chosen, key=lambda o: law.sign * law.predict(_of(law, o.sizes(examples))))
    twice = doubling_sentence(metric, doubling(law, choices, best, examples))
    out = [f"{law.formula}   (R2 {law.r2:.3f}, {law.points} points of {law.runs} runs)"]
    out += [f"note: {n}" for n in notes.doubts(law.notes)]
    found = best_measured(rows, metric, law.larger_is_better)
    out += [measured_sentence(metric, found)] if found else []
    out += [sentence(metric, expected(law, o, examples)) for o in chosen]
    out.append(f"{twice} (from grade {best.grade})")
    if target is not None:
        out.append(cheapest_sentence(metric, target, cheapest(law, choices, target)))
    for r in frontier(law, choices, latency_ms or {}, examples):
        text = f"{r['ms']:8.2f} ms  {sentence(metric, r)}"
        out.append(text if r["best"] else f"{text}  (dominated)")
    return out
