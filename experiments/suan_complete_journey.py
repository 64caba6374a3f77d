"""SUAN in the released configuration on The Complete Journey, one epoch, history 50, counters.

    python -m recjax.train --config=experiments/suan_complete_journey.py --workdir=runs/suan_complete_journey

Two blocks, D = 40, H = 2, gate "full", Dice on, logit BatchNorm off, head 1024-512-256.

Every Complete Journey experiment takes `:runlocal` (seconds) and `:decisive`, the protocol of the tables in
recjax/models/README.md (experiments/compare.py runs it).
"""

from ml_collections import ConfigDict

from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "decisive", "runlocal")
    c = configs.base()
    c.data.name = "complete_journey"
    c.data.history = 50
    c.model.name = "suan"
    c.model.table = dict(dim=8, optimizer="lazy_adam", lr=1e-2)
    c.model.blocks = 2
    c.model.heads = 2
    c.model.width = 40
    c.model.gate_pool = "full"
    # Both rates: the best of six on validation (`scaling.search`, 102,400 examples of `:decisive`).
    c.opt.lr = 6e-4
    c.opt.schedule = "linear"
    c.train.batch = 512
    c.train.microbatches = 8  # activations stay in the cache; batch statistics are of 64 rows
    c.eval.splits = ("validation", "validation_matched")
    c.eval.final = ("validation", "validation_matched", "test", "test_matched")
    if "runlocal" in words:
        runlocal(c)
    if "decisive" in words:
        decisive(c)
    return c


def with_model(c: ConfigDict, name: str, **options) -> ConfigDict:
    """The same data and protocol with another model, on tables like SUAN's."""
    kept = {k: c.model[k] for k in ("table", "labels") if k in c.model}
    c.model = ConfigDict({"name": name, **kept, **options})
    c.train.microbatches = 1
    return c


def decisive(c: ConfigDict) -> None:
    """What models are compared on: the latest 300,000 training opportunities, matched negatives, no counters.

    Matched negatives leave popularity nothing to tell, so a difference is one in personal taste; the natural
    test set stands beside the matched one.
    """
    c.data.train = "train_matched"
    c.data.counters = False
    c.train.recent = 300_000
    c.eval.splits = ("validation_matched", "validation")  # the first chooses rates and checkpoints
    c.eval.final = ("validation_matched", "test_matched", "test")


def runlocal(c: ConfigDict) -> None:
    """Shrinks any Complete Journey experiment to some seconds of training on two cores."""
    c.data.prepare = dict(limit_households=60)
    c.data.history = 8
    c.train.batch = 64
    c.train.microbatches = 1
    c.train.examples = 1_024
    c.eval.examples = 1_024
    c.eval.batch = 256
    c.eval.final = ("validation", "test")
