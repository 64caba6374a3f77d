"""What clients may send: JSON bodies checked against the schema of one artifact, refused in one sentence.

pydantic's types are built from the schema, so a model with other features has other bodies (and another OpenAPI
page) without any code. A score request is

    {"time": 1710000000, "user": "u1", "deadline_ms": 50,
     "profile": {"household": "h1"}, "context": {"hour": 9},
     "history": {"purchases": [{"time": 1700000000, "hist_item": "a"}, ...]},
     "candidates": [{"item": "b", "price": 1.5}, ...]}

and candidates and lists of events may also be columns, {"item": ["b", "c"], "price": [1.5, 2]}, which is smaller and
several times faster to read. All types are explicit: nothing is guessed from values.

What is read at all is bounded by what the schema can need: a body with more keys, values or brackets than the largest
possible request is refused before it is parsed, lists end at their first fault, and unknown keys are looked for
afterwards, so that no body costs much more than a good one of its size.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
import dataclasses
from typing import Annotated, Any, NotRequired

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import (
    ConfigDict,
    Field,
    GetPydanticSchema,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import core_schema
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from recjax.data.logs.served import LOG
from recjax.schema import Feature, Schema
from recjax.serving.artifact import Artifact, ArtifactError
from recjax.serving.counters import Counters
from recjax.serving.own_log import Field as OwnField
from recjax.serving.own_log import OwnLog

LAST_SECOND = 253_402_300_799  # of the year 9999; what is later is not in seconds
MAX_TEXT = 1024
# Unknown keys are let through to be refused by `_known`: pydantic would make an error of each of 90,000.
_CONFIG = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
_MAX_FLOAT = float(np.finfo(np.float32).max)


def _whole(value: float) -> int:
    if not value.is_integer():
        raise ValueError
    return int(value)


def _integers(least: int, most: int, **about: str) -> Any:
    """Integers in JSON's sense, to which 1.0 belongs as long as floats are exact."""
    exact = core_schema.float_schema(strict=True, ge=-(2**53), le=2**53, allow_inf_nan=False)
    either = core_schema.union_schema(
        [
            core_schema.int_schema(strict=True),
            core_schema.no_info_after_validator_function(_whole, exact),
        ],
        mode="left_to_right",
        custom_error_type="integer",
        custom_error_message="Input should be a valid integer",
    )
    bounded = core_schema.chain_schema([either, core_schema.int_schema(ge=least, le=most)])
    schema = {"type": "integer", "minimum": least, "maximum": most, **about}
    return Annotated[int, GetPydanticSchema(lambda *_: bounded), WithJsonSchema(schema)]


def _any_value() -> Any:
    """An id, a category or a number of an own log: JSON's text, number, true, false or null; it is spelled later."""
    either: Any = [
        core_schema.str_schema(strict=True, max_length=MAX_TEXT),
        core_schema.bool_schema(strict=True),
        core_schema.int_schema(strict=True),
        core_schema.float_schema(strict=True, allow_inf_nan=False),
        core_schema.none_schema(),
    ]
    message = (
        f"Input should be a number, true, false, null, or text of at most {MAX_TEXT} characters"
    )
    either = core_schema.union_schema(
        either, mode="left_to_right", custom_error_type="value", custom_error_message=message
    )
    schema = {"type": ["string", "number", "boolean", "null"], "maxLength": MAX_TEXT}
    return Annotated[Any, GetPydanticSchema(lambda *_: either), WithJsonSchema(schema)]


