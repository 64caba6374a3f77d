"""Does a large teacher make a small student better, and what does the student cost to serve?

    python -m scaling.distill --sweep=runs/quickstart --budget_ms=10 --candidates=100

reads a finished sweep (`python -m scaling.run`) and
  1. times every grade as an untrained LightSUAN on this machine; the student is the best grade inside the budget, by the
     sweep's own metric (of its eval.splits[0]: where that is a test split, both grades were chosen on it),
  2. takes as teacher the best grade larger than the student: its finished runs (--mode=offline), or trained beside the
     student on the same batches (--mode=online, the paper's way),
  3. tunes temperature and weight of the soft term on the validation split, one seed,
  4. trains the student with and without the term, same seeds, same batches,
  5. exports the distilled student, times it, and writes its section into the sweep's report.

Every stage leaves its file in <sweep>/distill; the same command goes on from the last one.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags, logging
from etils import epath

from recjax import command
from recjax.data import open_data
from recjax.runtime.run import set_up
from scaling import choice, distillation, report, stages
from scaling.cache import cached
from scaling.distillation import MODES, Spec
from scaling.plan import sweep


def distill(
    root: epath.Path,
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
    """All stages but the report; see the module docstring.

    Args:
      root: Workdir of `scaling.run`.
      budget_ms: p99 of a raw request on this machine.
      candidates: Of a request.
      mode, temperatures, weights, seeds: See `Spec`.
      examples: To train on; 0: the sweep's largest size.
      teachers: How many of the teacher grade's seeds teach together; 0: all.

    Returns:
      What `scaling.distillation.train_pairs` returns.
    """
    config, rows = choice.sweep_of(root)
    experiment, own = config.experiment, distillation.section(config)
    options = own.student_options.to_dict() if own else distillation.STUDENT_OPTIONS
    out, data = distillation.folder(root), open_data(experiment.data)
    grades, model = sorted({r["grade"] for r in rows}), experiment.model.to_dict()

    def measure():
        models_of = {g: distillation.light(model, g, options) for g in grades}
        return {g: choice.latency(data, light, candidates) for g, light in models_of.items()}

    timed = [grades, options, model, experiment.data.history]
    ms = cached(out / f"latency-{candidates}.json", measure, timed, again=True)
    p99 = {g: m["p99_ms"] for g, m in ms.items()}
    chosen = choice.pick(choice.quality(rows), p99, budget_ms)
    logging.info("teacher grade %s, student grade %s", chosen["teacher"], chosen["student"])
    runs = choice.finished(root, chosen["teacher"])
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
    train = lambda: distillation.train_pairs(experiment, spec, out / mode)  # noqa: E731
    depends = spec.depends_on(experiment, root)
    return cached(out / f"{mode}.json", train, depends, usual=sweep.defaults())


def main(_) -> None:
    report.require()
    set_up()
    root = epath.Path(_SWEEP.value)
    distill(
        root,
        budget_ms=_BUDGET.value,
        candidates=_CANDIDATES.value,
        mode=_MODE.value,
        temperatures=tuple(map(float, _TEMPERATURES.value)),
        weights=tuple(map(float, _WEIGHTS.value)),
        seeds=tuple(map(int, _SEEDS.value)),
        examples=_EXAMPLES.value,
        teachers=_TEACHERS.value,
    )
    students = distillation.folder(root) / _MODE.value
    print(stages.publish(root, students, _CANDIDATES.value))


if __name__ == "__main__":
    _SWEEP = flags.DEFINE_string("sweep", None, "workdir of scaling.run", required=True)
    _BUDGET = flags.DEFINE_float("budget_ms", 10.0, "p99 of a raw request on this machine")
    _CANDIDATES = flags.DEFINE_integer("candidates", 100, "of a request")
    _MODE = flags.DEFINE_enum("mode", "offline", MODES, "how the teacher teaches")
    _TEMPERATURES = flags.DEFINE_list("temperatures", ["1", "2"], "tried on validation")
    _WEIGHTS = flags.DEFINE_list("weights", ["0.1", "0.3", "1"], "tried on validation")
    _SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "of the students")
    _EXAMPLES = flags.DEFINE_integer("examples", 0, "to train on; 0: the sweep's largest size")
    _TEACHERS = flags.DEFINE_integer("teachers", 0, "runs that teach together; 0: all of the grade")
    command.run(main)
