"""HyperPAVE on WDC-PAVE's records in MAVE's format: web offers of five categories.

python -m recjax.train --config=experiments/hyperpave_wdc_pave.py --config.data.source=FOLDER --workdir=runs/hyperpave_wdc_pave

FOLDER holds files named *positives*.jsonl[.gz]; MAVE's own labels have the same format.
"""

from ml_collections import ConfigDict

from experiments import hyperpave_oa_mine


def get_config(arg: str = "") -> ConfigDict:
    c = hyperpave_oa_mine.get_config(arg)
    c.data.prepare.set = "mave"
    return c
