"""The web report of a sweep: one self-contained `report.html` that opens without a network.

Charts are inline SVG (`scaling.report.charts`: their colours follow the reader's light or dark theme, which an image
cannot), and each is also a file in `figures/`; words and tables are `templates/report.html.j2`, and what makes them
answer to a pointer is `templates/report.js`, the one script the page allows. Every string of the context is escaped.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import datetime
import hashlib
import math
from pathlib import Path
import statistics
from typing import Any

from etils import epath
import jinja2
from markupsafe import Markup

from recjax.runtime.run import write_text
from scaling.law.fit import count
from scaling.law.laws import NAMES
from scaling.plan.counts import TRAIN_FACTOR
from scaling.plan.rows import Row, base_rows, ladder_of, measured_kind, on_ladder
from scaling.report import charts
from scaling.report.context import Context, Distillation
from scaling.report.words import WORDS

TEMPLATES = Path(__file__).parent / "templates"
MIN_GRADES = 4


def write_report(workdir: str, context: Context) -> str:
    """Writes `workdir/report.html` and its figures; returns the path of the report.

    Args:
      workdir: The sweep's directory, local or a bucket.
      context: What there is to tell.
    """
    values = prepare(context)
    target = epath.Path(workdir) / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, html(values))
    if values["charts"]:
        (target.parent / "figures").mkdir(exist_ok=True)
    for name, chart in values["charts"].items():
        write_text(target.parent / "figures" / f"{name}.svg", charts.figure(chart))
    return str(target)


def render(context: Context) -> str:
    """The page as text."""
    return html(prepare(context))


def html(values: Mapping[str, Any]) -> str:
    """The template, filled."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "count": count, "signed": signed}
    environment.globals["words"] = WORDS
    script = (TEMPLATES / "report.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        values, script=Markup(script), script_hash=digest
    )


def prepare(context: Context) -> dict[str, Any]:
    """What the template shows: the context's fields, with charts, sentences and tables made of them."""
    c = dataclasses.replace(context, trials=[flat(r) for r in context.trials])
    grid = grade_grid(c.trials, c.metric)
    fits = [dict(f, chart=charts.law_chart(f)) for f in c.fits]
    latency = c.latency or {}
    times = [r.get("p99_ms") or r["p50_ms"] for r in latency.get("rows", ())]
    drawn = answer(fits, c.distillation, c.metric)
    made = {
        "created": c.created or datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "answer": c.answer or [*c.decisions.get("sentences", ()), *drawn],
        "data": data_section(c.data) if c.data else None,
        "grid": grid,
        "charts": all_charts(grid, fits, c),
        "fits": fits,
        "frontier_grades": cheapest_first(own_rows(c.trials, c.laws)),
        "budgets": [f"{curve['flops']:.1e}" for curve in isoflops(c.trials, c.laws, c.metric)],
        "distillation": distillation_rows(c.distillation, c.metric),
        "latency": latency,
        "slowest": max(times, default=0),
        "limits": limits(grid, fits, c.trials),
        "columns": columns(c.trials),
    }
    return {f.name: getattr(c, f.name) for f in dataclasses.fields(c)} | made


def own_rows(trials: Sequence[Row], laws: Mapping[str, Any]) -> list[Row]:
    """Rows of the model itself, no ablation and no check, that say what they cost."""
    own = base_rows(trials, laws.get("kind") or "pass")
    return [r for r in own if "flops_per_example" in r and "grade" in r]


def usual_history(rows: Sequence[Row]) -> int | None:
    """The most frequent history length."""
    lengths = [r["history"] for r in rows if "history" in r]
    return max(set(lengths), key=lengths.count) if lengths else None


def isoflops(trials: Sequence[Row], laws: Mapping[str, Any], metric: str) -> list[dict]:
    own = own_rows(trials, laws)
    ladder = [r for r in own if r.get("history") == usual_history(own) and on_ladder(r)]
    return charts.isoflop_curves(ladder, metric, TRAIN_FACTOR)


def cheapest_first(rows: Sequence[Row]) -> list[str]:
    """Grades in the order in which the frontier draws them."""
    ordered = sorted(rows, key=lambda r: r["flops_per_example"] * r["examples"])
    return list(dict.fromkeys(str(r["grade"]) for r in ordered))


