"""HyperPAVE beside its baselines and controls on real products, paired over seeds.

    python -m experiments.hyperpave_board --config=experiments/hyperpave_oa_mine.py --source=FOLDER --seeds=3 --workdir=runs/board_oa_mine

Each seed draws its own zero-shot split, and every rival sees it. Trained: HyperPAVE, SAGE only, hyperedges only, shuffled
hyperedges, node ids. Untrained: cosine of the texts; popularity of the aspect among its category's training links (constant on
unseen aspects). F1 uses the threshold with the best micro-F1 on validation. Differences are HyperPAVE less the rival in
mean average precision of a product, over all candidates and over those no training product has: mean over seeds with a t
interval, and a bootstrap over products. Finished runs are kept: the same command goes on, and prints the table again.
"""

from absl import flags
from etils import epath
import numpy as np

from experiments.boards import config_of, deviation, run_of, scored
from recjax import command
from recjax.data.sets.product_catalog import Catalog
from recjax.metrics.comparison import half_width
from recjax.models import hyperpave
from recjax.runtime.run import set_up, write_json
from recjax.training.loop import train

VARIANTS: dict[str, dict] = {
    "hyperpave": {},
    "SAGE only": {"model.hyperedges": "none"},
    "hyperedges only": {"model.sage_layers": 0},
    "shuffled hyperedges": {"data.prepare.shuffle": True},
    "node ids": {"model.features": "id"},
}
SHOWN = ("map", "map_seen", "map_unseen", "map_pure", "recall@10", "micro_f1", "macro_f1")
Rows = dict[str, np.ndarray]


def untrained(c: Catalog, rows: dict[str, Rows]) -> dict[str, dict[str, Rows]]:
    """Text cosine and popularity on the very pairs of `rows`."""
    counts = np.bincount(c.links[c.trained, 1], minlength=len(c.attribute))
    out: dict[str, dict[str, Rows]] = {"text cosine": {}, "popularity": {}}
    for split, r in rows.items():
        p, a = r["group/product"], r["group/aspect"]
        cosine = (c.x["product"][p] * c.x["aspect"][a]).sum(1)  # unit vectors
        out["text cosine"][split] = {**r, "logit": cosine}
        out["popularity"][split] = {**r, "logit": np.log1p(counts[a])}
    return out


def judge(rows: dict[str, Rows]) -> dict[str, float]:
    """Test figures at the validation threshold."""
    v, t = rows["validation"], rows["test"]
    threshold = hyperpave.best_threshold(v["logit"], v["label"])
    out = {}
    for suffix, mine in hyperpave.subsets(t["group/unseen"]).items():
        z, y, p, a = (t[k][mine] for k in ("logit", "label", "group/product", "group/aspect"))
        out |= {f"{k}{suffix}": x for k, x in hyperpave.figures(z, y, p, a, threshold).items()}
    return out


def precisions(rows: Rows, unseen: bool) -> dict[int, float]:
    """Average precision of each product (ties as `ranking.mean_average_precision` has them)."""
    mine = rows["group/unseen"] > 0 if unseen else np.ones(len(rows["logit"]), bool)
    z, y, p = (rows[k][mine] for k in ("logit", "label", "group/product"))
    out = {}
    for product in np.unique(p[y > 0]):
        own = p == product
        order = np.lexsort((y[own], -z[own]))
        hits = y[own][order]
        rank = np.arange(1, len(hits) + 1)
        out[int(product)] = float((np.cumsum(hits) / rank * hits).sum() / hits.sum())
    return out


def difference(ours: list[dict], theirs: list[dict], seed: int = 0) -> dict[str, float]:
    """Mean paired difference, its t interval over seeds and its bootstrap interval over products."""
    parts = [np.array([a[p] - b[p] for p in a]) for a, b in zip(ours, theirs, strict=True)]
    means = np.array([p.mean() for p in parts])
    rng = np.random.default_rng(seed)
    draws = [np.mean([rng.choice(p, len(p)).mean() for p in parts]) for _ in range(1000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    half = half_width(means)
    return dict(mean=means.mean(), half=half, low=low, high=high, better=int((means > 0).sum()))


def main(_) -> None:
    set_up()
    root = epath.Path(_WORKDIR.value)
    root.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict]] = {}
    by_product: dict[str, dict[str, list[dict]]] = {"all": {}, "unseen": {}}
    for seed in range(_SEEDS.value):
        every = {}
        for name, changes in VARIANTS.items():
            run = run_of(root, name, seed)
            train(config_of(_CONFIG.value, seed, _SOURCE.value, changes), run)
            data, every[name] = scored(run)
        every |= untrained(data.catalog, every["hyperpave"])
        for name, rows in every.items():
            results.setdefault(name, []).append(judge(rows))
            for which, of in by_product.items():
                of.setdefault(name, []).append(precisions(rows["test"], which == "unseen"))
    differences: dict[str, dict] = {}
    print(f"{'':20s}" + "".join(f"{m:>18s}" for m in SHOWN))
    for name, runs in results.items():
        cells = [np.array([r[m] for r in runs]) for m in SHOWN]
        print(f"{name:20s}" + "".join(f"{x.mean():11.3f} +-{deviation(x):.3f}" for x in cells))
    for which, of in by_product.items():
        for name in [n for n in of if n != "hyperpave"]:
            d = difference(of["hyperpave"], of[name])
            differences[f"{which}: {name}"] = d
            print(
                f"hyperpave - {name}, mAP over {which}: {d['mean']:+.3f} (seeds +-{d['half']:.3f}, "
                f"products {d['low']:+.3f} to {d['high']:+.3f}, better in {d['better']} of {_SEEDS.value})"
            )
    write_json(root / "results.json", {"results": results, "differences": differences})


if __name__ == "__main__":
    _CONFIG = flags.DEFINE_string("config", "experiments/hyperpave_oa_mine.py", "FILE[:ARG]")
    _SOURCE = flags.DEFINE_string("source", None, "the publisher's files")
    _SEEDS = flags.DEFINE_integer("seeds", 3, "splits and initial values", lower_bound=1)
    _WORKDIR = flags.DEFINE_string("workdir", None, "folder of the runs")
    flags.mark_flags_as_required(["source", "workdir"])
    command.run(main)
