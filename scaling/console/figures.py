"""Curves as SVG and CSV, to take away; on the page itself they are drawn by uPlot from the same numbers."""

from collections.abc import Iterable, Mapping, Sequence
import csv
import io
from typing import Any

Lines = Mapping[str, Mapping[str, Sequence[float]]]


def as_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Rows as CSV with a heading; `columns` (default: all, as they first occur) in order."""
    rows = list(rows)
    names = list(columns) or list(dict.fromkeys(k for r in rows for k in r))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def lines_csv(lines: Lines) -> str:
    """Curves as rows of (line, x, y)."""
    return as_csv(
        (
            {"line": name, "x": x, "y": y}
            for name, own in lines.items()
            for x, y in zip(own["x"], own["y"], strict=True)
        ),
        ("line", "x", "y"),
    )


def svg(lines: Lines, x: str, y: str, *, log_x: bool = False, dots: bool = False) -> str:
    """Curves drawn by matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, own in lines.items():
        axes.plot(own["x"], own["y"], "o" if dots else "-", ms=4, lw=1.2, label=name)
    axes.set(xlabel=x, ylabel=y, xscale="log" if log_x else "linear")
    axes.grid(alpha=0.3)
    if 0 < len(lines) <= 12:
        axes.legend(fontsize=8)
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight")
    pyplot.close(figure)
    return out.getvalue()
