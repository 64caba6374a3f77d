"""The readers of published logs: real files where RECJAX_DATA has them, else fixtures in the publisher's exact format."""

import zipfile

import numpy as np
import polars as pl
import pytest
from tensorflow_datasets.structured import movielens as tfds_movielens

from recjax.data import movielens
from recjax.data.prepared import DataError, Prepared
from tests.reading import columns_of, decoded, info_of, train_on

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
    for wrong, message in (
        (dict(source=""), "movielens is not here; download it from https://grouplens.org"),
        (dict(source="nowhere"), "there is no nowhere; download"),
        (dict(source=str(ml / "movies.csv")), "neither a folder nor one of .zip"),
        (dict(source=str(ml), edition="10m"), "edition='10m'; use one of csv, 1m, 100k"),
        (dict(source=str(ml), edition="1m"), "there is no ratings.dat"),
        (dict(source=str(ml), negative="x"), "no option 'negative'; did you mean 'negatives'"),
    ):
        with pytest.raises(DataError, match=message):
            movielens.prepare(tmp_path, **wrong)
    (tmp_path / "broken.zip").write_text("no archive")
    with pytest.raises(DataError, match="broken.zip is no readable archive"):
        movielens.prepare(tmp_path, source=str(tmp_path / "broken.zip"))
    assert not list((tmp_path / "movielens").rglob(".*"))  # nothing half-made is left
