"""A planted world for NIF: an intent wanders on a sphere; scenes show it at once, clicks later.

    g          latent intent on S^15: each step 0.15 rad along its heading, which is transported with it, or with
               probability 0.15 a jump of 0.8 rad in a fresh direction
    scene      one event a step, softmax(<g, prototype> / 0.2) over 12 scenes
    list       1 to 3 steps after each scene event, `shown` items, uniform of 200; for item x
               logit = slope <g, x> + match [the item's scene is that of the causing event] + bias

An item's scene is the nearest of the 12 prototypes, its category the nearest of 20 others. A step is 12 hours. The stages
are apart in time: steps 0 to 31 are stage 1's (the last four validate it), 32 to 51 train stage 2, 52 to 55 validate it, 56 to 63 test.

The form is that of NIF's specification, whose constants (slope 6, match 1.5, bias -3) were kept, because the oracle, the planted
logit, has a test AUC in the wanted 0.75 to 0.85: 0.848 and 0.846 in seeds 0 and 1, measured before any model was run (with 500
items), at a click rate of 0.113. The intent alone has 0.831 and 0.830, the match alone 0.596 and 0.593, an item's clicks in all days
before 0.499 and 0.507. The number of items, 200, is the specification's least; it was lowered from 500 after a first run of the
generator, and moves none of these figures by more than its noise (tests/data/worlds/test_planted_worlds.py).

`label="shuffled"` permutes the clicks of stage 2's splits within each split (the control of the pair losses); histories, movelines
and stage 1 stay.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
import polars as pl

from recjax.data.store import movelines
from recjax.data.store.histories import build_timelines, cutoffs
from recjax.data.store.writing import write_prepared
from recjax.data.worlds.requests import EPOCH, space
from recjax.schema import NUM_RESERVED, Feature, Schema

STEP = 43_200  # seconds
DIM, SCENES, CATEGORIES = 16, 12, 20
# split -> (stage, first step, past the last): 1 the generator's, 2 the CTR model's, 3 judging
STEPS = {
    "train_flow": (1, 2, 28),
    "validation_flow": (1, 28, 32),
    "train_early": (1, 2, 32),
    "train": (2, 32, 52),
    "validation": (3, 52, 56),
    "test": (3, 56, 64),
    "test_flow": (3, 56, 64),
}
LAST = 64
VERSION = "1.0.0"
LABELS = ("click", "shuffled")
ITEM = {"item": "item", "category": "category", "scene": "scene"}  # an item's fields


@dataclasses.dataclass(frozen=True)
class World:
    """Sizes and constants.

    Attributes:
      users, items: Their numbers.
      shown: Items of a list.
      turn, jump, jump_odds: Radians of a step and of a jump, and the probability of a jump.
      temperature: Of the scenes.
      slope, match, bias: Of the logit.
      overlap: Stage 1 goes on through stage 2's days (the ablation that measures the leak).
      label: Of `LABELS`.
      seed: Of everything.
    """

    users: int = 1_500
    items: int = 200
    shown: int = 5
    turn: float = 0.15
    jump: float = 0.8
    jump_odds: float = 0.15
    temperature: float = 0.2
    slope: float = 6.0
    match: float = 1.5
    bias: float = -3.0
    overlap: bool = False
    label: str = "click"
    seed: int = 0

    def __post_init__(self):
        if self.label not in LABELS:
            raise ValueError(f"label={self.label!r} is not one of {', '.join(LABELS)}")


@dataclasses.dataclass(frozen=True)
class Truth:
    """What was planted.

    Attributes:
      intent: g of every user and step [U, LAST, 16].
      scene: Of each user's and step's event [U, LAST].
      points: Items [I, 16].
      item_scene, item_category: [I].
      user, step, item, cause, logit, click: Of each impression [N], by time; `cause` is the scene that caused it.
      list: Number of its list.
    """

    intent: np.ndarray
    scene: np.ndarray
    points: np.ndarray
    item_scene: np.ndarray
    item_category: np.ndarray
    user: np.ndarray
    step: np.ndarray
    item: np.ndarray
    cause: np.ndarray
    logit: np.ndarray
    click: np.ndarray
    list: np.ndarray


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def tangent(rng: np.random.Generator, g: np.ndarray) -> np.ndarray:
    """A uniform unit tangent at each g."""
    v = rng.normal(size=g.shape)
    return unit(v - (v * g).sum(-1, keepdims=True) * g)


def walk(world: World, rng: np.random.Generator) -> np.ndarray:
    """Intents [U, LAST, 16]."""
    g = unit(rng.normal(size=(world.users, DIM)))
    heading, out = tangent(rng, g), []
    for _ in range(LAST):
        out.append(g)
        jumps = rng.random(world.users) < world.jump_odds
        heading = np.where(jumps[:, None], tangent(rng, g), heading)
        angle = np.where(jumps, world.jump, world.turn)[:, None]
        # along a geodesic its own direction is carried to -sin g + cos heading
        g, heading = (
            np.cos(angle) * g + np.sin(angle) * heading,
            np.cos(angle) * heading - np.sin(angle) * g,
        )
    return np.stack(out, axis=1)


def sample(world: World) -> Truth:
    """The world."""
    rng = np.random.default_rng(world.seed)
    prototypes, centers = (unit(rng.normal(size=(n, DIM))) for n in (SCENES, CATEGORIES))
    points = unit(rng.normal(size=(world.items, DIM)))
    item_scene = (points @ prototypes.T).argmax(1)
    g = walk(world, rng)
    odds = np.cumsum(np.exp(g @ prototypes.T / world.temperature), axis=-1)
    scene = (odds < rng.random((*g.shape[:2], 1)) * odds[..., -1:]).sum(-1)
    step = np.arange(LAST) + rng.integers(1, 4, (world.users, LAST))
    user, cause_step = np.nonzero(step < LAST)
    step = step[user, cause_step]
    order = np.lexsort((user, step))
    user, step, cause = user[order], step[order], scene[user, cause_step][order]
    n = len(user) * world.shown
    user, step, cause, number = (
        np.repeat(x, world.shown) for x in (user, step, cause, np.arange(len(user)))
    )
    item = rng.integers(world.items, size=n)
    logit = world.slope * (g[user, step] * points[item]).sum(1) + world.bias
    logit += world.match * (item_scene[item] == cause)
    click = rng.random(n) < 1 / (1 + np.exp(-logit))
    category = (points @ centers.T).argmax(1)
    return Truth(
        g, scene, points, item_scene, category, user, step, item, cause, logit, click, number
    )


def schema(world: World) -> Schema:
    """Item, its category and scene; clicked items; scene events; the target lists."""
    sizes = {"item": world.items, "category": CATEGORIES, "scene": SCENES}
    return Schema(
        tuple(space(k, n) for k, n in sizes.items()),
        (
            *(Feature(k, "candidate", s) for k, s in ITEM.items()),
            *(
                Feature(f"hist_{k}", "history", ITEM[k], list="history")
                for k in ("item", "category")
            ),
            Feature("event_scene", "moveline", "scene", list="moveline"),
            *movelines.features({k: ITEM[k] for k in ("item", "category")}),
            Feature("click", "label"),
            Feature("oracle", "label"),
        ),
        groups=("list", "user", "second", "cutoff"),
    )


def windows(world: World) -> dict[str, movelines.Window]:
    """When each split is."""
    at = lambda step: EPOCH + step * STEP  # noqa: E731
    out = {s: movelines.Window(stage, at(a), at(b)) for s, (stage, a, b) in STEPS.items()}
    if world.overlap:
        long = dataclasses.replace(out["train_flow"], end=at(STEPS["train"][2]))
        out |= {"train_flow": long}
    return out


def prepare(out_dir: str | os.PathLike, *, source: str = "", **world: Any) -> pathlib.Path:
    """Makes a world (`world`: fields of `World`), writes it as prepared data, returns the directory."""
    del source  # nothing is read
    planted = World(**world)
    t, when = sample(planted), windows(planted)
    parts = Parts.of(planted, t)
    rng = np.random.default_rng([planted.seed, 1])
    rows = {split: choose(t, w, split, rng) for split, w in when.items()}
    flows = {s: r for s, r in rows.items() if s.endswith("flow")}
    drawn = {s: movelines.uniform(parts.items, rng, len(r)) for s, r in flows.items()}
    shown = {s: movelines.rejected(parts.items, *unclicked(t, r), len(r)) for s, r in flows.items()}
    lists, targets = {}, {s: {} for s in flows}
    for name, made in (("uniform", drawn), ("rejected", shown)):
        lists[name], columns = movelines.joined(made, name)
        for split, more in columns.items():
            targets[split] |= more
    splits = {
        s: parts.columns(planted, r, s, when[s], rng, targets.get(s)) for s, r in rows.items()
    }
    return write_prepared(
        out_dir,
        "planted_nif",
        schema(planted),
        {k: [v] for k, v in (parts.timelines | lists).items()},
        splits,
        vocab=vocabulary(planted),
        options=dataclasses.asdict(planted),
        facts={
            "stages": {s: dataclasses.asdict(w) for s, w in when.items()},
            "overlap": planted.overlap,
        },
        version=VERSION,
        unit="request",
        seed=planted.seed,
    )


def choose(t: Truth, w: movelines.Window, split: str, rng: np.random.Generator) -> np.ndarray:
    """Impressions of a split; of the flow's splits one for each user and step: its cut-off."""
    time = EPOCH + t.step * STEP
    rows = np.flatnonzero((time >= w.begin) & (time < w.end))
    if not split.endswith("flow"):
        return rows
    rows = rng.permutation(rows)
    _, first = np.unique(t.user[rows] * LAST + t.step[rows], return_index=True)
    return np.sort(rows[first])


