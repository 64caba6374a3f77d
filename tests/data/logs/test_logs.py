"""Your own logs, from files of every format to a prepared directory: what they mean, what is refused, what may not leak."""

import gzip
import json
import pathlib

import numpy as np
import polars as pl
import pytest

from recjax.data import open_data
from recjax.data.logs import negatives, suggest
from recjax.data.logs import prepare as logs
from recjax.data.logs.conditions import Condition
from recjax.data.logs.mapping import LogMapping, load_mapping
from recjax.data.logs.report import SUSPICIOUS, auc, report_text
from recjax.data.logs.rows import describe, read_log
from recjax.data.logs.sources import fingerprint, list_files
from recjax.data.logs.times import as_moment
from recjax.data.logs.values import NULLS
from recjax.data.store.prepared import DataError, Prepared
from recjax.data.worlds.transactions import DAY, FIRST, transactions
from recjax.schema import MISSING
from tests import messages

SPLIT = """split = {"validation": "2024-02-10", "test": "2024-02-20"}\n"""
SHOP = 'user, item, time = "customer_id", "item_id", "timestamp"\nitem_columns = ["price"]\ndense = ["price"]\n'
FEED = 'user, item, time = "user", "item", "at"\nlabels = ["click"]\ncontext_columns = ["device"]\n'


def prepare(folder, log: pl.DataFrame | str, mapping: str, name="log.csv", **options) -> Prepared:
    """Writes a log and a mapping below `folder`, prepares them."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(log, str):
        (folder / name).write_text(log)
    else:
        write(log, folder / name)
    (folder / "mapping.py").write_text(mapping)
    return Prepared(
        logs.prepare(
            folder / "out",
            source=str(folder / name),
            mapping=str(folder / "mapping.py"),
            **options,
        )
    )


def write(log: pl.DataFrame, file: pathlib.Path) -> None:
    text = log.write_ndjson() if ".jsonl" in file.name else log.write_csv()
    if file.suffix == ".parquet":
        log.write_parquet(file)
    elif file.suffix == ".gz":
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text)


def read(data, split) -> dict[str, np.ndarray]:
    """Columns of a split, in an order that does not depend on how they were stored."""
    blocks = [data.block(split, i) for i in range(data.blocks(split))]
    return {c: np.concatenate([b[c] for b in blocks]) for c in blocks[0] if c != "partition"}


def values(data, space, ids):
    """Log values of ids; None for reserved ones."""
    known = {i: v for v, i in data.vocabulary(space).select("value", "id").iter_rows()}
    return [known.get(i) for i in ids.tolist()]


def feed(rows=3_000, users=40, items=30, seed=0) -> pl.DataFrame:
    """Impressions with clicks; several a second, unsorted."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user": [f"u{x}" for x in rng.integers(users, size=rows)],
            "item": [f"i{x}" for x in rng.integers(items, size=rows)],
            "at": FIRST + rng.integers(0, 60 * DAY, rows) // 600 * 600,
            "click": rng.integers(0, 2, rows),
            "device": [f"d{x}" for x in rng.integers(3, size=rows)],
            "price": np.round(rng.random(rows) * 9, 2),
        }
    )
    return frame.unique(["user", "item", "at"], keep="first", maintain_order=True)


@pytest.fixture(scope="module")
def shop():
    return transactions(users=60, items=50, rows=1_500, days=60, seed=3)


@pytest.fixture(scope="module")
def sold(shop, tmp_path_factory):
    mapping = SHOP + SPLIT + "min_count = 1\nnegatives_per_positive = 3\n"
    return prepare(tmp_path_factory.mktemp("sold"), shop, mapping)


# --------------------------------------------------------------------------------------- end to end


def test_from_a_csv_to_batches_with_two_commands(tmp_path, run_python):
    transactions(users=60, items=50, rows=2_000, days=60, seed=1).write_csv(tmp_path / "log.csv")
    out, mapping = tmp_path / "out", tmp_path / "mapping.py"
    args = ("recjax.data.prepare", f"--logs={tmp_path}/*.csv", f"--mapping={mapping}")
    done = run_python(*args, f"--out={out}", "--suggest", devices=1)
    assert "2,000 rows read" in done.stdout and f"--config.data.dir={out}" in done.stdout
    assert "quantity" in mapping.read_text() and "'quantity'" not in str(load_mapping(mapping))
    data = open_data({"name": "logs", "dir": str(out), "history": 8})
    assert data.splits == {"train": 8_000, "validation": 1_000, "test": 1_000}
    assert data.schema.labels == ("positive", "log_q")
    assert {f.name for f in data.schema.select("candidate", "profile", "context")} >= {
        "user_id", "item", "price", "country", "hour", "weekday", "user_item_taken_count",
    }  # fmt: skip
    batch = next(iter(data.batches("train", 64)))
    assert 0.05 < batch["label"]["positive"].mean() < 0.4 and batch["mask"]["history"].any()
    assert Prepared(out).report["splits"]["test"]["label_rate"] == pytest.approx(0.2)


def test_without_counters_none_is_left(sold):
    counted = set(sold.identity["counters"])
    data = open_data({"name": "logs", "dir": str(sold.path), "counters": False})
    assert counted and not counted & {f.name for f in data.schema.features}


