"""LightSUAN: SUAN with local + dilated attention, scored in parallel, on The Complete Journey, one epoch, history 50, counters.

python -m recjax.train --config=experiments/lightsuan_complete_journey.py --workdir=runs/lightsuan_complete_journey
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey


def get_config(arg: str = "") -> ConfigDict:
    c = suan_complete_journey.get_config(arg)
    c.model.update(name="lightsuan", gate_pool="causal", local=16, dilation=4)
    return c
