"""A log in arrays: who did what when, in which request and split, and which impressions to train on."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
import polars as pl

from recjax.data.logs import negatives
from recjax.data.logs.mapping import SESSION, LogMapping
from recjax.data.logs.rows import MOMENT, WEIGHT, RawLog
from recjax.data.logs.values import is_any
from recjax.data.logs.whole import Whole
from recjax.data.store import histories
from recjax.data.store.dates import seconds_of, span_of
from recjax.data.store.histories import Timeline
from recjax.data.store.prepared import DataError


@dataclasses.dataclass(frozen=True)
class Events:
    """A log in arrays; one entry per usable row, in time order.

    Attributes:
      mapping: Its meaning.
      rows: The log's columns.
      user, item: Codes, int64 [N].
      users, items: Their values, ascending.
      time: Seconds, int64 [N].
      request: Number of the request, in time order, int64 [N].
      asked: Time of the request, seconds, int64 [N].
      groups: Of "page" and "session", those the mapping has, numbers int64 [N].
      labels: label -> float32 [N].
      split: -1 none, else the place in `splits`, int8 [N].
      splits: Names.
      whole: Where these are a shard's rows, what it must know of the others.
    """

    mapping: LogMapping
    rows: pl.DataFrame
    user: np.ndarray
    item: np.ndarray
    users: pl.Series
    items: pl.Series
    time: np.ndarray
    request: np.ndarray
    asked: np.ndarray
    groups: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    split: np.ndarray
    splits: tuple[str, ...]
    whole: Whole | None = None

    @classmethod
    def of(cls, log: RawLog, m: LogMapping, whole: Whole | None = None) -> "Events":
        users, user = codes(log.rows[m.user])
        items, item = codes(log.rows[m.item], whole and whole.values["item"])
        time = log.rows[MOMENT].to_numpy() // 1_000_000
        request, asked = requests_of(log.rows, m.request, user, time)
        groups = {"page": requests_of(log.rows, m.page, user, time)[0]} if m.page else {}
        if m.session_gap:
            groups[SESSION] = histories.sessions(user, asked, span_of(m.session_gap))
        begins = whole.begins if whole else split_begins(m, *np.unique(asked, return_counts=True))
        split, splits = _split(m, asked, begins)
        if not whole:
            check_splits(m, split, splits, asked)
            check_weights(m, float(weights_of(log.rows, m)[split == 0].sum()))
        labels = _labels(log.rows, m)
        return cls(
            m,
            log.rows,
            user,
            item,
            users,
            items,
            time,
            request,
            asked,
            groups,
            labels,
            split,
            splits,
            whole,
        )

    @property
    def positive(self) -> np.ndarray:
        """Rows whose first label is set, bool [N]."""
        return self.labels[self.mapping.label_names[0]] > 0

    @property
    def trained(self) -> np.ndarray:
        """Rows of training requests, bool [N]."""
        return self.split == 0


def codes(x: pl.Series, values: pl.Series | None = None) -> tuple[pl.Series, np.ndarray]:
    """Distinct values, ascending, and each one's place, int64 [N]; null is -1. `values`: those of all shards."""
    if values is None:
        values = x.drop_nulls().unique().sort()
    x = x.cast(values.dtype) if x.dtype != values.dtype else x
    if not len(values):
        return values, np.full(len(x), -1)
    place = x.replace_strict(values, pl.int_range(len(values), eager=True), default=-1)
    return values, place.fill_null(-1).cast(pl.Int64).to_numpy()


