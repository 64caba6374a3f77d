"""A mapping says, in a few lines of plain Python, what the columns of a log mean.

    # mapping.py
    user, item, time = "customer_id", "article", "sold_at"
    negatives = "popular"
    item_columns = ["category", "price"]
    context_columns = ["country"]
    dense = {"price": "log1p"}

Its names are the fields of `LogMapping`; nothing else is allowed but imports and names that begin with "_". The file is
run, so it is trusted code. `recjax.data.logs.suggest` writes a first one.
"""

from collections.abc import Mapping
import dataclasses
import datetime
import difflib
import os
import pathlib
import runpy
import types
from typing import Any

from recjax.data.logs.conditions import Condition, is_condition
from recjax.data.logs.sources import TextForm
from recjax.data.logs.values import NULLS
from recjax.data.store.dates import seconds_of, span_of
from recjax.data.store.prepared import DataError
from recjax.schema import TRANSFORMS

NEGATIVES = ("impressions", "popular", "uniform")
GROUPS = ("request", "user", "page", "session")
UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0}  # microseconds in one; ns are divided
ORDER, SUFFIX = "order", "suffix"
DAY_FIRST, MONTH_FIRST = "day first", "month first"
LINES = ("user", "item", "time", "time_unit", "time_format", "action", "request", "page", "session_gap", "scene", "group")  # fmt: skip
LINES += ("where", "user_table", "item_table", "negatives", "gap", "separator", "encoding")
IDS = ("text", "stored")
LATER = (
    "joins",
    "event_files",
    "event_keys",
    "explode",
    "taken",
    "multi",
    "multi_values",
    "buckets",
    "hashed",
    "crosses",
    "weight",
)
LATER += ("as_of", "label_missing", "where", "indicators", "catalogue", "encoding", "columns", "nulls", "ids")  # fmt: skip
SESSION = "session"  # list and group key of the running session
POSITIVE = "positive"  # the label of a log that holds positives only


