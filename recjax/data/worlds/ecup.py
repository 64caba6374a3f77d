"""The planted trial of ECUP: four doses that change clicks and conversions differently from person to person.

    x ~ N(0, I_20); 27.7 % in control, the rest equally in arms 1-4
    logit CTR       = a + 0.8 x1 + s_t (0.5 + 0.6 x2),  s = 0, .3, .6, .9, 1.2
    logit CVR|click = b + 0.7 x3 + r_t (0.2 + 0.8 x4),  r = 0, .2, .4, .6, .8

a = -1.3169 and b = -2.0778 give the control of the published figures of MT-LIFT (click 23.75 %, conversion 3.07 %).
The oracle, `python -m recjax.data.worlds.ecup` (4 M people): TRUTH.

`chain` is the golden case of chain bias: half the people (H) always click and convert with 0.5; the others (L) click only
with the coupon and convert with 0.1. Among clicks the coupon looks harmful, -0.20; over the chain it is worth +0.05.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
import polars as pl

from recjax.data.store.writing import write_prepared
from recjax.schema import NUM_RESERVED, Feature, IdSpace, Schema, padded_rows, spread

VERSION = "1.0.0"
A, B = -1.3169, -2.0778
S = np.array([0.0, 0.3, 0.6, 0.9, 1.2])
R = np.array([0.0, 0.2, 0.4, 0.6, 0.8])
CONTROL = 0.277
NUMBERS = 20
TRUTH = {
    "ctr": (0.2375, 0.2638, 0.2935, 0.3254, 0.3584),
    "ctcvr": (0.0307, 0.0355, 0.0416, 0.0491, 0.0580),
}


@dataclasses.dataclass(frozen=True)
class World:
    """A trial; the same values make the same one.

    Attributes:
      people: Over all splits: train, a tenth of them for validation and half of them again for test.
      null: No arm does anything: s = r = 0.
      chain: The golden case of chain bias instead, two arms and one number (+1 H, -1 L).
      confounded: How strongly x1 draws people into higher arms: a log, not a trial.
      shuffled: The arm of everybody is somebody else's: the control.
      seed: Of everything.
    """

    people: int = 200_000
    null: bool = False
    chain: bool = False
    confounded: float = 0.0
    shuffled: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Drawn:
    """People: x [N, K], arm [N], click and conversion [N], and the truth ctr, ctcvr [N, arms]."""

    x: np.ndarray
    arm: np.ndarray
    click: np.ndarray
    conversion: np.ndarray
    ctr: np.ndarray
    ctcvr: np.ndarray

    def rows(self, part: slice) -> "Drawn":
        return Drawn(*(getattr(self, f.name)[part] for f in dataclasses.fields(self)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def levels(x: np.ndarray, null: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """True CTR and CVR of people x [N, 20] under every arm, [N, 5] each."""
    s, r = (0 * S, 0 * R) if null else (S, R)
    ctr = A + 0.8 * x[:, :1] + s * (0.5 + 0.6 * x[:, 1:2])
    cvr = B + 0.7 * x[:, 2:3] + r * (0.2 + 0.8 * x[:, 3:4])
    return sigmoid(ctr), sigmoid(cvr)


def draw(world: World, people: int | None = None) -> Drawn:
    """`people` of the world (default: all)."""
    n = people or world.people
    rng = np.random.default_rng(world.seed)
    if world.chain:
        high = rng.random(n) < 0.5
        x = np.where(high, 1.0, -1.0)[:, None]
        ctr = np.stack([high, np.ones(n)], 1).astype(float)
        cvr = np.repeat(np.where(high, 0.5, 0.1)[:, None], 2, 1)
        shares = np.array([0.5, 0.5])
    else:
        x = rng.normal(size=(n, NUMBERS))
        ctr, cvr = levels(x, world.null)
        shares = np.array([CONTROL, *[(1 - CONTROL) / 4] * 4])
    odds = np.log(shares) + world.confounded * x[:, :1] * np.arange(len(shares))
    arm = (odds + rng.gumbel(size=odds.shape)).argmax(1)
    rows = np.arange(n)
    click = rng.random(n) < ctr[rows, arm]
    conversion = click & (rng.random(n) < cvr[rows, arm])
    arm = rng.permutation(arm) if world.shuffled else arm
    return Drawn(x.astype(np.float32), arm, click, conversion, ctr, ctr * cvr)


def parts(world: World) -> dict[str, slice]:
    """Rows of each split among `people` + a tenth + a half."""
    n = world.people
    ends = np.cumsum([0, n, n // 10, n // 2])
    names = ("train", "validation", "test")
    return {k: slice(int(lo), int(hi)) for k, lo, hi in zip(names, ends, ends[1:], strict=False)}


def whole(world: World) -> Drawn:
    """Everybody, all splits."""
    return draw(world, max(p.stop for p in parts(world).values()))


def prepare(out_dir: str | os.PathLike, *, source: str = "", **world: Any) -> pathlib.Path:
    """Writes a world (`world`: fields of `World`) as prepared data, returns the directory."""
    del source  # nothing is read
    planted = World(**world)
    drawn = whole(planted)
    arms = drawn.ctr.shape[1]
    ids = spread(np.arange(arms), padded_rows(arms + NUM_RESERVED))
    columns = {f"x{i + 1}": drawn.x[:, i] for i in range(drawn.x.shape[1])}
    columns |= {
        "treatment": ids[drawn.arm].astype(np.int32),
        "click": drawn.click.astype(np.float32),
        "conversion": drawn.conversion.astype(np.float32),
        "time": np.zeros(len(drawn.arm), np.int64),
    }
    schema = Schema(
        (IdSpace("treatment", arms + NUM_RESERVED),),
        (
            *(Feature(f"x{i + 1}", "profile") for i in range(drawn.x.shape[1])),
            Feature("treatment", "treatment", "treatment"),
            Feature("click", "label"),
            Feature("conversion", "label"),
        ),
    )
    counts = np.bincount(drawn.arm, minlength=arms)
    values = [f"arm {t}" for t in range(arms)]
    vocab = {"treatment": pl.DataFrame({"value": values, "id": ids, "count": counts})}
    splits = {k: {n: x[p] for n, x in columns.items()} for k, p in parts(planted).items()}
    return write_prepared(
        out_dir,
        "synthetic_trial",
        schema,
        {},
        splits,
        vocab=vocab,
        report={"truth": "recjax.data.worlds.ecup.levels"},
        options=dataclasses.asdict(planted),
        version=VERSION,
        seed=planted.seed,
    )


def pehe(tau: np.ndarray, truth: np.ndarray) -> float:
    """Root mean squared error of effects."""
    return float(np.sqrt(((tau - truth) ** 2).mean()))


def main() -> None:
    x = np.random.default_rng(0).normal(size=(4_000_000, 4))
    ctr, cvr = levels(x)
    for name, p in {"ctr": ctr, "ctcvr": ctr * cvr}.items():
        tau = p[:, 1:] - p[:, :1]
        print(name, p.mean(0).round(4), "effects", tau.mean(0).round(4), end=" ")
        print("negative", (tau < 0).mean(0).round(3))


if __name__ == "__main__":
    main()
