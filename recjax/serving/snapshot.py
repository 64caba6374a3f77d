"""The part of an artifact that ages: causal counters and histories as of one time; of an own log also what is known of users
and items, and the mapping that says what its requests and events mean (`recjax.serving.own_log`).
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import polars as pl

from recjax.data.store.event_log import EventLog, Known, ServedCounter, ServedList
from recjax.schema import Schema
from recjax.serving import files
from recjax.serving.counters import Counter, Counters
from recjax.serving.events import Past
from recjax.serving.own_log import OwnLog


def write(
    out: files.Writer, schema: Schema, batch: Any, log: EventLog, until: int | None
) -> dict[str, Any]:
    """Writes counters over the events up to `until` and as many of each user's last events as the model reads.

    Returns:
      What the manifest says of it.
    """
    times = log.frame["time"].to_numpy()
    last = int(times.max(initial=0)) if until is None else until
    inputs = {f.name for f in schema.features}
    specs = [s for s in log.counters if inputs.intersection(s.features)]
    counters = Counters.snapshot(specs, log.frame, log.list, last)
    for i, arrays in enumerate(counters.arrays().values()):
        out.arrays(f"snapshot/counter_{i}.npz", arrays)
    about: dict[str, Any] = {
        "until": last,
        "list": log.list,
        "counters": [dataclasses.asdict(s) for s in specs],
    }
    past = log.frame.filter(pl.col("time") <= last)
    about["lists"] = {}
    for i, (name, made) in enumerate(_lists(schema, log).items()):
        length = batch["mask"][name].shape[1]
        frame = _last_events(past, made, length)
        about["lists"][name] = out.frame(f"snapshot/past_{i}.parquet", frame)
    if log.mapping is not None:
        known = {side: _known(past, k) for side, k in log.known.items()}
        needs = OwnLog(log.mapping, known, schema).needs()
        files_of = {s: out.frame(f"snapshot/{s}.parquet", f) for s, f in known.items()}
        about["own"] = {"mapping": dict(log.mapping), "known": files_of, "needs": needs}
    return about


def _lists(schema: Schema, log: EventLog) -> dict[str, ServedList]:
    """The lists that the model reads."""
    fields = {f.name: f.name for f in schema.features if f.list == log.list}
    lists = log.lists or {log.list: ServedList(fields)}
    out = {}
    for name in schema.lists:
        if name in lists:
            read = [f.name for f in schema.features if f.list == name]
            out[name] = ServedList({n: lists[name].fields[n] for n in read}, lists[name].where)
    return out


def _last_events(past: pl.DataFrame, made: ServedList, length: int) -> pl.DataFrame:
    columns = [pl.col(field).alias(name) for name, field in made.fields.items()]
    events = (past.filter(pl.col(made.where)) if made.where else past).select("user", "time", *columns)  # fmt: skip
    events = events.sort("user", "time", maintain_order=True)
    return events.filter(pl.int_range(pl.len()).reverse().over("user") < length)


def _known(past: pl.DataFrame, known: Known) -> pl.DataFrame:
    """The last values of every user (or item), and what the side table says."""
    last = past.select(known.key, *known.fields).unique(known.key, keep="last", maintain_order=True)
    if known.table is None:
        return last
    return last.join(known.table, on=known.key, how="full", coalesce=True, maintain_order="left_right")  # fmt: skip


def read(path: pathlib.Path, about: Mapping[str, Any] | None) -> dict[str, Any]:
    """`counters`, `past` and `own` of an artifact; {} when it has no snapshot."""
    if about is None:
        return {}
    made, specs = [], []
    spec: dict[str, Any]
    for i, spec in enumerate(about["counters"]):
        keys: Any = {k: tuple(v) for k, v in spec.items() if k != "where"}
        specs.append(ServedCounter(**keys, where=spec.get("where", "")))
        made.append(Counter(**files.read_arrays(path / f"snapshot/counter_{i}.npz")))
    past = {n: Past(files.read_frame(path / f), about["until"]) for n, f in _past(about).items()}
    own = dict(about["own"]) if "own" in about else None
    if own:
        frames = {s: files.read_frame(path / f) for s, f in own["known"].items()}
        own = {"mapping": own["mapping"], "known": frames}
    counters = Counters(specs, made, about["list"], about["until"])
    return {"counters": counters, "past": past, "own": own}


def _past(about: Mapping[str, Any]) -> dict[str, str]:
    """List -> file; artifacts of earlier versions have one at most."""
    return about.get("lists", {about["list"]: about["past"]} if "past" in about else {})
