"""Amazon reviews 2018 with text: who reviewed what when, and the products' titles, brands and categories.

    python -m recjax.data.published --name=amazon --source=FOLDER --option=category=Office_Products --out=DIR

Format, from the publisher's page (nijianmo.github.io/amazon), whose samples of both files are quoted in many places: one JSON
object per line, gzipped. `{category}_5.json.gz` (the 5-core) or `{category}.json.gz` with reviewerID, asin, overall,
unixReviewTime (seconds, of a day), verified, reviewText, summary, ...; `meta_{category}.json.gz` with asin, title, brand,
category (a path), price ("$1.99"), description, feature, rank, also_buy, ...

Protocol. A review is a positive: somebody took the product. Negatives are drawn from the products reviewed in the training
period, 8:1:1 in time. Reviews have days, not times; those of one user and day are one request and do not see each other.
Stars and review text are written after the fact and are no features; neither are rank, also_buy and also_view, which the
crawl of 2018 collected from later behaviour. The price is that of the crawl.

Titles and descriptions are in the vocabulary of the items (`Prepared.vocabulary("item")`, columns title and description), by
the id that tables and batches use, for whoever encodes them. `text="hashed"` or "wordllama" encodes the titles
(`recjax.data.sets.text`) as the candidate's vector `title_vector`, a kilobyte an impression.
"""

from collections.abc import Iterator, Mapping
import gzip
import io
import os
import pathlib
from typing import Any

import polars as pl

from recjax.data.logs.mapping import LogMapping
from recjax.data.sets.published import LOG, TEXT, Files, Published, prepare_log
from recjax.data.sets.text import encoder
from recjax.data.store.prepared import DataError

VECTOR = "title_vector"
CHUNK = 1 << 26  # bytes of lines parsed at once
REVIEW = {"reviewerID": pl.String, "asin": pl.String, "unixReviewTime": pl.Int64}
PRODUCT = {
    "asin": pl.String,
    "title": pl.String,
    "brand": pl.String,
    "category": pl.List(pl.String),
    "price": pl.String,
    "description": pl.List(pl.String),
}
MAPPING = LogMapping(
    user="reviewerID",
    item="asin",
    time="unixReviewTime",
    time_unit="s",
    item_columns=("brand", "category", "subcategory", "price"),
    item_table="items.parquet",
    dense={"price": "log1p"},
    min_count=1,
)


class Amazon(Published):
    """Amazon reviews 2018 as blocks of impressions."""

    name = "amazon"
    HOMEPAGE = "https://nijianmo.github.io/amazon"
    DESCRIPTION = (
        "Reviews of Amazon products from May 1996 to October 2018 by category, with the products' metadata: 233.1 million "
        "reviews in all, and 5-cores of each category."
    )
    CITATION = """@inproceedings{ni2019justifying,
  title={Justifying Recommendations using Distantly-Labeled Reviews and Fine-Grained Aspects},
  author={Ni, Jianmo and Li, Jiacheng and McAuley, Julian},
  booktitle={Proceedings of EMNLP-IJCNLP},
  year={2019}
}"""
    LICENSE = "None stated; research use."


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    category: str = "",
    core: bool = True,
    text: str = "",
    **options,
) -> pathlib.Path:
    """Prepares a category and returns its directory.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Folder or archive with the category's two files.
      category: As the files call it, such as Office_Products.
      core: Whether to read the 5-core rather than all reviews.
      text: Encoder of the titles, of `recjax.data.sets.text`; "" for none.
      **options: Of `recjax.data.sets.published.prepare_log`.

    Raises:
      DataError: Files are missing or not as described.
    """
    if not category:
        raise DataError("give data.prepare.category, as the files call it, such as Office_Products")
    if text:
        encoder(text)  # not there: say so before anything is read
        named = (*MAPPING.item_columns, VECTOR)
        options = {"item_columns": named, "vectors": (VECTOR,)} | options
    reviews, products = f"{category}{'_5' if core else ''}.json", f"meta_{category}.json"

    def stage(files: Files, folder: pathlib.Path) -> Mapping[str, Any]:
        log = pl.concat(read_lines(files[reviews][0], REVIEW))
        log.write_parquet(folder / LOG)
        known = log["asin"].unique()
        table = pl.concat(
            part.filter(pl.col("asin").is_in(known.implode()))
            for part in read_lines(files[products][0], PRODUCT)
        ).unique("asin", keep="first", maintain_order=True)
        features = described(table)
        if text:
            vectors = encoder(text)(table["title"].fill_null("").to_list())
            features = features.with_columns(pl.Series(VECTOR, vectors).arr.to_list())
        features.write_parquet(folder / MAPPING.item_table)
        words = table.select(
            pl.col("asin").alias("value"), "title", pl.col("description").list.join(" ")
        )
        words.write_parquet(folder / TEXT)
        return {"reviews": log.height, "products": table.height}

    return prepare_log(
        Amazon,
        out_dir,
        source,
        MAPPING,
        (reviews, products),
        stage,
        options={"category": category, "core": core, "text": text},
        **options,
    )


def described(table: pl.DataFrame) -> pl.DataFrame:
    """asin, brand, category (below the department's own name), subcategory, price in dollars."""
    path = pl.col("category").list
    # "$12.99"; of a range "$8 - $12" the lower end; anything else (a style sheet, now and then) is no price.
    price = pl.col("price").str.extract(r"^\$([\d,]+(?:\.\d+)?)").str.replace_all(",", "")
    return table.select(
        "asin",
        pl.col("brand").replace("", None),
        path.get(1, null_on_oob=True).alias("category"),
        path.get(2, null_on_oob=True).alias("subcategory"),
        price.cast(pl.Float64).alias("price"),
    )


def read_lines(file: pathlib.Path, columns: Mapping[str, Any]) -> Iterator[pl.DataFrame]:
    """Some columns of a file of JSON lines, in pieces; raises DataError naming what is damaged."""
    opener = gzip.open if file.suffix == ".gz" else open
    first = 1
    with opener(file, "rb") as stream:
        while lines := stream.readlines(CHUNK):
            try:
                yield pl.read_ndjson(io.BytesIO(b"".join(lines)), schema=dict(columns))
            except pl.exceptions.PolarsError as e:
                rows = f"{first}-{first + len(lines) - 1}"
                raise DataError(f"{file}, lines {rows}: {str(e).splitlines()[0]}") from e
            first += len(lines)
    if first == 1:
        raise DataError(f"{file} is empty; download it again")
