"""Sequences without times as next-item pairs: the protocol of DIN's and TIN's Amazon experiments, on S3-Rec's files.

    python -m recjax.train --config=experiments/tin_amazon_sequences.py --config.data.source=FOLDER --workdir=runs/beauty

FOLDER holds `<set>.txt.gz` ("user item item ...", oldest first) and `<set>_item2attributes.json.gz`.

Protocol (zhouxy1003/TIN, code). Of a user's n items, each position i = 1 .. n - 1 is a request whose history is all earlier
items: i <= n - 3 trains, n - 2 validates, n - 1 tests. Each request has two rows: the item, and one item drawn uniformly from
those that are nowhere in the user's list, past or future (a mild leak of the future list, not of labels), once and for
all. So rows = 2 sum(n_u - 3) in training, and one pair a user in validation and test.

An item's category is its first attribute (our choice; items without one share the category "none"). There are no
times: event k of a user is k days after the first, so only the order means anything, and ages are counts of events.
"""

from collections.abc import Sequence
import gzip
import json
import os
import pathlib

import numpy as np
import polars as pl

from recjax.data.store.prepared import DataError
from recjax.data.store.vocabulary import Vocabulary, frames
from recjax.data.store.writing import write_prepared
from recjax.schema import Feature, Schema

LIST = "history"
EPOCH, DAY = 1_000_000_000, 86_400
VERSION = "1.0.0"
SPLITS = {"validation": 2, "test": 1}  # positions from the end


def negatives(lists: Sequence[np.ndarray], user: np.ndarray, items: int, seed: int) -> np.ndarray:
    """For each request one item in 0 .. items - 1 that its user's complete list does not hold, [N].

    Raises:
      DataError: A user has had every item.
    """
    rng = np.random.default_rng(seed)
    owned = np.concatenate([u * items + np.unique(x) for u, x in enumerate(lists)])
    sizes = np.array([len(np.unique(x)) for x in lists])
    if (sizes >= items).any():
        raise DataError(
            f"user number {int(sizes.argmax())} has had every item: no negative is left"
        )
    owned = np.sort(owned)
    out = rng.integers(items, size=len(user))
    while True:
        key = user * items + out
        place = np.minimum(np.searchsorted(owned, key), len(owned) - 1)
        again = np.flatnonzero(owned[place] == key)
        if not len(again):
            return out
        out[again] = rng.integers(items, size=len(again))


def requests(lists: Sequence[np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """split -> (user [N], position [N]) of each request; users with fewer than three items are left out."""
    size = np.array([len(x) for x in lists])
    users = np.flatnonzero(size >= 3)
    train = [np.arange(1, size[u] - 2) for u in users]
    out = {"train": (np.repeat(users, [len(p) for p in train]), np.concatenate(train))}
    return out | {split: (users, size[users] - back) for split, back in SPLITS.items()}


def pairs(
    lists: Sequence[np.ndarray], items: int, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """split -> columns user, position, item, label, [2 N]: each request's item and, after it, its negative."""
    offset = np.r_[0, np.cumsum([len(x) for x in lists])]
    flat = np.concatenate(lists)
    out = {}
    for i, (split, (user, position)) in enumerate(requests(lists).items()):
        item = flat[offset[user] + position]
        drawn = negatives(lists, user, items, seed + i)
        out[split] = dict(
            user=np.repeat(user, 2),
            position=np.repeat(position, 2),
            item=np.stack([item, drawn], 1).ravel(),
            label=np.tile([1.0, 0.0], len(user)).astype(np.float32),
        )
    return out


def read(source: str | os.PathLike, name: str) -> tuple[list[np.ndarray], list[str], list[str]]:
    """(items of each user as codes, the items' names, their categories)."""
    folder = pathlib.Path(source)
    sequence, attributes = (
        folder / f"{name}{end}" for end in (".txt.gz", "_item2attributes.json.gz")
    )
    for file in (sequence, attributes):
        if not file.exists():
            raise DataError(
                f"{file} does not exist; give the folder with S3-Rec's files as data.source"
            )
    with gzip.open(sequence, "rt") as f:
        rows = [line.split()[1:] for line in f]
    names = sorted({item for row in rows for item in row}, key=int)
    code = {item: i for i, item in enumerate(names)}
    with gzip.open(attributes, "rt") as f:
        first = {item: str(a[0]) for item, a in json.load(f).items() if a}
    lists = [np.array([code[item] for item in row]) for row in rows]
    return lists, names, [first.get(item, "none") for item in names]


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    name: str = "Beauty",
    users: int = 0,
    seed: int = 0,
) -> pathlib.Path:
    """Prepares one of the sets and returns its directory.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: The folder with the files; "": amazon-sequences below $RECJAX_DATA.
      name: Of the set: Beauty, Sports_and_Outdoors, Toys_and_Games, LastFM.
      users: Only the first so many, 0: all.
      seed: Of the negatives and of the training order.
    """
    source = source or str(pathlib.Path(os.environ.get("RECJAX_DATA", "."), "amazon-sequences"))
    lists, names, categories = read(source, name)
    lists = lists[:users] if users else lists
    vocabs = {
        "item": Vocabulary.build("item", pl.Series(names)),
        "category": Vocabulary.build("category", pl.Series(categories)),
    }
    ids = {
        "item": vocabs["item"].encode(pl.Series(names)),
        "category": vocabs["category"].encode(pl.Series(categories)),
    }
    offset = np.r_[0, np.cumsum([len(x) for x in lists])]
    flat = np.concatenate(lists)
    place = np.arange(len(flat)) - np.repeat(offset[:-1], np.diff(offset))
    timeline = {"time": EPOCH + place * DAY} | {f"hist_{k}": x[flat] for k, x in ids.items()}
    splits = {}
    for split, p in pairs(lists, len(names), seed).items():
        splits[split] = {k: x[p["item"]] for k, x in ids.items()} | {
            "click": p["label"],
            "time": EPOCH + p["position"] * DAY,
            "request": np.arange(len(p["user"])) // 2,
            "user": p["user"],
            f"{LIST}/end": offset[p["user"]] + p["position"],
            f"{LIST}/count": p["position"],
        }
    return write_prepared(
        out_dir,
        "next_item",
        make_schema(vocabs),
        {LIST: [timeline]},
        splits,
        vocab=frames(vocabs),
        report={"users": len(lists), "items": len(names), "events": len(flat)},
        options={"name": name, "users": users, "events": len(flat)},
        version=VERSION,
        unit="request",
        seed=seed,
    )


def make_schema(vocabs: dict[str, Vocabulary]) -> Schema:
    """Item and category of the candidate and of the events."""
    fields = ("item", "category")
    return Schema(
        tuple(v.space for v in vocabs.values()),
        (
            *(Feature(f, "candidate", f) for f in fields),
            *(Feature(f"hist_{f}", "history", f, list=LIST) for f in fields),
            Feature("click", "label"),
        ),
        groups=("user",),
    )
