"""MovieLens: ratings with times, in GroupLens's editions latest-small, 20m, 25m, 32m ("csv"), 1m and 100k.

    python -m recjax.data.published --name=movielens --source=ml-25m.zip --out=DIR
    python -m recjax.data.published --name=movielens --source=ml-1m.zip --option=edition=1m --out=DIR

The builder is a subclass of TFDS's `Movielens` and has its documentation and checksums. TFDS reads only an archive with
GroupLens's own checksum; here any folder or archive with the same files is read, and the report says whether the archive is
GroupLens's. TFDS parses 1m and 100k with TensorFlow, so reading is our own.

Formats, from the READMEs inside the archives and TFDS's parsers: ratings.csv (userId,movieId,rating,timestamp) and
movies.csv (movieId,title,genres) in "csv"; ratings.dat, movies.dat, users.dat separated by "::" in 1m; u.data, u.item,
u.user separated by tabs and "|" in 100k; the last two are Latin-1.

Protocol. With `labels="watched"` a rating is a positive and negatives are drawn from the movies of the training period
(`recjax.data.logs.negatives`): what is watched next. With `labels="liked"` rows are the ratings themselves, 1 for more than
`threshold` stars, 0 for fewer, as papers on CTR use MovieLens; ratings of exactly `threshold` stars are left out. Training,
validation and test follow each other in time, 8:1:1 of the ratings. An item's genre is its first; titles are not used but
for their year.
"""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

import polars as pl
from tensorflow_datasets.structured import movielens as tfds_movielens

from recjax.data.logs.mapping import LogMapping
from recjax.data.sets.published import LOG, File, Files, Published, prepare_log
from recjax.data.store.prepared import DataError

MAPPING = LogMapping(
    user="user",
    item="movie",
    time="timestamp",
    time_unit="s",
    item_columns=("genre", "year"),
    item_table="movies.parquet",
)
LIKED = {"labels": ("liked",), "negatives": "impressions", "group": "user"}
PEOPLE = {"user_table": "users.parquet", "user_columns": ("gender", "age", "occupation")}
EDITIONS: dict[str, tuple[str, ...]] = {  # ratings, movies, users
    "csv": ("ratings.csv", "movies.csv"),
    "1m": ("ratings.dat", "movies.dat", "users.dat"),
    "100k": ("u.data", "u.item", "u.user"),
}
RATINGS = ("user", "movie", "rating", "timestamp")
GENRES = (  # the flags of u.item, in order
    "Unknown|Action|Adventure|Animation|Children|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
    "Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")


class MovieLens(Published, tfds_movielens.Movielens):
    """MovieLens as blocks of impressions; what it says of the data is TFDS's."""

    name = "movielens"
    BUILDER_CONFIGS = []  # an edition is an option of `prepare`, not a configuration
    FOLDER = "ml-latest-small"
    HOMEPAGE = "https://grouplens.org/datasets/movielens/"
    LICENSE = (
        "GroupLens: research use, no commercial use without permission; latest-small, 20m, 25m and 32m may be "
        "redistributed under the same conditions, 1m and 100k only with permission."
    )
    FILES = tuple(
        File(url.filename, int(url.size), url.checksum)
        for url in tfds_movielens.Movielens.url_infos.values()
    )

    def about(self) -> dict[str, str]:
        return self.about_tfds(tfds_movielens.Movielens, config="25m-ratings")


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    edition: str = "csv",
    labels: str = "watched",
    threshold: float = 3.0,
    **options,
) -> pathlib.Path:
    """Prepares an edition and returns its directory.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: GroupLens's folder or archive, re-zipped or not; "" means $RECJAX_DATA/ml-latest-small.
      edition: "csv", "1m" or "100k" (module docstring).
      labels: "watched" or "liked" (module docstring).
      threshold: Stars that separate liked from not liked.
      **options: Of `recjax.data.sets.published.prepare_log`.

    Raises:
      DataError: Files are missing or damaged.
    """
    for name, value, known in (
        ("edition", edition, EDITIONS),
        ("labels", labels, ("watched", "liked")),
    ):
        if value not in known:
            raise DataError(f"{name}={value!r}; use one of {', '.join(known)}")
    liked = labels == "liked"

    def stage(files: Files, folder: pathlib.Path) -> dict[str, Any]:
        ratings, movies, users = read(edition, [files[name][0] for name in EDITIONS[edition]])
        movies.write_parquet(folder / MAPPING.item_table)
        if users is not None:
            users.write_parquet(folder / PEOPLE["user_table"])
        log = ratings.filter(pl.col("rating") != threshold) if liked else ratings
        log = log.with_columns((pl.col("rating") > threshold).cast(pl.Int8).alias("liked"))
        log.write_parquet(folder / LOG)
        return {"ratings": ratings.height, "neither_liked_nor_not": ratings.height - log.height}

    return prepare_log(
        MovieLens,
        out_dir,
        source,
        MAPPING,
        EDITIONS[edition],
        stage,
        options={"edition": edition, "labels": labels, "threshold": threshold},
        **((LIKED if liked else {}) | (PEOPLE if len(EDITIONS[edition]) > 2 else {}) | options),
    )


def read(
    edition: str, files: Sequence[pathlib.Path]
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame | None]:
    """Ratings (user, movie, rating, timestamp), movies (movie, genre, year), users (user, gender, age, occupation) or None."""
    if edition == "csv":
        ratings = pl.read_csv(files[0]).rename({"userId": "user", "movieId": "movie"})
        movies = pl.read_csv(files[1]).rename({"movieId": "movie"})
        return ratings, _described(movies), None
    separators = {"1m": ("::", "::", "::"), "100k": ("\t", "|", "|")}[edition]
    rows = [
        [line.split(s) for line in f.read_text("latin-1").splitlines() if line]
        for f, s in zip(files, separators, strict=True)
    ]
    ratings = pl.DataFrame(rows[0], schema=dict.fromkeys(RATINGS, pl.String), orient="row")
    ratings = ratings.cast({"rating": pl.Float64, "timestamp": pl.Int64})
    if edition == "1m":
        movies = pl.DataFrame(rows[1], schema=["movie", "title", "genres"], orient="row")
        users = [(user, gender, age, job) for user, gender, age, job, _ in rows[2]]
    else:
        genres = ["|".join(g for g, on in zip(GENRES, r[5:], strict=False) if on == "1") for r in rows[1]]  # fmt: skip
        titles = {"movie": [r[0] for r in rows[1]], "title": [r[1] for r in rows[1]]}
        movies = pl.DataFrame(titles | {"genres": genres})
        users = [(user, gender, age, job) for user, age, gender, job, _ in rows[2]]
    people = pl.DataFrame(users, schema=["user", *PEOPLE["user_columns"]], orient="row")
    whole = lambda c: pl.col(c).cast(pl.Int64)  # noqa: E731
    return (
        ratings.with_columns(whole("user"), whole("movie")),
        _described(movies.with_columns(whole("movie"))),
        people.with_columns(whole("user")),
    )


def _described(movies: pl.DataFrame) -> pl.DataFrame:
    return movies.select(
        "movie",
        # 1m writes "Children's" where the other editions write "Children".
        pl.col("genres").str.split("|").list.first().str.replace("Children's", "Children", literal=True).alias("genre"),
        pl.col("title").str.extract(r"\((\d{4})\)\s*$").alias("year"),
    )  # fmt: skip
