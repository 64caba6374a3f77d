"""NIF on The Complete Journey: how far a larger generator and more cut-offs take the flow, and the CTR model after it.

    python -m scaling.run --config=scaling/configs/nif_complete_journey.py --workdir=scaling/studies/nif                # stage 1
    python -m scaling.run --config=scaling/configs/nif_complete_journey.py:stage2 --workdir=scaling/studies/nif_stage2  # stage 2

Stage 1: InfoNCE (`nce_loss`, the law's metric) and hr10 on the cut-offs of weeks 35-36, against grade (`scaling.plan.grades`) and the
number of cut-offs seen in one pass; points are the ends of cooldowns. nce_loss and hr10 are within evaluation batches of 256,
so they mean the same at every point.

Stage 2: AUC on the matched test set against grade and labelled opportunities, each of one seed's generator of the same grade that
has seen all cut-offs once (trained below each trial, in needs/0).

`:runlocal` and `:stage2,runlocal` are minutes of a small set.
"""

from ml_collections import ConfigDict

from experiments import nif_complete_journey
from recjax import configs
from scaling.configs import quickstart
from scaling.plan.grades import named
from scaling.plan.study import chain, product

COOLDOWN = 0.1
SEEDS = (0, 1, 2)
GRADES = ("-2", "-1", "0", "1")
CUTOFFS = (3_000, 6_500, 14_000, 30_000, 60_000)
LABELLED = (10_000, 30_000, 100_000, 300_000)


def get_config(arg: str = "") -> ConfigDict:
    parts = configs.arguments(arg, "stage2", "runlocal")
    small = "runlocal" in parts
    c = quickstart.get_config()
    del c.distill
    c.title = "NIF on The Complete Journey, stage " + ("2" if "stage2" in parts else "1")
    c.sweep = ConfigDict()
    c.sweep.members = 1
    c.sweep.lr_exponent = 0.5
    if "stage2" in parts:
        c.metrics = ("auc", "logloss")
        c.experiment = nif_complete_journey.get_config("both,runlocal" if small else "")
        c.experiment.eval.splits = ("test_matched",)
        c.experiment.eval.final = ("test_matched", "test")
        c.sweep.trials = tuple(stage2(small))
    else:
        c.metrics = ("nce_loss", "hr10")
        c.experiment = nif_complete_journey.get_config("flow,runlocal" if small else "flow")
        c.experiment.opt.schedule = "constant"  # one pass serves every size
        c.experiment.train.epochs = 1
        c.experiment.eval.final = ("validation_flow",)
        c.sweep.trials = tuple(stage1(small))
    return c


def stage1(small: bool) -> list[dict]:
    """Passes of every grade and seed."""
    grades, seeds, points = (
        (("-2",), (0, 1), (128, 256, 384, 512)) if small else (GRADES, SEEDS, CUTOFFS)
    )
    return product(grade=grades, seed=seeds, examples=[points], cooldown=[COOLDOWN])


def stage2(small: bool) -> list[dict]:
    """Passes of the CTR model, each after the generator of its grade and seed."""
    grades, seeds, points = (
        (("-2",), (0,), (256, 512, 768, 1_024)) if small else (GRADES[1:], SEEDS, LABELLED)
    )
    parts = []
    for seed in seeds:  # a seed of every grade before the next one
        for grade in grades:
            rung = named(grade)
            shape = f"width={rung.width},layers={rung.blocks},heads={rung.heads}"
            need = f"{nif_complete_journey.FILE}:flow,{shape}" + ",runlocal" * small
            parts.append(product(grade=[grade], seed=[seed], examples=[points], needs=[(need,)]))
    return chain(*parts)
