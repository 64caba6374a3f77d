"""What a log is like, said before anything trains on it: sizes, rates, cold start, bad rows, leaks.

A *probe* predicts the label from one column alone, on training impressions: by its size, by whether it is missing, and for
ids by the mean label of the value among the other half of the rows. An AUC above 0.95 is hardly ever knowledge; mostly the
column was written after the outcome.
"""

from collections.abc import Iterable, Mapping
import difflib
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from recjax.data.logs.events import Events, Places
from recjax.data.logs.features import Encoded, Field
from recjax.data.logs.mapping import POSITIVE, LogMapping
from recjax.data.logs.notes import Note
from recjax.data.logs.rows import FILE, MOMENT, WEIGHT, RawLog, describe
from recjax.data.logs.sources import ROW
from recjax.data.logs.values import is_any
from recjax.data.store import histories
from recjax.data.store.prepared import DataError

MUCH = 0.2  # share of rows whose loss is warned of
LOSSES = ("number", "below", "vector", "width")  # kinds of notes of cells that could not be read
SUSPICIOUS = 0.95  # single-column AUC
PROBED = 200_000  # training impressions a probe looks at
MIN_CLASS = 20  # fewer of either label say nothing
SHOWN_DAYS, SHOWN_SCENES = 400, 50
DAY = 86_400


