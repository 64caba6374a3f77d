"""AW-MoE with its contrast on The Complete Journey, one epoch, history 50, counters.

    python -m recjax.train --config=experiments/aw_moe_complete_journey.py --workdir=runs/aw_moe_complete_journey

Against its decisive baseline, DIN, and against itself without the contrast, paired, three seeds:

    python -m experiments.compare --config=experiments/din_complete_journey.py:decisive \\
        --config=experiments/aw_moe_complete_journey.py:decisive \\
        --config="experiments/aw_moe_complete_journey.py:decisive model.contrast=0" --seeds=3 --workdir=runs/compare/aw_moe

`--long_tail=3,20%` on that command adds long-tail rows, fixed before any training: requests with at most three past events,
and the fifth of the requests with the fewest.
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey


def get_config(arg: str = "") -> ConfigDict:
    c = suan_complete_journey.get_config(arg)
    suan_complete_journey.with_model(c, "aw_moe")
    c.model.user_key = "household"
    c.model.experts = 8
    c.model.event_norm = "none"  # 0.679 against 0.571 with LayerNorm, validation, 102,400 examples
    # Both rates: the best of six on validation (`scaling.search`, 102,400 examples of `:decisive`).
    c.opt.lr = 3e-3
    c.opt.weight_decay = 1e-4  # AdamW
    return c
