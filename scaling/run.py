"""From raw logs to a served student: python -m scaling.run --config=scaling/configs/quickstart.py --workdir=DIR

Prepares the data, trains the sweep, fits the law, trains teacher and student, exports the student, scores through it
and writes report.html. Every stage leaves its file in the workdir; the same command goes on from the last one.
"""

import json
import platform
import sys

from absl import app, flags, logging
from etils import epath
import jax
from ml_collections import ConfigDict, config_flags

from recjax import configs
from recjax.data import open_data
from recjax.runtime.run import plain, read_jsonl, set_up, write_text
from recjax.serving import artifact, bench, export
from recjax.training import transfer
from scaling import report, student
from scaling.law import decisions, fit, laws
from scaling.plan import processes, study, sweep
from scaling.plan.grades import LADDER
from scaling.plan.rows import on_ladder
from scaling.student import cached


def law_stage(
    rows: list[dict], root: epath.Path, metrics: tuple[str, str] = ("auc", "logloss")
) -> None:
    """Fits everything the rows support: fit.json (a law per axis and slice), laws.json, decisions.json."""
    found = laws.fit_all(rows, metrics[0], second=metrics[1])
    flat_fits = [f for axis in found.pop("axes").values() for f in axis]
    try:
        timed = sorted(root.glob("distil/latency-*.json"))  # scaling.distill's, by grade
        latency = decisions.read_latency(timed[0]) if timed else None
        answers = decisions.answers(rows, metric=metrics[0], latency_ms=latency)
    except fit.FitError as e:
        answers = {}
        logging.warning("no joint law, so no decisions: %s", e)
    for name, value in (("fit", flat_fits), ("laws", found), ("decisions", answers)):
        write_text(root / f"{name}.json", json.dumps(plain(value), indent=1))


def law_context(root: epath.Path) -> dict:
    """The law stage's part of the report, and what failed."""
    read = lambda name: json.loads((root / f"{name}.json").read_text())  # noqa: E731
    return dict(
        fits=read("fit"),
        study=read("laws"),
        decisions=read("decisions"),
        failed=sweep.failures(root),
    )


def grade_table(rows: list[dict]) -> dict[str, dict]:
    """What each grade of the sweep is, in numbers, smallest first; FLOPs at the history of its first row."""
    names = (
        "blocks",
        "width",
        "history",
        "n_blocks",
        "n_head",
        "n_dense",
        "n_embedding",
        "flops_per_example",
    )
    first: dict[str, dict] = {}
    for r in rows:
        if on_ladder(r) and not r.get("variant"):
            first.setdefault(r["grade"], {k: r[k] for k in names if k in r})
    return {g: first[g] for g in LADDER if g in first}


def hardware() -> str:
    return f"{jax.devices()[0].device_kind} x {jax.device_count()}, {platform.machine()}, jax {jax.__version__}"


def distil_stage(config: ConfigDict, root: epath.Path) -> dict:
    """Distils what the config names; see scaling.distill for a student chosen by a latency budget."""
    d = config.distil
    spec = student.Spec(
        teacher=d.teacher,
        student=d.student,
        student_options=d.student_options.to_dict(),
        mode=d.mode,
        temperatures=d.temperatures,
        weights=d.weights,
        examples=d.examples,
        seeds=d.seeds,
        teachers=student.finished(root, d.teacher) if d.mode == "offline" else (),
    )
    return cached(
        root / "distil.json",
        lambda: student.study(config.experiment, spec, root / "distil"),
        student.made_of(spec, config.experiment, root),
    )


def serving_stage(root: epath.Path, run_dir: epath.Path, candidates: int) -> dict:
    """Exports the student, reloads it from disk and times requests of `candidates` candidates through it."""
    # Of this training and no other: it holds the seconds it took.
    trained = (run_dir / "summary.json").read_text()
    note, manifest = root / ".artifact.of", root / "artifact" / "manifest.json"
    if not manifest.exists() or not note.exists() or note.read_text() != trained:
        export.export_run(run_dir, root / "artifact")
        write_text(note, trained)

    def measure():
        row = bench.measure(artifact.load(root / "artifact"), candidates)
        return {
            "candidates": candidates,
            "hardware": hardware(),
            "rows": [{"model": "distilled student", **row}],
        }

    return cached(root / "latency.json", measure, [trained, candidates], again=True)


def distilled(root: epath.Path) -> tuple[dict, dict, epath.Path | None]:
    """(results, latency, artifact) of the last distillation that finished here; empty where there is none."""
    places = [(root / "distil.json", root)]
    places += [(root / "distil" / f"{m}.json", root / "distil" / m) for m in student.MODES]
    done = [(f, p) for f, p in places if f.exists() and (p / "latency.json").exists()]
    if not done:
        return {}, {}, None
    file, place = max(done, key=lambda d: (d[1] / "latency.json").stat().mtime)
    read = lambda f: json.loads(f.read_text())  # noqa: E731
    return read(file), read(place / "latency.json"), place / "artifact"


