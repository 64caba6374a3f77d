"""What each page shows: plain values out of files; no HTML, no HTTP."""

from collections.abc import Mapping, Sequence
from concurrent import futures
import math
import pathlib
import time
from typing import Any

import numpy as np
from scipy.special import expit

from recjax.evaluation import kept_scores
from recjax.metrics import comparison
from recjax.runtime.run import flat, read_jsonl
from scaling.console.index import Index, Place
from scaling.law import decisions, laws, notes
from scaling.law.fit import FitError
from scaling.law.joint import JointFit

METRICS = ("auc", "logloss", "ece")
DRAWS = 60  # of a law's bootstrap, where a report takes 150: a page is looked at while a sweep runs
QUICK_S = 0.3  # a law that is there sooner is not announced


# ---- runs


def runs(index: Index) -> list[dict[str, Any]]:
    """A row a run: state, step, loss, the figures of its last evaluation."""
    return [run_row(index, p) for p in index.places("run")]


def run_row(index: Index, place: Place) -> dict[str, Any]:
    """Of one run."""
    config, status = index.json(place, "config.json") or {}, index.json(place, "status.json") or {}
    summary = index.json(place, "summary.json") or {}
    rows, trouble = index.rows(place, "metrics.jsonl")
    trained = next((r for r in reversed(rows) if r.get("kind") == "train"), {})
    judged = next((r for r in reversed(rows) if r.get("kind") in ("final", "eval")), {})
    said = [
        x["damaged"] for x in (config, summary, status) if isinstance(x, dict) and "damaged" in x
    ]
    model = config.get("model") if isinstance(config.get("model"), dict) else {}
    return {
        "id": place.id,
        "state": index.state(place),
        "model": model.get("name", ""),
        "step": summary.get("step", trained.get("step", status.get("step"))),
        "total": status.get("total"),
        "loss": trained.get("loss"),
        "examples_per_s": summary.get("examples_per_s", status.get("examples_per_s")),
        "waited": summary.get("loader_wait", status.get("waited")),
        "left_s": None if summary else status.get("left_s"),
        "split": judged.get("split", ""),
        **{m: judged.get(m) for m in METRICS},
        "trouble": "; ".join([*said, *filter(None, [trouble])]),
    }


def run(index: Index, id: str) -> dict[str, Any]:  # noqa: A002
    """A run's page: its row, curves, final figures and config."""
    place = index.place(id, "run")
    summary = index.json(place, "summary.json") or {}
    popularity = summary.get("popularity") or {}
    finals = [
        {
            "split": split,
            "popularity": popularity.get(split),
            **{k: v for k, v in found.items() if _number(v)},
        }
        for split, found in summary.items()
        if isinstance(found, dict) and "auc" in found
    ]
    config = index.json(place, "config.json") or {}
    facts = {
        k: summary[k]
        for k in ("n_dense", "n_embedding", "flops_per_example", "wall_s", "seed")
        if k in summary
    }
    return {
        "row": run_row(index, place),
        "finals": finals,
        "facts": facts,
        "config": sorted(flat(config).items()),
        "curves": curves(index, place),
    }


def curves(index: Index, place: Place) -> dict[str, dict[str, list]]:
    """name -> {x: steps, y: values} of the losses of training windows and the AUC of evaluations."""
    rows, _ = index.rows(place, "metrics.jsonl")
    out: dict[str, dict[str, list]] = {}
    for r in rows:
        if r.get("kind") == "train":
            wanted = {k: r[k] for k in r if k == "loss" or k.startswith("loss/")}
        else:
            wanted = {f"{r.get('split', '')} {m}": r.get(m) for m in ("auc",)}
        for name, value in wanted.items():
            if _number(value) and _number(r.get("step")):
                line = out.setdefault(name, {"x": [], "y": []})
                line["x"].append(r["step"])
                line["y"].append(value)
    return out


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# ---- comparisons


def finals(index: Index, places: Sequence[Place]) -> list[dict[str, Any]]:
    """{split, metric, values}: final figures of runs side by side, those that the first has."""
    summaries = [index.json(p, "summary.json") or {} for p in places]
    first = (
        {s: v for s, v in summaries[0].items() if isinstance(v, dict) and "auc" in v}
        if places
        else {}
    )
    held = lambda summary, split: found if isinstance(found := summary.get(split), dict) else {}  # noqa: E731
    return [
        {"split": split, "metric": m, "values": [held(x, split).get(m) for x in summaries]}
        for split, found in first.items()
        for m in found
        if _number(found[m])
    ]


