"""The report of a log that was prepared in shards: each counts its own rows, and the counts are added.

The figures are those of `recjax.data.logs.report`, but for the probes, which look at the rows of one shard.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np
import polars as pl

from recjax.data.logs import report
from recjax.data.logs.events import Events, Places
from recjax.data.logs.features import Encoded
from recjax.data.logs.notes import Note
from recjax.data.logs.rows import FILE, MOMENT, PLACE, WEIGHT, describe
from recjax.data.logs.sources import ROW
from recjax.data.store import histories

IGNORED = (MOMENT, FILE, ROW, PLACE, WEIGHT)


def count_shard(
    e: Events, x: Encoded, places: Mapping[str, Places], found: Mapping[str, Any]
) -> dict[str, Any]:
    """What one shard adds to the report; plain JSON."""
    columns = [c for c in e.rows.columns if c not in IGNORED]
    days = (e.time + round(e.mapping.utc_offset * 3600)) // report.DAY
    scene = e.mapping.scene
    return {
        "events": len(e.item),
        "users": len(e.users),
        "times": [int(e.time.min()), int(e.time.max())],
        "train_until": int(e.asked[e.trained].max(initial=0)),
        "nulls": {c: int(e.rows[c].null_count()) for c in columns},
        "by_day": _sums(e, pl.Series(days)),
        "by_scene": _sums(e, e.rows[scene].cast(pl.String)) if scene else {},
        "splits": {n: _count_split(e, x, at, found.get(n, {})) for n, at in places.items()},
        "catalogue": found.get("catalogue"),
        "probes": _probe(e, x, places["train"]),
    }


def _probe(e: Events, x: Encoded, at: Places) -> dict[str, float]:
    """Probes of what these rows hold: with drawn negatives not of an item's last row, which any shard may have."""
    if not len(at.row):
        return {}
    fields = [f for f in x.fields if f.where != "source" or not e.mapping.sampled]
    return report.probe(e, dataclasses.replace(x, fields=fields), at)


def _sums(e: Events, key: pl.Series) -> dict[str, dict[str, float]]:
    frame = pl.DataFrame({"key": key, **{f"={c}": y for c, y in e.labels.items()}})
    by = frame.group_by("key").agg(pl.len().alias("rows"), pl.col("^=.*$").cast(pl.Float64).sum())
    return {
        str(r.pop("key")): {c.removeprefix("="): v for c, v in r.items()}
        for r in by.iter_rows(named=True)
    }


def _count_split(e: Events, x: Encoded, at: Places, found: Mapping[str, Any]) -> dict[str, Any]:
    if not len(at.row):
        return {"rows": 0, **found}
    first = next(iter(x.timelines.values()))
    length = histories.cutoffs(first, e.user[at.row], e.asked[at.row])["count"]
    lengths, counts = np.unique(length, return_counts=True)
    real = at.row[at.positive]
    if e.mapping.sampled:  # those of unknown items were left out of `at`
        real = np.flatnonzero((e.split == e.split[real[0]]) & e.positive)
    return {
        "rows": len(at.row),
        "requests": len(np.unique(e.request[at.row])),
        "users": len(np.unique(e.user[at.row])),
        "items": np.unique(at.item).tolist(),
        "labels": {
            c: float(np.where(at.positive, y[at.row], 0).sum()) for c, y in e.labels.items()
        },
        "times": [int(e.asked[at.row].min()), int(e.asked[at.row].max())],
        "lengths": [lengths.tolist(), counts.tolist()],
        "real": len(real),
        "new_users": int((~np.isin(e.user[real], e.user[e.trained])).sum()),
        "new_items": int((~e.whole.trained[e.item[real]]).sum()),
        **found,
    }


