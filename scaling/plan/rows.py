"""Rows of trials.jsonl: one for each measured point of each trial. What they hold, and which of them mean what."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from etils import epath

from recjax.runtime.run import read_jsonl
from scaling.plan.grades import LADDER

FILE = "trials.jsonl"

# A `TrialRow` with its metrics: those of the first of eval.splits by their names, {split: {metric: value}} of the others.
# A metric that was undefined is null, and `undefined` says why.
Row = Mapping[str, Any]


class TrialRow(TypedDict, total=False):
    """The columns that are no metrics. A search has those of its grid in place of a grade's.

    Attributes:
      trial: Hash of what the trial is (`scaling.plan.sweep.Trial`).
      run: Run directory, runs/<run>; of a cooldown, a name of its own.
      member: Which of the trials that trained together; 0 for one by itself.
      parent: The run that a cooldown was forked from, else None.
      kind: One of `KINDS`, or a name that the plan sets trials apart by.
      examples: Labelled examples trained on.
      system: Which of several systems that a study compares.
      grade: Of the study's ladder, or of scaling.plan.grades.LADDER; the model's name where it has none.
      blocks, width: Of the model; the grade's unless the plan has others. Absent where a study's own ladder says all.
      history: Events of history.
      data_seed: Which draw of the training data, where a plan has several.
      seed: Of initial values and the order of later epochs.
      lr: Dense learning rate.
      variant: What the plan changes about the model, "key=value, ..."; "" is the model itself.
      data: Hash of the prepared data.
      n_blocks, n_head, n_dense, n_embedding: Parameters (`scaling.plan.counts`).
      flops_per_example: Forward, one candidate.
    """

    trial: str
    run: str
    member: int
    parent: str | None
    kind: str
    examples: int
    system: str
    grade: str
    blocks: int
    width: int
    history: int
    data_seed: int
    seed: int
    lr: float
    variant: str
    data: str
    n_blocks: int
    n_head: int
    n_dense: int
    n_embedding: int
    flops_per_example: int


# What a row's kind means; a plan may set further kinds apart, whose forks are "<kind> cooldown".
KINDS: Mapping[str, str] = {
    "pass": "a point of a pass at a constant rate",
    "cooldown": "the end of a fork of a pass whose rate fell to zero",
    "independent": "a run planned for its own length",
    "rate": "a learning rate tried, judged on validation data",
}


def read(root: epath.PathLike) -> list[Row]:
    """The rows of a sweep.

    Raises:
      FileNotFoundError: There is no trials.jsonl; the message says what to give.
    """
    path = epath.Path(root) / FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give the --workdir of a python -m scaling.run"
        )
    return [*read_jsonl(path)]


def measured_kind(rows: Iterable[Row]) -> str:
    """The kind of row that laws are fitted to."""
    return "cooldown" if any(r.get("kind") == "cooldown" for r in rows) else "pass"


def base_rows(rows: Sequence[Row], kind: str = "") -> list[Row]:
    """The rows of one kind ("": the kind that laws are fitted to) without ablations; of a kind set apart, all."""
    kind = kind or measured_kind(rows)
    apart = kind not in KINDS
    return [r for r in rows if r.get("kind") == kind and (apart or not r.get("variant"))]


def kinds_apart(rows: Sequence[Row]) -> list[str]:
    """Kinds that a plan set apart, by the name of their forks where they have any."""
    found = dict.fromkeys(r["kind"] for r in rows if r["kind"] not in KINDS)
    return [k for k in found if f"{k} cooldown" not in found]


def on_ladder(row: Row) -> bool:
    """Whether the row's model has the shape of its grade."""
    if "grade" not in row:
        return False
    rung = LADDER.get(row["grade"])
    if rung is None:  # of a study's own ladder
        return "blocks" not in row and "width" not in row
    shape = row.get("blocks", rung.blocks), row.get("width", rung.width)
    return shape == (rung.blocks, rung.width)


def ladder_of(rows: Iterable[Row]) -> list[str]:
    """The grades of rows on the ladder, smallest first."""
    size = {r["grade"]: r.get("n_dense", 0) for r in rows if on_ladder(r)}
    known = {g: i for i, g in enumerate(LADDER)}
    return sorted(size, key=lambda g: (size[g], known.get(g, 0), g))
