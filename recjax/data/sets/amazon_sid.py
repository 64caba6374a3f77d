"""Amazon reviews 2018 with semantic ids, as MiniOneRec ships them: histories, the next item, texts and three-level codes.

    python -m recjax.data.published --name=amazon_sid --option=category=Office_Products --out=DIR

Format, from the files (github.com/AkaliKong/MiniOneRec, data/Amazon): `{category}_{train,valid,test}.csv` with user_id,
history_item_id ("[1, 2]", at most ten), item_id and the same as titles and codes; `{category}.item.json`, item id -> title,
description, brand, categories; `{category}.index.json`, item id -> its codes ["<a_60>", "<b_159>", "<c_203>"].

Protocol. The splits are the publisher's, which are in time; there are no times (`recjax.data.sets.sequences`). Where train.csv is
absent, training rows are the steps inside the histories of valid.csv, each later item after those before it, but for
everything its user has as a target in valid.csv or test.csv: neither that item nor an item after it in a history is used.
Negatives are drawn from the items of the training rows and of their histories. The texts are in the vocabulary of the
items, columns title, description and brand.
"""

from collections.abc import Mapping
import gzip
import json
import os
import pathlib
from typing import Any

import numpy as np
import polars as pl

from recjax.data.sets.published import Job, Published
from recjax.data.sets.sequences import Rows, Sequences, next_item
from recjax.data.store.prepared import DataError
from recjax.data.store.writing import BLOCK_SIZE

COLUMNS = ("user_id", "history_item_id", "item_id")
CODES = ("sid_1", "sid_2", "sid_3")


class AmazonSid(Published):
    """MiniOneRec's Amazon categories as blocks of impressions."""

    name = "amazon_sid"
    FOLDER = "amazon-2018-minionerec"
    HOMEPAGE = "https://github.com/AkaliKong/MiniOneRec"
    DESCRIPTION = (
        "Two 5-core categories of Amazon reviews 2018 (October 2016 to November 2018), Industrial_and_Scientific and "
        "Office_Products, as histories with the next item, with item texts and semantic ids of three levels."
    )
    CITATION = """@inproceedings{ni2019justifying,
  title={Justifying Recommendations using Distantly-Labeled Reviews and Fine-Grained Aspects},
  author={Ni, Jianmo and Li, Jiacheng and McAuley, Julian},
  booktitle={Proceedings of EMNLP-IJCNLP},
  year={2019}
}"""
    LICENSE = "Repository: Apache-2.0; Amazon review data: none stated, research use."


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    category: str = "Office_Products",
    negatives: str = "popular",
    negatives_per_positive: int = 4,
    min_count: int = 1,
    seed: int = 0,
    block_size: int = BLOCK_SIZE,
    partitions: int = 1,
) -> pathlib.Path:
    """Prepares a category and returns its directory.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Folder or archive with the files; "" means $RECJAX_DATA/amazon-2018-minionerec.
      category: Industrial_and_Scientific or Office_Products.
      negatives: "popular" or "uniform".
      negatives_per_positive: How many are drawn.
      min_count: Admission of items, in training events.
      seed: Of the draws and of the training order.
      block_size: Impressions per record.
      partitions: Of the histories.

    Raises:
      DataError: Files are missing or not as described.
    """
    names = {split: f"{category}_{split}.csv" for split in ("train", "valid", "test")}
    names["train"] += "?"
    patterns = (*names.values(), f"{category}.item.json", f"{category}.index.json")
    options = {
        "category": category,
        "negatives": [negatives, negatives_per_positive],
        "min_count": min_count,
        "partitions": partitions,
    }
    layout = {"seed": seed, "block_size": block_size}
    job = Job.of(AmazonSid, out_dir, source, patterns, options, **layout)
    if job.done:
        return job.target
    with job.files() as files:
        tables = {s: read_rows(files[n][0]) for s, n in names.items() if files[n]}
        texts, codes = (read_json(files[n][0]) for n in patterns[-2:])
    log = pl.concat([t.with_columns(split=pl.lit(s)) for s, t in tables.items()])
    sequences = Sequences.of(log["history_item_id"])
    positive = {"validation": targets(log, sequences, "valid"), "test": targets(log, sequences, "test")}  # fmt: skip
    if "train" in tables:
        train = targets(log, sequences, "train")
        past = sequences.item.filter(
            pl.Series((log["split"] == "train").to_numpy()[sequences.owner])
        )
    else:
        clean = untouched(log, sequences)
        past = sequences.item.filter(pl.Series(clean))
        train = sequences.rows(first_of_each(log, sequences, clean & (sequences.place > 0)))
    return next_item(
        job,
        sequences,
        log["user_id"],
        {"train": train, **positive},
        pl.concat([train.item, past]),
        item_table(codes),
        kind=negatives,
        k=negatives_per_positive,
        min_count=min_count,
        seed=seed,
        partitions=partitions,
        described={"item": text_table(texts)},
    )


