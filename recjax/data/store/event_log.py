"""What a data set tells serving: its raw events, and which causal counters are counted over them.

A data module that has it defines `event_log(prepared, source="") -> EventLog`; exporting a run then puts a snapshot
of counters and histories into the artifact, and the service keeps both up to date from the events it is sent.
"""

import dataclasses

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
    """

    features: tuple[str, str]
    request: tuple[str, ...]
    event: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class EventLog:
    """Raw events in log order.

    Attributes:
      list: The history list they belong to.
      frame: "user" (text), "time" (int64 seconds), the list's features and what else counters need, raw values.
      counters: Counted over them.
    """

    list: str
    frame: pl.DataFrame
    counters: tuple[ServedCounter, ...]
