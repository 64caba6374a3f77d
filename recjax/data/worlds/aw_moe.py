"""A planted world for AW-MoE: how features interact depends on a taste that only the history shows.

    label ~ Bernoulli(sigmoid(interaction s x1 x2 + linear x3)),  s in {-1, +1}

x1, x2, x3 are standard normal numbers of the candidate; s is the user's taste, seen in nothing but the categories of past
events: each is drawn from the half of s with probability `purity`, else from the other half. Candidate categories are
uniform and say nothing. A user with `few` events or less is a long-tail user: fixed here, before any model.

The form of the logit is AW-MoE's specification's; purity, lengths and sizes are ours, chosen by the oracle and measured on
120,000 requests before any model was run: with lengths 4 to 20 and purity 0.85 the majority of the categories tells s for
0.990 of users (0.850 of those cut to one or two events), clicks are 0.50, the AUC of the planted logit is 0.860 (the
bound), with the majority in place of s 0.853 (cut: 0.755), of x3 alone 0.552 (tests/data/worlds/test_planted_worlds.py).

`label="independent"` is the null: sigmoid(interaction x1 x2 + linear x3), so that nobody's history helps;
`label="shuffled"` the control: s is another user's, so histories say nothing and 0.552 is all there is. The split "test_cut" is "test" with the last one or two events of every user.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from recjax.data.worlds.requests import LIST, Requests, space, write_requests
from recjax.schema import NUM_RESERVED, Feature, Schema

LABELS = ("taste", "independent", "shuffled")
NUMBERS = ("x1", "x2", "x3")
FEW = 3  # events of a long-tail user, at most


@dataclasses.dataclass(frozen=True)
class World:
    """Sizes and constants.

    Attributes:
      categories: Even; the first half is taste -1's, the second +1's.
      shortest, longest: Events of a user, uniform between.
      purity: Probability that an event is of its user's half.
      interaction, linear: Of the logit.
      train, validation, test: Requests of each split; "test_cut" is "test" with one or two events left.
      label: One of `LABELS`.
      seed: Of everything.
    """

    categories: int = 20
    shortest: int = 4
    longest: int = 20
    purity: float = 0.85
    interaction: float = 3.0
    linear: float = 0.3
    train: int = 40_000
    validation: int = 10_000
    test: int = 20_000
    label: str = "taste"
    seed: int = 0

    def __post_init__(self):
        if self.label not in LABELS:
            raise ValueError(f"label={self.label!r} is not one of {', '.join(LABELS)}")
        if self.categories % 2:
            raise ValueError(f"categories={self.categories} does not fall into two halves")


def schema(world: World) -> Schema:
    """A candidate with three numbers and the categories of the past; users are a group key."""
    return Schema(
        (space("category", world.categories),),
        (
            Feature("category", "candidate", "category"),
            *(Feature(x, "candidate") for x in NUMBERS),
            Feature("hist_category", "history", "category", list=LIST),
            Feature("click", "label"),
            Feature("oracle", "label"),
            Feature("taste", "label"),
        ),
        groups=("user",),
    )


def sample(world: World, n: int, rng: np.random.Generator, first_user: int = 0) -> Requests:
    """n requests of n users."""
    taste = rng.choice([-1, 1], n)
    half = world.categories // 2
    own = rng.random((n, world.longest)) < world.purity
    upper = (taste[:, None] > 0) == own
    past = upper * half + rng.integers(half, size=own.shape)
    x = rng.normal(size=(3, n))
    sign = {"taste": taste, "independent": 1, "shuffled": rng.permutation(taste)}[world.label]
    logit = world.interaction * sign * x[0] * x[1] + world.linear * x[2]
    return Requests(
        columns={
            "category": NUM_RESERVED + rng.integers(world.categories, size=n),
            **{k: v.astype(np.float32) for k, v in zip(NUMBERS, x, strict=True)},
            "click": (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float32),
            "oracle": logit.astype(np.float32),
            "taste": (taste > 0).astype(np.float32),
            "user": first_user + np.arange(n),
        },
        events={"hist_category": NUM_RESERVED + past},
        age=np.broadcast_to(3600 * np.arange(world.longest, 0, -1), past.shape),
        length=rng.integers(world.shortest, world.longest + 1, n),
    )


def cut(requests: Requests, rng: np.random.Generator) -> Requests:
    """The same requests with only the last one or two events: the long tail."""
    few = rng.integers(1, 3, len(requests))
    return dataclasses.replace(requests, length=np.minimum(requests.length, few))


def prepare(out_dir: str | os.PathLike, *, source: str = "", **world: Any) -> pathlib.Path:
    """Makes a world (`world`: fields of `World`), writes it as prepared data, returns the directory."""
    del source  # nothing is read
    planted = World(**world)
    rng = np.random.default_rng(planted.seed)
    splits, users = {}, 0
    for split in ("train", "validation", "test"):
        n = getattr(planted, split)
        splits[split] = sample(planted, n, rng, users)
        users += n
    splits["test_cut"] = cut(splits["test"], rng)
    options = dataclasses.asdict(planted)
    return write_requests(out_dir, "planted_aw_moe", schema(planted), splits, options)