def make_report(
    log: RawLog, e: Events, x: Encoded, places: Mapping[str, Places], found: Mapping[str, Any]
) -> dict[str, Any]:
    """What was found and kept; plain JSON.

    Args:
      log: As read.
      e: Its events.
      x: Its features.
      places: split -> impressions.
      found: What drawing negatives met.
    """
    reasons = log.bad.group_by("reason").len().sort("reason")
    probes = probe(e, x, places["train"])
    return {
        "rows": log.read,
        "events": len(e.item),
        "notes": [n.plain() for n in log.notes],
        "as_of": str(e.mapping.as_of),
        "users": len(e.users),
        "items": len(e.items),
        "from": date(e.time.min()),
        "until": date(e.time.max()),
        "train_until": int(e.asked[e.trained].max()),
        "quarantined": dict(reasons.iter_rows()),
        "quarantined_where": describe(log.bad).splitlines(),
        "duplicates": int((log.bad["reason"] == "duplicate").sum()),
        "out_of_order": log.out_of_order,
        "nulls": {c: n for c, n in _nulls(log.rows).items() if n},
        "by_day": _rates(e, pl.Series("day", (e.time + _offset(e)) // DAY), SHOWN_DAYS),
        "by_scene": _rates(e, e.rows[e.mapping.scene].alias("scene"), SHOWN_SCENES)
        if e.mapping.scene
        else {},
        "splits": {
            name: _split_report(e, x, at, found.get(name, {})) for name, at in places.items()
        },
        "catalogue": found.get("catalogue"),
        "cold_start": {name: cold_start(e, at) for name, at in places.items() if name != "train"},
        "vocabularies": {name: len(v.values) for name, v in x.vocabularies.items()},
        "probes": probes,
        "suspicious": [c for c, auc in probes.items() if auc > SUSPICIOUS],
    }


def _offset(e: Events) -> int:
    return round(e.mapping.utc_offset * 3600)


def date(seconds: int) -> str:
    return str(np.datetime64(int(seconds), "s"))


def _nulls(rows: pl.DataFrame) -> dict[str, int]:
    return {
        c: int(rows[c].null_count()) for c in rows.columns if c not in (MOMENT, FILE, ROW, WEIGHT)
    }


def _rates(e: Events, key: pl.Series, shown: int) -> dict[str, dict[str, float]]:
    """Rows and mean labels by day or scene; of days the last ones, of scenes the largest."""
    frame = pl.DataFrame({"key": key, **{f"={c}": y for c, y in e.labels.items()}})
    by = frame.group_by("key").agg(pl.len().alias("rows"), pl.col("^=.*$").mean())
    day = key.name == "day"
    by = by.sort("key").tail(shown) if day else by.sort("rows", descending=True).head(shown)
    name = (lambda k: str(np.datetime64(int(k), "D"))) if day else str
    return {
        name(r.pop("key")): {c.removeprefix("="): v for c, v in r.items()}
        for r in by.iter_rows(named=True)
    }


def _split_report(e: Events, x: Encoded, at: Places, found: Mapping[str, Any]) -> dict[str, Any]:
    first = next(iter(x.timelines.values()))
    length = histories.cutoffs(first, e.user[at.row], e.asked[at.row])["count"]
    label = next(iter(e.labels.values()))
    return {
        "rows": len(at.row),
        "requests": len(np.unique(e.request[at.row])),
        "users": len(np.unique(e.user[at.row])),
        "items": len(np.unique(at.item)),
        "label_rate": float(np.where(at.positive, label[at.row], 0).mean()),
        "label_rates": {
            c: float(np.where(at.positive, y[at.row], 0).mean()) for c, y in e.labels.items()
        },
        "from": date(e.asked[at.row].min()),
        "until": date(e.asked[at.row].max()),
        "history_median": float(np.median(length)),
        "history_p90": float(np.quantile(length, 0.9)),
        "history_max": int(length.max()),
        "history_empty": float((length == 0).mean()),
        **found,
    }


def actions_of(e: Events) -> dict[str, int]:
    """action -> rows; {} without a column of actions."""
    if not e.mapping.action:
        return {}
    return dict(e.rows[e.mapping.action].cast(pl.String).drop_nulls().value_counts().iter_rows())


def never(m: LogMapping, actions: Mapping[str, int]) -> list[Note]:
    """Notes of action values that labels or lists name and the log lacks.

    Args:
      m: The mapping.
      actions: action -> rows, of the whole log.

    Raises:
      DataError: A label or a list would be empty, as none of its values occurs.
    """
    out = []
    named = {f"labels[{k!r}]": v for k, v in m.label_actions.items()}
    named |= {f"history[{k!r}]": v for k, v in m.history.items()}
    named |= {f"movelines[{k!r}]": v for k, v in m.movelines.items()}
    have = pl.Series(list(actions), dtype=pl.String)
    for name, values in named.items():
        absent = [v for v in values if not is_any(have, [v]).any()]
        if not absent:
            continue
        what = " and ".join(f"{v!r}{_near(v, actions)}" for v in absent)
        shown = ", ".join(sorted(actions, key=lambda a: -actions[a])[:20])
        if len(absent) == len(values):
            raise DataError(
                f"mapping: {name} names {what}, which {m.action!r} never is; it has {shown}"
            )
        out.append(Note("absent", name, 1, f"{what}, which {m.action!r} never is; it has {shown}"))
    return out


def _near(value: Any, actions: Iterable[str]) -> str:
    lower = {a.lower(): a for a in actions}
    found = difflib.get_close_matches(str(value).lower(), lower, n=1)
    return f" (did you mean {lower[found[0]]!r}?)" if found else ""


def refuse(report: Mapping[str, Any], m: LogMapping) -> None:
    """Raises DataError for a report of data that teach nothing: one label only in training."""
    name, rate = m.label_names[0], report["splits"]["train"]["label_rate"]
    if 0 < rate < 1:
        return
    if name in m.event_files:
        raise DataError(
            f"label {name!r} is {rate:.0f} in every training row: {m.event_files[name]} and the log share hardly a key; are "
            f"event_keys = {list(m.event_keys)!r} right?"
        )
    aside = sum(n for r, n in report["quarantined"].items() if r == "not a label in [0, 1]")
    if aside:
        remedy = (
            f"{aside:,} rows were set aside whose label is empty or cannot be read; if an empty cell means 0, set "
            "label_missing = 0"
        )
    elif m.sampled:
        remedy = "no negative could be drawn; the catalogue is too small for negatives_per_positive"
    else:
        remedy = "name another label, or let negatives be drawn with negatives = 'popular'"
    joined = "".join(f" ({n.text})" for n in map(_note, report["notes"]) if n.kind == "joined")
    raise DataError(f"label {name!r} is {rate:.0f} in every training row; {remedy}{joined}")


def _note(plain: list[Any]) -> Note:
    return Note(*plain)


def warnings_of(r: Mapping[str, Any]) -> list[str]:
    """What a reader of the report must not overlook."""
    notes = [_note(n) for n in r["notes"]]
    out = [n.text for n in notes if n.warning]
    lost = [n for n in notes if n.kind in LOSSES and n.count > MUCH * r["events"]]
    out += [f"{n.text}: more than a fifth of all; write the column in another way?" for n in lost]
    for side in ("user", "item"):
        if not r["vocabularies"].get(side, 1):
            out.append(
                f"no {side} occurs min_count times in training, so all are one; lower min_count"
            )
    future = r["quarantined"].get("in the future", 0)
    if future:
        until = f"as_of = {r['as_of']!r}" if r["as_of"] else "the year 2100"
        out.append(f"{future:,} rows lie after {until} and are set aside")
    aside = sum(r["quarantined"].values())
    if aside > MUCH * r["rows"]:
        worst = max(r["quarantined"], key=lambda k: r["quarantined"][k])
        out.append(
            f"{aside:,} of {r['rows']:,} rows are set aside, most for {worst!r}; correct the mapping if they should count"
        )
    for split, s in r["splits"].items():
        for label, rate in s["label_rates"].items():
            if rate in (0, 1) and label != POSITIVE:
                out.append(f"label {label!r} is {rate:.0f} in every row of {split}")
        lost = s.get("outside_catalogue", 0)
        positives = lost + s["label_rate"] * s["rows"]
        if lost > MUCH * positives:
            out.append(
                f"{lost:,} of {positives:,.0f} positives of {split} are left out: training never saw their items. Split later, "
                "or give more days to training"
            )
    for c in r["suspicious"]:
        out.append(
            f"{c!r} alone predicts the label with AUC {r['probes'][c]:.3f}; unless it is known before the request, take "
            "it out of the mapping"
        )
    return out


def cold_start(e: Events, at: Places) -> dict[str, float]:
    """Shares of a split's real rows whose user, and whose item, no training row knows."""
    rows = at.row[at.positive]
    if e.mapping.sampled:  # those of unknown items were left out of `at`
        rows = np.flatnonzero((e.split == e.split[rows[0]]) & e.positive)
    new = {}
    for what, code in (("users", e.user), ("items", e.item)):
        new[what] = float((~np.isin(code[rows], code[e.trained])).mean())
    return new


# ------------------------------------------------------------------------------------------- probes


def probe(e: Events, x: Encoded, at: Places) -> dict[str, float]:
    """Single-column AUC of every feature of the log, highest first; {} where one label is too rare to tell."""
    rng = np.random.default_rng(0)
    take = rng.permutation(len(at.row))[:PROBED]
    at = Places(*(getattr(at, c)[take] for c in ("row", "item", "source", "positive")))
    label = at.positive & (next(iter(e.labels.values()))[at.row] > 0)
    if min(label.sum(), (~label).sum()) < MIN_CLASS:
        return {}
    half = rng.random(len(label)) < 0.5
    aucs = {
        f.name: _probe_one(f, x.values[f.name], at.of(f.where, e), label, half) for f in x.fields
    }
    return dict(sorted(aucs.items(), key=lambda kv: -kv[1]))


def _probe_one(
    f: Field, values: np.ndarray, at: np.ndarray, label: np.ndarray, half: np.ndarray
) -> float:
    missing = np.append(f.values.is_null().to_numpy(), True)[at]
    column = values[at]
    best = undirected(missing, label)
    if f.kind == "multi":
        return best
    if f.kind == "id":
        return max(best, _id_auc(column, label, half))
    for x in column.reshape(len(column), -1).T:
        best = max(best, undirected(x, label))
    return best


def _id_auc(ids: np.ndarray, label: np.ndarray, half: np.ndarray) -> float:
    """AUC of each value's mean label among the other half of the rows."""
    _, code = np.unique(ids, return_inverse=True)
    scores = np.empty(len(ids))
    for mine in (half, ~half):
        n = np.bincount(code[~mine], minlength=code.max() + 1)
        positive = np.bincount(code[~mine], label[~mine], code.max() + 1)
        scores[mine] = ((positive + label.mean()) / (n + 1))[code[mine]]
    return float(np.mean([auc(scores[mine], label[mine]) for mine in (half, ~half)]))


def undirected(x: np.ndarray, label: np.ndarray) -> float:
    """AUC of a column or of its negative, whichever is larger."""
    a = auc(x, label)
    return max(a, 1 - a)


def auc(x: np.ndarray, label: np.ndarray) -> float:
    """Chance that a positive has the larger x, ties counting half; 0.5 with one class only."""
    positive = int(label.sum())
    negative = len(label) - positive
    if not positive or not negative:
        return 0.5
    ranks = stats.rankdata(x)[label].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


# --------------------------------------------------------------------------------------------- text


def report_text(report: Mapping[str, Any]) -> str:
    """A report in a few lines."""
    r = report
    lines = [
        f"{r['rows']:,} rows read, {r['events']:,} used: {r['users']:,} users, {r['items']:,} items, "
        f"{r['from']} to {r['until']}",
        f"bad rows: {r['quarantined'] or 'none'}; out of order: {r['out_of_order']:,} (sorted)",
        *r["quarantined_where"],
        f"nulls: {r['nulls'] or 'none'}",
        *(f"note: {n.text}" for n in map(_note, r["notes"]) if not n.warning),
    ]
    for split, s in r["splits"].items():
        lines.append(
            f"{split}: {s['rows']:,} rows, {s['requests']:,} requests, {s['users']:,} users, {s['items']:,} items, "
            f"label rate {s['label_rate']:.4f}, history median {s['history_median']:.0f}, max "
            f"{s['history_max']:,}, empty {s['history_empty']:.1%}"
        )
        if s.get("outside_catalogue") or s.get("negatives_short"):
            lines.append(
                f"  left out: {s['outside_catalogue']:,} positives of items training does not know; "
                f"negatives not found: {s['negatives_short']:,}"
            )
    for split, cold in r["cold_start"].items():
        lines.append(
            f"new in {split}: {cold['users']:.1%} of rows by user, {cold['items']:.1%} by item"
        )
    lines += _rates_text("day", r["by_day"]) + _rates_text("scene", r["by_scene"])
    top = ", ".join(f"{c} {a:.3f}" for c, a in list(r["probes"].items())[:5])
    lines.append(f"single-column AUC: {top or 'too few of one label to tell'}")
    lines += [f"WARNING: {text}" for text in warnings_of(r)]
    return "\n".join(lines)


def _rates_text(what: str, rates: Mapping[str, Mapping[str, float]], shown: int = 5) -> list[str]:
    """Extremes of the first label by day or scene."""
    if not rates:
        return []
    label = next(c for c in next(iter(rates.values())) if c != "rows")
    if all(v[label] == 1 for v in rates.values()):
        n = [v["rows"] for v in rates.values()]
        return [f"rows by {what}: {min(n):,} to {max(n):,} in {len(n):,} of them"]
    ranked = sorted(rates.items(), key=lambda kv: kv[1][label])
    if len(ranked) > 2 * shown:
        ranked = [*ranked[:shown], ("...", {}), *ranked[-shown:]]
    parts = [f"{k} {v[label]:.3f} of {v['rows']:,}" if v else k for k, v in ranked]
    return [f"{label} by {what}: {', '.join(parts)}"]
