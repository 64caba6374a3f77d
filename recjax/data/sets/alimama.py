"""Alimama display advertising (Ali_Display_Ad_Click): eight days of Taobao ads shown, and 22 days of shopping before them.

    python -m recjax.data.published --name=alimama --source=FOLDER --out=DIR --option=users=0.1

Format, from the publisher's description (tianchi.aliyun.com/dataset/56) and the sample lines in PaddleRec's
datasets/Ali_Display_Ad_Click/readme.md; four CSV files with headers:

    raw_sample.csv    user,time_stamp,adgroup_id,pid,nonclk,clk                        26 M rows, 6-13 May 2017
    ad_feature.csv    adgroup_id,cate_id,campaign_id,customer,brand,price
    user_profile.csv  userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,
                      new_user_class_level (the header ends in a space)
    behavior_log.csv  user,time_stamp,btag,cate,brand  (btag pv, cart, fav, buy)      723 M rows, 22 April - 13 May

Some copies call a column `customer_id` or `nick`; either is taken. "NULL" is null.

Protocol. Rows are real impressions with the label `clk`. Test is 13 May, as everywhere; validation is 12 May; days are
China's. History: the user's shopping behaviour strictly before the impression, by category, brand and kind; the behaviour log
does not name items. Causal counters count ads shown and clicked. Profiles and ads are tables without dates.

All rows are held in memory: the behaviour of all users needs some 60 GB. `users=0.1` keeps a tenth of them.
"""

from collections.abc import Mapping
import functools
import os
import pathlib
from typing import Any

import numpy as np
import polars as pl

from recjax.data.logs.events import codes
from recjax.data.sets.published import Job, Published, share_of_users
from recjax.data.store import histories
from recjax.data.store.dates import seconds_of
from recjax.data.store.histories import Counter, CounterIndex
from recjax.data.store.prepared import DataError
from recjax.data.store.vocabulary import Vocabulary
from recjax.data.store.writing import BLOCK_SIZE
from recjax.schema import Feature, Schema

FILES = ("raw_sample.csv", "ad_feature.csv", "user_profile.csv", "behavior_log.csv")
VALIDATION, TEST = "2017-05-12T00:00+08:00", "2017-05-13T00:00+08:00"
UTC_OFFSET = 8 * 3600
OTHER_NAMES = {"customer_id": "customer", "nick": "user", "user_id": "user", "noclk": "nonclk"}
PROFILE = (
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
)
AD = ("adgroup_id", "cate_id", "campaign_id", "customer", "brand")
EVENT = {"cate": "cate_id", "brand": "brand", "btag": "btag"}  # column of the log -> id space
KEYS = {
    "user": ("user",),
    "ad": ("adgroup_id",),
    "user_cate": ("user", "cate_id"),
    "user_brand": ("user", "brand"),
    "user_ad": ("user", "adgroup_id"),
}
COUNTERS = {
    kind: tuple(Counter(f"{name}_{kind}", keys) for name, keys in KEYS.items())
    for kind in ("shown", "clicked")
}


