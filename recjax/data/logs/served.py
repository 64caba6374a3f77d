"""What an own log tells serving: its rows in raw values, kept beside the prepared blocks.

    served/mapping.json           the mapping
    served/rows-00000.parquet     a partition's rows in time order: user, moment, item, columns of user and item, scene, action,
                                  whether the first label is set, and to which history lists each belongs ("in/<list>")
    served/user.parquet item.parquet    the side tables, if there are any

`event_log` makes of them what `recjax.serving.snapshot` puts into an artifact: counters, histories, and what is known of every
user and item, so that a request needs no more than the user and the candidates. A column of the log that is nearly always
the same for one user (or item) is known; one that varies (a device, a price at the time) only the request can tell, unless
negatives were drawn: then training too saw the item's last value.
"""

from collections.abc import Callable
import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np
import polars as pl

from recjax.data.logs.events import Events
from recjax.data.logs.features import (
    Field,
    counter_list,
    feature_name,
    history_rows,
    key_fields,
)
from recjax.data.logs.mapping import LogMapping
from recjax.data.logs.rows import MOMENT, PLACE, as_feature, as_key
from recjax.data.logs.shapes import cross_name
from recjax.data.logs.sources import columns_of, read_table
from recjax.data.store.event_log import USER, EventLog, Known, ServedCounter, ServedList
from recjax.data.store.prepared import DataError, Prepared
from recjax.schema import Schema

FOLDER = "served"
LOG = "log"  # the name events are sent under
POSITIVE, ACTION, IN = "positive", "action", "in/"
VARIES = 0.01  # share of rows that may differ from the row before, of a column that is known of a user or item


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the mapping, as clients know it.

    Attributes:
      name: Of the feature, and of the field of a request or an event.
      column: In the log or the side table.
      side: "user", "item" or "context".
      feature: Whether it is a feature, rather than a part of crosses only.
    """

    name: str
    column: str
    side: str
    feature: bool = True

    @property
    def role(self) -> str:
        return {"user": "profile", "item": "candidate", "context": "context"}[self.side]


def columns_of_mapping(m: LogMapping) -> list[Column]:
    """Every column whose values a request holds or that are known of its user and candidates."""
    taken = m.label_names + m.groups
    sides = {"user": m.user_columns, "item": m.item_columns, "context": m.context_columns}
    out = [Column(feature_name(s, c, taken), c, s) for s, columns in sides.items() for c in columns]
    inside = {c.column for c in out}
    parts = dict.fromkeys(c for pair in m.crosses for c in pair if c not in inside)
    return out + [Column(feature_name("context", c, taken), c, "context", False) for c in parts]


def crosses_of_mapping(m: LogMapping) -> dict[str, tuple[str, str]]:
    """Feature of a cross -> the names of its two columns."""
    names = {c.column: c.name for c in columns_of_mapping(m)}
    taken = m.label_names + m.groups
    return {
        feature_name("context", cross_name(a, b), taken): (names[a], names[b]) for a, b in m.crosses
    }


# ------------------------------------------------------------------------------------------ writing


def rows_of(e: Events, features: list[Field]) -> pl.DataFrame:
    """The rows of a log as serving wants them."""
    m = e.mapping
    out: dict[str, Any] = {USER: e.rows[m.user], MOMENT: e.rows[MOMENT], "item": e.rows[m.item]}
    out |= {PLACE: e.rows[PLACE]} if PLACE in e.rows.columns else {}
    kept = {c.name for c in columns_of_mapping(m) if c.side != "context" and c.feature} | {"scene"}
    out |= {f.name: f.values for f in features if f.name in kept and f.where in ("row", "source")}
    out |= {ACTION: e.rows[m.action]} if m.action else {}
    out[POSITIVE] = e.positive
    for name, rows in history_rows(e).items():
        belongs = np.zeros(len(e.item), bool)
        belongs[rows] = True
        out[f"{IN}{name}"] = belongs
    return pl.DataFrame(out)


def writer(m: LogMapping, parts: list[Callable[[], pl.DataFrame]]) -> Callable | None:
    """Writes the rows of each partition, the side tables and the mapping below a folder; None where ids are as stored."""
    if m.ids != "text":
        return None

    def write(folder: pathlib.Path) -> None:
        folder = folder / FOLDER
        folder.mkdir()
        (folder / "mapping.json").write_text(json.dumps(_portable(m), indent=1))
        for i, rows in enumerate(parts):
            rows().write_parquet(folder / f"rows-{i:05d}.parquet")
        for side, file, key in (("user", m.user_table, m.user), ("item", m.item_table, m.item)):
            if file:
                _side_table(m, side, file, key).write_parquet(folder / f"{side}.parquet")

    return write


def _portable(m: LogMapping) -> dict[str, Any]:
    """The mapping without the folders of this machine."""
    out = m.as_json() | {n: os.path.basename(getattr(m, n)) for n in ("user_table", "item_table")}
    out |= {"joins": {os.path.basename(f): k for f, k in m.joins.items()}} if m.joins else {}
    return out


def _side_table(m: LogMapping, side: str, file: str, key: str) -> pl.DataFrame:
    there = columns_of(file, m.text_form.of_table())
    mine = [c for c in columns_of_mapping(m) if c.side == side and c.column in there]
    table = read_table(file, key, [c.column for c in mine], m.text_form)
    out = {side: as_key(table[key], m)}
    out |= {c.name: as_feature(table[c.column], m, []) for c in mine}
    return pl.DataFrame(out).drop_nulls(side).unique(side, keep="first", maintain_order=True)


# ------------------------------------------------------------------------------------------ reading


def is_served(prepared: Prepared) -> bool:
    """Whether prepared data bring an own log's rows; those of earlier versions do not."""
    return (prepared.path / FOLDER / "mapping.json").exists()


