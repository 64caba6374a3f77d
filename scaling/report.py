"""The web report of a sweep: one self-contained `report.html` that opens without a network.

Charts are inline SVG drawn here (their colours follow the reader's light or dark theme, which an
image cannot); words and tables are `templates/report.html.j2`. Every string of the context is
escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
import datetime
import math
from pathlib import Path
import statistics
from typing import Any

from etils import epath
import jinja2
from markupsafe import Markup, escape

from scaling.fit import count

TEMPLATES = Path(__file__).parent / "templates"
WIDTH, HEIGHT = (
    460,
    320,
)  # units of an SVG's viewBox; text of 12 stays readable at the width of a phone
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 40
MIN_GRADES = 4


def write_report(workdir: str, context: Mapping[str, Any]) -> str:
    """Writes `workdir/report.html` under a temporary name and renames it.

    Args:
      workdir: The sweep's directory, local or a bucket.
      context: Every key is optional; a section whose key is missing or empty says that its stage
        was not run.
        title, question: Text.
        answer: Sentences; default: drawn from the fits and the distillation.
        metric: Column of the trials that the grid shows (default "auc").
        trials: Rows of `trials.jsonl`: run, member, parent, kind, examples, grade, metrics (flat,
          or under "metrics").
        grades: {grade: {column: number or text}}, smallest first.
        fits: [{"label": text, **LawFit.to_json(), "needed": [LawFit.needed(...), ...]}].
        distil: {"rows": [{"model", "role" (teacher | undistilled | distilled), metric: [one value
          per seed], ...}],
          "paired": Paired._asdict() of distilled against undistilled, "note": text}.
        latency: {"candidates": 100, "hardware": text, "rows": [{"model", "p50_ms", "p95_ms",
          "p99_ms", ...}]}.
        data: The prepared data's `report.json`.
        grade_law_command: The command that would measure enough grades for a law.
        commands: [{"why": text, "command": text}].
        created, version: Text.

    Returns:
      The path of the report.
    """
    page = render(context)
    target = epath.Path(workdir) / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name("report.html.tmp")
    temporary.write_text(page)
    temporary.replace(target)
    return str(target)


def render(context: Mapping[str, Any]) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "count": count}
    metric = context.get("metric") or "auc"
    trials = [flat(r) for r in context.get("trials") or ()]
    grid = grade_grid(trials, metric)
    fits = [dict(f, chart=law_chart(f)) for f in context.get("fits") or ()]
    latency = dict(context.get("latency") or {})
    defaults = {
        "title": "Scaling study",
        "question": "How far does a bigger model, more data or a longer history take us?",
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return environment.get_template("report.html.j2").render(
        defaults
        | {k: v for k, v in context.items() if v is not None}
        | {
            "metric": metric,
            "answer": context.get("answer") or answer(fits, context.get("distil"), metric),
            "data": data_section(context.get("data") or {}) if context.get("data") else None,
            "grid": grid,
            "grid_chart": grid_chart(grid, metric) if grid["cells"] else "",
            "fits": fits,
            "distil": distil_rows(context.get("distil"), metric),
            "latency": latency,
            "slowest": max(
                (r.get("p99_ms") or r["p50_ms"] for r in latency.get("rows", ())), default=0
            ),
            "limits": limits(grid, fits, trials),
            "trials": trials,
            "columns": columns(trials),
        }
    )


# ------------------------------------------------------------------------------------------ numbers


def number(value: Any, digits: int = 4) -> str:
    """A figure for reading: 4 decimals below 1, an en dash for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value == int(value) and abs(value) >= 1000):
        return f"{int(value):,}"
    if 0 < abs(value) < 1e-3:
        return f"{value:.2g}"
    if abs(value) >= 1000:
        return f"{value:,.1f}"
    return f"{value:.{min(digits, 4 if abs(value) < 1 else 3)}f}"


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
        "charts": [series_chart(words(k), v) for k, v in series.items()],
    }


def is_series(value: Mapping[str, Any]) -> bool:
    """Whether the keys are whole numbers (weeks, days), enough of them for a chart."""
    return len(value) > 3 and all(str(k).lstrip("-").isdigit() for k in value)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, "seeds": len(values)}


