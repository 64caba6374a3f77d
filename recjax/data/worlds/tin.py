"""A planted world for TIN: same-category behaviours matter, and the less the longer ago.

    logit = bias + sum over positions p of strength exp(-(p - 1) / decay) [category of p is the target's]

p = 1 is the most recent event. Histories are uniform over categories; the target's category is copied from the history
with probability `copy`, else uniform; items are uniform within their category. An event at position p lies 2^p - 1/2
hours before the request, so position and (log-scaled) time interval say the same. Neither the history alone nor the
target alone says anything, and without positions a model sees only how often the target's category occurs.

The constants are those of TIN's specification; what the oracle (the planted logit, stored as the label `oracle`, which no
model reads) makes of them was measured before any model was run, on 120,000 requests: click rate 0.387, AUC 0.784 (the
Bayes optimum; the specification's prototype had 0.388 and 0.780 on 20,000), 0.665 of the number of same-category events
alone (what positions are worth), mutual information of click and same category at positions 1 to 4: 0.120, 0.053, 0.016,
0.004 bits, of another category 0.0002 on average (tests/data/worlds/test_planted_worlds.py).
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from recjax.data.worlds.requests import LIST, Requests, space, write_requests
from recjax.schema import NUM_RESERVED, Feature, Schema

LABELS = ("click", "shuffled")  # what `World.label` may name


@dataclasses.dataclass(frozen=True)
class World:
    """Sizes and constants.

    Attributes:
      categories, items: Number of categories, and of items in each.
      events: Length of every history.
      copy: Probability that the target's category comes from the history.
      bias, strength, decay: Of the logit.
      train, validation, test: Requests of each split.
      label: "click", or "shuffled" (the control: clicks permuted within a split).
      seed: Of everything.
    """

    categories: int = 20
    items: int = 10
    events: int = 10
    copy: float = 0.6
    bias: float = -1.5
    strength: float = 4.0
    decay: float = 2.0
    train: int = 120_000
    validation: int = 20_000
    test: int = 20_000
    label: str = "click"
    seed: int = 0

    def __post_init__(self):
        if self.label not in LABELS:
            raise ValueError(f"label={self.label!r} is not one of {', '.join(LABELS)}")


def schema(world: World) -> Schema:
    """Item and category of the candidate and of the events."""
    fields = ("item", "category")
    sizes = {"item": world.categories * world.items, "category": world.categories}
    return Schema(
        tuple(space(f, sizes[f]) for f in fields),
        (
            *(Feature(f, "candidate", f) for f in fields),
            *(Feature(f"hist_{f}", "history", f, list=LIST) for f in fields),
            Feature("click", "label"),
            Feature("oracle", "label"),
        ),
        groups=("request_key",),
    )


def weights(world: World) -> np.ndarray:
    """What an event of the target's category adds to the logit, oldest position first, [L]."""
    position = np.arange(world.events, 0, -1)
    return world.strength * np.exp(-(position - 1) / world.decay)


def sample(world: World, n: int, rng: np.random.Generator) -> Requests:
    """n requests; ids start after the reserved ones."""
    past = rng.integers(world.categories, size=(n, world.events))
    copied = past[np.arange(n), rng.integers(world.events, size=n)]
    target = np.where(rng.random(n) < world.copy, copied, rng.integers(world.categories, size=n))
    logit = world.bias + ((past == target[:, None]) * weights(world)).sum(1)
    click = rng.random(n) < 1 / (1 + np.exp(-logit))
    if world.label == "shuffled":
        click = rng.permutation(click)

    def item(category):
        return category * world.items + rng.integers(world.items, size=category.shape)

    hours = 2.0 ** np.arange(world.events, 0, -1) - 0.5
    return Requests(
        columns={
            "item": NUM_RESERVED + item(target),
            "category": NUM_RESERVED + target,
            "click": click.astype(np.float32),
            "oracle": logit.astype(np.float32),
            "request_key": np.arange(n),
        },
        events={"hist_item": NUM_RESERVED + item(past), "hist_category": NUM_RESERVED + past},
        age=np.broadcast_to((3600 * hours).astype(np.int64), past.shape),
        length=np.full(n, world.events),
    )


def prepare(out_dir: str | os.PathLike, *, source: str = "", **world: Any) -> pathlib.Path:
    """Makes a world (`world`: fields of `World`), writes it as prepared data, returns the directory."""
    del source  # nothing is read
    planted = World(**world)
    rng = np.random.default_rng(planted.seed)
    sizes = {s: getattr(planted, s) for s in ("train", "validation", "test")}
    splits = {split: sample(planted, n, rng) for split, n in sizes.items()}
    options = dataclasses.asdict(planted)
    return write_requests(out_dir, "planted_tin", schema(planted), splits, options)
