"""SUAN in the released configuration on The Complete Journey, one epoch, history 50, counters.

    python -m recjax.train --config=experiments/suan_complete_journey.py --workdir=runs/suan_complete_journey

Two blocks, D = 40, H = 2, gate "full", Dice on, logit BatchNorm off, head 1024-512-256.
"""

from ml_collections import ConfigDict

from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    c = configs.base()
    c.data.name = "complete_journey"
    c.data.history = 50
    c.model.name = "suan"
    c.model.table = dict(dim=8, lr=0.05)
    c.model.blocks = 2
    c.model.heads = 2
    c.model.width = 40
    c.model.gate_pool = "full"
    c.opt.lr = 3e-4
    c.train.batch = 512
    c.eval.splits = ("validation", "validation_matched")
    c.eval.final = ("validation", "validation_matched", "test", "test_matched")
    if arg == "runlocal":
        runlocal(c)
    return c


def runlocal(c: ConfigDict) -> None:
    """Shrinks any Complete Journey experiment to some seconds of training on two cores."""
    c.data.prepare = dict(limit_households=60)
    c.data.history = 8
    c.train.batch = 64
    c.train.examples = 1_024
    c.eval.examples = 1_024
    c.eval.batch = 256
    c.eval.final = ("validation", "test")
