"""Rates before results: a small grid search judged on validation data only.

    python -m scaling.search --config=experiments/din_complete_journey.py --grid=opt.lr=3e-4,1e-3,3e-3 \
        --grid=model.table.lr=0.02,0.1 --examples=102400 --workdir=runs/search/din

Trains the config once for each combination on a prefix of its training split, evaluates `--split` (default: the first of its
`eval.splits`), and prints the trials from best to worst, each with the split that judged it. Compared models get grids of equal
size. Whatever starts with `test` is refused: a rate chosen there is no longer judged there.

A best rate (a key that ends in `lr`) at an edge of its values has not been found yet: the search goes on beyond by the same
factor, `--widen` times at most, and says so; it also says where it ended at an edge all the same. Resumes; one file per
finished trial.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import math
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from recjax import command, configs
from recjax.data import open_data
from recjax.metrics import classification
from recjax.runtime.run import set_up, write_json
from scaling.plan import processes, study, sweep
from scaling.plan.rows import Row

Grid = dict[str, tuple]


def parse(axes: Sequence[str]) -> Grid:
    """["opt.lr=1e-3,3e-3"] -> {"opt.lr": (0.001, 0.003)}; values as `configs.value_of` reads them."""
    out: Grid = {}
    for axis in axes:
        key, equals, values = axis.partition("=")
        if not equals or not values:
            raise ValueError(f"--grid={axis!r} is not KEY=VALUE,VALUE,...")
        out[key] = tuple(configs.value_of(v) for v in values.split(","))
    return out


def trials(
    config: ConfigDict, grid: Grid, examples: int, data: str, split: str = ""
) -> list[sweep.Trial]:
    """One trial per combination: same data, same seed, one evaluation on `split` ("": the first of `eval.splits`).

    Raises:
      ValueError: The split that would choose is a test split.
      KeyError: The grid names a key that the config does not have (sections of `configs.FREE` may have new ones).
    """
    split = split or config.eval.splits[0]
    if split.startswith("test"):
        raise ValueError(
            f"--split={split} (default: the first of eval.splits) would choose rates on test data; name another"
        )
    out = []
    for row in study.product(**grid):
        c = ConfigDict(config.to_dict())
        for key, value in row.items():
            configs.assign(c, key, value)
        c.train.examples = examples
        c.eval.splits = c.eval.final = (split,)
        c.eval.every, c.eval.at_examples, c.eval.use_best = 0, (), False  # judged once, at the end
        out.append(sweep.Trial(c, dict(row, data=data)))
    return out


def ranked(rows: Sequence[Row], metric: str, larger_is_better: bool | None = None) -> list[Row]:
    """Trials from best to worst; the direction of a metric whose name is not known must be given."""
    large = larger_is_better
    if large is None:
        large = classification.larger_is_better(metric)
    worst = -math.inf if large else math.inf  # undefined: it diverged
    return sorted(rows, key=lambda r: worst if r[metric] is None else r[metric], reverse=large)


def at_edge(grid: Grid, best: Mapping[str, Any]) -> dict[str, float | None]:
    """Keys of numbers whose best value is the smallest or largest of several -> the next value beyond, by the same factor.

    None where none can be guessed: what is no rate (its key does not end in `lr`), or is not positive.
    """
    out: dict[str, float | None] = {}
    for key, values in grid.items():
        numbers = sorted({v for v in values if isinstance(v, float)})
        if len(numbers) < 2 or best[key] not in (numbers[0], numbers[-1]):
            continue
        edge, inner = numbers[:2] if best[key] == numbers[0] else numbers[:-3:-1]
        rate = key.rpartition(".")[2] == "lr" and numbers[0] > 0
        out[key] = float(f"{edge * edge / inner:.3g}") if rate else None
    return out


def search(run: Callable[[Grid], list[Row]], grid: Grid, widen: int) -> tuple[list[Row], Grid]:
    """Ranked trials of the grid, and the grid as it was widened.

    Args:
      run: Trains what is not trained yet of a grid; its trials from best to worst.
      grid: To begin with.
      widen: How often it may go beyond its edges.
    """
    for left in reversed(range(widen + 1)):
        rows = run(grid)
        beyond = {k: v for k, v in at_edge(grid, rows[0]).items() if v is not None}
        if not beyond or not left:
            break
        logging.warning("the best trial is at an edge: adding %s", beyond)
        grid = {k: (*v, beyond[k]) if k in beyond else v for k, v in grid.items()}
    return rows, grid


def main(_) -> None:
    set_up()
    config, metric = _CONFIG.value, _METRIC.value
    split = _SPLIT.value or config.eval.splits[0]
    # An unknown direction is an error before anything is trained.
    ranked([], metric, _LARGER.value)
    data = open_data(config.data)

    def run(grid: Grid) -> list[Row]:
        todo = trials(config, grid, _EXAMPLES.value, data.identity["hash"], split)
        finished = processes.run_sweep(todo, _WORKDIR.value, processes=_PROCESSES.value)
        return ranked(finished, metric, _LARGER.value)

    rows, grid = search(run, parse(_GRID.value), _WIDEN.value)
    shown = [{k: r[k] for k in (*grid, metric)} | {"split": split} for r in rows]
    write_json(f"{_WORKDIR.value}/best.json", shown)
    print("\n".join(json.dumps(r) for r in shown))
    for key in at_edge(grid, rows[0]):
        print(f"{key}={rows[0][key]} is at an edge of the grid: the best value may lie beyond")


if __name__ == "__main__":
    _CONFIG = configs.define_flag()
    _GRID = flags.DEFINE_multi_string("grid", [], "KEY=VALUE,VALUE,... of the config; repeatable")
    _EXAMPLES = flags.DEFINE_integer("examples", 102_400, "prefix of the training split")
    _METRIC = flags.DEFINE_string("metric", "auc", "of the split that judges")
    _SPLIT = flags.DEFINE_string("split", "", "that judges; default: the first of eval.splits")
    _WIDEN = flags.DEFINE_integer(
        "widen", 2, "how often to go beyond a grid at whose edge the best rate lies", lower_bound=0
    )
    _LARGER = flags.DEFINE_bool(
        "larger_is_better", None, "direction of the metric; default: by its name, if known"
    )
    _PROCESSES = flags.DEFINE_integer(
        "processes", 1, "share the trials out among the cores of this CPU", lower_bound=1
    )
    _WORKDIR = flags.DEFINE_string("workdir", None, "sweep directory")
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
