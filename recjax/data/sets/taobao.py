"""Taobao UserBehavior: nine days of page views, favourites, carts and purchases of about a million users.

    python -m recjax.data.published --name=taobao --source=UserBehavior.csv.zip --out=DIR

Format, from the publisher's description (tianchi.aliyun.com/dataset/649), quoted in many places: UserBehavior.csv without a
header, columns user id, item id, category id, behaviour (pv, buy, cart, fav), time stamp in seconds; 100,150,807 rows of
987,994 users, 4,162,024 items and 9,439 categories.

Protocol. A page view is a positive, and negatives are drawn from the items viewed in the training period; the other
behaviours are in the history, whose events know their behaviour. The published days are 25 November to 3 December 2017 in
China; the file has some rows of other days, which are left out and counted. Validation is 2 December, test 3 December.

All rows are held in memory: 100 M of them need some 40 GB. `users=0.1` keeps a tenth of the users, by their id.
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

import polars as pl

from recjax.data.logs.mapping import LogMapping
from recjax.data.sets.published import LOG, Files, Published, prepare_log, share_of_users
from recjax.data.store.dates import seconds_of

FILE = "UserBehavior.csv"
COLUMNS = {"user": pl.Int64, "item": pl.Int64, "category": pl.Int64, "behavior": pl.String, "time": pl.Int64}  # fmt: skip
FROM, UNTIL = "2017-11-25T00:00+08:00", "2017-12-04T00:00+08:00"
MAPPING = LogMapping(
    user="user",
    item="item",
    time="time",
    time_unit="s",
    utc_offset=8,
    action="behavior",
    labels={"view": ["pv"]},
    negatives="popular",
    item_columns=("category",),
    item_table="items.parquet",
    split={"validation": "2017-12-02T00:00+08:00", "test": "2017-12-03T00:00+08:00"},
)


class Taobao(Published):
    """Taobao UserBehavior as blocks of impressions."""

    name = "taobao"
    HOMEPAGE = "https://tianchi.aliyun.com/dataset/649"
    DESCRIPTION = (
        "All behaviours (view, purchase, cart, favourite) of about one million random users of Taobao with the items' "
        "categories, 25 November to 3 December 2017: 100,150,807 events."
    )
    CITATION = """@inproceedings{zhu2018tdm,
  title={Learning Tree-based Deep Model for Recommender Systems},
  author={Zhu, Han and Li, Xiang and Zhang, Pengye and Li, Guozheng and He, Jie and Li, Han and Gai, Kun},
  booktitle={Proceedings of the 24th ACM SIGKDD International Conference on Knowledge Discovery and Data Mining},
  year={2018}
}"""
    LICENSE = "By the terms of the publisher's page."


def prepare(
    out_dir: str | os.PathLike, *, source: str = "", users: float = 1.0, **options
) -> pathlib.Path:
    """Prepares the log and returns its directory.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Folder or archive with UserBehavior.csv.
      users: Share of the users to keep.
      **options: Of `recjax.data.sets.published.prepare_log`.

    Raises:
      DataError: The file is missing or not as described.
    """

    def stage(files: Files, folder: pathlib.Path) -> Mapping[str, Any]:
        raw = pl.scan_csv(files[FILE][0], has_header=False, schema=COLUMNS)
        raw = raw.filter(share_of_users("user", users))
        inside = pl.col("time").is_between(seconds_of(FROM), seconds_of(UNTIL), closed="left")
        # A category in the log would be known only from an item's first event on.
        raw.filter(inside).drop("category").sink_parquet(folder / LOG)
        items = raw.select("item", "category").unique("item", keep="first", maintain_order=True)
        items.sink_parquet(folder / MAPPING.item_table)
        return {"outside_the_published_days": raw.filter(~inside).select(pl.len()).collect().item()}

    return prepare_log(
        Taobao, out_dir, source, MAPPING, (FILE,), stage, options={"users": users}, **options
    )
