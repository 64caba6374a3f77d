"""What follows a sweep, stage by stage: law, distillation, serving, report. Each stage reads and leaves files in its directory."""

from collections.abc import Mapping, Sequence
import dataclasses
import platform
from typing import Any

from absl import logging
from etils import epath
import jax
from ml_collections import ConfigDict

from recjax.data import open_data
from recjax.data.loading.protocol import Data
from recjax.runtime.run import read_json, write_json, write_text
from recjax.serving import artifact, bench, export
from scaling import choice, distillation
from scaling.cache import cached
from scaling.law import decisions, fit, laws
from scaling.plan import rows as trial_rows
from scaling.plan import study, sweep
from scaling.plan.counts import SIZES
from scaling.plan.rows import Row
from scaling.report.context import Command, Context, Latency

METRICS = ("auc", "logloss")


@dataclasses.dataclass(frozen=True)
class About:
    """What a study's config says to the stages, beside its experiment and its plan.

    Attributes:
      title: Of the report.
      path: The config's own file, for the command that goes on.
      metrics: The law's, and a second one for the joint law.
      directions: Metric -> whether larger is better, of `larger_is_better` in the config: for names that are not known.
      grade_law_command: The command that would measure enough grades for a law.
      final: Splits that finished runs are judged on.
      data: The experiment's section.
    """

    title: str
    path: str
    metrics: tuple[str, str]
    directions: Mapping[str, bool]
    grade_law_command: str
    final: tuple[str, ...]
    data: ConfigDict

    @classmethod
    def of(cls, config: ConfigDict) -> "About":
        metrics = tuple(config.get("metrics", METRICS))
        final, data = tuple(config.experiment.eval.final), config.experiment.data
        directions = dict(config.get("larger_is_better", {}))
        return cls(
            config.title, config.path, metrics, directions, config.grade_law_command, final, data
        )


def law_stage(
    rows: Sequence[Row],
    root: epath.Path,
    metrics: tuple[str, str] = METRICS,
    directions: Mapping[str, bool] | None = None,
) -> None:
    """Fits everything the rows support: fit.json (a law per axis and slice), laws.json, decisions.json."""
    found = laws.fit_all(rows, metrics[0], second=metrics[1], directions=directions)
    flat_fits = [f for axis in found.pop("axes").values() for f in axis]
    try:
        better = found["larger_is_better"]
        answers = decisions.answers(
            rows, metrics[0], latency_by_grade(root), larger_is_better=better
        )
    except fit.FitError as e:
        answers = {}
        logging.warning("no joint law, so no decisions: %s", e)
    for name, value in (("fit", flat_fits), ("laws", found), ("decisions", answers)):
        write_json(root / f"{name}.json", value)


def latency_by_grade(root: epath.Path) -> dict[str, float] | None:
    """What `scaling.distill` timed here, if it did."""
    folder = distillation.folder(root)
    files = folder.iterdir() if folder.exists() else ()
    timed = sorted(f for f in files if f.name.startswith("latency-") and f.suffix == ".json")
    return decisions.read_latency(timed[0]) if timed else None


def distillation_stage(section: ConfigDict, experiment: ConfigDict, root: epath.Path) -> epath.Path:
    """Distills what the config names, and returns a student's run; see `scaling.distill` for one chosen by a latency budget."""
    spec = distillation.Spec.of(section, choice.finished(root, section.teacher))
    folder = distillation.folder(root)
    cached(
        distillation.results_file(root),
        lambda: distillation.train_pairs(experiment, spec, folder),
        spec.depends_on(experiment, root),
        usual=sweep.defaults(),
    )
    return folder / f"distilled-{spec.seeds[0]}"


