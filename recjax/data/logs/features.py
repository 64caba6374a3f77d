"""What a candidate of your own logs looks like: fields, vocabularies, histories and causal counters."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import os
import re
from typing import Any

from absl import logging
import numpy as np
import polars as pl

from recjax.data.logs.events import Events, Places, codes, events_at
from recjax.data.logs.mapping import ORDER, SESSION, LogMapping
from recjax.data.logs.notes import Note
from recjax.data.logs.rows import WEIGHT, as_feature, as_key
from recjax.data.logs.shapes import cross_name
from recjax.data.logs.sources import read_table
from recjax.data.logs.values import is_any
from recjax.data.logs.whole import SharedCounter, Whole, find_last_rows
from recjax.data.store import histories
from recjax.data.store.dates import span_of
from recjax.data.store.growth import NEW, Growth
from recjax.data.store.histories import Counter, CounterIndex, Timeline
from recjax.data.store.prepared import DataError
from recjax.data.store.vocabulary import Vocabulary
from recjax.schema import MISSING, PAD, Feature, Schema

LOG_Q = "log_q"
KEY, LAST_ROWS = "key/", "last_rows"  # of what shards tell each other
ALL = ("user_id", "hour", "weekday", "scene", "action")  # admitted from one occurrence on
IDS = ("id", "multi")  # kinds that have a vocabulary
IS_MISSING = "_missing"  # ends the name of an indicator
SHORT = (
    0.1  # share of vectors that may have another width than the others, and then count as missing
)
CROSSED = 3  # user x item id columns that get a counter
RESERVED = frozenset(
    "time weight request row partition user user_id item scene action hour weekday log_q history positive".split()
)


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """A feature before it is encoded.

    Attributes:
      name: Of the feature.
      role: Of the feature.
      kind: "id", "multi" (several ids), "dense" or "vector".
      values: Its values, [rows of the log, or users, or items].
      where: What indexes them: "row", "source", "user" or "item".
      transform: Of a dense one.
      nowhere: A dense one's value where there is no row to take it from.
    """

    name: str
    role: str
    kind: str
    values: pl.Series
    where: str
    transform: str = "identity"
    nowhere: float = 0.0

    @property
    def space(self) -> str:
        return "user" if self.name == "user_id" else self.name


def feature_name(side: str, column: str, taken: tuple[str, ...]) -> str:
    """The column's name, if a file can carry it and nothing else is called so (`taken`: labels, group keys)."""
    name = re.sub(r"[^\w.-]", "_", column)
    return f"{side}_{name}" if name in RESERVED or name in taken else name


