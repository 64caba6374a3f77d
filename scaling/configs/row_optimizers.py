"""Which optimizer for the rows of the tables, at which rate? SUAN of grade 0 on validation, one seed.

    python -m scaling.run --config=scaling/configs/row_optimizers.py --workdir=runs/row_optimizers --processes=2

The experiment of `complete_journey` with a linear decay and `model.table` of each row of the table in recjax/embedding/README.md, 280,000
examples: about a quarter of an hour of two cores. `:long` trains the best of each on 1,450,000.
"""

from ml_collections import ConfigDict

from recjax import configs
from scaling.configs import complete_journey
from scaling.plan.study import product

SHORT, LONG = complete_journey.POINTS[4], complete_journey.POINTS[6]
ADAGRAD, FROM_ZERO, ADAM = (
    {"model.table.optimizer": "rowwise_adagrad"},
    {"model.table.optimizer": "rowwise_adagrad", "model.table.accumulator": 0.0},
    {"model.table.optimizer": "lazy_adam"},
)
RATES = {
    SHORT: ((ADAGRAD, (0.05, 0.5, 2.0)), (FROM_ZERO, (0.01, 0.03, 0.1)), (ADAM, (1e-3, 3e-3, 1e-2))),
    LONG: ((ADAGRAD, (0.05, 0.15)), (FROM_ZERO, (0.01, 0.03)), (ADAM, (1e-3, 3e-3))),
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "long", "runlocal")
    c = complete_journey.get_config("runlocal" if "runlocal" in words else "")
    if "runlocal" in words:
        return c
    c.title = "Row optimizers on The Complete Journey"
    c.experiment.opt.schedule = "linear"
    c.experiment.eval.examples = 0  # all of validation
    c.sweep.members = 1  # each has its own program
    judged = {"eval.splits": [("validation_matched",)], "eval.final": [("validation_matched",)]}
    n = LONG if "long" in words else SHORT
    c.sweep.trials = tuple(
        row
        for optimizer, rates in RATES[n]
        for row in product(
            grade=("0",), seed=(0,), examples=[(n,)], kind=["rate"], **judged,
            **{k: [v] for k, v in optimizer.items()}, **{"model.table.lr": rates},
        )
    )  # fmt: skip
    return c