class Alimama(Published):
    """Ali_Display_Ad_Click as blocks of impressions."""

    name = "alimama"
    HOMEPAGE = "https://tianchi.aliyun.com/dataset/56"
    DESCRIPTION = (
        "Display advertisements shown to 1.14 million random users of Taobao on eight days of May 2017 (26 million "
        "impressions with clicks), the ads, the users' profiles, and 22 days of their shopping behaviour (700 million events)."
    )
    CITATION = """@inproceedings{zhou2018din,
  title={Deep Interest Network for Click-Through Rate Prediction},
  author={Zhou, Guorui and Zhu, Xiaoqiang and Song, Chenru and Fan, Ying and Zhu, Han and Ma, Xiao and Yan, Yanghui and
    Jin, Junqi and Li, Han and Gai, Kun},
  booktitle={Proceedings of the 24th ACM SIGKDD International Conference on Knowledge Discovery and Data Mining},
  year={2018}
}"""
    LICENSE = "By the terms of the publisher's page."


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    users: float = 1.0,
    min_count: int = 5,
    seed: int = 0,
    block_size: int = BLOCK_SIZE,
    partitions: int = 1,
) -> pathlib.Path:
    """Prepares the impressions with their histories and returns the directory.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Folder or archive with the four files.
      users: Share of the users to keep.
      min_count: Admission of ads, categories, campaigns, advertisers, brands and users, in training impressions.
      seed: Of the training order.
      block_size: Impressions per record.
      partitions: Of the users.

    Raises:
      DataError: A file or column is missing.
    """
    options = {"users": users, "min_count": min_count, "partitions": partitions}
    layout = {"seed": seed, "block_size": block_size}
    job = Job.of(Alimama, out_dir, source, FILES, options, **layout)
    if job.done:
        return job.target
    with job.files() as files:
        shown, ads, people, behaviour = (files[name][0] for name in FILES)
        log, taken = read_impressions(shown, ads, people, users)
        values = log["user"].unique().sort()
        events = read_behaviour(behaviour, values, users)
    user = values.search_sorted(log["user"]).cast(pl.Int64).to_numpy()
    splits = split_by_day(log["time_stamp"])
    v = vocabularies(log[splits["train"]], events, min_count)
    fields = {f"history_{c}": v[space].encode(events[c]) for c, space in EVENT.items()}
    who = values.search_sorted(events["user"]).cast(pl.Int64).to_numpy()
    when = events["time_stamp"].to_numpy()
    timelines = histories.build_timelines(who, when, fields, len(values), partitions)
    columns = encode(log, user, v) | count_causally(log, user)
    cut = histories.cutoffs(timelines, user, log["time_stamp"].to_numpy())
    columns |= {"history/end": cut["end"], "history/count": cut["count"]}
    columns |= {"partition": cut["partition"]}
    report = {
        "rows": log.height,
        "users": len(values),
        "items": log["adgroup_id"].n_unique(),
        "events": events.height,
        "quarantined": taken,
        "splits": {
            split: {"rows": len(rows), "click_rate": float(columns["clk"][rows].mean())}
            for split, rows in splits.items()
        },
        "vocabularies": {name: len(x.values) for name, x in v.items()},
    }
    counted = [c for kind in COUNTERS.values() for counter in kind for c in counter.columns]
    take = lambda rows: {c: x[rows] for c, x in columns.items()}  # noqa: E731
    return job.write(
        make_schema(v, counted),
        {"history": timelines},
        {split: functools.partial(take, rows) for split, rows in splits.items()},
        v,
        report,
        {"counters": counted},
    )


def scan(file: pathlib.Path, wanted: Mapping[str, Any]) -> pl.LazyFrame:
    """The wanted columns of a file, by either name, with their types."""
    raw = pl.scan_csv(file, infer_schema=False, null_values=["NULL", ""])
    names = {n: OTHER_NAMES.get(n.strip(), n.strip()) for n in raw.collect_schema().names()}
    raw = raw.rename(names)
    for column in wanted:
        if column not in names.values():
            raise DataError(f"{file} has no column {column!r}; it has {', '.join(names.values())}")
    return raw.select(pl.col(c).cast(dtype) for c, dtype in wanted.items())


