"""QIN on its planted world: what an item is lies in its frozen vector (recjax/data/worlds/qin.py).

    python -m recjax.train --config=experiments/qin_planted.py --workdir=runs/qin_planted

Asked for before any run: test AUC at least 0.82, test_cold (items with unknown ids) at least 0.80, the oracle's being 0.851 and
0.850. The controls that must fall to 0.5 on test_cold, ablations, and labels shuffled to nothing, three seeds:

    P=experiments/qin_planted.py
    python -m experiments.compare --config=$P --config="$P model.vectors=none" --config="$P model.vectors=shuffled" \\
        --config="$P model.attention=none" --config="$P model.layers=0" --split=test,test_cold --seeds=3 \\
        --workdir=runs/compare/qin_planted
    python -m recjax.train --config=$P --config.data.prepare.label=shuffled --workdir=runs/qin_shuffled

One layer without dropout at 5e-3 and a penalty of 1e-3, chosen on validation. More layers learn the ids by heart before the attention
grows: with two, one seed of three ends at 0.710 on the test set, and with the paper's four (dropout 0.1, 2e-3) at a
penalty of 1e-5 validation stays at 0.715.
"""

from ml_collections import ConfigDict

from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "runlocal")
    c = configs.base()
    c.data.name = "worlds.qin"
    c.data.history = 8
    c.data.prepare.label = "click"
    c.model.name = "qin"
    c.model.table = dict(dim=16, lr=5e-3, init_scale=1e-2)
    c.model.vectors = "own"
    c.model.attention = "relu"
    c.model.penalty = 1e-3
    c.model.layers = 1
    c.model.dropout = 0.0
    c.opt.lr = 5e-3
    c.opt.clip = 10.0
    c.train.batch = 512
    c.train.epochs = 4
    c.eval.every = 118  # an epoch
    c.eval.use_best = True
    c.eval.final = ("validation", "test", "test_cold")
    if "runlocal" in words:
        c.data.prepare = dict(train=2_000, validation=500, test=500, test_cold=500)
        c.train.epochs = 1
    return c
