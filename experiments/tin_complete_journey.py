"""TIN (temporal encoding by position, published representation) on The Complete Journey, one epoch, history 50, counters.

    python -m recjax.train --config=experiments/tin_complete_journey.py --workdir=runs/tin_complete_journey

Against its decisive baseline, DIN, paired, three seeds (recjax/models/README.md has the figures):

    python -m experiments.compare --config=experiments/din_complete_journey.py:decisive \\
        --config=experiments/tin_complete_journey.py:decisive --seeds=3 --workdir=runs/compare/tin
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey


def get_config(arg: str = "") -> ConfigDict:
    c = suan_complete_journey.get_config(arg)
    suan_complete_journey.with_model(c, "tin")
    c.model.time = "position"
    c.model.tr_mode = "inner"
    # Both rates: the best of six on validation (`scaling.search`, 102,400 examples of `:decisive`).
    c.opt.lr = 3e-3
    c.opt.clip = 5.0
    return c
