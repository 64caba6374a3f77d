"""What AW-MoE's gates know: does g tell the taste, and does a history cut short leave it where it was?

    python -m experiments.aw_moe_gates --workdir=runs/compare/aw_moe_planted

reads the finished runs of the comparison in experiments/aw_moe_planted.py. For each run, on the test rows: accuracy of a
linear probe from g to the planted taste (least squares, fitted on one half, judged on the other), mean cosine of the gate
of the full history with that of the last one or two events (test_cut), mean entropy of the mixing weights (nats) and each
expert's load. For runs that differ in `model.contrast` alone, the paired difference of the cosine over seeds and the
one-sided p of Student's t. Writes gates.json.
"""

from typing import Any

from absl import flags
from etils import epath
import numpy as np
from scipy.stats import ttest_1samp

from recjax import command
from recjax.runtime.run import plain, read_json, set_up, write_json
from recjax.training.opening import evaluator_for, open_run


def gates(run: epath.PathLike, splits: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
    """gate and alpha [N, K], and taste [N] where the data has it, of each split's rows in order."""
    config, data, system, trees, _ = open_run(run)
    evaluator = evaluator_for(system, config)
    out = {}
    for split in splits:
        found: dict[str, list] = {"gate": [], "alpha": [], "taste": [], "row": []}
        for batch in data.batches(split, config.eval.batch, shards=evaluator.mesh.size):
            real = batch["valid"][:, 0]
            outputs = evaluator.outputs(trees, evaluator.put(batch))
            for name in ("gate", "alpha"):
                found[name].append(np.asarray(outputs[name])[real, 0])
            found["row"].append(batch["row"][real, 0])
            found["taste"].append(batch["label"]["taste"][real, 0])
        rows = {k: np.concatenate(v) for k, v in found.items()}
        out[split] = {k: v[np.argsort(rows["row"])] for k, v in rows.items()}
    return out


def probe(gate: np.ndarray, taste: np.ndarray) -> float:
    """Accuracy of the best linear read-out: least squares on the first half, judged on the second."""
    x = np.concatenate([gate, np.ones((len(gate), 1))], axis=1)
    half = len(x) // 2
    w = np.linalg.lstsq(x[:half], 2 * taste[:half] - 1, rcond=None)[0]
    return float(((x[half:] @ w > 0) == (taste[half:] > 0.5)).mean())


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(norms, 1e-12)).mean())


def figures(run: epath.PathLike) -> dict[str, Any]:
    """Of one run on the planted world."""
    found = gates(run, ("test", "test_cut"))
    full, cut = found["test"], found["test_cut"]
    alpha = full["alpha"]
    return dict(
        probe=probe(full["gate"], full["taste"]),
        probe_cut=probe(cut["gate"], cut["taste"]),
        cosine=cosine(full["gate"], cut["gate"]),
        entropy=float(-(alpha * np.log(np.maximum(alpha, 1e-30))).sum(1).mean()),
        load=alpha.mean(0),
    )


def run(workdir: epath.PathLike) -> dict:
    """All AW-MoE runs of a comparison; writes and returns gates.json's content."""
    root, found = epath.Path(workdir), {}
    for place in sorted(root.glob("*/seed-*")):
        config = read_json(place / "config.json")
        if config["model"]["name"] == "aw_moe":
            found.setdefault(place.parent.name, {})[place.name] = figures(place)
    rise = {}
    for name, seeds in found.items():
        without = found.get(f"{name}+model.contrast=0")
        both = sorted(set(seeds) & set(without or ()))
        if len(both) > 1:
            d = [seeds[s]["cosine"] - without[s]["cosine"] for s in both]
            p = float(ttest_1samp(d, 0, alternative="greater").pvalue)
            rise[name] = dict(difference=float(np.mean(d)), by_seed=d, p_one_sided=p)
    out = plain(dict(runs=found, contrast_raises_cosine=rise))
    write_json(root / "gates.json", out)
    return out


def main(_) -> None:
    set_up()
    found = run(_WORKDIR.value)
    print(
        "| run | probe | probe, cut | cosine full, cut | entropy | load |\n|---|---|---|---|---|---|"
    )
    for name, seeds in found["runs"].items():
        for seed, f in seeds.items():
            numbers = [f"{f[k]:.4f}" for k in ("probe", "probe_cut", "cosine", "entropy")]
            load = " ".join(f"{x:.2f}" for x in f["load"])
            print("| " + " | ".join([f"{name} {seed}", *numbers, load]) + " |")
    for name, r in found["contrast_raises_cosine"].items():
        print(
            f"{name}: contrast adds {r['difference']:+.4f} to the cosine, p = {r['p_one_sided']:.2g}"
        )


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "folder of experiments.compare")
    flags.mark_flag_as_required("workdir")
    command.run(main)
