"""The quickstart: three SUAN grades over five data sizes, a law, a distilled student, a report.

    python -m scaling.run --config=scaling/configs/quickstart.py --workdir=runs/quickstart

Data: The Complete Journey, from its installed wheel; purchases against unbought exposure opportunities, trained and
tested on popularity-matched negatives, without counters. Three grades are too few for a law over grades; the
data-size law of each grade is what this can support.
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey
from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "runlocal")
    c = ConfigDict()
    c.title = "Quickstart: SUAN on The Complete Journey"
    c.path = ""
    c.candidates = 100
    c.grade_law_command = (
        "python -m scaling.run --config=scaling/configs/complete_journey.py --workdir=runs/study"
    )

    c.experiment = suan_complete_journey.get_config()
    c.experiment.data.train = "train_matched"
    c.experiment.data.counters = False
    c.experiment.data.history = 20
    # Why not row-wise Adagrad: recjax/embedding/README.md, Row optimizers.
    c.experiment.model.table = dict(dim=8, optimizer="lazy_adam", lr=3e-3)
    c.experiment.opt.lr = 2e-3
    c.experiment.opt.schedule = "constant"  # one pass serves every data size
    c.experiment.train.batch = 256
    c.experiment.train.microbatches = 1
    c.experiment.eval.splits = ("test_matched",)
    c.experiment.eval.final = ("test_matched", "test")
    c.experiment.eval.examples = 40_000

    c.sweep = ConfigDict()
    c.sweep.grades = ("0", "1", "2")
    c.sweep.seeds = (0, 1, 2)
    c.sweep.examples = (6_400, 12_800, 25_600, 51_200, 102_400)

    c.distill = ConfigDict()
    c.distill.teacher = "2"
    c.distill.student = "0"
    c.distill.student_options = dict(local=8, dilation=4)
    c.distill.mode = "offline"  # the sweep's own runs of the teacher's grade, all seeds together
    c.distill.temperatures = (1.0,)
    c.distill.weights = (0.1, 0.3, 1.0)  # chosen by AUC on the matched validation weeks
    c.distill.examples = 51_200
    c.distill.seeds = (0, 1)

    if "runlocal" in words:
        c.experiment.data.prepare = dict(limit_households=60)
        c.experiment.eval.examples = 2_000
        c.sweep.grades = ("0",)
        c.sweep.seeds = (0, 1)
        c.sweep.examples = (512, 1_024, 1_536, 2_048)
        c.distill.teacher = "0"
        c.distill.weights = (0.3,)
        c.distill.examples = 1_024
        c.distill.seeds = (0,)
        c.candidates = 20
    return c