def requests_of(
    rows: pl.DataFrame, column: str, user: np.ndarray, time: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Number and time of each row's request (or page); its first row (rows are in time order) says both."""
    values, key = codes(rows[column]) if column else codes(pl.Series(time))
    _, first, inverse = np.unique(
        user * np.int64(len(values) + 1) + key, return_index=True, return_inverse=True
    )
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[inverse], time[first][inverse]


def split_begins(m: LogMapping, times: np.ndarray, counts: np.ndarray) -> tuple[int, ...]:
    """When each split after the first begins, seconds.

    Args:
      m: The mapping.
      times: Distinct request times of all rows, ascending.
      counts: Rows of each.
    """
    names = [n for n in ("validation", "test") if n in m.split]
    ends, begins = np.cumsum(counts), []
    for i, name in enumerate(names):
        at = m.split[name]
        if isinstance(at, float | int):
            later = sum(m.split[n] for n in names[i:])
            first = min(round(int(ends[-1]) * (1 - later)), int(ends[-1]) - 1)
            begins.append(int(times[np.searchsorted(ends, first, side="right")]))
        else:
            begins.append(seconds_of(at))
    if len(begins) == 2 and begins[0] == begins[1] and isinstance(at, float | int):
        place = int(np.searchsorted(times, begins[1]))  # a short log: one time stamp for validation
        begins[0] = int(times[max(place - 1, 0)])
    if begins != sorted(begins):
        raise DataError(f"mapping: split={m.split!r}: validation must begin before the test")
    return tuple(begins)


def _split(
    m: LogMapping, asked: np.ndarray, begins: tuple[int, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which split each row belongs to, and their names; a gap belongs to none."""
    split = np.searchsorted(begins, asked, side="right").astype(np.int8)
    if m.gap:
        following = np.r_[begins, np.iinfo(np.int64).max][split]
        split[asked >= following - span_of(m.gap)] = -1
    return split, ("train", *(n for n in ("validation", "test") if n in m.split))


def check_splits(m: LogMapping, split: np.ndarray, splits: tuple[str, ...], asked) -> None:
    """Raises DataError for a split without a row. `split`: of rows (or all that occur); `asked`: their times."""
    for i, name in enumerate(splits):
        if not (split == i).any():
            raise DataError(
                f"no request falls into {name!r} with split={m.split!r} and gap={m.gap!r}; the log's times go from "
                f"{np.datetime64(int(asked.min()), 's')} to {np.datetime64(int(asked.max()), 's')}"
            )


def weights_of(rows: pl.DataFrame, m: LogMapping) -> np.ndarray:
    """What each row counts, float64 [N]."""
    return rows[WEIGHT].to_numpy() if m.weight else np.ones(rows.height)


def check_weights(m: LogMapping, total: float) -> None:
    """Raises DataError where the weights of the training rows, `total` together, leave nothing to learn from."""
    if m.weight and not total > 0:
        raise DataError(
            f"weight {m.weight!r} is 0 in every training row; name another column, or none"
        )


def _labels(rows: pl.DataFrame, m: LogMapping) -> dict[str, np.ndarray]:
    if not m.labels:
        return {m.label_names[0]: np.ones(rows.height, np.float32)}
    actions = m.label_actions
    return {
        c: (is_any(rows[m.action], actions[c]) if c in actions else rows[c])
        .cast(pl.Float32)
        .to_numpy()
        for c in m.label_names
    }


# -------------------------------------------------------------------------------------- impressions


@dataclasses.dataclass(frozen=True)
class Places:
    """Where impressions take their values from: places in the log, -1 for nowhere.

    Attributes:
      row: Whose user, time and context it has, int64 [N].
      item: Code of its item, int64 [N].
      source: Row its item columns come from, int64 [N].
      positive: Whether it is row `row` itself, not a draw, bool [N].
    """

    row: np.ndarray
    item: np.ndarray
    source: np.ndarray
    positive: np.ndarray

    def of(self, where: str, e: Events) -> np.ndarray:
        """Index into the values of a field that lives at `where`."""
        if where == "user":
            return e.user[self.row]
        return {"row": self.row, "source": self.source, "item": self.item}[where]


def events_at(e: Events, rows: np.ndarray) -> Places:
    """Events see their own row."""
    return Places(rows, e.item[rows], rows, np.ones(len(rows), bool))


def impressions(e: Events, found: dict[str, Any]) -> dict[str, Places]:
    """The impressions of every split, and into `found` what was drawn or left out."""
    if not e.mapping.sampled:
        rows = {name: np.flatnonzero(e.split == i) for i, name in enumerate(e.splits)}
        return {name: events_at(e, r) for name, r in rows.items()}
    catalogue = catalogue_of(e)
    found["catalogue"] = len(catalogue.items)
    last = None if e.whole else last_rows(e)
    out = {name: _drawn(e, i, catalogue, last, found) for i, name in enumerate(e.splits)}
    for name, at in out.items():
        if not len(at.row) and not e.whole:
            raise DataError(f"no positive of split {name!r} is of an item that training knows")
    return out


def catalogue_of(e: Events) -> negatives.Catalogue:
    """What negatives are drawn from: the items of the training rows, or of those that are positives."""
    kind = e.mapping.negatives
    if e.whole:
        return negatives.Catalogue.counted(*e.whole.items, kind)
    if not (e.trained & e.positive).any():
        raise DataError("no positive row in the training period; correct labels or split")
    return negatives.Catalogue.of(e.item[in_catalogue(e)], kind)


def in_catalogue(e: Events) -> np.ndarray:
    """Rows whose items negatives may be, bool [N]."""
    return e.trained & e.positive if e.mapping.catalogue == "taken" else e.trained


def last_rows(e: Events) -> Timeline:
    """Rows of each item by time; `cutoffs(item, time)` finds its last one before a request."""
    rows = {"row": np.arange(len(e.item))}
    return histories.build_timeline(e.item, e.time, rows, len(e.items))


def _drawn(
    e: Events, split: int, catalogue, last: Timeline | None, found: dict[str, Any]
) -> Places:
    """Positives and draws of a split. Without `last` no source rows: all shards know them (`recjax.data.logs.whole`)."""
    name, k = e.splits[split], e.mapping.negatives_per_positive
    rows = np.flatnonzero((e.split == split) & e.positive)
    kept = rows[catalogue.holds(e.item[rows])]
    part = [e.whole.partition + 1] if e.whole and e.whole.partitions > 1 else []
    rng = np.random.default_rng([e.mapping.seed, split, *part])
    owner, item = negatives.draw(rng, catalogue, e.request[kept], e.item[kept], k)
    row = np.concatenate([kept, kept[owner]])
    item = np.concatenate([e.item[kept], item])
    positive = np.arange(len(row)) < len(kept)
    found[name] = {
        "outside_catalogue": len(rows) - len(kept),
        "negatives_short": k * len(kept) - len(owner),
    }
    if last is None:
        return Places(row, item, np.full(len(row), -1), positive)
    end, count = last.cutoffs(item, e.asked[row])
    source = np.where(count > 0, last.columns["row"][end - 1], -1)
    return Places(row, item, source, positive)
