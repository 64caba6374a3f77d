"""Requests and events of an own log: what its mapping makes of what clients send, and what they may leave out.

A client of an own log's model sends what the log held: a user, candidates, and of the mapping's columns those that nobody else
can know. Ids and categories may be text or numbers; they are spelled as in preparation (`recjax.data.logs.values`). From the
user, the time and the candidates follow the hour and the weekday, columns that are known of users and items (side tables, and
columns of the log that keep to their user or item), buckets, hashed values, crosses and indicators; histories and counters
are the service's. An event is a row of the log: what happened, to which item, with which label. It enters the history
lists that the mapping says, the counters, and what is known of its item and user.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np
import polars as pl

from recjax.data.logs import served
from recjax.data.logs.features import IS_MISSING
from recjax.data.logs.mapping import ORDER, SESSION, LogMapping
from recjax.data.logs.rows import as_feature
from recjax.data.logs.served import ACTION, LOG, POSITIVE, Column
from recjax.data.logs.shapes import crossed
from recjax.data.logs.values import as_id, as_label, is_any
from recjax.data.store.dates import span_of
from recjax.data.store.event_log import ServedCounter
from recjax.schema import Feature, Schema
from recjax.serving.counters import Counter, Counters
from recjax.serving.requests import RequestError

LEARNT = 200_000  # users, and items, of which events since the snapshot have said something
DAY = 86_400


class Known:
    """What is known of users, or of items, by column: as of the snapshot, and by events since."""

    def __init__(self, frame: pl.DataFrame):
        """`frame`: the key first, then columns of features."""
        keys = frame.columns[0]
        self.columns = {c: frame[c].to_list() for c in frame.columns if c != keys}
        self._place = {k: i for i, k in enumerate(frame[keys].to_list())}
        self._learnt: OrderedDict[str, dict[str, tuple[int, Any]]] = OrderedDict()

    def read(self, keys: Sequence[str], column: str, nothing: Any = None) -> list:
        """Values of a column for some keys; `nothing` where a key is not known."""
        stored, out = self.columns[column], []
        for key in keys:
            new = self._learnt.get(key, {}).get(column)
            at = self._place.get(key)
            out.append(new[1] if new else nothing if at is None else stored[at])
        return out

    def __contains__(self, key: str) -> bool:
        return key in self._place or key in self._learnt

    def learn(self, key: str, time: int, values: Mapping[str, Any]) -> None:
        """Takes over the values of an event, unless a later one has said something."""
        mine = {c: v for c, v in values.items() if c in self.columns}
        if not mine:
            return
        held = self._learnt.setdefault(key, {})
        self._learnt.move_to_end(key)
        for column, value in mine.items():
            if column not in held or held[column][0] <= time:
                held[column] = time, value
        if len(self._learnt) > LEARNT:
            self._learnt.popitem(last=False)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field that clients may send.

    Attributes:
      name: Under which.
      width: Of values of several parts, 0 for one.
      needed: Whether nobody else can know it.
    """

    name: str
    width: int = 0
    needed: bool = True


