"""DIN: target attention over the history, pooled, on The Complete Journey, one epoch, history 50, counters.

python -m recjax.train --config=experiments/din_complete_journey.py --workdir=runs/din_complete_journey
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey


def get_config(arg: str = "") -> ConfigDict:
    return din(suan_complete_journey.get_config(arg))


def din(c: ConfigDict) -> ConfigDict:
    """A SUAN experiment with DIN for a model."""
    suan_complete_journey.with_model(c, "din")
    # Both rates: the best of six on validation (`scaling.search`, 102,400 examples of `:decisive`).
    c.opt.lr = 1e-2
    return c
