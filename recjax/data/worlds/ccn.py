"""A planted world for CCN: taste belongs to (user, trigger), and pages of a scenario never seen come at the end.

    w_c = a_s A u + (1 - a_s) B g + u * g          preference axis of user u under trigger g in scenario s
    logit of item x on page p = w_c . x + base_s + page_p,   page_p ~ N(0, 1)

u, g, x and their features are vectors without ids: u, g ~ N(0, 1)^k; A, B are fixed rotations; x ~ N(tilt_s, 1)^k with tilt_s ~
N(0, tilt^2), the scenario's supply; base_s ~ N(-1, 1/4); a_s in [0.2, 0.8] is the share of entries not due to the trigger. A model sees u,
g and x with `noise` added, and the scenario as an id, which CCN leaves out. page_p is seen by nobody: within a page it is common to
all items, so it cancels in pairs. Every page has its own user and trigger. Scenarios 0 .. scenarios - 1 are trained on; the
last, number `scenarios`, is only in the split "test_unseen".

The form and the page length are CCN's specification's (section 6, "ours"), sizes and rotations this file's. Labels no model is
given: `oracle` (the planted logit), `shuffled` (the clicks permuted within each page: the control for the pair losses),
`trigger_axis` and `user_axis` (what one side of the condition alone says).

What the oracle makes of the constants, measured before any model ran, 5,000 pages in each of 6 worlds: clicks 0.389 to 0.413 (unseen
scenario 0.328 to 0.422); AUC of the planted logit 0.935 to 0.944, its page-GAUC 0.911 to 0.926 on seen and 0.916 to 0.925 on the unseen
scenario (the bound; the specification's prototype had 0.91); of shuffled clicks 0.494 to 0.506. Trigger dependency: the page-GAUC of the
trigger alone falls from 0.76 to 0.67 to 0.56 as a_s goes from 0.2 to 0.5 to 0.8, that of the user alone rises the same way
(tests/data/worlds/test_planted_worlds.py).
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from recjax.data.store.pages import pair_counts
from recjax.data.store.writing import write_prepared
from recjax.data.worlds.requests import EPOCH, space
from recjax.schema import NUM_RESERVED, Feature, Schema

LABELS = ("click", "oracle", "shuffled", "user_axis", "trigger_axis")


@dataclasses.dataclass(frozen=True)
class World:
    """Sizes and constants.

    Attributes:
      scenarios: Trained on; one more is held out.
      items: Of every page.
      width: k.
      noise: Standard deviation of what is added to the features.
      tilt: Of the scenarios' supplies.
      page: Standard deviation of a page's own intercept.
      own: a_s of every scenario, or negative: drawn uniformly from [0.2, 0.8].
      train, validation, test: Pages of each split; "test_unseen" has as many as "test".
      seed: Of everything.
    """

    scenarios: int = 12
    items: int = 8
    width: int = 8
    noise: float = 0.3
    tilt: float = 0.5
    page: float = 1.0
    own: float = -1.0
    train: int = 2_000
    validation: int = 1_000
    test: int = 2_000
    seed: int = 0

    def __post_init__(self):
        if self.own > 1:
            raise ValueError(f"own={self.own} is no share; give 0 to 1, or -1 to draw it")
        if self.items < 2:
            raise ValueError(f"items={self.items}: a page without pairs teaches nothing here")


@dataclasses.dataclass(frozen=True)
class Truth:
    """What a seed fixes: rotations A and B [k, k], and of each scenario a_s [S], base [S] and tilt [S, k]."""

    a: np.ndarray
    b: np.ndarray
    own: np.ndarray
    base: np.ndarray
    tilt: np.ndarray


def truth(world: World, rng: np.random.Generator) -> Truth:
    """Draws the fixed part of a world."""
    k, s = world.width, world.scenarios + 1
    a, b = (np.linalg.qr(rng.normal(size=(k, k)))[0] for _ in range(2))
    own = rng.uniform(0.2, 0.8, s)
    base, tilt = rng.normal(-1.0, 0.5, s), rng.normal(0.0, world.tilt, (s, k))
    return Truth(a, b, own if world.own < 0 else np.full(s, world.own), base, tilt)


def sample(
    world: World, t: Truth, scene: np.ndarray, rng: np.random.Generator, first_page: int = 0
) -> dict[str, np.ndarray]:
    """Columns of pages [P] of the given scenarios: P * items rows, rows of a page together."""
    pages, n = len(scene), world.items
    u, g = rng.normal(size=(2, pages, world.width))
    x = t.tilt[scene][:, None] + rng.normal(size=(pages, n, world.width))
    share = t.own[scene][:, None]
    sides = share * u @ t.a.T, (1 - share) * g @ t.b.T
    of_user, of_trigger, of_both = (np.einsum("pk,pnk->pn", w, x) for w in (*sides, u * g))
    common = (t.base[scene] + world.page * rng.normal(size=pages))[:, None]
    logit = of_user + of_trigger + of_both + common
    click = rng.random(logit.shape) < 1 / (1 + np.exp(-logit))
    seen = [v + world.noise * rng.normal(size=v.shape) for v in (u, g, x)]
    per_page = {
        "user": seen[0],
        "trigger_item": seen[1],
        "scene": NUM_RESERVED + scene,
        "page": first_page + np.arange(pages),
        "time": EPOCH + first_page + np.arange(pages, dtype=np.int64),
    }
    columns = {name: np.repeat(v, n, axis=0) for name, v in per_page.items()}
    labels = (click, logit, rng.permuted(click, axis=1), of_user, of_trigger)
    columns |= {k: v.reshape(-1).astype(np.float32) for k, v in zip(LABELS, labels, strict=True)}
    columns |= {"item": seen[2].reshape(-1, world.width), "request": columns["page"]}
    floats = ("user", "trigger_item", "item")
    return columns | {k: columns[k].astype(np.float32) for k in floats}


def schema(world: World) -> Schema:
    """Vectors of user, trigger and item; the scenario; the labels."""
    return Schema(
        (space("scene", world.scenarios + 1),),
        (
            Feature("user", "profile", vector=world.width),
            Feature("trigger_item", "trigger", vector=world.width),
            Feature("scene", "context", "scene"),
            Feature("item", "candidate", vector=world.width),
            *(Feature(name, "label") for name in LABELS),
        ),
        groups=("page",),
    )


def splits(world: World) -> dict[str, dict[str, np.ndarray]]:
    """Columns of every split."""
    rng = np.random.default_rng(world.seed)
    fixed, out, pages = truth(world, rng), {}, 0
    sizes = {s: getattr(world, s) for s in ("train", "validation", "test")}
    for split, size in {**sizes, "test_unseen": world.test}.items():
        unseen = split == "test_unseen"
        scene = rng.integers(world.scenarios, size=size) * (not unseen) + world.scenarios * unseen
        out[split] = sample(world, fixed, scene, rng, pages)
        pages += size
    return out


def prepare(out_dir: str | os.PathLike, *, source: str = "", **world: Any) -> pathlib.Path:
    """Makes a world (`world`: fields of `World`), writes it as prepared data, returns the directory."""
    del source  # nothing is read
    planted = World(**world)
    columns = splits(planted)
    return write_prepared(
        out_dir,
        "planted_ccn",
        schema(planted),
        {},
        columns,
        report={"pairs": {s: pair_counts(c["page"], c["click"]) for s, c in columns.items()}},
        options=dataclasses.asdict(planted),
        unit="request",
    )
