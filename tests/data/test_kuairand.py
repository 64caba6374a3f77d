"""KuaiRand-Pure: the real slice where RECJAX_DATA has it, and bad input everywhere."""

import numpy as np
import polars as pl
import pytest

from recjax.data import kuairand as kr
from recjax.data.histories import NEVER
from recjax.data.prepared import DataError, Prepared
from recjax.schema import OOV


@pytest.fixture(scope="module")
def source(real_data):
    return real_data("kuairand-pure")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def prepared(source, out):
    return Prepared(kr.prepare(out, source=str(source)))


@pytest.fixture(scope="module")
def log(source):
    """Raw impressions without repeated events, in the order of `request`."""
    raw = pl.concat([pl.read_parquet(source / f"{name}.parquet") for name in ("val", "test")])
    raw = raw.unique(["user_id", "video_id", "time_ms"], keep="first", maintain_order=True)
    return raw.sort("time_ms", maintain_order=True).with_columns(
        (pl.col("time_ms") // 1000).alias("time")
    )


def read(data, split):
    blocks = [data.block(split, i) for i in range(data.blocks(split))]
    return {c: np.concatenate([b[c] for b in blocks]) for c in blocks[0] if c != "partition"}


def test_counts_of_the_slice(prepared):
    assert prepared.report["quarantined"] == {"null_id": 0, "future": 0, "duplicate": 5_885}
    assert prepared.splits == {"train": 166_932, "validation": 26_651, "test": 28_861}
    assert sum(prepared.splits.values()) == 228_329 - 5_885
    assert prepared.schema.labels == ("is_click", "long_view", "like", "follow")
    assert prepared.schema.groups == ("user",)


def test_whole_row_duplicates_and_no_validation_give_the_baseline_counts(source, out):
    data = Prepared(kr.prepare(out, source=str(source), duplicates="row", validation_days=0))
    assert data.splits == {"train": 193_964, "test": 28_905}


def test_splits_follow_the_days_of_the_log(prepared, log):
    days = {
        "train": (20220425, 20220504),
        "validation": (20220505, 20220506),
        "test": (20220507, 20220508),
    }
    for split, (first, last) in days.items():
        rows = read(prepared, split)
        date = log["date"].to_numpy()[rows["request"]]
        assert (date.min(), date.max()) == (first, last)
        np.testing.assert_array_equal(rows["time"], log["time"].to_numpy()[rows["request"]])
        for label, column in kr.LABELS.items():
            np.testing.assert_array_equal(rows[label], log[column].to_numpy()[rows["request"]])


def test_features_are_as_of_the_request(prepared, log, source):
    rows = read(prepared, "test")
    videos = dict(prepared.vocabulary("video").select("value", "id").iter_rows())
    timeline = prepared.timeline("history")
    watched = pl.read_parquet(source / "user_sequences.parquet")
    older = 0
    for i in np.random.default_rng(0).choice(len(rows["time"]), 80, replace=False):
        me = log.row(int(rows["request"][i]), named=True)
        past = log.filter(pl.col("time") < me["time"])
        subsets = {
            "user_shown": past.filter(pl.col("user_id") == me["user_id"]),
            "video_shown": past.filter(pl.col("video_id") == me["video_id"]),
            "tab_shown": past.filter(pl.col("tab") == me["tab"]),
        }
        subsets["user_author_shown"] = subsets["user_shown"].filter(
            pl.col("author_id") == me["author_id"]
        )
        subsets["video_clicked"] = subsets["video_shown"].filter(pl.col("is_click") == 1)
        for name, seen in subsets.items():
            assert rows[f"{name}_count"][i] == len(seen), name
            want = me["time"] - seen["time"].max() if len(seen) else NEVER
            assert rows[f"{name}_recency"][i] == np.float32(want), name
        liked = subsets["user_shown"].filter((pl.col("is_click") == 1) | (pl.col("long_view") == 1))
        before = (
            watched.filter(
                (pl.col("user_id") == me["user_id"]) & (pl.col("last_time_ms") // 1000 < me["time"])
            )["watch_seq"]
            .explode()
            .drop_nulls()
        )
        older += len(before) > 0
        want = [*before.to_list(), *liked.sort("time", maintain_order=True)["video_id"].to_list()]
        end, count = rows["history/end"][i], rows["history/count"][i]
        got = timeline["history_video"][end - count : end].tolist()
        assert got == [videos.get(v, OOV) for v in want]
    assert older > 40


def test_vocabularies_know_only_the_training_days(prepared, log):
    trained = log.filter(pl.col("date") <= 20220504)["video_id"].value_counts()
    assert set(prepared.vocabulary("video")["value"]) == set(
        trained.filter(pl.col("count") >= 2)["video_id"]
    )
    assert (read(prepared, "test")["video"] == OOV).any()


def test_counters_are_declared(prepared):
    assert len(prepared.identity["counters"]) == 2 * 2 * len(kr.KEYS)
    assert set(prepared.identity["counters"]) <= {f.name for f in prepared.schema.features}


def test_same_options_do_nothing(prepared, out, source, monkeypatch):
    monkeypatch.setattr(kr, "read_impressions", None)
    assert kr.prepare(out, source=str(source)) == prepared.path


def test_report_text_names_every_split(prepared):
    text = kr.report_text(prepared.report)
    assert all(split in text for split in prepared.splits) and "5885" in text


def test_absent_source_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("RECJAX_DATA", raising=False)
    with pytest.raises(
        DataError, match="give source=FOLDER, or name its parent folder in RECJAX_DATA"
    ):
        kr.prepare(tmp_path)
    with pytest.raises(DataError, match="val.parquet is missing"):
        kr.prepare(tmp_path, source=str(tmp_path))


def test_hours_are_chinas(prepared, log):
    """The log's own hour, rounded up now and then, agrees with the time stamp's only at UTC+8."""
    rows = read(prepared, "test")
    hours = dict(prepared.vocabulary("hour").select("id", "value").iter_rows())
    got = np.array([hours[i] for i in rows["hour"].tolist()])
    own = log["hourmin"].to_numpy()[rows["request"]] // 100
    agreement = [((got + shift) % 24 == own).mean() for shift in range(24)]
    assert np.argmax(agreement) == 0 and agreement[0] > 0.75