def all_charts(
    grid: Mapping[str, Any], fits: Sequence[Mapping[str, Any]], c: Context
) -> dict[str, Markup]:
    """name -> chart, of everything there are numbers for; the names are those of the files."""
    metric, curves = c.metric, isoflops(c.trials, c.laws, c.metric)
    better = c.laws.get("larger_is_better")
    costs = charts.compute_frontier(own_rows(c.trials, c.laws), metric, TRAIN_FACTOR, better)
    timed = [
        dict(r, tip=f"grade {r['grade']}: {r['value']:.4f} ({r['where']}), {r['ms']:.2f} ms")
        for r in c.decisions.get("frontier") or ()
    ]
    deltas = [
        dict(d, label=f"{a['variant'].removeprefix('model.')}, grade {d['grade']}, {count(d['examples'])}")
        for a in c.laws.get("ablations") or ()
        for d in a["deltas"]
        if d["examples"] == max(e["examples"] for e in a["deltas"] if e["grade"] == d["grade"])
    ]  # fmt: skip
    made = {
        "grid": grid["cells"] and charts.grid_chart(grid, metric),
        **{f"law-{i}": f["chart"] for i, f in enumerate(fits)},
        "isoflop": curves and charts.isoflop_chart(curves, metric),
        "frontier": costs and charts.frontier_chart(costs, "train_flops", "training FLOPs", metric),
        "latency": timed and charts.frontier_chart(timed, "ms", "ms a request", metric),
        "ablations": deltas
        and charts.interval_chart(deltas, f"{metric}: variant minus the model, largest size"),
    }
    return {name: chart for name, chart in made.items() if chart}


# ------------------------------------------------------------------------------------------ numbers


def number(value: Any, digits: int = 4) -> str:
    """A figure for reading: 4 decimals below 1, an en dash for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value == int(value) and abs(value) >= 10):
        return f"{int(value):,}"
    if 0 < abs(value) < 1e-3:
        return f"{value:.2g}"
    if abs(value) >= 1000:
        return f"{value:,.1f}"
    return f"{value:.{min(digits, 4 if abs(value) < 1 else 3)}f}"


def signed(value: float | None) -> str:
    """A difference: +0.0031."""
    return "–" if value is None else f"{value:+.4f}"


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A trial with its metrics as columns."""
    return {k: v for k, v in row.items() if k != "metrics"} | dict(row.get("metrics") or {})


