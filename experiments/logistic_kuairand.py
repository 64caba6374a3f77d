"""Logistic regression on ids on KuaiRand-Pure: the sanity baseline for clicks, one epoch.

python -m recjax.train --config=experiments/logistic_kuairand.py --config.data.source=FOLDER --workdir=runs/logistic_kuairand
"""

from ml_collections import ConfigDict

from experiments import suan_kuairand


def get_config(arg: str = "") -> ConfigDict:
    c = suan_kuairand.get_config(arg)
    c.model = ConfigDict()
    c.model.name = "logistic"
    c.model.table = dict(lr=0.1)
    c.opt.lr = 1e-2
    c.train.microbatches = 1
    return c
