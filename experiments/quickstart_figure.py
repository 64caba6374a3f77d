"""The picture of docs/results.md and the README: what the quickstart measured, and the law of its largest grade.

python -m experiments.quickstart_figure --workdir=runs/quickstart --out=docs/figures/quickstart.svg
"""

import collections
import json
import pathlib

from absl import flags
import numpy as np

from recjax import command
from recjax.runtime.run import read_json, read_jsonl


def main(_) -> None:
    from matplotlib import pyplot as plt  # of the extra `scaling`

    root = pathlib.Path(_WORKDIR.value)
    by_grade: dict[str, dict[int, list]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    for row in read_jsonl(root / "trials.jsonl"):
        by_grade[row["grade"]][row["examples"]].append((row["auc"], row["n_blocks"]))
    law = max(read_json(root / "fit.json"), key=lambda f: f["where"]["grade"])
    figure, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    for grade in sorted(by_grade):
        sizes = sorted(by_grade[grade])
        values = [[auc for auc, _ in by_grade[grade][n]] for n in sizes]
        blocks = by_grade[grade][sizes[0]][0][1]
        axes.errorbar(
            sizes, np.mean(values, 1), np.std(values, 1, ddof=1), marker="o", markersize=4, capsize=2,
            label=f"grade {grade}: {blocks:,} parameters in blocks",
        )  # fmt: skip
    curve = {k: np.array([p[k] for p in law["curve"]]) for k in ("x", "value", "low", "high")}
    label = f"law of grade {law['where']['grade']} with its 90 % interval"
    axes.plot(curve["x"], curve["value"], color="black", linewidth=1, linestyle="--", label=label)
    axes.fill_between(
        curve["x"], curve["low"], curve["high"], color="black", alpha=0.08, linewidth=0
    )
    axes.set(xscale="log", xlabel="training examples", ylabel="AUC, matched test rows")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
    print(json.dumps({"out": str(out)}))


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "of the finished quickstart", required=True)
    _OUT = flags.DEFINE_string("out", "docs/figures/quickstart.svg", "the picture")
    command.run(main)
