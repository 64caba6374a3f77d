"""Rates before results: a small grid search judged on validation data only.

    python -m scaling.search --config=experiments/din_complete_journey.py --grid=opt.lr=3e-4,1e-3,3e-3 \
        --grid=model.table.lr=0.02,0.1 --examples=102400 --workdir=runs/search/din

Trains the config once for each combination on a prefix of its training split, evaluates the first of its
`eval.splits`, and prints the trials from best to worst. Compared models get grids of equal size. Whatever starts with
`test` is refused: a rate chosen there is no longer judged there. Resumes; one file per finished trial.
"""

from collections.abc import Sequence
import json
import math

from absl import flags
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


def trials(config: ConfigDict, grid: Grid, examples: int, data: str) -> list[sweep.Trial]:
    """One trial per combination: same data, same seed, one evaluation on the first of `eval.splits`.

    Raises:
      ValueError: The split that would choose is a test split.
      KeyError: The grid names a key that the config does not have (sections of `configs.FREE` may have new ones).
    """
    split = config.eval.splits[0]
    if split.startswith("test"):
        raise ValueError(f"eval.splits[0]={split!r} would choose rates on test data; name another")
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


def main(_) -> None:
    set_up()
    config, grid = _CONFIG.value, parse(_GRID.value)
    ranked(
        [], _METRIC.value, _LARGER.value
    )  # an unknown direction is an error before anything is trained
    data = open_data(config.data)
    todo = trials(config, grid, _EXAMPLES.value, data.identity["hash"])
    finished = processes.run_sweep(todo, _WORKDIR.value, processes=_PROCESSES.value)
    rows = ranked(finished, _METRIC.value, _LARGER.value)
    shown = [{k: r[k] for k in (*grid, _METRIC.value)} for r in rows]
    write_json(f"{_WORKDIR.value}/best.json", shown)
    print("\n".join(json.dumps(r) for r in shown))


if __name__ == "__main__":
    _CONFIG = configs.define_flag()
    _GRID = flags.DEFINE_multi_string("grid", [], "KEY=VALUE,VALUE,... of the config; repeatable")
    _EXAMPLES = flags.DEFINE_integer("examples", 102_400, "prefix of the training split")
    _METRIC = flags.DEFINE_string("metric", "auc", "of the first of eval.splits")
    _LARGER = flags.DEFINE_bool(
        "larger_is_better", None, "direction of the metric; default: by its name, if known"
    )
    _PROCESSES = flags.DEFINE_integer(
        "processes", 1, "share the trials out among the cores of this CPU", lower_bound=1
    )
    _WORKDIR = flags.DEFINE_string("workdir", None, "sweep directory")
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
