"""What NIF reads beside impressions: a moveline of scene events, next items as targets, negatives, stages apart in time.

    moveline   events whose carrier is a scene, strictly before the request (role moveline)
    next       the next positives from the request on, oldest first, repeats of one item merged (role target)
    uniform    items drawn uniformly, a few a row, which all rows of a batch share (role target)
    rejected   items shown in the request and not taken, at most `REJECTED` (role target)

Each of the last three carries the item's id fields and `<list>_share`, the item's share of the positives of stage 1, which
the correction of sampled negatives needs. Rows without targets (impressions of stage 2) have empty lists.

Stage 1 trains on what was clicked; where stage 2 trained on the same days, the generator would have memorised its labels. So
every split has a stage and a window of time, written into the data's identity under "stages", and the loader refuses data
whose stages overlap, whose rows lie outside their window, or whose targets pass its end (`recjax.data.loading.stages`).

Impressions are laid out in blocks of `BLOCK` rows of one user at different times (`user_blocks`), because TSP compares a user's
requests with each other: with `train.batch` a multiple of it the first epoch keeps them together (later ones
do where data.shuffle_seed is None).
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from recjax.data.store.histories import Timeline, build_timeline
from recjax.schema import Feature

LISTS = ("next", "uniform", "rejected")
UNIFORM = 4  # items drawn uniformly, a row
REJECTED = 4
BLOCK = 8  # rows of a user that lie together
HORIZON = 7 * 86_400  # seconds after its request within which a target lies

Fields = Mapping[str, str]  # name of an item's field -> id space


def features(fields: Fields) -> tuple[Feature, ...]:
    """The target lists' features."""
    return tuple(
        f
        for name in LISTS
        for f in (
            *(Feature(f"{name}_{k}", "target", s, list=name) for k, s in fields.items()),
            Feature(f"{name}_share", "target", list=name),
        )
    )


# ---- targets and negatives ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Items:
    """The catalogue, by item code.

    Attributes:
      ids: field -> id of each code, int32.
      share: Of the positives of stage 1, float32; sums to 1.
      drawn: Codes that may be drawn as uniform negatives.
    """

    ids: Mapping[str, np.ndarray]
    share: np.ndarray
    drawn: np.ndarray

    def columns(self, name: str, code: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of a target list's events, given their items."""
        out = {f"{name}_{k}": x[code] for k, x in self.ids.items()}
        return out | {f"{name}_share": self.share[code]}


def positives(
    items: Items, user: np.ndarray, time: np.ndarray, item: np.ndarray, users: int
) -> Timeline:
    """The timeline of `next`: positives [E] by time, then as given, consecutive repeats of one item merged."""
    order = np.lexsort((time, user))
    same = (np.diff(user[order], prepend=-1) == 0) & (np.diff(item[order], prepend=-1) == 0)
    kept = order[~same]
    return build_timeline(user[kept], time[kept], items.columns("next", item[kept]), users)


def upcoming(
    line: Timeline, user: np.ndarray, time: np.ndarray, until: int, horizon: int
) -> dict[str, np.ndarray]:
    """Columns next/end and next/count of rows [N]: what follows from their time on, before `until` and the horizon."""
    first, _ = line.cutoffs(user, time)
    end, _ = line.cutoffs(user, np.maximum(np.minimum(time + horizon, until), time))
    return {"next/end": end, "next/count": (end - first).astype(np.int32)}


def uniform(
    items: Items, rng: np.random.Generator, rows: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(events of `uniform`, its end and count): `UNIFORM` of their own for every row."""
    code = rng.choice(items.drawn, rows * UNIFORM)
    end = UNIFORM * np.arange(1, rows + 1, dtype=np.int64)
    events = {"time": np.zeros(len(code), np.int64), **items.columns("uniform", code)}
    return events, {"uniform/end": end, "uniform/count": np.full(rows, UNIFORM, np.int32)}


def rejected(
    items: Items, row: np.ndarray, code: np.ndarray, rows: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(events of `rejected`, its end and count): items `code` [E], shown beside `row` [E] and not taken."""
    order = np.argsort(row, kind="stable")
    row, code = row[order], code[order]
    nth = np.arange(len(row)) - np.searchsorted(row, row)
    row, code = row[nth < REJECTED], code[nth < REJECTED]
    count = np.bincount(row, minlength=rows).astype(np.int32)
    events = {"time": np.zeros(len(code), np.int64), **items.columns("rejected", code)}
    return events, {"rejected/end": np.cumsum(count).astype(np.int64), "rejected/count": count}


def joined(
    parts: Mapping[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]], name: str
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """One timeline of several splits' events of a list, and each split's columns moved to their place in it."""
    columns, before, events = {}, 0, []
    for split, (own, cut) in parts.items():
        columns[split] = {k: v + before if k.endswith("/end") else v for k, v in cut.items()}
        before += len(own["time"])
        events.append(own)
    return {k: np.concatenate([e[k] for e in events]) for k in events[0]}, columns


def nothing(rows: int) -> dict[str, np.ndarray]:
    """The target lists of rows without targets."""
    out: dict[str, np.ndarray] = {}
    for name in LISTS:
        out |= {f"{name}/end": np.zeros(rows, np.int64), f"{name}/count": np.zeros(rows, np.int32)}
    return out


def reading(
    ahead: Timeline,
    user: np.ndarray,
    time: np.ndarray,
    until: int,
    drawn: dict[str, np.ndarray] | None,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """In which order rows are read, and what they are to predict.

    Args:
      ahead: From `positives`.
      user, time: Of the rows, [N].
      until: End of the window.
      drawn: Columns of the drawn lists; None for rows without targets, which are read in blocks of a user.
      rng: Of the order.
    """  # fmt: skip
    if drawn is None:
        return {"request": user_blocks(user, time, rng)} | nothing(len(user))
    order = {"request": rng.permutation(len(user))}  # a batch's targets: of many users
    return order | upcoming(ahead, user, time, until, HORIZON) | drawn


def user_blocks(
    user: np.ndarray, time: np.ndarray, rng: np.random.Generator, size: int = BLOCK
) -> np.ndarray:
    """Number of the block each row lies in [N], in random order: `size` rows of a user, of successive requests.

    A user's rows are dealt like cards: the first row of each request in time, then the second ones, ...
    """
    order = np.lexsort((time, user))
    new = np.r_[True, (np.diff(user[order]) != 0) | (np.diff(time[order]) != 0)]
    starts = np.flatnonzero(new)
    nth = np.empty(len(user), np.int64)
    nth[order] = np.arange(len(user)) - starts[np.cumsum(new) - 1]
    order = np.lexsort((time, nth, user))
    first = np.searchsorted(user[order], user[order])
    place = np.arange(len(user)) - first
    new = np.r_[True, (np.diff(user[order]) != 0) | (np.diff(place // size) != 0)]
    number = np.cumsum(new) - 1
    out = np.empty(len(user), np.int64)
    out[order] = rng.permutation(number[-1] + 1)[number]
    return out


# ---- stages ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Window:
    """When a split's rows lie, [begin, end) in seconds, and what it is for: 1 the generator, 2 the CTR model, 3 judging."""

    stage: int
    begin: int
    end: int
