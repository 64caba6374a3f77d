"""NIF and AMEN on their planted world: an intent that wanders, scenes that show it (recjax/data/worlds/nif.py).

    python -m recjax.train --config=experiments/nif_planted.py --workdir=runs/nif_planted            # both stages
    python -m recjax.train --config=experiments/nif_planted.py:flow --workdir=runs/nif_planted_flow  # the generator alone
    python -m recjax.train --config=experiments/nif_planted.py:codes --workdir=runs/nif_planted_codes  # the control with codes

The comparison that decides, against AMEN with the same initialisation and no flow, with the shuffled flow as control, six seeds
that share a generator (recjax/models/README.md has the figures):

    python -m experiments.nif_board --config=experiments/nif_planted.py --seeds=6 --workdir=runs/nif_board
"""

from ml_collections import ConfigDict

from recjax import configs

FILE = "experiments/nif_planted.py"
# Short: from long lists a generator learns users by heart before it learns the world (recjax/models/README.md).
LISTS = dict(history=1, moveline=3, next=4, uniform=4, rejected=4)
MODEL = dict(width=32, heads=2, layers=2, slots=4)


def get_config(arg: str = "") -> ConfigDict:
    """Stage 2, or stage 1 for "flow" and "codes"; "none" is stage 2 without a generator; each with ",runlocal"."""
    parts = [p for p in arg.split(",") if p]
    configs.arguments(arg, "flow", "codes", "none", "runlocal")
    c = configs.base()
    c.data.name = "worlds.nif"
    c.data.prepare = dict(users=12_000)
    lists(c, LISTS)
    c.model.update(MODEL)
    c.model.table = dict(dim=16, optimizer="lazy_adam", lr=1e-2)
    c.opt.lr = 3e-3
    c.opt.clip = 1.0
    if "flow" in parts or "codes" in parts:
        flow(c)
        if "codes" in parts:
            codes(c, FILE, "item", parts)
    else:
        amen(c, "" if "none" in parts else ":".join([FILE, ",".join(["flow", *parts])]))
    if "runlocal" in parts:
        c.data.prepare = dict(users=40)
        short(c)
        c.train.examples = min(c.train.examples or 1_024, 1_024)
        c.train.epochs = 1
        c.train.batch = 64
        c.eval.examples = 512
    return c


def lists(c: ConfigDict, lengths: dict[str, int]) -> None:
    """Events read of each list; `next` is the flow's length."""
    with c.ignore_type():
        c.data.history = ConfigDict(lengths)


def short(c: ConfigDict) -> None:
    """A flow of two slots compiles in a third of the time."""
    c.model.slots = 2
    c.data.history.next = 2


def flow(c: ConfigDict) -> None:
    """Stage 1: the generator."""
    c.model.name = "nif"
    # At the specification's 0.1 the noise of random unit vectors is 2.5 nats, and the signal a third of that.
    c.model.tau = 1.0
    c.data.train = "train_flow"
    c.train.batch = 128  # the cost of the in-batch softmax grows with its square
    c.opt.schedule = "cosine"
    c.eval.batch = 256  # the pool of hr10 is a batch
    c.eval.splits = ("validation_flow",)
    c.eval.examples = 20_480
    c.eval.final = ("validation_flow", "test_flow")


def codes(c: ConfigDict, file: str, spaces: str, parts: list[str]) -> None:
    """The control: what a finished generator of `file` calls an item's point, `spaces` its ids, is quantised and to be named."""
    c.model.target = "codes"
    c.needs = (":".join([file, ",".join(["flow", *(p for p in parts if p == "runlocal")])]),)
    c.init_from = (
        ("needs/0", r"dense/(.*)", r"frozen/target/\1"),
        ("needs/0", rf"tables/generator/({spaces})/rows", r"tables/target/\1/rows"),
    )


def amen(c: ConfigDict, generator: str) -> None:
    """Stage 2: the CTR model, of the generator that another config trains; "": without one."""
    c.model.name = "amen"
    c.model.head = (64, 32)
    c.model.flow = "nif" if generator else "none"
    c.train.batch = 256
    c.train.examples = 200_000
    c.eval.batch = 1024
    c.eval.examples = 100_000
    c.eval.final = ("validation", "test")
    if generator:
        c.needs = (generator,)
        c.init_from = from_generator("needs/0")


def from_generator(run: str, flow: bool = True, weights: bool = True, begin: str = "") -> tuple:
    """init_from: the frozen generator of `run` (`flow`), and encoders and tables as AMEN's own beginning (`weights`: gen2disc), of
    the same run unless `begin` names another."""
    frozen = (
        (run, r"dense/(?!naming)(.*)", r"frozen/generator/\1"),
        (run, r"tables/(generator/\w+/rows)", r"tables/\1"),
    )
    tower = "" if flow else "(?!tower)"  # AMEN has it for the flow alone
    own = (
        (begin or run, rf"dense/(encoders/{tower}.*)", r"dense/\1"),
        (begin or run, r"tables/generator/(\w+/rows)", r"tables/\1"),
    )
    return (frozen if flow else ()) + (own if weights else ())