def serving_stage(root: epath.Path, student: epath.Path, candidates: int) -> Latency:
    """Exports the student, reloads it from disk and times requests of `candidates` candidates through it."""
    # Of this training and no other: it holds the seconds it took.
    trained = (student / "summary.json").read_text()
    note, manifest = root / ".artifact.of", root / "artifact" / "manifest.json"
    if not manifest.exists() or not note.exists() or note.read_text() != trained:
        export.export_run(student, root / "artifact")
        write_text(note, trained)

    def measure() -> Latency:
        row = bench.measure(artifact.load(root / "artifact"), candidates)
        rows = [{"model": "distilled student", **row}]
        return Latency(candidates=candidates, hardware=hardware(), rows=rows)

    return cached(root / "latency.json", measure, [trained, candidates], again=True)


def hardware() -> str:
    return f"{jax.devices()[0].device_kind} x {jax.device_count()}, {platform.machine()}, jax {jax.__version__}"


# ---- the report


def publish(root: epath.Path, students: epath.Path, candidates: int) -> str:
    """Puts another distillation of a finished sweep into its report, with the artifact it made.

    Args:
      root: The sweep.
      students: Where its runs lie; the artifact goes beside them.
      candidates: Of the requests timed.
    """
    runs = [p.name for p in students.iterdir() if p.name.startswith("distilled-")]
    seed = min(int(name.rsplit("-", 1)[1]) for name in runs)
    serving_stage(students, students / f"distilled-{seed}", candidates)
    about = About.of(study.saved(root))
    return report_stage(about, root, data_report(open_data(about.data)))


def data_report(data: Data) -> Mapping[str, Any] | None:
    """report.json of a prepared set; None of data that have none."""
    return getattr(data, "report", None)


def report_stage(about: About, root: epath.Path, data: Mapping[str, Any] | None) -> str:
    """The report, from the files of the stages and the prepared data's report.json, if it is at hand; returns its path."""
    from scaling.report import page  # its libraries are an extra

    rows = trial_rows.read(root)
    results, latency, served = distilled(root)
    context = Context(
        title=about.title,
        metric=about.metrics[0],
        trials=rows,
        grades=grade_table(rows),
        fits=_read(root / "fit.json"),
        laws=_read(root / "laws.json"),
        decisions=_read(root / "decisions.json"),
        failed=sweep.failures(root),
        distillation=distillation.for_report(results, about.final) if results else None,
        latency=latency,
        data=data,
        grade_law_command=about.grade_law_command,
        commands=commands(about, root, served),
    )
    return page.write_report(str(root), context)


def distilled(root: epath.Path) -> tuple[dict[str, Any], Latency | None, epath.Path | None]:
    """(results, latency, artifact) of the last distillation that finished here; empty where there is none."""
    folder = distillation.folder(root)
    places = [(distillation.results_file(root), root)]
    places += [(folder / f"{m}.json", folder / m) for m in distillation.MODES]
    done = [(f, p) for f, p in places if f.exists() and (p / "latency.json").exists()]
    if not done:
        return {}, None, None
    file, place = max(done, key=lambda d: (d[1] / "latency.json").stat().mtime)
    return _read(file), _read(place / "latency.json"), place / "artifact"


def grade_table(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """What each grade of the sweep is, in numbers, smallest first; FLOPs at the history of its first row."""
    names = ("blocks", "width", "history", *SIZES)
    first: dict[str, dict] = {}
    for r in rows:
        if trial_rows.on_ladder(r) and not r.get("variant"):
            first.setdefault(r["grade"], {k: r[k] for k in names if k in r})
    return {g: first[g] for g in trial_rows.ladder_of(rows) if g in first}


def commands(about: About, root: epath.Path, served: epath.Path | None) -> list[Command]:
    """What to run next."""
    again = f"python -m scaling.run --config={about.path} --workdir={root}"
    decide = f"python -m scaling.decide --sweep={root} --metric={about.metrics[0]}"
    out = [
        Command(why="Run this again (finished stages are kept)", command=again),
        Command(why="What to double next, and what any size would give", command=decide),
    ]
    if served is not None:
        score = f"python -m recjax.score --artifact={served} --in=x.parquet --out=y.parquet"
        out.append(Command(why="Score a file through the exported student", command=score))
    return out


def _read(path: epath.Path) -> Any:
    return read_json(path)
