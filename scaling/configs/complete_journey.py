"""SUAN on The Complete Journey: size, data and history length, on popularity-matched negatives without counters.

    python -m scaling.run --config=scaling/configs/complete_journey.py --workdir=scaling/studies/complete_journey \
        --processes=2

Six grades over two orders of magnitude in block parameters (2.6 k to 309 k) at history 20, on up to all 1.45 M training
opportunities in log-spaced points of single passes at a constant rate, with a cooldown of 10 % forked before each point
and independent runs beside them; history 10 to 200 at grade 0; depth and width apart at grade 1; natural negatives without and with
counters; SUAN without its parts, one option of the model at a time (`af_net=False` leaves the profile to the head). Left out on two CPU cores: more than one seed beyond 280 k examples at grade 2, anything beyond 280 k at grade 3 and beyond
120 k at grade 4. Resumes; `--shard=i/n` shares it among machines. The trials that say most come first.

    :gpu    the wider study for an accelerator: four orders of magnitude, history to 1000
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from recjax import configs
from scaling.configs import quickstart
from scaling.plan.study import chain, product

POINTS = (10_000, 23_000, 53_000, 120_000, 280_000, 640_000, 1_450_000)
COOLDOWN = 0.1
SEEDS = (0, 1, 2)
# The paper is reported to lose its law without these two (the tables were not found).
CLAIMED = ({"model.norm": "layer"}, {"model.residual": "raw"})
VARIANTS = (
    {"model.ffn": "relu"},
    {"model.attention_bias": False},
    {"model.af_net": False},
    {"model.alignment": False},
    {"model.gate_pool": "causal"},
    {"model.gate_pool": "behaviour"},
    {"model.target_aware": False},
)


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "gpu", "runlocal")
    c = quickstart.get_config("runlocal" if "runlocal" in words else "")
    if "runlocal" in words:
        return c
    c.title = "SUAN on The Complete Journey"
    del c.distill  # scaling.distill reads the finished sweep
    # The report shows what rates from 5e-4 to 8e-3 have on validation at grades 0 to 3.
    c.experiment.opt.lr = 1e-3
    c.experiment.train.microbatches = 4  # of 64 examples: activations stay in cache
    c.experiment.train.checkpoint_every = 1000
    c.experiment.eval.examples = 40_960
    c.experiment.eval.batch = 1024
    c.sweep = ConfigDict()
    c.sweep.members = 3  # trials of a grade that share a program: a quarter less time of a core
    c.sweep.lr_exponent = 0.5
    c.sweep.trials = gpu() if "gpu" in words else cpu()
    return c


def passes(
    grades: Sequence[str], seeds: Sequence[int], points: Sequence[int], **more: Any
) -> list[dict]:
    """Passes with cooldowns; `more` are keys of the rows."""
    one = {k: [v] for k, v in more.items()}
    return product(grade=grades, seed=seeds, examples=[points], cooldown=[COOLDOWN], **one)


def independent(grades: Sequence[str], seeds: Sequence[int], points: Sequence[int]) -> list[dict]:
    """Runs planned for their own length, with the cosine schedule most people would use, on nested subsets."""
    rows = product(grade=grades, seed=seeds, examples=[(n,) for n in points])
    return [{**r, "kind": "independent", "opt.schedule": "cosine"} for r in rows]


def rates(grades: Sequence[str], points: Sequence[int]) -> list[dict]:
    """Dense rates by validation: the rule is set at the smaller grades and checked at the others."""
    judged = {"eval.splits": [("validation_matched",)], "eval.final": [("validation_matched",)]}
    grid = {"opt.lr": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)}
    return product(grade=grades, seed=SEEDS, examples=[points], kind=["rate"], **judged, **grid)


def apart(grades: Sequence[str], seeds: Sequence[int], points: Sequence[int]) -> list[dict]:
    """The same on natural negatives, where popularity is most of the answer, without and with counters."""
    keys = {
        "data.train": "train",
        "eval.splits": ("test", "test_matched"),
        "eval.final": ("test", "test_matched"),
    }
    natural = passes(grades, seeds, points, kind="natural", **keys)
    return natural + passes(
        grades, seeds, points, kind="natural with counters", **keys, **{"data.counters": True}
    )


def cpu() -> tuple[dict, ...]:
    """In order of information for its cost; two and a half hours of two cores."""
    shapes = []
    for blocks in (1, 3, 4, 6):
        shapes += passes(("1",), (0, 1), POINTS[:4], blocks=blocks)
    for width in (8, 12, 16):
        shapes += passes(("1",), (0, 1), POINTS[:4], width=width)
    return tuple(
        chain(
            rates(("0", "1", "2"), POINTS[2:3]),
            passes(("0", "1"), SEEDS, POINTS),
            passes(("2",), (0,), POINTS),
            passes(("2",), (1, 2), POINTS[:5]),
            passes(("-1",), SEEDS, POINTS),
            rates(("3",), POINTS[2:3]),
            passes(("3",), SEEDS, POINTS[:5]),
            passes(("4",), SEEDS, POINTS[:4]),
            passes(("0",), SEEDS, POINTS[:5], history=50),
            passes(("0",), SEEDS, POINTS[:5], history=10),
            passes(("0",), SEEDS, POINTS[:5], history=100),
            independent(("0",), SEEDS, POINTS[:5:2]),
            apart(("0",), SEEDS, POINTS[:5]),
            shapes,
            passes(("0",), SEEDS, POINTS[:4], history=200),
            ablations(),
        )
    )


def ablations() -> list[dict]:
    """SUAN without its parts, beside the passes of the same grades."""
    parts = [passes(("0", "1"), SEEDS, POINTS[:5], **v) for v in CLAIMED]
    parts += [passes(("1",), SEEDS, POINTS[:5], **v) for v in VARIANTS]
    return chain(*parts)


def gpu() -> tuple[dict, ...]:
    """Four orders of magnitude in block parameters, history to 1000."""
    ladder = tuple(str(i) for i in range(-2, 8))
    return tuple(
        chain(
            rates(ladder, POINTS[2:3]),
            passes(ladder, SEEDS, POINTS),
            passes(("0", "2", "4"), SEEDS, POINTS, history=50),
            passes(("0", "2", "4"), SEEDS, POINTS, history=200),
            passes(("0", "2"), SEEDS, POINTS, history=1000),
            independent(("0", "2", "4"), SEEDS, POINTS[::2]),
            apart(("0", "2", "4"), SEEDS, POINTS),
        )
    )
