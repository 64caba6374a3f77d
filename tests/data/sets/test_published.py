"""The readers of published logs: real files where RECJAX_DATA has them, else fixtures in the publisher's exact format."""

import gzip
import importlib
import json
import os
import pathlib
import pkgutil
import subprocess
import sys
import zipfile

import numpy as np
import polars as pl
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.structured import movielens as tfds_movielens

from recjax.data import sets
from recjax.data.sets import alimama, amazon, movielens, taobao
from recjax.data.sets.published import Published
from recjax.data.sets.text import hashed
from recjax.data.store.dates import seconds_of
from recjax.data.store.prepared import DataError, Prepared
from recjax.schema import MISSING
from tests.messages import raises
from tests.reading import columns_of, decoded, info_of, train_on

REPO = pathlib.Path(__file__).resolve().parents[3]

# ---------------------------------------------------------------------------------------- MovieLens

MOVIES = [
    (1, "Toy Story (1995)", "Adventure|Animation|Children"),
    (2, "Heat (1995)", "Action"),
    (3, "Il Postino: The Postman (Postino, Il) (1994)", "Comedy|Drama"),
    (4, "No year", "(no genres listed)"),
]


def ratings(rows=400, users=12, seed=0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "userId": rng.integers(1, users + 1, rows),
            "movieId": rng.integers(1, len(MOVIES) + 1, rows),
            "rating": rng.integers(1, 11, rows) / 2,
            "timestamp": 964_982_703 + rng.integers(0, 10_000_000, rows),
        }
    )
    return frame.sort("userId", "movieId")  # as GroupLens orders it, not in time


@pytest.fixture
def ml(tmp_path):
    """An edition in CSV."""
    folder = tmp_path / "ml-latest-small"
    folder.mkdir()
    ratings().write_csv(folder / "ratings.csv")
    pl.DataFrame(MOVIES, schema=["movieId", "title", "genres"], orient="row").write_csv(
        folder / "movies.csv"
    )
    return folder


def test_movielens_counts_are_those_of_the_readme(real_data, tmp_path):
    data = Prepared(movielens.prepare(tmp_path, source=str(real_data("ml-latest-small")), labels="liked"))  # fmt: skip
    r = data.report
    assert (r["ratings"], r["users"], r["items"]) == (100_836, 610, 9_724 - _only_three_stars(real_data))  # fmt: skip
    assert r["neither_liked_nor_not"] == 20_047 and r["quarantined"] == {}
    assert sum(data.splits.values()) == 100_836 - 20_047
    assert (r["from"][:7], r["until"][:7]) == ("1996-03", "2018-09")


def _only_three_stars(real_data) -> int:
    raw = pl.read_csv(real_data("ml-latest-small") / "ratings.csv.gz")
    return raw.group_by("movieId").agg((pl.col("rating") == 3).all())["rating"].sum()


def test_movielens_sees_only_what_was_rated_before(ml, tmp_path):
    data = Prepared(movielens.prepare(tmp_path, source=str(ml), labels="liked", min_count=1))
    assert data.schema.labels == ("liked",) and "log_q" not in data.schema.labels
    log, rows, timeline = ratings(), columns_of(data, "test"), data.timeline("history")
    users, movies = decoded(data, "user", rows["user_id"]), decoded(data, "item", rows["item"])
    seen = 0
    for i, (user, movie) in enumerate(zip(users, movies, strict=True)):
        mine = log.filter(pl.col("userId") == user)
        now = mine.filter((pl.col("movieId") == movie) & (pl.col("timestamp") == rows["time"][i]))
        assert rows["liked"][i] == (now["rating"][0] > 3) and now["rating"][0] != 3
        past = mine.filter((pl.col("timestamp") < rows["time"][i]) & (pl.col("rating") > 3))
        end, n = rows["history/end"][i], rows["history/count"][i]
        history = decoded(data, "item", timeline["history_item"][end - n : end])
        assert history == past.sort("timestamp")["movieId"].to_list()
        seen += n
    assert seen > 100
    genres = dict(zip(movies, decoded(data, "genre", rows["genre"]), strict=True))
    assert genres == {1: "Adventure", 2: "Action", 3: "Comedy", 4: "(no genres listed)"}
    years = dict(zip(movies, decoded(data, "year", rows["year"]), strict=True))
    assert years == {1: "1995", 2: "1995", 3: "1994", 4: None}


