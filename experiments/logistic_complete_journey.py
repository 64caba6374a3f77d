"""Logistic regression on ids and counters: the sanity baseline, on The Complete Journey, one epoch, history 50, counters.

python -m recjax.train --config=experiments/logistic_complete_journey.py --workdir=runs/logistic_complete_journey
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey


def get_config(arg: str = "") -> ConfigDict:
    return logistic(suan_complete_journey.get_config(arg))


def logistic(c: ConfigDict) -> ConfigDict:
    """A SUAN experiment's data and protocol with logistic regression for a model."""
    suan_complete_journey.with_model(c, "logistic", table=dict(optimizer="lazy_adam", lr=1e-2))
    # Both rates: the best of six on validation (`scaling.search`, 102,400 examples of `:decisive`).
    c.opt.lr = 1e-2
    return c
