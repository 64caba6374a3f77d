"""The Complete Journey with movelines: what a household did in which scene, for NIF and AMEN.

    python -m recjax.train --config=experiments/nif_complete_journey.py --workdir=runs/nif

Opportunities, labels, negatives, counters and histories are those of `recjax.data.sets.complete_journey`, row for row, but training is
cut in two by time, because NIF's generator must not have seen the labels that its CTR model learns from (`recjax.data.store.movelines`):

    stage 1   weeks 1-34 train_flow, 35-36 validation_flow; train_early, train_early_matched: impressions of weeks 1-36
    stage 2   weeks 37-47 train, train_matched: nearly all of the latest 300,000 training opportunities
    judging   weeks 48-49 validation(_matched), from 50 test(_matched), test_flow

A flow's row is one matched opportunity of each visit; its targets are the purchases from the visit on, for seven days.

Scenes. The log has no app, so the carriers are the places of a shopping trip: the store (action "visit"), each department of the
basket, each display and mailer place that a bought product had ("buy"), the type of a campaign a household got ("receive", on its
first day) and of one whose coupon it used ("redeem", from the next day on, for the log gives the day alone). An event also has
the category and product of its first purchase, and how many products there were, in powers of two, in place of a dwell time.
"""

from collections.abc import Mapping
import dataclasses
import functools
import os
import pathlib
from typing import Any

from absl import logging
import numpy as np
import polars as pl

from recjax.data.sets import complete_journey
from recjax.data.sets.complete_journey import WEEKS, Encoders
from recjax.data.sets.complete_journey_log import FILES, PRODUCT_BITS, Log, locate, read_log
from recjax.data.sets.exposures import Opportunities, draw, opportunities
from recjax.data.store import histories, movelines
from recjax.data.store.prepared import is_prepared, prepared_path, say_prepared
from recjax.data.store.vocabulary import Vocabulary, frames
from recjax.data.store.writing import BLOCK_SIZE, write_prepared
from recjax.schema import Feature, Schema

NAME, VERSION = "complete_journey_movelines", "1.1.0"
ITEM = {c: c for c in ("product", "category", "type", "department")}
ACTIONS = ("visit", "buy", "receive", "redeem")
SIZES = 16  # powers of two
NO_PLACE = "0"  # of displays and mailers
# split -> (stage, first week, last week, the protocol's split whose rows it takes)
PARTS = {
    "train_flow": (1, 1, 34, "train_matched"),
    "validation_flow": (1, 35, 36, "train_matched"),
    "train_early": (1, 1, 36, "train"),
    "train_early_matched": (1, 1, 36, "train_matched"),
    "train": (2, 37, 47, "train"),
    "train_matched": (2, 37, 47, "train_matched"),
    "validation": (3, *WEEKS["validation"], "validation"),
    "validation_matched": (3, *WEEKS["validation"], "validation_matched"),
    "test": (3, *WEEKS["test"], "test"),
    "test_matched": (3, *WEEKS["test"], "test_matched"),
    "test_flow": (3, *WEEKS["test"], "test_matched"),
}

# ---- movelines ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Events:
    """Scene events: household code, seconds, scene code, action, first purchase (row of the log, -1: none), products."""

    household: np.ndarray
    time: np.ndarray
    scene: np.ndarray
    action: np.ndarray
    purchase: np.ndarray
    count: np.ndarray

    @classmethod
    def joined(cls, parts: list["Events"]) -> "Events":
        fields = [f.name for f in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(p, f) for p in parts]) for f in fields))


def codes(values: pl.Series) -> tuple[list[str], np.ndarray]:
    """(names, code of each value); null is a name of its own."""
    text = values.cast(pl.String).fill_null("none")
    names = text.unique().sort()
    return names.to_list(), text.cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64)


def visit_scenes(log: Log, o: Opportunities) -> tuple[list[str], list[Events]]:
    """Names of the scenes of visits, and their events; a scene's code is its place among the names."""
    p = log.purchases
    order = np.argsort(o.visits["basket"])
    visit = order[np.searchsorted(o.visits["basket"], p["basket"], sorter=order)]
    departments, department = codes(log.sides["department"])
    places = promoted_places(log, o, visit)
    names: list[str] = []
    events = []
    kinds: dict[str, tuple[list[str], np.ndarray]] = {
        "store": ([str(x) for x in log.values["store"]], p["store"]),
        "department": (departments, department[p["product"]]),
        **places,
    }
    for kind, (own, code) in kinds.items():
        seen = np.flatnonzero(code >= 0)
        both, first, count = np.unique(
            visit[seen] * len(own) + code[seen], return_index=True, return_counts=True
        )
        who, scene = np.divmod(both, len(own))
        shopping = kind != "store"
        events.append(
            Events(
                o.visits["household"][who],
                o.visits["time"][who],
                len(names) + scene,
                np.full(len(who), ACTIONS.index("buy" if shopping else "visit")),
                seen[first] if shopping else np.full(len(who), -1),
                count,
            )
        )
        names += [f"{kind}:{x}" for x in own]
    return names, events