@dataclasses.dataclass(frozen=True)
class LogMapping:
    """What the columns of a log mean. Only `user`, `item` and `time` are required.

    Attributes:
      user, item: Columns of who and what.
      time: Column of when: a number, a date, or text.
      time_unit: Of a number: "s", "ms", "us", "ns", "excel" (days of a spreadsheet), or "order" (a log without times: places in
        its order from 1 on, taken for seconds; there are no features of hour and weekday); "auto" tells by its size.
      time_format: strptime pattern of text (or of numbers like 20240131); "day first" or "month first" for dates like
        1/2/2024; "": ISO 8601 and the forms that can be read in one way only (`recjax.data.logs.times`). Whether days or
        months come first is then told from the whole log, and refused where it does not say.
      utc_offset: Hours the log's days are ahead of the time stamps; only hour, weekday and day depend on it.
      as_of: When the log was written, a date: later rows are some clock's error and set aside. "": every row up to 2100 is
        kept, and one later than the present is warned of. What is prepared never depends on the day it is prepared on.
      labels: Columns of 0/1 (or Y/N, true/false, -1/+1), the first is trained on; or {label: values of the `action`
        column, or a condition like "rating >= 4"}. Empty: every row is a positive.
      label_missing: What an empty label cell means, 0 or 1 (a click joined to its impression leaves it empty where there was
        none); None: such a row is set aside.
      joins: {file: key}: files that hold more columns of the log's rows, one row per key (the orders of ordered products), relative
        to the mapping; the log has the key too. What they say counts as said by the row: it must not be a later outcome.
      event_files: {label: files}: an outcome that files of its own hold, "clicks/*.csv" relative to the mapping; the label (also
        named in `labels`) is 1 where one of their rows has the same `event_keys`.
      event_keys: Columns that a row and its outcome share, such as the request's and the item's.
      explode: Whether a cell of `item` holds several items ("N1-0 N2-1", a list): each becomes a row.
      taken: With `explode`, which of them the first label is 1 for: a column of those taken, or "suffix": those that end in
        -1, not -0. "": the label is a column, the same for all.
      where: A condition (`recjax.data.logs.conditions`) that rows must fulfil, like "quantity > 0"; "": all do.
      action: Column of what happened (view, cart, buy).
      request: Column of the page, basket or request id; "": rows of one user and time.
      page: Column of a page that holds several requests (a user scrolls on); a group key, nothing else.
      session_gap: A pause longer than this, as "30m", ends a user's session. Gives the group key "session" and the list
        "session": those events of the first history list that lie in the session the request is part of.
      scene: Column of where it was shown.
      group: What the grouped metrics group by: "request", "user", "page" or "session".
      user_columns, item_columns, context_columns: Features, from the log or from a side table; ids unless named in
        `dense` or `vectors`.
      dense: Number columns and their transform, "identity" or "log1p" (not below zero); a list means "identity".
      vectors: Columns that hold one vector of fixed width per row: lists, or text like "[0.1, 0.2]".
      multi: {column: separator}: id columns that hold several values, "Action|Comedy", or lists (""); their embeddings are
        averaged.
      multi_values: At most so many of a cell's are kept, the first.
      buckets: {column: edges}: a number column as an id of the interval it lies in ("<18", "18-25", ">=25").
      hashed: {column: n}: an id column whose values are hashed into n ids (CRC-32), for vocabularies that never close.
      crosses: Pairs of context or user columns; each gives the id "a_x_b" of both values, "DE|phone".
      weight: Column of what a row counts in the loss and in the metrics, not below zero; "": 1.
      indicators: Those of `dense` and `vectors` that get a feature "<column>_missing", 1 where the value is missing or could
        not be read (the value itself is then 0).
      user_table, item_table: Files with one row per user or item, keyed by the same column name; relative to the
        mapping. They are taken as known at all times, so they must not hold later outcomes.
      negatives: "impressions": rows with label 0 are real. "popular", "uniform": drawn for every positive from the items
        of the training period, never one the user took in that request. "": impressions if `labels` are columns,
        else popular.
      negatives_per_positive: How many are drawn.
      history: list -> values of `action` it holds; empty: one list "history" of all events.
      movelines: list -> values of `action` it holds, () for every row: events with the scene they happened in, for
        models that follow a user from scene to scene (role "moveline"). Rows with label 0 belong to them too.
      counters: Whether causal counters are made.
      catalogue: "seen": negatives are drawn from every item of the training rows, "taken": from those of its positives.
      split: {"validation": ..., "test": ...}: the dates they begin at, or their fractions of the requests.
      gap: Time left out of a split before the next one begins, as "1d" or "12h"; its events stay in histories.
      min_count: Training rows a value needs to get an id of its own.
      separator: Of CSV files; more than one character will do.
      encoding: Of CSV and JSON files; "": UTF-8, or what the bytes tell.
      columns: Names of the columns of CSV files without a header.
      nulls: More spellings of a missing value, beside those that `recjax.data.logs.values.NULLS` lists.
      ids: "text": a value has one spelling, whatever the file's format. "stored": as Parquet types it (published sets).
      seed: Of drawn negatives and of the training order.
    """

    user: str
    item: str
    time: str
    time_unit: str = "auto"
    time_format: str = ""
    utc_offset: float = 0.0
    as_of: str = ""
    labels: Any = ()
    label_missing: int | None = None
    joins: Any = ()
    event_files: Any = ()
    event_keys: tuple[str, ...] = ()
    explode: bool = False
    taken: str = ""
    where: str = ""
    action: str = ""
    request: str = ""
    page: str = ""
    session_gap: str = ""
    scene: str = ""
    group: str = "request"
    user_columns: tuple[str, ...] = ()
    item_columns: tuple[str, ...] = ()
    context_columns: tuple[str, ...] = ()
    dense: Any = ()
    vectors: tuple[str, ...] = ()
    multi: Any = ()
    multi_values: int = 8
    buckets: Any = ()
    hashed: Any = ()
    crosses: tuple[tuple[str, str], ...] = ()
    weight: str = ""
    indicators: tuple[str, ...] = ()
    user_table: str = ""
    item_table: str = ""
    negatives: str = ""
    negatives_per_positive: int = 4
    history: Any = ()
    movelines: Any = ()
    catalogue: str = "seen"
    counters: bool = True
    split: Any = dataclasses.field(default_factory=lambda: {"validation": 0.1, "test": 0.1})
    gap: str = ""
    min_count: int = 2
    separator: str = ","
    encoding: str = ""
    columns: tuple[str, ...] = ()
    nulls: tuple[str, ...] = ()
    ids: str = "text"
    seed: int = 0

    def __post_init__(self):
        settle = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        sides = ("user_columns", "item_columns", "context_columns")
        for name in (*sides, "vectors", "indicators", "columns", "nulls", "event_keys"):
            settle(name, _strings(name, getattr(self, name)))
        if not isinstance(self.labels, Mapping):
            settle("labels", _strings("labels", self.labels))
        if not isinstance(self.dense, Mapping):
            settle("dense", dict.fromkeys(_strings("dense", self.dense), "identity"))
        for name in ("labels", "history", "movelines"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                settle(name, {k: _values(f"{name}[{k!r}]", v) for k, v in value.items()})
        for name in ("joins", "event_files", "multi", "buckets", "hashed"):
            settle(name, dict(getattr(self, name)))
        settle("crosses", tuple((str(a), str(b)) for a, b in self.crosses))
        settle("history", dict(self.history))
        settle("movelines", dict(self.movelines))
        impressions = self.labels and not self.label_actions
        settle("negatives", self.negatives or ("impressions" if impressions else "popular"))
        self._check()

    def _check(self) -> None:
        for name in ("user", "item", "time"):
            if not getattr(self, name):
                raise DataError(f"mapping: {name} is empty; name the log's {name} column")
        _check_choice("negatives", self.negatives, NEGATIVES)
        _check_choice("group", self.group, GROUPS)
        _check_choice("time_unit", self.time_unit, ("auto", *UNITS, "excel", ORDER))
        _check_choice("label_missing", self.label_missing, (None, 0, 1))
        _check_choice("catalogue", self.catalogue, ("seen", "taken"))
        _check_choice("ids", self.ids, IDS)
        if self.as_of:
            seconds_of(self.as_of)
        if self.seed < 0 or self.min_count < 0:
            raise DataError("mapping: seed and min_count are whole numbers, 0 or more")
        if abs(self.utc_offset) > 14:
            raise DataError(f"mapping: utc_offset={self.utc_offset!r} is in hours, from -12 to 14")
        for column, transform in self.dense.items():
            _check_choice(f"dense[{column!r}]", transform, TRANSFORMS)
        sides = (*self.user_columns, *self.item_columns, *self.context_columns)
        for column in sides:
            if sides.count(column) > 1:
                raise DataError(f"mapping: column {column!r} is named twice; keep one of them")
        self._check_meanings(sides)
        for column in (*self.dense, *self.vectors):
            if column not in sides:
                raise DataError(
                    f"mapping: {column!r} is dense or a vector of nothing; name it in item_columns, user_columns or "
                    "context_columns too"
                )
        self._check_shapes(sides)
        for column in self.indicators:
            if column not in self.dense and column not in self.vectors:
                raise DataError(
                    f"mapping: indicators names {column!r}; name it in dense or vectors too"
                )
        if (self.label_actions or self.history) and not self.action:
            raise DataError("mapping: labels or history name action values; set action to a column")
        self._check_lists()
        if self.negatives == "impressions" and not self.labels:
            raise DataError("mapping: negatives='impressions' needs labels; name the label columns")
        if self.sampled and self.negatives_per_positive < 1:
            raise DataError("mapping: negatives_per_positive must be 1 or more")
        self._check_split()

    def _check_meanings(self, sides: tuple[str, ...]) -> None:
        """One column has one meaning: what says who, what or when is no label, and what the label is made of no feature."""
        meant: dict[str, str] = {}
        outcomes = {c: "a label" for c in self.read_labels}
        for column, what in [
            (self.user, "user"),
            (self.item, "item"),
            (self.time, "time"),
            *outcomes.items(),
        ]:
            if column in meant and meant[column] != what:
                raise DataError(
                    f"mapping: {column!r} is {meant[column]} and {what}; name another column"
                )
            meant[column] = what
        made_of = {
            c: f"labels[{n!r}] is made of"
            for n, x in self.label_conditions.items()
            for c in x.columns
        }
        made_of |= {self.action: "labels are made of"} if self.label_actions else {}
        made_of |= {self.taken: "the label is made of"} if self.taken not in ("", SUFFIX) else {}
        used = [*sides, *(c for pair in self.crosses for c in pair)]
        for column in used:
            told = made_of.get(column) or ("is a label" if column in self.label_names else "")
            if told:
                raise DataError(
                    f"mapping: {column!r} is a feature, but {told} {'it' if column in made_of else ''}".rstrip()
                    + "; a feature that tells the label must be left out"
                )
        if self.request in outcomes or self.scene in outcomes:
            raise DataError("mapping: request or scene is a label's column; name another one")

    def _check_shapes(self, sides: tuple[str, ...]) -> None:
        for what in ("multi", "buckets", "hashed"):
            for column in getattr(self, what):
                if column not in sides:
                    raise DataError(f"mapping: {what} names {column!r}; name it in item_columns, user_columns or context_columns too")  # fmt: skip
                if column in self.dense or column in self.vectors:
                    raise DataError(f"mapping: {column!r} is in {what}, so it is an id; leave it out of dense and vectors")  # fmt: skip
        for column, edges in self.buckets.items():
            if not edges or list(edges) != sorted(set(edges)):
                raise DataError(f"mapping: buckets[{column!r}]={edges!r}; give ascending numbers, the edges")  # fmt: skip
        for pair in self.crosses:
            for column in pair:
                if column in self.item_columns:
                    raise DataError(f"mapping: crosses has {column!r}, which is the item's; cross context or user columns")  # fmt: skip
        for label in self.event_files:
            if label not in self.label_names or not self.event_keys:
                raise DataError(f"mapping: event_files names {label!r}; name it in labels too, and the columns it is found by in event_keys")  # fmt: skip
        if self.taken and not (self.explode and self.label_columns):
            raise DataError("mapping: taken needs explode = True and a label to set")

    def _check_lists(self) -> None:
        for group in ("page", "session"):
            if self.group == group and not {"page": self.page, "session": self.session_gap}[group]:
                needs = {"page": "page to a column", "session": "session_gap"}[group]
                raise DataError(f"mapping: group={group!r} needs it; set {needs}")
        if self.movelines and not self.scene:
            raise DataError("mapping: movelines carry the scene; set scene to a column")
        if any(self.movelines.values()) and not self.action:
            raise DataError("mapping: movelines name action values; set action to a column, or ()")
        lists = [*(self.history or ["history"]), *self.movelines]
        lists += [SESSION] if self.session_gap else []
        for name in lists:
            if lists.count(name) > 1:
                raise DataError(f"mapping: two lists are called {name!r}; rename one")
        if self.session_gap:
            span_of(self.session_gap, "mapping: session_gap")

    def _check_split(self) -> None:
        unknown = sorted(set(self.split) - {"validation", "test"})
        if unknown or not self.split:
            raise DataError(f"mapping: split={self.split!r}; give 'validation', 'test' or both")
        if len({isinstance(x, float | int) for x in self.split.values()}) > 1:
            raise DataError(f"mapping: split={self.split!r} mixes dates and fractions; use one")
        for x in self.split.values():
            if isinstance(x, float | int) and not 0 < x < 1:
                raise DataError(f"mapping: split={self.split!r}: a fraction lies between 0 and 1")
            if isinstance(x, str | datetime.date):
                seconds_of(x)
        if self.gap:
            span_of(self.gap)

    @property
    def sampled(self) -> bool:
        """Whether negatives are drawn rather than read."""
        return self.negatives != "impressions"

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self.labels) or (POSITIVE,)

    @property
    def label_conditions(self) -> dict[str, Condition]:
        """Labels that rows have by a condition."""
        if not isinstance(self.labels, Mapping):
            return {}
        return {k: Condition(v) for k, v in self.labels.items() if isinstance(v, str)}

    @property
    def label_actions(self) -> dict[str, tuple[Any, ...]]:
        """Labels that rows have by what happened: label -> values of `action`."""
        if not isinstance(self.labels, Mapping):
            return {}
        return {k: v for k, v in self.labels.items() if not isinstance(v, str)}

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Labels that are columns of the log."""
        return () if isinstance(self.labels, Mapping) else self.labels

    @property
    def read_labels(self) -> tuple[str, ...]:
        """Labels that are columns of the log's own files."""
        made = {*self.event_files, *(self.label_columns[:1] if self.taken else ())}
        return tuple(c for c in self.label_columns if c not in made)

    @property
    def conditions(self) -> list[Condition]:
        where = [Condition(self.where)] if self.where else []
        return where + list(self.label_conditions.values())

    @property
    def missing(self) -> frozenset[str]:
        """Every spelling of a missing value."""
        return NULLS.union(self.nulls)

    @property
    def text_form(self) -> TextForm:
        return TextForm(self.separator, self.encoding, self.columns)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns no row may lack."""
        return tuple(filter(None, (self.user, self.item, self.request, self.page)))

    @property
    def groups(self) -> tuple[str, ...]:
        """Group keys, that of the grouped metrics first."""
        there = ["request", "user", *(["page"] if self.page else [])]
        there += [SESSION] if self.session_gap else []
        return (self.group, *(g for g in there if g != self.group))

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values, later ones where they are used: part of the data's identity."""
        given = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        out = {k: _plain(v) for k, (v, default) in given.items() if k not in LATER or v != default}
        return out | {"until": self.as_of}  # what it was called before