def compare(index: Index, ids: Sequence[str]) -> dict[str, Any]:
    """Final figures side by side, what their configs differ in, and paired differences to the first where rows were kept."""
    places = [index.place(i, "run") for i in ids]
    metrics = finals(index, places)
    splits = list(dict.fromkeys(m["split"] for m in metrics))
    configs = [flat(index.json(p, "config.json") or {}) for p in places]
    keys = sorted({k for c in configs for k in c})
    differs = [
        {"key": k, "values": [c.get(k) for c in configs]}
        for k in keys
        if len({str(c.get(k)) for c in configs}) > 1
    ]
    paired = [x for s in splits for other in places[1:] for x in _paired(places[0], other, s)]
    return {
        "ids": list(ids), "metrics": metrics, "differs": differs, "paired": paired,
        "calibration": [c for p in places for s in splits if (c := calibration(p, s))],
    }  # fmt: skip


def _paired(first: Place, other: Place, split: str) -> list[dict[str, Any]]:
    """Differences with their intervals, over groups of rows; why not, where there are none."""
    out: dict[str, Any] = {"split": split, "other": other.id}
    try:
        a, b = (kept_scores.load(p.path, split) for p in (first, other))
        kept_scores.check({first.id: [a], other.id: [b]}, split)
    except FileNotFoundError:
        return [
            out
            | {"why": "no scores were kept of both runs; python -m experiments.compare keeps them"}
        ]
    except (ValueError, KeyError, OSError) as e:
        return [out | {"why": str(e)}]
    key = kept_scores.group_key(a)
    groups = a[key] if key else a["row"]
    found = []
    for metric in ("auc", "logloss"):
        one, two = (expit(x["logit"].astype(np.float64)) for x in (a, b))
        p = comparison.paired_bootstrap(one, two, a["label"], groups, metric, weights=a["weight"])
        found.append(
            out
            | {
                "metric": metric,
                "difference": p.difference,
                "low": p.low,
                "high": p.high,
                "groups": p.groups,
            }
        )
    return found


def calibration(place: Place, split: str, bins: int = 10) -> dict[str, Any] | None:
    """Mean prediction and observed rate of groups of equal size; None where no scores were kept."""
    try:
        rows = kept_scores.load(place.path, split)
    except (OSError, ValueError, KeyError):
        return None
    p = expit(rows["logit"].astype(np.float64))
    parts = np.array_split(np.argsort(p, kind="stable"), min(bins, len(p)))
    return {
        "id": place.id,
        "split": split,
        "x": [float(p[i].mean()) for i in parts],
        "y": [float(rows["label"][i].mean()) for i in parts],
    }


# ---- sweeps and laws


class Laws:
    """Joint laws of sweeps, fitted in the background and kept until their trials change: a fit takes half a minute or more."""

    def __init__(self):
        self._pool = futures.ThreadPoolExecutor(1, "law")
        self._kept: dict[
            tuple[pathlib.Path, str], tuple[tuple[int, int], futures.Future, float]
        ] = {}

    def get(self, place: Place, metric: str):
        """The law.

        Raises:
          Fitting: Not yet; it is being fitted.
          FitError, ValueError, KeyError: It cannot be fitted; the message says why.
        """
        path = place.path / "trials.jsonl"
        found = path.stat()
        stamp = found.st_mtime_ns, found.st_size
        kept = self._kept.get((path, metric))
        if kept is None or (kept[0] != stamp and kept[1].done()):
            kept = self._kept[path, metric] = (
                stamp,
                self._pool.submit(_fitted, path, metric),
                time.monotonic(),
            )
        try:
            return kept[1].result(timeout=QUICK_S)
        except futures.TimeoutError:
            since = time.monotonic() - kept[2]
            raise Fitting(
                f"the law is being fitted, for {since:.0f} s so far; this page shows it when it is there"
            ) from None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class Fitting(Exception):
    """A law is not there yet."""


def _fitted(path: pathlib.Path, metric: str):
    return laws.joint_law([*read_jsonl(path)], metric, draws=DRAWS)


def sweeps(index: Index) -> list[dict[str, Any]]:
    """A row a sweep."""
    out = []
    for place in index.places("sweep"):
        rows, trouble = index.rows(place, "trials.jsonl")
        out.append(
            {
                "id": place.id,
                "rows": len(rows),
                "trials": len({r.get("trial") for r in rows}),
                "best": max((r["auc"] for r in rows if _number(r.get("auc"))), default=None),
                "failed": len(failures(index, place)),
                "trouble": trouble,
            }
        )
    return out


