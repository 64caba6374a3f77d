"""The Complete Journey as pages: the promoted products a visit could choose among, in the categories it bought from.

    python -m recjax.data.published --name=complete_journey_pages --out=DIR [--option=held_out=MEAT] [--option=first_week=44]

A *page* is a visit and a department: all products promoted in the visit's store and week that belong to a product category the visit
bought from in that department. The label is a purchase. These are no pages that anybody was shown: nobody knows what was
seen, and which categories are on a page depends on what was bought (in each, at least one product, promoted or not). What
CCN needs is there all the same: items that stood side by side in one choice, some taken and some not, none of them sampled from
products that were not there. It is a stress case, not a benchmark.

At most `keep` products of a page are kept, all purchases and a uniform draw of the others; `inclusion` is the probability with which
a row was kept and `weight` its inverse, so that losses and metrics are those of whole pages. Pages of fewer than three
products are dropped. The *trigger* is the household's latest purchase in the department before the visit, at any age (grocery visits
are days apart; the public code's 480 minutes would leave nothing): id 0, and CCN's learned null trigger, where there is none. Department is
the scenario; it is no feature, and the pages of `held_out` are in no split but "test_unseen". Its products do occur in histories.

Train weeks first_week..47, validation 48-49, test >= 50, as in `recjax.data.sets.complete_journey`, whose vocabularies (training weeks),
features, histories (all earlier purchases) and counters these are.
"""

from collections.abc import Mapping
import dataclasses
import functools
import os
import pathlib
from typing import Any

from absl import logging
import numpy as np

from recjax.data.sets import complete_journey as journey
from recjax.data.sets.complete_journey_log import FILES, CompleteJourney, Log, locate, read_log
from recjax.data.sets.exposures import Opportunities, opportunities
from recjax.data.store.pages import latest_before, page_starts, pair_counts, sample_pages
from recjax.data.store.prepared import DataError, is_prepared, prepared_path, say_prepared
from recjax.data.store.vocabulary import frames
from recjax.data.store.writing import BLOCK_SIZE, write_prepared
from recjax.schema import Feature, Schema

NAME, VERSION = "complete_journey_pages", "1.0.0"
TRIGGER = ("product", "category", "type", "manufacturer", "brand")
SHORTEST = 3  # products of a page
CHUNK = 20_000  # pages laid out at a time
HELD_OUT = "MEAT"


@dataclasses.dataclass(frozen=True)
class Pages:
    """Pages before sampling, sorted by visit and department.

    Attributes:
      visit, department: Codes of each page [P].
      shelf_start: Shelves of page p are [shelf_start[p], shelf_start[p + 1]).
      low, high: Of each shelf, its promotions' range in `order`.
      order: Promotions by (store-week, shelf).
      size: Products of each page [P].
    """

    visit: np.ndarray
    department: np.ndarray
    shelf_start: np.ndarray
    low: np.ndarray
    high: np.ndarray
    order: np.ndarray
    size: np.ndarray

    def rows(self, page: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place in `page`, promotion) of every product of some pages, page by page."""
        shelves = _ranges(self.shelf_start[page], self.shelf_start[page + 1])
        low, high = self.low[shelves], self.high[shelves]
        places = np.repeat(np.arange(len(page)), self.size[page])
        return places, self.order[_ranges(low, high)]


def _ranges(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The integers of [low, high) of each range, one after the other."""
    size = high - low
    before = np.cumsum(size) - size
    return np.repeat(low - before, size) + np.arange(size.sum())


def shelves(log: Log) -> tuple[np.ndarray, np.ndarray]:
    """(shelf, department) of each product code: a shelf is a category within a department, -1 where the log names none."""
    codes = {
        c: log.sides[c].rank("dense").fill_null(0).to_numpy() for c in ("department", "category")
    }
    department, category = (codes[c].astype(np.int64) - 1 for c in ("department", "category"))
    both = department * (category.max(initial=0) + 1) + category
    known = (department >= 0) & (category >= 0)
    dense = np.unique(both[known], return_inverse=True)[1]
    shelf = np.full(len(both), -1, np.int64)
    shelf[known] = dense
    return shelf, department


