"""QIN as its authors configured it, on the MM-CTR challenge's MicroLens-1M: embeddings of 128, history 64, batches of 8,192.

    python -m recjax.train --config=experiments/qin_mm_ctr.py --config.data.source=MicroLens_1M_MMCTR --workdir=runs/qin_mm_ctr

Their logs: valid AUC .9695 (M = 3) and .9701 (`--config.model.rows=4`) after 28 and 33 epochs of about 2.8 minutes on one RTX
4090. `:main` is their other branch, which also reads the user's id and the levels of past items (.9838). Their valid split is
`test` here, and selection is on users held out of the training file (recjax/data/sets/microlens.py). Not run: the files were not
available to us; `:runlocal` and the tests read files of the same format, made up.

Tables are dense parameters here (`model.embedding`), because the published penalty pulls every row at every step.
"""

from ml_collections import ConfigDict

from recjax import configs

ROWS = 3_600_000  # of train.parquet


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "main", "runlocal")
    c = configs.base()
    c.data.name = "microlens"
    c.data.history = 64
    c.model.name = "qin"
    c.model.table = dict(dim=128, init_scale=1e-4)
    c.model.embedding = "dense"
    c.model.penalty = 2e-4
    c.model.layers = 4
    c.model.rows = 3
    c.opt.lr = 2e-3
    c.opt.clip = 10.0
    c.train.batch = 8192
    c.train.epochs = 100
    c.eval.every = -(-round(0.99 * ROWS) // 8192)  # an epoch
    c.eval.use_best = True
    c.seed = 20242025
    if "main" in words:
        c.data.prepare.history_levels = True
        c.model.user = True
        c.model.output_bias = True
        c.model.context_fields = ("likes_level", "views_level")
    if "runlocal" in words:
        c.data.name = "worlds.mm_ctr"
        c.data.history = 8
        c.data.prepare.users = 300
        c.model.table.dim = 8
        c.train.batch = 128
        c.train.epochs = 1
        c.eval.every = 5
        c.eval.batch = 256
    return c
