"""Laws of other people's trials: python -m scaling.fit --trials=FILE.csv --x=tokens --y=loss --lower_is_better --by=model

    ... --joint=n_params,tokens      a law in several sizes, over all rows together; the last one's points share the data
    ... --where=split=test           only rows with this value; repeatable
    ... --report=DIR                 DIR/report.html with the curves

A row is a measured point: a line of CSV or JSON lines. Columns are named by the flags; `--run` says which points are of one run.
"""

from collections.abc import Mapping, Sequence
import math
import sys
from typing import Any

from absl import app, flags
from etils import epath
import polars as pl

from recjax.metrics.classification import larger_is_better
from scaling.law import notes, rivals
from scaling.law.fit import FitError, count
from scaling.law.joint import JointFit, fit_joint

Row = Mapping[str, Any]
APART = ("metric", "data", "dataset", "split")  # columns whose values are never one law
READERS: dict[str, Any] = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson}


def read(path: epath.PathLike, where: Mapping[str, str]) -> list[Row]:
    """Rows of a .csv or .jsonl file with these values.

    Raises:
      FitError: Another kind of file, a column that it lacks, no row left, or rows of several metrics or data sets.
    """
    path = epath.Path(path)
    if path.suffix not in READERS:
        raise FitError(f"--trials={path} is neither .csv nor .jsonl")
    options = {"infer_schema_length": None}
    rows = READERS[path.suffix](path.read_bytes(), **options).to_dicts()
    for name, value in where.items():
        column(rows, name, "--where")
        rows = [r for r in rows if str(r[name]) == value]
    if not rows:
        raise FitError(f"--trials={path} has no row" + " with the values of --where" * bool(where))
    return rows


def column(rows: Sequence[Row], name: str, flag: str) -> list[Any]:
    """A column; an error names the flag that asked for one that is not there."""
    if rows and name not in rows[0]:
        raise FitError(
            f"{flag}={name}: the trials have no such column; they have {', '.join(rows[0])}"
        )
    return [r[name] for r in rows]


def numbers(rows: Sequence[Row], name: str, flag: str) -> list[float]:
    """A column of numbers; one that is missing is NaN."""
    out = []
    for i, value in enumerate(column(rows, name, flag), 1):
        try:
            out.append(math.nan if value in (None, "") else float(value))
        except (TypeError, ValueError):
            raise FitError(f"{flag}={name}: row {i} has {value!r}, which is no number") from None
    return out


def check_apart(rows: Sequence[Row], by: str) -> None:
    for name in APART:
        values = sorted({str(r[name]) for r in rows if name in r})
        if len(values) > 1 and name != by:
            raise FitError(
                f"the trials mix {len(values)} values of {name!r} ({', '.join(values[:4])}): choose one with --where={name}="
                f"{values[0]}, or fit each with --by={name}"
            )


def laws_by(
    rows: Sequence[Row], x: str, y: str, by: str, run: str, better: bool
) -> list[dict[str, Any]]:
    """The law in `x` of each value of column `by` ("": of all rows) as JSON with its label; rows without a finite `y` are left out."""
    groups: dict[str, list[Row]] = {}
    for r, value in zip(rows, column(rows, by, "--by") if by else [""] * len(rows), strict=True):
        groups.setdefault(f"{by} {value}" if by else f"{y} by {x}", []).append(r)
    out = []
    for label, own in groups.items():
        runs = column(own, run, "--run") if run else range(len(own))
        pairs = zip(numbers(own, x, "--x"), numbers(own, y, "--y"), runs, strict=True)
        kept = [p for p in pairs if math.isfinite(p[1])]
        try:
            at, values, of = zip(*kept, strict=True) if kept else ((), (), ())
            law = rivals.fit_judged(
                at, values, of if run else None, axis=x, metric=y, larger_is_better=better
            )
        except FitError as e:
            raise FitError(f"{label}: {e}") from None
        aside = len(own) - len(kept)
        out.append(dict(label=label, aside=aside, needed=[], headline=True, **law.to_json()))
    return out


def joint_of(rows: Sequence[Row], axes: Sequence[str], y: str, run: str, better: bool) -> JointFit:
    sizes = {a: numbers(rows, a, "--joint") for a in axes}
    runs = column(rows, run, "--run") if run else None
    return fit_joint(
        sizes,
        numbers(rows, y, "--y"),
        metric=y,
        larger_is_better=better,
        runs=runs,
        shared=axes[-1],
    )


