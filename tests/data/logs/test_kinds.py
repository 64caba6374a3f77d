"""Every row of docs/log_kinds.md: a kind of cell, file or shape, and what becomes of it.

A kind that is read right gives the prepared data of the plain log below, bit by bit, unless its entry checks something else.
"""

import datetime
import functools
import gzip
import json
import pathlib
import re

import numpy as np
import polars as pl
import pytest

from recjax.data.logs import prepare as logs
from recjax.data.logs.report import report_text
from recjax.data.logs.sources import list_files
from recjax.data.logs.suggest import suggest
from recjax.data.store.prepared import DataError, Prepared
from tests.data.logs.test_same_data import content

PAGE = pathlib.Path(__file__).resolve().parents[3] / "docs" / "log_kinds.md"
BEGIN = 1_709_251_200  # 1 March 2024
NAMES = {"user": "user_id", "item": "item_id", "time": "ts"}
MAPPING = 'user, item, time = "user_id", "item_id", "ts"\nlabels = ["click"]\nmin_count = 1\n'


def plain(step=86_400) -> pl.DataFrame:
    """Sixty impressions, one a day."""
    i = np.arange(60)
    return pl.DataFrame(
        {
            "user_id": 1 + i % 5,
            "item_id": 100 + i % 7,
            "ts": BEGIN + step * i,
            "click": ((i * i) % 7 % 2).astype(np.int64),
        }
    )


def text(frame: pl.DataFrame, **options) -> bytes:
    return frame.write_csv(**options).encode()


def times(form, frame: pl.DataFrame | None = None) -> bytes:
    """The plain log with its times written by `form`, a strptime pattern or a function of seconds."""
    frame = plain() if frame is None else frame
    write = form if callable(form) else lambda s: moment(s).strftime(form)
    return text(frame.with_columns(ts=pl.Series([str(write(s)) for s in frame["ts"]])))