def load_mapping(path: str | os.PathLike) -> LogMapping:
    """Runs a mapping file (trusted code) and checks what it declares; raises DataError naming what is wrong."""
    file = pathlib.Path(path)
    if not file.exists():
        raise DataError(f"there is no mapping {file}; write one, or let --suggest do it")
    try:
        names = runpy.run_path(str(file))
    except Exception as e:
        line = f", line {e.lineno}" if isinstance(e, SyntaxError) else ""
        raise DataError(f"{file}{line} is no mapping: {type(e).__name__}: {e}") from e
    given = {
        k: v
        for k, v in names.items()
        if not k.startswith("_") and not isinstance(v, types.ModuleType)
    }
    known = [f.name for f in dataclasses.fields(LogMapping)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it may have {', '.join(known)}"
            raise DataError(f"{file}: unknown name {name!r}; {hint}")
    for name in ("user", "item", "time"):
        given.setdefault(name, "")
    folder = file.resolve().parent
    for name in ("user_table", "item_table"):
        if given.get(name):
            given[name] = str(folder / given[name])
    for name in LINES:
        if not isinstance(given.get(name, ""), str):
            raise DataError(f"{file}: {name}={given[name]!r}; write it in quotation marks")
    for name in (
        "split",
        "history",
        "movelines",
        "joins",
        "event_files",
        "multi",
        "buckets",
        "hashed",
    ):
        if given.get(name) and not isinstance(given[name], Mapping):
            raise DataError(f"{file}: {name}={given[name]!r}; write {{name: value}}")
    for name in ("negatives_per_positive", "min_count", "seed", "utc_offset"):
        if not isinstance(given.get(name, 0), int | float):
            raise DataError(
                f"{file}: {name}={given[name]!r}; write a number, without quotation marks"
            )
    if given.get("joins"):
        given["joins"] = {str(folder / k): v for k, v in given["joins"].items()}
    if given.get("event_files"):
        given["event_files"] = {k: str(folder / v) for k, v in given["event_files"].items()}
    return LogMapping(**given)


def _values(name: str, value: Any) -> str | tuple[Any, ...]:
    """Values of a list, or a condition on a row."""
    if name.startswith("labels[") and is_condition(value):
        return value
    return _strings(name, value)


def _strings(name: str, value: Any) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)
    if "" in values:
        raise DataError(f"mapping: {name} holds an empty name; remove it")
    return values


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise DataError(f"mapping: {name}={value!r}; use one of {', '.join(choices)}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool) else str(value)
