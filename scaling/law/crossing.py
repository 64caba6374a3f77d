"""Which of two laws is better where, and the size at which they cross, with its interval.

Two systems that were measured at the same sizes have a law each. Their difference at a size has an interval made of both laws' own
(half-widths in quadrature, each on its side); the laws cross where the difference is nothing, and the interval of the crossing is
every size whose difference may be nothing (Fieller's construction: it may have no end, or be empty). Noise of the data's draws that
both systems share cancels in the difference and is not taken off: intervals are then wider than need be.
"""

from collections.abc import Sequence
import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from scaling.law import fit
from scaling.law.fit import LawFit, count
from scaling.plan.rows import Row, base_rows, on_ladder

Array = np.ndarray
REACH = 10.0  # how far beyond what both measured a crossing is looked for
POINTS = 241


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Two laws, and where they cross.

    Attributes:
      names: Of the two; `first` is the better one below the crossing, or everywhere where there is none.
      first, later: Better before, and better after; "" where that is never.
      at: Size of the crossing; None: there is none within `REACH` of what was measured.
      low, high: Sizes between which the difference may be nothing; None: there is no end on that side within reach.
      sure: Whether the difference is told from nothing anywhere within reach.
      measured: (smallest, largest) size that both measured.
    """

    names: tuple[str, str]
    first: str
    later: str
    at: float | None
    low: float | None
    high: float | None
    sure: bool
    measured: tuple[float, float]

    def sentence(self, axis: str) -> str:
        """In words, with what was only extrapolated said."""
        a, b = self.names
        if not self.sure:
            return f"{a} and {b}: this study does not tell them apart at any number of {axis}."
        if self.at is None:
            return f"{a} and {b}: {self.first} is expected to be the better one at every number of {axis} up to {count(REACH * self.measured[1])}."
        ends = " to ".join("no end" if v is None else count(v) for v in (self.low, self.high))
        smallest, largest = self.measured
        where = "" if smallest <= self.at <= largest else ", extrapolated"
        return f"{a} and {b}: {self.first} is better up to {count(self.at)} {axis} ({ends}{where}), then {self.later}."

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def cross(name: str, law: LawFit, other_name: str, other: LawFit) -> Crossing:
    """Where two laws of one axis and metric cross; of several crossings the last.

    Raises:
      ValueError: They are of different axes or metrics, or no size was measured by both.
    """
    same = (law.axis, law.metric, law.larger_is_better, law.level)
    if same != (other.axis, other.metric, other.larger_is_better, other.level):
        raise ValueError(
            f"{name} has a law of {law.metric} by {law.axis} and {other_name} of {other.metric} by {other.axis}: nothing to compare"
        )
    low, high = max(min(law.x), min(other.x)), min(max(law.x), max(other.x))
    if low > high:
        raise ValueError(f"{name} and {other_name} were measured at no common {law.axis}")
    x = np.geomspace(low / REACH, high * REACH, POINTS)
    value, below, above = differences(law, other, x)
    sign = np.sign(value)
    at = _root(x, value)
    unsure = (below <= 0) & (above >= 0)
    first, later = (name, other_name) if sign[0] > 0 else (other_name, name)
    ends: tuple[float | None, float | None] = (None, None)
    if at is not None:
        first, later = (name, other_name) if _before(x, value, at) > 0 else (other_name, name)
        ends = _around(x, unsure, at)
    return Crossing(
        (name, other_name), first, later if at else "", at, *ends, bool((~unsure).any()), (low, high)
    )  # fmt: skip


def differences(law: LawFit, other: LawFit, x: Array) -> tuple[Array, Array, Array]:
    """How much better `law` is than `other` at sizes x, and the ends of its interval, [n] each."""
    rows = []
    for size in x:
        (own, (low, high)), (his, (his_low, his_high)) = (
            (f.predict(size), f.interval(size)) for f in (law, other)
        )
        d = own - his
        up, down = math.hypot(high - own, his - his_low), math.hypot(own - low, his_high - his)
        rows.append((d, d - down, d + up) if law.sign > 0 else (-d, -d - up, -d + down))
    value, below, above = np.array(rows).T
    return value, below, above


def _root(x: Array, value: Array) -> float | None:
    """The last size at which the difference changes its sign, between two of the grid in log size."""
    change = np.flatnonzero(value[:-1] * value[1:] < 0)
    if not len(change):
        return None
    i = int(change[-1])
    share = value[i] / (value[i] - value[i + 1])
    return float(np.exp(np.log(x[i]) + share * np.log(x[i + 1] / x[i])))


def _before(x: Array, value: Array, at: float) -> float:
    return float(value[np.searchsorted(x, at) - 1])


def _around(x: Array, unsure: Array, at: float) -> tuple[float | None, float | None]:
    """The ends of the stretch of sizes around the crossing whose difference may be nothing: the first sizes beyond it that are told."""
    i = int(np.searchsorted(x, at))
    left, right = np.flatnonzero(~unsure[:i]), np.flatnonzero(~unsure[i:])
    low = float(x[left[-1]]) if len(left) else None
    high = float(x[i + right[0]]) if len(right) else None
    return low, high


def crossings(laws: Sequence[tuple[str, LawFit]]) -> list[Crossing]:
    """Of every two laws that have a common size."""
    out = []
    for (a, one), (b, two) in itertools.combinations(laws, 2):
        out.append(cross(a, one, b, two))
    return out


def best_laws(rows: Sequence[Row], metric: str, **options: Any) -> list[tuple[str, str, LawFit]]:
    """(system, grade, law in examples) of each system's best grade at the most examples that all systems reached.

    Raises:
      FitError: Fewer than two systems, or no size that all of them reached.
    """
    own = [
        r for r in base_rows(rows) if r.get("system") and on_ladder(r) and r.get(metric) is not None
    ]
    systems = list(dict.fromkeys(r["system"] for r in own))
    if len(systems) < 2:
        raise fit.FitError(
            "there is nothing to compare: the sweep's config names fewer than two sweep.systems"
        )
    sizes = [{r["examples"] for r in own if r["system"] == s} for s in systems]
    common = set.intersection(*sizes)
    if not common:
        raise fit.FitError(f"{', '.join(systems)} were measured at no common number of examples")
    out = []
    for system in systems:
        mine = [r for r in own if r["system"] == system]
        at = {r["grade"]: [] for r in mine if r["examples"] == max(common)}
        for r in mine:
            if r["examples"] == max(common):
                at[r["grade"]].append(r[metric])
        found = {}
        for grade in at:
            x, y, runs = fit.points_of_runs(mine, "examples", metric, grade=grade)
            found[grade] = fit.fit_law(x, y, metric=metric, runs=runs.tolist(), **options)
        best = max(found, key=lambda g: found[g].sign * float(np.mean(at[g])))
        out.append((system, best, found[best]))
    return out


def compare(rows: Sequence[Row], metric: str, **options: Any) -> list[str]:
    """Lines to print: the law of each system's best grade with its notes, and the crossings of every two."""
    laws = best_laws(rows, metric, **options)
    out = []
    for system, grade, law in laws:
        out.append(f"{system}, grade {grade}: {law.formula}   ({len(law.x)} points)")
        out += [f"  note: {n.text}" for n in law.notes if n.doubt]
    return out + [c.sentence("examples") for c in crossings([(s, law) for s, _, law in laws])]