def moment(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def labels(of) -> bytes:
    return text(plain().with_columns(click=pl.Series([of[c] for c in plain()["click"]])))


def price(cells) -> bytes:
    """The plain log with a price 9.5, and other cells at its beginning."""
    cells = [*cells, *["9.5"] * (60 - len(cells))]
    return text(plain().with_columns(price=pl.Series(cells)))


PRICED = 'item_columns, dense = ["price"], {"price": "log1p"}\nindicators = ["price"]\n'
GAPS = {"price": [0, 9.5], "price_missing": [0, 1]}
EVENTS = 'user, item, time, action = "user_id", "item_id", "ts", "event"\nlabels = {"buy": ["buy"]}\nmin_count = 1\n'


def acted(values=("view", "buy")) -> bytes:
    return text(plain().with_columns(event=plain()["click"].replace_strict({0: values[0], 1: values[1]})).drop("click"))  # fmt: skip


def vectors(odd: str) -> bytes:
    cells = [odd, *["[0.5, 1.5]"] * 59]
    return text(plain().with_columns(vec=pl.Series(cells)))


VECTORS = 'item_columns, vectors = ["vec"], ["vec"]\n'
MANY = plain().with_columns(tags=pl.Series([["a", "b"]] * 60))


def parquet(frame: pl.DataFrame, folder: pathlib.Path) -> bytes:
    frame.write_parquet(folder / "made.pq")
    return (folder / "made.pq").read_bytes()


def big(*ids):
    return plain().with_columns(user_id=pl.Series([ids[i % len(ids)] for i in range(60)]))


def users(*want):
    return lambda data: set(data.vocabulary("user")["value"]) == set(map(str, want))


def columns(**want):
    """Whether the training rows hold these values and no others."""

    def check(data: Prepared) -> bool:
        blocks = [data.block("train", i) for i in range(data.blocks("train"))]
        return all(
            np.array_equal(
                np.unique(np.concatenate([b[c].ravel() for b in blocks])), np.float32(x_)
            )
            for c, x_ in want.items()
        )

    return check


def rows(**want):
    """Whether the report counts so."""
    return lambda data: all(data.report[k] == v for k, v in want.items())


def rate(x):
    return lambda data: abs(sum(s["label_rate"] * s["rows"] for s in data.report["splits"].values()) - x * 60) < 1e-3  # fmt: skip


def requests() -> pl.DataFrame:
    """The plain log by request: the items shown in it, and those taken."""
    frame = plain().with_columns(shown=pl.col("item_id"), at=pl.col("ts"))
    return frame.group_by("user_id", "ts", maintain_order=True).agg(
        pl.col("item_id"), pl.col("item_id").filter(pl.col("click") == 1).alias("taken"),
        (pl.col("item_id").cast(pl.String) + "-" + pl.col("click").cast(pl.String)).alias("impressions"),
    )  # fmt: skip


def two_files() -> dict[str, bytes]:
    keyed = plain().with_columns(request=pl.int_range(60))
    clicks = keyed.filter(pl.col("click") == 1).select(
        "request", pl.col("item_id").cast(pl.Float64), "ts"
    )
    return {"log.csv": text(keyed.drop("click")), "clicks.csv": text(clicks)}


def orders() -> dict[str, bytes]:
    keyed = plain().with_columns(order=pl.int_range(60) + 500)
    times = keyed.select(pl.col("order").cast(pl.Float64), "user_id", at="ts")
    return {"log.csv": text(keyed.select("order", "item_id", "click")), "orders.csv": text(times.rename({"at": "ts"}))}  # fmt: skip


def block(column: str, want):
    """Whether `want` holds for a column of the first training block."""
    return lambda data: want(data.block("train", 0)[column])


def named(column: str, *want: str):
    return lambda data: set(data.vocabulary(column)["value"]) == set(want)


KEYED = 'event_files = {"click": "clicks.csv"}\nevent_keys = ["request", "item_id"]\n'
TABLE = 'item_columns, item_table = ["brand"], "items.csv"\n'
ITEMS = pl.DataFrame({"item_id": np.arange(100, 107), "brand": list("abcdefg")})
TAGS = ["Action|Sci Fi", "Sci Fi", "", "Action|Drama|Sci Fi"] * 15


# kind -> (file name, bytes or frame, more of the mapping (or all of it), check)
KINDS = {
    "whole numbers as text, with blanks around them": ("log.csv", text(plain()).replace(b"\n1,", b"\n1 ,"), "", None),
    "whole numbers with a point: 17.0": ("log.csv", re.sub(rb"\n(\d+),", rb"\n\1.0,", text(plain())), "", None),
    "a float column, because one cell is empty": ("log.parquet", pl.concat([plain(), plain()[-1:].with_columns(user_id=None)]).with_columns(pl.col("user_id").cast(pl.Float64)), "", None),
    "uint64 ids above 2^63": ("log.parquet", big(2**64 - 1, 2**63 + 7).cast({"user_id": pl.UInt64}), "", users(2**64 - 1, 2**63 + 7)),
    "ids above 2^53 as JSON numbers": ("log.jsonl", b"\n".join(json.dumps(r).encode() for r in big(2**53 + 1, 2**53 + 2).rows(named=True)), "", users(2**53 + 1, 2**53 + 2)),
    "negative ids": ("log.csv", text(big(-1, -2)), "", users(-1, -2)),
    "hexadecimal ids and UUIDs": ("log.csv", text(big("00ff", "123e4567-e89b-12d3-a456-426614174000")), "", users("00ff", "123e4567-e89b-12d3-a456-426614174000")),
    "leading zeros: 007 is not 7": ("log.csv", text(big("007", "7")), "", users("007", "7")),
    "ids that are floats above 2^53": ("log.parquet", big(float(2**60), float(2**61)), "", users(2**60, 2**61)),
    "ids that a spreadsheet wrote: 1.23457E+17": ("log.csv", text(big("1.23457E+17", "2.5E+17")), "", users("1.23457E+17", "2.5E+17")),
    "missing ids: empty, NULL, N/A, \\N, -": ("log.csv", text(big("1", "", "NULL", "N/A", "\\N", "-")), "", rows(quarantined={"missing": 50})),
    "a missing value of your own spelling (nulls)": ("log.csv", text(plain().with_columns(kind=pl.lit("unknown"))), 'nulls = ["unknown"]\ncontext_columns = ["kind"]\n', rows(nulls={"kind": 60})),
    "a list where a single value is needed": ("log.parquet", MANY, 'item_columns = ["tags"]\n', None),
    "a field of a nested object: device.category": ("log.jsonl", b"\n".join(json.dumps(r | {"device": {"category": "tv"}}).encode() for r in plain().rows(named=True)), 'context_columns = ["device.category"]\n', lambda d: d.vocabulary("device.category")["value"].to_list() == ["tv"]),
    "labels Y and N": ("log.csv", labels("NY"), "", None),
    "labels yes and no, true and false, T and F": ("log.csv", labels(["no", "T"]), "", None),
    "labels -1 and +1": ("log.csv", labels(["-1", "+1"]), "", None),
    "labels on and off": ("log.csv", labels(["off", "On"]), "", None),
    "labels as categories of a Parquet file": ("log.parquet", plain().with_columns(pl.col("click").cast(pl.String).replace({"0": "N", "1": "Y"}).cast(pl.Categorical)), "", None),
    "labels in words of their own": ("log.csv", labels(["skip", "like"]), "", None),
    "labels -1, 0 and 1": ("log.csv", text(plain().with_columns(click=pl.Series([-1, 0, 1] * 20))), "", rate(1 / 3)),
    "an empty label cell, with label_missing = 0": ("log.csv", labels(["", "1"]), "label_missing = 0\n", None),
    "an empty label cell, without it": ("log.csv", labels(["", "1"]), "", None),
    "a label that is 0 everywhere": ("log.csv", text(plain().with_columns(click=pl.lit(0, pl.Int64))), "", None),
    'a threshold: {"liked": "rating >= 4"}': ("log.csv", text(plain().with_columns(rating=1 + 4.0 * plain()["click"])), 'labels = {"liked": "rating >= 4"}\n', rate(plain()["click"].mean())),
    "action values as numbers: 4, 4.0, 4.50": ("log.csv", acted(("1.0", "4.50")), EVENTS.replace('"buy"]', "4.5]"), rows(events=60)),
    "an action value that never occurs": ("log.csv", acted(), EVENTS.replace('["buy"]', '["Buy"]'), None),
    "a history list that would be empty": ("log.csv", acted(), EVENTS + 'history = {"bought": ["purchase"]}\n', None),
    "one of several action values never occurs": ("log.csv", acted(), EVENTS.replace('["buy"]', '["buy", "bye"]'), rows(events=60)),
    "rows that differ in the label only": ("log.csv", text(pl.concat([plain().with_columns(click=pl.lit(0, pl.Int64)), plain()])), "", None),
    "rows that repeat others": ("log.csv", text(pl.concat([plain(), plain()])), "", None),
    "refunds, with where": ("log.csv", text(pl.concat([plain(), plain()[:9].with_columns(pl.col("ts") + 1)]).with_columns(quantity=pl.Series([2] * 60 + [-1] * 9))), 'where = "quantity > 0"\n', None),
    "seconds, milliseconds, microseconds, nanoseconds": ("log.csv", times(lambda s: s * 10**9), "", None),
    "seconds and milliseconds in one column": ("log.csv", times(lambda s: s * (1000 if s // 86_400 % 2 else 1)), "", None),
    "ISO 8601, with T, Z, offsets or fractions": ("log.csv", times(lambda s: moment(s + 3600).strftime("%Y-%m-%dT%H:%M:%S.250+01:00")), "", None),
    "ISO 8601 without marks: 20240301T000000Z": ("log.csv", times(lambda s: moment(s).strftime("%Y%m%dT%H%M" + "%SZ" * (s // 86_400 % 2))), "", None),
    "a comma before fractions of a second, a lone Z": ("log.csv", times(lambda s: moment(s).strftime("%Y-%m-%d %H:%M:%S" + (" Z" if s // 86_400 % 2 else ",250"))), "", None),
    "the hour alone: 2024-03-01 14": ("log.csv", times("%Y-%m-%d %H"), "", None),
    "names of months: 01-Mar-24, Mar 1 2024 12:00AM": ("log.csv", times(lambda s: moment(s).strftime("%d-%b-%y" if s // 86_400 % 2 else "%b %d %Y %I:%M%p")), "", None),
    "times that end in UTC": ("log.csv", times("%Y-%m-%d %H:%M:%S UTC"), "", None),
    "AM and PM": ("log.csv", times("%m/%d/%Y %I:%M:%S %p"), "", None),
    "Apache's times: 10/Oct/2024:13:55:36 +0000": ("log.csv", times("%d/%b/%Y:%H:%M:%S +0000"), "", None),
    "day-first dates": ("log.csv", times("%d/%m/%Y %H:%M"), "", None),
    "month-first dates": ("log.csv", times("%m/%d/%y"), "", None),
    "dates that fit both orders": ("log.csv", text(plain().with_columns(ts=pl.Series(["02/03/2024", "03/02/2024"] * 30))), "", None),
    "compact dates: 20240301": ("log.csv", times("%Y%m%d"), "", None),
    "hour keys: 14102100 (%y%m%d%H)": ("log.csv", times("%y%m%d%H"), "", None),
    "days of a spreadsheet: 45352.0": ("log.csv", times(lambda s: s / 86_400 + 25_569), "", None),
    "times that have lost digits: 1.709e+09": ("log.csv", times(lambda s: f"{s:.3e}"), "", rows(events=60)),
    "times as float32": ("log.parquet", plain().with_columns(pl.col("ts").cast(pl.Float32)), "", rows(events=60)),
    "times before 1990": ("log.csv", times(lambda s: s - BEGIN + 10**6), "", rows(events=60)),
    "times after as_of": ("log.csv", text(plain()), 'as_of = "2024-03-30"\n', rows(quarantined={"in the future": 30})),
    "times later than now, without as_of": ("log.csv", times(lambda s: s + 10 * 365 * 86_400), "", rows(events=60)),
    "a feature that is no number: $12.99": ("log.csv", price(["$12.99", "cheap"]), PRICED, columns(**GAPS)),
    "a missing feature: N/A": ("log.csv", price(["N/A", "", "-"]), PRICED, columns(**GAPS)),
    "NaN, infinity and 1e39 as a feature": ("log.csv", price(["nan", "inf", "1e39"]), PRICED, columns(**GAPS)),
    "a price below zero under log1p": ("log.csv", price(["-3"]), PRICED, columns(**GAPS)),
    "a vector with NaN or 1e39 in it": ("log.csv", vectors("[1e39, nan]"), VECTORS, columns(vec=[0, 0.5, 1.5])),
    "a short vector": ("log.csv", vectors("[0.5]"), VECTORS, columns(vec=[0, 0.5, 1.5])),
    "several values in a cell: Action|Sci Fi": ("log.csv", text(plain().with_columns(tags=pl.Series(TAGS))), 'item_columns, multi, multi_values = ["tags"], {"tags": "|"}, 3\n', named("tags", "Action", "Sci Fi", "Drama")),
    "a list as several values": ("log.parquet", MANY, 'item_columns, multi = ["tags"], {"tags": ""}\n', block("tags", lambda x: x.shape[1] == 8 and (x[:, :2] > 2).all() and not x[:, 2:].any())),
    "a list as JSON text, a comma in one of its values": ("log.csv", text(plain().with_columns(tags=pl.Series(['["Sci, Fi", "a"]', "['a', 'b']"] * 30))), 'item_columns, multi = ["tags"], {"tags": ","}\n', named("tags", "Sci, Fi", "a", "b")),
    "another separator than multi names": ("log.csv", text(plain().with_columns(tags=pl.lit("a;b"))), 'item_columns, multi = ["tags"], {"tags": "|"}\n', named("tags", "a;b")),
    "lists of lists": ("log.parquet", plain().with_columns(tags=pl.Series([[["a"]]] * 60)), 'item_columns, multi = ["tags"], {"tags": ""}\n', None),
    "numbers in buckets": ("log.csv", text(plain().with_columns(age=pl.Series(["17", "18", "30", "?"] * 15))), 'user_columns, buckets = ["age"], {"age": [18, 25]}\n', named("age", "<18", "18-25", ">=25")),
    "an open vocabulary, hashed": ("log.csv", text(plain().with_columns(query=pl.Series([f"words {i}" for i in range(60)]))), 'context_columns, hashed = ["query"], {"query": 5}\n', lambda d: set(d.vocabulary("query")["value"]) <= set("01234")),
    "a cross of two columns": ("log.csv", text(plain().with_columns(a=pl.lit("x"), b=pl.Series(["y", "z"] * 30))), 'crosses = [("a", "b")]\n', named("a_x_b", "x|y", "x|z")),
    "sample weights": ("log.csv", text(plain().with_columns(w=pl.Series([0.5, 2.0] * 30))), 'weight = "w"\n', block("weight", lambda x: set(x.tolist()) == {0.5, 2.0})),
    "a weight that is none": ("log.csv", text(plain().with_columns(w=pl.Series(["-1", "x", "", *["1"] * 57]))), 'weight = "w"\n', rows(quarantined={"not a weight": 3})),
    "weights that are 0 in every training row": ("log.csv", text(plain().with_columns(w=pl.Series([0] * 48 + [1] * 12))), 'weight = "w"\n', None),
    "values too rare for min_count, all of them": ("log.csv", text(plain()), MAPPING.replace("= 1", "= 1000"), rows(events=60)),
    "a feature that is the label": ("log.csv", text(plain()), 'item_columns = ["click"]\n', None),
    "a feature that the label is made of": ("log.csv", text(plain().with_columns(rating=1 + 4 * plain()["click"])), 'labels = {"liked": "rating >= 4"}\ncontext_columns = ["rating"]\n', None),
    "one column as user and as item": ("log.csv", text(plain()), 'item = "user_id"\n', None),
    "a byte order mark": ("log.csv", b"\xef\xbb\xbf" + text(plain()), "", None),
    "UTF-16": ("log.csv", text(plain()).decode().encode("utf-16"), "", None),
    "Latin-1": ("log.csv", text(big("Müller", "Möller")).decode().encode("latin-1"), "", users("Müller", "Möller")),
    "a separator of two characters": ("log.csv", text(plain()).replace(b",", b"::"), 'separator = "::"\n', None),
    "another separator than the mapping's": ("log.csv", text(plain(), separator=";"), "", None),
    "quoted cells with line ends in them": ("log.csv", text(plain().with_columns(note=pl.lit('a\nb, "c"'))), 'context_columns = ["note"]\n', lambda d: d.vocabulary("note")["value"].to_list() == ['a\nb, "c"']),
    "a quotation mark that is never closed": ("log.csv", text(plain()[:30]) + b'9,"8,7\n' + text(plain()[30:], include_header=False), "", None),
    "line ends of an old Mac": ("log.csv", text(plain()).replace(b"\n", b"\r"), "", None),
    "a line with too many fields": ("log.csv", text(plain()) + b"1,2,3,4,5,6\n", "", None),
    "no header, with columns": ("log.csv", text(plain(), include_header=False), 'columns = ["user_id", "item_id", "ts", "click"]\n', None),
    "no header, without it": ("log.csv", text(plain(), include_header=False), "", None),
    "columns, but a header is there": ("log.csv", text(plain()), 'columns = ["user_id", "item_id", "ts", "click"]\n', None),
    "two columns of one name": ("log.csv", text(plain().with_columns(other=pl.lit(1))).replace(b"other", b"click"), "", None),
    "two names that become one feature": ("log.csv", text(plain().with_columns(pl.lit("x").alias("unit price"), pl.lit("y").alias("unit_price"))), 'item_columns = ["unit price", "unit_price"]\n', None),
    "gzip": ("log.csv.gz", gzip.compress(text(plain())), "", None),
    "a gzip file that ends too early": ("log.csv.gz", gzip.compress(text(plain()))[:-40], "", None),
    "packed or not, whatever its name says": ("log.csv", gzip.compress(text(plain())), "", None),
    "ZIP, bzip2, xz, Zstandard, spreadsheets": ("log.csv", b"PK\x03\x04" + text(plain()), "", None),
    "a damaged Parquet file": ("log.parquet", b"PAR1" * 20, "", None),
    "JSON, one object a line": ("log.json", plain().write_ndjson().encode(), "", None),
    "JSON, one array": ("log.json", plain().write_json().encode(), "", None),
    "JSON with commas between the lines": ("log.jsonl", plain().write_ndjson().encode().replace(b"}\n", b"},\n", 59), "", None),
    "impressions in one file, clicks in another": ("log.csv", two_files(), KEYED, None),
    "products in one file, their orders in another": ("log.csv", orders(), 'joins = {"orders.csv": "order"}\n', None),
    "clicks whose keys fit no impression": ("log.csv", {**two_files(), "clicks.csv": b"request,item_id\nr1,2\n"}, KEYED, None),
    'several items in a cell: "N1-0 N2-1"': ("log.csv", text(requests().select("user_id", "ts", pl.col("impressions").list.join(" ").alias("item_id"))), 'explode, taken = True, "suffix"\n', None),
    "a list of items, and one of those taken": ("log.parquet", requests(), 'explode, taken = True, "taken"\n', None),
    "the same lists as JSON": ("log.jsonl", requests().write_ndjson().encode(), 'explode, taken = True, "taken"\n', None),
    "an order, but no times": ("log.csv", text(plain().with_columns(ts=pl.int_range(60) + 1)), 'time_unit = "order"\n', lambda d: "hour" not in {f.name for f in d.schema.features} and d.splits["train"] == 48),
    "a device where there is no user": ("log.csv", text(plain()).replace(b"user_id", b"device_id"), MAPPING.replace("user_id", "device_id"), None),
    "a column that is not there": ("log.csv", text(plain().drop("click")), "", None),
    "a side table with two rows of one key": ("log.csv", {"log.csv": text(plain()), "items.csv": text(ITEMS) + b"100,z\n"}, TABLE, named("brand", *"abcdefg")),
    "a side table that knows few keys": ("log.csv", {"log.csv": text(plain()), "items.csv": text(ITEMS[:3])}, TABLE, named("brand", *"abc")),
    "a side table that knows none": ("log.csv", {"log.csv": text(plain()), "items.csv": text(ITEMS.with_columns(pl.col("item_id") + 900))}, TABLE, None),
}  # fmt: skip


def run(folder: pathlib.Path, kind: str, **options) -> Prepared:
    name, data, more, _ = KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    data = parquet(data, folder) if isinstance(data, pl.DataFrame) else data
    for file, content_ in (data if isinstance(data, dict) else {name: data}).items():
        (folder / file).write_bytes(content_)
    if more.startswith("labels"):
        more = MAPPING.replace('labels = ["click"]\n', "") + more
    (folder / "mapping.py").write_text(more if more.startswith("user,") else MAPPING + more)
    source, mapping = str(folder / name), str(folder / "mapping.py")
    return Prepared(logs.prepare(folder / "out", source=source, mapping=mapping, **options))


@functools.cache
def rows_of_the_page() -> dict[str, tuple[str, str]]:
    """kind -> (what becomes of it, the sentence) of every table of the page."""
    out = {}
    for line in PAGE.read_text().splitlines():
        cells = [c.strip() for c in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 3 and cells[1] in ("read", "WARNING", "refused"):
            out[cells[0]] = cells[1], cells[2]
    return out


@pytest.fixture(scope="module")
def want(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    text_of = ("log.csv", text(plain()), "", None)
    KINDS["plain"] = text_of  # what the others are compared with
    return content(run(folder, "plain"))


def test_the_page_lists_the_kinds_and_no_others():
    assert list(rows_of_the_page()) == [k for k in KINDS if k != "plain"]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "plain"])
def test_a_kind_is_read_or_refused_as_the_page_says(tmp_path, want, kind):
    outcome, sentence = rows_of_the_page()[kind]
    pattern = ".*".join(map(re.escape, sentence.split("…")))
    if outcome == "refused":
        with pytest.raises(DataError) as e:
            run(tmp_path, kind)
        assert re.search(pattern, str(e.value), re.DOTALL), e.value
        return
    data, check = run(tmp_path, kind), KINDS[kind][3]
    said = report_text(data.report)
    if outcome == "WARNING":
        assert re.search(f"WARNING: .*{pattern}", said), said
    elif sentence:
        assert re.search(pattern, said), said
    if check:
        assert check(data), said
    else:
        got = content(data)
        assert [k for k in want if got.get(k) != want[k]] == []


SHARDED = ("day-first dates", "labels Y and N", "a short vector", "a price below zero under log1p", "sample weights", "numbers in buckets",
           "several values in a cell: Action|Sci Fi", "a cross of two columns", "impressions in one file, clicks in another",
           "a list of items, and one of those taken", "products in one file, their orders in another", "rows that differ in the label only", "refunds, with where",
           "one of several action values never occurs", "an order, but no times")  # fmt: skip


@pytest.mark.parametrize("kind", SHARDED)
def test_shards_read_a_kind_as_the_log_at_once_does(tmp_path, kind):
    whole, shard, shards = (run(tmp_path / str(n), kind, shards=n) for n in (0, 1, 3))
    one, two = content(whole), content(shard)
    assert [k for k in one if one[k] != two[k]] == []
    assert shards.splits == whole.splits
    for r in (shard.report, shards.report):
        assert [n[:3] for n in r["notes"]] == [n[:3] for n in whole.report["notes"]]
        assert r["quarantined"] == whole.report["quarantined"]


def test_no_damage_ends_in_a_traceback(tmp_path):
    """Bytes are cut, doubled and replaced: a damaged log is read in part or refused in a sentence."""
    junk = (b'"', b"\0", b"\xff", b"\n", b",", b"{", b"1e400", b"\xef\xbb\xbf", b"-", b"9" * 40)
    frame = plain().with_columns(price=pl.Series(["9.5", "é"] * 30))
    ways = {"csv": text(frame), "jsonl": frame.write_ndjson().encode(), "parquet": parquet(frame, tmp_path)}  # fmt: skip
    ways["csv.gz"] = gzip.compress(ways["csv"])
    refused = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        kind = list(ways)[seed % len(ways)]
        data = bytearray(ways[kind])
        for _ in range(int(rng.integers(1, 4))):
            at, piece = int(rng.integers(len(data))), junk[int(rng.integers(len(junk)))]
            cut = [data[:at], data[:at] + piece * 9 + data[at:], data[:at] + piece + data[at + 1 :], data[:at] + data[at // 2 :]]  # fmt: skip
            data = cut[int(rng.integers(len(cut)))] or data
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / f"log.{kind}").write_bytes(data)
        (folder / "mapping.py").write_text(MAPPING + PRICED)
        source, mapping = str(folder / f"log.{kind}"), str(folder / "mapping.py")
        for do in (
            lambda s=source, m=mapping, f=folder: logs.prepare(f / "out", source=s, mapping=m),
            lambda s=source: suggest(list_files(s)),
        ):
            try:
                do()
            except DataError:
                refused += 1
    assert 20 < refused < 110