def merge(
    counted: Sequence[Mapping[str, Any]],
    bad: pl.DataFrame,
    read: int,
    out_of_order: int,
    items: int,
    vocabularies: Mapping[str, int],
    notes: Sequence[Note],
    as_of: str,
) -> dict[str, Any]:
    """The whole report from the shards' counts."""
    reasons = bad.group_by("reason").len().sort("reason")
    splits = {n: [c["splits"][n] for c in counted] for n in counted[0]["splits"]}
    probes = max((c["probes"] for c in counted), key=len)
    nulls = {c: sum(k["nulls"].get(c, 0) for k in counted) for c in counted[0]["nulls"]}
    day = lambda k: str(np.datetime64(int(k), "D"))  # noqa: E731
    return {
        "rows": read,
        "notes": [n.plain() for n in notes],
        "as_of": as_of,
        "events": sum(c["events"] for c in counted),
        "users": sum(c["users"] for c in counted),
        "items": items,
        "from": report.date(min(c["times"][0] for c in counted)),
        "until": report.date(max(c["times"][1] for c in counted)),
        "train_until": max(c["train_until"] for c in counted),
        "quarantined": dict(reasons.iter_rows()),
        "quarantined_where": describe(bad).splitlines(),
        "duplicates": int((bad["reason"] == "duplicate").sum()),
        "out_of_order": out_of_order,
        "nulls": {c: n for c, n in nulls.items() if n},
        "by_day": {
            day(k): v
            for k, v in sorted(
                _rates([c["by_day"] for c in counted]).items(), key=lambda kv: int(kv[0])
            )
        },
        "by_scene": _largest(_rates([c["by_scene"] for c in counted])),
        "splits": {n: _merge_split(parts) for n, parts in splits.items()},
        "catalogue": counted[0]["catalogue"],
        "cold_start": {n: _cold(parts) for n, parts in splits.items() if n != "train"},
        "vocabularies": dict(vocabularies),
        "probes": probes,
        "suspicious": [c for c, auc in probes.items() if auc > report.SUSPICIOUS],
    }


def _rates(shards: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    total: dict[str, dict[str, float]] = {}
    for shard in shards:
        for key, sums in shard.items():
            mine = total.setdefault(key, dict.fromkeys(sums, 0))
            for name, x in sums.items():
                mine[name] += x
    return {
        k: {n: x if n == "rows" else x / v["rows"] for n, x in v.items()} for k, v in total.items()
    }


def _largest(rates: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    ranked = sorted(rates.items(), key=lambda kv: -kv[1]["rows"])
    return dict(ranked[: report.SHOWN_SCENES])


def _merge_split(shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    parts = [s for s in shards if s["rows"]]
    lengths = np.concatenate([p["lengths"][0] for p in parts])
    counts = np.concatenate([p["lengths"][1] for p in parts])
    lengths, counts = lengths[np.argsort(lengths)], counts[np.argsort(lengths)]
    rows = sum(p["rows"] for p in parts)
    rates = {c: sum(p["labels"][c] for p in parts) / rows for c in parts[0]["labels"]}
    found = {
        k: sum(s.get(k, 0) for s in shards)
        for k in ("outside_catalogue", "negatives_short")
        if k in shards[0]
    }
    return {
        "rows": rows,
        "requests": sum(p["requests"] for p in parts),
        "users": sum(p["users"] for p in parts),
        "items": len(set().union(*(p["items"] for p in parts))),
        "label_rate": next(iter(rates.values())),
        "label_rates": rates,
        "from": report.date(min(p["times"][0] for p in parts)),
        "until": report.date(max(p["times"][1] for p in parts)),
        "history_median": _quantile(lengths, counts, 0.5),
        "history_p90": _quantile(lengths, counts, 0.9),
        "history_max": int(lengths[-1]),
        "history_empty": float(counts[lengths == 0].sum() / rows),
        **found,
    }


def _quantile(values: np.ndarray, counts: np.ndarray, q: float) -> float:
    """np.quantile of ascending values that occur so often."""
    ends = np.cumsum(counts)
    place = q * (ends[-1] - 1)
    low, high = (values[np.searchsorted(ends, f(place), side="right")] for f in (np.floor, np.ceil))
    return float(low + (high - low) * (place - np.floor(place)))


def _cold(shards: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    parts = [s for s in shards if s["rows"]]
    real = sum(p["real"] for p in parts)
    return {
        "users": sum(p["new_users"] for p in parts) / real,
        "items": sum(p["new_items"] for p in parts) / real,
    }
