"""KuaiRand: the real slice where RECJAX_DATA has it, the published form in small, and bad input."""

import datetime
import shutil

import numpy as np
import polars as pl
import pytest

from recjax.data.sets import kuairand as kr
from recjax.data.store.histories import NEVER
from recjax.data.store.prepared import DataError, Prepared
from recjax.schema import OOV
from tests.messages import raises
from tests.reading import info_of, train_on


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
    with raises(DataError, "source=", "RECJAX_DATA"):
        kr.prepare(tmp_path)
    with raises(DataError, "val.parquet"):
        kr.prepare(tmp_path, source=str(tmp_path))


def test_hours_are_chinas(prepared, log):
    """The log's own hour, rounded up now and then, agrees with the time stamp's only at UTC+8."""
    rows = read(prepared, "test")
    hours = dict(prepared.vocabulary("hour").select("id", "value").iter_rows())
    got = np.array([hours[i] for i in rows["hour"].tolist()])
    own = log["hourmin"].to_numpy()[rows["request"]] // 100
    agreement = [((got + shift) % 24 == own).mean() for shift in range(24)]
    assert np.argmax(agreement) == 0 and agreement[0] > 0.75


# ------------------------------------------------------------------------------------- as published


LOG_COLUMNS = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,"
    "duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
).split(",")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """KuaiRand-Pure's folder in small, in the columns of the publisher's README; the first row of each log comes twice."""
    data = tmp_path_factory.mktemp("KuaiRand-Pure") / "data"
    data.mkdir()
    rng, zone = np.random.default_rng(0), datetime.timezone(datetime.timedelta(hours=8))
    first = int(datetime.datetime(2022, 4, 8, tzinfo=zone).timestamp() * 1000)
    for name, days in (("4_08_to_4_21", range(14)), ("4_22_to_5_08", range(14, 31))):
        rows = []
        for _ in range(400):
            ms = first + 86_400_000 * int(rng.choice(days)) + int(rng.integers(86_400_000))
            at = datetime.datetime.fromtimestamp(ms / 1000, zone)
            row = dict.fromkeys(LOG_COLUMNS, 0) | dict(zip(("is_click", "is_like", "is_follow", "long_view"), rng.integers(0, 2, 4).tolist(), strict=True))  # fmt: skip
            rows.append(row | {
                "user_id": int(rng.integers(30)), "video_id": int(rng.integers(40)), "time_ms": ms, "date": int(f"{at:%Y%m%d}"),
                "hourmin": at.hour * 100, "duration_ms": 17_200.0, "tab": int(rng.integers(15)),
            })  # fmt: skip
        pl.DataFrame([*rows, rows[0]]).write_csv(data / f"log_standard_{name}_pure.csv")
    pl.DataFrame({
        "video_id": range(40), "author_id": [v // 3 for v in range(40)], "video_type": ["NORMAL"] * 39 + ["AD"],
        "upload_dt": ["2022-04-10"] * 40, "upload_type": ["LongImport"] * 40, "visible_status": [0.0] * 40,
        "video_duration": [None, *[87433.0] * 39], "server_width": [720.0] * 40, "server_height": [1280.0] * 40,
        "music_id": [9155697141] * 40, "music_type": [9.0] * 40, "tag": ["12,65", None, *["39"] * 38],
    }).write_csv(data / "video_features_basic_pure.csv")  # fmt: skip
    users = {"user_id": range(29), "follow_user_num": range(29)} | {
        c: ["a"] * 29 for c in kr.PROFILE
    }
    pl.DataFrame(users).write_csv(data / "user_features_pure.csv")
    return data.parent


def test_the_published_files_are_read_from_their_first_day(published, tmp_path):
    data = Prepared(kr.prepare(tmp_path, source=str(published)))
    files = sorted((published / "data").glob("log*"))
    log = pl.concat([pl.read_csv(f, infer_schema_length=None) for f in files])
    log = log.unique(maintain_order=True).sort("time_ms", maintain_order=True)
    assert data.report["quarantined"]["duplicate"] == 2
    cut = {"train": (20220408, 20220504), "validation": (20220505, 20220506), "test": (20220507, 20220508)}  # fmt: skip
    wanted = {s: log.filter(pl.col("date").is_between(*days)).height for s, days in cut.items()}
    assert data.splits == wanted and sum(wanted.values()) == 800
    videos = dict(data.vocabulary("video").select("id", "value").iter_rows())
    timeline, rows, seen = data.timeline("history"), read(data, "test"), 0
    for i, row in enumerate(rows["request"]):
        me = log.row(int(row), named=True)
        liked = log.filter(
            (pl.col("user_id") == me["user_id"])
            & (pl.col("time_ms") // 1000 < me["time_ms"] // 1000)
            & ((pl.col("is_click") == 1) | (pl.col("long_view") == 1))
        )
        end, n = rows["history/end"][i], rows["history/count"][i]
        assert [videos.get(v) for v in timeline["history_video"][end - n : end].tolist()] == [
            v if v in videos.values() else None for v in liked["video_id"]
        ]
        seen += n
    assert seen > 100
    assert set(data.vocabulary("tag")["value"]) == {"12", "39"}


def test_the_published_files_train_by_their_name(published, tmp_path):
    summary = train_on("kuairand", published, tmp_path / "run", {"name": "logistic"})
    assert summary["examples"] == 128 and np.isfinite(summary["test"]["logloss"])


def test_a_prepared_kuairand_says_what_it_is(published, tmp_path):
    info = info_of(Prepared(kr.prepare(tmp_path, source=str(published))))
    assert "Kuaishou" in info["description"] and "gao2022kuairand" in info["citation"]
    assert info["redistributionInfo"]["license"] == "CC BY-SA 4.0"


def test_a_damaged_published_log_is_named(published, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(published, folder)
    (folder / "data" / "log_standard_4_22_to_5_08_pure.csv").write_text("user_id,video_id\n1,2\n")
    with raises(DataError, "4_22_to_5_08_pure.csv"):
        kr.prepare(tmp_path, source=str(folder))