def promoted_places(log: Log, o: Opportunities, visit: np.ndarray) -> dict:
    """ "display" and "mailer" -> (letters, code of each purchase's place, -1 where it had none)."""
    groups = np.repeat(np.arange(len(o.start) - 1), np.diff(o.start))
    place = (groups << PRODUCT_BITS) | o.product
    wanted = (o.visits["group"][visit] << PRODUCT_BITS) | log.purchases["product"]
    at = np.minimum(np.searchsorted(place, wanted), len(place) - 1)
    out = {}
    for kind, column in (("display", o.display), ("mailer", o.mailer)):
        letters = log.letters[kind].to_list()
        code = np.where(place[at] == wanted, column[at].astype(np.int64), -1)
        empty = letters.index(NO_PLACE) if NO_PLACE in letters else -1
        out[kind] = letters, np.where(code == empty, -1, code)
    return out


def campaign_scenes(folder: pathlib.Path, log: Log, before: int) -> tuple[list[str], list[Events]]:
    """Campaigns received and coupons used; codes begin at `before`."""
    campaigns = pl.read_parquet(folder / "campaign_descriptions.parquet")
    kinds = campaigns["campaign_type"].unique().sort().to_list()
    names = [f"{k}:{t}" for k in ("campaign", "coupon") for t in kinds]
    got = pl.read_parquet(folder / "campaigns.parquet").join(campaigns, on="campaign_id")
    used = pl.read_parquet(folder / "coupon_redemptions.parquet").join(campaigns, on="campaign_id")
    known = log.values["household"]
    out = []
    for i, (frame, column, action, later) in enumerate(
        ((got, "start_date", "receive", 0), (used, "redemption_date", "redeem", 86_400))
    ):
        frame = frame.filter(pl.col("household_id").is_in(pl.Series(known).implode()))
        time = frame[column].dt.epoch("s").to_numpy() + later
        kind = np.array([kinds.index(t) for t in frame["campaign_type"]], np.int64)
        n = len(time)
        out.append(
            Events(
                np.searchsorted(known, frame["household_id"].to_numpy()),
                time,
                before + i * len(kinds) + kind,
                np.full(n, ACTIONS.index(action)),
                np.full(n, -1),
                np.ones(n, np.int64),
            )
        )
    return names, out


@dataclasses.dataclass(frozen=True)
class Line:
    """The moveline, ready to be cut.

    Attributes:
      vocabularies: Of scene, action and size.
      timelines: One, of all households.
      store, department: Scene id of each store code, and of each product code's department.
    """

    vocabularies: Mapping[str, Vocabulary]
    timelines: list[histories.Timeline]
    store: np.ndarray
    department: np.ndarray


def moveline(folder: pathlib.Path, log: Log, o: Opportunities, e: Encoders, until: int) -> Line:
    """Scene events of all households; the scene vocabulary is of those before `until`, seconds."""
    names, events = visit_scenes(log, o)
    more, campaigns = campaign_scenes(folder, log, len(names))
    names += more
    x = Events.joined(events + campaigns)
    seen = np.bincount(x.scene[x.time < until], minlength=len(names))
    v = {
        "scene": Vocabulary.build("scene", pl.Series(names), 1, pl.Series(seen)),
        "action": Vocabulary.build("action", pl.Series(ACTIONS)),
        "size": Vocabulary.build("size", pl.Series(range(SIZES))),
    }
    ids = v["scene"].encode(pl.Series(names))
    bought = np.where(x.purchase >= 0, log.purchases["product"][x.purchase], 0)
    power = np.minimum(np.log2(x.count).astype(np.int64), SIZES - 1)
    fields = {
        "event_scene": ids[x.scene],
        "event_action": v["action"].encode(pl.Series(ACTIONS))[x.action],
        "event_size": v["size"].encode(pl.Series(range(SIZES)))[power],
    }
    for c in ("category", "product"):
        fields[f"event_{c}"] = np.where(x.purchase >= 0, e.ids[c][bought], 0)
    line = histories.build_timelines(x.household, x.time, fields, len(log.values["household"]))
    departments, department = codes(log.sides["department"])
    first = names.index(f"department:{departments[0]}")
    return Line(v, line, ids[: len(log.values["store"])], ids[first + department])