def test_every_format_gives_the_same_data(tmp_path):
    names = ("log.csv", "log.csv.gz", "log.tsv", "log.jsonl", "log.jsonl.gz", "log.parquet")
    frame, first = feed(600), None
    for name in names:
        mapping = FEED + SPLIT + ('separator = "\\t"\n' if "tsv" in name else "")
        (tmp_path / name).mkdir()
        if name == "log.tsv":
            frame.write_csv(tmp_path / name / name, separator="\t")
            source = (tmp_path / name / name).read_text()
        else:
            source = frame
        rows = read(prepare(tmp_path / name, source, mapping, name), "train")
        first = first or rows
        assert rows.keys() == first.keys()
        for column, x in rows.items():
            np.testing.assert_array_equal(x, first[column], err_msg=f"{name}: {column}")


def test_several_files_are_one_log(tmp_path):
    frame = feed(600)
    whole = prepare(tmp_path / "one", frame, FEED + SPLIT)
    for i in range(3):
        frame[i::3].write_parquet(tmp_path / f"part-{i}.parquet")
    files = f"{tmp_path}/part-0.parquet,{tmp_path}/part-[12].parquet"
    parts = Prepared(
        logs.prepare(tmp_path, source=files, mapping=str(tmp_path / "one" / "mapping.py"))
    )
    assert parts.splits == whole.splits and parts.report["rows"] == len(frame)
    assert parts.vocabulary("item").equals(whole.vocabulary("item"))


# -------------------------------------------------------------------------------- what was known when


@pytest.mark.parametrize("partitions", [1, 3])
def test_histories_counters_and_labels_against_brute_force(tmp_path, partitions):
    frame = feed(1_200)
    mapping = FEED + SPLIT + 'scene = "device"\ncontext_columns = []\nmin_count = 1\n'
    data = prepare(tmp_path, frame, mapping, partitions=partitions)
    log = frame.sort("at", maintain_order=True)
    compared = 0
    for i in range(data.blocks("test")):
        b = data.block("test", i)
        timeline = data.timeline("history", int(b["partition"]))
        users, items = values(data, "user", b["user_id"]), values(data, "item", b["item"])
        for j in range(0, len(b["time"]), 7):
            past = log.filter((pl.col("at") < b["time"][j]) & (pl.col("user") == users[j]))
            clicked = past.filter(pl.col("click") == 1)
            end, count = b["history/end"][j], b["history/count"][j]
            window = slice(end - count, end)
            assert (
                values(data, "item", timeline["history_item"][window]) == clicked["item"].to_list()
            )
            assert timeline["time"][window].tolist() == clicked["at"].to_list()
            assert b["user_taken_count"][j] == len(clicked) and b["user_shown_count"][j] == len(
                past
            )
            same = past.filter(pl.col("item") == items[j])
            assert b["user_item_shown_count"][j] == len(same)
            if len(same):
                assert b["user_item_shown_recency"][j] == b["time"][j] - same["at"].max()
            me = log.filter(
                (pl.col("at") == b["time"][j])
                & (pl.col("user") == users[j])
                & (pl.col("item") == items[j])
            )
            assert b["click"][j] == me["click"][0]
            compared += count > 0
    assert compared > 20


def test_item_columns_of_drawn_rows_are_those_of_its_last_earlier_row(sold, shop):
    rows = read(sold, "validation")
    items, new = values(sold, "item", rows["item"]), 0
    for i in range(0, len(items), 11):
        past = shop.filter(
            (pl.col("item_id") == items[i]) & (pl.col("timestamp") < rows["time"][i])
        )
        want = past["price"][-1] if len(past) else 0.0
        assert rows["price"][i] == np.float32(want)
        new += len(past) > 0
    assert new > 10


@pytest.mark.parametrize("kind", ["shop", "feed"])
def test_the_future_changes_nothing_before_it(tmp_path, shop, kind):
    """Everything at or after the validation date is altered: the training split stays bit-equal."""
    frame, mapping, time = (
        (shop, SHOP, "timestamp") if kind == "shop" else (feed(1_500), FEED, "at")
    )
    begin = FIRST + 40 * DAY  # 10 February
    late = pl.col(time) >= begin
    rng = np.random.default_rng(1)
    shuffled = frame.filter(late)
    for c in frame.columns:
        if c != time:
            shuffled = shuffled.with_columns(shuffled[c].gather(rng.permutation(len(shuffled))))
    item = frame.columns[1]
    shuffled = shuffled.with_columns(  # and a new item, whose name comes first
        pl.when(pl.int_range(pl.len()) % 9 == 0).then(pl.lit("aaa")).otherwise(item).alias(item)
    )
    before = prepare(tmp_path / "a", frame, mapping + SPLIT)
    after = prepare(tmp_path / "b", pl.concat([frame.filter(~late), shuffled]), mapping + SPLIT)
    one, two = read(before, "train"), read(after, "train")
    for column, x in one.items():
        if column not in (
            "history/end",
            "request",
        ):  # places in a store that holds later events too
            np.testing.assert_array_equal(x, two[column], err_msg=column)
    assert after.vocabulary("item").equals(before.vocabulary("item"))
    assert before.vocabulary("item").height > 20
    test = [read(t, "test") for t in (before, after)]
    assert any(  # the control: the test split did change
        x.shape != test[1][c].shape or (x != test[1][c]).any() for c, x in test[0].items()
    )


