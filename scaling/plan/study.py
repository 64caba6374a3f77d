"""A study's plan: rows of named axes into trials.

`config.sweep.trials` is a list of rows, made with `product`, `zipped` and `chain`, in the order in which they are to
run (the most informative first). A row's keys are those of `PlanRow`, and `anything.dotted`: a key of the experiment's
config, such as model.norm or opt.lr.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import json
from typing import Any, TypedDict

from etils import epath
from ml_collections import ConfigDict

from recjax import configs
from recjax.data import open_data
from recjax.runtime.identity import Use, may
from recjax.runtime.run import read_json, write_json
from recjax.schema import Schema
from scaling.plan import counts, grades, sweep

FILE = "sweep.json"  # the study's config, in the sweep's directory


class PlanRow(TypedDict, total=False):
    """What a row of a plan may say beside keys of the experiment's config.

    Attributes:
      system: Of the plan's systems, which are compared on the same data.
      grade: Of the plan's ladder, or of scaling.plan.grades.LADDER; without one the model is the experiment's own.
      blocks, width: In place of the grade's.
      seed: Of the trial.
      data_seed: Which draw of the training data (`data.draw`); its sizes are nested, and laws know it from another's.
      history: Events of history; default: the experiment's.
      examples: Points of the pass, ascending; the last one is its length.
      cooldown: Share of each point's examples in a fork whose rate falls to zero (0: none).
      kind: "pass" (default); "independent": a run of its own length; "rate": a check of the rates; any other name
        sets the trial apart (other data, another test set): its forks are "<name> cooldown".
    """

    system: str
    grade: str
    blocks: int
    width: int
    seed: int
    data_seed: int
    history: int
    examples: tuple[int, ...]
    cooldown: float
    kind: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config's `sweep`.

    Attributes:
      rows: `PlanRow`s with keys of the config among them.
      members: How many trials of one shape may share a program.
      lr_exponent: Of the rule for dense rates (`scaling.plan.grades.learning_rate`).
      ladder: grade -> options of the model; None: the ladder that comes with the model.
      systems: Name -> {"model": in place of the experiment's, "ladder": its own, "grades": of them}.
    """

    rows: Sequence[Mapping[str, Any]]
    members: int = 1
    lr_exponent: float = 0.0
    ladder: grades.Ladder | None = None
    systems: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, section: ConfigDict) -> "Plan":
        """`trials` of the section, or every one of its `grades` with every seed, and data seed, over one list of points."""
        ladder = section.ladder.to_dict() if section.get("ladder") else None
        systems = section.systems.to_dict() if section.get("systems") else {}
        if "trials" in section:
            rows = [dict(row) for row in section.trials]
        else:
            points = [tuple(section.examples)]
            shared: dict[str, Any] = dict(seed=section.seeds, examples=points)
            if section.get("data_seeds"):
                shared = dict(data_seed=section.data_seeds) | shared
            own = section.get("grades", tuple(ladder or ()))
            rows = [] if systems else product(**({"grade": own} if own else {}), **shared)
            for name, system in systems.items():
                own = system.get("grades", tuple(system.get("ladder") or ()))
                axes = {"system": [name], **({"grade": own} if own else {})}
                rows += product(**axes, **shared)
        options = section.get("members", 1), section.get("lr_exponent", 0.0)
        return cls(rows, *options, ladder, systems)


# ---- rows


def product(**axes: Iterable) -> list[dict]:
    """Every combination: product(seed=(0, 1), lr=(1e-3,)) -> [{"seed": 0, "lr": 1e-3}, ...]."""
    out: list[dict] = [{}]
    for name, values in axes.items():
        out = [{**row, name: v} for row in out for v in list(values)]
    return out


def zipped(**axes: Iterable) -> list[dict]:
    """Value by value: zipped(grade=("0", "1"), lr=(1e-3, 5e-4)); lengths must agree."""
    return [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]


def chain(*parts: list[dict]) -> list[dict]:
    """One after the other, each combination once."""
    return list({json.dumps(row, sort_keys=True): row for part in parts for row in part}.values())


# ---- trials


def opened(config: ConfigDict) -> tuple[Schema, str]:
    """(schema, hash) of the data that a `data` config reads."""
    data = open_data(config)
    return data.schema, data.identity["hash"]