_VALUE = _any_value()
_INTEGER = _integers(-(2**63), 2**63 - 1)
_FLOAT = Annotated[float, Field(ge=-_MAX_FLOAT, le=_MAX_FLOAT)]
_STRING = Annotated[str, Field(max_length=MAX_TEXT)]
_TIME = _integers(0, LAST_SECOND, description="seconds since 1970")
_DEADLINE = _integers(1, 3_600_000)
_USER = Annotated[str, Field(min_length=1, max_length=256, description="key of stored events")]
_FREE_MARKS = 512  # what a small body may have of each mark, whatever the schema
_SCORE_KEYS = ("time", "user", "deadline_ms", "history", "candidates")
_SECTIONS = ("profile", "context", "treatment", "trigger")
_SENTENCES = {
    "too_long": "has more than {max_length} entries; send fewer, in several requests if need be",
    "too_short": "has fewer than {min_length} entries; leave such requests out",
    "string_too_long": "has more than {max_length} characters; send the value the model was trained on",
    "finite_number": "is not finite; fill it as in training",
}


class BodyError(ValueError):
    """A body that cannot be accepted; the message says where and what to do. `status` is the HTTP code."""

    def __init__(self, message: str, status: int = 422):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class ScoreRequest:
    """One checked request.

    Attributes:
      values: Column of `Encoder` -> value, or list of values where it has candidates or events; "time" and
        the lists that the client left out are missing.
      candidates: C.
      user: Whose stored events stand in for the lists left out; "" for nobody.
      deadline_ms: 0 leaves it to the server.
    """

    values: dict[str, Any]
    candidates: int
    user: str = ""
    deadline_ms: int = 0


@dataclasses.dataclass(frozen=True)
class EventsRequest:
    """Events of one user: list -> {"time": [...], feature: [...]}."""

    user: str
    lists: dict[str, dict[str, list]]


