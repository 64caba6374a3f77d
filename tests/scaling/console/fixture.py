"""A folder of runs, a sweep and an artifact for the console, written in a second: no training."""

import json
import pathlib
from typing import Any

import numpy as np

from recjax.evaluation import kept_scores
from tests.conftest import REPO

STUDY = REPO / "scaling" / "studies" / "complete_journey" / "trials.jsonl"


def write_run(
    folder: pathlib.Path, seed: int, *, finished: bool = True, auc: float = 0.70, kept: bool = True
) -> None:
    """A run's files: a falling loss, evaluations, and kept scores of 400 rows of 40 visits."""
    folder.mkdir(parents=True)
    config = {
        "seed": seed,
        "model": {"name": "din"},
        "opt": {"lr": 1e-3 * (1 + seed)},
        "train": {"batch": 512},
    }
    (folder / "config.json").write_text(json.dumps(config))
    rows: list[dict[str, Any]] = [
        {"step": s, "kind": "train", "loss": 0.7 - 0.001 * s + 0.01 * seed}
        for s in range(10, 101, 10)
    ]
    rows.append(
        {
            "step": 100,
            "kind": "final" if finished else "eval",
            "split": "test",
            "auc": auc,
            "logloss": 0.5,
            "ece": 0.01,
        }
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    status = {
        "step": 100,
        "total": 100 if finished else 250,
        "loss": rows[-2]["loss"],
        "examples_per_s": 1234.6,
        "waited": 0.25,
        "left_s": 75.0,
    }
    (folder / "status.json").write_text(json.dumps(status))
    if finished:
        test = {"auc": auc, "logloss": 0.5, "ece": 0.01, "calibration": 1.02, "evaluated": 400}
        summary = {"test": test, "popularity": {"test": 0.61}, "step": 100, "examples_per_s": 1234.6, "loader_wait": 0.25,
                   "wall_s": 41.0, "n_dense": 19675, "n_embedding": 532352, "seed": seed}  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    if kept:
        rng = np.random.default_rng(0)
        label = (rng.random(400) < 0.3).astype(np.float32)
        logit = label * (0.6 + 0.2 * seed) + np.random.default_rng(seed + 1).normal(size=400)
        columns = {"logit": logit.astype(np.float32), "label": label, "weight": np.ones(400, np.float32),
                   "row": np.arange(400), "group/visit": np.arange(400) // 10}  # fmt: skip
        kept_scores.keep(folder, "test", columns)


def write_all(root: pathlib.Path, points: int = 10**9) -> pathlib.Path:
    """runs/{a, b, live, cut, foreign}, a sweep with a failed run, and prepared data's report.

    Args:
      root: An empty folder.
      points: Rows of the committed study that the sweep has.
    """
    runs = root / "runs"
    write_run(runs / "a", 0)
    write_run(runs / "b", 1, auc=0.72)
    write_run(runs / "live", 2, finished=False, kept=False)
    write_run(runs / "cut", 3)
    (runs / "cut" / "summary.json").write_text('{"test": {"auc": 0.7')
    (runs / "foreign").mkdir()
    (runs / "foreign" / "notes.txt").write_text("nothing of ours")
    sweep = runs / "study"
    (sweep / "runs" / "x1").mkdir(parents=True)
    rows = STUDY.read_text().splitlines(keepends=True)[:points]
    (sweep / "trials.jsonl").write_text("".join(rows) + '{"trial": "half')
    (sweep / "runs" / "x1" / "failed.json").write_text(json.dumps({"error": "lr=9 diverged"}))
    (runs / "data").mkdir()
    (runs / "data" / "report.json").write_text(
        json.dumps({"rows": 24000, "users": 300, "splits": {"test": {"rows": 2000}}})
    )
    return runs
