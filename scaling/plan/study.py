"""A study's plan: rows of named axes into trials.

`config.sweep.trials` is a list of rows, made with `product`, `zipped` and `chain`, in the order in which they are to
run (the most informative first). A row's keys:

    grade      of scaling.plan.grades.LADDER
    blocks, width   in place of the grade's
    seed
    history    events of history; default: the experiment's
    examples   points of the pass, ascending; the last one is its length
    cooldown   share of each point's examples in a fork whose rate falls to zero (0: none)
    kind       "pass" (default); "independent": a run of its own length; "rate": a check of the rates; any other name
               sets the trial apart (other data, another test set): its forks are "<name> cooldown"
    anything.dotted   a key of the experiment's config, such as model.norm or opt.lr
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from ml_collections import ConfigDict

from recjax import configs
from recjax.data import open_data
from recjax.runtime.identity import Use, may
from recjax.schema import Schema
from scaling.plan import grades, sweep

AXES = ("grade", "blocks", "width", "seed", "history", "examples", "cooldown", "kind")


def opened(config: ConfigDict) -> tuple[Schema, str]:
    """(schema, hash) of the data that a `data` config reads."""
    data = open_data(config)
    return data.schema, data.identity["hash"]


def trials(
    config: ConfigDict,
    schema: Schema,
    data: str,
    other: Callable[[ConfigDict], tuple[Schema, str]] = opened,
) -> list[sweep.Trial]:
    """The trials of `config.sweep` on data with this schema and hash.

    Args:
      config: With `experiment` and `sweep`.
      schema: Of the experiment's batches.
      data: Hash of the data.
      other: Schema and hash of another `data` config, for rows that change what is read.

    Raises:
      KeyError: A row names a grade or a config key that does not exist.
    """
    return [trial(config, dict(row), schema, data, other) for row in rows(config.sweep)]


def rows(plan: ConfigDict) -> list[dict]:
    """`trials`, or every grade with every seed over one list of points."""
    if "trials" in plan:
        return list(plan.trials)
    points = [tuple(plan.examples)]
    return sweep.product(grade=plan.grades, seed=plan.seeds, examples=points)


def trial(
    config: ConfigDict,
    row: Mapping[str, Any],
    schema: Schema,
    data: str,
    other: Callable[[ConfigDict], tuple[Schema, str]],
) -> sweep.Trial:
    """One row's trial. Its dense rate is `grades.learning_rate`'s unless the row names opt.lr."""
    grade = grades.named(row["grade"])
    grade = dataclasses.replace(grade, **{k: row[k] for k in ("blocks", "width") if k in row})
    c = ConfigDict(config.experiment.to_dict())
    c.seed = row["seed"]
    history = set_history(c, row)
    c.model.update(grades.options(grade, row.get("model.name", c.model.name)))
    c.opt.lr = grades.learning_rate(grade, c.opt.lr, config.sweep.get("lr_exponent", 0.0))
    c.eval.at_examples = tuple(row["examples"])
    c.train.examples = max(row["examples"])
    own = {k: v for k, v in row.items() if k not in AXES}
    for key, value in own.items():
        configs.assign(c, key, value)
    if any(k.startswith("data.") for k in own):
        schema, data = other(c.data)
    columns = dict(
        grade=row["grade"],
        blocks=grade.blocks,
        width=grade.width,
        seed=c.seed,
        history=history,
        lr=c.opt.lr,
        kind=row.get("kind", "pass"),
        variant=", ".join(f"{k}={v}" for k, v in own.items() if not may(k, Use.RECIPE)),
        data=data,
        **grades.count(schema, c.model, c.data.history),
    )
    return sweep.Trial(c, columns, row.get("cooldown", 0.0))


def set_history(config: ConfigDict, row: Mapping[str, Any]) -> int:
    """Sets a row's history and returns it; where lists have lengths of their own, that of history and moveline."""
    lengths = config.data.history
    if not hasattr(lengths, "items"):
        config.data.history = row.get("history", lengths)
        return config.data.history
    if "history" in row:
        lengths.update(history=row["history"], moveline=row["history"])
    return lengths.history