def trials(
    plan: Plan,
    experiment: ConfigDict,
    schema: Schema,
    data: str,
    other: Callable[[ConfigDict], tuple[Schema, str]] = opened,
) -> list[sweep.Trial]:
    """The trials of a plan on data with this schema and hash.

    Args:
      plan: What varies.
      experiment: What all trials share.
      schema: Of the experiment's batches.
      data: Hash of the data.
      other: Schema and hash of another `data` config, for rows that change what is read.

    Raises:
      KeyError: A row names a grade or a config key that does not exist.
    """
    return [trial(plan, experiment, row, schema, data, other) for row in plan.rows]


def trial(
    plan: Plan,
    experiment: ConfigDict,
    row: Mapping[str, Any],
    schema: Schema,
    data: str,
    other: Callable[[ConfigDict], tuple[Schema, str]],
) -> sweep.Trial:
    """One row's trial. Its dense rate is `grades.learning_rate`'s unless the row names opt.lr."""
    c = ConfigDict(experiment.to_dict())
    c.seed = row["seed"]
    history = set_history(c, row)
    ladder, named = plan.ladder, {}
    if "system" in row:
        if row["system"] not in plan.systems:
            raise KeyError(
                f"system {row['system']!r} is not in sweep.systems; there are {', '.join(plan.systems)}"
            )
        system = plan.systems[row["system"]]
        c.model, ladder = ConfigDict(system["model"]), system.get("ladder")
        named = dict(system=row["system"])
    rung = grades.climb(c, row, ladder)
    if plan.lr_exponent:
        c.opt.lr = grades.learning_rate(_width(c, rung), c.opt.lr, plan.lr_exponent)
    if "data_seed" in row:
        c.data.draw = row["data_seed"]
    c.eval.at_examples = tuple(row["examples"])
    c.train.examples = max(row["examples"])
    own = {k: v for k, v in row.items() if k not in PlanRow.__annotations__}
    for key, value in own.items():
        configs.assign(c, key, value)
    if any(k.startswith("data.") for k in own):
        schema, data = other(c.data)
    columns = dict(
        **named,
        **rung,
        seed=c.seed,
        **{k: row[k] for k in ("data_seed",) if k in row},
        history=history,
        lr=c.opt.lr,
        kind=row.get("kind", "pass"),
        variant=", ".join(f"{k}={v}" for k, v in own.items() if not may(k, Use.RECIPE)),
        data=data,
        **count(schema, c),
    )
    return sweep.Trial(c, columns, row.get("cooldown", 0.0))


def count(schema: Schema, config: ConfigDict) -> counts.Size:
    """What a trial's model is in numbers."""
    made = lambda: next(iter(open_data(config.data).batches(config.data.train, config.train.batch)))  # noqa: E731
    return counts.count(
        schema, config.model, config.data.history, None if schema.id_spaces else made
    )


def _width(config: ConfigDict, rung: Mapping[str, Any]) -> int:
    """What the rule for dense rates goes by."""
    width = rung.get("width", config.model.get("width"))
    if not isinstance(width, int):
        raise KeyError(
            "sweep.lr_exponent scales the dense rate by model.width, which this model has not; set it to 0 and give rates as "
            "opt.lr, in rows or in the ladder"
        )
    return width


def set_history(config: ConfigDict, row: Mapping[str, Any]) -> int:
    """Sets a row's history and returns it; where lists have lengths of their own, that of history and moveline."""
    lengths = config.data.history
    if not hasattr(lengths, "items"):
        config.data.history = row.get("history", lengths)
        return config.data.history
    if "history" in row:
        lengths.update(history=row["history"], moveline=row["history"])
    return lengths.history


# ---- the study's config, as the sweep's directory holds it


def save(config: ConfigDict, root: epath.Path) -> None:
    """Beside the trials, for reports and distillations later on."""
    write_json(root / FILE, config)


def saved(root: epath.Path) -> ConfigDict:
    """The config of a sweep.

    Raises:
      FileNotFoundError: There is none; the message says what to give.
    """
    path = root / FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give the --workdir of a python -m scaling.run that has finished"
        )
    return ConfigDict(read_json(path))
