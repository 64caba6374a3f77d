"""TIN on the pairs of its own protocol (next item against one uniform negative) on Amazon Beauty as S3-Rec published it.

    python -m recjax.train --config=experiments/tin_amazon_sequences.py --config.data.source=FOLDER --workdir=runs/beauty

FOLDER: the folder with Beauty.txt.gz and Beauty_item2attributes.json.gz; "" looks for amazon-sequences below $RECJAX_DATA.
22,363 users, 12,101 items, 198,502 events. The paper's set (Electronics) is larger and its table of results was not available
to us, so there is no number to reproduce; `:din` is the rival. Not as there: ties count a half in GAUC (the code: nothing), the last
step is judged (the code: the best validation GAUC), batches of 256 (32), the last 50 events (all).
"""

from ml_collections import ConfigDict

from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "din", "runlocal")
    c = configs.base()
    c.data.name = "next_item"
    c.data.prepare = dict(name="Beauty")
    c.data.history = 50
    c.model.name = "tin"
    c.model.table = dict(dim=64, optimizer="lazy_adam", lr=1e-3, init_scale=0.1)
    c.opt.clip = 5.0
    c.train.batch = 256
    c.train.epochs = 4
    c.eval.splits = ("validation",)
    c.eval.final = ("validation", "test")
    if "din" in words:
        c.model = ConfigDict(dict(name="din", table=c.model.table))
    if "runlocal" in words:
        c.data.prepare = dict(name="Beauty", users=300)
        c.data.history = 8
        c.model.table.dim = 8
        c.train.examples = 1_024
        c.train.epochs = 1
    return c
