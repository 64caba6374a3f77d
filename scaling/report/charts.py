"""Charts of the report as SVG: their colours follow the page's theme, and their dots carry what a tap tells.

`figure` makes one self-contained for a file of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
from typing import Any

from markupsafe import Markup, escape
import numpy as np

from recjax.metrics.classification import larger_is_better
from scaling.law.fit import count

WIDTH, HEIGHT = (
    460,
    320,
)  # units of an SVG's viewBox; text of 12 stays readable at the width of a phone
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 40
SERIES = 8  # colours
STYLE = """
svg { background: #fff } text { font: 12px system-ui, sans-serif; fill: #59636e }
.rule { stroke: #d8dee4 } .law { fill: none; stroke: #0b5cad; stroke-width: 2 } .band { fill: #0b5cad; opacity: .16 }
.held { fill: none; stroke: #b65a00; stroke-width: 2 } .column { fill: #0b5cad } .line { fill: none; stroke-width: 2 }
.dot { stroke: #fff } .zero { stroke: #59636e; stroke-dasharray: 3 3 }
"""
COLOURS = ("#0b5cad", "#b65a00", "#1a7f5a", "#8250b8", "#b3261e", "#5c6b00", "#00707a", "#a0286e")


def figure(chart: Markup) -> str:
    """A chart as a file: its own light colours and name space."""
    own = "".join(
        f".line.s{i} {{ stroke: {c} }} .dot.s{i} {{ fill: {c} }}" for i, c in enumerate(COLOURS)
    )
    return (
        str(chart)
        .replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" ', 1)
        .replace("</title>", f"</title><style>{STYLE}{own}</style>", 1)
    )


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

    def whisker(self, x: float, low: float, high: float, style: str) -> list[str]:
        """An interval at x: a line with a cap at each end. An end outside the plot has an arrowhead at the edge in place of the cap."""
        u, y0, y1 = self.x(x), self.y(low), self.y(high)
        out = [f'<path class="{style}" d="M{u:.1f} {y0:.1f} L{u:.1f} {y1:.1f}"/>']
        for value, y, way in ((low, y0, -1), (high, y1, 1)):
            side = f"{y:.1f}" if self.y0 <= value <= self.y1 else f"{y + 6 * way:.1f}"
            name = style if self.y0 <= value <= self.y1 else f"{style} cut"
            out.append(
                f'<path class="{name}" d="M{u - 5:.1f} {side} L{u:.1f} {y:.1f} L{u + 5:.1f} {side}"/>'
            )
        return out

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
    for u, v in zip(f["x"], f["y"], strict=True):
        body.append(_dot(axes, u, v, tip=f"{count(u)} {f['axis']}: {f['metric']} {v:.4f}"))
    if "observed" in held:
        u = axes.x(held["x"])
        body += axes.whisker(held["x"], held["low"], held["high"], "held")
        body.append(
            f'<circle class="held" cx="{u:.1f}" cy="{axes.y(held["predicted"]):.1f}" r="5" data-tip="predicted without '
            f'it {held["predicted"]:.4f} ({held["low"]:.4f} to {held["high"]:.4f}), measured {held["observed"]:.4f}"/>'
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


def _dot(axes: Axes, x: float, y: float, series: int = 0, tip: str = "") -> str:
    """A point; `tip` is what a pointer or a tap on it tells."""
    told = f' data-tip="{escape(tip)}"' if tip else ""
    return f'<circle class="dot s{series}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3"{told}/>'


def grid_chart(grid: Mapping[str, Any], metric: str) -> Markup:
    """A line for each grade, with a bar of one standard deviation over seeds."""
    cells = grid["cells"]
    edges = [v["mean"] + s * (v["sd"] or 0) for v in cells.values() for s in (-1, 1)]
    axes = Axes([k[1] for k in cells], edges)
    body = [axes.frame("examples", metric)]
    for i, grade in enumerate(grid["grades"]):
        line = [(n, cells[grade, n]) for n in grid["examples"] if (grade, n) in cells]
        bars, points = [], []
        for n, v in line:
            ends = [axes.y(v["mean"] + s * (v["sd"] or 0)) for s in (-1, 1)]
            bars.append(
                f'<path class="line s{i % SERIES}" d="M{axes.x(n):.1f} {ends[0]:.1f} L{axes.x(n):.1f} {ends[1]:.1f}"/>'
            )
            spread = "" if v["sd"] is None else f" ± {v['sd']:.4f}"
            tip = f"grade {grade}, {count(n)} examples: {v['mean']:.4f}{spread}, {v['seeds']} seeds"
            points.append(_dot(axes, n, v["mean"], i % SERIES, tip))
        body.append(_series(str(grade), axes, [(n, v["mean"]) for n, v in line], i, bars + points))
    return _svg(f"{metric} of each grade against examples", "".join(body))


def _series(name: str, axes: Axes, line: Sequence[tuple], i: int, more: Sequence[str] = ()) -> str:
    """A named line that the legend can switch off."""
    path = (
        f'<path class="line s{i % SERIES}" d="{axes.path(*zip(*line, strict=True))}"/>'
        if line
        else ""
    )
    return f'<g data-series="{escape(name)}">{path}{"".join(more)}</g>'


def isoflop_chart(curves: Sequence[Mapping[str, Any]], metric: str) -> Markup:
    """A line for each training budget: the metric against block parameters, measured and interpolated along passes."""
    points = [p for c in curves for p in c["points"]]
    axes = Axes([p["n_blocks"] for p in points], [p["value"] for p in points])
    body = [axes.frame("block parameters", metric)]
    for i, c in enumerate(curves):
        dots = []
        for p in c["points"]:
            tip = f"{c['flops']:.1e} training FLOPs, grade {p['grade']}, {count(p['examples'])} examples: {p['value']:.4f}"
            dots.append(_dot(axes, p["n_blocks"], p["value"], i % SERIES, tip))
        line = [(p["n_blocks"], p["value"]) for p in c["points"]]
        body.append(_series(f"{c['flops']:.1e}", axes, line, i, dots))
    return _svg(f"{metric} against block parameters at equal training FLOPs", "".join(body))


def frontier_chart(rows: Sequence[Mapping[str, Any]], x: str, x_name: str, metric: str) -> Markup:
    """Points of (x, value), and the line through those that nothing cheaper beats."""
    axes = Axes([r[x] for r in rows], [r["value"] for r in rows])
    body = [axes.frame(x_name, metric)]
    line = [(r[x], r["value"]) for r in rows if r["best"]]
    groups: dict[str, list[str]] = {}
    names = list(dict.fromkeys(str(r["grade"]) for r in rows))
    for r in rows:
        i = names.index(str(r["grade"]))
        groups.setdefault(str(r["grade"]), []).append(
            _dot(axes, r[x], r["value"], i % SERIES, r["tip"])
        )
    body.append(f'<path class="law" d="{axes.path(*zip(*line, strict=True))}"/>')
    body += [f'<g data-series="{escape(g)}">{"".join(dots)}</g>' for g, dots in groups.items()]
    return _svg(f"{metric} against {x_name}", "".join(body))


def interval_chart(rows: Sequence[Mapping[str, Any]], title: str) -> Markup:
    """Differences with their intervals, one line each, about zero: label, value, low, high."""
    ends = [v for r in rows for v in (r["value"], r["low"], r["high"], 0.0) if v is not None]
    pad = (max(ends) - min(ends)) * 0.06 or 0.001
    low, high = min(ends) - pad, max(ends) + pad
    left, step, height = 200, 22, 30 + 22 * len(rows)
    x = lambda v: left + (v - low) / (high - low) * (WIDTH - left - RIGHT)  # noqa: E731
    body = [f'<path class="zero" d="M{x(0):.1f} 4 L{x(0):.1f} {height - 20}"/>']
    for i, r in enumerate(rows):
        y = 14 + i * step
        body.append(f'<text x="4" y="{y + 4}">{escape(r["label"])}</text>')
        if r["low"] is not None:
            body.append(
                f'<path class="line s0" d="M{x(r["low"]):.1f} {y} L{x(r["high"]):.1f} {y}"/>'
            )
        tip = f"{r['label']}: {r['value']:+.4f}"
        tip += "" if r["low"] is None else f" ({r['low']:+.4f} to {r['high']:+.4f})"
        body.append(
            f'<circle class="dot s0" cx="{x(r["value"]):.1f}" cy="{y}" r="4" data-tip="{escape(tip)}"/>'
        )
    for v in (low + pad, 0.0, high - pad):
        body.append(f'<text x="{x(v):.1f}" y="{height - 4}" text-anchor="middle">{v:+.3f}</text>')
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img"><title>{escape(title)}</title>{"".join(body)}</svg>'
    )


# ---------------------------------------------------------------------------------------- their numbers


def isoflop_curves(
    rows: Sequence[Mapping[str, Any]], metric: str, factor: float, budgets: int = 5
) -> list[dict]:
    """At each of some training budgets, the metric of every grade that was measured around it.

    Means over seeds along each pass, linear in log FLOPs between its points; never beyond them.

    Args:
      rows: Of one kind and one history length.
      metric: Its column.
      factor: Training over forward FLOPs.
      budgets: How many, log-spaced over what at least two grades cover.
    """
    passes: dict[str, dict[int, list[float]]] = {}
    facts = {}
    for r in rows:
        if r.get(metric) is not None:
            passes.setdefault(r["grade"], {}).setdefault(r["examples"], []).append(r[metric])
            facts[r["grade"]] = r["n_blocks"], factor * r["flops_per_example"]
    spans = sorted(
        (min(p) * facts[g][1], max(p) * facts[g][1]) for g, p in passes.items() if len(p) > 1
    )
    if len(spans) < 2:
        return []
    low, high = sorted(s[0] for s in spans)[1], sorted(s[1] for s in spans)[-2]
    out = []
    for budget in np.geomspace(low, high, budgets) if low < high else ():
        points = []
        for grade, found in passes.items():
            n, cost = facts[grade]
            sizes = sorted(found)
            if (
                len(sizes) > 1
                and sizes[0] * cost <= budget * 1.0001
                and budget <= sizes[-1] * cost * 1.0001
            ):
                at = [math.log(s * cost) for s in sizes]
                value = float(
                    np.interp(math.log(budget), at, [float(np.mean(found[s])) for s in sizes])
                )
                points.append(dict(grade=grade, n_blocks=n, examples=budget / cost, value=value))
        if len(points) > 1:
            out.append(
                dict(flops=float(budget), points=sorted(points, key=lambda p: p["n_blocks"]))
            )
    return out


def compute_frontier(
    rows: Sequence[Mapping[str, Any]], metric: str, factor: float, better: bool | None = None
) -> list[dict]:
    """Every measured (grade, history, examples) by training FLOPs; `best`: nothing cheaper is better.

    `better`: whether larger is; None: as the metric's name says, if it is known.
    """
    cells: dict[tuple, list[float]] = {}
    cost = {}
    for r in rows:
        if r.get(metric) is not None:
            key = r["grade"], r.get("history"), r["examples"]
            cells.setdefault(key, []).append(r[metric])
            cost[key] = factor * r["flops_per_example"] * r["examples"]
    better = larger_is_better(metric) if better is None else better
    sign, top, out = (1 if better else -1), -math.inf, []
    for key in sorted(cells, key=cost.get):
        grade, history, examples = key
        value = float(np.mean(cells[key]))
        tip = f"grade {grade}, history {history}, {count(examples)} examples: {value:.4f}, {cost[key]:.1e} FLOPs"
        out.append(
            dict(grade=grade, train_flops=cost[key], value=value, best=sign * value > top, tip=tip)
        )
        top = max(top, sign * value)
    return out
