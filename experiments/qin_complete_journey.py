"""QIN with the products' texts as frozen vectors, on The Complete Journey, one epoch, history 50, counters.

    python -m recjax.train --config=experiments/qin_complete_journey.py --workdir=runs/qin_complete_journey

A product's type, category, brand and package size, encoded by wordllama's token vectors (`pip install 'recjax[text]'`; they come
in its wheel, nothing is downloaded; `data.prepare.text=hashed` needs no package). Against ids alone and against the texts
of other products, paired, three seeds (recjax/models/README.md has the figures):

    Q=experiments/qin_complete_journey.py:decisive
    python -m experiments.compare --config="$Q model.vectors=none" --config=$Q --config="$Q model.vectors=shuffled" \\
        --split=test_matched,test --seeds=3 --workdir=runs/compare/qin
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey
from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    c = suan_complete_journey.get_config(arg)
    c.data.prepare.text = "wordllama"
    # Both rates: the best of six on validation (`scaling.search`, 102,400 examples of `:decisive`), with texts and without.
    table = dict(dim=8, lr=3e-3, init_scale=1e-2)
    suan_complete_journey.with_model(c, "qin", table=table)
    c.model.layers = 2
    c.model.vectors = "own"
    c.model.penalty = 1e-5
    c.opt.lr = 5e-3
    c.opt.clip = 10.0
    if "runlocal" in configs.arguments(arg, "decisive", "runlocal"):
        c.data.prepare.text = "hashed"
    return c
