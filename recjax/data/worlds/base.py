"""A planted world: users, items, events and impressions whose click probability is known.

The logit of every impression is stored as the label `oracle`, which no model reads, so the best
possible AUC on the same rows can be computed beside a model's. `signal` says where the planted
signal lies:

    latent   strength * (user factor . item factor): ids and histories both carry it
    match    strength * (+1 if the candidate's category is among the user's last `recent` events,
             else -1). Events are drawn alike for all users, so only target x history models can see
             it
    recency  strength * (a quickly saturating function of the time since the last event): only ages
             carry it

With `scenes`, a scene shifts the logit, and which categories it shifts up.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
import polars as pl

from recjax.data.loading.batches import windows
from recjax.data.store.histories import (
    Counter,
    CounterIndex,
    Timeline,
    build_timelines,
    count_all,
    cutoffs,
)
from recjax.data.store.vocabulary import Vocabulary, frames
from recjax.data.store.writing import write_prepared
from recjax.schema import Feature, Schema

SIGNALS = ("latent", "match", "recency")
DAY = 86_400
EPOCH = 1_600_000_000  # seconds; times look like a log's
VERSION = "1.0.0"
SPLITS = {"train": 0.8, "valid": 0.9, "test": 1.0}  # by time
LIST = "clicks"
COUNTER = Counter("item", ("item",))


@dataclasses.dataclass(frozen=True)
class World:
    """Sizes and signal of a world; the same values make the same world.

    Attributes:
      users: Number of users.
      items: Number of items; item i belongs to category i % `categories`.
      categories: Number of categories.
      impressions: Number of impressions, over all splits.
      candidates: Impressions of one request.
      events: Mean number of events of a user.
      days: Length of the log; requests begin after a fifth of it.
      dim: Width of the planted factors.
      scenes: Number of scenes, 0 for none.
      signal: Of `SIGNALS`.
      strength: Multiplies the planted signal.
      bias: Logit of the average impression.
      recent: Events that "match" looks back.
      seed: Of everything.
    """

    users: int = 2_000
    items: int = 500
    categories: int = 20
    impressions: int = 20_000
    candidates: int = 4
    events: int = 40
    days: int = 60
    dim: int = 4
    scenes: int = 0
    signal: str = "latent"
    strength: float = 2.0
    bias: float = -1.0
    recent: int = 10
    seed: int = 0

    def __post_init__(self):
        if self.signal not in SIGNALS:
            raise ValueError(
                f"signal {self.signal!r} is not planted; use one of {', '.join(SIGNALS)}"
            )
        if self.items < self.categories:
            raise ValueError(f"{self.items} items cannot fill {self.categories} categories")


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    partitions: int = 1,
    block_size: int = 4096,
    unit: str = "impression",
    **world: Any,
) -> pathlib.Path:
    """Makes a world (`world`: fields of `World`), writes it as prepared data, returns the directory."""
    del source  # nothing is read
    planted = World(**world)
    schema, timelines, splits, vocab = build(planted, partitions)
    options = dataclasses.asdict(planted) | {"partitions": partitions}
    return write_prepared(
        out_dir,
        "synthetic",
        schema,
        {LIST: [t.columns for t in timelines]},
        splits,
        vocab=vocab,
        report={"oracle": "label `oracle` is the planted logit"},
        options=options,
        version=VERSION,
        block_size=block_size,
        unit=unit,
        seed=planted.seed,
    )


def build(
    world: World, partitions: int = 1
) -> tuple[Schema, list[Timeline], dict[str, dict[str, np.ndarray]], dict[str, pl.DataFrame]]:
    """(schema, timelines of the list, splits, vocabularies), as `write_prepared` takes them."""
    rng = np.random.default_rng(world.seed)
    factors = _factors(world, rng)
    events = _events(world, factors, rng)
    vocabs = _vocabularies(world, events)
    fields = {f"hist_{k}": vocabs[k].encode(pl.Series(k, events[k])) for k in _fields(world)}
    timelines = build_timelines(events["user"], events["time"], fields, world.users, partitions)
    rows = _requests(world, rng)
    history = cutoffs(timelines, rows["user"], rows["time"])
    logit = _logit(world, factors, rows, timelines, history, vocabs["category"])
    columns = {k: vocabs[k].encode(pl.Series(k, rows[k])) for k in ("user", *_fields(world))}
    columns |= {
        "time": rows["time"],
        "request": rows["request"],
        "uid": rows["user"],
        "partition": history["partition"],
        f"{LIST}/end": history["end"],
        f"{LIST}/count": history["count"],
        "click": rng.random(len(logit)) < 1 / (1 + np.exp(-logit)),
        "oracle": logit,
    }
    columns |= count_all([CounterIndex.build(COUNTER, events, {"item": world.items})], rows)
    columns = {k: np.asarray(v, np.float32) if k in _DENSE else v for k, v in columns.items()}
    return _schema(world, vocabs), timelines, _split(columns), frames(vocabs)


_DENSE = ("click", "oracle", *COUNTER.columns)


def _fields(world: World) -> tuple[str, ...]:
    return ("item", "category", "scene") if world.scenes else ("item", "category")


def _schema(world: World, vocabs: Mapping[str, Vocabulary]) -> Schema:
    fields = _fields(world)
    features = [Feature("user", "profile", "user")]
    features += [Feature(k, "candidate", k) for k in ("item", "category")]
    features += [Feature("scene", "context", "scene")] if world.scenes else []
    features += [Feature(name, "candidate", transform="log1p") for name in COUNTER.columns]
    features += [Feature(f"hist_{k}", "history", k, list=LIST) for k in fields]
    features += [Feature("click", "label"), Feature("oracle", "label")]
    return Schema(
        tuple(v.space for v in vocabs.values()), tuple(features), groups=("request", "uid")
    )


def _factors(world: World, rng: np.random.Generator) -> dict[str, np.ndarray]:
    center = rng.normal(size=(world.categories, world.dim))
    item = center[np.arange(world.items) % world.categories] + 0.5 * rng.normal(
        size=(world.items, world.dim)
    )
    return {
        "user": rng.normal(size=(world.users, world.dim)) / np.sqrt(world.dim),
        "category": center,
        "item": item,
        "scene": rng.normal(size=(max(world.scenes, 1), world.categories)),
    }


def _events(
    world: World, factors: Mapping[str, np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """What users did, in log order. Preferences show only under the latent signal."""
    n = world.users * world.events
    user = rng.integers(world.users, size=n)
    taste = factors["user"] @ factors["category"].T * (world.signal == "latent")
    odds = np.cumsum(np.exp(taste), axis=1)
    category = (odds[user] < rng.random((n, 1)) * odds[user, -1:]).sum(1)
    return {
        "user": user,
        "category": category,
        "item": _items_of(world, category, rng),
        "scene": rng.integers(max(world.scenes, 1), size=n),
        "time": EPOCH + np.sort(rng.integers(world.days * DAY, size=n)),
    }


def _items_of(world: World, category: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An item of each category; low numbers are popular."""
    members = -(-(world.items - category) // world.categories)
    return category + world.categories * (members * rng.random(len(category)) ** 2).astype(np.int64)


def _requests(world: World, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Impressions in request order: a user asks, and sees `candidates` items of any category."""
    requests = -(-world.impressions // world.candidates)
    number = np.repeat(np.arange(requests), world.candidates)[: world.impressions]
    time = EPOCH + np.sort(rng.integers(world.days * DAY // 5, world.days * DAY, size=requests))
    user = rng.integers(world.users, size=requests)
    scene = rng.integers(max(world.scenes, 1), size=requests)
    category = rng.integers(world.categories, size=world.impressions)
    item = _items_of(world, category, rng)
    request = {"user": user, "time": time, "scene": scene}
    return {k: v[number] for k, v in request.items()} | {
        "category": category,
        "item": item,
        "request": number,
    }


def _vocabularies(world: World, events: Mapping[str, np.ndarray]) -> dict[str, Vocabulary]:
    return {k: Vocabulary.build(k, pl.Series(k, events[k])) for k in ("user", *_fields(world))}


def _logit(
    world: World,
    factors: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    timelines: list[Timeline],
    history: Mapping[str, np.ndarray],
    categories: Vocabulary,
) -> np.ndarray:
    """The planted logit of each impression [N]."""
    if world.signal == "latent":
        signal = (factors["user"][rows["user"]] * factors["item"][rows["item"]]).sum(1)
    else:
        signal = np.zeros(len(rows["user"]))
        wanted = categories.encode(pl.Series("category", rows["category"]))
        for p, timeline in enumerate(timelines):
            mine = np.flatnonzero(history["partition"] == p)
            end, count, events = history["end"][mine], history["count"][mine], timeline.columns
            if world.signal == "match":
                seen = windows(events["hist_category"], end, world.recent)
                known = np.arange(world.recent) >= world.recent - count[:, None]
                signal[mine] = np.where(((seen == wanted[mine, None]) & known).any(1), 1.0, -1.0)
            else:
                last = windows(events["time"], end, 1)[:, 0]
                signal[mine] = _freshness(
                    np.where(count > 0, rows["time"][mine] - last, world.days * DAY)
                )
    logit = world.bias + world.strength * signal
    if world.scenes:
        logit += factors["scene"][rows["scene"], rows["category"]]
    return logit


def _freshness(age: np.ndarray) -> np.ndarray:
    """Seconds -> +1 just after the last event, 0 half a day later, -1 long after."""
    return 1 - 2 * age / (age + DAY / 2)


def _split(columns: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Splits by time; a request lies in one of them."""
    time = columns["time"]
    edges = [
        time.min(),
        *np.quantile(time, list(SPLITS.values())[:-1]).astype(np.int64),
        time.max() + 1,
    ]
    return {
        split: {k: v[(time >= lo) & (time < hi)] for k, v in columns.items()}
        for split, lo, hi in zip(SPLITS, edges[:-1], edges[1:], strict=True)
    }
