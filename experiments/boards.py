"""What boards share. A board is one table of models, trained over seeds and judged on the same rows, with paired differences."""

import dataclasses
from types import ModuleType
from typing import Any

from etils import epath
from ml_collections import ConfigDict
import numpy as np

from recjax import configs
from recjax.training.opening import evaluator_for, open_run

Columns = dict[str, np.ndarray]


def config_of(file: str, seed: int, source: str, changes: dict) -> ConfigDict:
    """An experiment's config with another seed, of the split too, source and `changes` (flat)."""
    path, _, arg = file.partition(":")
    c = configs.load(path, arg)
    c.seed = seed
    c.data.source = source
    c.data.prepare.seed = seed
    for key, value in changes.items():
        configs.assign(c, key, value)
    return c


def run_of(root: epath.Path, name: str, seed: int) -> epath.Path:
    """Run directory of a model of a board: "no TENet, no TAENet", seed 3 -> no_TENet_no_TAENet/seed-3."""
    return root / name.replace(" ", "_").replace(",", "") / f"seed-{seed}"


def scored(
    run: epath.PathLike, splits: tuple[str, ...] = ("validation", "test")
) -> tuple[Any, dict[str, Columns]]:
    """(data, {split: what `System.measure` sees}) of a finished run, of the checkpoint that its training judged."""
    config, data, system, trees, _ = open_run(run, best=None)
    out = {}
    for split in splits:
        rows: Columns = {}

        def keep(columns: Columns, rows: Columns = rows) -> dict:
            rows.update(columns)
            return {}

        evaluator = evaluator_for(dataclasses.replace(system, measure=keep), config)
        evaluator(trees, data.batches(split, config.eval.batch, examples=config.eval.examples))
        out[split] = rows
    return data, out


def deviation(values: np.ndarray) -> float:
    """Standard deviation over seeds; 0 of one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def pyplot() -> ModuleType:
    """matplotlib.pyplot, which draws to files alone. Ask for it before what takes long: it ends a command that lacks it."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise SystemExit("error: figures need matplotlib; pip install -e '.[scaling]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    return plt
