"""The student of a finished sweep: chosen by its latency, trained with and without a teacher, compared.

The stages of `python -m scaling.distill`, which says what each does; `scaling.run` takes some of them.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import os
import tempfile
from typing import Any

from absl import logging
from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from recjax import embedding, models
from recjax.data import open_data
from recjax.metrics.comparison import half_width
from recjax.models.parts import building
from recjax.runtime.identity import Use, without
from recjax.runtime.run import flat, plain, read_jsonl, write_text
from recjax.serving import artifact, bench
from recjax.teach import teach
from recjax.training.loop import train
from scaling.plan import sweep as sweeps
from scaling.plan import together
from scaling.plan.grades import LADDER
from scaling.plan.rows import base_rows, on_ladder

MODES = ("offline", "online")
STUDENT_OPTIONS = dict(local=8, dilation=4)  # of LightSUAN, where the sweep names none


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

    def __post_init__(self):
        building.check_choice("distillation", "mode", self.mode, MODES)
        if self.mode == "offline" and not self.teachers:
            raise ValueError("offline distillation needs finished teachers; give their workdirs")


# ------------------------------------------------------------------------------------------------------- configs


def light(model: Mapping[str, Any], grade: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The experiment's model as a LightSUAN of a grade, scored in parallel (gate_pool "causal")."""
    return {
        **model,
        **LADDER[grade].options(),
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
        teacher = {**base.model.to_dict(), **LADDER[spec.teacher].options()}
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


def study(base: ConfigDict, spec: Spec, root: epath.Path) -> dict[str, Any]:
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
        return json.loads((run / "summary.json").read_text())
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


def context(results: Mapping[str, Any], splits: Sequence[str]) -> dict[str, Any]:
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
    out = {"rows": [r for s in splits for r in report_rows(roles, s)], "note": note.strip()}
    d = paired(roles, splits[0])
    if d["low"] is None:
        return out
    found = dict(difference=d["mean"], low=d["low"], high=d["high"], level=0.95, seeds=d["seeds"])
    return out | {"paired": found}


# ------------------------------------------------------------------------------------------- picking from a sweep


def latency(data: Any, model: Mapping[str, Any], candidates: int) -> dict[str, Any]:
    """`bench.measure` of an untrained model on this machine: what it learns does not change its time."""
    system = models.build(data.schema, model)
    batch = next(iter(data.batches(next(iter(data.splits)), 8)))
    tables = embedding.init(jax.random.key(0), system.tables, data.schema)
    rows = embedding.gather(system.tables, tables, batch)
    dense, state = jax.jit(system.init)(jax.random.key(1), rows, batch)
    with tempfile.TemporaryDirectory() as folder:
        artifact.export_artifact(
            epath.Path(folder) / "a",
            system,
            dict(dense=dense, tables=tables, state=state, frozen={}),
            batch=batch,
            config={},
            vocab={t.id_space: data.vocabulary(t.id_space) for t in system.tables},
            platforms=(jax.default_backend().replace("gpu", "cuda"),),
            functions=("score",),
        )
        return bench.measure(epath.Path(folder) / "a", candidates)


def quality(rows: Sequence[Mapping[str, Any]], metric: str = "auc") -> dict[str, float]:
    """Grade -> mean metric over seeds at the largest data size all grades reached."""
    sizes = [{r["examples"] for r in rows if r["grade"] == g} for g in {r["grade"] for r in rows}]
    most = max(set.intersection(*sizes), default=None)
    if most is None:
        raise ValueError("the sweep's grades share no data size; finish the sweep first")
    at: dict[str, list] = {}
    for r in rows:
        if r["examples"] == most and r[metric] is not None:
            at.setdefault(r["grade"], []).append(r[metric])
    return {grade: float(np.mean(values)) for grade, values in at.items()}


def pick(quality_of: Mapping[str, float], ms_of: Mapping[str, float], budget_ms: float) -> dict:
    """Student: the best grade whose p99 fits the budget. Teacher: the best larger one, or itself.

    Raises:
      ValueError: No grade fits.
    """
    inside = [g for g in quality_of if ms_of[g] <= budget_ms]
    if not inside:
        fastest = min(ms_of, key=ms_of.get)
        raise ValueError(
            f"no grade answers within {budget_ms:g} ms at p99 here; the fastest, grade {fastest}, takes "
            f"{ms_of[fastest]:.1f} ms: raise --budget_ms or lower --candidates"
        )
    student = max(inside, key=quality_of.get)
    order = list(LADDER)
    larger = [g for g in quality_of if order.index(g) > order.index(student)]
    return {"student": student, "teacher": max(larger, key=quality_of.get, default=student)}


def made_of(spec: Spec, experiment: Any, root: epath.Path) -> Any:
    """What a distillation depends on, for `cached`: not where the sweep or its data lie."""
    teachers = [os.path.relpath(t, root) for t in spec.teachers]
    config = without(flat(plain(experiment)), Use.PLACE)
    return [{**dataclasses.asdict(spec), "teachers": teachers}, config]


def cached(path: epath.Path, make: Callable[[], Any], of: Any = None, again: bool = False) -> Any:
    """The JSON in `path`, made and written when absent; what it was made `of` (JSON) is noted beside it.

    Args:
      path: The file.
      make: Its content.
      of: What that depends on.
      again: Make it again where it was made of something else, as what takes minutes may.

    Raises:
      ValueError: It was made of something else, and not `again`.
    """
    note, text = path.with_name(f".{path.stem}.of"), json.dumps(plain(of), sort_keys=True)
    stale = path.exists() and (note.read_text() != text if note.exists() else again)
    if stale and not again:
        raise ValueError(
            f"{path} was made with other settings; delete it and what it made, or use a new --workdir"
        )
    if stale or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, text)
        write_text(path, json.dumps(plain(make()), indent=1))
    return json.loads(path.read_text())


