"""DIN: target attention over the history, pooled, on The Complete Journey, one epoch, history 50, counters.

python -m recjax.train --config=experiments/din_complete_journey.py --workdir=runs/din_complete_journey
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey


def get_config(arg: str = "") -> ConfigDict:
    c = suan_complete_journey.get_config(arg)
    c.model = ConfigDict()
    c.model.name = "din"
    c.model.table = dict(dim=8, optimizer="lazy_adam", lr=1e-2)
    # Both rates: the best of six on validation (`scaling.search`, 102,400 examples of `:decisive`).
    c.opt.lr = 1e-2
    c.train.microbatches = 1
    return c
