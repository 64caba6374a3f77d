"""A folder of runs, a sweep and an artifact for the console, written in a second: no training."""

import json
import pathlib
from typing import Any

import numpy as np

from recjax.evaluation import kept_scores


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


GRADES = {"0": (4448, 185277), "1": (52800, 410000), "2": (210000, 900000)}
SIZES = (10_000, 40_000, 160_000, 640_000, 1_450_000)


def planted_auc(n_blocks: int, examples: int, seed: int) -> float:
    """0.78 less what size and data leave, and a seed's noise of a thousandth."""
    noise = 0.001 * np.random.default_rng([n_blocks, examples, seed]).normal()
    return 0.78 - 0.5 * n_blocks**-0.35 - 3.0 * examples**-0.35 + noise


def write_sweep(folder: pathlib.Path, grades: tuple[str, ...] = tuple(GRADES)) -> None:
    """A sweep of planted points: three grades at five sizes of data, two seeds; one run failed."""
    from scaling.plan.grades import LADDER

    rows = []
    for grade in grades:
        n_blocks, flops = GRADES[grade]
        for seed in (0, 1):
            for examples in SIZES:
                auc = planted_auc(n_blocks, examples, seed)
                rows.append(
                    {"trial": f"{grade}-{seed}-{examples}", "run": f"{grade}-{seed}", "kind": "pass", "variant": "", "grade": grade,
                     "blocks": LADDER[grade].blocks, "width": LADDER[grade].width, "history": 20, "seed": seed, "lr": 1e-3,
                     "n_blocks": n_blocks, "flops_per_example": flops, "examples": examples, "auc": auc, "logloss": 1 - auc}
                )  # fmt: skip
    (folder / "runs" / "x1").mkdir(parents=True)
    (folder / "runs" / "x1" / "failed.json").write_text(json.dumps({"error": "lr=9 diverged"}))
    (folder / "trials.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in rows) + '{"trial": "half'
    )


def write_all(root: pathlib.Path) -> pathlib.Path:
    """runs/{a, b, live, cut, foreign}, sweeps with a law and too small for one, and prepared data's report, in an empty folder."""
    runs = root / "runs"
    write_run(runs / "a", 0)
    write_run(runs / "b", 1, auc=0.72)
    write_run(runs / "live", 2, finished=False, kept=False)
    write_run(runs / "cut", 3)
    (runs / "cut" / "summary.json").write_text('{"test": {"auc": 0.7')
    (runs / "foreign").mkdir()
    (runs / "foreign" / "notes.txt").write_text("nothing of ours")
    write_sweep(runs / "study")
    write_sweep(runs / "small", ("0",))
    (runs / "data").mkdir()
    (runs / "data" / "report.json").write_text(
        json.dumps({"rows": 24000, "users": 300, "splits": {"test": {"rows": 2000}}})
    )
    return runs
