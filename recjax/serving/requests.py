"""Raw values to columns the batch assembler takes: vocabularies, numbers, times, histories.

Requests come as Arrow columns, one element a request, under the names the schema gives them:

    time               int64 seconds or a timestamp: when the request is made
    <feature>          profile, context, trigger, treatment: one value; candidate: one value, or a list of them
    <history feature>  list: one value an event
    <list>/time        list: when each event happened, all strictly before `time`

or as JSON-like dicts (`Encoder.columns`):

    {"time": 1710000000, "profile": {"user": "u1"}, "context": {"hour": 9},
     "history": {"purchases": [{"time": 1700000000, "hist_item": "a"}, ...]},
     "candidates": [{"item": "b", "price": 1.5}, ...]}

Values the vocabulary does not know become OOV and are counted; nulls become MISSING. A null where a role's (or a
list's) first id belongs, the user, the item, an event's item, is bad input.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recjax.data.loading.batches import Part
from recjax.schema import MISSING, OOV, ROLE_AXES, Feature, Schema

Columns = Mapping[str, pa.Array]
_INPUT_ROLES = tuple(r for r in ROLE_AXES if r not in ("label", "target"))


class RequestError(ValueError):
    """A request or an input file cannot be scored; the message names the column and the row."""


class Vocabulary:
    """Values of one id space, ready to look up: sorted numbers, or a dict of anything else.

    (`recjax.data.store.vocabulary` encodes whole logs at once; a request is a few values against a large vocabulary.)
    """

    def __init__(self, values: pa.Array, ids: np.ndarray):
        """values [n] and their ids [n]."""
        self.kind = _kind(values.type)
        ids = np.asarray(ids, np.int32)
        if self.kind == "integer":
            numbers = _int64(values)
            order = np.argsort(numbers)
            self._numbers, self._ids = numbers[order], ids[order]
        else:
            self._lookup = dict(zip(values.to_pylist(), ids.tolist(), strict=True))

    def encode(self, name: str, values: pa.Array) -> np.ndarray:
        """Ids int32 [n]: OOV where the vocabulary does not know the value, MISSING where it is null."""
        if pa.types.is_null(values.type):
            return np.full(len(values), MISSING, np.int32)
        if _kind(values.type) != self.kind:
            raise RequestError(
                f"column {name!r} holds {values.type} values, its vocabulary {self.kind} ones; cast the column"
            )
        null = np.asarray(values.is_null()) if values.null_count else None
        ids = self._integers(values) if self.kind == "integer" else self._others(values)
        if null is not None:
            ids[null] = MISSING
        return ids

    def _integers(self, values: pa.Array) -> np.ndarray:
        x = _int64(values.fill_null(0) if values.null_count else values)
        if not len(self._numbers):
            return np.full(len(x), OOV, np.int32)
        at = np.minimum(np.searchsorted(self._numbers, x), len(self._numbers) - 1)
        return np.where(self._numbers[at] == x, self._ids[at], OOV).astype(np.int32)

    def _others(self, values: pa.Array) -> np.ndarray:
        coded = values.dictionary_encode()  # one look-up a distinct value
        known = np.array(
            [self._lookup.get(v, OOV) for v in coded.dictionary.to_pylist()] or [OOV], np.int32
        )
        indices = coded.indices.fill_null(0) if coded.indices.null_count else coded.indices
        return known[indices.to_numpy(zero_copy_only=False)]


def _int64(values: pa.Array) -> np.ndarray:
    """One type for both sides of a search, which would otherwise convert the whole vocabulary each time."""
    return values.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)


def _kind(t: pa.DataType) -> str:
    if pa.types.is_integer(t):
        return "integer"
    if pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t):
        return "string"
    return "string" if pa.types.is_dictionary(t) and _kind(t.value_type) == "string" else str(t)


class Encoder:
    """Raw columns to a `Part` for one model.

    Attributes:
      schema: The features the model reads.
      unknown: Feature -> how many of its values so far were OOV; `seen` has the totals. Guarded by a lock.
    """

    def __init__(
        self, schema: Schema, vocabularies: Mapping[str, Vocabulary], history: Mapping[str, int]
    ):
        """`history`: list -> L, events the model keeps."""
        self.schema = schema
        self.unknown: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self._vocabularies = vocabularies
        self._history = history
        self._lock = threading.Lock()
        leading = [schema.select(r, kind="id")[:1] for r in ("profile", "candidate")]
        leading += [schema.select("history", kind="id", list=name)[:1] for name in schema.lists]
        self._never_null = {f.name for group in leading for f in group}

    @property
    def names(self) -> list[str]:
        """Columns a request needs."""
        features = [f.name for f in self.schema.features if f.role in _INPUT_ROLES]
        return (
            features
            + [f"{name}/time" for name in self.schema.lists]
            + ["time"] * bool(self.schema.lists)
        )

    def encode(self, columns: Columns, first_row: int = 0) -> Part:
        """The requests of some columns, all of one length; further columns are ignored.

        Args:
          columns: See the module docstring.
          first_row: Row number of the first request, for messages.

        Returns:
          A part for `Assembler`: one row for each candidate, `counts` of them a request.

        Raises:
          RequestError: A column is missing, of a wrong type or length, null where it must not be, or an event
            does not lie before its request.
        """
        for name in self.names:
            if name not in columns:
                raise RequestError(
                    f"column {name!r} is missing; the model reads {', '.join(self.names)}"
                )
        where = _Where(first_row)
        counts = self._counts(columns, where)
        rows = where.of(counts)
        out: dict[str, np.ndarray] = {}
        for f in self.schema.features:
            if f.role not in _INPUT_ROLES or f.list:
                continue
            values = columns[f.name]
            if "C" in f.axes:
                flat = _flat(values) if is_list(f, values) else values
                out[f.name] = self._values(f, flat, rows)
            else:
                out[f.name] = np.repeat(self._values(f, values, where), counts, axis=0)
        time = (
            self._time("time", columns["time"], where)
            if self.schema.lists
            else np.zeros(len(counts), np.int64)
        )
        out["time"] = np.repeat(time, counts)
        timelines = {}
        for name in self.schema.lists:
            end, kept, timelines[name] = self._list(name, columns, time, where)
            out |= {f"{name}/end": np.repeat(end, counts), f"{name}/count": np.repeat(kept, counts)}
        return Part(out, timelines, counts)

    def _counts(self, columns: Columns, where: "_Where") -> np.ndarray:
        """Candidates of each request."""
        candidates = self.schema.select("candidate")
        if not candidates:
            return np.ones(len(columns[self.names[0]]), np.int64)
        counts = None
        for f in candidates:
            values = columns[f.name]
            mine = _lengths(values) if is_list(f, values) else np.ones(len(values), np.int64)
            if counts is not None and not np.array_equal(mine, counts):
                row = (
                    where(int(np.flatnonzero(mine != counts)[0]))
                    if len(mine) == len(counts)
                    else "the input"
                )
                raise RequestError(
                    f"{row}: {f.name!r} has another number of candidates than {candidates[0].name!r}"
                )
            counts = mine
        if len(counts) and counts.min() < 1:
            raise RequestError(
                f"{where(int(counts.argmin()))} has no candidates; leave such requests out"
            )
        return counts

    def _list(self, name: str, columns: Columns, time: np.ndarray, where: "_Where"):
        """(end [n], count [n], event columns) of a list: flat, request after request, each sorted by time."""
        stamps = columns[f"{name}/time"]
        if not _nested(stamps):
            raise RequestError(
                f"column '{name}/time' is {stamps.type}; it holds a list of times a request"
            )
        lengths = _lengths(stamps)
        rows = where.of(lengths)
        times = self._time(f"{name}/time", _flat(stamps), rows)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        late = np.flatnonzero(times >= time[owner])
        if len(late):
            raise RequestError(
                f"{rows(int(late[0]))}: list {name!r} has an event at {times[late[0]]}, not before the request at "
                f"{time[owner[late[0]]]}; a history holds earlier events only"
            )
        events = {"time": times}
        for f in self.schema.features:
            if f.list != name or f.role not in _INPUT_ROLES:
                continue
            values = columns[f.name]
            if not _nested(values) or not np.array_equal(_lengths(values), lengths):
                raise RequestError(
                    f"column {f.name!r} is not a list as long as '{name}/time' in every row"
                )
            events[f.name] = self._values(f, _flat(values), rows)
        if len(times) > 1 and ((times[1:] < times[:-1]) & (owner[1:] == owner[:-1])).any():
            order = np.lexsort((times, owner))  # stable: ties stay in the given order
            events = {k: v[order] for k, v in events.items()}
        return np.cumsum(lengths), np.minimum(lengths, self._history[name]), events

    def _values(self, f: Feature, values: pa.Array, where: "_Where") -> np.ndarray:
        """A feature's values, one an element: int32 ids or float32 numbers, multi-hot and vectors with their width."""
        width = f.multi or f.vector
        if not width:
            return (
                self._ids(f, values, where) if f.kind == "id" else _numbers(f.name, values, where)
            )
        if not _nested(values):
            raise RequestError(
                f"column {f.name!r} is {values.type}; it holds a list of up to {width} values"
            )
        lengths = _lengths(values)
        if f.vector and (lengths != width).any():
            raise RequestError(
                f"{where(int(np.flatnonzero(lengths != width)[0]))}: {f.name!r} is not {width} wide"
            )
        inner, rows = _flat(values), where.of(lengths)
        flat = self._ids(f, inner, rows) if f.kind == "id" else _numbers(f.name, inner, rows)
        at = (np.cumsum(lengths) - lengths)[:, None] + np.arange(width)
        keep = np.arange(width) < lengths[:, None]
        return np.where(
            keep, np.append(flat, flat.dtype.type(0))[np.where(keep, at, -1)], 0
        ).astype(flat.dtype)

    def _ids(self, f: Feature, values: pa.Array, where: "_Where") -> np.ndarray:
        if values.null_count and f.name in self._never_null:
            row = int(np.flatnonzero(np.asarray(values.is_null()))[0])
            raise RequestError(f"{where(row)}: {f.name!r} is null; leave out rows without it")
        if f.id_space not in self._vocabularies:
            raise RequestError(
                f"column {f.name!r}: the artifact has no vocabulary for id space {f.id_space!r}"
            )
        ids = self._vocabularies[f.id_space].encode(f.name, values)
        with self._lock:
            self.seen[f.name] += len(ids)
            self.unknown[f.name] += int((ids == OOV).sum())
        return ids

    def _time(self, name: str, values: pa.Array, where: "_Where") -> np.ndarray:
        """int64 seconds."""
        if not len(values):
            return np.zeros(0, np.int64)
        if values.null_count:
            row = int(np.flatnonzero(np.asarray(values.is_null()))[0])
            raise RequestError(
                f"{where(row)}: {name!r} is null; every request and event has a time"
            )
        if pa.types.is_timestamp(values.type):
            values = (
                pc.floor_temporal(values, unit="second")
                .cast(pa.timestamp("s", values.type.tz))
                .cast(pa.int64())
            )
        if not pa.types.is_integer(values.type):
            raise RequestError(
                f"column {name!r} is {values.type}; times are integer seconds or timestamps"
            )
        return values.to_numpy(zero_copy_only=False).astype(np.int64)

    def columns(self, requests: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
        """Arrow columns of JSON-like requests (see the module docstring); features may also lie at the top level."""
        out: dict[str, list] = {name: [] for name in self.names}
        for row, request in enumerate(requests):
            if not isinstance(request, Mapping):
                raise RequestError(f"request {row} is no object")
            for name, value in self._fields(request).items():
                if name in out:
                    out[name].append(value)
            for name, values in out.items():
                if len(values) != row + 1:
                    raise RequestError(
                        f"request {row}: {name!r} is missing; the model reads {', '.join(self.names)}"
                    )
        return {name: _array(name, values) for name, values in out.items()}

    def _fields(self, request: Mapping[str, Any]) -> dict[str, Any]:
        out = {k: v for k, v in request.items() if k not in ("history", "candidates")}
        for role in _INPUT_ROLES:
            section = request.get(role)
            if role not in ("history", "candidate") and isinstance(section, Mapping):
                out |= section
        names = [f.name for f in self.schema.select("candidate")]
        out |= (
            _by_name(request.get("candidates"), names, "candidates")
            if "candidates" in request
            else {}
        )
        history = request.get("history") or {}
        for name in self.schema.lists:
            columns = ["time", *(f.name for f in self.schema.features if f.list == name)]
            events = _by_name(history.get(name) or [], columns, f"history {name!r}")
            out[f"{name}/time"] = events.pop("time", None)
            out |= events
        return out


class _Where:
    """Names the row of an element, through any number of list levels."""

    def __init__(self, first_row: int, owner: np.ndarray | None = None):
        self._first_row, self._owner = first_row, owner

    def of(self, lengths: np.ndarray) -> "_Where":
        """For elements of lists of these lengths."""
        owner = np.arange(len(lengths)) if self._owner is None else self._owner
        return _Where(self._first_row, np.repeat(owner, lengths))

    def __call__(self, element: int) -> str:
        return f"row {self._first_row + (element if self._owner is None else int(self._owner[element]))}"


def _nested(values: pa.Array) -> bool:
    t = values.type
    return pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t)


