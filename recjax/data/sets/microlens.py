"""MicroLens-1M as the MM-CTR challenge of WWW 2025 ships it: short videos, 25 % positives, frozen multimodal vectors.

    python -m recjax.data.published --name=microlens --source=MicroLens_1M_MMCTR --out=DIR

Format, from the loaders and configurations of the challenge's solutions (github.com/reczoo/WWW2025_MMCTR_Challenge and
Gavin113/WWW2025_MMCTR, src/mmctr_dataloader.py, README.md); the files themselves were not available when this was written:

    train.parquet, valid.parquet  user_id, item_seq (ids, padded left with 0), item_id, likes_level, views_level, label
    item_info.parquet             item_id, item_tags (5 ids, 0 is none), item_emb_d128 (128 numbers); row = item_id

Protocol. `test` is valid.parquet, on which solutions report; the challenge's own test has no labels and is not read. So that
nothing is tuned on it, `validation` is all rows of a seeded draw of train.parquet's users. There are no times:
see `recjax.data.sets.sequences`. Equal histories of a user are stored once.

Every item of item_info.parquet, also one that training never saw, has an id in the space `item_emb`, which stands for its frozen
vector: candidates and events carry that id and not the vector. `history_levels=True` also gives events the levels of their items
(of the item's first row in the log: they describe the item).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
from typing import Any

import numpy as np
import polars as pl

from recjax.data.sets.published import Job, Published
from recjax.data.sets.sequences import Rows, Sequences
from recjax.data.store.prepared import DataError
from recjax.data.store.vocabulary import Vocabulary
from recjax.data.store.writing import BLOCK_SIZE
from recjax.schema import PAD, Feature, Schema

ROWS = ("user_id", "item_seq", "item_id", "likes_level", "views_level", "label")
ITEMS = ("item_id", "item_tags", "item_emb_d128")
FILES = {"train.parquet": ROWS, "valid.parquet": ROWS, "item_info.parquet": ITEMS}
LEVELS = ("likes_level", "views_level")
KEPT = ("item", "item_tags", "item_emb")  # of a video, in candidates and histories


class MicroLens(Published):
    """The MM-CTR challenge's MicroLens-1M as blocks of impressions."""

    name = "microlens"
    HOMEPAGE = "https://recsys.westlake.edu.cn/MicroLens_1M_MMCTR"
    DESCRIPTION = (
        "Interactions of one million users with 91,717 micro-videos, a quarter of them positive, with the videos' tags and "
        "frozen 128-dimensional multimodal vectors: the data of the WWW 2025 EReL@MIR multimodal CTR challenge."
    )
    CITATION = """@article{ni2023microlens,
  title={A Content-Driven Micro-Video Recommendation Dataset at Scale},
  author={Ni, Yongxin and Cheng, Yu and Liu, Xiangyan and Fu, Junchen and Li, Youhua and He, Xiangnan and Zhang, Yongfeng
    and Yuan, Fajie},
  journal={arXiv preprint arXiv:2309.15379},
  year={2023}
}"""
    LICENSE = "By the terms of the publisher's page."


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    validation_users: float = 0.01,
    history_levels: bool = False,
    min_count: int = 2,
    seed: int = 0,
    block_size: int = BLOCK_SIZE,
    partitions: int = 1,
) -> pathlib.Path:
    """Prepares the challenge's files and returns the directory.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Folder or archive with the three files.
      validation_users: Share of the training users who become the validation split.
      history_levels: Whether events carry the levels of their items.
      min_count: Admission of items and users, in training rows.
      seed: Of the validation users and of the training order.
      block_size: Impressions per record.
      partitions: Of the histories.

    Raises:
      DataError: A file or column is missing.
    """
    options = {
        "validation_users": validation_users,
        "history_levels": history_levels,
        "min_count": min_count,
        "partitions": partitions,
    }
    layout = {"seed": seed, "block_size": block_size}
    job = Job.of(MicroLens, out_dir, source, tuple(FILES), options, **layout)
    if job.done:
        return job.target
    with job.files() as files:
        train, test, info = (read_table(files[name][0], want) for name, want in FILES.items())
    log = pl.concat([train, test], how="vertical_relaxed")
    splits = draw_splits(train["user_id"], test.height, validation_users, seed)
    sequences, sequence = distinct_histories(log)
    v = vocabularies(log[splits["train"]], info, min_count)
    items, vectors = encode_items(info, v)
    event = _place(info["item_id"], sequences.item)
    remembered = (*KEPT, *LEVELS) if history_levels else KEPT
    known = items | (levels_of_items(log, info, v) if history_levels else {})
    timelines = sequences.timelines(
        {f"history_{c}": known[c][event] for c in remembered}, partitions
    )

    def columns(rows: np.ndarray) -> dict[str, np.ndarray]:
        mine = log[rows]
        asked = Rows(
            sequence[rows],
            sequences.length[sequence[rows]],
            mine["item_id"],
            mine["label"].cast(pl.Float32).to_numpy(),
            rows,
        )
        user = mine["user_id"].cast(pl.Int64).to_numpy()
        at = _place(info["item_id"], mine["item_id"])
        out = asked.columns(timelines, user) | {c: x[at] for c, x in items.items()}
        out |= {c: v[c].encode(mine[c]) for c in LEVELS}
        return out | {"user_id": v["user"].encode(mine["user_id"])}

    report = {
        "rows": log.height,
        "users": log["user_id"].n_unique(),
        "items": info.height,
        "histories": len(sequences.length),
        "events": len(sequences.item),
        "splits": {
            split: {"rows": len(rows), "label_rate": float(log["label"][rows].mean())}
            for split, rows in splits.items()
        },
        "vocabularies": {name: len(x.values) for name, x in v.items()},
    }
    return job.write(
        make_schema(v, items["item_tags"].shape[1], vectors.shape[1], remembered),
        {"history": timelines},
        {split: functools.partial(columns, rows) for split, rows in splits.items()},
        v,
        report,
        {},
        vectors={
            "item_emb": v["item_emb"].by_id(vectors[_place(info["item_id"], v["item_emb"].values)])
        },
    )


