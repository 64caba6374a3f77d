"""`--suggest` on logs as they are published: what it writes prepares as it stands, and means what a reader would mean."""

import datetime
import json
import os
import pathlib

import numpy as np
import polars as pl
import pytest

from recjax.data.logs import prepare as logs
from recjax.data.logs.mapping import load_mapping
from recjax.data.logs.sources import list_files
from recjax.data.logs.suggest import suggest
from recjax.data.store.prepared import DataError, Prepared

N = 300
RNG = np.random.default_rng(0)
TIME = 1_709_251_200 + np.sort(RNG.integers(0, 30 * 86_400, N))
USER, ITEM = RNG.integers(0, 30, N), RNG.integers(0, 25, N)
CLICK = (RNG.random(N) < 0.3).astype(int)
EVENT = RNG.choice(["view", "cart", "buy"], N)


def lines(header: str, row) -> str:
    """A text file: a header ("": none) and a line for each event."""
    at = [datetime.datetime.fromtimestamp(t, datetime.UTC) for t in TIME]
    rows = [row(*x) for x in zip(range(N), USER, ITEM, TIME, at, CLICK, EVENT, strict=True)]
    return "\n".join([*([header] if header else []), *rows]) + "\n"


SHOWN = [[int(x) for x in RNG.permutation(25)[:4]] for _ in range(N)]
LOGS = {
    "day-first dates far into the file": (
        "log.csv", lines("user;item;at;click", lambda i, u, p, t, d, c, e: f"{u};{p};{d:%d.%m.%Y %H:%M};{c}"),
        {"separator": ";", "time_format": "%d.%m.%Y %H:%M", "labels": ("click",)},
    ),
    "Taobao: no header, actions": (
        "log.csv", lines("", lambda i, u, p, t, d, c, e: f"{1000 + u},{2000 + p},{p % 5},{e},{t}"),
        {"columns": ("user", "item", "column_3", "event", "time"), "action": "event", "labels": {"buy": ("buy",)}, "item_columns": ()},
    ),
    "MovieLens: two bytes between, no header": (
        "log.dat", lines("", lambda i, u, p, t, d, c, e: f"{u}::{p}::{1 + c}::{t}"),
        {"separator": "::", "user": "user", "item": "item", "time": "time"},
    ),
    "MIND: impressions in a cell": (
        "log.tsv", lines("", lambda i, u, p, t, d, c, e: f"{i}\tU{u}\t{d:%m/%d/%Y %I:%M:%S %p}\tN1 N2\t" + " ".join(f"N{x}-{int(x == SHOWN[i][0])}" for x in SHOWN[i])),
        {"item": "impressions", "user": "user", "explode": True, "taken": "suffix", "labels": ("click",), "request": "request"},
    ),
    "EB-NeRD: lists": (
        "log.parquet", pl.DataFrame({"impression_id": np.arange(N), "user_id": USER, "impression_time": pl.Series(TIME * 10**6).cast(pl.Datetime("us")), "article_ids_inview": SHOWN, "article_ids_clicked": [x[:1] for x in SHOWN]}),
        {"item": "article_ids_inview", "taken": "article_ids_clicked", "request": "impression_id"},
    ),
    "GA4: nested, pseudo ids with a point": (
        "log.jsonl", lines("", lambda i, u, p, t, d, c, e: json.dumps({"event_timestamp": int(t) * 10**6, "user_pseudo_id": f"{u}.10", "event_name": e, "device": {"category": "tv" if i % 2 else "phone"}, "item_id": int(p)})),
        {"user": "user_pseudo_id", "time": "event_timestamp", "action": "event_name", "context_columns": ("device.category",)},
    ),
    "Avazu: hours, a device for the user": (
        "log.csv", lines("id,click,hour,device_id,ad_id", lambda i, u, p, t, d, c, e: f"{10000169349117863715 + i},{c},{d:%y%m%d%H},{u:08x},{p:x}"),
        {"user": "device_id", "item": "ad_id", "time": "hour", "time_format": "%y%m%d%H", "labels": ("click",)},
    ),
    "genres with bars, ratings": (
        "log.csv", lines("userId,movieId,rating,timestamp,genres", lambda i, u, p, t, d, c, e: f"{u},{p},{1 + i % 9 / 2},{t},{['Action|Drama', 'Drama', 'Sci Fi|Drama'][p % 3]}"),
        {"multi": {"genres": "|"}, "item_columns": ("genres",), "labels": ()},
    ),
    "an attribute beside the label, empty where not clicked": (
        "log.csv", lines("uid,sku,ts,is_subscriber,clicked,price", lambda i, u, p, t, d, c, e: f"{u},{p},{t},{u % 2},{c or ''},{'N/A' if i % 9 == 0 else p + 0.5}"),
        {"labels": ("clicked",), "label_missing": 0, "user_columns": ("is_subscriber",), "dense": {"price": "log1p"}, "indicators": ("price",)},
    ),
    "refunds and a weight": (
        "log.csv", lines("Customer ID,StockCode,InvoiceDate,Quantity,sample_weight", lambda i, u, p, t, d, c, e: f"{u},{p},{d:%Y-%m-%d %H:%M:%S UTC},{-1 if i % 9 == 0 else 2},0.5"),
        {"where": "Quantity > 0", "weight": "sample_weight", "labels": ()},
    ),
    "steps of sessions, no times": (
        "log.csv", lines("session_id,item_id,step,click", lambda i, u, p, t, d, c, e: f"{u},{p},{i + 1},{c}"),
        {"user": "session_id", "time": "step", "time_unit": "order"},
    ),
    "Latin-1": (
        "log.csv", lines("user_id,item_id,ts,click,city", lambda i, u, p, t, d, c, e: f"{u},{p},{t},{c},{'Köln' if u % 2 else 'Bonn'}").encode("latin-1"),
        {"encoding": "cp1252", "user_columns": ("city",)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOGS)
def test_what_is_suggested_prepares_and_means_what_it_should(tmp_path, kind):
    name, data, want = LOGS[kind]
    file = tmp_path / name
    if isinstance(data, pl.DataFrame):
        data.write_parquet(file)
    else:
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
    (tmp_path / "mapping.py").write_text(suggest(list_files(str(file))))
    m = load_mapping(tmp_path / "mapping.py")
    assert {k: getattr(m, k) for k in want} == want
    source, mapping = str(file), str(tmp_path / "mapping.py")
    data = Prepared(logs.prepare(tmp_path / "out", source=source, mapping=mapping))
    assert not set(data.report["quarantined"]) - {"duplicate"}
    assert set(data.splits) == {"train", "validation", "test"}


def needs(folder: str, name: str) -> str:
    """A public file that the project's data folder holds."""
    file = pathlib.Path(os.environ.get("RECJAX_DATA", ""), folder, name)
    if not os.environ.get("RECJAX_DATA") or not file.exists():
        pytest.skip(f"needs {folder}/{name} below RECJAX_DATA")
    return str(file)


def test_movielens_ratings_from_four_stars_on_are_liked(tmp_path):
    file = needs("ml-latest-small", "ratings.csv.gz")
    text = suggest([file]).replace("labels = []", 'labels = {"liked": "rating >= 4"}')
    (tmp_path / "mapping.py").write_text(text.replace('"popular"', '"impressions"'))
    made = logs.prepare(tmp_path / "out", source=file, mapping=str(tmp_path / "mapping.py"))
    r = Prepared(made).report
    liked = sum(s["label_rate"] * s["rows"] for s in r["splits"].values()) / r["events"]
    assert r["events"] == 100_836 and liked == pytest.approx(0.4818, abs=1e-3)


def test_kuairand_s_outcomes_are_labels_or_left_out_and_none_is_a_feature(tmp_path):
    file = needs("kuairand-pure", "test.parquet")
    (tmp_path / "mapping.py").write_text(suggest([file]))
    m = load_mapping(tmp_path / "mapping.py")
    assert m.labels[0] == "is_click" and m.scene == "tab" and m.time == "time_ms"
    features = {*m.user_columns, *m.item_columns, *m.context_columns}
    known = {"duration_ms", "author_id", "tag", "upload_dt", "video_duration", "freshness_days"}
    assert features == known
    made = logs.prepare(tmp_path / "out", source=file, mapping=str(tmp_path / "mapping.py"))
    r = Prepared(made).report
    assert r["rows"] == 133_545 and r["suspicious"] == [] and max(r["probes"].values()) < 0.7


def test_candidates_for_the_label_are_listed(tmp_path):
    file = tmp_path / "log.csv"
    file.write_bytes(LOGS["an attribute beside the label, empty where not clicked"][1].encode())
    text = suggest([str(file)])
    assert "# Weighed for the label: 'is_subscriber', constant for each uid: left out; 'clicked', 0." in text  # fmt: skip


def test_dates_that_nothing_orders_are_left_to_the_reader(tmp_path):
    dates = ["02/03/2024", "03/02/2024", "05/04/2024", "04/05/2024"] * 10
    pl.DataFrame({"user": 1, "item": 2, "date": dates}).write_csv(tmp_path / "log.csv")
    text = suggest([str(tmp_path / "log.csv")])
    assert "time_format = \"\"  # 'day first' or 'month first'" in text
    (tmp_path / "mapping.py").write_text(text)
    with pytest.raises(DataError, match="with the day or the month first"):
        logs.prepare(tmp_path, source=str(tmp_path / "log.csv"), mapping=str(tmp_path / "mapping.py"))  # fmt: skip


OUTCOMES = (
    "booking",
    "click_flag",
    "is_booked",
    "reordered",
    "Engagement",
    "outcome",
    "completed",
    "did_click",
)


@pytest.mark.parametrize("name", OUTCOMES)
def test_an_outcome_is_the_label_whatever_it_is_called(tmp_path, name):
    m = suggested(tmp_path, {name: CLICK})
    assert m.labels == (name,) and name not in m.context_columns


def test_a_column_of_0_and_1_by_a_strange_name_is_no_feature_of_a_log_without_label(tmp_path):
    """It may be the outcome; beside a label it is what it says it is. What a name says of the request is no label."""
    odd = {"zz": CLICK, "is_weekend": (RNG.random(N) < 0.3).astype(int)}
    m = suggested(tmp_path, odd)
    assert not m.labels and m.context_columns == ("is_weekend",)
    assert "'zz'" in (tmp_path / "mapping.py").read_text()
    m = suggested(tmp_path, odd | {"click": 1 - CLICK})
    assert m.labels == ("click",) and set(m.context_columns) == {"zz", "is_weekend"}


def suggested(folder, more):
    columns = {"user_id": USER, "item_id": ITEM, "ts": TIME, **more}
    pl.DataFrame(columns).write_csv(folder / "log.csv")
    (folder / "mapping.py").write_text(suggest(list_files(str(folder / "log.csv"))))
    return load_mapping(folder / "mapping.py")