def lay_out(log: Log, o: Opportunities, first_week: int) -> Pages:
    """All pages of at least `SHORTEST` products, from a week on."""
    shelf_of, department_of = shelves(log)
    count = int(shelf_of.max(initial=0)) + 1
    bought = log.purchases
    baskets = np.argsort(o.visits["basket"])
    visit = baskets[np.searchsorted(o.visits["basket"][baskets], bought["basket"])]
    shelf = shelf_of[bought["product"]]
    wanted = (shelf >= 0) & (bought["week"] >= first_week)
    pair = np.unique(visit[wanted] * count + shelf[wanted])
    visit, shelf = pair // count, pair % count
    group = np.repeat(np.arange(len(o.start) - 1), np.diff(o.start))
    key = group * (count + 1) + shelf_of[o.product] + 1  # 0: no shelf
    order = np.argsort(key, kind="stable")
    asked, key = o.visits["group"][visit] * (count + 1) + shelf + 1, key[order]
    low, high = (np.searchsorted(key, asked, side=side) for side in ("left", "right"))
    of_shelf = np.zeros(count, np.int64)
    of_shelf[shelf_of[shelf_of >= 0]] = department_of[shelf_of >= 0]
    department = of_shelf[shelf]
    # Shelves are numbered department by department, so a page's lie together.
    starts = page_starts(visit * (int(department.max(initial=0)) + 1) + department)
    size = np.add.reduceat(high - low, starts[:-1]) if len(pair) else np.zeros(0, np.int64)
    return _long_enough(
        Pages(visit[starts[:-1]], department[starts[:-1]], starts, low, high, order, size)
    )


def _long_enough(p: Pages) -> Pages:
    """Pages of at least `SHORTEST` products, with their shelves alone."""
    long = np.flatnonzero(p.size >= SHORTEST)
    kept = _ranges(p.shelf_start[long], p.shelf_start[long + 1])
    starts = np.r_[0, np.cumsum(np.diff(p.shelf_start)[long])]
    return Pages(
        p.visit[long], p.department[long], starts, p.low[kept], p.high[kept], p.order, p.size[long]
    )


@dataclasses.dataclass(frozen=True)
class Kept:
    """Rows of one split.

    Attributes:
      page: Page of each row [N], ascending.
      opportunity: Its number in `Opportunities` [N].
      label: Whether it was bought [N].
      inclusion: With which probability it was kept [N].
    """

    page: np.ndarray
    opportunity: np.ndarray
    label: np.ndarray
    inclusion: np.ndarray