def grade_grid(trials: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """{"grades", "examples", "cells": {(grade, examples): spread}} of the undistilled trials."""
    found: dict[tuple[Any, Any], list[float]] = {}
    for r in trials:
        y, key = r.get(metric), (r.get("grade"), r.get("examples"))
        if (
            isinstance(y, int | float)
            and math.isfinite(y)
            and None not in key
            and r.get("kind") != "distil"
        ):
            found.setdefault(key, []).append(float(y))
    grades, sizes = (
        sorted({k[i] for k in found}, key=lambda v: (isinstance(v, str), v)) for i in (0, 1)
    )
    return {"grades": grades, "examples": sizes, "cells": {k: spread(v) for k, v in found.items()}}


def distil_rows(distil: Mapping[str, Any] | None, metric: str) -> dict[str, Any]:
    """The distillation table with seeds summarised: the metric with its spread, others as means."""
    if not distil or not distil.get("rows"):
        return {}
    rows = []
    for r in distil["rows"]:
        values = r[metric] if isinstance(r[metric], list | tuple) else [r[metric]]
        others = {
            k: statistics.fmean(v) if isinstance(v, list | tuple) else v
            for k, v in r.items()
            if k not in ("model", "role", metric)
        }
        rows.append(
            {"model": r["model"], "role": r["role"], "spread": spread(values), "others": others}
        )
    names = list(dict.fromkeys(k for r in rows for k in r["others"]))
    return {**distil, "rows": rows, "others": names}


# -------------------------------------------------------------------------------------------- words


def answer(
    fits: Sequence[Mapping[str, Any]], distil: Mapping[str, Any] | None, metric: str
) -> list[str]:
    """What was found, one sentence a finding."""
    out = [law_sentence(f) for f in fits]
    paired = (distil or {}).get("paired")
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
    text = (
        f"{f['label']}: {f['law']}. At {count(end['x'])} {f['axis']}, ten times the most measured, it "
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
    return text


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
        out += [f"{f['label']}: {note}." for note in f.get("notes", ())[1:]]
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


# ------------------------------------------------------------------------------------------- charts


class Axes:
    """Plot area with a logarithmic x and a linear y."""

    def __init__(self, xs: Iterable[float], ys: Iterable[float]):
        xs, ys = list(xs), list(ys)
        self.x0, self.x1 = math.log10(min(xs)) - 0.08, math.log10(max(xs)) + 0.08
        pad = (max(ys) - min(ys)) * 0.08 or 0.01
        self.y0, self.y1 = min(ys) - pad, max(ys) + pad

    def x(self, value: float) -> float:
        return LEFT + (math.log10(value) - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (min(max(value, self.y0), self.y1) - self.y0) / (self.y1 - self.y0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def path(self, xs: Iterable[float], ys: Iterable[float]) -> str:
        return "M" + " L".join(
            f"{self.x(a):.1f} {self.y(b):.1f}" for a, b in zip(xs, ys, strict=True)
        )

    def frame(self, x_name: str, y_name: str) -> str:
        """Grid lines, ticks and names."""
        step = _step(self.y1 - self.y0)
        decimals = max(0, -math.floor(math.log10(step)))
        ticks = [k * step for k in range(math.ceil(self.y0 / step), math.floor(self.y1 / step) + 1)]
        out = [
            f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(t):.1f}" y2="{self.y(t):.1f}"/>'
            f'<text x="{LEFT - 6}" y="{self.y(t) + 4:.1f}" text-anchor="end">{t:.{decimals}f}</text>'
            for t in ticks
        ]
        every = math.ceil((self.x1 - self.x0) / 6)
        for power in range(math.ceil(self.x0), math.floor(self.x1) + 1, every):
            x = self.x(10.0**power)
            out.append(
                f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            )
            out.append(
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{count(10.0**power)}</text>'
            )
        out.append(
            f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(x_name)} (log scale)</text>'
        )
        out.append(f'<text x="4" y="14">{escape(y_name)}</text>')
        return "".join(out)


def _step(span: float) -> float:
    """A round step for about five ticks."""
    raw = span / 5
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw)


def _svg(title: str, body: str) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>{body}</svg>'
    )


