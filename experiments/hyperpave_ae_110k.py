"""HyperPAVE on AE-110k: as on OA-Mine, with fewer aspects a product and more products an aspect.

python -m recjax.train --config=experiments/hyperpave_ae_110k.py --config.data.source=FOLDER --workdir=runs/hyperpave_ae_110k
"""

from ml_collections import ConfigDict

from experiments import hyperpave_oa_mine


def get_config(arg: str = "") -> ConfigDict:
    c = hyperpave_oa_mine.get_config(arg)
    c.data.prepare.set = "ae-110k"
    return c