class Bodies:
    """Reads bodies for one model.

    Attributes:
      lists: List of events -> its columns, "time" first.
      appended: The same for events that are stored, which counters may want to know more of.
      candidates: Features of a candidate.
      sections: Role -> features that have one value a request.
      kinds: See below.
    """

    def __init__(
        self,
        schema: Schema,
        kinds: Mapping[str, str],
        max_candidates: int,
        counters: Counters | None = None,
        max_events: int = 1000,
        own: OwnLog | None = None,
    ):
        """What is read for one schema.

        Args:
          schema: Of the function served.
          kinds: Id space -> "integer" or "string", what its vocabulary holds.
          max_candidates: Of a request.
          counters: That the service keeps.
          max_events: Of a list, in a request.
          own: Of an own log's model: fields are those that nobody else can know, and their values are spelled there.
        """
        self._max_events, self._own = max_events, own
        fields: Mapping[str, Any] = (
            own.sections if own else {r: schema.select(r) for r in (*_SECTIONS, "candidate")}
        )
        self._sections = {r: fields[r] for r in _SECTIONS if fields.get(r)}
        self.sections = {r: [f.name for f in features] for r, features in self._sections.items()}
        self.candidates = [f.name for f in fields.get("candidate", ())]
        self.lists = {
            name: ["time", *(f.name for f in schema.features if f.list == name)]
            for name in schema.lists
        }
        leading = [schema.select(r, kind="id")[:1] for r in ("profile", "candidate")]
        leading += [schema.select("history", kind="id", list=name)[:1] for name in schema.lists]
        self._never_null = {f.name for group in leading for f in group}
        self.kinds = kinds
        self._types = {f.name: self._arrow(f) for f in schema.features if f.role != "label"}
        self._types |= {f"{name}/time": pa.list_(pa.int64()) for name in schema.lists}
        self._types |= {"time": pa.int64()} if schema.lists else {}
        events = self._events(schema)
        self._kept = {n for s in counters.specs for n in s.features} if counters else set()
        self._kept |= {f.name for f in own.sections["candidate"] if not f.needed} if own else set()
        self._score = TypeAdapter(self._score_type(fields, events, max_candidates))
        self._fields = {f.name: f.multi or f.vector for f in schema.features}
        self.appended = dict(self.lists)
        if own:
            self._fields |= {f.name: f.width for f in (*own.event, *sum(own.sections.values(), []))}
            self.appended = {LOG: ["time", *(f.name for f in own.event)]}
            events = {LOG: self._own_events(own)}
        elif counters and counters.specs:
            self.appended[counters.list] = self._counted(schema, counters, events)
        lists = _object("Lists", {name: NotRequired[t] for name, t in events.items()})
        who = _VALUE if own else _USER
        self._append = TypeAdapter(_object("EventsRequest", {"user": who, "events": lists}))
        listed = [(max_events, self.appended.values()), (max_events, self.lists.values())]
        asked = [(1, self.sections.values()), (max_candidates, [self.candidates])]
        self._most_events = self._marks(listed[:1])
        self._most_score = self._marks([*asked, *(listed if own else listed[:1])])

    def _marks(self, rows: Iterable[tuple[int, Iterable[Sequence[str]]]]) -> dict[str, int]:
        """The most of each mark that a body needs: (number of rows, fields of each kind of row)."""
        most = dict.fromkeys(",:{[", _FREE_MARKS)
        for n, kinds in rows:
            for names in kinds:
                widths = [self._fields.get(name, 0) for name in names]
                most[":"] += n * len(names)
                most[","] += n * (len(names) + sum(widths))
                most["{"] += n
                most["["] += n * sum(map(bool, widths)) + len(names)
        return most

    def _events(self, schema: Schema) -> dict[str, Any]:
        out = {}
        for name in self.lists:
            fields = {f.name: self._value(f) for f in schema.features if f.list == name}
            out[name] = self._list(f"Event_{name}", {"time": _TIME, **fields})
        return out

    def _own_events(self, own: OwnLog) -> Any:
        self._may_lack = {f.name for f in own.event if not f.needed}
        fields = {"time": _TIME, **{f.name: self._value(f) for f in own.event}}
        return _rows_or_columns("Event_log", fields, 0, self._max_events, self._may_lack)

    def _list(self, name: str, fields: dict[str, Any]) -> Any:
        return _rows_or_columns(name, fields, 0, self._max_events)

    def _counted(self, schema: Schema, counters: Counters, events: dict[str, Any]) -> list[str]:
        """Adds to the events of the counters' list what counters read and the model does not."""
        known = self.lists.get(counters.list, ["time"])
        own = {f.name: self._value(f) for f in schema.features if f.list == counters.list}
        for name, request in counters.fields.items():
            own.setdefault(name, self._value(schema.feature(request)))
        fields = {"time": _TIME, **own}
        events[counters.list] = self._list(f"Counted_{counters.list}", fields)
        return [*known, *(n for n in own if n not in known)]

    def _score_type(self, asked: Mapping[str, Any], events: Mapping[str, Any], most: int) -> Any:
        own = self._own
        fields: dict[str, Any] = {
            "time": _TIME if own and own.ordered else NotRequired[_TIME],
            "user": _VALUE if own else NotRequired[_USER],
            "deadline_ms": NotRequired[_DEADLINE],
        }
        for role, features in self._sections.items():
            values = {f.name: self._value(f) for f in features}
            if own:  # `_own_needs` names all that is missing at once
                values = {n: NotRequired[t] for n, t in values.items()}
            section = _object(role.title(), values)
            fields[role] = NotRequired[section] if own else section
        if events:
            history = _object("History", {name: NotRequired[t] for name, t in events.items()})
            fields["history"] = NotRequired[history]
        if self.candidates:
            values = {f.name: self._value(f) for f in asked["candidate"]}
            fields["candidates"] = _rows_or_columns("Candidate", values, 1, most, self._kept)
        either = {"anyOf": [{"required": ["history"]}, {"required": ["user"]}]} if events else {}
        return _object("ScoreRequest", fields, **either)

    def _value(self, f: Any) -> Any:
        """The type of a feature's value, or of an own log's field."""
        if self._own:
            size = Field(max_length=MAX_TEXT, fail_fast=True)
            is_wide = f.width if isinstance(f, OwnField) else f.multi or f.vector
            return Annotated[list[_VALUE], size] | _VALUE if is_wide else _VALUE  # type: ignore[valid-type]
        if f.kind == "vector":
            size = Field(min_length=f.vector, max_length=f.vector, fail_fast=True)
            return Annotated[list[_FLOAT], size]
        if f.kind == "dense":
            return _FLOAT
        one = _INTEGER if self.kinds[f.id_space] == "integer" else _STRING
        one = one if f.name in self._never_null else one | None
        return Annotated[list[one], Field(fail_fast=True)] if f.multi else one  # type: ignore[valid-type]  # made at run time

    def _arrow(self, f: Feature) -> pa.DataType:
        t = pa.float64()
        if f.kind == "id":
            t = pa.int64() if self.kinds[f.id_space] == "integer" else pa.string()
        if f.multi or f.vector:
            t = pa.list_(t)
        return pa.list_(t) if f.axes in ("BC", "BL") else t

    # --- reading

    def score(self, body: bytes) -> ScoreRequest:
        """Raises BodyError."""
        got = _read(self._score, body, self._most_score)
        _known(got, {*self.sections, *_SCORE_KEYS}, "")
        for role, names in self.sections.items():
            _known(got.get(role, {}), {*names}, role)
        _known(got.get("history", {}), self.lists.keys(), "history")
        self._own_needs(got)
        values = {n: v for role in self._sections for n, v in got.get(role, {}).items()}
        if "time" in got:
            values["time"] = got["time"]
        for name, events in got.get("history", {}).items():
            known = {*self.lists[name], *self.appended.get(name, ())}
            _known_in_list(events, known, f"history.{name}")
            columns = _columns(events, self.lists[name], f"history.{name}")
            values |= {f"{name}/time" if n == "time" else n: v for n, v in columns.items()}
        candidates = 1
        if self.candidates:
            _known_in_list(got["candidates"], {*self.candidates}, "candidates")
            sent = [n for n in self.candidates if n not in self._kept]
            sent += _sent_by_all(got["candidates"], self._kept, "candidates")
            columns = _columns(got["candidates"], sent, "candidates")
            candidates = len(columns[sent[0]])
            values |= columns
        user = self._own.user(got["user"]) if self._own else got.get("user", "")
        if self.lists and not user and "history" not in got:
            raise BodyError(
                f"history is missing; give history with {_all(self.lists)} ({{}} for none), or user "
                "to use the events stored for that user"
            )
        return ScoreRequest(values, candidates, user, got.get("deadline_ms", 0))

    def _own_needs(self, got: Mapping[str, Any]) -> None:
        """Raises BodyError where an own log's request lacks what nobody else can know."""
        fields = {r: f for r, f in self._sections.items() if self._own}
        missing = [
            f"{role}.{f.name}"
            for role, features in fields.items()
            for f in features
            if f.needed and f.name not in got.get(role, {})
        ]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            raise BodyError(
                f"{_all(missing)} {verb} missing; it does not follow from user, time and candidates, so send it"
            )

    def read(self, adapter: TypeAdapter, body: bytes) -> Any:
        """Another form of a score request, no larger than one; raises BodyError."""
        return _read(adapter, body, self._most_score)

    def events(self, body: bytes) -> EventsRequest:
        """Raises BodyError."""
        got = _read(self._append, body, self._most_events)
        _known(got, {"user", "events"}, "")
        _known(got["events"], self.appended.keys(), "events")
        for name, events in got["events"].items():
            _known_in_list(events, {*self.appended[name]}, f"events.{name}")
        if self._own:
            return self._own_rows(self._own, got["user"], got["events"].get(LOG, []))
        lists = {n: _columns(e, self.appended[n], f"events.{n}") for n, e in got["events"].items()}
        return EventsRequest(got["user"], lists)

    def _own_rows(self, own: OwnLog, user: Any, rows: Any) -> EventsRequest:
        """Rows of an own log, in the lists they belong to."""
        sent = [n for n in self.appended[LOG] if n not in self._may_lack]
        sent += _sent_by_all(rows, self._may_lack, f"events.{LOG}") if rows else []
        who = own.user(user)
        return EventsRequest(who, own.events(who, _columns(rows, sent, f"events.{LOG}")))

    def columns(
        self, requests: Sequence[Mapping[str, Any]], names: Iterable[str] = ()
    ) -> dict[str, pa.Array]:
        """Columns that `Encoder.encode` takes (all, or some), of complete `ScoreRequest.values`."""
        types = {n: self._types[n] for n in names or self._types}
        return {n: pa.array([r[n] for r in requests], t) for n, t in types.items()}

    def json_schemas(self) -> dict[str, Any]:
        """JSON schemas by name, as OpenAPI has them in components."""
        adapters: Any = [
            (a, "validation", a_) for a, a_ in (("s", self._score), ("e", self._append))
        ]
        return TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")[1][
            "$defs"
        ]


