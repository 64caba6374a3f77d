"""TIN on its planted world: categories match, and the sooner the more (recjax/data/worlds/tin.py).

    python -m recjax.train --config=experiments/tin_planted.py --workdir=runs/tin_planted

Expected test AUC .77, the oracle's being .784. The ablations that must fall, and labels shuffled to nothing, three seeds:

    P=experiments/tin_planted.py
    python -m experiments.compare --config=$P --config="$P model.tr_mode=repo" --config="$P model.time=interval" \\
        --config="$P model.time=none" --config="$P model.attention=mean" --config="$P model.tr_mode=none" \\
        --split=test --seeds=3 --workdir=runs/compare/tin_planted
    python -m recjax.train --config=$P --config.data.prepare.label=shuffled --workdir=runs/tin_shuffled
"""

from ml_collections import ConfigDict

from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "runlocal")
    c = configs.base()
    c.data.name = "worlds.tin"
    c.data.history = 10
    c.model.name = "tin"
    c.model.max_len = 10
    c.model.table = dict(dim=16, optimizer="lazy_adam", lr=3e-3, init_scale=0.1)
    c.opt.lr = 3e-3
    c.train.batch = 256
    c.train.epochs = 6
    c.eval.splits = ("validation",)
    c.eval.final = ("validation", "test")
    if "runlocal" in words:
        c.data.prepare = dict(train=2_000, validation=500, test=500)
        c.train.epochs = 1
    return c