class OwnLog:
    """The mapping of one artifact at work.

    Attributes:
      m: The mapping.
      sections: Role -> fields of a request, of "profile", "context" and "candidate".
      event: Fields of an event beside its time.
      ordered: Whether times are places in an order, so that a request must say its own.
    """

    def __init__(
        self, mapping: Mapping[str, Any], known: Mapping[str, pl.DataFrame], schema: Schema
    ):
        """`known`: "user" and "item" -> frames for `Known`. `schema`: of the features that the model reads."""
        self.m: LogMapping = served.read_mapping(dict(mapping))
        self.known = {side: Known(frame) for side, frame in known.items()}
        self._schema, self._features = schema, {f.name: f for f in schema.features}
        self._columns = served.columns_of_mapping(self.m)
        crosses = served.crosses_of_mapping(self.m)
        self._crosses = {n: parts for n, parts in crosses.items() if n in self._features}
        read = self._features.keys() | {c for parts in self._crosses.values() for c in parts}
        self._read = [c for c in self._columns if c.name in read or self._says_missing(c)]
        self.ordered = self.m.time_unit == ORDER
        self.sections = self._sections()
        self._remembered = {
            n.removeprefix(f"{name}_")
            for name in schema.lists
            for n in (f.name for f in schema.features if f.list == name)
        }
        self.event = self._event_fields()

    def needs(self) -> list[str]:
        """What a request must say, as paths."""
        fields = {"candidates" if r == "candidate" else r: f for r, f in self.sections.items()}
        asked = [f"{role}.{f.name}" for role, some in fields.items() for f in some if f.needed]
        return ["user", *(["time"] if self.ordered else []), *asked]

    def _says_missing(self, c: Column) -> bool:
        return f"{c.name}{IS_MISSING}" in self._features

    def _width(self, c: Column) -> int:
        if c.column in self.m.multi:
            return self.m.multi_values
        feature = self._features.get(c.name)
        return feature.vector if feature else int(c.column in self.m.vectors)

    def _sections(self) -> dict[str, list[Field]]:
        out: dict[str, list[Field]] = {"profile": [], "context": [], "candidate": [Field("item")]}
        if "scene" in self._features:
            out["context"].append(Field("scene"))
        for c in self._read:
            needed = c.side == "context" or c.name not in self.known[c.side].columns
            out[c.role].append(Field(c.name, self._width(c), needed))
        counters = [f for f in self._schema.select("candidate") if self._is_counter(f)]
        out["candidate"] += [Field(f.name, needed=False) for f in counters]
        return {role: fields for role, fields in out.items() if fields}

    def _is_counter(self, f: Feature) -> bool:
        return f.kind == "dense" and f.name not in {
            n for c in self._columns for n in (c.name, f"{c.name}{IS_MISSING}")
        }

    def _event_fields(self) -> list[Field]:
        m = self.m
        out = [Field("item")]
        out += [Field("scene")] if m.scene else []
        out += [Field(ACTION)] if m.action else []
        out += [Field(label) for label in self._labels]
        for c in self._columns:
            if c.side == "context" or not c.feature:
                continue
            known = c.name in self.known[c.side].columns
            if known or c.name in self._remembered:
                out.append(Field(c.name, self._width(c), needed=not known))
        return out

    @property
    def _labels(self) -> tuple[str, ...]:
        """The labels that say of an event whether it is a positive, or belongs to a list, and that no action implies."""
        m = self.m
        if not m.labels:
            return ()
        first = m.label_names[:1] if m.history or m.action else m.label_names
        return tuple(n for n in first if n not in m.label_actions)

    # --- one spelling

    def user(self, value: Any) -> str:
        """Raises RequestError where it names nobody."""
        return self._ids("user", [value])[0]

    def _ids(self, name: str, values: list) -> list[str]:
        ids = spelled(values, self.m.missing)
        if None in ids:
            value = values[ids.index(None)]
            raise RequestError(f"{name!r} is {value!r} in entry {ids.index(None)}, which stands for a missing value; leave out what has none")  # fmt: skip
        return ids

    def _feature(self, c: Column, values: list) -> list:
        """What preparation makes of the cells of a column."""
        several = any(isinstance(v, list) for v in values)
        if several:
            listed = [spelled(v, ()) if isinstance(v, list) else None for v in values]
            cells = pl.Series(c.column, listed, dtype=pl.List(pl.String))
        else:
            texts = [None if v is None else spelled([v], ())[0] for v in values]
            cells = pl.Series(c.column, texts, dtype=pl.String)
        if several and c.column in self.m.vectors:
            cells = cells.cast(pl.List(pl.Float64), strict=False)
        out = as_feature(cells, self.m, []).to_list()
        if c.column in self.m.vectors:
            width = self._width(c)
            for value, made in zip(values, out, strict=True):
                if value is not None and (made is None or len(made) != width):
                    raise RequestError(f"{c.name!r} is no vector of {width} finite numbers; send one, or null where it is missing")  # fmt: skip
        number = c.column in self.m.dense or c.column in self.m.buckets
        if number and not several:
            ids = spelled(values, self.m.missing)
            for value, text, made in zip(values, ids, out, strict=True):
                if text is not None and made is None and not _below(text):
                    raise RequestError(f"{c.name!r} is {value!r}, which is no number; send one, or null where it is missing")  # fmt: skip
        return out

    # --- requests

    def complete(self, sent: Mapping[str, Any], user: str, candidates: int) -> dict[str, Any]:
        """Values for the encoder, but for histories and counters, of what was sent and of what follows from it.

        Args:
          sent: Field -> value, or list of values for candidates and events; with "time" and "item".
          user: Spelled.
          candidates: C.
        """
        kept = {n: sent[n] for n in sent if n == "time" or n.endswith("/time")}
        out: dict[str, Any] = kept | {n: x for n, x in sent.items() if n in self._counters}
        for name in (f.name for f in self._schema.features if f.list and f.name in sent):
            out[name] = spelled(sent[name], self.m.missing)
        items = self._ids("item", sent["item"])
        values: dict[str, list] = {"user_id": [user], "item": items}
        values |= self._of_time(sent["time"])
        if "scene" in sent:
            values["scene"] = spelled([sent["scene"]], self.m.missing)
        for c in self._read:
            several = c.side == "item"
            if c.name in sent:
                values[c.name] = self._feature(c, sent[c.name] if several else [sent[c.name]])
            else:
                values[c.name] = self.known[c.side].read(items if several else [user], c.name)
        for name, (a, b) in self._crosses.items():
            values[name] = crossed(pl.Series(a, values[a]), pl.Series(b, values[b])).to_list()
        for c in filter(self._says_missing, self._read):
            values[f"{c.name}{IS_MISSING}"] = [float(v is None) for v in values[c.name]]
        for name, made in values.items():
            if name in self._features:
                f = self._features[name]
                filled = [_filled(f, v) for v in made]
                out[name] = filled if f.role == "candidate" else filled[0]
        return out

    @functools.cached_property
    def _counters(self) -> set[str]:
        return {f.name for f in self._schema.select("candidate") if self._is_counter(f)}

    def _of_time(self, time: int) -> dict[str, list]:
        if self.ordered:
            return {}
        local = time + round(self.m.utc_offset * 3600)
        return {"hour": [local // 3600 % 24], "weekday": [(local // DAY + 3) % 7]}

    def in_session(self, name: str, events: dict[str, list], time: int) -> dict[str, list]:
        """Of the list of the running session the events that belong to it; other lists as they are."""
        if name != SESSION or not self.m.session_gap:
            return events
        gap, times, n = span_of(self.m.session_gap), [*events["time"], time], 0
        while n < len(times) - 1 and times[-1 - n] - times[-2 - n] <= gap:
            n += 1
        return {c: x[len(x) - n :] for c, x in events.items()}

    # --- events

    def events(self, user: str, sent: Mapping[str, Sequence]) -> dict[str, dict[str, list]]:
        """The lists that events belong to, with their columns; LOG holds all, for counters and what is known.

        Args:
          user: Spelled.
          sent: Field -> values, with "time"; optional fields may be missing.
        """
        m, n = self.m, len(sent["time"])
        items = self._ids("item", list(sent["item"]))
        out: dict[str, list] = {"time": list(sent["time"]), "item": items}
        for name in ("scene", ACTION):
            if name in sent:
                out[name] = spelled(sent[name], m.missing)
        for c in (c for c in self._columns if c.name in {f.name for f in self.event}):
            if c.name in sent:
                out[c.name] = self._feature(c, list(sent[c.name]))
            else:
                out[c.name] = self.known[c.side].read(items if c.side == "item" else [user] * n, c.name)  # fmt: skip
        labels = self._label_values(sent, out, n)
        out[POSITIVE] = [x > 0 for x in labels[m.label_names[0]]]
        lists = {LOG: out}
        for name in self._schema.lists:
            rows = [i for i, there in enumerate(self._belongs(name, out, labels)) if there]
            fields = {f.name: f.name.removeprefix(f"{name}_") for f in self._schema.features if f.list == name}  # fmt: skip
            lists[name] = {f: [out[c][i] for i in rows] for f, c in {"time": "time", **fields}.items()}  # fmt: skip
        return lists

    def _label_values(self, sent, out: Mapping[str, list], n: int) -> dict[str, list[float]]:
        m, found = self.m, {}
        if not m.labels:
            return {m.label_names[0]: [1.0] * n}
        for name in m.label_names:
            if name in m.label_actions:
                found[name] = self._of_actions(out[ACTION], m.label_actions[name])
            elif name in sent:
                texts = [None if v is None else spelled([v], ())[0] for v in sent[name]]
                values = as_label(pl.Series(texts, dtype=pl.String), m.missing).to_list()
                empty = m.label_missing
                found[name] = [empty if v is None and s is None else v for v, s in zip(values, texts, strict=True)]  # fmt: skip
                if None in found[name]:
                    at = found[name].index(None)
                    raise RequestError(f"{name!r} is {sent[name][at]!r} in event {at}, which is no label; send 0 or 1")  # fmt: skip
        return found

    def _of_actions(self, actions: list, values: Sequence) -> list[float]:
        if not len(actions):
            return []
        return is_any(pl.Series(actions, dtype=pl.String), values).cast(pl.Float64).to_list()

    def _belongs(self, name: str, out: Mapping[str, list], labels) -> list[float]:
        """Which events are in a list; as `recjax.data.logs.features.history_rows`."""
        m = self.m
        if name == SESSION and m.session_gap:
            name = next(iter(m.history or {"history": ()}))
        values = {**m.history, **m.movelines}.get(name)
        if values is None:
            n = len(out["item"])
            if m.action:
                return [1.0] * n
            return [float(any(x[i] > 0 for x in labels.values())) for i in range(n)]
        return self._of_actions(out[ACTION], values) if values else [1.0] * len(out["item"])

    def learn(self, user: str, events: Mapping[str, Sequence], rows: Sequence[int]) -> None:
        """Takes over what some stored events of LOG say of their user and items."""
        for i in rows:
            values = {n: x[i] for n, x in events.items()}
            self.known["user"].learn(user, events["time"][i], values)
            self.known["item"].learn(events["item"][i], events["time"][i], values)


class OwnCounters(Counters):
    """Counters over the rows of an own log, which also say what is known of users and items."""

    def __init__(self, own: OwnLog, counters: Counters | None, until: int):
        specs: tuple[ServedCounter, ...] = counters.specs if counters else ()
        made: tuple[Counter, ...] = counters.each if counters else ()
        super().__init__(specs, made, LOG, until)
        self._own = own

    @property
    def fields(self) -> dict[str, str]:
        """Fields of stored events, all that counting and learning need."""
        names = {f.name for f in self._own.event} - {*self._own._labels}
        return dict.fromkeys([*names, POSITIVE], "")

    def add(self, user: str, events: Mapping[str, Sequence]) -> None:
        super().add(user, events)
        new = [i for i, t in enumerate(events["time"]) if t > self.until]
        self._own.learn(user, events, new)


# ------------------------------------------------------------------------------------------- values


def spelled(values: Sequence[Any], nulls) -> list:
    """`as_id` of JSON values, which may be of several types; None where one is missing."""
    if all(isinstance(v, str) for v in values):
        return as_id(pl.Series(values, dtype=pl.String), nulls).to_list()
    return [_spelled(v, nulls) for v in values]


def _spelled(value: Any, nulls) -> str | None:
    if isinstance(value, bool) or value is None:
        return None if value is None else str(value).lower()
    if isinstance(value, int):
        return str(value)
    return as_id(pl.Series([value]), nulls)[0]


def _below(text: str) -> bool:
    """A number that a logarithm cannot take counts as missing, as in preparation."""
    try:
        return float(text) < 0
    except ValueError:
        return False


def _filled(f: Feature, value: Any) -> Any:
    """A value as the encoder takes it: what is missing as in preparation."""
    if f.vector:
        right = value is not None and len(value) == f.vector
        return list(value) if right else [0.0] * f.vector
    if f.multi:
        return value[: f.multi] if value else [None]
    if f.kind == "dense":
        return 0.0 if value is None else float(np.float32(value))
    return value
