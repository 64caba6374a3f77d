"""ECUP beside its rivals on a randomised trial, paired over seeds, with Qini curves.

    python -m experiments.uplift_board --config=experiments/ecup_hillstrom.py --source=FOLDER --seeds=5 --workdir=runs/uplift_hillstrom

Each seed draws its own split, and every rival sees it: ECUP, ECUP without its two enhancing networks (ESMM-style S-learner),
S-, T-, X-learner, TARNet, and ECUP on shuffled arms, the control. For click and for click-and-conversion: Qini per treated
person and AUUC on the test split, mean over arms weighted by their rows; mean and standard deviation over seeds; the
difference ECUP - rival with a t interval over seeds. A bootstrap interval (rows) of seed 0's Qini stands beside each.
qini.png holds the curves, mean over seeds. Finished runs are kept: the same command goes on.
"""

from absl import flags
from etils import epath
import numpy as np

from experiments.boards import config_of, deviation, pyplot, run_of, scored
from recjax import command, configs
from recjax.metrics import ranking, uplift
from recjax.metrics.comparison import half_width
from recjax.runtime.run import set_up, write_json
from recjax.training.loop import train

LEARNERS = {"s": "S-learner", "t": "T-learner", "x": "X-learner", "tarnet": "TARNet"}
TASKS = {"ctr": "label", "ctcvr": "ctcvr/label"}
GRID = np.linspace(0, 1, 101)


def variants(model: dict) -> dict[str, dict]:
    """Name -> changes of the config. `model` is the base's, whose table the learners share."""
    out: dict[str, dict] = {
        "ECUP": {},
        "no TENet, no TAENet": {"model.tenet": False, "model.taenet": False},
    }
    for kind, name in LEARNERS.items():
        own = {"name": "meta_learners", "kind": kind}
        out[name] = {"model": own | {"table": model["table"]}}
    return out | {"shuffled arms": {"data.name": "experiments.shuffled_treatment"}}


def train_variant(name: str, changes: dict, seed: int, root: epath.Path) -> epath.Path:
    c = config_of(_CONFIG.value, seed, _SOURCE.value, {})
    if "data.name" in changes:
        c.data.prepare.trial = c.data.name
    for key, value in changes.items():
        configs.assign(c, key, value)
    run = run_of(root, name, seed)
    train(c, run)
    return run


def figures(rows: dict[str, np.ndarray]) -> dict[str, float]:
    out = {}
    arm = rows["arm"].astype(int)
    for task, label in TASKS.items():
        for name, metric in (("qini", uplift.qini), ("auuc", ranking.auuc)):
            values = uplift.by_arm(metric, rows[f"uplift_{task}"].astype(float), arm, rows[label])
            out[f"{name}_{task}"] = uplift.averaged(values, arm)
    return out


def curve(rows: dict[str, np.ndarray], task: str) -> np.ndarray:
    """Qini curve on `GRID`, mean over arms by rows, in outcomes per person."""
    arm = rows["arm"].astype(int)
    parts, counts = [], []
    for t in range(1, rows[f"uplift_{task}"].shape[1] + 1):
        own = (arm == 0) | (arm == t)
        tau = rows[f"uplift_{task}"][own, t - 1].astype(float)
        share, q = ranking.qini_curve(tau, arm[own] == t, rows[TASKS[task]][own])
        parts.append(np.interp(GRID, share, q))
        counts.append((arm == t).sum())
    return np.average(parts, axis=0, weights=counts)


def draw(curves: dict[str, dict[str, list]], path: epath.Path) -> None:
    """One panel a task."""
    plt = pyplot()
    fig, panels = plt.subplots(1, len(TASKS), figsize=(11, 4.2))
    for panel, task in zip(panels, TASKS, strict=True):
        for name, of in curves.items():
            panel.plot(GRID, np.mean(of[task], axis=0), label=name)
        end = np.mean([c[-1] for c in curves["ECUP"][task]])  # of the true arms
        panel.plot([0, 1], [0, end], "k:", label="at random")
        panel.set(title=task, xlabel="share targeted", ylabel="incremental outcomes per person")
    panels[0].legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(path, dpi=110)


def main(_) -> None:
    pyplot()  # before the hours of training
    set_up()
    root = epath.Path(_WORKDIR.value)
    root.mkdir(parents=True, exist_ok=True)
    results: dict[str, list] = {}
    curves: dict[str, dict[str, list]] = {}
    intervals: dict[str, dict] = {}
    model = config_of(_CONFIG.value, 0, _SOURCE.value, {}).model.to_dict()
    for seed in range(_SEEDS.value):
        for name, changes in variants(model).items():
            run = train_variant(name, changes, seed, root)
            rows = uplift.of_known_arms(scored(run, ("test",))[1]["test"])
            results.setdefault(name, []).append(figures(rows))
            of = curves.setdefault(name, {task: [] for task in TASKS})
            arm = rows["arm"].astype(int)
            for task, label in TASKS.items():
                of[task].append(curve(rows, task))
                if seed == 0:
                    tau = rows[f"uplift_{task}"].astype(float)
                    found = uplift.interval(tau, arm, rows[label])
                    intervals.setdefault(name, {})[task] = found
    for name, runs in results.items():
        for metric in runs[0]:
            values = np.array([r[metric] for r in runs])
            ours = np.array([r[metric] for r in results["ECUP"]])
            line = f"{name:20s} {metric:11s} {values.mean():+.5f} +- {deviation(values):.5f}"
            if name != "ECUP":
                d = ours - values
                line += f"   ECUP - it {d.mean():+.5f} +- {half_width(d):.5f}"
            if metric.startswith("qini"):
                low, high = intervals[name][metric.removeprefix("qini_")]
                line += f"   seed 0: {low:+.5f} to {high:+.5f}"
            print(line)
    report = dict(results=results, intervals=intervals)
    write_json(root / "results.json", report)
    draw(curves, root / "qini.png")


if __name__ == "__main__":
    _CONFIG = flags.DEFINE_string("config", "experiments/ecup_hillstrom.py", "FILE[:ARG]")
    _SOURCE = flags.DEFINE_string("source", "", "the publisher's files")
    _SEEDS = flags.DEFINE_integer("seeds", 5, "splits and initial values", lower_bound=1)
    _WORKDIR = flags.DEFINE_string("workdir", None, "folder of the runs")
    flags.mark_flag_as_required("workdir")
    command.run(main)