def is_list(f: Feature, values: pa.Array) -> bool:
    """True when a candidate column holds several candidates an element (a multi-hot value is itself a list)."""
    if not (f.multi or f.vector):
        return _nested(values)
    t = values.type.value_type if _nested(values) else None
    return t is not None and (
        pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t)
    )


def _lengths(values: pa.Array) -> np.ndarray:
    if not values.null_count and not pa.types.is_fixed_size_list(values.type):
        return np.diff(values.offsets.to_numpy()).astype(np.int64)  # a tenth of the time
    return np.asarray(pc.list_value_length(values).fill_null(0), np.int64)


def _flat(values: pa.Array) -> pa.Array:
    """The elements of all lists; a slice where no null stands between them."""
    if values.null_count or pa.types.is_fixed_size_list(values.type):
        return values.flatten()
    first, last = values.offsets.to_numpy()[[0, -1]]
    return values.values.slice(first, last - first)


def _numbers(name: str, values: pa.Array, where: _Where) -> np.ndarray:
    if not len(values):
        return np.zeros(0, np.float32)
    t = values.type
    if not (
        pa.types.is_integer(t)
        or pa.types.is_floating(t)
        or pa.types.is_boolean(t)
        or pa.types.is_decimal(t)
    ):
        if not pa.types.is_null(t):
            raise RequestError(f"column {name!r} is {t}; it holds numbers")
    if not pa.types.is_floating(t):
        values = values.cast(pa.float64())
    x = values.to_numpy(zero_copy_only=False).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(x))
    if len(bad):
        raise RequestError(
            f"{where(int(bad[0]))}: {name!r} is null or not finite; fill it as in training"
        )
    return x


def _by_name(items: Any, names: Sequence[str], what: str) -> dict[str, list]:
    """Columns of a list of objects; columns are taken as they are."""
    if isinstance(items, Mapping):
        return {name: items[name] for name in names if name in items}
    if not isinstance(items, (list, tuple)) or not all(isinstance(i, Mapping) for i in items):
        raise RequestError(f"{what} is no list of objects")
    for i, item in enumerate(items):
        for name in names:
            if name not in item:
                raise RequestError(f"{what}: item {i} has no {name!r}")
    return {name: [item[name] for item in items] for name in names}


def _array(name: str, values: list) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as e:
        reason = str(e).splitlines()[0]
        raise RequestError(f"{name!r} mixes types of values ({reason}); give one type") from e