def distill(
    sweep: epath.PathLike,
    *,
    budget_ms: float,
    candidates: int,
    mode: str = "offline",
    temperatures: Sequence[float] = (1.0, 2.0),
    weights: Sequence[float] = (0.1, 0.3, 1.0),
    seeds: Sequence[int] = (0, 1, 2),
    examples: int = 0,
    teachers: int = 0,
) -> dict[str, Any]:
    """All stages but the report; see scaling.distill.

    Args:
      sweep: Workdir of `scaling.run`.
      budget_ms: p99 of a raw request on this machine.
      candidates: Of a request.
      mode, temperatures, weights, seeds: See `Spec`.
      examples: To train on; 0: the sweep's largest size.
      teachers: How many of the teacher grade's seeds teach together; 0: all.

    Returns:
      What `study` returns.
    """
    root = epath.Path(sweep)
    config, rows = sweep_of(root)
    base = ConfigDict(config["experiment"])
    options = config.get("distil", {}).get("student_options", STUDENT_OPTIONS)
    out, data = root / "distil", open_data(base.data)

    experiment = config["experiment"]
    grades = sorted({r["grade"] for r in rows})
    timed = [grades, options, experiment["model"], experiment["data"]["history"]]

    def measure():
        models_of = {g: light(experiment["model"], g, options) for g in grades}
        return {g: latency(data, model, candidates) for g, model in models_of.items()}

    ms = cached(out / f"latency-{candidates}.json", measure, timed, again=True)
    chosen = pick(quality(rows), {g: m["p99_ms"] for g, m in ms.items()}, budget_ms)
    logging.info("teacher grade %s, student grade %s", chosen["teacher"], chosen["student"])
    runs = finished(root, chosen["teacher"])
    spec = Spec(
        **chosen,
        student_options=options,
        mode=mode,
        temperatures=tuple(temperatures),
        weights=tuple(weights),
        examples=examples or max(r["examples"] for r in rows),
        seeds=tuple(seeds),
        teachers=runs[: teachers or None],
    )
    depends = made_of(spec, experiment, root)
    return cached(out / f"{mode}.json", lambda: study(base, spec, out / mode), depends)


def finished(root: epath.Path, grade: str) -> tuple[str, ...]:
    """Workdirs of the sweep's runs of a grade: the model itself, on the most examples."""
    rows = [r for r in sweep_of(root)[1] if r["grade"] == grade]
    most = max((r["examples"] for r in rows), default=0)
    return tuple(sorted({str(sweeps.run_dir(root, r)) for r in rows if r["examples"] == most}))


def sweep_of(root: epath.Path) -> tuple[dict, list[dict]]:
    """(config, rows) of a finished sweep: the ladder's passes at the experiment's history, no checks, no variants."""
    for name in ("sweep.json", "trials.jsonl"):
        if not (root / name).exists():
            raise FileNotFoundError(
                f"{root / name} does not exist; give the --workdir of a python -m scaling.run that has finished"
            )
    config = json.loads((root / "sweep.json").read_text())
    rows = base_rows(read_jsonl(root / "trials.jsonl"), kind="pass")
    history = config["experiment"]["data"]["history"]
    return config, [r for r in rows if on_ladder(r) and r.get("history", history) == history]
