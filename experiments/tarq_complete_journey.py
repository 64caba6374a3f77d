"""TARQ on The Complete Journey, one epoch, history 50: pre-ranking with codes of products.

    python -m recjax.train --config=experiments/tarq_complete_journey.py --workdir=runs/tarq_complete_journey

An item is its product, category, type, department, manufacturer and brand; display, mailer and counters depend on the
request and are not read, which costs a pre-ranker most of what tells purchases on natural negatives. Against its decisive
baseline, two towers, and the exact target attention it imitates, paired, three seeds (recjax/models/README.md):

    T=experiments/tarq_complete_journey.py:decisive
    python -m experiments.compare --config="$T model.variant=two_tower" --config=$T --config="$T model.variant=target_attention" \\
        --split=test_matched,test --seeds=3 --workdir=runs/compare/tarq
    python -m experiments.tarq_board --workdir=runs/compare/tarq --split=test_matched      # HR@100 over the catalogue
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey, tarq_planted
from recjax import configs

ITEM = ("product", "category", "type", "department", "manufacturer", "brand")


def get_config(arg: str = "") -> ConfigDict:
    c = suan_complete_journey.get_config(arg)
    suan_complete_journey.with_model(c, "tarq")
    c.model.item_features = ITEM
    c.model.width = 32
    c.model.codes = 128
    c.model.codebook_init = "kmeans"
    c.model.align_rows = 64  # of 512: the tables of all would be most of a step
    # Both rates: the best of six on validation (`scaling.search`, 102,400 examples of `:decisive`).
    c.opt.lr = 3e-3
    c.opt.clip = 5.0
    if "runlocal" in configs.arguments(arg, "decisive", "runlocal"):
        tarq_planted.quick(c)
    return c
