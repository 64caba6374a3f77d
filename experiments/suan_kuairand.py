"""SUAN on KuaiRand-Pure: click, or with `:multi` click, long view, like and follow at once.

    python -m recjax.train --config=experiments/suan_kuairand.py --config.data.source=FOLDER --workdir=runs/kuairand

FOLDER holds the publisher's files. True impressions with their clicks; eight impressions a user, so histories are short.
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey
from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "multi", "runlocal")
    c = suan_complete_journey.get_config()
    c.data.name = "kuairand"
    c.data.history = 20
    # Both rates: the best of six on validation (`scaling.search`, all of its training split).
    c.model.table.lr = 3e-3
    c.opt.lr = 2e-3
    c.eval.splits = ("validation",)
    c.eval.final = ("validation", "test")
    if "multi" in words:
        c.model.labels = ("is_click", "long_view", "like", "follow")
    if "runlocal" in words:
        c.train.batch = 64
        c.train.microbatches = 1
        c.train.examples = 1_024
        c.eval.examples = 1_024
        c.eval.batch = 256
    return c
