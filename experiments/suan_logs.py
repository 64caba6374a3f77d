"""SUAN on your own logs, prepared by `python -m recjax.data.prepare` (docs/your_own_logs.md).

    python -m recjax.train --config=experiments/suan_logs.py --config.data.dir=DIR --workdir=runs/mine

`:runlocal` trains for seconds on a small planted log of sales that it makes itself: the whole way from a CSV file.
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey
from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "runlocal")
    c = suan_complete_journey.get_config()
    c.data.name = "logs"
    c.train.min_steps = 500  # batch and epochs follow the log's size
    c.eval.splits = ("validation",)
    c.eval.final = ("validation", "test")
    if "runlocal" in words:
        c.data.name = "worlds.transactions"
        c.data.history = 8
        c.train.batch = 64
        c.train.min_steps = 0
        c.train.examples = 1_024
        c.eval.examples = 1_024
        c.eval.batch = 256
    return c
