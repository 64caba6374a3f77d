"""Does a large teacher make a small student better? The student, trained with and without its teacher on the same batches.

`python -m scaling.distill` picks both from a finished sweep (`scaling.choice`); `python -m scaling.run` distills what its config names.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict
import numpy as np

from recjax.data import open_data
from recjax.metrics.comparison import half_width
from recjax.models.parts import building
from recjax.runtime.identity import Use, without
from recjax.runtime.run import flat, plain, read_json
from recjax.training.inference import teach
from recjax.training.loop import train
from scaling.plan import together
from scaling.plan.grades import named
from scaling.report.context import Distillation, Paired

MODES = ("offline", "online")
STUDENT_OPTIONS = dict(local=8, dilation=4)  # of LightSUAN, where the sweep names none
NAMES = (
    "distill",
    "distil",
)  # of a config's section and a sweep's folder: today's, and that of sweeps written before


@dataclasses.dataclass(frozen=True)
class Spec:
    """What to distill.

    Attributes:
      teacher, student: Grades.
      student_options: Of LightSUAN, beside the grade's.
      mode: "offline" (finished teachers) or "online" (trained beside the student).
      temperatures, weights: Of the soft term; tuned on validation when there is more than one combination.
      examples: To train on.
      seeds: Paired: each trains the student with and without the term.
      teachers: Workdirs of finished teachers, for "offline"; they teach together.
    """

    teacher: str
    student: str
    student_options: Mapping[str, Any]
    mode: str
    temperatures: Sequence[float]
    weights: Sequence[float]
    examples: int
    seeds: Sequence[int]
    teachers: Sequence[str] = ()

    @classmethod
    def of(cls, section: ConfigDict, teachers: Sequence[str]) -> "Spec":
        """A config's section; offline, the finished `teachers` teach."""
        return cls(
            **{k: section[k] for k in ("teacher", "student", "mode", "temperatures", "weights")},
            student_options=section.student_options.to_dict(),
            examples=section.examples,
            seeds=section.seeds,
            teachers=tuple(teachers) if section.mode == "offline" else (),
        )

    def depends_on(self, experiment: Any, root: epath.Path) -> Any:
        """What the results depend on, for `scaling.cache.cached`: not where the sweep or its data lie."""
        teachers = [os.path.relpath(t, root) for t in self.teachers]
        config = without(flat(plain(experiment)), Use.PLACE)
        return [{**dataclasses.asdict(self), "teachers": teachers}, config]

    def __post_init__(self):
        building.check_choice("distillation", "mode", self.mode, MODES)
        if self.mode == "offline" and not self.teachers:
            raise ValueError("offline distillation needs finished teachers; give their workdirs")


def section(config: ConfigDict) -> ConfigDict | None:
    """A study's section on distillation, if it has one."""
    return next((config[name] for name in NAMES if name in config), None)


def folder(root: epath.Path) -> epath.Path:
    """Where a sweep's distillations lie; those that were begun under the former name go on there."""
    today, former = (root / name for name in NAMES)
    return former if former.exists() else today


def results_file(root: epath.Path) -> epath.Path:
    """Results of the distillation that the sweep's own config names."""
    return root / f"{folder(root).name}.json"


# ------------------------------------------------------------------------------------------------------- configs