def kinds(artifact: Artifact, schema: Schema) -> dict[str, str]:
    """Id space -> "integer" or "string"; raises ArtifactError where JSON has no such values."""
    out = {}
    for space in dict.fromkeys(f.id_space for f in schema.features if f.kind == "id"):
        dtype = artifact.vocabulary(space)["value"].dtype
        if not dtype.is_integer() and dtype not in (pl.String, pl.Categorical, pl.Enum):
            raise ArtifactError(
                f"the vocabulary of id space {space!r} holds {dtype} values, which JSON bodies cannot name; "
                "export it with strings or integers"
            )
        out[space] = "integer" if dtype.is_integer() else "string"
    return out


def _object(name: str, fields: Mapping[str, Any], **schema: Any) -> Any:
    """A type of objects; `schema` goes into its JSON schema."""
    make: Any = TypedDict  # of names that are data
    made = make(name, dict(fields))
    extra = {"json_schema_extra": {"additionalProperties": False, **schema}}
    made.__pydantic_config__ = _CONFIG | extra
    return made


def _rows_or_columns(
    name: str,
    fields: Mapping[str, Any],
    least: int = 0,
    most: int = 2**31,
    optional: Iterable[str] = (),
) -> Any:
    need = lambda n, t: NotRequired[t] if n in optional else t  # noqa: E731
    size = Field(min_length=least, max_length=most, fail_fast=True)
    row: Any = _object(name, {n: need(n, t) for n, t in fields.items()})
    rows: Any = Annotated[list[row], size]
    columns = {n: need(n, Annotated[list[t], size]) for n, t in fields.items()}  # type: ignore[valid-type]
    # Each side refuses the other's brackets at once, so the union costs nothing.
    return Annotated[rows | _object(f"{name}_columns", columns), Field(union_mode="left_to_right")]


