"""A planted world for QIN: what an item is lies in its frozen vector, and only products of it say anything.

Items have a latent z, uniform on the unit sphere of `latent` dimensions, and the frozen vector R z + noise (R orthonormal,
`width` x `latent`). A request has L items of the past, a candidate t and a mood s = +1 | -1, all uniform, and

    logit = bias + strength mean_j relu(<z_j, z_t>) + cross s z_t[0]

The first term is what ASTA makes (a ReLU of products, summed over the past), the second a product of a context field with a
coordinate, as the quadratic network makes them. Neither the past, nor the candidate, nor the mood alone says anything: z is uniform on a sphere.

`train`, `validation` and `test` draw from the same `items` items, which a model may also learn by their ids. `test_cold`
draws past and candidate from `cold` others, whose ids are unknown (one id for all): there only vectors tell items apart. Ids alone end
at an AUC of 0.5 there by construction, for nothing but the mood varies; shuffled vectors (`model.vectors`), the control, must. On
`test`, where ids can be learnt, own vectors must beat both.

What the oracle (the planted logit, stored as the label `oracle`, which no model reads) makes of the constants was measured
before any model was run, on 200,000 requests of each kind, of known and of cold items: click rate 0.369 and 0.367, AUC 0.851 and
0.850 (the Bayes optimum), 0.847 and 0.844 from the noisy vectors; 0.789 and 0.793 of the past's term alone, 0.690 and 0.681
of the mood's; the candidate's own rate 0.506, the mood 0.503 (tests/data/worlds/test_planted_worlds.py). Asked of the model: test AUC
at least 0.82, test_cold at least 0.80; of ids alone and of shuffled vectors on test_cold, between 0.48 and 0.52.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from recjax.data.worlds.requests import LIST, Requests, space, write_requests
from recjax.schema import NUM_RESERVED, OOV, Feature, Schema

LABELS = ("click", "shuffled")  # what `World.label` may name


@dataclasses.dataclass(frozen=True)
class World:
    """Sizes and constants.

    Attributes:
      items, cold: Items of the log, and those that only `test_cold` has.
      latent, width: Dimensions of z and of the frozen vectors.
      noise: Standard deviation of the vectors' noise, in each dimension.
      events: Length of every history.
      bias, strength, cross: Of the logit.
      train, validation, test, test_cold: Requests of each split.
      label: "click", or "shuffled" (the control: clicks permuted within a split).
      seed: Of everything.
    """

    items: int = 1_500
    cold: int = 500
    latent: int = 4
    width: int = 16
    noise: float = 0.05
    events: int = 8
    bias: float = -4.0
    strength: float = 15.0
    cross: float = 2.0
    train: int = 60_000
    validation: int = 20_000
    test: int = 20_000
    test_cold: int = 20_000
    label: str = "click"
    seed: int = 0

    def __post_init__(self):
        if self.label not in LABELS:
            raise ValueError(f"label={self.label!r} is not one of {', '.join(LABELS)}")


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Latents [items + cold, latent] and frozen vectors [items + cold, width]; the cold come last."""

    latent: np.ndarray
    vector: np.ndarray


def catalogue(world: World, rng: np.random.Generator) -> Catalogue:
    """Draws the items."""
    z = rng.normal(size=(world.items + world.cold, world.latent))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    rotation = np.linalg.qr(rng.normal(size=(world.width, world.latent)))[0]
    noise = world.noise * rng.normal(size=(len(z), world.width))
    return Catalogue(z, (z @ rotation.T + noise).astype(np.float32))


def schema(world: World) -> Schema:
    """Id and vector of the candidate and of the events; the mood."""
    media = space("vector", world.items + world.cold)
    media = dataclasses.replace(media, vectors=world.width)
    return Schema(
        (space("item", world.items), media, space("mood", 2)),
        (
            Feature("mood", "context", "mood"),
            Feature("item", "candidate", "item"),
            Feature("vector", "candidate", "vector"),
            Feature("hist_item", "history", "item", list=LIST),
            Feature("hist_vector", "history", "vector", list=LIST),
            Feature("click", "label"),
            Feature("oracle", "label"),
        ),
        groups=("request_key",),
    )


def terms(world: World, z: np.ndarray, past, target, mood) -> tuple[np.ndarray, np.ndarray]:
    """What the past and the mood add to the logit, [N] each."""
    near = np.maximum(np.einsum("nld,nd->nl", z[past], z[target]), 0).mean(1)
    return world.strength * near, world.cross * mood * z[target, 0]


def sample(
    world: World, items: Catalogue, n: int, rng: np.random.Generator, *, cold: bool = False
) -> Requests:
    """n requests; ids start after the reserved ones, cold items have the unknown one."""
    low, high = (world.items, world.items + world.cold) if cold else (0, world.items)
    past = rng.integers(low, high, (n, world.events))
    target = rng.integers(low, high, n)
    mood = rng.choice([-1, 1], n)
    near, crossed = terms(world, items.latent, past, target, mood)
    logit = world.bias + near + crossed
    click = rng.random(n) < 1 / (1 + np.exp(-logit))
    if world.label == "shuffled":
        click = rng.permutation(click)

    def ids(x):
        return np.full_like(x, OOV) if cold else NUM_RESERVED + x

    minutes = np.arange(world.events, 0, -1)
    return Requests(
        columns={
            "mood": NUM_RESERVED + (mood > 0),
            "item": ids(target),
            "vector": NUM_RESERVED + target,
            "click": click.astype(np.float32),
            "oracle": logit.astype(np.float32),
            "request_key": np.arange(n),
        },
        events={"hist_item": ids(past), "hist_vector": NUM_RESERVED + past},
        age=np.broadcast_to(60 * minutes, past.shape),
        length=np.full(n, world.events),
    )


def vectors(world: World, items: Catalogue) -> np.ndarray:
    """The frozen vectors by id, float32 [rows, width]."""
    rows = schema(world).space("vector").rows
    out = np.zeros((rows, world.width), np.float32)
    out[NUM_RESERVED : NUM_RESERVED + len(items.vector)] = items.vector
    return out


def prepare(out_dir: str | os.PathLike, *, source: str = "", **world: Any) -> pathlib.Path:
    """Makes a world (`world`: fields of `World`), writes it as prepared data, returns the directory."""
    del source  # nothing is read
    planted = World(**world)
    rng = np.random.default_rng(planted.seed)
    items = catalogue(planted, rng)
    splits = {
        split: sample(planted, items, getattr(planted, split), rng, cold=split == "test_cold")
        for split in ("train", "validation", "test", "test_cold")
    }
    return write_requests(
        out_dir,
        "planted_qin",
        schema(planted),
        splits,
        dataclasses.asdict(planted),
        vectors={"vector": vectors(planted, items)},
    )
