"""Logistic regression on ids on KuaiRand-Pure: the sanity baseline for clicks, one epoch.

python -m recjax.train --config=experiments/logistic_kuairand.py --config.data.source=FOLDER --workdir=runs/logistic_kuairand
"""

from ml_collections import ConfigDict

from experiments import suan_kuairand
from experiments.logistic_complete_journey import logistic


def get_config(arg: str = "") -> ConfigDict:
    return logistic(suan_kuairand.get_config(arg))