def failures(index: Index, place: Place) -> list[dict[str, Any]]:
    """Runs of a sweep whose last attempt failed (runs/<run>/failed.json), and rows whose metrics are undefined."""
    out = []
    for path in sorted(place.path.glob("runs/*/failed.json")):
        found = index.json(Place(path.parent.name, "run", path.parent), "failed.json")
        out.append(
            {
                "run": path.parent.name,
                "error": str(found.get("error", found) if isinstance(found, dict) else found),
            }
        )
    rows = index.rows(place, "trials.jsonl")[0]
    return out + [
        {"run": r.get("run"), "error": str(r["undefined"])} for r in rows if r.get("undefined")
    ]


def sweep(index: Index, fits: Laws, id: str, metric: str = "auc") -> dict[str, Any]:  # noqa: A002
    """A sweep's page: its law with what belongs beside it, the points, and the trials."""
    place = index.place(id, "sweep")
    rows, trouble = index.rows(place, "trials.jsonl")
    known = sorted(
        {
            k
            for r in rows
            for k, v in r.items()
            if _number(v) and k in METRICS or k.startswith("gauc") and _number(v)
        }
    )
    out: dict[str, Any] = {
        "id": id, "metric": metric, "metrics": known, "trouble": trouble, "rows": rows, "failed": failures(index, place),
        "law": None, "why": "", "fitting": False, "fit": None, "notes": [], "points": points(rows, metric), "best": "",
    }  # fmt: skip
    try:
        law = fits.get(place, metric)
    except Fitting as e:
        return out | {"why": str(e), "fitting": True}
    except (FitError, ValueError, KeyError) as e:
        return out | {"why": str(e)}
    found = decisions.best_measured(rows, metric, law.larger_is_better)
    return out | {
        "fit": law,
        "law": {
            "formula": law.formula, "r2": law.r2, "points": law.points, "runs": law.runs, "level": law.level,
            "intervals": law.intervals, "lack_of_fit": law.lack_of_fit,
        },
        "notes": [str(n) for n in notes.doubts(law.notes)],
        "best": decisions.measured_sentence(metric, found) if found else "",
        "choices": choices(rows),
        "spans": law.spans,
    }  # fmt: skip


def points(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, dict[str, list]]:
    """Grade and history -> {x: examples, y: metric} of what was measured."""
    out: dict[str, dict[str, list]] = {}
    for r in laws.base_rows(rows):
        if _number(r.get(metric)) and _number(r.get("examples")):
            name = f"grade {r.get('grade', '?')}, history {r.get('history', '?')}"
            line = out.setdefault(name, {"x": [], "y": []})
            line["x"].append(r["examples"])
            line["y"].append(r[metric])
    return out


def choices(rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """Grades and histories that can be asked for."""
    found = decisions.options(rows)
    return {
        "grade": sorted({o.grade for o in found}),
        "history": sorted({o.history for o in found}),
    }


def what_if(
    law: JointFit,
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    *,
    grade: str = "",
    history: int = 0,
    examples: float = 0.0,
    target: float | None = None,
) -> dict[str, Any]:
    """What to expect there, what to double next, and what reaches a target: the answers of `scaling.decide`.

    Args:
      law: Of `sweep`, "fit"; with its rows.

    Raises:
      ValueError: Nothing of that grade and length was measured.
    """
    examples = examples or law.spans["examples"][1]
    options = decisions.options(rows)
    found = [o for o in options if grade in ("", o.grade) and history in (0, o.history)]
    if not found:
        raise ValueError(f"grade {grade!r} with history {history} was not measured")
    expected = [decisions.expected(law, o, examples) for o in found]
    at = lambda o: {a: o.sizes(examples)[a] for a in law.axes}  # noqa: E731
    best = max(found, key=lambda o: law.sign * law.predict(at(o)))
    out: dict[str, Any] = {
        "examples": examples,
        "expected": [{"grade": o.grade, "history": o.history, **e, "sentence": decisions.sentence(metric, e)} for o, e in zip(found, expected, strict=True)],
        "doubling": decisions.doubling_sentence(metric, decisions.doubling(law, options, best, examples)),
    }  # fmt: skip
    if target is not None:
        out["cheapest"] = decisions.cheapest_sentence(
            metric, target, decisions.cheapest(law, options, target)
        )
    return out


# ---- prepared data


def data_sets(index: Index) -> list[dict[str, Any]]:
    """A row a prepared data set."""
    out = []
    for place in index.places("data"):
        report = index.json(place, "report.json") or {}
        out.append(
            {
                "id": place.id,
                "trouble": report.get("damaged", ""),
                "facts": sorted(flat(report).items()),
            }
        )
    return out
