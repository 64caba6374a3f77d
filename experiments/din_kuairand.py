"""DIN on KuaiRand-Pure: click, or with `:multi` four labels at once; one epoch, history 20.

python -m recjax.train --config=experiments/din_kuairand.py --config.data.source=FOLDER --workdir=runs/din_kuairand
"""

from ml_collections import ConfigDict

from experiments import suan_kuairand
from experiments.din_complete_journey import din


def get_config(arg: str = "") -> ConfigDict:
    return din(suan_kuairand.get_config(arg))
