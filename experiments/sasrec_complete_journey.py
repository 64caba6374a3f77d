"""SASRec as a ranker on The Complete Journey, one epoch, history 50, counters.

python -m recjax.train --config=experiments/sasrec_complete_journey.py --workdir=runs/sasrec_complete_journey
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey


def get_config(arg: str = "") -> ConfigDict:
    c = suan_complete_journey.get_config(arg)
    c.model = ConfigDict()
    c.model.name = "sasrec"
    c.model.table = dict(dim=8, optimizer="lazy_adam", lr=3e-3)
    c.opt.lr = 1e-3
    c.train.microbatches = 1
    return c
