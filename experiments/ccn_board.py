"""CCN's variants and controls on its planted world, paired with the plain model, every seed in a world of its own.

    python -m experiments.ccn_board --seeds=6 --workdir=runs/board_ccn
    python -m experiments.ccn_board --seeds=6 --pages=500,6000 --variants=ccn --workdir=runs/board_ccn_sizes

For each number of training pages and each variant: AUC and page-GAUC on pages of the unseen scenario (and AUC of seen ones), mean and
standard deviation over seeds, and the difference to "plain" (both weights zero) trained in the same world from the same initial values:
mean, standard deviation, in how many seeds it is above zero. "shuffled pairs" and "across pages" are controls: the first must lose the gain,
the second should lose some of it. Finished runs are kept: the same command goes on, and prints the table again.
"""

from absl import app, flags
from etils import epath
import numpy as np

from experiments.boards import config_of, deviation, run_of
from recjax import command
from recjax.runtime.run import set_up, write_json
from recjax.training.loop import train

VARIANTS: dict[str, dict] = {
    "plain": {"model.alpha": 0.0, "model.beta": 0.0},
    "ccn": {},
    "shuffled pairs": {"model.pair_label": "shuffled"},
    "across pages": {"model.scope": "batch"},
    "attraction only": {"model.beta": 0.0},
    "repulsion only": {"model.alpha": 0.0},
    "co-click only": {"model.att_classes": "cc_only"},
    "unbalanced": {"model.att_classes": "unbalanced"},
    "supcon": {"model.loss": "supcon"},
    "z without h": {"model.condition_items": False},
    "user alone": {"model.condition": "user"},
    "trigger alone": {"model.condition": "trigger"},
    "trigger in head": {"model.trigger_in_head": True},
    "scenario id": {"model.scenario_id": True},
    "weights 0.03": {"model.alpha": 0.03, "model.beta": 0.03},
    "weights 0.3": {"model.alpha": 0.3, "model.beta": 0.3},
    "weights 1": {"model.alpha": 1.0, "model.beta": 1.0},
}
SHOWN = (("test_unseen", "auc"), ("test_unseen", "gauc_page"), ("test", "auc"))


def figures(root: epath.Path, variant: str, pages: int, seed: int) -> np.ndarray:
    """`SHOWN` of one run, trained if it is not."""
    changes = {**VARIANTS[variant], "data.prepare.train": pages}
    config = config_of(_CONFIG.value, seed, "", changes)
    summary = train(config, run_of(root / f"pages-{pages}", variant, seed))
    return np.array([summary[split][metric] for split, metric in SHOWN])


def row(found: np.ndarray, base: np.ndarray) -> dict:
    """Means, deviations and paired differences of [seeds, figures]."""
    out = {}
    for i, (split, metric) in enumerate(SHOWN):
        each = found[:, i] - base[:, i]
        out[f"{split}/{metric}"] = dict(
            mean=found[:, i].mean(), sd=deviation(found[:, i]), by_seed=found[:, i],
            gain=each.mean(), gain_sd=deviation(each), better=int((each > 0).sum()),
        )  # fmt: skip
    return out


def main(_) -> None:
    set_up()
    root = epath.Path(_WORKDIR.value)
    root.mkdir(parents=True, exist_ok=True)
    unknown = [v for v in _VARIANTS.value if v not in VARIANTS]
    if unknown:
        raise app.UsageError(f"--variants={unknown[0]!r} is none of {', '.join(VARIANTS)}")
    names = dict.fromkeys(["plain", *(_VARIANTS.value or VARIANTS)])
    report: dict = {}
    for pages in map(int, _PAGES.value):
        found: dict[str, list] = {v: [] for v in names}
        for seed in range(_SEEDS.value):
            for v in names:
                found[v].append(figures(root, v, pages, seed))
        base = np.array(found["plain"])
        report[pages] = {v: row(np.array(x), base) for v, x in found.items()}
        write_json(root / "results.json", report)
    print("| pages | variant | unseen AUC | gain | unseen page-GAUC | gain | seen AUC | gain |")
    print("|---|---|---|---|---|---|---|---|")
    for pages, rows in report.items():
        for v, r in rows.items():
            print(f"| {pages} | {v} | " + " | ".join(map(cells, r.values())) + " |")


def cells(x: dict) -> str:
    gain = f"{x['gain']:+.4f} ({x['gain_sd']:.4f}), {x['better']} of {len(x['by_seed'])}"
    return f"{x['mean']:.4f} ± {x['sd']:.4f} | {gain}"


if __name__ == "__main__":
    _CONFIG = flags.DEFINE_string("config", "experiments/ccn_planted.py", "FILE[:ARG]")
    _SEEDS = flags.DEFINE_integer("seeds", 6, "worlds and initial values", lower_bound=1)
    _PAGES = flags.DEFINE_list("pages", ["2000"], "numbers of training pages")
    _VARIANTS = flags.DEFINE_list("variants", [], "default: all")
    _WORKDIR = flags.DEFINE_string("workdir", None, "folder of the runs")
    flags.mark_flags_as_required(["workdir"])
    command.run(main)