def light(model: Mapping[str, Any], grade: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The experiment's model as a LightSUAN of a grade, scored in parallel (gate_pool "causal")."""
    return {
        **model,
        **named(grade).options(),
        "name": "lightsuan",
        "gate_pool": "causal",
        **options,
    }


def configs_of(base: ConfigDict, spec: Spec, soft: Mapping[str, float], seed: int) -> ConfigDict:
    """`base` training the student under the soft term {"temperature", "weight"}; weight 0: without teachers."""
    config = ConfigDict(base.to_dict())
    config.seed, config.train.examples, config.eval.at_examples = seed, spec.examples, ()
    student = light(base.model.to_dict(), spec.student, spec.student_options)
    if spec.mode == "online":
        teacher = {**base.model.to_dict(), **named(spec.teacher).options()}
        model = dict(name="distillation_online", teacher=teacher, student=student, **soft)
    elif soft["weight"]:
        model = dict(name="distillation_offline", student=student, **soft)
        config.data.teachers = tuple(map(str, spec.teachers))
    else:
        model = student
    config.model = ConfigDict(model)
    return config


def judged(data: Any) -> tuple[str, ...]:
    """The metrics that are reported, GAUC within the data's first group."""
    return ("auc", *(f"gauc_{g}" for g in data.schema.groups[:1]), "logloss", "ece")


def validation_split(train_split: str) -> str:
    return "validation_matched" if train_split.endswith("_matched") else "validation"


# ------------------------------------------------------------------------------------------------------ training


def tune(base: ConfigDict, spec: Spec, root: epath.Path) -> dict[str, Any]:
    """Temperature and weight by validation AUC, first seed; weight 0 is shown beside them.

    Returns:
      {"chosen": {"temperature", "weight"}, "rows": [{"temperature", "weight", metric: value}]}.
    """
    grid = [dict(temperature=t, weight=w) for t in spec.temperatures for w in spec.weights]
    if len(grid) == 1:
        return {"chosen": grid[0], "rows": []}
    base = ConfigDict(base.to_dict())
    split = validation_split(base.data.train)
    base.eval.splits = base.eval.final = (split,)
    rows = []
    for soft in [dict(temperature=1.0, weight=0.0), *grid]:
        config = configs_of(base, spec, soft, spec.seeds[0])
        workdir = root / "tuning" / f"t{soft['temperature']:g}-w{soft['weight']:g}"
        metrics = train(config, workdir)[split]
        rows.append({**soft, **{m: metrics.get(m) for m in judged(open_data(base.data))}})
        logging.info("tuning on %s: %s", split, rows[-1])
    best = max(rows[1:], key=lambda r: -1.0 if r["auc"] is None else r["auc"])
    return {"chosen": {k: best[k] for k in ("temperature", "weight")}, "rows": rows, "split": split}


def train_pairs(base: ConfigDict, spec: Spec, root: epath.Path) -> dict[str, Any]:
    """Tunes, then trains the student with and without the soft term for every seed.

    Returns:
      {"roles": {role: {split: {metric: [value a seed]}}}, "tuning": see `tune`, "teacher", "student", "mode"}.
    """
    if spec.mode == "offline":
        for run in spec.teachers:
            teach(run, base.data.train, examples=spec.examples)
    tuning, names = tune(base, spec, root), judged(open_data(base.data))
    roles: dict[str, dict] = {}
    for seed in spec.seeds:
        for role, soft in (
            ("undistilled", {**tuning["chosen"], "weight": 0.0}),
            ("distilled", tuning["chosen"]),
        ):
            logging.info("distillation: %s student, seed %d, %s", role, seed, soft)
            summary = train(configs_of(base, spec, soft, seed), root / f"{role}-{seed}")
            for split in base.eval.final:
                _add(roles, role, split, summary[split], names)
                if role == "distilled" and spec.mode == "online":
                    of_teacher = {m: summary[split].get(f"teacher/{m}") for m in names}
                    _add(roles, "teacher", split, of_teacher, names)
    for run in spec.teachers if spec.mode == "offline" else ():
        summary = finals(epath.Path(run))
        for split in base.eval.final:
            _add(roles, "teacher", split, summary.get(split, {}), names)
    about = dict(teacher=spec.teacher, student=spec.student, mode=spec.mode)
    return {"roles": roles, "tuning": tuning, **about}


def finals(run: epath.Path) -> dict[str, Any]:
    """split -> metrics of a finished run; those of a member lie in the run that trained it (`scaling.plan.together`)."""
    if (run / "summary.json").exists():
        return read_json(run / "summary.json")
    rows = together.read_rows(run.parent.parent).values()
    own = [r for r in rows if r["member"] == int(run.name) and r["kind"] == "pass"]
    own.sort(key=lambda r: r["examples"])
    return {r["split"]: r for r in own}  # the last point counts


def _add(out: dict, role: str, split: str, metrics: Mapping[str, Any], names: Sequence[str]):
    columns = out.setdefault(role, {}).setdefault(split, {})
    for m in names:
        columns.setdefault(m, []).append(metrics.get(m))


# ----------------------------------------------------------------------------------------------------- reporting


def report_rows(roles: Mapping[str, Any], split: str) -> list[dict]:
    """The report's table of one split: a row per role with one value per seed."""
    present = [r for r in ("teacher", "undistilled", "distilled") if r in roles]
    return [{"model": f"{role} ({split})", "role": role, **roles[role][split]} for role in present]


def paired(roles: Mapping[str, Any], split: str, metric: str = "auc") -> dict:
    """Distilled minus undistilled, paired by seed: mean, sd and 95 % t-interval (None with one seed)."""
    a, b = (np.asarray(roles[r][split][metric], float) for r in ("undistilled", "distilled"))
    d = b - a
    out = {"mean": float(d.mean()), "sd": None, "low": None, "high": None, "seeds": len(d)}
    if len(d) > 1:
        half = half_width(d)
        out |= {"sd": float(d.std(ddof=1)), "low": out["mean"] - half, "high": out["mean"] + half}
    return out


def for_report(results: Mapping[str, Any], splits: Sequence[str]) -> Distillation:
    """The report's distillation section."""
    chosen, roles = results["tuning"]["chosen"], results["roles"]
    note = (
        f"Teacher grade {results['teacher']}, student grade {results['student']}, {results['mode']}; temperature "
        f"{chosen['temperature']:g}, weight {chosen['weight']:g}. "
    )
    if results["tuning"]["rows"]:
        values = "; ".join(
            f"t {r['temperature']:g}, weight {r['weight']:g}: "
            + ("undefined" if r["auc"] is None else f"{r['auc']:.4f}")
            for r in results["tuning"]["rows"]
        )
        note += f"Chosen by AUC on {results['tuning']['split']}, one seed ({values}). "
    for split in splits:
        d = paired(roles, split)
        spread = "" if d["sd"] is None else f" (95 % interval {d['low']:+.4f} to {d['high']:+.4f})"
        note += (
            f"Distilled minus undistilled on {split}: AUC {d['mean']:+.4f}{spread}, "
            f"paired by {d['seeds']} seed(s). "
        )
    rows = [r for s in splits for r in report_rows(roles, s)]
    out = Distillation(rows=rows, note=note.strip())
    d = paired(roles, splits[0])
    if d["low"] is not None:
        out["paired"] = Paired(
            difference=d["mean"], low=d["low"], high=d["high"], level=0.95, seeds=d["seeds"]
        )
    return out
