"""Scores that training keeps beside a run, row by row, for paired comparisons of runs: predictions-<split>.npz.

`recjax.training.inference.train_and_keep` has training keep the rows of its final evaluations, and scores the splits that
are missing. Columns, each [N], in the order of `row`:

    logit, label, weight
    row           its place in the split
    group/<key>   of the data's group keys
    past          events before the impression, where the data counts them
"""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
import numpy as np

Rows = dict[str, np.ndarray]


def keep(run: epath.PathLike, split: str, rows: Rows) -> None:
    """Writes the file, rows in order, under a temporary name first."""
    order = np.argsort(rows["row"], kind="stable")
    temporary = file_of(run, split).with_suffix(".tmp")
    with temporary.open("wb") as f:
        ordered: dict[str, Any] = {k: v[order] for k, v in rows.items()}
        np.savez(f, **ordered)
    temporary.replace(file_of(run, split))


def keep_scored(run: epath.PathLike, data: Any, split: str, rows: Rows) -> None:
    """`keep`, with each row's past events where the data counts them."""
    if (past := past_events(data, split)) is not None:
        rows = {**rows, "past": past[rows["row"]]}
    keep(run, split, rows)


def past_events(data: Any, split: str) -> np.ndarray | None:
    """Events before each impression of a split, by row, all of them however long a history is read.

    None where the data is not `recjax.data.loading.loader.PreparedData` or keeps no list.
    """
    prepared = getattr(data, "prepared", None)
    if prepared is None or not prepared.schema.lists:
        return None
    blocks = [prepared.block(split, i) for i in range(prepared.blocks(split))]
    counts = np.concatenate([b[f"{prepared.schema.lists[0]}/count"] for b in blocks])
    out = np.empty_like(counts)
    out[np.concatenate([b["row"] for b in blocks])] = counts
    return out


def load(run: epath.PathLike, split: str) -> Rows:
    """What was kept."""
    with file_of(run, split).open("rb") as f:
        return dict(np.load(f))


def check(runs: Mapping[str, Sequence[Rows]], split: str) -> None:
    """Raises ValueError unless all seeds of all models have finite scores of the same rows with the same labels."""
    (first, (a, *_)), *_ = runs.items()
    for name, each in runs.items():
        for seed, rows in enumerate(each):
            if not np.isfinite(rows["logit"]).all():
                raise ValueError(
                    f"{name}, seed {seed}: scores on {split!r} are not finite (it diverged); lower its rate "
                    "and delete its folder, or leave it out"
                )
            if not all(np.array_equal(a[k], rows[k]) for k in ("row", "label")):
                raise ValueError(
                    f"{first} and {name}, seed {seed}, were not scored on the same rows of {split!r}; "
                    "give them the same data, splits and eval.examples"
                )


def group_key(rows: Rows, name: str = "") -> str:
    """The group to resample: `name`, or the first of the data; "" where it has none."""
    keys = [k for k in rows if k.startswith("group/")]
    if name and f"group/{name}" not in keys:
        raise ValueError(f"--group={name} is not in the data; there are {keys}")
    return f"group/{name}" if name else next(iter(keys), "")


def file_of(run: epath.PathLike, split: str) -> epath.Path:
    return epath.Path(run) / f"predictions-{split}.npz"
