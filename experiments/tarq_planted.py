"""TARQ on its planted world: a click follows the past items nearest to the candidate (recjax/data/worlds/tarq.py).

    python -m recjax.train --config=experiments/tarq_planted.py --workdir=runs/tarq_planted

The oracle's test AUC is 0.79; a mean over the history, which two towers can carry, has 0.74. The ordering that must hold
(two towers + 0.015 <= student <= exact target attention + 0.003), what alignment and the read-outs do, three seeds:

    P=experiments/tarq_planted.py
    python -m experiments.compare --config="$P model.variant=two_tower" --config=$P --config="$P model.variant=target_attention" \\
        --config="$P model.readout=low_rank" --config="$P model.readout=scalar" --config="$P:k128 model.align=0" --config=$P:k128 \\
        --config="$P model.distill=0" --config="$P model.align=1" --split=test --seeds=3 --workdir=runs/compare/tarq_planted
    python -m recjax.train --config=$P --config.data.prepare.label=shuffled --workdir=runs/tarq_shuffled
    python -m experiments.tarq_board --workdir=runs/compare/tarq_planted       # HR@100, codes in use, codes of other items
"""

from ml_collections import ConfigDict

from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "k128", "runlocal")
    c = configs.base()
    c.data.name = "worlds.tarq"
    c.data.history = 20
    c.model.name = "tarq"
    c.model.width = 32
    c.model.codes = 128 if "k128" in words else 32
    c.model.item_features = ("content",)
    c.model.event_features = ("hist_content",)
    c.model.table = dict(dim=8)
    c.model.codebook_init = "kmeans"
    c.model.align_rows = 64  # of 512: the tables of all would be most of a step
    c.opt.lr = 2e-3
    c.train.batch = 512
    c.train.epochs = 3
    c.eval.splits = ("validation",)
    c.eval.final = ("validation", "test")
    if "runlocal" in words:
        c.data.prepare = dict(users=200, train=4_000, validation=500, test=500)
        c.train.epochs = 1
        quick(c)
    return c


def quick(c: ConfigDict) -> None:
    """A model that compiles in seconds."""
    c.model.levels = 2
    c.model.codebook_init = "normal"