# ---- splits ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class World:
    """Everything that a split's columns are made of."""

    log: Log
    opportunities: Opportunities
    encoders: Encoders
    line: Line
    items: movelines.Items
    ahead: histories.Timeline
    seed: int

    def columns(self, rows, window: movelines.Window, name: str, targets) -> dict[str, np.ndarray]:
        """Of a split's rows (opportunities, labels); `targets`: columns of its drawn lists, None for impressions."""
        kept, label = rows
        out = complete_journey.impressions(self.opportunities, self.encoders, kept, label)
        visit, promotion = self.opportunities.locate(kept)
        codes = {c: self.opportunities.visits[c][visit] for c in ("household", "store", "time")}
        household, time = codes["household"], codes["time"]
        moved = histories.cutoffs(self.line.timelines, household, time)
        rng = np.random.default_rng([self.seed, *name.encode()])
        out |= {
            "moveline/end": moved["end"],
            "moveline/count": moved["count"],
            "scene": self.line.store[codes["store"]],
            "department_scene": self.line.department[self.opportunities.product[promotion]],
            "second": time - int(self.opportunities.visits["time"].min()),
            "cutoff": moved["count"],
        }
        return out | movelines.reading(self.ahead, household, time, window.end, targets, rng)


def cut(
    o: Opportunities, drawn: Mapping[str, tuple[np.ndarray, np.ndarray]], seed: int
) -> tuple[dict[str, tuple], dict[str, movelines.Window]]:
    """(rows, window) of every split that `drawn` has rows for.

    Weeks end after midnight, so a stage's rows that come after the first visit of the next stage are left out.
    """
    week, moment = o.visits["week"], o.visits["time"]
    begins = {
        stage: int(moment[week >= first].min(initial=np.iinfo(np.int64).max))
        for stage, first in ((1, 1), (2, 37), (3, WEEKS["validation"][0]))
    } | {4: int(moment.max()) + 1}
    rows, windows = {}, {}
    for split, (stage, first, last, source) in PARTS.items():
        if source not in drawn:
            continue
        kept, label = drawn[source]
        visit = o.locate(kept)[0]
        mine = (week[visit] >= first) & (week[visit] <= last) & (moment[visit] < begins[stage + 1])
        mine &= moment[visit] >= begins[stage]
        at = np.flatnonzero(mine)
        if split.endswith("flow"):
            at = np.random.default_rng([seed, 1]).permutation(at)
            at = np.sort(at[np.unique(visit[at], return_index=True)[1]])
        if not len(at):
            logging.warning("there is no opportunity for split %s", split)
            continue
        end = begins[stage + 1]
        if split == "train_flow":  # its targets must not be the validation's visits
            end = min(end, int(moment[week >= PARTS["validation_flow"][1]].min(initial=end)))
            at = at[moment[visit[at]] < end]
        rows[split] = kept[at], label[at]
        windows[split] = movelines.Window(stage, begins[stage], end)
    return rows, windows


def unbought(o: Opportunities, rows, drawn) -> tuple[np.ndarray, np.ndarray]:
    """(place in rows, product code) of the drawn negatives of the rows' visits."""
    kept, label = drawn
    visit, promotion = o.locate(kept[~label])
    of = o.locate(rows[0])[0]
    order = np.argsort(of)
    found = order[np.minimum(np.searchsorted(of[order], visit), len(of) - 1)]
    beside = of[found] == visit
    return found[beside], o.product[promotion[beside]]


def target_lists(
    o: Opportunities, items: movelines.Items, rows, drawn, seed: int
) -> tuple[dict[str, dict], dict[str, dict]]:
    """(timelines of the drawn negatives, their columns by split) of the flow's splits."""
    flows = {s: r for s, r in rows.items() if s.endswith("flow")}
    rng = np.random.default_rng([seed, 2])
    made = {
        "uniform": {s: movelines.uniform(items, rng, len(r[0])) for s, r in flows.items()},
        "rejected": {
            s: movelines.rejected(items, *unbought(o, r, drawn[PARTS[s][3]]), len(r[0]))
            for s, r in flows.items()
        },
    }
    lists, columns = {}, {s: {} for s in flows}
    for name, parts in made.items():
        lists[name], more = movelines.joined(parts, name)
        for split, own in more.items():
            columns[split] |= own
    return lists, columns