def _sent_by_all(rows: Any, optional: set[str], where: str) -> list[str]:
    """The optional fields that were sent: in every row (of candidates, of events), or in none."""
    if isinstance(rows, dict):
        return [n for n in rows if n in optional]
    sent = [n for n in rows[0] if n in optional]
    for i, row in enumerate(rows):
        if differs := set(sent) ^ (row.keys() & optional):
            raise BodyError(
                f"{where}[{i}] and {where}[0] do not both have {sorted(differs)[0]!r}; send it for all {where}, or for none "
                "to use what is kept here"
            )
    return sent


def _columns(value: Any, names: Sequence[str], where: str) -> dict[str, list]:
    if isinstance(value, list):
        return {n: [row[n] for row in value] for n in names}
    for n in names:
        if len(value[n]) != len(value[names[0]]):
            raise BodyError(
                f"{where}.{n} has {len(value[n])} entries and {where}.{names[0]} {len(value[names[0]])}; "
                "columns are of one length"
            )
    return value


# --------------------------------------------------------------------------------------------------- sentences


def _read(adapter: TypeAdapter, body: bytes, most: Mapping[str, int]) -> dict[str, Any]:
    over = _over(np.frombuffer(body, np.uint8), most)
    if over and (over := _over(_outside_strings(body), most)):
        raise BodyError(
            f"the body has more than {most[over]} '{over}', more than any request of this model needs; "
            "send what /openapi.json describes, in several requests if need be"
        )
    try:
        return adapter.validate_json(body)
    except ValidationError as e:
        found: Any = e.errors(include_url=False, include_input=False)
        raise _sentence(found) from None


