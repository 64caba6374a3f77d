"""TWIN on The Complete Journey, one epoch, history 50, counters. Rates are SUAN's, not searched.

python -m recjax.train --config=experiments/twin_complete_journey.py --workdir=runs/twin_complete_journey

Twelve of the 50 events are kept: with all kept there would be nothing to search.
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey


def get_config(arg: str = "") -> ConfigDict:
    c = suan_complete_journey.get_config(arg)
    suan_complete_journey.with_model(c, "twin", keep=12)
    c.opt.lr = 1e-3
    return c
