"""KuaiRand, real impressions with several labels and scenes: Pure, 1K and 27K as published, and a slice of Pure.

    python -m recjax.data.kuairand --source=KuaiRand-Pure --out=DIR
    RECJAX_DATA=FOLDER python -m recjax.data.kuairand --out=DIR

`source` is a folder of either form (`recjax.data.sets.kuairand_files`); "" means $RECJAX_DATA/kuairand-pure. As published, the
standard log goes from 8 April to 8 May 2022; the slice holds that of KuaiRand-Pure from 25 April on.

Protocol. Rows are impressions; labels `is_click` (the main one), `long_view`, `like`, `follow`. The log holds the same
event up to six times: `duplicates="event"` keeps the first row of each (user, video, time), 222,444 rows of the slice;
`duplicates="row"` removes only rows equal in every column, 222,869 rows, of which 193,964 until 6 May and 28,905 after.
Days are those of the log's `date`. Test: 7-8 May. Validation: the last `validation_days` training days (5-6 May), since
what is tuned for is the near future; 0 leaves them in training. A request is one impression.

History: the user's earlier clicked or long-viewed impressions. In the slice they are preceded by up to 50 videos watched
before it, which have an order but no times: all carry the time of the last, which the slice gives. The three impressions
not later than that time simply do not see them.

Left out: the log of randomly exposed videos, and the per-video statistics (show_cnt, play_cnt, ...), which were counted over
the whole month, test days included. The user ranges (followers, fans, ...) are one snapshot of unknown date.
"""

from collections.abc import Mapping
import datetime
import functools
import os
import pathlib
from typing import Any

from absl import flags, logging
import numpy as np
import polars as pl

from recjax import command
from recjax.data.sets.kuairand_files import KuaiRand, RawFiles, locate
from recjax.data.store import histories
from recjax.data.store.histories import Counter, CounterIndex, Timeline
from recjax.data.store.prepared import DataError, is_prepared, prepared_path, say_prepared
from recjax.data.store.vocabulary import Vocabulary, frames
from recjax.data.store.writing import BLOCK_SIZE, write_prepared
from recjax.schema import Feature, Schema

NAME, VERSION = "kuairand", "1.0.0"
LAST_TRAIN_DAY = datetime.date(2022, 5, 6)
UTC_OFFSET = 8 * 3600  # the log's days and hours are China's
LABELS = {
    "is_click": "is_click",
    "long_view": "long_view",
    "like": "is_like",
    "follow": "is_follow",
}
PROFILE = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
)
VIDEO = ("author", "tag", "music", "video_type", "upload_type")
HISTORY = ("video", "author", "tag", "tab")
KEYS = {
    "user": ("user",),
    "video": ("video",),
    "author": ("author",),
    "user_author": ("user", "author"),
    "tab": ("tab",),
}
# What happened to the key: shown at all, and clicked; their quotient is a causal click rate.
COUNTERS = {
    kind: tuple(Counter(f"{name}_{kind}", keys) for name, keys in KEYS.items())
    for kind in ("shown", "clicked")
}