def read_rows(file: pathlib.Path) -> pl.DataFrame:
    """user_id, history_item_id (lists), item_id."""
    table = pl.read_csv(file)
    for column in COLUMNS:
        if column not in table.columns:
            raise DataError(f"{file} has no column {column!r}; it has {', '.join(table.columns)}")
    history = pl.col("history_item_id").str.json_decode(pl.List(pl.Int64))
    return table.select("user_id", history, pl.col("item_id").cast(pl.Int64))


def read_json(file: pathlib.Path) -> dict[str, Any]:
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as stream:
        return json.load(stream)


def targets(log: pl.DataFrame, sequences: Sequences, split: str) -> Rows:
    """The rows of one of the publisher's splits."""
    at = np.flatnonzero((log["split"] == split).to_numpy())
    item, one = log["item_id"].gather(pl.Series(at)), np.ones(len(at), np.float32)
    # Requests of targets are numbered after those of events.
    return Rows(at, sequences.length[at], item, one, len(sequences.item) + at)


def untouched(log: pl.DataFrame, sequences: Sequences) -> np.ndarray:
    """Events of valid's histories before the first that is a target of their user, bool [E]."""
    user = log["user_id"].gather(pl.Series(sequences.owner))
    events = pl.DataFrame({"user_id": user, "item_id": sequences.item})
    wanted = log.select("user_id", "item_id").unique().with_columns(wanted=pl.lit(1))
    joined = events.join(wanted, on=["user_id", "item_id"], how="left", maintain_order="left")
    taken = joined["wanted"].fill_null(0).to_numpy()
    so_far = pl.DataFrame({"s": sequences.owner, "t": taken}).select(
        pl.col("t").cum_sum().over("s")
    )
    valid = (log["split"] == "valid").to_numpy()[sequences.owner]
    return valid & (so_far.to_series().to_numpy() == 0)


def first_of_each(log: pl.DataFrame, sequences: Sequences, chosen: np.ndarray) -> np.ndarray:
    """Chosen events, one of each (user, item): histories of a user overlap. int64 [N]"""
    at = np.flatnonzero(chosen)
    user = log["user_id"].gather(pl.Series(sequences.owner[at]))
    pair = pl.DataFrame({"user": user, "item": sequences.item.gather(pl.Series(at))})
    return at[pair.select(pl.struct("user", "item").is_first_distinct()).to_series().to_numpy()]


def item_table(codes: Mapping[str, list[str]]) -> pl.DataFrame:
    """item and its codes, one column a level."""
    rows = [(int(item), *levels) for item, levels in codes.items()]
    return pl.DataFrame(rows, schema=["item", *CODES], orient="row")


def text_table(texts: Mapping[str, Mapping[str, str]]) -> pl.DataFrame:
    """value, title, description, brand."""
    rows = [(int(i), *(t.get(c, "") for c in ("title", "description", "brand"))) for i, t in texts.items()]  # fmt: skip
    return pl.DataFrame(rows, schema=["value", "title", "description", "brand"], orient="row")
