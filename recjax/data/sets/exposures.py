"""Exposure opportunities, visit x promoted product, and negatives drawn among them.

An opportunity is a number; the half a billion of The Complete Journey are never written out. Both draws are exact
all the same: a Bernoulli(w) subset of a sequence has geometric gaps; and the distinct points hit by Poisson(c sum pop)
throws, each at i with probability pop_i / sum pop, are independent with probability 1 - exp(-c pop_i).
"""

from collections.abc import Mapping
import dataclasses

from absl import logging
import numpy as np
from scipy import optimize

from recjax.data.sets.complete_journey_log import (
    LETTER_BITS,
    PRODUCT_BITS,
    WEEK_CODES,
    Log,
    store_week,
)
from recjax.data.store.prepared import DataError

Split = slice  # of the visits
Rows = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> (opportunities ascending, labels)


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


# -------------------------------------------------------------------------------------------- draws


def draw(
    log: Log, o: Opportunities, weeks: Mapping[str, tuple[int, int]], rate: str, seed: int
) -> tuple[Rows, dict[str, float]]:
    """Purchases and drawn negatives of every split; and keep constants: w of natural splits, c of matched ones.

    Args:
      log: Purchases, for the popularity of products in the training weeks.
      o: All opportunities.
      weeks: split -> its first and last week; one split is "train".
      rate: Negatives kept per purchase, as "1:4".
      seed: Of the draws.
    """
    w = keep_rate(o, rate)
    negatives = draw_natural(np.random.default_rng([seed, 0]), o, w)
    trained = log.purchases["product"][log.purchases["week"] <= weeks["train"][1]]
    pop = np.bincount(trained, minlength=len(log.values["product"]))[o.product]
    natural, matched, keep = {}, {}, {}
    for i, (name, span) in enumerate(weeks.items()):
        split = o.of_weeks(*span)
        bought, drawn = _within(o, split, o.bought), _within(o, split, negatives)
        if not len(bought) or not len(drawn):
            logging.warning(
                "Weeks %d-%d hold %d purchases: there is no split %s", *span, len(bought), name
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