def test_a_rezipped_movielens_is_read_and_named_so(ml, tmp_path):
    archive = tmp_path / "ml-latest-small.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as z:
        for file in sorted(ml.iterdir()):
            z.write(file, f"somebody/else/{file.name}")
        z.writestr("__MACOSX/ratings.csv", "junk")
    unzipped = Prepared(movielens.prepare(tmp_path, source=str(ml)))
    zipped = Prepared(movielens.prepare(tmp_path, source=str(archive)))
    assert zipped.report["files"] == {archive.name: "differs from what was published"}
    assert unzipped.report["files"] == {} and zipped.path != unzipped.path
    mine, theirs = columns_of(zipped, "train"), columns_of(unzipped, "train")
    assert all(np.array_equal(x, theirs[c]) for c, x in mine.items())


def test_movielens_says_what_tfds_says_and_knows_its_checksums(ml, tmp_path):
    data = Prepared(movielens.prepare(tmp_path, source=str(ml)))
    info = info_of(data)
    assert "GroupLens" in info["description"] and "Harper" in info["citation"]
    assert issubclass(movielens.MovieLens, tfds_movielens.Movielens)
    known = {f.name: f for f in movielens.MovieLens.FILES}
    assert known["ml-25m.zip"].size == 261_978_986 and len(known["ml-1m.zip"].sha256) == 64


@pytest.mark.parametrize("edition", ["1m", "100k"])
def test_older_editions_of_movielens_hold_people(tmp_path, edition):
    folder, log = tmp_path / "raw", ratings()
    folder.mkdir()
    log = log.with_columns(pl.col("rating").ceil().cast(pl.Int64))
    rows = list(log.iter_rows())
    if edition == "1m":
        titles = [(i, t, g.replace("Children", "Children's")) for i, t, g in MOVIES]
        people = [(i, "FM"[i % 2], 25, 4, "02139") for i in range(1, 13)]
        files = {"ratings.dat": rows, "movies.dat": titles, "users.dat": people}
        separators = dict.fromkeys(files, "::")
    else:
        flags = lambda g: [int(x in g.split("|")) for x in movielens.GENRES]  # noqa: E731
        titles = [(i, t, "01-Jan-1995", "", "http://us.imdb.com/?é", *flags(g)) for i, t, g in MOVIES]  # fmt: skip
        people = [(i, 25, "FM"[i % 2], "technician", "02139") for i in range(1, 13)]
        files = {"u.data": rows, "u.item": titles, "u.user": people}
        separators = {"u.data": "\t", "u.item": "|", "u.user": "|"}
    for name, lines in files.items():
        text = "\n".join(separators[name].join(map(str, line)) for line in lines)
        (folder / name).write_bytes((text + "\n").encode("latin-1"))
    data = Prepared(
        movielens.prepare(tmp_path, source=str(folder), edition=edition, labels="liked")
    )
    rows = columns_of(data, "train")
    assert data.report["ratings"] == len(log)
    users = decoded(data, "user", rows["user_id"])
    assert decoded(data, "gender", rows["gender"]) == [u and "FM"[u % 2] for u in users]
    assert set(decoded(data, "age", rows["age"])) == {"25"}
    genres = set(decoded(data, "genre", rows["genre"])) - {None}
    assert genres == {"Adventure", "Action", "Comedy"} | ({"(no genres listed)"} if edition == "1m" else set())  # fmt: skip


def test_movielens_trains_by_its_name(ml, tmp_path):
    summary = train_on("movielens", ml, tmp_path / "run", {"name": "logistic"}, labels="liked")
    assert summary["examples"] == 128 and np.isfinite(summary["test"]["logloss"])


def test_wrong_sources_and_options_are_named(ml, tmp_path, monkeypatch):
    monkeypatch.delenv("RECJAX_DATA", raising=False)
    for wrong, words in (
        (dict(source=""), ["movielens", "https://grouplens.org"]),
        (dict(source="nowhere"), ["nowhere", "download"]),
        (dict(source=str(ml / "movies.csv")), ["movies.csv", "folder", ".zip"]),
        (dict(source=str(ml), edition="10m"), ["edition='10m'", "csv, 1m, 100k"]),
        (dict(source=str(ml), edition="1m"), ["ratings.dat"]),
        (dict(source=str(ml), negative="x"), ["'negative'", "'negatives'"]),
    ):
        with raises(DataError, *words):
            movielens.prepare(tmp_path, **wrong)
    (tmp_path / "broken.zip").write_text("no archive")
    with raises(DataError, "broken.zip"):
        movielens.prepare(tmp_path, source=str(tmp_path / "broken.zip"))
    assert not list((tmp_path / "movielens").rglob(".*"))  # nothing half-made is left


