"""DIN on KuaiRand-Pure: click, or with `:multi` four labels at once; one epoch, history 20.

python -m recjax.train --config=experiments/din_kuairand.py --config.data.source=FOLDER --workdir=runs/din_kuairand
"""

from ml_collections import ConfigDict

from experiments import suan_kuairand


def get_config(arg: str = "") -> ConfigDict:
    c = suan_kuairand.get_config(arg)
    labels = {k: v for k, v in c.model.items() if k == "labels"}
    c.model = ConfigDict(
        dict(name="din", table=dict(dim=8, optimizer="lazy_adam", lr=3e-3), **labels)
    )
    c.opt.lr = 1e-2
    c.train.microbatches = 1
    return c
