"""The two forms KuaiRand's files come in, and what they are.

As published (kuairand.com, github.com/chongminggao/KuaiRand, whose README documents files and columns; Zenodo record
10439422), where x is pure, 1k or 27k, of 27k logs and statistics in parts:

    data/log_standard_4_08_to_4_21_x.csv  data/log_standard_4_22_to_5_08_x.csv  data/log_random_4_22_to_5_08_x.csv
    data/user_features_x.csv  data/video_features_basic_x.csv  data/video_features_statistic_x.csv

The slice: `val.parquet` and `test.parquet` (the impressions), `item_features.parquet`, `user_features.parquet` and
`user_sequences.parquet` (videos watched before).

Everything is held in memory: 11.7 M impressions of 1K are a gigabyte or so, 322 M of 27K need a machine of some hundred.
"""

import dataclasses
import os
import pathlib

import polars as pl

from recjax.data.sets.published import Published, find
from recjax.data.store.prepared import DataError

SLICE = ("val", "test", "item_features", "user_features", "user_sequences")
LOGS = ("log_standard_4_08_to_4_21_*.csv", "log_standard_4_22_to_5_08_*.csv")
VIDEOS, USERS = "video_features_basic_*.csv", "user_features_*.csv"
COLUMNS = {  # of the standard log, those that are read
    "user_id": pl.Int64,
    "video_id": pl.Int64,
    "date": pl.Int64,
    "time_ms": pl.Int64,
    "is_click": pl.Int8,
    "is_like": pl.Int8,
    "is_follow": pl.Int8,
    "long_view": pl.Int8,
    "duration_ms": pl.Float64,
    "tab": pl.Int64,
}
OF_VIDEO = {
    "video_id": pl.Int64,
    "author_id": pl.Int64,
    "video_type": pl.String,
    "upload_type": pl.String,
    "music_id": pl.Int64,
    "tag": pl.String,
}


class KuaiRand(Published):
    """KuaiRand as blocks of impressions."""

    name = "kuairand"
    FOLDER = "kuairand-pure"
    HOMEPAGE = "https://kuairand.com"
    DESCRIPTION = (
        "Recommendation logs of the short-video app Kuaishou, 8 April to 8 May 2022: twelve feedback signals, fifteen scenes "
        "and millisecond times. 27K: 27,285 users, 322,278,385 standard impressions of 32,038,725 videos; 1K: 1,000 of these "
        "users, 11,713,045 impressions; Pure: the 1,436,609 standard impressions of the 7,551 videos of the candidate pool."
    )
    CITATION = """@inproceedings{gao2022kuairand,
  title={KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos},
  author={Gao, Chongming and Li, Shijun and Zhang, Yuan and Chen, Jiawei and Li, Biao and Lei, Wenqiang and Jiang, Peng
    and He, Xiangnan},
  booktitle={Proceedings of the 31st ACM International Conference on Information and Knowledge Management},
  pages={3953--3957},
  doi={10.1145/3511808.3557624},
  year={2022}
}"""
    LICENSE = "CC BY-SA 4.0"


@dataclasses.dataclass(frozen=True)
class RawFiles:
    """The files of one form.

    Attributes:
      logs, videos, users: As published; of the slice its impressions and tables.
      earlier: Videos watched before, of the slice; else None.
    """

    logs: tuple[pathlib.Path, ...]
    videos: pathlib.Path
    users: pathlib.Path
    earlier: pathlib.Path | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """File -> bytes: part of the data's identity."""
        files = (*self.logs, self.videos, self.users, *filter(None, [self.earlier]))
        return {f.name.removesuffix(".parquet"): f.stat().st_size for f in files}

    def impressions(self) -> pl.DataFrame:
        """All columns of the slice's impressions; `COLUMNS` of the published ones."""
        if self.earlier:
            return pl.concat([pl.read_parquet(f) for f in self.logs])
        return pl.concat([_read_csv(f, COLUMNS) for f in self.logs])

    def video_table(self) -> pl.DataFrame:
        """Static columns of videos: `OF_VIDEO` at least."""
        return pl.read_parquet(self.videos) if self.earlier else _read_csv(self.videos, OF_VIDEO)

    def user_table(self) -> pl.DataFrame:
        """One row per user."""
        if self.earlier:
            return pl.read_parquet(self.users)
        return pl.read_csv(self.users, infer_schema_length=None)

    def watched(self) -> pl.DataFrame:
        """Videos watched before the log, in order: user, video, time (the last one's, for all)."""
        if not self.earlier:
            return pl.DataFrame(schema=dict.fromkeys(("user", "video", "time"), pl.Int64))
        raw = pl.read_parquet(self.earlier).select(
            pl.col("user_id").alias("user"),
            pl.col("watch_seq").alias("video"),
            (pl.col("last_time_ms") // 1000).alias("time"),
        )
        return raw.explode("video").drop_nulls()


def _read_csv(file: pathlib.Path, columns: dict) -> pl.DataFrame:
    try:
        return pl.scan_csv(file, schema_overrides=columns).select(*columns).collect()
    except (pl.exceptions.ColumnNotFoundError, pl.exceptions.ComputeError) as e:
        reason = str(e).splitlines()[0]
        raise DataError(f"{file} is not as KuaiRand publishes it: {reason}") from e


def locate(source: str) -> RawFiles:
    """The files of either form below `source`."""
    root = os.environ.get("RECJAX_DATA", "")
    if not source and not root:
        raise DataError(
            "KuaiRand is not here; give source=FOLDER, or name its parent folder in RECJAX_DATA"
        )
    folder = pathlib.Path(source or pathlib.Path(root) / KuaiRand.FOLDER)
    if find(folder, f"{LOGS[1]}?"):
        logs = tuple(f for pattern in LOGS for f in find(folder, pattern))
        return RawFiles(logs, find(folder, VIDEOS)[0], find(folder, USERS)[0])
    for name in SLICE:
        if not (folder / f"{name}.parquet").exists():
            raise DataError(
                f"{folder / name}.parquet is missing; give source a folder with {', '.join(SLICE)}, or with "
                "KuaiRand's CSV files as published"
            )
    val, test, items, users, earlier = (folder / f"{name}.parquet" for name in SLICE)
    return RawFiles((val, test), items, users, earlier)
