"""SIM on The Complete Journey, one epoch, history 50, counters; `:hard` searches by category. Rates are SUAN's, not searched.

    python -m recjax.train --config=experiments/sim_complete_journey.py --workdir=runs/sim_complete_journey
    python -m recjax.train --config=experiments/sim_complete_journey.py:hard --workdir=runs/sim_hard_complete_journey

Twelve of the 50 events are kept: with all kept there would be nothing to search.
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey
from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "hard", "decisive", "runlocal")
    c = suan_complete_journey.get_config(",".join(w for w in words if w != "hard"))
    suan_complete_journey.with_model(
        c, "sim", keep=12, search="hard" if "hard" in words else "soft"
    )
    c.opt.lr = 1e-3
    return c
