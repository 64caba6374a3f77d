"""What a data set tells serving: its raw events, and which causal counters are counted over them.

A data module that has it defines `event_log(prepared, source="") -> EventLog`; an own log's prepared data brings it
(`recjax.data.logs.served`). Exporting a run then puts a snapshot of counters and histories into the artifact, and the service
keeps both up to date from the events it is sent.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import polars as pl

USER = "user"


@dataclasses.dataclass(frozen=True)
class ServedCounter:
    """A causal counter as serving sees it; see `recjax.data.store.histories.Counter`.

    Attributes:
      features: The dense features it fills: count, recency.
      request: Features of a request whose raw values make the key.
      event: For each of these, the field of an event that matches it; "user" is the event's user, whose key is the
        request's value as text.
      where: Field of an event that says whether it counts; "": every event does.
    """

    features: tuple[str, str]
    request: tuple[str, ...]
    event: tuple[str, ...]
    where: str = ""


@dataclasses.dataclass(frozen=True)
class ServedList:
    """A history list made of a log's events.

    Attributes:
      fields: Feature of the list -> field of an event that it remembers.
      where: Field of an event that says whether it belongs to the list; "": every event does.
    """

    fields: Mapping[str, str]
    where: str = ""


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of users, or of items, without a request saying so.

    Attributes:
      key: Field of an event that names the user or the item.
      fields: Fields of an event whose last value counts.
      table: The key and further columns, from a side table; None without one.
    """

    key: str
    fields: tuple[str, ...]
    table: pl.DataFrame | None = None


@dataclasses.dataclass(frozen=True)
class EventLog:
    """Raw events in log order.

    Attributes:
      list: The history list they belong to, or the name events are sent under where `lists` are made of them.
      frame: "user" (text), "time" (int64 seconds), the list's features and what else counters need, raw values.
      counters: Counted over them.
      lists: Of a log whose events belong to several lists, or to none; empty: all belong to `list`.
      mapping: Of an own log, what its columns mean, as JSON; None for others.
      known: Of an own log, of "user" and "item".
    """

    list: str
    frame: pl.DataFrame
    counters: tuple[ServedCounter, ...]
    lists: Mapping[str, ServedList] = dataclasses.field(default_factory=dict)
    mapping: Mapping[str, Any] | None = None
    known: Mapping[str, Known] = dataclasses.field(default_factory=dict)
