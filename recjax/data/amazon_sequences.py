"""Ordered sequences of items without times, as S3-Rec and SASRec ship them: Beauty, Sports, Toys, Yelp, LastFM, Video.

    python -m recjax.data.published --name=amazon_sequences --option=data=Beauty --out=DIR

Format, from the files: `{data}.txt`, a line "user item item ..." per user (github.com/RUCAIBox/CIKM2020-S3Rec, data/) or a line
"user item" per event in order (github.com/kang205/SASRec, data/); `{data}_item2attributes.json`, item -> attribute ids,
where there is one.

Protocol. Leave-one-out, as the papers that use these sets do: the last item of each user is the test, the one before it
the validation, every other after the first is trained on. This is *not* a split in time: what one user is tested on may
lie before what another is trained on. There are no times (`recjax.data.sequences`). Negatives are drawn from the
items of the training rows. Of an item's attributes the first `attributes` count.
"""

import gzip
import json
import os
import pathlib

import numpy as np
import polars as pl

from recjax.data.prepared import DataError
from recjax.data.published import Job, Published
from recjax.data.sequences import Sequences, next_item
from recjax.data.writing import BLOCK_SIZE


class AmazonSequences(Published):
    """The sequence sets of S3-Rec and SASRec as blocks of impressions."""

    name = "amazon_sequences"
    FOLDER = "amazon-sequences"
    HOMEPAGE = "https://github.com/RUCAIBox/CIKM2020-S3Rec"
    DESCRIPTION = (
        "K-core sequences of Amazon reviews (Beauty, Sports_and_Outdoors, Toys_and_Games, Video), Yelp and LastFM: who took "
        "what after what, with item attributes and without times."
    )
    CITATION = """@inproceedings{zhou2020s3rec,
  title={S3-Rec: Self-Supervised Learning for Sequential Recommendation with Mutual Information Maximization},
  author={Zhou, Kun and Wang, Hui and Zhao, Wayne Xin and Zhu, Yutao and Wang, Sirui and Zhang, Fuzheng and Wang, Zhongyuan
    and Wen, Ji-Rong},
  booktitle={Proceedings of the 29th ACM International Conference on Information and Knowledge Management},
  year={2020}
}"""
    LICENSE = "S3-Rec: none stated; SASRec: Apache-2.0; Amazon review data: research use."


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    data: str = "Beauty",
    attributes: int = 8,
    negatives: str = "popular",
    negatives_per_positive: int = 4,
    min_count: int = 1,
    seed: int = 0,
    block_size: int = BLOCK_SIZE,
    partitions: int = 1,
) -> pathlib.Path:
    """Prepares one of the sets and returns its directory.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Folder or archive with the files; "" means $RECJAX_DATA/amazon-sequences.
      data: Which set, as its file is called.
      attributes: Of an item to keep.
      negatives: "popular" or "uniform".
      negatives_per_positive: How many are drawn.
      min_count: Admission of items, in training rows.
      seed: Of the draws and of the training order.
      block_size: Impressions per record.
      partitions: Of the users.

    Raises:
      DataError: Files are missing or not as described.
    """
    patterns = (f"{data}.txt", f"{data}_item2attributes.json?")
    options = {
        "data": data,
        "attributes": attributes,
        "negatives": [negatives, negatives_per_positive],
        "min_count": min_count,
        "partitions": partitions,
    }
    layout = {"seed": seed, "block_size": block_size}
    job = Job.of(AmazonSequences, out_dir, source, patterns, options, **layout)
    if job.done:
        return job.target
    with job.files() as files:
        user, sequences = read_sequences(files[patterns[0]][0])
        of_items = files[patterns[1]]
        items = item_table(sequences.item, of_items[0] if of_items else None, attributes)
    left = sequences.length[sequences.owner] - sequences.place  # 1 for the last event
    later = sequences.place > 0
    positive = {
        split: sequences.rows(np.flatnonzero(chosen & later))
        for split, chosen in (("train", left > 2), ("validation", left == 2), ("test", left == 1))
    }
    return next_item(
        job,
        sequences,
        user,
        positive,
        sequences.item.filter(pl.Series(left > 2)),
        items,
        kind=negatives,
        k=negatives_per_positive,
        min_count=min_count,
        seed=seed,
        partitions=partitions,
    )


def read_sequences(file: pathlib.Path) -> tuple[pl.Series, Sequences]:
    """Users and their sequences, of either form."""
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt") as stream:
        try:
            lines = [[int(x) for x in line.split()] for line in stream if line.strip()]
        except ValueError as e:
            raise DataError(f"{file}: {e}; lines are numbers, a user and its items") from None
    if not lines or any(len(line) < 2 for line in lines):
        raise DataError(f"{file} holds a line without an item; download it again")
    if all(len(line) == 2 for line in lines):  # an event a line
        events = pl.DataFrame(lines, schema=["user", "item"], orient="row")
        events = events.group_by("user", maintain_order=True).agg("item")
        return events["user"], Sequences.of(events["item"])
    return pl.Series([line[0] for line in lines]), Sequences.of(pl.Series([x[1:] for x in lines]))


def item_table(item: pl.Series, file: pathlib.Path | None, attributes: int) -> pl.DataFrame:
    """item and its first attributes, 0 for none."""
    items = pl.DataFrame({"item": item.unique().sort()})
    if file is None:
        return items
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt") as stream:
        known = json.load(stream)
    # Attribute 0 would be read as none, so all are counted from 1.
    rows = [[a + 1 for a in known.get(str(i), [])[:attributes]] for i in items["item"]]
    padded = [row + [0] * (attributes - len(row)) for row in rows]
    return items.with_columns(pl.Series("attributes", padded, dtype=pl.List(pl.Int64)))