def publish(root: epath.Path, students: epath.Path, candidates: int) -> str:
    """Puts another distillation of a finished sweep into its report, with the artifact it made.

    Args:
      root: The sweep.
      students: Where its runs lie; the artifact goes beside them.
      candidates: Of the requests timed.
    """
    seed = min(int(p.name.rsplit("-", 1)[1]) for p in students.glob("distilled-*"))
    serving_stage(students, students / f"distilled-{seed}", candidates)
    return write(ConfigDict(json.loads((root / "sweep.json").read_text())), root)


def write(config: ConfigDict, root: epath.Path) -> str:
    """The report, from the files of the stages; returns its path."""
    from scaling.report import page  # its libraries are an extra

    rows = read_jsonl(root / "trials.jsonl")
    results, latency, served = distilled(root)
    context = dict(
        title=config.title,
        trials=rows,
        metric=config.get("metrics", ("auc",))[0],
        grades=grade_table(rows),
        **law_context(root),
        distil=student.context(results, tuple(config.experiment.eval.final)) if results else None,
        latency=latency,
        data=open_data(config.experiment.data).report,
        grade_law_command=config.grade_law_command,
        commands=commands(config, str(root), served),
    )
    return page.write_report(str(root), context)


def commands(config: ConfigDict, workdir: str, served: epath.Path | None) -> list[dict]:
    metric = config.get("metrics", ("auc",))[0]
    out = [
        {"why": "Run this again (finished stages are kept)", "command": f"python -m scaling.run --config={config.path} --workdir={workdir}"},
        {"why": "What to double next, and what any size would give", "command": f"python -m scaling.decide --sweep={workdir} --metric={metric}"},
    ]  # fmt: skip
    if served is not None:
        out.append({"why": "Score a file through the exported student", "command": f"python -m recjax.score --artifact={served} --in=x.parquet --out=y.parquet"})  # fmt: skip
    return out


def run(
    config: ConfigDict,
    workdir: str,
    shard: tuple[int, int] = (0, 1),
    only_report: bool = False,
    workers: int = 1,
) -> str:
    """All stages; returns the path of report.html.

    A shard of several trains its part of the sweep and stops there unless that was the last of it. With `only_report`
    nothing is trained: the report is of what has finished so far. Several `workers` share out the cores of a CPU.
    """
    root = epath.Path(workdir)
    root.mkdir(parents=True, exist_ok=True)
    configs.check(config.experiment)
    logging.info("=== 1/5 data")
    data = open_data(config.experiment.data)
    transfer.check_splits(config.experiment, data)
    logging.info("=== 2/5 sweep")
    plan = study.trials(config, data.schema, data.identity["hash"])
    members = config.sweep.get("members", 1)
    if only_report:
        rows = sweep.collect(plan, root)
    else:
        rows = processes.run_sweep(plan, root, shard, members, workers)
    write_text(root / "sweep.json", json.dumps(plain(config), indent=1))
    waiting = len(plan) - len({r["trial"] for r in rows})
    if only_report and not rows:
        raise ValueError(f"no trial in {workdir} has finished yet, so there is nothing to report")
    if waiting and not only_report:
        logging.info(
            "%d of %d trials are left to other shards or processes; the last of them writes the report",
            waiting,
            len(plan),
        )
        return ""
    logging.info("=== 3/5 law")
    law_stage(rows, root, tuple(config.get("metrics", ("auc", "logloss"))))
    logging.info("=== 4/5 teacher, student, artifact")
    if "distil" in config and not only_report:
        distil_stage(config, root)
        distilled_run = root / "distil" / f"distilled-{config.distil.seeds[0]}"
        serving_stage(root, distilled_run, config.candidates)
    logging.info("=== 5/5 report")
    path = write(config, root)
    logging.info("report: %s", path)
    return path


def main(_) -> None:
    report.require()
    set_up()
    config = _CONFIG.value
    with config.unlocked():
        config.path = next((a.partition("=")[2] for a in sys.argv if a.startswith("--config=")), "")
    shard = sweep.parse_shard(_SHARD.value)
    run(config, _WORKDIR.value, shard, _REPORT.value, _PROCESSES.value)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "scaling/configs/<name>.py[:arg]", lock_config=True
    )
    _WORKDIR = flags.DEFINE_string("workdir", None, "sweep directory, local or bucket")
    _REPORT = flags.DEFINE_bool("only_report", False, "report what has finished, train nothing")
    _PROCESSES = flags.DEFINE_integer(
        "processes", 1, "share the sweep out among the cores of this CPU", lower_bound=1
    )
    _SHARD = flags.DEFINE_string("shard", "0/1", "i/n: this process's part of the sweep")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