def read_impressions(raw: RawFiles, duplicates: str) -> tuple[pl.DataFrame, dict[str, int]]:
    """Impressions by (time, log order), with user, video, time (seconds), day, tab, labels and video columns."""
    if duplicates not in ("event", "row"):
        raise DataError(f"duplicates={duplicates!r}; use 'event' or 'row'")
    log = raw.impressions()
    day = pl.col("date").cast(pl.String).str.to_date("%Y%m%d")
    log = log.with_columns(day.alias("day"), (pl.col("time_ms") // 1000).alias("time"))
    until = int(
        datetime.datetime.combine(log["day"].max(), datetime.time.max, datetime.UTC).timestamp()
    )
    log, taken = histories.quarantine(
        log,
        ids=("user_id", "video_id"),
        time="time",
        until=until,
        unique=("user_id", "video_id", "time_ms") if duplicates == "event" else (),
    )
    log = log.rename({"user_id": "user", "video_id": "video"}).sort("time_ms", maintain_order=True)
    columns = [pl.col(raw).cast(pl.Float32).alias(name) for name, raw in LABELS.items()]
    log = log.select("user", "video", "time", "day", "tab", "duration_ms", *columns)
    return log, taken


def read_videos(raw: RawFiles, video: pl.Series) -> pl.DataFrame:
    """Static columns of videos, aligned with `video`; null where unknown."""
    table = raw.video_table().select(
        pl.col("video_id").alias("video"),
        pl.col("author_id").alias("author"),
        # A video has up to a few tags, "12,65"; the first is its main one.
        pl.col("tag").str.split(",").list.first().replace("unknown", None),
        pl.col("music_id").alias("music"),
        "video_type",
        "upload_type",
    )
    table = table.unique("video", keep="first")
    return pl.DataFrame({"video": video}).join(table, on="video", how="left", maintain_order="left")


def encode_all(
    log: pl.DataFrame, people: pl.DataFrame, trained: np.ndarray, min_count: int
) -> tuple[dict[str, Vocabulary], pl.DataFrame]:
    """Vocabularies from the training impressions, and the impressions' id columns."""
    hour = (log["time"] + UTC_OFFSET) // 3600
    columns = {c: log[c] for c in ("user", "video", "tab", *VIDEO)}
    columns |= {c: people[c] for c in PROFILE}
    columns |= {"hour": hour % 24, "weekday": log["day"].dt.weekday()}
    admit = {"video": min_count, "author": min_count, "music": min_count}
    v = {
        c: Vocabulary.build(c, x.filter(pl.Series(trained)), admit.get(c, 1))
        for c, x in columns.items()
    }
    return v, pl.DataFrame({c: v[c].encode(x) for c, x in columns.items()})


def build_history(
    raw: RawFiles,
    log: pl.DataFrame,
    v: Mapping[str, Vocabulary],
    users: pl.Series,
    partitions: int,
) -> list[Timeline]:
    """Timelines: untimed watched videos first, then clicked or long-viewed impressions."""
    old = raw.watched().filter(pl.col("user").is_in(users.implode()))
    old = old.join(
        read_videos(raw, old["video"].unique()), on="video", how="left", maintain_order="left"
    )
    old = old.with_columns(pl.lit(None, log["tab"].dtype).alias("tab"))
    new = log.filter((pl.col("is_click") > 0) | (pl.col("long_view") > 0))
    events = pl.concat([x.select("user", "time", *HISTORY) for x in (old, new)])
    fields = {f"history_{c}": v[c].encode(events[c]) for c in HISTORY}
    user = users.search_sorted(events["user"]).cast(pl.Int64).to_numpy()
    return histories.build_timelines(
        user, events["time"].to_numpy(), fields, len(users), partitions
    )


def count_causally(log: pl.DataFrame, user: np.ndarray) -> dict[str, np.ndarray]:
    """All counter columns of all impressions."""
    codes = {
        c: log[c].rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
        for c in ("video", "author", "tab")
    }
    codes |= {"user": user, "time": log["time"].to_numpy()}
    sizes = {c: int(x.max()) + 1 for c, x in codes.items() if c != "time"}
    out = {}
    for kind, happened in (("shown", slice(None)), ("clicked", log["is_click"].to_numpy() > 0)):
        events = {c: x[happened] for c, x in codes.items()}
        out |= histories.count_all(
            [CounterIndex.build(c, events, sizes) for c in COUNTERS[kind]], codes
        )
    return out


def make_schema(vocabularies: Mapping[str, Vocabulary]) -> Schema:
    """Profile, context (scene and time), candidate with causal counters, history, four labels."""
    same = lambda role, *names: tuple(Feature(n, role, n) for n in names)  # noqa: E731
    dense = [c for counters in COUNTERS.values() for counter in counters for c in counter.columns]
    return Schema(
        id_spaces=tuple(v.space for v in vocabularies.values()),
        features=(
            Feature("user_id", "profile", "user"),
            *same("profile", *PROFILE),
            *same("context", "tab", "hour", "weekday"),
            *same("candidate", "video", *VIDEO),
            Feature("duration", "candidate", transform="log1p"),
            *(Feature(c, "candidate", transform="log1p") for c in dense),
            *(Feature(f"history_{c}", "history", c, list="history") for c in HISTORY),
            *(Feature(label, "label") for label in LABELS),
        ),
        groups=("user",),
    )


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    duplicates: str = "event",
    validation_days: int = 2,
    min_count: int = 2,
    seed: int = 0,
    unit: str = "impression",
    block_size: int = BLOCK_SIZE,
    partitions: int = 1,
) -> pathlib.Path:
    """Prepares KuaiRand and returns its directory; does nothing when these options were prepared before.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Folder of the files as published, or of the slice; "" means $RECJAX_DATA/kuairand-pure.
      duplicates: Which repeated rows to remove, "event" or "row" (module docstring).
      validation_days: Training days, counted from the last, that become the validation split.
      min_count: Admission to the video, author and music vocabularies, in training impressions.
      seed: Of the training order.
      unit: What the training order permutes; a request is one impression.
      block_size: Impressions per record.
      partitions: Of the users.

    Raises:
      DataError: Files are missing.
    """
    raw = locate(source)
    options: dict[str, Any] = {
        "duplicates": duplicates,
        "validation_days": validation_days,
        "min_count": min_count,
        "partitions": partitions,
        "source": raw.sizes,
    }
    layout = {"block_size": block_size, "unit": unit, "seed": seed}
    path = prepared_path(out_dir, NAME, options | layout, VERSION)
    if is_prepared(path):
        say_prepared(NAME, path)
        return path
    log, taken = read_impressions(raw, duplicates)
    log = log.with_columns(read_videos(raw, log["video"]).drop("video"))
    last = LAST_TRAIN_DAY - datetime.timedelta(days=validation_days)
    trained = (log["day"] <= last).to_numpy()
    held_out = (log["day"] <= LAST_TRAIN_DAY).to_numpy() & ~trained
    splits = {
        "train": trained,
        "validation": held_out,
        "test": (log["day"] > LAST_TRAIN_DAY).to_numpy(),
    }
    splits = {split: np.flatnonzero(rows) for split, rows in splits.items() if rows.any()}
    people = pl.DataFrame({"user_id": log["user"]}).join(
        raw.user_table(),
        on="user_id",
        how="left",
        maintain_order="left",
    )
    v, ids = encode_all(log, people, trained, min_count)
    users = log["user"].unique().sort()
    user = users.search_sorted(log["user"]).cast(pl.Int64).to_numpy()
    timelines = build_history(raw, log, v, users, partitions)
    cut = histories.cutoffs(timelines, user, log["time"].to_numpy())
    columns = {c: ids[c].to_numpy() for c in ids.columns if c != "user"} | {
        "user_id": ids["user"].to_numpy()
    }
    columns |= count_causally(log, user)
    columns |= {c: log[c].to_numpy() for c in ("time", *LABELS)}
    columns |= {"duration": (log["duration_ms"] / 1000).cast(pl.Float32).fill_null(0).to_numpy()}
    columns |= {
        "history/end": cut["end"],
        "history/count": cut["count"],
        "partition": cut["partition"],
    }
    columns |= {"user": user, "request": np.arange(len(log))}
    report = make_report(log, taken, v, cut["count"], splits)
    logging.info("%s", report_text(report))
    names = [c for counters in COUNTERS.values() for counter in counters for c in counter.columns]
    return write_prepared(
        out_dir,
        NAME,
        make_schema(v),
        {"history": [t.columns for t in timelines]},
        {split: functools.partial(_take, columns, rows) for split, rows in splits.items()},
        vocab=frames(v),
        report=report,
        facts={"counters": names, "last_train_day": str(last)},
        options=options,
        version=VERSION,
        builder=KuaiRand,
        **layout,
    )


def _take(columns: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: x[rows] for name, x in columns.items()}


def make_report(log: pl.DataFrame, taken, v, history: np.ndarray, splits) -> dict[str, Any]:
    """What was found and kept; plain JSON."""
    by_day = log.group_by("day").agg(pl.col(*LABELS).mean(), pl.len().alias("rows")).sort("day")
    return {
        "rows": len(log),
        "users": log["user"].n_unique(),
        "items": log["video"].n_unique(),
        "quarantined": taken,
        "rates_by_day": {str(r.pop("day")): r for r in by_day.to_dicts()},
        "vocabularies": {name: len(x.values) for name, x in v.items()},
        "splits": {
            split: {
                "rows": len(rows),
                "users": log["user"][rows].n_unique(),
                "items": log["video"][rows].n_unique(),
                "click_rate": float(log["is_click"][rows].mean()),
                "history_median": float(np.median(history[rows])),
                "history_max": int(history[rows].max()),
            }
            for split, rows in splits.items()
        },
    }


def report_text(report: Mapping[str, Any]) -> str:
    """A report in a few lines."""
    lines = [
        f"{report['rows']:,} impressions of {report['items']:,} videos to {report['users']:,} users; "
        f"taken out: {report['quarantined']}"
    ]
    for split, s in report["splits"].items():
        lines.append(
            f"{split}: {s['rows']:,} rows, {s['users']:,} users, {s['items']:,} videos, click rate "
            f"{s['click_rate']:.3f}, history median {s['history_median']:.0f}, max {s['history_max']:,}"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.INFO)
    names = (
        "source",
        "duplicates",
        "validation_days",
        "min_count",
        "seed",
        "block_size",
        "partitions",
    )
    print(prepare(flags.FLAGS.out, **{name: flags.FLAGS[name].value for name in names}))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder that holds prepared data sets.", required=True)
    flags.DEFINE_string("source", "", "Folder of the files; empty: $RECJAX_DATA/kuairand-pure.")
    flags.DEFINE_enum("duplicates", "event", ["event", "row"], "Which repeated rows to remove.")
    flags.DEFINE_integer("validation_days", 2, "Training days held out for validation.")
    flags.DEFINE_integer("min_count", 2, "Admission to the vocabularies.")
    flags.DEFINE_integer("seed", 0, "Of the training order.")
    flags.DEFINE_integer("block_size", BLOCK_SIZE, "Impressions per record.")
    flags.DEFINE_integer("partitions", 1, "Of the users.")
    command.run(main)
