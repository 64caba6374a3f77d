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

Every stage leaves its file in <sweep>/distil; the same command goes on from the last one.
"""

from absl import app, flags
from etils import epath

from recjax.runtime.run import set_up
from scaling import report, run, student


def main(_) -> None:
    report.require()
    set_up()
    root = epath.Path(_SWEEP.value)
    student.distill(
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
    print(run.publish(root, root / "distil" / _MODE.value, _CANDIDATES.value))


if __name__ == "__main__":
    _SWEEP = flags.DEFINE_string("sweep", None, "workdir of scaling.run", required=True)
    _BUDGET = flags.DEFINE_float("budget_ms", 10.0, "p99 of a raw request on this machine")
    _CANDIDATES = flags.DEFINE_integer("candidates", 100, "of a request")
    _MODE = flags.DEFINE_enum("mode", "offline", student.MODES, "how the teacher teaches")
    _TEMPERATURES = flags.DEFINE_list("temperatures", ["1", "2"], "tried on validation")
    _WEIGHTS = flags.DEFINE_list("weights", ["0.1", "0.3", "1"], "tried on validation")
    _SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "of the students")
    _EXAMPLES = flags.DEFINE_integer("examples", 0, "to train on; 0: the sweep's largest size")
    _TEACHERS = flags.DEFINE_integer("teachers", 0, "runs that teach together; 0: all of the grade")
    app.run(main)
