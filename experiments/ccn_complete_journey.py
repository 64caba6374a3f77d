"""CCN on pages of The Complete Journey: promoted products of the categories a visit bought from, one department never trained on.

    python -m recjax.train --config=experiments/ccn_complete_journey.py --workdir=runs/ccn_complete_journey

A stress case, no benchmark: what these pages are is in recjax/data/sets/complete_journey_pages.py. `:plain` is the decisive baseline (both
weights zero), `:din` DIN with the trigger as a plain feature, `:dihn` DIHN (DIAN, DEI2N and DUIN are not built); `:decisive` is the protocol of the tables in
recjax/models/README.md (the latest 300,000 training rows, no counters, one epoch), paired over three seeds:

    E=experiments/ccn_complete_journey.py
    python -m experiments.compare --config=$E:plain,decisive --config=$E:decisive --config=$E:din,decisive \\
        --config=$E:dihn,decisive --split=test,test_unseen --seeds=3 --workdir=runs/compare/ccn
"""

from ml_collections import ConfigDict

from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "plain", "din", "dihn", "decisive", "runlocal")
    c = configs.base()
    c.data.name = "complete_journey_pages"
    c.data.candidates = 32
    c.data.history = 50
    c.model.name = "ccn"
    # Both rates, and the other models' below: the best of six on validation (`scaling.search` of `:decisive`).
    c.model.table = dict(dim=8, optimizer="lazy_adam", lr=1e-2)
    c.opt.lr = 1e-3
    c.train.batch = 64  # pages
    c.eval.batch = 256
    c.eval.splits = ("validation",)
    c.eval.final = ("validation", "test", "test_unseen")
    if "plain" in words:
        c.model.alpha = c.model.beta = 0.0
        c.opt.lr = 1e-2
    for rival in ("din", "dihn"):
        if rival in words:
            c.model = ConfigDict(dict(name=rival, table=c.model.table, attention=(32,)))
            c.opt.lr = 3e-3
    if "decisive" in words:
        c.data.counters = False
        c.train.recent = 300_000
        c.eval.examples = 200_000  # the first weeks of the test split; all of the unseen department
        c.eval.final = ("test", "test_unseen")
    if "runlocal" in words:
        c.data.prepare = dict(limit_households=60)
        c.data.history = 8
        c.train.examples = 2_048
        c.eval.examples = 2_048
        c.eval.batch = 64
    return c
