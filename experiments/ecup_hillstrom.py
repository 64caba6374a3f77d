"""ECUP on Hillstrom's e-mail trial: 64,000 customers, two e-mails and none, visit then conversion.

    python -m recjax.train --config=experiments/ecup_hillstrom.py --config.data.source=FOLDER --workdir=runs/ecup_hillstrom

FOLDER holds the publisher's CSV file. Two fifths of the customers are the test: conversions are 0.9 %. The rivals, the
shuffled control and the curves: `python -m experiments.uplift_board`.
"""

from ml_collections import ConfigDict

from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "runlocal")
    c = configs.base()
    c.data.name = "hillstrom"
    c.data.prepare = dict(seed=0, fractions=dict(validation=0.1, test=0.4))
    c.model.name = "ecup"
    c.model.table = dict(lr=0.05)
    c.opt.lr = 1e-3
    c.opt.weight_decay = 1e-4
    c.train.batch = 512
    c.train.epochs = 10
    c.eval.batch = 2048
    # The last step is judged. The specification's rule, the best Qini of conversions on validation, chooses here by 59 conversions.
    if "runlocal" in words:
        c.train.examples = 2_048
        c.train.epochs = 1
    return c
