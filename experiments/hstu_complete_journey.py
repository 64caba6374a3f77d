"""HSTU on The Complete Journey, one epoch, history 50, counters. Rates are SUAN's, not searched.

python -m recjax.train --config=experiments/hstu_complete_journey.py --workdir=runs/hstu_complete_journey

"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey


def get_config(arg: str = "") -> ConfigDict:
    c = suan_complete_journey.get_config(arg)
    suan_complete_journey.with_model(c, "hstu")
    c.opt.lr = 1e-3
    return c