def columns(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of the table of trials: identity first, then what the rows hold, less nested values."""
    first = ["run", "member", "parent", "kind", "grade", "examples"]
    found = dict.fromkeys(k for r in trials for k, v in r.items() if not isinstance(v, dict | list))
    return [c for c in first if c in found] + [c for c in found if c not in first]


def words(name: str) -> str:
    return name.replace("_", " ").replace(".", ": ")


def leaves(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """(name, value) of every leaf of nested dicts; lists become text."""
    if isinstance(value, Mapping):
        for k, v in value.items():
            yield from leaves(v, f"{path}.{k}" if path else str(k))
    else:
        yield words(path), ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def data_section(report: Mapping[str, Any]) -> dict[str, Any]:
    """report.json for a reader: facts, a table with a row a split, and a chart of each series by week."""
    splits = {
        k: v if isinstance(v, Mapping) else {"rows": v}
        for k, v in (report.get("splits") or {}).items()
    }
    series = {k: v for k, v in report.items() if isinstance(v, Mapping) and is_series(v)}
    rest = {k: v for k, v in report.items() if k != "splits" and k not in series}
    return {
        "facts": list(leaves(rest)),
        "splits": splits,
        "columns": list(dict.fromkeys(c for row in splits.values() for c in row)),
        "charts": [charts.series_chart(words(k), v) for k, v in series.items()],
    }


def is_series(value: Mapping[str, Any]) -> bool:
    """Whether the keys are whole numbers (weeks, days), enough of them for a chart."""
    return len(value) > 3 and all(str(k).lstrip("-").isdigit() for k in value)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, "seeds": len(values)}


def grade_grid(trials: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """{"grades", "examples", "cells": {(grade, examples): spread}}: cooldowns where there are any, else passes.

    Of the ladder's own models at the most frequent history length.
    """
    kind = measured_kind(trials)
    trials = [r for r in trials if "blocks" not in r or on_ladder(r)]
    usual = usual_history(trials)
    found: dict[tuple[Any, Any], list[float]] = {}
    for r in trials:
        y, key = r.get(metric), (r.get("grade"), r.get("examples"))
        if (
            isinstance(y, int | float)
            and math.isfinite(y)
            and None not in key
            and r.get("kind") == kind
            and not r.get("variant")
            and r.get("history") in (None, usual)
        ):
            found.setdefault(key, []).append(float(y))
    order = {g: i for i, g in enumerate(ladder_of(trials))}
    grades = sorted({g for g, _ in found}, key=lambda g: (order.get(g, -1), str(g)))
    sizes = sorted({n for _, n in found})
    return {"grades": grades, "examples": sizes, "cells": {k: spread(v) for k, v in found.items()}}


def distillation_rows(found: Distillation | None, metric: str) -> dict[str, Any]:
    """The distillation table with seeds summarised: the metric with its spread, others as means."""
    if not found or not found.get("rows"):
        return {}
    rows = []
    for r in found["rows"]:
        seeds = {
            k: [x for x in (v if isinstance(v, list | tuple) else [v]) if x is not None]
            for k, v in r.items()
            if k not in ("model", "role")
        }  # without seeds of which a metric is undefined
        others = {k: statistics.fmean(v) if v else None for k, v in seeds.items() if k != metric}
        own = spread(seeds[metric]) if seeds[metric] else None
        rows.append({"model": r["model"], "role": r["role"], "spread": own, "others": others})
    names = list(dict.fromkeys(k for r in rows for k in r["others"]))
    return {**found, "rows": rows, "others": names}


# -------------------------------------------------------------------------------------------- words


def answer(
    fits: Sequence[Mapping[str, Any]], distillation: Distillation | None, metric: str
) -> list[str]:
    """What was found, one sentence a finding."""
    out = [law_sentence(f) for f in fits if f.get("headline", True)]
    held = [f["holdout"] for f in fits if "observed" in (f.get("holdout") or {})]
    sharp = [h for h in held if h["decisive"]]
    if len(held) > 1:
        inside = sum(h["inside"] for h in sharp)
        level = f"{100 * fits[0]['level']:.0f} %"
        verdict = f"; of these {inside} have it inside the {level} interval" if sharp else ""
        out.append(
            f"{len(held)} laws were also fitted without their largest size. Sharp enough to be tested by it: "
            f"{len(sharp) or 'none'}{verdict}."
        )
    paired = (distillation or {}).get("paired")
    if paired:
        sure = (
            "gains"
            if paired["low"] > 0
            else "loses"
            if paired["high"] < 0
            else "is not told apart: it differs by"
        )
        out.append(
            f"The distilled student {sure} {abs(paired['difference']):.4f} {metric} against the same student without a "
            f"teacher ({100 * paired['level']:.0f} % interval {paired['low']:+.4f} to {paired['high']:+.4f})."
        )
    return out


def law_sentence(f: Mapping[str, Any]) -> str:
    end, level = f["curve"][-1], f"{100 * f['level']:.0f} %"
    name = NAMES.get(f["axis"], f["axis"])
    largest = count(end["x"])
    there = f"{name} {largest}" if name in ("depth", "width") else f"{largest} {name}"
    if f["A"] <= 0:
        return (
            f"By {name} ({f['label']}): no growth was found from {count(min(f['x']))} to "
            f"{count(max(f['x']))}; {f['metric']} is {end['value']:.4f} ({level} interval {end['low']:.4f} to {end['high']:.4f})."
            f"{beside(f)}"
        )
    if "no power law" in f["law"]:
        return f"By {name} ({f['label']}): {f['law']}.{beside(f)}"
    text = (
        f"By {name} ({f['label']}): {f['law']}. At {there}, extrapolated to ten times the most measured, it "
        f"expects {f['metric']} {end['value']:.4f} ({level} interval {end['low']:.4f} to {end['high']:.4f})."
    )
    held = f.get("holdout") or {}
    if "observed" in held:
        verdict = (
            "inside" if held["inside"] else "OUTSIDE, so do not trust the law beyond its points;"
        )
        text += (
            f" Fitted without the largest size it predicted {held['predicted']:.4f}; measured {held['observed']:.4f}, "
            f"{verdict} the interval {held['low']:.4f} to {held['high']:.4f}."
        )
    if "observed" in held and not held.get("decisive", True):
        text += (
            f" That interval's half-width ({held['half_width']:.4f}) is no smaller than the gain from the size before "
            f"({held['gain']:.4f}), so being inside proves little."
        )
    return text + beside(f)


def beside(f: Mapping[str, Any]) -> str:
    """The notes of a fit that belong beside its numbers, as a sentence with a space before it."""
    said = "no growth", "no power law"  # by the law itself
    doubts = [
        n["text"] for n in f.get("notes") or () if n["doubt"] and not n["text"].startswith(said)
    ]
    return f" Beside these numbers: {'; '.join(doubts)}." if doubts else ""


def limits(
    grid: Mapping[str, Any], fits: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What the study cannot tell."""
    out = []
    grades = len(grid["grades"])
    if 0 < grades < MIN_GRADES:
        out.append(
            f"How quality grows with the grade: {grades} grade{'s' * (grades > 1)} cannot support a grade law. A law has "
            f"three parameters and passes through any three points; {MIN_GRADES} are the least, 5 are better."
        )
    few = [k for k, v in grid["cells"].items() if v["seeds"] < 3]
    if few:
        out.append(
            f"{len(few)} of {len(grid['cells'])} cells of the grid have fewer than 3 seeds: small gaps may be chance."
        )
    for f in fits:
        out += [f"{f['label']}: {n['text']}." for n in f.get("notes", ()) if n["kind"] != "points"]
        why = (f.get("holdout") or {}).get("why")
        out += [f"{f['label']}: {why}."] if why else []
    undefined = sum(1 for r in trials if r.get("undefined"))
    if undefined:
        out.append(f"Trials with an undefined metric: {undefined}; the table of trials says why.")
    return (
        [*out, "R² says how closely a curve passes its own points, not that it holds beyond them."]
        if fits
        else out
    )