def read_table(file: pathlib.Path, wanted: Sequence[str]) -> pl.DataFrame:
    """The wanted columns, arrays as lists; raises DataError naming a missing one."""
    names = pl.read_parquet_schema(file)
    for column in wanted:
        if column not in names:
            raise DataError(f"{file} has no column {column!r}; it has {', '.join(names)}")
    inner = {"item_emb_d128": pl.Float32}
    as_list = {c: pl.List(inner.get(c, pl.Int64)) for c in wanted if names[c].is_nested()}
    return pl.read_parquet(file, columns=list(wanted)).cast(as_list)


def draw_splits(
    train_user: pl.Series, test_rows: int, share: float, seed: int
) -> dict[str, np.ndarray]:
    """split -> rows of train and test, one after the other; validation is all rows of some users."""
    users = train_user.unique().sort()
    drawn = np.random.default_rng([seed, 1]).choice(
        len(users), max(1, round(share * len(users))), replace=False
    )
    held = train_user.is_in(users.gather(pl.Series(np.sort(drawn))).implode()).to_numpy()
    first = len(train_user)
    return {
        "train": np.flatnonzero(~held),
        "validation": np.flatnonzero(held),
        "test": np.arange(first, first + test_rows),
    }


def distinct_histories(log: pl.DataFrame) -> tuple[Sequences, np.ndarray]:
    """Each history once, without its filling, and which one every row has, int64 [N]."""
    key = log.select(pl.struct("user_id", "item_seq").hash()).to_series().to_numpy()
    _, first, sequence = np.unique(key, return_index=True, return_inverse=True)
    lists = log["item_seq"].gather(pl.Series(first))
    return Sequences.of(lists.list.eval(pl.element().filter(pl.element() != 0))), sequence


def vocabularies(train: pl.DataFrame, info: pl.DataFrame, min_count: int) -> dict[str, Vocabulary]:
    """Items and users of the training rows; tags, levels and vectors are known beforehand."""
    tags = info["item_tags"].explode()
    return {
        "user": Vocabulary.build("user", train["user_id"], min_count),
        "item": Vocabulary.build("item", train["item_id"], min_count),
        "tag": Vocabulary.build("tag", tags.filter(tags != 0)),
        "item_emb": Vocabulary.build("item_emb", info["item_id"]),
        **{c: Vocabulary.build(c, train[c]) for c in LEVELS},
    }


def encode_items(
    info: pl.DataFrame, v: Mapping[str, Vocabulary]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Ids of `KEPT` by row of item_info, int32 [I] and tags [I, T]; and the vectors float32 [I, D]."""
    matrix = lambda c: info[c].explode().to_numpy().reshape(info.height, -1)  # noqa: E731
    try:
        tags, vectors = matrix("item_tags"), matrix("item_emb_d128")
    except ValueError:
        raise DataError("item_info.parquet: item_tags or item_emb_d128 vary in length") from None
    ids = v["tag"].encode(pl.Series("item_tags", tags.reshape(-1))).reshape(tags.shape)
    items = {
        "item": v["item"].encode(info["item_id"]),
        "item_tags": np.where(tags == 0, np.int32(PAD), ids),
        "item_emb": v["item_emb"].encode(info["item_id"]),
    }
    return items, vectors.astype(np.float32)


def levels_of_items(
    log: pl.DataFrame, info: pl.DataFrame, v: Mapping[str, Vocabulary]
) -> dict[str, np.ndarray]:
    """Ids of the levels by row of item_info, int32 [I]; missing for items that are never a candidate."""
    first = log.unique("item_id", keep="first", maintain_order=True).select("item_id", *LEVELS)
    found = info.select("item_id").join(first, on="item_id", how="left", maintain_order="left")
    return {c: v[c].encode(found[c]) for c in LEVELS}


def _place(items: pl.Series, item: pl.Series) -> np.ndarray:
    """Row of item_info of each item, int64 [N]."""
    rows = pl.int_range(len(items), eager=True)
    place = item.replace_strict(items, rows, default=None)
    if place.null_count():
        raise DataError(
            f"item {item.filter(place.is_null())[0]} is not in item_info.parquet; is it the right file?"
        )
    return place.to_numpy()


def make_schema(
    v: Mapping[str, Vocabulary], tags: int, width: int, remembered: Sequence[str]
) -> Schema:
    """User, candidate with tags, levels and vector, history, label; `tags` an item, vectors of `width`."""
    kinds: dict[str, dict[str, Any]] = {
        "item": {"id_space": "item"},
        "item_tags": {"id_space": "tag", "multi": tags, "combiner": "mean"},
        **{c: {"id_space": c} for c in ("item_emb", *LEVELS)},
    }
    spaces = [
        dataclasses.replace(x.space, vectors=width) if name == "item_emb" else x.space
        for name, x in v.items()
    ]
    return Schema(
        id_spaces=tuple(spaces),
        features=(
            Feature("user_id", "profile", "user"),
            *(Feature(c, "candidate", **kind) for c, kind in kinds.items()),
            *(Feature(f"history_{c}", "history", list="history", **kinds[c]) for c in remembered),
            Feature("label", "label"),
        ),
        groups=("user",),
    )
