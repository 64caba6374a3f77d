"""NIF and AMEN on The Complete Journey with movelines: generator of weeks 1-34, CTR model of weeks 37-47 (matched negatives).

    python -m recjax.train --config=experiments/nif_complete_journey.py --workdir=runs/nif          # both stages
    python -m recjax.train --config=experiments/nif_complete_journey.py:flow --workdir=runs/flow    # the generator alone
    python -m recjax.train --config=experiments/nif_complete_journey.py:amen24 --workdir=runs/amen24

Arguments, joined by commas: `flow` (stage 1), `amen24` (no generator; TSP weighs 0.5), `codes` (the control whose targets are residual-
quantised codes), `disc2gen2disc` (a CTR model of weeks 1-36 comes first, and the generator begins from its tables),
`width=`, `layers=`, `heads=` of both stages and `examples=` of the one named (grades: scaling/configs/nif_complete_journey.py),
`runlocal` (stage 2 alone; with `both` after its generator). The decisive comparison, against the same model without the flow and with the shuffled flow:

    python -m experiments.nif_board --config=experiments/nif_complete_journey.py --seeds=3 --split=test_matched,test \\
        --set=train.recent=300000 --workdir=runs/nif_board_cj
"""

from ml_collections import ConfigDict

from experiments import nif_planted
from recjax import configs

FILE = "experiments/nif_complete_journey.py"
LISTS = dict(history=50, moveline=50, next=8, uniform=4, rejected=4)
SHORT = dict(history=8, moveline=8, next=8, uniform=4, rejected=4)
MODEL = dict(width=32, heads=2, layers=1, slots=8, user_key="household")
# What of a run a generator begins from in disc2gen2disc: the rows that both have.
SPACES = "product|category|type|department|scene|action|size"
ITEM = "product|category|type|department"
from_generator = nif_planted.from_generator


ARGUMENTS = (
    "flow", "codes", "disc2gen2disc", "plain", "amen24", "both", "runlocal",
    "width=", "layers=", "heads=", "examples=",
)  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """Stage 2, or what the arguments name (module docstring)."""
    parts = [p for p in arg.split(",") if p]
    configs.arguments(arg, *ARGUMENTS)
    given = dict(p.split("=") for p in parts if "=" in p)
    c = configs.base()
    c.data.name = "complete_journey_movelines"
    c.data.counters = False
    nif_planted.lists(c, SHORT if "runlocal" in parts else LISTS)
    c.model.update(MODEL)
    c.model.table = dict(dim=16, optimizer="lazy_adam", lr=3e-3)
    c.opt.lr = 1e-3
    c.opt.clip = 1.0
    c.model.update({k: int(given[k]) for k in ("width", "layers", "heads") if k in given})
    if "flow" in parts or "codes" in parts:
        flow(c, parts)
    elif "plain" in parts:
        amen(c, "")
        c.data.train = "train_early_matched"
    else:
        alone = "amen24" in parts or ("runlocal" in parts and "both" not in parts)
        amen(c, "" if alone else ":".join([FILE, ",".join(["flow", *parts])]))
        if "amen24" in parts:
            c.model.tsp = 0.5
    if "runlocal" in parts:
        runlocal(c)
    elif "examples" in given:
        c.train.examples = int(given["examples"])
    return c


def flow(c: ConfigDict, parts: list[str]) -> None:
    """Stage 1."""
    c.model.name = "nif"
    c.model.tau = 1.0  # the planted world's; at 0.1 nothing was learnt there
    # By validation: both regularisers ask of F the roughness of single shopping trips, which nobody can foresee.
    c.model.div_weight = c.model.vel_weight = 0.0
    c.data.train = "train_flow"
    c.train.batch = 128
    c.train.epochs = 2
    c.opt.schedule = "cosine"
    c.eval.batch = 256  # the pool of hr10 is a batch
    c.eval.examples = 10_240
    c.eval.splits = ("validation_flow",)
    c.eval.final = ("validation_flow", "test_flow")
    rest = ",".join(p for p in parts if p == "runlocal")
    if "disc2gen2disc" in parts:
        c.needs = (f"{FILE}:plain,{rest}".strip(","),)
        c.init_from = (("needs/0", rf"tables/({SPACES})/rows", r"tables/generator/\1/rows"),)
    if "codes" in parts:
        nif_planted.codes(c, FILE, ITEM, parts)


def amen(c: ConfigDict, generator: str) -> None:
    """Stage 2, of the generator that another config trains; "": without one."""
    c.model.name = "amen"
    c.model.head = (128, 64)
    c.model.flow = "nif" if generator else "none"
    c.model.tsp_window = 14 * 86_400.0  # a household shops every four days or so
    c.model.tsp_decay = 5 * 86_400.0
    c.data.train = "train_matched"
    c.train.batch = 512
    c.eval.splits = ("validation_matched",)
    c.eval.final = ("validation_matched", "test_matched", "test")
    if generator:
        c.needs = (generator,)
        c.init_from = from_generator("needs/0")


def runlocal(c: ConfigDict) -> None:
    nif_planted.short(c)
    c.data.prepare = dict(limit_households=60)
    c.train.examples = 512 if c.model.name == "nif" else 1_024
    c.train.epochs = 1
    c.train.batch = 64
    c.eval.examples = 512
    c.eval.batch = 128
    if c.model.name == "amen":
        c.eval.final = ("validation_matched", "test")
