"""Five SUAN grades over two orders of magnitude in block parameters, on all of The Complete Journey.

    python -m scaling.run --config=scaling/configs/complete_journey.py --workdir=runs/study

The quickstart's protocol at full size: enough grades for a law over grades as well as over data sizes. Hours on two
cores; use an accelerator, or start it in the background, it resumes.
"""

from ml_collections import ConfigDict

from scaling.configs import quickstart


def get_config(arg: str = "") -> ConfigDict:
    c = quickstart.get_config(arg)
    if arg == "runlocal":
        return c
    c.title = "SUAN on The Complete Journey"
    c.experiment.eval.examples = 0
    c.sweep.grades = ("0", "1", "2", "3", "4")
    c.sweep.examples = (10_000, 30_000, 90_000, 270_000, 810_000, 1_450_000)
    c.distil.teacher = "3"
    c.distil.student = "1"
    c.distil.examples = 810_000
    return c
