"""A planted world for TARQ: a click depends on the few past items that are most like the candidate.

    logit = strength (mean of the `nearest` largest cosines of past items with the candidate - offset)

Items are unit vectors of content, `per_cluster` around each of `clusters` random centres; a user has `interests` clusters
and one history of `events` items of them; a candidate is of the user's clusters with probability `own`, else any item. Only
content is seen (ids are there to name items), and no user feature, so all a model has is attention over the history: its
mean, which two towers can carry, leaves out which events are near.

Sizes are those of TARQ's specification (section 6: 64 clusters, 1,280 items, 16 numbers, 4,000 users with 3 clusters, 20
events, the 4 nearest, Bayes AUC 0.7946); `spread`, `own`, `offset` and `strength` are ours, fixed by the oracle (the planted
logit, stored as the label `oracle`, which no model reads) before any model was run. On 150,000 requests of seeds 0 and 1:
click rate 0.526 and 0.525, AUC of the planted logit 0.794 and 0.798 (the bound), of the mean cosine 0.744 and 0.748, of the
largest 0.786 and 0.790, of the item's click rate 0.509 and 0.509 (tests/data/worlds/test_tarq_world.py).

`label="shuffled"` is the control: clicks follow somebody else's history, and what a model can still say is how common an
item's content is.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
import polars as pl

from recjax.data.store.writing import write_prepared
from recjax.data.worlds.requests import EPOCH, LIST, space
from recjax.schema import NUM_RESERVED, Feature, Schema

LABELS = ("click", "shuffled")  # what `World.label` may name
HOUR = 3600


@dataclasses.dataclass(frozen=True)
class World:
    """Sizes and constants.

    Attributes:
      clusters, per_cluster: Of items.
      width: Numbers of content.
      spread: Length of what an item adds to its centre of length 1, before both are scaled to length 1.
      users, interests, events: Users, clusters of each, length of a history.
      own: Probability that a candidate is of the user's clusters.
      nearest, strength, offset: Of the logit.
      train, validation, test: Requests of each split.
      label: One of `LABELS`.
      seed: Of everything.
    """

    clusters: int = 64
    per_cluster: int = 20
    width: int = 16
    spread: float = 0.7
    users: int = 4_000
    interests: int = 3
    events: int = 20
    own: float = 0.5
    nearest: int = 4
    strength: float = 4.9
    offset: float = 0.5
    train: int = 150_000
    validation: int = 20_000
    test: int = 20_000
    label: str = "click"
    seed: int = 0

    def __post_init__(self):
        if self.label not in LABELS:
            raise ValueError(f"label={self.label!r} is not one of {', '.join(LABELS)}")

    @property
    def items(self) -> int:
        return self.clusters * self.per_cluster


@dataclasses.dataclass(frozen=True)
class Planted:
    """What every split shares: content [items, width], interests [users, interests], history (items) [users, events]."""

    content: np.ndarray
    interests: np.ndarray
    history: np.ndarray


def schema(world: World) -> Schema:
    """Id and content of the candidate and of the events."""
    return Schema(
        (space("item", world.items),),
        (
            Feature("item", "candidate", "item"),
            Feature("content", "candidate", vector=world.width),
            Feature("hist_item", "history", "item", list=LIST),
            Feature("hist_content", "history", vector=world.width, list=LIST),
            Feature("click", "label"),
            Feature("oracle", "label"),
        ),
        groups=("user_key",),
    )


def plant(world: World, rng: np.random.Generator) -> Planted:
    """Items, users and their histories."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    centres = unit(rng.normal(size=(world.clusters, 1, world.width)))
    around = unit(rng.normal(size=(world.clusters, world.per_cluster, world.width)))
    content = unit(centres + world.spread * around).reshape(-1, world.width).astype(np.float32)
    interests = rng.random((world.users, world.clusters)).argsort(1)[:, : world.interests]
    user = np.arange(world.users)[:, None]
    of = interests[user, rng.integers(world.interests, size=(world.users, world.events))]
    return Planted(content, interests, item_of(world, of, rng))


def item_of(world: World, cluster: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An item of each cluster."""
    return cluster * world.per_cluster + rng.integers(world.per_cluster, size=cluster.shape)


def similarities(planted: Planted, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Cosines of users' past items with a candidate each, [N, events]."""
    out = np.empty((len(user), planted.history.shape[1]), np.float32)
    for at in range(0, len(user), 20_000):
        part = slice(at, at + 20_000)
        past = planted.content[planted.history[user[part]]]
        out[part] = np.einsum("nld,nd->nl", past, planted.content[item[part]])
    return out


def sample(
    world: World, planted: Planted, n: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """user, item (from 0), click and oracle of n requests."""
    user = rng.integers(world.users, size=n)
    mine = planted.interests[user, rng.integers(world.interests, size=n)]
    cluster = np.where(rng.random(n) < world.own, mine, rng.integers(world.clusters, size=n))
    item = item_of(world, cluster, rng)
    nearest = np.partition(similarities(planted, user, item), -world.nearest, axis=1)
    logit = world.strength * (nearest[:, -world.nearest :].mean(1) - world.offset)
    click = rng.random(n) < 1 / (1 + np.exp(-logit))
    if world.label == "shuffled":
        user = rng.permutation(user)
    return dict(user=user, item=item, click=click, oracle=logit)


def columns(world: World, planted: Planted, drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A split's columns, as `write_prepared` wants them."""
    user, item = drawn["user"], drawn["item"]
    return {
        "item": (NUM_RESERVED + item).astype(np.int32),
        "content": planted.content[item],
        "click": drawn["click"].astype(np.float32),
        "oracle": drawn["oracle"].astype(np.float32),
        "user_key": user.astype(np.int32),
        "time": EPOCH + np.arange(len(user), dtype=np.int64),
        f"{LIST}/end": (user + 1) * world.events,
        f"{LIST}/count": np.full(len(user), world.events, np.int32),
    }


def prepare(out_dir: str | os.PathLike, *, source: str = "", **world: Any) -> pathlib.Path:
    """Makes a world (`world`: fields of `World`), writes it as prepared data, returns the directory."""
    del source  # nothing is read
    options = World(**world)
    rng = np.random.default_rng(options.seed)
    planted = plant(options, rng)
    past = planted.history.reshape(-1)
    hours = np.tile(np.arange(options.events, 0, -1), options.users)
    timeline = {
        "time": EPOCH - HOUR * hours.astype(np.int64),
        "hist_item": (NUM_RESERVED + past).astype(np.int32),
        "hist_content": planted.content[past],
    }
    splits = {
        split: columns(options, planted, sample(options, planted, getattr(options, split), rng))
        for split in ("train", "validation", "test")
    }
    ids = np.arange(options.items)
    names = pl.DataFrame({"value": ids, "id": NUM_RESERVED + ids, "count": np.ones_like(ids)})
    return write_prepared(
        out_dir,
        "planted_tarq",
        schema(options),
        {LIST: [timeline]},
        splits,
        vocab={"item": names},
        options=dataclasses.asdict(options),
    )