def draw(o: Opportunities, pages: Pages, page: np.ndarray, keep: int, seed: int) -> Kept:
    """Sampled rows of some pages, laid out chunk by chunk."""
    parts = []
    for at in range(0, len(page), CHUNK):
        mine = page[at : at + CHUNK]
        place, promotion = pages.rows(mine)
        visit = pages.visit[mine][place]
        number = o.offset[visit] + promotion - o.start[o.visits["group"][visit]]
        found = np.searchsorted(o.bought, number)
        label = np.r_[o.bought, -1][found] == number
        rng = np.random.default_rng([seed, at])
        kept, probability = sample_pages(rng, place, label, keep)
        parts.append((mine[place[kept]], number[kept], label[kept], probability))
    return Kept(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def split_pages(
    o: Opportunities, pages: Pages, held_out: int, first_week: int
) -> dict[str, np.ndarray]:
    """split -> its pages; those of the held-out department only in "test_unseen", of the test weeks."""
    week, out = o.visits["week"][pages.visit], {}
    unseen = pages.department == held_out
    weeks = dict(journey.WEEKS, train=(first_week, journey.WEEKS["train"][1]))
    for split, (first, last) in weeks.items():
        of_split = (week >= first) & (week <= last)
        out[split] = np.flatnonzero(of_split & ~unseen)
        if split == "test":
            out["test_unseen"] = np.flatnonzero(of_split & unseen)
    for split, page in out.items():
        if not len(page):
            raise DataError(
                f"split {split!r} has no page of {SHORTEST} products; take more households or weeks"
            )
    return out


def triggers(log: Log, o: Opportunities, pages: Pages) -> np.ndarray:
    """Product code of each page's trigger, -1 for none [P]."""
    _, department_of = shelves(log)
    many = int(department_of.max(initial=0)) + 1
    department = department_of[log.purchases["product"]]
    known = np.flatnonzero(department >= 0)
    household = {c: x for c, x in (("events", log.purchases["household"][known]),
                                   ("pages", o.visits["household"][pages.visit]))}  # fmt: skip
    events = {
        "user": household["events"] * many + department[known],
        "time": log.purchases["time"][known],
    }
    asked = household["pages"] * many + pages.department
    row = latest_before(events, asked, o.visits["time"][pages.visit])
    return np.where(row >= 0, log.purchases["product"][known][row], -1)


def make_schema(encoders: journey.Encoders) -> Schema:
    """That of the opportunities, with a trigger and without the department, which is the scenario."""
    base = journey.make_schema(encoders.vocabularies).without(["department"])
    trigger = tuple(Feature(f"trigger_{c}", "trigger", c) for c in TRIGGER)
    labels = (*(f for f in base.features if f.role == "label"), Feature("inclusion", "label"))
    inputs = tuple(f for f in base.features if f.role != "label")
    return Schema(base.id_spaces, (*inputs, *trigger, *labels), ("page", *base.groups))


def columns(
    o: Opportunities, e: journey.Encoders, trigger: np.ndarray, kept: Kept
) -> dict[str, np.ndarray]:
    """Columns of `write_prepared` for kept rows."""
    out = journey.impressions(o, e, kept.opportunity, kept.label)
    asked = trigger[kept.page]
    for c in TRIGGER:
        out[f"trigger_{c}"] = np.where(asked >= 0, e.ids[c][asked], 0)
    return out | {
        "page": kept.page,
        "request": kept.page,
        "inclusion": kept.inclusion.astype(np.float32),
        "weight": (1 / kept.inclusion).astype(np.float32),
    }


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    held_out: str = HELD_OUT,
    keep: int = 32,
    first_week: int = 44,
    seed: int = 0,
    block_size: int = BLOCK_SIZE,
    partitions: int = 1,
    min_count: int = 5,
    limit_households: int = 0,
) -> pathlib.Path:
    """Prepares the pages and returns their directory; does nothing when these options were prepared before.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Folder with the parquet files; "" finds the installed wheel.
      held_out: Department whose pages are only tested on.
      keep: Most products of a page.
      first_week: Of the training pages; histories, triggers, counters and vocabularies have the weeks before it too.
      seed: Of the draws and of the training order.
      block_size: Rows per record.
      partitions: Of the users.
      min_count: As in `recjax.data.sets.complete_journey`.
      limit_households: Only the first n household ids, for small sets; 0: all.

    Raises:
      DataError: Files are missing, there is no such department, or a split has no page.
    """
    folder = locate(source)
    options: dict[str, Any] = dict(
        held_out=held_out, keep=keep, first_week=first_week, partitions=partitions,
        min_count=min_count, limit_households=limit_households,
        source={name: (folder / f"{name}.parquet").stat().st_size for name in FILES},
    )  # fmt: skip
    layout = {"block_size": block_size, "unit": "request", "seed": seed}
    path = prepared_path(out_dir, NAME, options | layout, VERSION)
    if is_prepared(path):
        say_prepared(NAME, path)
        return path
    log = read_log(folder, None, limit_households)
    departments = log.sides["department"].unique().drop_nulls().sort().to_list()
    if held_out not in departments:
        raise DataError(
            f"held_out={held_out!r} is no department; there are {', '.join(departments)}"
        )
    o = opportunities(log)
    log = dataclasses.replace(log, promotions=log.promotions[:0])
    e = journey.encoders(log, o, min_count, partitions)
    pages = lay_out(log, o, first_week)
    logging.info("%d pages of %d products", len(pages.size), pages.size.sum())
    chosen = split_pages(o, pages, departments.index(held_out), first_week)
    kept = {s: draw(o, pages, p, keep, seed + i) for i, (s, p) in enumerate(chosen.items())}
    trigger = triggers(log, o, pages)
    make = functools.partial(columns, o, e, trigger)
    return write_prepared(
        out_dir,
        NAME,
        make_schema(e),
        {"history": [t.columns for t in e.timelines]},
        {split: functools.partial(make, rows) for split, rows in kept.items()},
        vocab=frames(e.vocabularies),
        report=make_report(log, o, pages, kept, trigger, departments),
        facts={"counters": [c for counter in journey.COUNTERS for c in counter.columns]},
        options=options,
        version=VERSION,
        builder=CompleteJourney,
        **layout,
    )


def make_report(
    log: Log, o: Opportunities, pages: Pages, kept: Mapping[str, Kept], trigger, departments
) -> dict[str, Any]:
    """What was kept; plain JSON."""
    out = {}
    for split, rows in kept.items():
        page = rows.page[page_starts(rows.page)[:-1]]
        product = o.product[o.locate(rows.opportunity)[1]]
        by = np.bincount(pages.department[page], minlength=len(departments))
        out[split] = {
            "rows": len(rows.page),
            "purchases": int(rows.label.sum()),
            "products_before_sampling": int(pages.size[page].sum()),
            **pair_counts(rows.page, rows.label),
            "with_trigger": int((trigger[page] >= 0).sum()),
            "trigger_among_its_products": len(np.unique(rows.page[product == trigger[rows.page]])),
            "pages_by_department": {d: int(n) for d, n in zip(departments, by, strict=True) if n},
        }
    return log.found | {"pages": len(pages.size), "splits": out}