def _over(text: np.ndarray, most: Mapping[str, int]) -> str:
    """The first mark of which a text has more; "" for none."""
    over = (m for m, n in most.items() if np.count_nonzero(text == ord(m)) > n)
    return next(over, "")


def _outside_strings(body: bytes) -> np.ndarray:
    if b"\\" in body:  # an escaped quote ends no string
        body = body.replace(b"\\\\", b"..").replace(b'\\"', b"..")
    text = np.frombuffer(body, np.uint8)
    return text[np.cumsum(text == ord('"'), dtype=np.int32) % 2 == 0]


def _known(value: Mapping[str, Any], names: Collection[str], where: str) -> None:
    if not value.keys() <= set(names):
        name = _path((where, next(n for n in value if n not in names)))
        raise BodyError(f"{name} is unknown; leave it out, or reload the artifact that reads it")


def _known_in_list(value: Any, names: set[str], where: str) -> None:
    """For rows or columns."""
    if isinstance(value, dict):
        return _known(value, names, where)
    for i, row in enumerate(value):
        if not row.keys() <= names:
            _known(row, names, f"{where}[{i}]")


def _sentence(errors: list[dict[str, Any]]) -> BodyError:
    errors = [e | {"loc": _place(e["loc"])} for e in errors if not _other_side(e, errors)]
    first = errors[0]
    kind, at = first["type"], first["loc"]
    if kind == "json_invalid":
        reason = first["ctx"]["error"]
        return BodyError(f"the body is no JSON ({reason}); send one object in UTF-8", 400)
    if (
        kind == "missing"
    ):  # all of them at once: nobody wants to learn of twenty counters one by one
        names = [e["loc"][-1] for e in errors if e["type"] == kind and e["loc"][:-1] == at[:-1]]
        where = f"in {_path(at[:-1])}, " if at[:-1] else ""
        verb, them = ("is", "it") if len(names) == 1 else ("are", "them")
        return BodyError(
            f"{where}{_all(names)} {verb} missing; the model reads {them}, send {them}"
        )
    what = _SENTENCES.get(kind)
    text = what.format(**first.get("ctx", {})) if what else _plain(first)
    more = f" ({len(errors) - 1} more faults follow)" if len(errors) > 1 else ""
    return BodyError(f"{_path(at) or 'the body'} {text}{more}")


def _plain(error: Mapping[str, Any]) -> str:
    """pydantic's own words: "should be a valid integer", with a hint for times."""
    text = error["msg"].replace("Input ", "", 1).replace("dictionary", "object")
    hint = ", in seconds" if error["loc"][-1:] == ("time",) else ""
    return f"{text[:1].lower()}{text[1:]}{hint}; send it so"


def _other_side(error: Mapping[str, Any], errors: Iterable[Mapping[str, Any]]) -> bool:
    """True for the fault of the side of a rows-or-columns union that was not meant."""
    at = _branch(error["loc"])
    if not at or len(error["loc"]) != at + 1 or error["type"] not in ("list_type", "dict_type"):
        return False
    return any(
        e is not error
        and e["loc"][:at] == error["loc"][:at]
        and (error["type"] == "dict_type" or e["type"] != "dict_type" or len(e["loc"]) > at + 1)
        for e in errors
    )


def _branch(loc: tuple) -> int:
    """Where a location holds the name of a union's side; 0 for nowhere."""
    at = {"candidates": 1, "history": 2, "events": 2}.get(str(loc[0]) if loc else "", 0)
    return at if len(loc) > at else 0


def _place(loc: tuple) -> tuple:
    at = _branch(loc)
    return loc[:at] + loc[at + 1 :] if at else loc


def _path(loc: tuple) -> str:
    text = "".join(f"[{x}]" if isinstance(x, int) else f".{x}" for x in loc)[:200]
    return text.removeprefix(".")


def _all(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
