"""What a report is made of: one record, which the stages of a sweep fill from their files."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, TypedDict

from scaling.plan.rows import Row

Fields = Mapping[str, Any]


class Paired(TypedDict):
    """The distilled student minus the undistilled one, by seed; low and high of an interval of `level`."""

    difference: float
    low: float
    high: float
    level: float
    seeds: int


class Distillation(TypedDict, total=False):
    """Attributes:
    rows: {"model", "role" (teacher | undistilled | distilled), metric: [one value a seed], ...}.
    paired: Absent where there is one seed.
    note: What was distilled, in words.
    """

    rows: Sequence[Fields]
    paired: Paired
    note: str


class Latency(TypedDict, total=False):
    """Times of requests of so many candidates: rows of {"model", "p50_ms", "p95_ms", "p99_ms", ...}."""

    candidates: int
    hardware: str
    rows: Sequence[Fields]


class Command(TypedDict):
    """Something to run next, and why."""

    why: str
    command: str


@dataclasses.dataclass(frozen=True)
class Context:
    """Everything is optional: a section whose part is empty says that its stage was not run.

    Attributes:
      title, question: What the study is called, and what it asks.
      metric: Column of the trials that the grid shows.
      answer: Sentences; (): drawn from decisions, fits and distillation.
      trials: Rows of trials.jsonl (scaling.plan.rows); metrics may also lie under "metrics".
      grades: {grade: {column: number or text}}, smallest first.
      fits: fit.json: {"label": text, **LawFit.to_json(), "needed": [LawFit.needed(...), ...]} of each law along an axis.
      laws: laws.json, of `scaling.law.laws.fit_all`: joint law, rates, agreement, ablations.
      decisions: decisions.json, of `scaling.law.decisions.answers`.
      failed: Trials whose last attempt failed: their columns and "error".
      distillation: Teacher and student; None: no student was distilled.
      latency: Of the distilled student.
      data: The prepared data's `report.json`.
      grade_law_command: The command that would measure enough grades for a law.
      commands: What to run next.
      created, version: Text; created "" is now.
    """

    title: str = "Scaling study"
    question: str = "How far does a bigger model, more data or a longer history take us?"
    metric: str = "auc"
    answer: Sequence[str] = ()
    trials: Sequence[Row] = ()
    grades: Mapping[str, Fields] = dataclasses.field(default_factory=dict)
    fits: Sequence[Fields] = ()
    laws: Fields = dataclasses.field(default_factory=dict)
    decisions: Fields = dataclasses.field(default_factory=dict)
    failed: Sequence[Fields] = ()
    distillation: Distillation | None = None
    latency: Latency | None = None
    data: Fields | None = None
    grade_law_command: str = ""
    commands: Sequence[Command] = ()
    created: str = ""
    version: str = ""