def targets_ahead(log: Log, items: movelines.Items, seed: int) -> histories.Timeline:
    """What the flow is to predict: purchases in time, those of one visit in random order.

    The log has a visit's products in the order of their numbers, which is nobody's intent.
    """
    p = log.purchases
    drawn = np.random.default_rng([seed, 3]).permutation(len(p["time"]))
    household, time, product = (p[c][drawn] for c in ("household", "time", "product"))
    return movelines.positives(items, household, time, product, len(log.values["household"]))


def catalogue(log: Log, e: Encoders, until: int) -> movelines.Items:
    """All products, and their share of the purchases before `until`, seconds."""
    p = log.purchases
    n = len(log.values["product"])
    counts = np.bincount(p["product"][p["time"] < until], minlength=n)
    admitted = np.flatnonzero(e.ids["product"] >= 3)
    share = (counts / max(counts.sum(), 1)).astype(np.float32)
    return movelines.Items({c: e.ids[c] for c in ITEM}, share, admitted)


def make_schema(vocabularies: Mapping[str, Vocabulary]) -> Schema:
    """The protocol's features, scenes of the request and of the candidate, the moveline and the target lists."""
    base = complete_journey.make_schema(vocabularies)
    own = ("scene", "action", "category", "size", "product")
    more = (
        Feature("scene", "context", "scene"),
        Feature("department_scene", "candidate", "scene"),
        *(Feature(f"event_{c}", "moveline", c, list="moveline") for c in own),
        *movelines.features(ITEM),
    )
    groups = (*base.groups, "second", "cutoff")
    return dataclasses.replace(base, features=(*base.features, *more), groups=groups)


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    rate: str = "1:4",
    seed: int = 0,
    min_count: int = 5,
    limit_households: int = 0,
    overlap: bool = False,
    block_size: int = BLOCK_SIZE,
) -> pathlib.Path:
    """Prepares the data set and returns its directory; does nothing when these options were prepared before.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Folder with the parquet files; "" finds the installed wheel.
      rate, seed, min_count, limit_households: As in `recjax.data.sets.complete_journey`.
      overlap: Stage 1 goes on through stage 2's weeks: the ablation that measures the leak.
      block_size: Impressions per record.
    """
    folder = locate(source)
    sizes = {name: (folder / f"{name}.parquet").stat().st_size for name in FILES}
    options = dict(rate=rate, min_count=min_count, limit_households=limit_households)
    options |= dict(overlap=overlap, source=sizes)
    layout = dict(block_size=block_size, unit="request", seed=seed)
    path = prepared_path(out_dir, NAME, options | layout, VERSION)
    if is_prepared(path):
        say_prepared(NAME, path)
        return path
    log = read_log(folder, None, limit_households)
    o = opportunities(log)
    log = dataclasses.replace(log, promotions=log.promotions[:0])
    e = complete_journey.encoders(log, o, min_count, 1)
    drawn, keep = draw(log, o, WEEKS, rate, seed)
    rows, windows = cut(o, drawn, seed)
    if overlap:
        windows["train_flow"] = dataclasses.replace(
            windows["train_flow"], end=windows["train_matched"].end
        )
    until = windows["train_flow"].end
    line = moveline(folder, log, o, e, windows["train_matched"].end)
    e = dataclasses.replace(e, vocabularies={**e.vocabularies, **line.vocabularies})
    items = catalogue(log, e, until)
    ahead = targets_ahead(log, items, seed)
    lists, targets = target_lists(o, items, rows, drawn, seed)
    world = World(log, o, e, line, items, ahead, seed)
    timelines: dict[str, Any] = {"history": [t.columns for t in e.timelines]}
    timelines |= {"moveline": [t.columns for t in line.timelines], "next": [ahead.columns]}
    report = complete_journey.make_report(log, o, e, drawn, keep)
    report |= {
        "scenes": len(line.vocabularies["scene"].values),
        "moveline_events": len(line.timelines[0].keys),
    }
    return write_prepared(
        out_dir,
        NAME,
        make_schema(e.vocabularies),
        timelines | {k: [v] for k, v in lists.items()},
        {
            s: functools.partial(world.columns, r, windows[s], s, targets.get(s))
            for s, r in rows.items()
        },
        vocab=frames(e.vocabularies),
        report=report,
        facts={
            "counters": [c for counter in complete_journey.COUNTERS for c in counter.columns],
            "keep": {s: keep[PARTS[s][3]] for s in rows},
            "sampling": {s: complete_journey.sampling(PARTS[s][3]) for s in rows},
            "stages": {s: dataclasses.asdict(w) for s, w in windows.items()},
            "overlap": overlap,
        },
        options=options,
        version=VERSION,
        **layout,
    )