def law_chart(f: Mapping[str, Any]) -> Markup:
    """Points, law, its interval, and the held-out prediction."""
    curve, held = f["curve"], f.get("holdout") or {}
    x = [c["x"] for c in curve]
    low, high = ([c[k] for c in curve] for k in ("low", "high"))
    room = (
        max(f["y"]) - min(f["y"])
    ) * 0.6  # a wide interval must not flatten the points: it is cut there
    bottom, top = min(f["y"]) - room, max(f["y"]) + room
    axes = Axes(x, [*f["y"], *(min(max(v, bottom), top) for v in (*low, *high))])
    body = [axes.frame(f["axis"], f["metric"])]
    body.append(f'<path class="band" d="{axes.path(x + x[::-1], high + low[::-1])}Z"/>')
    body.append(f'<path class="law" d="{axes.path(x, [c["value"] for c in curve])}"/>')
    body += [_dot(axes, u, v) for u, v in zip(f["x"], f["y"], strict=True)]
    if "observed" in held:
        u = axes.x(held["x"])
        ends = axes.y(held["low"]), axes.y(held["high"])
        body.append(f'<path class="held" d="M{u:.1f} {ends[0]:.1f} L{u:.1f} {ends[1]:.1f}"/>')
        body += [
            f'<path class="held" d="M{u - 5:.1f} {e:.1f} L{u + 5:.1f} {e:.1f}"/>' for e in ends
        ]
        body.append(
            f'<circle class="held" cx="{u:.1f}" cy="{axes.y(held["predicted"]):.1f}" r="5"/>'
        )
    return _svg(f"{f['label']}: {f['metric']} against {f['axis']}", "".join(body))


def series_chart(name: str, series: Mapping[str, float]) -> Markup:
    """Bars over whole numbers such as weeks, from zero."""
    keys, values = sorted(series, key=int), [float(series[k]) for k in sorted(series, key=int)]
    top, floor = max([*values, 1e-12]), HEIGHT / 2 - 24
    step = (WIDTH - LEFT - RIGHT) / len(keys)
    bars = [
        f'<rect class="column" x="{LEFT + i * step:.1f}" width="{0.8 * step:.1f}" '
        f'y="{floor - v / top * (floor - TOP):.1f}" height="{v / top * (floor - TOP):.1f}"/>'
        for i, v in enumerate(values)
    ]
    labels = [
        f'<text x="{LEFT + (i + 0.4) * step:.1f}" y="{floor + 16}" text-anchor="middle">{escape(keys[i])}</text>'
        for i in range(0, len(keys), max(1, len(keys) // 8))
    ]
    ends = (
        f'<text x="{LEFT - 6}" y="{floor:.0f}" text-anchor="end">0</text>'
        f'<text x="4" y="14">{escape(name)} (highest {top:.2g})</text>'
    )
    body = "".join(bars + labels) + ends
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT // 2}" role="img"><title>{escape(name)}</title>{body}</svg>'
    )


def _dot(axes: Axes, x: float, y: float, series: int = 0) -> str:
    return f'<circle class="dot s{series}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3"/>'


def grid_chart(grid: Mapping[str, Any], metric: str) -> Markup:
    """A line for each grade, with a bar of one standard deviation over seeds."""
    cells = grid["cells"]
    edges = [v["mean"] + s * (v["sd"] or 0) for v in cells.values() for s in (-1, 1)]
    axes = Axes([k[1] for k in cells], edges)
    body = [axes.frame("examples", metric)]
    for i, grade in enumerate(grid["grades"]):
        line = [(n, cells[grade, n]) for n in grid["examples"] if (grade, n) in cells]
        xs, means = [n for n, _ in line], [v["mean"] for _, v in line]
        body.append(f'<path class="line s{i % 6}" d="{axes.path(xs, means)}"/>')
        for n, v in line:
            ends = [axes.y(v["mean"] + s * (v["sd"] or 0)) for s in (-1, 1)]
            body.append(
                f'<path class="line s{i % 6}" d="M{axes.x(n):.1f} {ends[0]:.1f} L{axes.x(n):.1f} {ends[1]:.1f}"/>'
            )
            body.append(_dot(axes, n, v["mean"], i % 6))
    return _svg(f"{metric} of each grade against examples", "".join(body))