def unclicked(t: Truth, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place in rows, item) of what was shown in the rows' lists and not clicked."""
    order = np.argsort(t.list[rows])
    at = np.searchsorted(t.list[rows][order], t.list)
    found = order[np.minimum(at, len(rows) - 1)]
    beside = np.flatnonzero((t.list[rows][found] == t.list) & ~t.click)
    return found[beside], t.item[beside]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the columns of a split are made of."""

    truth: Truth
    items: movelines.Items
    clicks: Any
    moves: Any
    ahead: Any

    @classmethod
    def of(cls, world: World, t: Truth) -> "Parts":
        codes = {
            "item": np.arange(world.items),
            "category": t.item_category,
            "scene": t.item_scene,
        }
        ids = {k: (NUM_RESERVED + x).astype(np.int32) for k, x in codes.items()}
        early = t.click & (t.step < STEPS["train_flow"][2])
        counts = np.bincount(t.item[early], minlength=world.items)
        fields = {k: ids[k] for k in ("item", "category")}
        items = movelines.Items(
            fields, (counts / counts.sum()).astype(np.float32), np.arange(world.items)
        )
        time = EPOCH + t.step * STEP
        user, when, item = t.user[t.click], time[t.click], t.item[t.click]
        past = {f"hist_{k}": x[item] for k, x in fields.items()}
        who, step = np.divmod(np.arange(t.scene.size), LAST)
        scenes = {"event_scene": (NUM_RESERVED + t.scene.ravel()).astype(np.int32)}
        return cls(
            t,
            items,
            build_timelines(user, when, past, world.users),
            build_timelines(who, EPOCH + step * STEP, scenes, world.users),
            movelines.positives(items, user, when, item, world.users),
        )

    @property
    def timelines(self) -> dict[str, Mapping[str, np.ndarray]]:
        lines = {"history": self.clicks[0], "moveline": self.moves[0], "next": self.ahead}
        return {k: line.columns for k, line in lines.items()}

    def columns(self, world, rows, split, window, rng, targets) -> dict[str, np.ndarray]:
        """Of a split's rows; `targets` are those of its drawn lists, None for impressions."""
        t = self.truth
        user, time, item = t.user[rows], EPOCH + t.step[rows] * STEP, t.item[rows]
        past, moved = cutoffs(self.clicks, user, time), cutoffs(self.moves, user, time)
        click = t.click[rows]
        if world.label == "shuffled" and window.stage > 1:
            click = rng.permutation(click)
        kinds = {"item": item, "category": t.item_category[item], "scene": t.item_scene[item]}
        out = {k: (NUM_RESERVED + x).astype(np.int32) for k, x in kinds.items()}
        out |= {
            "time": time,
            "history/end": past["end"],
            "history/count": past["count"],
            "moveline/end": moved["end"],
            "moveline/count": moved["count"],
            "click": click.astype(np.float32),
            "oracle": t.logit[rows].astype(np.float32),
            "list": t.list[rows],
            "user": user,
            "second": time - EPOCH,
            "cutoff": moved["count"],
        }
        return out | movelines.reading(self.ahead, user, time, window.end, targets, rng)


def vocabulary(world: World) -> dict[str, pl.DataFrame]:
    """Every id as its own value, so that rows travel between worlds of one size by key."""
    out = {}
    for s in schema(world).id_spaces:
        ids = np.arange(NUM_RESERVED, s.size)
        out[s.name] = pl.DataFrame({"value": ids.astype(str), "id": ids, "count": 1})
    return out