def read_impressions(
    shown: pathlib.Path, ads: pathlib.Path, people: pathlib.Path, users: float
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Impressions in time order with the columns of their ad and their user, and how many were taken out."""
    whole = dict.fromkeys(("user", "time_stamp", "adgroup_id"), pl.Int64)
    raw = scan(shown, whole | {"pid": pl.String, "clk": pl.Float32})
    log: pl.DataFrame = raw.filter(share_of_users("user", users)).collect()
    last = seconds_of(TEST) + 86_400 - 1
    ids = ("user", "adgroup_id", "clk")
    log, taken = histories.quarantine(log, ids=ids, time="time_stamp", until=last)
    ad = scan(ads, dict.fromkeys(AD, pl.Int64) | {"price": pl.Float32}).collect()
    # The file calls users "userid"; its other columns are codes.
    profile = scan(people, dict.fromkeys(("userid", *PROFILE), pl.Int64)).collect()
    log = log.sort("time_stamp", maintain_order=True)
    log = log.join(ad.unique("adgroup_id"), on="adgroup_id", how="left", maintain_order="left")
    profile = profile.unique("userid").rename({"userid": "user"})
    return log.join(profile, on="user", how="left", maintain_order="left"), taken


def read_behaviour(file: pathlib.Path, users: pl.Series, share: float) -> pl.DataFrame:
    """Shopping of these users: user, time_stamp, btag, cate, brand, in the order of the file."""
    whole = dict.fromkeys(("user", "time_stamp", "cate", "brand"), pl.Int64)
    events = scan(file, whole | {"btag": pl.String}).filter(share_of_users("user", share))
    events = events.filter(
        pl.col("time_stamp").is_not_null(), pl.col("user").is_in(users.implode())
    )
    return events.collect()


def split_by_day(time: pl.Series) -> dict[str, np.ndarray]:
    """split -> rows."""
    begins = [seconds_of(VALIDATION), seconds_of(TEST)]
    place = np.searchsorted(begins, time.to_numpy(), side="right")
    splits = {s: np.flatnonzero(place == i) for i, s in enumerate(("train", "validation", "test"))}
    for split, rows in splits.items():
        if not len(rows):
            raise DataError(
                f"no impression falls into {split}; are these all days of raw_sample.csv?"
            )
    return splits


def vocabularies(
    train: pl.DataFrame, events: pl.DataFrame, min_count: int
) -> dict[str, Vocabulary]:
    """From training impressions; categories and brands also from the behaviour before validation."""
    early = events.filter(pl.col("time_stamp") < seconds_of(VALIDATION))
    build = Vocabulary.build
    v = {
        c: build(c, train[c], min_count) for c in ("user", "adgroup_id", "campaign_id", "customer")
    }
    for column, space in (("cate", "cate_id"), ("brand", "brand")):
        v[space] = build(space, pl.concat([train[space].alias(column), early[column]]), min_count)
    v |= {c: build(c, train[c]) for c in ("pid", *PROFILE)}
    hour = pl.Series(range(24))
    return v | {"btag": build("btag", early["btag"]), "hour": build("hour", hour)}


def encode(
    log: pl.DataFrame, user: np.ndarray, v: Mapping[str, Vocabulary]
) -> dict[str, np.ndarray]:
    """Columns of the impressions [N] but for histories and counters."""
    out = {c: v[c].encode(log[c]) for c in (*AD, *PROFILE, "pid")}
    out["hour"] = v["hour"].encode((log["time_stamp"] + UTC_OFFSET) // 3600 % 24)
    out |= {"user_id": v["user"].encode(log["user"]), "user": user}
    out |= {"price": log["price"].fill_null(0).clip(0).to_numpy(), "clk": log["clk"].to_numpy()}
    return out | {"time": log["time_stamp"].to_numpy(), "request": np.arange(log.height)}


def count_causally(log: pl.DataFrame, user: np.ndarray) -> dict[str, np.ndarray]:
    """All counter columns of all impressions."""
    asked = {c: codes(log[c])[1] + 1 for c in ("adgroup_id", "cate_id", "brand")} | {"user": user}
    sizes = {c: int(x.max()) + 1 for c, x in asked.items()}
    asked["time"] = log["time_stamp"].to_numpy()
    out = {}
    for kind, happened in (("shown", slice(None)), ("clicked", log["clk"].to_numpy() > 0)):
        events = {c: x[happened] for c, x in asked.items()}
        indexes = [CounterIndex.build(c, events, sizes) for c in COUNTERS[kind]]
        out |= histories.count_all(indexes, asked)
    return out


def make_schema(v: Mapping[str, Vocabulary], counted: list[str]) -> Schema:
    """Profile, place and hour, ad with causal counters, shopping history, click."""
    return Schema(
        id_spaces=tuple(x.space for x in v.values()),
        features=(
            Feature("user_id", "profile", "user"),
            *(Feature(c, "profile", c) for c in PROFILE),
            *(Feature(c, "context", c) for c in ("pid", "hour")),
            *(Feature(c, "candidate", c) for c in AD),
            Feature("price", "candidate", transform="log1p"),
            *(Feature(c, "candidate", transform="log1p") for c in counted),
            *(Feature(f"history_{c}", "history", s, list="history") for c, s in EVENT.items()),
            Feature("clk", "label"),
        ),
        groups=("user",),
    )