# ------------------------------------------------------------------------------------------- Taobao


def test_taobao_views_are_positives_and_all_behaviour_is_history(tmp_path):
    """UserBehavior.csv: no header; user, item, category, behaviour, seconds."""
    rng = np.random.default_rng(0)
    first, last = seconds_of(taobao.FROM), seconds_of(taobao.UNTIL) - 1
    item = rng.integers(1, 40, 3_000)
    log = pl.DataFrame(
        {
            "user": rng.integers(1, 30, 3_000),
            "item": item,
            "category": item // 5,
            "behavior": rng.choice(["pv", "pv", "pv", "fav", "cart", "buy"], 3_000),
            "time": rng.integers(first, last, 3_000),
        }
    )
    log = log.unique(["user", "item", "behavior", "time"], maintain_order=True)
    outside = log.head(3).with_columns(time=pl.Series([first - 1, last + 1, 2_037_187_200]))
    pl.concat([log, outside]).write_csv(tmp_path / "UserBehavior.csv", include_header=False)
    data = Prepared(taobao.prepare(tmp_path, source=str(tmp_path), min_count=1))
    assert data.report["outside_the_published_days"] == 3 and data.report["events"] == log.height
    day = seconds_of("2017-12-03T00:00+08:00")
    views = log.filter((pl.col("time") >= day) & (pl.col("behavior") == "pv")).height
    rows, timeline = columns_of(data, "test"), data.timeline("history")
    assert rows["view"].sum() + data.report["splits"]["test"]["outside_catalogue"] == views
    assert rows["time"].min() >= day and (rows["view"] == 0).sum() == 4 * rows["view"].sum()
    users = decoded(data, "user", rows["user_id"])
    for i in range(0, len(users), 97):
        past = log.filter((pl.col("user") == users[i]) & (pl.col("time") < rows["time"][i]))
        end, n = rows["history/end"][i], rows["history/count"][i]
        acts = decoded(data, "action", timeline["history_action"][end - n : end])
        assert acts == past.sort("time", maintain_order=True)["behavior"].to_list()
    items, groups = decoded(data, "item", rows["item"]), decoded(data, "category", rows["category"])
    assert groups == [i // 5 for i in items]
    tenth = Prepared(taobao.prepare(tmp_path, source=str(tmp_path), users=0.5))
    assert 0.2 < tenth.report["users"] / data.report["users"] < 0.8
    with raises(DataError, "users=0"):
        taobao.prepare(tmp_path, source=str(tmp_path), users=0)


# ------------------------------------------------------------------------------------------ Alimama


def _alimama(folder):
    """The four files in small, with the publisher's headers (the profile's ends in a space) and NULLs."""
    rng, n = np.random.default_rng(0), 2_000
    first, last = seconds_of("2017-05-06T00:00+08:00"), seconds_of(alimama.TEST) + 86_399
    click = rng.integers(0, 2, n)
    shown = pl.DataFrame({
        "user": rng.integers(1, 40, n), "time_stamp": rng.integers(first, last, n), "adgroup_id": rng.integers(1, 30, n),
        "pid": rng.choice(["430548_1007", "430539_1007"], n), "nonclk": 1 - click, "clk": click,
    }).unique(maintain_order=True)  # fmt: skip
    pl.concat([shown, shown.head(1)]).write_csv(folder / "raw_sample.csv")
    ads = [(i, i % 7, i % 11, i % 5, None if i == 3 else i % 6, 10.0 * i) for i in range(1, 30)]
    ad = pl.DataFrame(ads, schema=[*alimama.AD, "price"], orient="row")
    ad.write_csv(folder / "ad_feature.csv", null_value="NULL")
    header = ",".join(("userid", *alimama.PROFILE)) + " \n"
    (folder / "user_profile.csv").write_text(header + "".join(f"{u},0,5,{1 + u % 2},5,,3,0,3\n" for u in range(1, 36)))  # fmt: skip
    behaviour = pl.DataFrame({
        "user": rng.integers(1, 60, 3 * n), "time_stamp": rng.integers(first - 14 * 86_400, last, 3 * n),
        "btag": rng.choice(["pv", "cart", "fav", "buy"], 3 * n), "cate": rng.integers(0, 7, 3 * n), "brand": rng.integers(0, 6, 3 * n),
    })  # fmt: skip
    behaviour.write_csv(folder / "behavior_log.csv")
    return shown, ad, behaviour


def test_alimama_sees_the_shopping_before_the_ad(tmp_path):
    shown, ad, behaviour = _alimama(tmp_path)
    data = Prepared(alimama.prepare(tmp_path, source=str(tmp_path), min_count=1, partitions=2))
    log = shown.sort("time_stamp", maintain_order=True)
    assert data.report["quarantined"] == {"null_id": 0, "future": 0, "duplicate": 1}
    days = seconds_of(alimama.VALIDATION), seconds_of(alimama.TEST)
    t = log["time_stamp"].to_numpy()
    assert data.splits == {"train": (t < days[0]).sum(), "validation": ((t >= days[0]) & (t < days[1])).sum(), "test": (t >= days[1]).sum()}  # fmt: skip
    brands, seen = dict(ad.select("adgroup_id", "brand").iter_rows()), 0
    for b in (data.block("test", i) for i in range(data.blocks("test"))):
        timeline = data.timeline("history", int(b["partition"]))
        for j in range(0, len(b["request"]), 5):
            me = log.row(int(b["request"][j]), named=True)
            mine, before = pl.col("user") == me["user"], pl.col("time_stamp") < me["time_stamp"]
            past = behaviour.filter(mine, before).sort("time_stamp", maintain_order=True)
            end, n = b["history/end"][j], b["history/count"][j]
            for column, space in alimama.EVENT.items():
                got = decoded(data, space, timeline[f"history_{column}"][end - n : end])
                assert got == past[column].to_list()
            clicked = log.filter(mine, before, pl.col("clk") == 1)
            assert b["user_clicked_count"][j] == clicked.height
            ads = clicked.filter(pl.col("adgroup_id") == me["adgroup_id"])
            assert b["user_ad_clicked_count"][j] == ads.height
            assert b["clk"][j] == me["clk"] and b["price"][j] == 10 * me["adgroup_id"]
            assert decoded(data, "brand", b["brand"][j : j + 1]) == [brands[me["adgroup_id"]]]
            assert (b["pvalue_level"][j] == MISSING) and (b["age_level"][j] == MISSING) == (me["user"] > 35)  # fmt: skip
            seen += n
    assert seen > 1_000


def test_a_wrong_alimama_is_named(tmp_path):
    _alimama(tmp_path)
    pl.read_csv(tmp_path / "ad_feature.csv").drop("brand").write_csv(tmp_path / "ad_feature.csv")
    with raises(DataError, "ad_feature.csv", "'brand'"):
        alimama.prepare(tmp_path / "out", source=str(tmp_path))


# ------------------------------------------------------------------------------------------- Amazon


def test_amazon_reviews_are_taken_products_and_texts_ride_with_their_ids(tmp_path):
    """JSON lines in gzip as nijianmo.github.io/amazon shows them; days as times, prices as text."""
    rng, day = np.random.default_rng(0), 86_400
    reviews = [
        {
            "overall": 5.0, "vote": "2", "verified": True, "reviewTime": "01 1, 2018", "reviewerID": f"A{rng.integers(20)}",
            "asin": f"B{rng.integers(15):04d}", "style": {"Size:": " Large"}, "reviewerName": "Abbey", "reviewText": "nice",
            "summary": "comfy", "unixReviewTime": int(1_483_228_800 + day * rng.integers(300)),
        }
        for _ in range(600)
    ]  # fmt: skip
    prices = {0: "$1,002.50", 1: "$8.00 - $12.00", 2: ".a-box-inner{background-color:#fff}", 3: ""}
    products = [
        {
            "asin": f"B{i:04d}", "title": f"Pen {i}", "feature": ["blue"], "description": ["Writes.", "Well."], "brand": "BIC" if i else "",
            "price": prices.get(i, "$2.00"), "category": ["Office Products", f"Pens {i % 3}"], "also_buy": ["B0001"],
            "rank": "1 in Office",
        }
        for i in range(15)
    ]  # fmt: skip
    for name, lines in (("Office_Products_5", reviews), ("meta_Office_Products", products)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.json.gz").write_bytes(gzip.compress(text.encode()))
    data = Prepared(amazon.prepare(tmp_path, source=str(tmp_path), category="Office_Products"))
    assert (data.report["reviews"], data.report["products"]) == (600, 15)
    items = data.vocabulary("item").sort("value")
    assert items["title"].to_list() == [f"Pen {i}" for i in range(15)]
    assert set(items["description"]) == {"Writes. Well."}
    rows = columns_of(data, "test")
    names = decoded(data, "item", rows["item"])
    numbers = {name: 2.0 for name in names} | {"B0000": 1002.5, "B0001": 8.0, "B0002": 0.0, "B0003": 0.0}  # fmt: skip
    np.testing.assert_array_equal(rows["price"], [np.float32(numbers[n]) for n in names])
    assert set(decoded(data, "category", rows["category"])) == {"Pens 0", "Pens 1", "Pens 2"}
    inputs = {f.name for f in data.schema.features}
    assert not inputs & {"overall", "rank", "reviewText", "also_buy"}
    told = Prepared(amazon.prepare(tmp_path, source=str(tmp_path), category="Office_Products", text="hashed"))  # fmt: skip
    vectors = columns_of(told, "test")["title_vector"]
    np.testing.assert_array_equal(vectors, hashed([f"Pen {int(n[1:])}" for n in names]))
    users, timeline = decoded(data, "user", rows["user_id"]), data.timeline("history")
    for i in range(0, len(users), 31):
        past = [r for r in reviews if r["reviewerID"] == users[i] and r["unixReviewTime"] < rows["time"][i]]  # fmt: skip
        end, n = rows["history/end"][i], rows["history/count"][i]
        got = decoded(data, "item", timeline["history_item"][end - n : end])
        assert sorted(got) == sorted({(r["asin"], r["unixReviewTime"]): r["asin"] for r in past}.values())  # fmt: skip


def test_a_wrong_amazon_is_named(tmp_path):
    with raises(DataError, "data.prepare.category"):
        amazon.prepare(tmp_path, source=str(tmp_path))
    (tmp_path / "X_5.json").write_text('{"asin": "B1"}\nno json\n')
    (tmp_path / "meta_X.json").write_text("")
    with raises(DataError, "X_5.json", "1-2"):
        amazon.prepare(tmp_path, source=str(tmp_path), category="X")


# -------------------------------------------------------------------------------------- all of them


def readers() -> dict[str, type[Published]]:
    """Every reader of the package, by its name."""
    modules = [m.name for m in pkgutil.iter_modules(sets.__path__)]
    classes = [x for m in modules for x in vars(_module(m)).values() if isinstance(x, type)]
    return {c.name: c for c in classes if issubclass(c, Published) and c is not Published}


def _module(name: str):
    return importlib.import_module(f"recjax.data.sets.{name}")


def test_every_reader_is_documented_and_can_be_named():
    page = (REPO / "docs" / "data_sets.md").read_text()
    assert len(readers()) == 11
    for name, reader in readers().items():
        assert callable(_module(name).prepare), name
        assert f"| `{name}` |" in page and reader.HOMEPAGE in page, name
        about = reader.about(reader.__new__(reader))
        assert all(about[what] for what in ("description", "citation", "homepage", "license")), name
        assert issubclass(reader, tfds.core.GeneratorBasedBuilder)


def test_the_command_prepares_a_set_and_refuses_in_one_sentence(ml, tmp_path, run_python):
    args = ("recjax.data.sets.published", "--name=movielens", f"--source={ml}", f"--out={tmp_path}")
    done = run_python(*args, "--option=labels=liked", "--option=min_count=1", devices=1)
    path = done.stdout.split("Prepared ")[1].strip()
    assert Prepared(path).schema.labels == ("liked",)
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-m", *args, "--option=edition=2m"], env=env, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1 and done.stderr.strip().endswith("edition='2m'; use one of csv, 1m, 100k")  # fmt: skip
