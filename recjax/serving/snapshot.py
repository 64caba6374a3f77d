"""The part of an artifact that ages: causal counters and histories as of one time."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import polars as pl

from recjax.data.store.event_log import EventLog, ServedCounter
from recjax.schema import Schema
from recjax.serving import files
from recjax.serving.counters import Counter, Counters
from recjax.serving.events import Past


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
    about = {"until": last, "list": log.list, "counters": [dataclasses.asdict(s) for s in specs]}
    if log.list in schema.lists:
        fields = [f.name for f in schema.features if f.list == log.list]
        length = batch["mask"][log.list].shape[1]
        past = log.frame.filter(pl.col("time") <= last).select("user", "time", *fields)
        past = past.sort("user", "time", maintain_order=True)
        past = past.filter(pl.int_range(pl.len()).reverse().over("user") < length)
        about["past"] = out.frame("snapshot/past.parquet", past)
    return about


def read(path: pathlib.Path, about: Mapping[str, Any] | None) -> dict[str, Any]:
    """`counters` and `past` of an artifact; {} when it has no snapshot."""
    if about is None:
        return {}
    made, specs = [], []
    for i, spec in enumerate(about["counters"]):
        specs.append(ServedCounter(**{k: tuple(v) for k, v in spec.items()}))
        made.append(Counter(**files.read_arrays(path / f"snapshot/counter_{i}.npz")))
    past = {}
    if "past" in about:
        past[about["list"]] = Past(files.read_frame(path / about["past"]), about["until"])
    return {"counters": Counters(specs, made, about["list"], about["until"]), "past": past}
