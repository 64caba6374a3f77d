"""AW-MoE on its planted world: how features interact depends on a taste that only the history shows.

    python -m recjax.train --config=experiments/aw_moe_planted.py --workdir=runs/aw_moe_planted

The world is recjax/data/worlds/aw_moe.py; the bound on the test AUC is .853 (the majority of the history in place of the
taste). With the contrast off, with the gate b_0 alone, and DIN of about the same size, five seeds; "test_cut" has one or
two events left of each user:

    P=experiments/aw_moe_planted.py
    python -m experiments.compare --config=$P:din --config=$P --config="$P model.contrast=0" --config="$P model.gate=prior" \\
        --split=test,test_cut --seeds=5 --workdir=runs/compare/aw_moe_planted

    python -m experiments.aw_moe_gates --workdir=runs/compare/aw_moe_planted

The null, in which nobody's history helps, and the control, in which it is another user's:

    python -m experiments.compare --config="$P model.gate=prior" --config=$P --set=data.prepare.label=independent \
        --split=test --seeds=5 --workdir=runs/compare/aw_moe_null
    python -m recjax.train --config=$P --config.data.prepare.label=shuffled --workdir=runs/aw_moe_shuffled
"""

from ml_collections import ConfigDict

from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "din", "runlocal")
    c = configs.base()
    c.data.name = "worlds.aw_moe"
    c.data.history = 20
    c.model.name = "aw_moe"
    c.model.table = dict(dim=8, optimizer="lazy_adam", lr=3e-3, init_scale=0.1)
    c.model.width = 16
    c.model.experts = 4
    c.model.expert = (16,)
    c.model.gate_context = "none"  # the candidate's category says nothing here
    c.model.user_key = "user"
    c.opt.lr = 1e-2  # the best of six on validation, as DIN's below
    c.train.batch = 256
    c.train.epochs = 4
    c.eval.splits = ("validation",)
    c.eval.final = ("validation", "test", "test_cut")
    if "din" in words:
        c.model = ConfigDict(dict(name="din", table=c.model.table, attention=(32,), head=(128, 64)))
        c.opt.lr = 3e-3
    if "runlocal" in words:
        c.data.prepare = dict(train=2_000, validation=500, test=500)
        c.train.epochs = 1
    return c
