"""Does the law survive without SUAN's parts? Variants of two grades along the data axis, on The Complete Journey.

    python -m scaling.run --config=scaling/configs/ablations.py --workdir=runs/ablations

The paper is reported to lose its law without RMSNorm and pre-norm (the tables were not found). Each variant here has the
protocol of `complete_journey` at grade 1, those two at grade 0 as well, three seeds, points to 280 k examples, cooldowns: about
fifty minutes of a core. A variant changes one option of the model; `af_net=False` leaves the profile to the head.
"""

from ml_collections import ConfigDict

from scaling.configs import complete_journey
from scaling.sweep import chain

CLAIMED = ({"model.norm": "layer"}, {"model.residual": "raw"})  # the law is reported to need these
VARIANTS = (
    {"model.ffn": "relu"},
    {"model.attention_bias": False},
    {"model.af_net": False},
    {"model.alignment": False},
    {"model.gate_pool": "causal"},
    {"model.gate_pool": "behaviour"},
    {"model.target_aware": False},
)


def get_config(arg: str = "") -> ConfigDict:
    c = complete_journey.get_config(arg)
    if arg == "runlocal":
        return c
    c.title = "SUAN without its parts, on The Complete Journey"
    points, seeds = complete_journey.POINTS[:5], complete_journey.SEEDS
    rows = [complete_journey.passes(("0", "1"), seeds, points, **v) for v in ({}, *CLAIMED)]
    rows += [complete_journey.passes(("1",), seeds, points, **v) for v in VARIANTS]
    c.sweep.trials = tuple(chain(*rows))
    return c