def fields(
    e: Events, known: dict[str, int] | None = None, notes: list[Note] | None = None
) -> list[Field]:
    """Every input of a candidate, from the log and the side tables.

    Args:
      e: The events.
      known: Gets "user" and "item" -> how many of them their side table knows.
      notes: Gets what was noticed in the side tables.

    Raises:
      DataError: A side table is not as the mapping says; of the log at once, also one that knows none of its keys. Two
        columns would be one feature.
    """
    known, notes = {} if known is None else known, [] if notes is None else notes
    m = e.mapping
    local = e.asked + round(m.utc_offset * 3600)
    out = [
        Field("user_id", "profile", "id", e.users, "user"),
        Field("item", "candidate", "id", e.items, "item"),
    ]
    if m.time_unit != ORDER:
        # Monday 0; 1 January 1970 was a Thursday.
        weekday = pl.Series((local // 86_400 + 3) % 7)
        out.append(Field("hour", "context", "id", pl.Series(local // 3600 % 24), "row"))
        out.append(Field("weekday", "context", "id", weekday, "row"))
    if m.scene:
        out.append(Field("scene", "context", "id", e.rows[m.scene], "row"))
    sides = (
        ("user", "profile", m.user_columns, m.user, m.user_table, e.users, "row"),
        ("item", "candidate", m.item_columns, m.item, m.item_table, e.items, "source"),
        (
            "context",
            "context",
            (*m.context_columns, *(cross_name(*p) for p in m.crosses)),
            "",
            "",
            None,
            "row",
        ),
    )
    for side, role, columns, key, table, values, where in sides:
        outside = [c for c in columns if c not in e.rows.columns]
        if outside:
            joined, known[side] = _side_table(table, key, outside, values, m, notes)
        for c in columns:
            x, at = (joined[c], side) if c in outside else (e.rows[c], where)
            kinds = {"vector": m.vectors, "dense": m.dense, "multi": m.multi}
            kind = next((k for k, named in kinds.items() if c in named), "id")
            name = feature_name(side, c, m.label_names + m.groups)
            out.append(Field(name, role, kind, x, at, m.dense.get(c, "identity")))
            if c in m.indicators:
                missing = x.is_null().cast(pl.Float32).alias(f"{c}{IS_MISSING}")
                out.append(Field(f"{name}{IS_MISSING}", role, "dense", missing, at, nowhere=1.0))
    _check_names(out)
    if not e.whole:
        check_known(m, known)
    return out


def _check_names(features: list[Field]) -> None:
    """Raises DataError where two columns would be one feature ("unit price" and "unit_price")."""
    columns: dict[str, str] = {}
    for f in features:
        if f.name in columns:
            raise DataError(
                f"columns {columns[f.name]!r} and {f.values.name!r} would both be the feature {f.name!r}; rename one of them"
            )
        columns[f.name] = f.values.name


def _side_table(
    file: str, key: str, columns: list[str], values: pl.Series, m: LogMapping, notes: list[Note]
) -> tuple[pl.DataFrame, int]:
    """Columns of a side table, aligned with the distinct users or items, and how many of these it knows."""
    table = read_table(file, key, columns, m.text_form)
    try:
        typed = {key: as_key(table[key], m).cast(values.dtype, strict=False)}
        typed |= {c: as_feature(table[c], m, notes) for c in columns}
    except DataError as e:
        raise DataError(f"{file}: {e}") from None
    every = pl.DataFrame(typed).drop_nulls(key)
    once = every.unique(key, keep="first", maintain_order=True)
    again = every.unique(maintain_order=True)  # rows that differ from the first of their key
    again = again.filter(~again[key].is_first_distinct())
    notes.append(Note("twice", os.path.basename(file), again.height, str(again[key].first())))
    joined = pl.DataFrame({key: values}).join(once, on=key, how="left", maintain_order="left")
    strangers = values.filter(~values.is_in(typed[key].implode()))
    known = len(values) - len(strangers)
    if 0 < known < len(strangers):
        notes.append(Note("strangers", os.path.basename(file), 1, str(strangers[0])))
    logging.info("%s knows %d of %d values of %s", file, known, len(values), key)
    return joined, known


def check_known(m: LogMapping, known: Mapping[str, int]) -> None:
    """Raises DataError for a side table that knows no key of the log. `known`: from `fields`, of all shards."""
    for side, n in known.items():
        if not n:
            file, key = getattr(m, f"{side}_table"), getattr(m, side)
            raise DataError(f"{file}: no {key!r} of the log is in it; is it the right table?")


def widths(field: Field) -> dict[str, int]:
    """width -> how many of its vectors have it; as JSON has keys, text."""
    counts = field.values.list.len().drop_nulls().value_counts()
    return {str(width): n for width, n in counts.iter_rows()}


def one_width(name: str, found: Iterable[Mapping[str, int]], notes: list[Note]) -> int:
    """The width of a vector field: that of nearly all its vectors; the few others count as missing.

    Args:
      name: Of the column.
      found: From `widths`, of all shards.
      notes: Gets how many have another.

    Raises:
      DataError: No width is that of nearly all.
    """
    total: dict[int, int] = {}
    for counts in found:
        for wide, n in counts.items():
            total[int(wide)] = total.get(int(wide), 0) + n
    width = max(total, key=lambda w: total[w], default=0)
    others = {w: n for w, n in total.items() if w != width}
    if not total or sum(others.values()) > SHORT * sum(total.values()):
        raise DataError(f"vectors of {name!r} have widths {sorted(total)}; they must have one")
    if others:
        notes.append(Note("width", name, sum(others.values()), str(min(others))))
    return width


def numbers(field: Field, whole: Whole | None = None) -> np.ndarray:
    """Dense or vector values, 0 where missing, and a last one for "nowhere": float32 [n + 1, ...]."""
    if field.kind == "dense":
        x = field.values.cast(pl.Float32).fill_null(0).to_numpy()
        return np.append(x, np.float32(field.nowhere))
    # A shard's own rows may hold no vector.
    width = whole.widths[field.name] if whole else one_width(field.name, [widths(field)], [])
    out = np.zeros((len(field.values) + 1, width), np.float32)
    there = (field.values.list.len() == width).fill_null(False)
    vectors = field.values.filter(there)
    out[:-1][there.to_numpy()] = vectors.explode().to_numpy().reshape(-1, width)
    return out


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What turns places into columns.

    Attributes:
      fields: All features.
      recorded: Names of those an event is remembered by.
      vocabularies: By id space.
      values: feature -> ids or numbers, the last for place -1.
      timelines: list -> its partitions.
      indexes: Of the counters.
      keys: Counter key -> (codes, where); the last code is for place -1.
    """

    fields: list[Field]
    recorded: list[str]
    vocabularies: Mapping[str, Vocabulary]
    values: Mapping[str, np.ndarray]
    timelines: Mapping[str, list[Timeline]]
    indexes: list[CounterIndex | SharedCounter]
    keys: Mapping[str, tuple[np.ndarray, str]]


def encode(
    e: Events,
    features: list[Field],
    partitions: int,
    growth: Growth = NEW,
    notes: list[Note] | None = None,
) -> Encoded:
    """Vocabularies from the training rows; timelines and counters from all of them. `notes` gets what was noticed."""
    if notes is not None:
        for f in features:
            if f.kind == "vector":
                one_width(f.values.name, [widths(f)], notes)
    everything = events_at(e, np.arange(len(e.item)))
    recorded = remembered(e, features)
    v, values = _encode_values(e, {f.name: f for f in [*features, *recorded]}.values(), growth)
    remember = {f.name: values[f.name][everything.of(f.where, e)] for f in recorded}
    timelines = {
        name: histories.build_timelines(
            e.user[rows],
            e.time[rows],
            {f"{name}_{c}": x[rows] for c, x in remember.items()},
            len(e.users),
            partitions,
        )
        for name, rows in history_rows(e).items()
    }
    keys = _counter_keys(e, features)
    names = [f.name for f in recorded]
    return Encoded(features, names, v, values, timelines, _counters(e, keys, everything), keys)


def _encode_values(e: Events, wanted: Iterable[Field], growth: Growth) -> tuple[dict, dict]:
    """Vocabularies by space, and by feature the encoded values with those of "nowhere" last."""
    trained, times = events_at(e, np.flatnonzero(e.trained)), e.time[e.trained]
    v, values = {}, {}
    for f in wanted:
        if f.kind not in IDS:
            values[f.name] = numbers(f, e.whole)
            continue
        if e.whole:
            v[f.space] = e.whole.vocabularies[f.space]
        else:
            seen, when = occurring(f, trained.of(f.where, e), times)
            v[f.space] = growth.vocabulary(f.space, seen, min_count(f, e), when)
        if f.kind == "multi":
            values[f.name] = _encode_several(v[f.space], f.values, e.mapping.multi_values)
        else:
            values[f.name] = np.append(v[f.space].encode(f.values), np.int32(MISSING))
    return v, values


def occurring(f: Field, at: np.ndarray, times: np.ndarray) -> tuple[pl.Series, np.ndarray]:
    """Values of an id field at some places, and the times of these [N]; of several values in a cell each one."""
    seen = f.values.gather(at)
    if f.kind != "multi":
        return seen, times
    each = seen.list.len().fill_null(1).clip(lower_bound=1)  # null gives one null
    return seen.explode(), np.repeat(times, each.to_numpy())


def _encode_several(v: Vocabulary, lists: pl.Series, width: int) -> np.ndarray:
    """The first ids of each cell, int32 [n + 1, width], padded; a missing cell, and the last, are MISSING."""
    out = np.full((len(lists) + 1, width), PAD, np.int32)
    kept = lists.list.head(width)
    n = kept.list.len().fill_null(0).cast(pl.Int64).to_numpy()
    row = np.repeat(np.arange(len(lists)), n)
    place = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    out[row, place] = v.encode(kept.filter(pl.Series(n > 0)).explode())
    out[:-1, 0][n == 0] = MISSING
    out[-1, 0] = MISSING
    return out


def min_count(f: Field, e: Events) -> int:
    """Training rows a value of an id field needs to get an id of its own."""
    return 1 if f.name in ALL else e.mapping.min_count


def remembered(e: Events, features: list[Field]) -> list[Field]:
    """What an event is remembered by: the candidate's ids, the scene, the action."""
    out = [f for f in features if f.kind == "id" and (f.role == "candidate" or f.name == "scene")]
    if e.mapping.action:
        out.append(Field("action", "history", "id", e.rows[e.mapping.action], "row"))
    return out


def history_rows(e: Events) -> dict[str, np.ndarray]:
    """Rows of each history list."""
    m = e.mapping
    if m.history:
        chosen = {name: _of_actions(e, values) for name, values in m.history.items()}
    elif m.action:
        chosen = {"history": np.ones(len(e.item), bool)}
    else:
        chosen = {"history": np.any([x > 0 for x in e.labels.values()], axis=0)}
    first = next(iter(chosen.values()))
    chosen |= {name: _of_actions(e, values) for name, values in m.movelines.items()}
    chosen |= {SESSION: first} if m.session_gap else {}
    return {name: np.flatnonzero(rows) for name, rows in chosen.items()}


def _of_actions(e: Events, values: tuple) -> np.ndarray:
    """Rows with one of these actions, bool [N]; all rows for none."""
    if not values:
        return np.ones(len(e.item), bool)
    return is_any(e.rows[e.mapping.action], values).to_numpy()


def _counter_keys(e: Events, features: list[Field]) -> dict[str, tuple[np.ndarray, str]]:
    """Codes from 0 of everything a counter may count; 0 is null or nowhere."""
    if not e.mapping.counters:
        return {}
    wanted = key_fields(features)
    out = {}
    for f in features:
        if f.name in wanted:
            # A shard's own rows do not hold all values; a side table's column is the same in all shards.
            everywhere = e.whole.values.get(f.values.name) if e.whole else None
            out[f.name] = np.append(codes(f.values, everywhere)[1] + 1, 0), f.where
    return out


def key_fields(features: Iterable[Field | Feature]) -> list[str]:
    """Names of the features that counters count, in the features' order."""
    features = list(features)
    crossed = [f.name for f in features if _crossable(f)][:CROSSED]
    wanted = ("user_id", "item", *crossed, "scene")
    return [f.name for f in features if f.name in wanted]


def _crossable(f: Field | Feature) -> bool:
    several = isinstance(f, Feature) and f.multi
    return f.kind == "id" and f.role == "candidate" and f.name != "item" and not several


def counter_list(keys: Mapping[str, Any], kind: str) -> list[Counter]:
    """The counters of one kind of event over the given keys."""
    crossed = [k for k in keys if k not in ("user_id", "item", "scene")]
    combinations = [("item",), ("user_id",), ("user_id", "item")]
    combinations += [("user_id", c) for c in crossed]
    combinations += [("scene",), ("scene", "item")] if "scene" in keys else []
    name = lambda parts: "_".join(p.removesuffix("_id") if p == "user_id" else p for p in parts)  # noqa: E731
    return [Counter(f"{name(c)}_{kind}", c) for c in combinations]


def _counters(e: Events, keys, everything: Places) -> list[CounterIndex | SharedCounter]:
    """The counters; of a shard, those across users ask all shards."""
    return [
        SharedCounter(c, functools.partial(e.whole.load, c.name))
        if e.whole and across_users(c)
        else build()
        for c, build in counter_builders(e, keys, everything)
    ]


def across_users(counter: Counter) -> bool:
    return "user_id" not in counter.keys


def counter_builders(
    e: Events, keys, everything: Places
) -> list[tuple[Counter, Callable[[], CounterIndex]]]:
    """Every counter, and what indexes these rows for it."""
    if not keys:
        return []
    happened = {k: x[everything.of(where, e)] for k, (x, where) in keys.items()} | {"time": e.time}
    sizes = {k: int(x.max()) + 1 for k, (x, _) in keys.items()}
    if e.whole:  # not all codes need occur here
        sizes |= {k: len(e.items) + 1 for k in sizes if k == "item"}
        sizes |= {k: len(e.whole.values[n]) + 1 for k, n in _shared_keys(e).items() if k in sizes}
    kinds = {"taken": e.positive}
    if not (e.whole.positive if e.whole else e.positive.all()):
        kinds["shown"] = np.ones(len(e.item), bool)
    out: list[tuple[Counter, Callable[[], CounterIndex]]] = []
    for kind, rows in kinds.items():
        events = {k: x[rows] for k, x in happened.items()}
        for c in counter_list(keys, kind):
            out.append((c, functools.partial(CounterIndex.build, c, events, sizes)))
    return out


def _shared_keys(e: Events) -> dict[str, str]:
    """Counter keys whose codes are those of a log column's values in all shards: key -> column."""
    m = e.mapping
    names = {feature_name("item", c, m.label_names + m.groups): c for c in m.item_columns}
    names |= {"scene": m.scene} if m.scene else {}
    return {k: c for k, c in names.items() if c in e.whole.values}


def columns(e: Events, x: Encoded, at: Places, log_q: np.ndarray | None) -> dict[str, np.ndarray]:
    """What `write_prepared` takes for impressions [N]."""
    user, asked = e.user[at.row], e.asked[at.row]
    numbers_ = {"request": e.request[at.row], "user": user}
    numbers_ |= {name: number[at.row] for name, number in e.groups.items()}
    out = {"time": asked} | {k: e.whole.number(n) if e.whole else n for k, n in numbers_.items()}
    for name, timelines in x.timelines.items():
        cut = histories.cutoffs(timelines, user, asked)
        if name == SESSION and e.mapping.session_gap:
            gap = span_of(e.mapping.session_gap)
            cut["count"] = histories.in_session(timelines, cut, asked, gap)
        out |= {
            f"{name}/end": cut["end"],
            f"{name}/count": cut["count"],
            "partition": cut["partition"],
        }
    if e.mapping.weight:
        out["weight"] = e.rows[WEIGHT].cast(pl.Float32).to_numpy()[at.row]
    out |= {f.name: x.values[f.name][at.of(f.where, e)] for f in x.fields}
    keys = {k: c[at.of(where, e)] for k, (c, where) in x.keys.items()} | {"time": asked}
    if e.whole and e.mapping.sampled:
        found = _last_rows_of_all(e, x, at)
        out |= {n: v for n, v in found.items() if n in out}
        keys |= {n.removeprefix(KEY): v for n, v in found.items() if n.startswith(KEY)}
    out |= histories.count_all(x.indexes, keys)
    out |= {label: np.where(at.positive, y[at.row], np.float32(0)) for label, y in e.labels.items()}
    return out if log_q is None else out | {LOG_Q: log_q}


def source_columns(x: Encoded) -> dict[str, np.ndarray]:
    """What is read from an item's last row: features, counter keys under KEY; the last entry is for "nowhere"."""
    out = {f.name: x.values[f.name] for f in x.fields if f.where == "source"}
    return out | {KEY + k: c for k, (c, where) in x.keys.items() if where == "source"}


def _last_rows_of_all(e: Events, x: Encoded, at: Places) -> dict[str, np.ndarray]:
    nowhere = {n: v[-1] for n, v in source_columns(x).items()}
    if not nowhere:
        return {}
    load = functools.partial(e.whole.load, LAST_ROWS)
    return find_last_rows(load, at.item, e.asked[at.row], nowhere)


def make_schema(e: Events, x: Encoded) -> Schema:
    """Profile, context, candidate with causal counters, history, labels."""
    several = {"multi": e.mapping.multi_values, "combiner": "mean"}
    width = lambda f: x.values[f.name].shape[1] if f.kind == "vector" else 0  # noqa: E731
    features = [
        Feature(
            f.name, f.role, f.space if f.kind in IDS else "", width(f), f.transform,
            **(several if f.kind == "multi" else {}),
        )
        for f in x.fields
    ]  # fmt: skip
    dense = [c for index in x.indexes for c in index.counter.columns]
    features += [Feature(c, "candidate", transform="log1p") for c in dense]
    for name in x.timelines:
        role = "moveline" if name in e.mapping.movelines else "history"
        for c in x.recorded:
            features.append(Feature(f"{name}_{c}", role, c, list=name))
    labels = [*e.labels, *([LOG_Q] if e.mapping.sampled else [])]
    features += [Feature(label, "label") for label in labels]
    spaces = tuple(v.space for v in x.vocabularies.values())
    return Schema(spaces, tuple(features), e.mapping.groups)
