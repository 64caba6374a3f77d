"""From raw logs to a served student: python -m scaling.run --config=scaling/configs/quickstart.py --workdir=DIR

Prepares the data, trains the sweep, fits the law, trains teacher and student, exports the student, scores through it
and writes report.html. Every stage leaves its file in the workdir; the same command goes on from the last one.
"""

from collections.abc import Mapping
import json
import platform
import sys
from typing import Any

from absl import app, flags, logging
from etils import epath
import jax
from ml_collections import ConfigDict, config_flags

from recjax import configs
from recjax.data import open_data
from recjax.run import plain, set_up, write_text
from recjax.serving import artifact, bench
from scaling import decide, distil, fit, laws, report, study, sweep
from scaling.grades import LADDER


def law_stage(rows: list[dict], root: epath.Path) -> None:
    """Fits everything the rows support: fit.json (a law per axis and slice), laws.json, decisions.json."""
    found = laws.study(rows)
    flat_fits = [f for axis in found.pop("axes").values() for f in axis]
    try:
        timed = sorted(root.glob("distil/latency-*.json"))  # scaling.distill's, by grade
        decisions = decide.study(rows, latency_ms=decide.read_latency(timed[0]) if timed else None)
    except fit.FitError as e:
        decisions = {}
        logging.warning("no joint law, so no decisions: %s", e)
    for name, value in (("fit", flat_fits), ("laws", found), ("decisions", decisions)):
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
        if laws.on_ladder(r) and not r.get("variant"):
            first.setdefault(r["grade"], {k: r[k] for k in names if k in r})
    return {g: first[g] for g in LADDER if g in first}


def cached(path: epath.Path, make) -> Any:
    """The JSON in `path`, made and written when absent."""
    if not path.exists():
        write_text(path, json.dumps(plain(make()), indent=1))
    return json.loads(path.read_text())


def hardware() -> str:
    return f"{jax.devices()[0].device_kind} x {jax.device_count()}, {platform.machine()}, jax {jax.__version__}"


def distil_stage(config: ConfigDict, root: epath.Path) -> dict:
    """Trains the pairs, exports the first seed's distilled student, and scores requests through it."""
    d = config.distil
    base = ConfigDict(config.experiment.to_dict())
    base.train.examples = d.examples
    base.eval.at_examples = ()
    options = dict(
        teacher={**base.model.to_dict(), **LADDER[d.teacher].options()},
        student={
            **base.model.to_dict(),
            "name": "lightsuan",
            **LADDER[d.student].options(),
            **d.student_options.to_dict(),
        },
        temperature=d.temperature,
        weight=d.weight,
    )
    results = cached(
        root / "distil.json", lambda: distil.run(base, options, tuple(d.seeds), root / "distil")
    )
    if not (root / "artifact" / "manifest.json").exists():
        distil.export_student(root / "distil" / f"distilled-{d.seeds[0]}", root / "artifact")
    return results


def latency_stage(config: ConfigDict, root: epath.Path) -> dict:
    """Reloads the artifact from disk and times requests of `config.candidates` candidates through it."""

    def measure():
        loaded = artifact.load(root / "artifact")
        row = bench.measure(loaded, config.candidates)
        return {
            "candidates": config.candidates,
            "hardware": hardware(),
            "rows": [{"model": "distilled student", **row}],
        }

    return cached(root / "latency.json", measure)


def commands(config_path: str, workdir: str) -> list[dict]:
    return [
        {"why": "Train one model of this sweep by itself", "command": "python -m recjax.train --config=experiments/suan_complete_journey.py --workdir=runs/suan"},
        {"why": "Score a file through the exported student", "command": f"python -m recjax.score --artifact={workdir}/artifact --in=x.parquet --out=y.parquet"},
        {"why": "Run this again (finished stages are kept)", "command": f"python -m scaling.run --config={config_path} --workdir={workdir}"},
    ]  # fmt: skip


def run(
    config: ConfigDict, workdir: str, shard: tuple[int, int] = (0, 1), only_report: bool = False
) -> str:
    """All stages; returns the path of report.html.

    A shard of several trains its part of the sweep and stops there unless that was the last of it. With `only_report`
    nothing is trained: the report is of what has finished so far.
    """
    root = epath.Path(workdir)
    root.mkdir(parents=True, exist_ok=True)
    configs.check(config.experiment)
    logging.info("=== 1/5 data")
    data = open_data(config.experiment.data)
    logging.info("=== 2/5 sweep")
    plan = study.trials(config, data.schema, data.identity["hash"])
    members = config.sweep.get("members", 1)
    rows = sweep.collect(plan, root) if only_report else sweep.run_sweep(plan, root, shard, members)
    write_text(root / "sweep.json", json.dumps(plain(config), indent=1))
    waiting = len(plan) - len({r["trial"] for r in rows})
    if only_report and not rows:
        raise ValueError(f"no trial in {workdir} has finished yet, so there is nothing to report")
    if waiting and not only_report:
        logging.info(
            "%d of %d trials are other shards'; the last shard writes the report",
            waiting,
            len(plan),
        )
        return ""
    logging.info("=== 3/5 law")
    law_stage(rows, root)
    logging.info("=== 4/5 teacher, student, artifact")
    distilled = "distil" in config and not only_report
    results = distil_stage(config, root) if distilled else {}
    latency = latency_stage(config, root) if distilled else {}
    logging.info("=== 5/5 report")
    context = dict(
        title=config.title,
        trials=rows,
        grades=grade_table(rows),
        **law_context(root),
        distil=distil_context(results, config.experiment.eval.final) if results else None,
        latency=latency,
        data=data.report,
        grade_law_command=config.grade_law_command,
        commands=commands(config.path, workdir),
    )
    path = report.write_report(workdir, context)
    logging.info("report: %s", path)
    return path


def distil_context(results: Mapping[str, Any], splits: tuple[str, ...]) -> dict:
    first = splits[0]
    d = distil.paired(results, first)
    spread = "" if d["sd"] is None else f" (sd over {d['seeds']} seeds {d['sd']:.4f})"
    note = f"Distilled minus undistilled student on {first}: AUC {d['mean']:+.4f}{spread}, paired by seed."
    return {"rows": [r for s in splits for r in distil.report_rows(results, s)], "note": note}


def main(_) -> None:
    set_up()
    config = _CONFIG.value
    with config.unlocked():
        config.path = next((a.partition("=")[2] for a in sys.argv if a.startswith("--config=")), "")
    run(config, _WORKDIR.value, sweep.parse_shard(_SHARD.value), _REPORT.value)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "scaling/configs/<name>.py[:arg]", lock_config=True
    )
    _WORKDIR = flags.DEFINE_string("workdir", None, "sweep directory, local or bucket")
    _REPORT = flags.DEFINE_bool("only_report", False, "report what has finished, train nothing")
    _SHARD = flags.DEFINE_string("shard", "0/1", "i/n: this process's part of the sweep")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