def test_rows_of_one_request_do_not_see_each_other(tmp_path):
    frame = feed(900).sort("user", "at").with_columns(pl.col("at") + pl.int_range(pl.len()) % 5)
    frame = frame.with_columns((pl.int_range(pl.len()) // 4).alias("page"))
    data = prepare(tmp_path, frame, FEED + SPLIT + 'request = "page"\nmin_count = 1\n')
    rows = read(data, "test")
    timeline = data.timeline("history")
    users = values(data, "user", rows["user_id"])
    pages = {}
    for j, (request, user) in enumerate(zip(rows["request"].tolist(), users, strict=True)):
        end, count = rows["history/end"][j], rows["history/count"][j]
        last = timeline["time"][end - 1] if count else -1
        assert last < rows["time"][j]
        pages.setdefault((request, user), set()).add((int(rows["time"][j]), int(end)))
    assert all(len(seen) == 1 for seen in pages.values())
    assert np.bincount(rows["request"]).max() > 1


# ---------------------------------------------------------------------------------------- negatives


def test_negatives_are_of_the_training_catalogue_and_not_taken_in_the_request(sold, shop):
    trained = shop.filter(pl.col("timestamp") < FIRST + 40 * DAY)
    known = dict(sold.vocabulary("item").select("value", "count").iter_rows())
    assert known == dict(trained["item_id"].value_counts().iter_rows())
    for split in ("train", "test"):
        rows = read(sold, split)
        items = np.asarray(values(sold, "item", rows["item"]))
        drawn = rows["positive"] == 0
        assert set(items[drawn]) <= set(trained["item_id"])
        assert drawn.sum() == 3 * (~drawn).sum()
        taken = set(zip(rows["request"][~drawn], items[~drawn], strict=True))
        pairs = list(zip(rows["request"][drawn], items[drawn], strict=True))
        assert not taken & set(pairs) and len(set(pairs)) == len(pairs)
        share = dict(trained["item_id"].value_counts().iter_rows())
        want = [np.log(share[i] / len(trained)) for i in items]
        np.testing.assert_allclose(rows["log_q"], want, rtol=1e-5)


def test_draws_follow_their_weights():
    rng = np.random.default_rng(0)
    taken = np.repeat([2, 5, 9], [700, 200, 100])
    request, item = np.arange(20_000), np.full(20_000, 40)  # nothing is refused but repeats
    for kind, want in (("popular", [0.7, 0.2, 0.1]), ("uniform", [1 / 3] * 3)):
        catalogue = negatives.Catalogue.of(taken, kind)
        owner, found = negatives.draw(rng, catalogue, request, item, 1)
        np.testing.assert_array_equal(owner, request)
        np.testing.assert_allclose([(found == i).mean() for i in (2, 5, 9)], want, atol=0.012)
        np.testing.assert_allclose(np.exp(catalogue.log_q(np.array([2, 5, 9]))), want, rtol=1e-5)
    assert catalogue.log_q(np.array([40])) == -np.inf


def test_draws_are_those_of_a_plain_loop():
    """Round by round, one draw after the other: what the sorted arrays must come to, bit by bit."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        request, item = np.sort(rng.integers(0, 9, 40)), rng.integers(0, 20, 40)
        catalogue = negatives.Catalogue.of(rng.integers(0, 20, 30), "popular")
        got = negatives.draw(np.random.default_rng(seed), catalogue, request, item, 3)
        used, owner, want = set(zip(request, item, strict=True)), np.repeat(np.arange(40), 3), []
        plain, edges = np.random.default_rng(seed), np.cumsum(catalogue.weights)
        for _ in range(negatives.ROUNDS):
            draws = plain.random(len(owner)) * edges[-1]
            found = catalogue.items[np.searchsorted(edges, draws, side="right")]
            again = []
            for o, i in zip(owner, found, strict=True):
                (again if (request[o], i) in used else want).append((o, i))
                used.add((request[o], i))
            if not again:
                break
            owner = np.array([o for o, _ in again])
        want.sort(key=lambda pair: pair[0])
        assert list(zip(*got, strict=True)) == want


def test_a_request_that_took_nearly_everything_gets_fewer_negatives():
    catalogue = negatives.Catalogue.of(np.arange(3), "uniform")
    request, item = np.array([0, 0, 1]), np.array([0, 1, 2])
    owner, found = negatives.draw(np.random.default_rng(0), catalogue, request, item, 2)
    assert found[owner < 2].tolist() == [2] and sorted(found[owner == 2]) == [0, 1]


def test_test_rows_of_items_training_does_not_know_are_left_out_and_counted(tmp_path, shop):
    new = (
        shop.filter(pl.col("timestamp") > FIRST + 55 * DAY)
        .head(40)
        .with_columns(item_id=pl.lit("new"))
    )
    new = new.with_columns(pl.col("timestamp") + 1)
    data = prepare(tmp_path, pl.concat([shop, new]), SHOP + SPLIT)
    assert data.report["splits"]["test"]["outside_catalogue"] == 40
    assert data.report["cold_start"]["test"]["items"] > 0
    assert data.splits["test"] == 5 * (shop.filter(pl.col("timestamp") >= FIRST + 50 * DAY).height)


# ----------------------------------------------------------------------------------------- bad rows

BAD = """user,item,at,click,price
u1,i1,2024-01-01 10:00:00,1,3.5
,i2,2024-01-01 11:00:00,0,1.0
u2,i2,yesterday,0,1.0
u2,i3,2199-01-01,1,1.0
u2,i4,2024-01-02,3,1.0
u2,i4,2024-01-03,0,cheap
u2,i4,2024-01-04,0,-1
u2,i4,2024-01-05,0,1.0,what,is,this
u1,i1,2024-01-01 10:00:00,1,3.5
u3,i5,2024-01-06,0,
u3,i6,2024-01-07,1,2.0
u3,i7,2024-01-08,1,2.0
"""
BAD_MAPPING = """user, item, time, labels = "user", "item", "at", ["click"]
item_columns, dense = ["price"], {"price": "log1p"}
split = {"test": "2024-01-08"}
"""


def test_bad_rows_are_set_aside_with_their_reasons(tmp_path):
    data = prepare(tmp_path, BAD, BAD_MAPPING)
    bad = pl.read_parquet(data.path / "quarantine.parquet").sort("row")
    assert list(bad.select("row", "column", "reason").iter_rows()) == [
        (2, "user", "missing"),
        (3, "at", "not a time"),
        (4, "at", "in the future"),
        (5, "click", "not a label in [0, 1]"),
        (8, "", "8 fields where the header has 5"),
        (9, "item", "duplicate"),
    ]
    assert json.loads(bad["record"][3])["item"] == "i4"
    assert data.splits == {"train": 5, "test": 1}
    assert data.report["rows"] == 12 and data.report["duplicates"] == 1
    assert data.report["nulls"] == {"price": 3}  # an empty one, "cheap" and -1 under log1p
    text = report_text(data.report)
    assert "row 5, column 'click': not a label in [0, 1]" in text
    assert "note: 1 cells of 'price' are no number and count as missing, such as 'cheap'" in text
    assert "note: 1 cells of 'price' lie below zero, where log1p ends" in text
    assert "WARNING: 6 of 12 rows are set aside" in text
    np.testing.assert_array_equal(
        np.sort(read(data, "train")["price"]), np.float32([0, 0, 0, 2, 3.5])
    )


def test_strict_refuses_and_names_file_rows_and_column(tmp_path):
    with pytest.raises(DataError, match="6 bad rows") as e:
        prepare(tmp_path, BAD, BAD_MAPPING, strict=True)
    assert f"{tmp_path / 'log.csv'}, row 3, column 'at': not a time" in str(e.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.json"))
    good = "\n".join(BAD.splitlines()[i] for i in (0, 1, 10, 11, 12))
    assert prepare(tmp_path / "good", good, BAD_MAPPING, strict=True).splits["train"] == 3


def test_broken_json_lines_are_set_aside(tmp_path):
    lines = feed(400).write_ndjson().splitlines()
    lines[3:3] = ['{"user": "u1", "item"', "[1]"]
    data = prepare(tmp_path, "\n".join(lines), FEED + SPLIT, "log.jsonl")
    assert data.report["quarantined"] == {"not a JSON object": 2} and data.report["rows"] == len(
        lines
    )
    assert any("rows 4-5" in line for line in data.report["quarantined_where"])


@pytest.mark.parametrize("shards", [0, 2])
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "jsonl", "jsonl.gz"])
def test_a_file_without_a_line_is_left_out_and_named(tmp_path, caplog, kind, shards):
    write(feed(400), tmp_path / "b.csv")
    (tmp_path / "mapping.py").write_text(FEED + SPLIT)
    for name, text in ((f"a.{kind}", ""), (f"c.{kind}", "\ufeff\r\n\n")):
        data = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    want, got = (
        logs.prepare(
            tmp_path / out, source=str(tmp_path / files), mapping=str(tmp_path / "mapping.py"), shards=shards
        )
        for out, files in (("alone", "b.*"), ("all", "[abc].*"))
    )  # fmt: skip
    assert Prepared(got).identity["hash"] == Prepared(want).identity["hash"]
    assert f"{tmp_path / f'a.{kind}'} is empty" in caplog.text
    assert f"{tmp_path / f'c.{kind}'} is empty" in caplog.text
    with pytest.raises(DataError, match="every file of .* is empty"):
        list_files(str(tmp_path / "[ac].*"))


def test_a_header_alone_is_no_row_and_no_warning(tmp_path, caplog):
    write(feed(10), tmp_path / "a.csv")
    write(feed(10).clear(), tmp_path / "b.csv")
    assert len(list_files(str(tmp_path / "*.csv"))) == 2 and not caplog.text


@pytest.mark.parametrize("name", ["items.csv", "items.jsonl"])
def test_a_side_table_without_a_line_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_text("\n")
    mapping = FEED + f'item_table = "{name}"\nitem_columns = ["brand"]\n' + SPLIT
    with pytest.raises(DataError, match=f"{name} is "):
        prepare(tmp_path, feed(300), mapping)


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.tsv", "log.jsonl"])
def test_a_byte_order_mark_and_a_bad_line_cost_only_that_line(tmp_path, name):
    frame = feed(400)
    tab = "\t" if "tsv" in name else ","
    text = frame.write_ndjson() if "jsonl" in name else frame.write_csv(separator=tab)
    bad = '{"user"\n' if "jsonl" in name else tab.join("abcdefghij") + "\n"
    data = ("\ufeff" + text + bad).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (tmp_path / "mapping.py").write_text(FEED + SPLIT)
    log = read_log([str(tmp_path / name)], load_mapping(str(tmp_path / "mapping.py")))
    assert log.read == 401 and log.bad.height == 1 and log.bad["row"].to_list() == [401]
    assert sorted(log.rows["user"].unique()) == sorted(frame["user"].unique())


def test_rows_out_of_order_are_sorted_and_counted(tmp_path):
    frame = feed(500).sort("at", maintain_order=True)
    swapped = pl.concat([frame[:-2], frame[-1:], frame[-2:-1]])
    a, b = (prepare(tmp_path / n, f, FEED + SPLIT) for n, f in (("a", frame), ("b", swapped)))
    assert a.report["out_of_order"] == 0 and b.report["out_of_order"] == 1
    assert a.splits == b.splits


def test_row_ranges_are_short():
    bad = pl.DataFrame(
        {"file": "f", "row": [1, 2, 3, 7, 9, 11, 13, 15], "column": "c", "reason": "r"}
    )
    assert describe(bad) == "  f, rows 1-3, 7, 9, 11, 13, ... (8 rows), column 'c': r"


# ------------------------------------------------------------------------------------------- report


def test_the_report_says_what_is_in_the_log(tmp_path):
    frame = feed(2_000)
    frame = frame.with_columns(
        pl.when(pl.col("at") >= FIRST + 55 * DAY)
        .then(pl.lit("late"))
        .otherwise("user")
        .alias("user")
    )
    data = prepare(tmp_path, frame, FEED + SPLIT + 'scene = "device"\ncontext_columns = []\n')
    r = data.report
    assert r["rows"] == len(frame) and r["users"] == frame["user"].n_unique()
    day = frame.filter((pl.col("at") >= FIRST) & (pl.col("at") < FIRST + DAY))
    assert r["by_day"]["2024-01-01"]["rows"] == len(day)
    assert r["by_day"]["2024-01-01"]["click"] == pytest.approx(day["click"].mean())
    scene = frame.filter(pl.col("device") == "d1")
    assert r["by_scene"]["d1"]["click"] == pytest.approx(scene["click"].mean())
    tested = frame.filter(pl.col("at") >= FIRST + 50 * DAY)
    assert r["cold_start"]["test"]["users"] == pytest.approx((tested["user"] == "late").mean())
    assert r["suspicious"] == [] and "label rate" in report_text(r)


def test_probes_flag_planted_leaks_and_no_fair_column(tmp_path):
    rng = np.random.default_rng(0)
    frame = feed(3_000)
    y = frame["click"].to_numpy()
    noise = rng.normal(size=len(y))
    frame = frame.with_columns(
        fair=pl.Series(y + 2 * noise),  # AUC about 0.64
        dwell=pl.Series(-3.0 * y + 0.5 * noise),  # written after the click
        receipt=pl.Series(
            [f"r{i % 7}" if c else None for i, c in enumerate(y)]
        ),  # only clicks have one
        seconds=pl.Series([0.0 if c else None for c in y]),  # known by being missing
        page=pl.Series([f"{'ab'[c]}{i % 5}" for i, c in enumerate(y)]),
    )
    mapping = FEED.replace(
        '["device"]', '["device", "fair", "dwell", "receipt", "seconds", "page"]'
    )
    r = prepare(tmp_path, frame, mapping + 'dense = ["fair", "dwell", "seconds"]\n' + SPLIT).report
    assert set(r["suspicious"]) == {"dwell", "receipt", "seconds", "page"}
    assert 0.6 < r["probes"]["fair"] < 0.7 < SUSPICIOUS
    # A column with a value per row cannot know the label, though it could in its own sample.
    assert max(r["probes"][c] for c in ("device", "user_id", "item", "hour")) < 0.6
    assert "'dwell' alone predicts the label" in report_text(r)


def test_auc_counts_ties_half():
    label = np.array([True, True, False, False])
    assert auc(np.array([3, 1, 1, 0]), label) == (1 + 1 + 0.5 + 1) / 4
    assert auc(np.array([3, 1]), np.array([True, True])) == 0.5


# ------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("split", "want"),
    [
        ('split = {"test": 0.25}', (750, 250)),
        ('split = {"validation": 0.1, "test": 0.2}', (700, 100, 200)),
    ],
)
def test_fractions_follow_each_other_in_time(tmp_path, split, want):
    frame = pl.DataFrame({"user": "u", "item": "i", "at": range(10**9, 10**9 + 1_000), "click": [0, 1] * 500, "device": "d"})  # fmt: skip
    data = prepare(tmp_path, frame, FEED + split)
    assert list(data.splits.values()) == pytest.approx(want, abs=1)
    spans = [read(data, s)["time"] for s in data.splits]
    assert all(a.max() < b.min() for a, b in zip(spans[:-1], spans[1:], strict=True))


def test_a_gap_is_left_out_of_the_split_but_not_of_histories(tmp_path):
    frame = feed(2_000)
    data = prepare(tmp_path, frame, FEED + SPLIT + 'gap = "2d"\nmin_count = 1\n')
    assert read(data, "train")["time"].max() < FIRST + 38 * DAY
    assert read(data, "validation")["time"].min() < FIRST + 41 * DAY
    assert read(data, "validation")["time"].max() < FIRST + 48 * DAY
    assert len(data.timeline("history")["time"]) == frame["click"].sum()


# ----------------------------------------------------------------- actions, side tables, vectors


def test_actions_side_tables_and_vectors(tmp_path):
    frame = feed(1_500).with_columns(
        action=pl.Series(["view", "cart", "buy"] * 500)[: len(feed(1_500))],
    )
    items = sorted(frame["item"].unique())
    table = pl.DataFrame(
        {
            "item": items[:-1],
            "brand": [f"b{i % 4}" for i in range(len(items) - 1)],
            "weight": np.arange(len(items) - 1, dtype=float),
            "embedding": [[float(i), 1.0] for i in range(len(items) - 1)],
        }
    )
    table.write_parquet(tmp_path / "items.parquet")
    mapping = (
        'user, item, time, action = "user", "item", "at", "action"\nlabels = {"buy": ["buy"]}\n'
        'history = {"bought": ["buy"], "seen": ["view", "cart"]}\nitem_table = "items.parquet"\n'
        'item_columns = ["brand", "weight", "embedding"]\ndense = {"weight": "log1p"}\n'
        'vectors = ["embedding"]\nmin_count = 1\nnegatives = "uniform"\n'
    )
    data = prepare(tmp_path, frame, mapping + SPLIT)
    assert data.schema.lists == ("bought", "seen")
    kinds = dict(frame["action"].value_counts().iter_rows())
    assert len(data.timeline("bought")["time"]) == kinds["buy"]
    assert len(data.timeline("seen")["time"]) == kinds["view"] + kinds["cart"]
    assert {"bought_item", "bought_brand", "seen_action"} <= {f.name for f in data.schema.features}
    rows = read(data, "train")
    place = {item: i for i, item in enumerate(items)}
    at = np.array([place[i] for i in values(data, "item", rows["item"])])
    known = at < len(items) - 1
    np.testing.assert_array_equal(rows["item_weight"], np.where(known, at, 0))
    np.testing.assert_array_equal(rows["embedding"][known][:, 0], at[known])
    assert (rows["embedding"][~known] == 0).all() and (rows["brand"][~known] == MISSING).all()
    assert (~known).any() and "buy_count" not in data.schema.labels
    batch = next(
        iter(open_data({"name": "logs", "dir": str(data.path), "history": 4}).batches("test", 32))
    )
    assert batch["dense"]["embedding"].shape == (32, 1, 2)


def test_user_groups_come_first_when_asked(tmp_path):
    assert (
        prepare(tmp_path, feed(400), FEED + SPLIT + 'group = "user"\n').schema.groups[0] == "user"
    )


# ----------------------------------------------------------------------------- refusals and identity


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ('user, item, time = "user", "item", "at"\nlabel = ["click"]', ["'labels'"]),
        ('user, item = "user", "item"', ["time"]),
        (FEED.replace('"at"', '"when"'), ["'when'", "user, item, at"]),
        (FEED + 'negatives = "hard"', ["negatives='hard'", "impressions"]),
        (FEED + 'dense = ["price"]', ["'price'", "dense"]),
        (FEED + 'split = {"test": "2031-01-01"}', ["'test'"]),
        (FEED + 'split = {"test": 1.5}', ["1.5", "between 0 and 1"]),
        (FEED + 'gap = "1 day"', ["gap", "1d"]),
        (FEED + "split = 0.1", ["split=0.1", "{name: value}"]),
        (FEED + "scene = device", ["mapping.py", "'device'"]),
        (FEED + "gap = (", ["mapping.py", "line 4"]),
        (FEED + 'min_count = "2"', ["min_count='2'", "number"]),
        (FEED + "request = 3", ["request=3", "quotation marks"]),
        (FEED + 'where = "price"', ["'price'", "quantity > 0"]),
        (FEED + 'where = "price > device"', ["price > device", "quoted"]),
        (FEED + 'as_of = "tomorrow"', ["'tomorrow'", "date"]),
        (FEED + 'indicators = ["device"]', ["indicators", "'device'", "dense"]),
        (FEED + 'time_format = "%Y-%"', ["time_format='%Y-%'"]),
        (
            FEED + 'item_table = "absent.csv"\nitem_columns = ["brand"]',
            ["absent.csv"],
        ),
        (FEED + 'history = {"bought": ["buy"]}', ["action"]),
    ],
)
def test_a_wrong_mapping_is_refused_in_one_sentence(tmp_path, mapping, words):
    with messages.raises(DataError, *words):
        prepare(tmp_path, feed(300), mapping + "\n")


def test_absent_and_unknown_files_are_refused(tmp_path):
    with messages.raises(DataError, "*.csv"):
        list_files(str(tmp_path / "*.csv"))
    (tmp_path / "log.xlsx").touch()
    with messages.raises(DataError, "log.xlsx"):
        list_files(str(tmp_path / "log.xlsx"))
    with pytest.raises(DataError, match="data.source"):
        logs.prepare(tmp_path)


def test_a_dry_run_tells_what_the_first_rows_become_and_leaves_nothing(tmp_path, run_python):
    write(feed(3_000), tmp_path / "log.csv")
    (tmp_path / "mapping.py").write_text(FEED + SPLIT)
    args = ("recjax.data.prepare", f"--logs={tmp_path}/log.csv", f"--mapping={tmp_path}/mapping.py")
    said = run_python(*args, "--dry_run", devices=1)
    assert "1,000 rows read" in said.stdout and "labels: click; lists: history" in said.stdout
    assert "device=d" in said.stdout and "nothing was written" in said.stdout
    assert "write blocks: " in said.stderr  # phases are named, with their seconds
    assert sorted(f.name for f in tmp_path.iterdir()) == ["log.csv", "mapping.py"]


def test_conditions_hold_for_numbers_text_and_no_missing_value():
    frame = pl.DataFrame(
        {"n": ["1", "2.50", "-3", None], "Ctry X": ["UK", "uk", "DE", "NULL"], "d": [20, 1, 2, 3]}
    )
    for text, want in (
        ("n > 0", [1, 1, 0, 0]),
        ("n == 2.5", [0, 1, 0, 0]),
        ("n != 1", [0, 1, 1, 0]),
        ("`Ctry X` in ['UK', 'DE'] and n < 9", [1, 0, 1, 0]),
        ("not n > 0 or d >= 20", [1, 0, 1, 1]),
        ("`Ctry X` != 'UK'", [0, 1, 1, 0]),
    ):
        found = Condition(text).holds(frame, NULLS)
        assert found.to_list() == [bool(x) for x in want], text


def test_the_same_logs_are_prepared_once_and_others_never_overwrite_them(tmp_path):
    frame = feed(400)
    (tmp_path / "out").mkdir()
    first = prepare(tmp_path, frame, FEED + SPLIT, exact_dir=True)
    assert first.path == tmp_path / "out" and not list(tmp_path.glob(".preparing-*"))
    made = (first.path / "metadata.json").stat().st_mtime_ns
    assert prepare(tmp_path, frame, FEED + SPLIT, exact_dir=True).identity == first.identity
    assert (first.path / "metadata.json").stat().st_mtime_ns == made
    changed = frame.with_columns(click=1 - pl.col("click"))  # the same size, other content
    with pytest.raises(DataError, match="holds other prepared data"):
        prepare(tmp_path, changed, FEED + SPLIT, exact_dir=True)
    with pytest.raises(DataError, match="holds other prepared data"):
        prepare(tmp_path, frame, FEED + SPLIT + "min_count = 3\n", exact_dir=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(DataError, match="not empty"):
        logs.prepare(tmp_path / "full", source=str(tmp_path / "log.csv"), mapping=str(tmp_path / "mapping.py"), exact_dir=True)  # fmt: skip
    assert fingerprint([str(tmp_path / "log.csv")])[0][0] == "log.csv"


# ------------------------------------------------------------------------------------------- suggest


def suggested(tmp_path, frame: pl.DataFrame) -> tuple[LogMapping, str]:
    frame.write_csv(tmp_path / "log.csv")
    text = suggest.suggest([str(tmp_path / "log.csv")])
    (tmp_path / "mapping.py").write_text(text)
    return load_mapping(tmp_path / "mapping.py"), text


def test_suggests_for_invoices(tmp_path):
    rng = np.random.default_rng(0)
    n = 3_000
    invoice = np.sort(rng.integers(600, size=n))
    frame = pl.DataFrame(
        {
            "InvoiceNo": 536_000 + invoice,
            "StockCode": [f"{x}A" for x in rng.integers(100, size=n)],
            "Description": "thing",
            "Quantity": rng.integers(1, 9, n),
            "InvoiceDate": [
                f"{1 + i // 60 % 12}/{1 + i % 28}/2010 8:{26 + i % 30}" for i in invoice
            ],
            "UnitPrice": np.round(rng.random(n) * 9, 2),
            "CustomerID": [None if i == 0 else 17_000.0 + i % 90 for i in invoice],
            "Country": [["France", "Norway"][i % 2] for i in invoice],
        }
    )
    m, text = suggested(tmp_path, frame)
    assert (m.user, m.item, m.time, m.request) == (
        "CustomerID",
        "StockCode",
        "InvoiceDate",
        "InvoiceNo",
    )
    assert m.time_format == "%m/%d/%Y %H:%M" and m.labels == () and m.sampled
    assert m.item_columns == ("UnitPrice",) and m.dense == {"UnitPrice": "log1p"}
    assert m.user_columns == ("Country",)
    assert "left out: 'Quantity'" in text and "left out: 'Description'" in text
    data = Prepared(logs.prepare(tmp_path, source=str(tmp_path / "log.csv"), mapping=str(tmp_path / "mapping.py")))  # fmt: skip
    assert set(data.splits) == {"train", "validation", "test"}
    assert data.report["quarantined"]["missing"] == (invoice == 0).sum()


@pytest.mark.parametrize("name", ["log.csv.gz", "log.jsonl", "log.jsonl.gz", "log.parquet"])
def test_suggests_from_every_format(tmp_path, name):
    write(feed(500), tmp_path / name)
    text = suggest.suggest([str(tmp_path / name)])
    assert "labels = ['click']" in text and "dense = {'price': 'log1p'}" in text


def test_suggests_for_impressions_actions_and_ratings(tmp_path):
    m, _ = suggested(tmp_path, feed())
    assert (m.user, m.item, m.time, m.labels) == ("user", "item", "at", ("click",))
    assert not m.sampled and m.context_columns == ("device",) and "price" in m.dense
    acted = (
        feed()
        .drop("click")
        .with_columns(event_type=pl.Series(["view", "cart", "buy"] * 1_000)[: len(feed())])
    )
    m, _ = suggested(tmp_path, acted)
    assert m.action == "event_type" and m.labels == {"buy": ("buy",)} and m.sampled
    rated = pl.DataFrame({"userId": [1, 2, 3], "movieId": [4, 5, 6], "rating": [4.0, 3.5, 5.0], "timestamp": [10**9] * 3})  # fmt: skip
    m, text = suggested(tmp_path, rated)
    assert (m.user, m.item, m.time) == ("userId", "movieId", "timestamp") and m.labels == ()
    assert "left out: 'rating'" in text


def test_a_log_without_a_time_is_not_guessed(tmp_path):
    with messages.raises(DataError, "time"):
        suggested(tmp_path, feed(50).drop("at"))


@pytest.mark.parametrize(
    ("column", "options"),
    [
        (pl.Series([1_704_067_200]), {}),
        (pl.Series([1_704_067_200_000]), {}),
        (pl.Series([1_704_067_200_000_000_000]), {}),
        (pl.Series([1_704_067_200_000]), {"time_unit": "ms"}),
        (pl.Series(["1704067200"]), {}),
        (pl.Series(["2024-01-01"]), {}),
        (pl.Series(["2024-01-01T01:00:00+01:00"]), {}),
        (pl.Series([20_240_101]), {"time_format": "%Y%m%d"}),
        (pl.Series(["01.01.2024"]), {"time_format": "%d.%m.%Y"}),
        (pl.Series(["2024-01-01"]).str.to_date(), {}),
        (pl.Series(["2024-01-01"]).str.to_datetime(time_zone="UTC", time_unit="ns"), {}),
    ],
)
def test_times_in_every_form(column, options):
    m = LogMapping("u", "i", "t", **options)
    assert as_moment(column, m).to_list() == [FIRST * 1_000_000]


def test_the_page_shows_a_mapping_that_works(tmp_path, shop):
    page = pathlib.Path(__file__).resolve().parents[3] / "docs" / "your_own_logs.md"
    mapping = page.read_text().split("```python\n")[1].split("```")[0]
    frame = shop.rename({"item_id": "article", "timestamp": "sold_at"})
    assert set(prepare(tmp_path, frame, mapping).splits) == {"train", "validation", "test"}


# ------------------------------------------------------------- sessions, movelines, group keys


def acted(rows=1_500) -> pl.DataFrame:
    """Views and purchases in three scenes; pauses of seconds to days; pages of four rows."""
    frame = feed(rows).sort("user", "at", maintain_order=True)
    kinds = pl.Series(["view", "view", "buy"] * rows)[: len(frame)]
    return frame.with_columns(action=kinds, page=pl.int_range(pl.len()) // 4).sample(
        fraction=1, shuffle=True, seed=1
    )


ACTED = (
    'user, item, time, action, scene = "user", "item", "at", "action", "device"\n'
    'labels = {"buy": ["buy"]}\nhistory = {"bought": ["buy"]}\nmin_count = 1\n'
)


def test_sessions_end_at_pauses_and_movelines_carry_scenes(tmp_path):
    mapping = ACTED + 'session_gap = "3d"\nmovelines = {"moves": ["view"], "all": []}\n'
    data = prepare(tmp_path, acted(), mapping + SPLIT, partitions=2)
    assert data.schema.lists == ("bought", "moves", "all", "session")
    roles = {f.list: f.role for f in data.schema.features if f.list}
    assert roles == {"bought": "history", "moves": "moveline", "all": "moveline", "session": "history"}  # fmt: skip
    assert {"moves_scene", "all_action", "session_item"} <= {f.name for f in data.schema.features}
    log = acted().sort("at", maintain_order=True)
    lengths, in_session = set(), 0
    for i in range(data.blocks("test")):
        b = data.block("test", i)
        users = values(data, "user", b["user_id"])
        for j in range(0, len(b["time"]), 5):
            past = log.filter((pl.col("at") < b["time"][j]) & (pl.col("user") == users[j]))
            bought = past.filter(pl.col("action") == "buy")
            latest, session = int(b["time"][j]), []
            for at, item in reversed(list(bought.select("at", "item").iter_rows())):
                if latest - at > 3 * DAY:
                    break
                session.append(item)
                latest = at
            for name, items in (
                ("session", session[::-1]),
                ("bought", bought["item"].to_list()),
                ("moves", past.filter(pl.col("action") == "view")["item"].to_list()),
                ("all", past["item"].to_list()),
            ):
                t = data.timeline(name, int(b["partition"]))
                end, count = b[f"{name}/end"][j], b[f"{name}/count"][j]
                assert values(data, "item", t[f"{name}_item"][end - count : end]) == items
            scenes = data.timeline("all", int(b["partition"]))["all_scene"]
            end, count = b["all/end"][j], b["all/count"][j]
            got = values(data, "scene", scenes[end - count : end])
            assert got == past["device"].to_list()
            lengths.add(len(session))
            in_session += len(session) < len(bought)
    assert lengths >= {0, 1} and in_session > 20


def test_pages_and_sessions_are_group_keys(tmp_path):
    mapping = ACTED + 'page, session_gap, group = "page", "2d", "session"\n'
    data = prepare(tmp_path, acted(), mapping + SPLIT)
    assert data.schema.groups == ("session", "request", "user", "page")
    rows = read(data, "train")
    users = values(data, "user", rows["user_id"])
    by_page, by_session = {}, {}
    for user, page, session, time in zip(
        users, rows["page"].tolist(), rows["session"].tolist(), rows["time"].tolist(), strict=True
    ):
        by_page.setdefault(page, set()).add(user)
        by_session.setdefault(session, set()).add((user, time))
    assert all(len(u) == 1 for u in by_page.values()) and len(by_page) > 50
    last: dict = {}
    for seen in sorted(by_session.values(), key=min):
        assert len({user for user, _ in seen}) == 1
        user, first = min(seen)
        assert first - last.get(user, -DAY * 9) > 0
        last[user] = max(seen)[1]
    assert max(len({t for _, t in s}) for s in by_session.values()) > 1
    batch = next(iter(open_data({"dir": str(data.path), "history": 4}).batches("train", 8)))
    assert set(batch["group"]) == set(data.schema.groups)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        (FEED + 'movelines = {"moves": []}', ["movelines", "scene"]),
        (
            FEED + 'scene = "device"\ncontext_columns = []\nmovelines = {"m": ["view"]}',
            ["movelines", "action"],
        ),
        (FEED + 'group = "page"', ["group='page'", "set page"]),
        (FEED + 'session_gap = "half an hour"', ["session_gap='half an hour'"]),
        (ACTED + 'movelines = {"bought": []}', ["'bought'"]),
    ],
)
def test_lists_and_groups_that_contradict_are_refused(tmp_path, mapping, words):
    with messages.raises(DataError, *words):
        prepare(tmp_path, acted(300), mapping + "\n")