def law_lines(f: Mapping[str, Any]) -> list[str]:
    """A law for reading."""
    between = lambda v: f"{v[0]:.4g} to {v[1]:.4g}"  # noqa: E731
    end, a, ends = f["curve"][-1], f["a"], f["intervals"]
    out = [f"{f['label']}: {f['law']}   ({f['points']} points, {f['sizes']} sizes)"]
    if f["A"] > 0:
        name = "ceiling" if f["larger_is_better"] else "floor"
        out.append(
            f"  exponent {a:.3g} ({between(ends['a'])}), {name} {f['E']:.4g} ({between(ends['E'])})"
        )
        out.append(
            f"  extrapolated to {count(end['x'])}: {end['value']:.4g} ({between((end['low'], end['high']))})"
        )
    if "observed" in (f["holdout"] or {}):
        h = f["holdout"]
        verdict = "inside" if h["inside"] else "OUTSIDE"
        out.append(
            f"  without the largest size it predicts {h['predicted']:.4g} ({between((h['low'], h['high']))}); measured {h['observed']:.4g}, "
            f"{verdict}{'' if h['decisive'] else ', too wide an interval to prove anything'}"
        )
    out += [f"  note: {n['text']}" for n in f["notes"] if n["doubt"]]
    return out + [f"  note: {f['aside']} rows without a finite value were set aside"] * bool(
        f["aside"]
    )


def joint_lines(law: JointFit) -> list[str]:
    between = {k: f"{low:.3g} to {high:.3g}" for k, (low, high) in law.intervals.items()}
    exponents = ", ".join(f"{n} {between[n]}" for n in law.axes if law.found[n])
    out = [f"all rows: {law.formula}   ({law.points} points, {len(law.support.cells)} cells)"]
    out += [f"  exponents: {exponents}"] * bool(exponents)
    return out + [f"  note: {n}" for n in notes.doubts(law.notes)]


def direction(y: str, lower: bool | None) -> bool:
    """Whether larger is better."""
    if lower is not None:
        return not lower
    try:
        return larger_is_better(y)
    except ValueError:
        raise FitError(
            f"--y={y}: say --lower_is_better or --nolower_is_better; the name does not"
        ) from None


def pairs(texts: Sequence[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise FitError(f"--where={text}: write COLUMN=VALUE")
    return dict(t.split("=", 1) for t in texts)


def lines(
    trials: epath.PathLike, x: str, y: str, *, lower_is_better: bool | None = None, by: str = "", run: str = "",
    joint: Sequence[str] = (), where: Sequence[str] = (), report: str = "",
) -> list[str]:  # fmt: skip
    """What the command prints; the arguments are its flags.

    Raises:
      FitError: The trials cannot support what is asked; the message names the flag or the column.
    """
    rows = read(trials, pairs(where))
    check_apart(rows, by)
    better = direction(y, lower_is_better)
    run = run or ("run" if "run" in rows[0] else "")
    laws = laws_by(rows, x, y, by, run, better)
    both = joint_of(rows, joint, y, run, better) if joint else None
    out = [line for law in laws for line in law_lines(law)] + (joint_lines(both) if both else [])
    if report:
        out.append(f"report: {write(report, f'{y} of {trials}', laws, both, rows)}")
    return out


def write(
    folder: str, title: str, laws: Sequence[Mapping[str, Any]], both: JointFit | None, rows: Sequence[Row]
) -> str:  # fmt: skip
    """report.html in a folder; returns its path."""
    from scaling.report import page  # its libraries are an extra
    from scaling.report.context import Context

    metric = laws[0]["metric"]
    found = {"larger_is_better": laws[0]["larger_is_better"], "joint_holdouts": []}
    found |= {"joint": {metric: both.to_json()}} if both else {}
    context = Context(title=title, metric=metric, fits=laws, laws=found, trials=rows)
    return page.write_report(folder, context)


def main(_) -> None:
    try:
        print("\n".join(lines(
            _TRIALS.value, _X.value, _Y.value, lower_is_better=_LOWER.value, by=_BY.value, run=_RUN.value,
            joint=_JOINT.value, where=_WHERE.value, report=_REPORT.value,
        )))  # fmt: skip
    except (FitError, OSError, pl.exceptions.PolarsError) as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    _TRIALS = flags.DEFINE_string("trials", None, "file of measured points, .csv or .jsonl")
    _X = flags.DEFINE_string("x", None, "column of the size")
    _Y = flags.DEFINE_string("y", None, "column of the metric")
    _LOWER = flags.DEFINE_bool(
        "lower_is_better", None, "direction of the metric; default: by its name, if known"
    )
    _BY = flags.DEFINE_string("by", "", "a law for each value of this column")
    _RUN = flags.DEFINE_string(
        "run", "", "column of the run that a point belongs to; default: 'run', if there is one"
    )
    _JOINT = flags.DEFINE_list("joint", [], "columns of a law in several sizes, the data's last")
    _WHERE = flags.DEFINE_multi_string("where", [], "COLUMN=VALUE")
    _REPORT = flags.DEFINE_string("report", "", "directory for report.html")
    flags.mark_flags_as_required(["trials", "x", "y"])
    app.run(main)