def read_mapping(given: dict[str, Any]) -> LogMapping:
    """The mapping from its JSON."""
    known = {f.name for f in dataclasses.fields(LogMapping)}
    return LogMapping(**{k: v for k, v in given.items() if k in known})


def event_log(prepared: Prepared) -> EventLog:
    """The log's rows with their counters and lists; raises DataError where they cannot be read."""
    folder = prepared.path / FOLDER
    try:
        given = json.loads((folder / "mapping.json").read_text())
        files = sorted(folder.glob("rows-*.parquet"))
        frame = pl.concat([pl.read_parquet(f) for f in files], how="vertical_relaxed")
        tables = {s: _table(folder / f"{s}.parquet", s, frame) for s in ("user", "item")}
    except (OSError, ValueError, pl.exceptions.PolarsError) as e:
        raise DataError(f"{folder} cannot be read ({e}); prepare the log again") from e
    m = read_mapping(given)
    frame = frame.sort(*(c for c in (MOMENT, PLACE) if c in frame.columns), maintain_order=True)
    known = {s: _known(m, s, frame, tables[s]) for s in ("user", "item")}
    time = (pl.col(MOMENT) // 1_000_000).alias("time")
    frame = frame.with_columns(time).drop(MOMENT, PLACE, strict=False)
    if tables["item"] is not None:  # histories remember what a side table says of their items
        new = [c for c in tables["item"].columns if c not in frame.columns]
        joined = tables["item"].select("item", *(c for c in new if c != "item"))
        frame = frame.join(joined, on="item", how="left", maintain_order="left")
    return EventLog(
        LOG, frame, counters_of(m, prepared.schema, frame), lists_of(prepared.schema), given, known
    )


def _table(file: pathlib.Path, key: str, frame: pl.DataFrame) -> pl.DataFrame | None:
    """A side table without the columns that the log has itself: the log's count."""
    if not file.exists():
        return None
    table = pl.read_parquet(file)
    return table.drop(c for c in table.columns if c != key and c in frame.columns)


def counters_of(m: LogMapping, schema: Schema, frame: pl.DataFrame) -> tuple[ServedCounter, ...]:
    """The counters that preparation made, over the same rows."""
    if not m.counters:
        return ()
    kinds = {"taken": POSITIVE} | ({} if frame[POSITIVE].all() else {"shown": ""})
    at = lambda keys: tuple(USER if k == "user_id" else k for k in keys)  # noqa: E731
    keys = dict.fromkeys(key_fields(schema.features))
    return tuple(
        ServedCounter(c.columns, c.keys, at(c.keys), where)
        for kind, where in kinds.items()
        for c in counter_list(keys, kind)
    )


def lists_of(schema: Schema) -> dict[str, ServedList]:
    """The history lists, and which field of an event each of their features is."""
    return {
        name: ServedList(
            {f.name: f.name.removeprefix(f"{name}_") for f in schema.features if f.list == name},
            f"{IN}{name}",
        )
        for name in schema.lists
    }


def _known(m: LogMapping, side: str, frame: pl.DataFrame, table: pl.DataFrame | None) -> Known:
    mine = [c.name for c in columns_of_mapping(m) if c.side == side and c.name in frame.columns]
    always = side == "item" and m.sampled
    key = USER if side == "user" else "item"
    fields = tuple(c for c in mine if always or varies(frame, key, c) <= VARIES)
    return Known(key, fields, table)


def varies(frame: pl.DataFrame, key: str, column: str) -> float:
    """In what share of the rows a column is other than in the last row of the same key; 0 where no key comes again."""
    before = pl.col(column).shift(1).over(key)
    again = pl.int_range(pl.len()).over(key) > 0
    changed = frame.select(
        again.sum().alias("again"), (again & pl.col(column).ne_missing(before)).sum().alias("other")
    )
    again_, other = changed.row(0)
    return other / again_ if again_ else 0.0
