"""Randomised trials: one row per person, who got a treatment by lot or none, and what came of it.

Such data have no time and no history: `time` is 0, the columns are the person's, and the splits are a seeded random
permutation of the rows (or the publisher's own). The arm is the feature `treatment` of the role of the same name, an id; the
identity says which id is which arm (`treatments`), which of them is the control, and the share of rows each arm got
(`propensity`), which is the same for everybody because the lot decided it. The report has each label's rate by arm.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
from typing import Any

import numpy as np
import polars as pl

from recjax.data.sets.published import Job, Published
from recjax.data.store.prepared import DataError
from recjax.data.store.vocabulary import Vocabulary
from recjax.data.store.writing import BLOCK_SIZE
from recjax.schema import NUM_RESERVED, Feature, Schema, padded_rows

FRACTIONS = {"validation": 0.1, "test": 0.1}


@dataclasses.dataclass(frozen=True)
class Trial:
    """What the columns of a trial mean.

    Attributes:
      treatment: Column of the arm.
      control: Its value for those who were left alone.
      labels: Columns of 0/1, in the order of the funnel; the first is trained on.
      ids: Columns that are categories.
      dense: Columns that are numbers, and their transform.
    """

    treatment: str
    control: Any
    labels: Sequence[str]
    ids: Sequence[str] = ()
    dense: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.treatment, *self.labels, *self.ids, *self.dense)


def prepare_trial(
    reader: type[Published],
    out_dir: str | os.PathLike,
    source: str,
    trial: Trial,
    files: Mapping[str, str],
    *,
    seed: int = 0,
    block_size: int = BLOCK_SIZE,
    fractions: Mapping[str, float] = FRACTIONS,
) -> pathlib.Path:
    """Prepares a trial; does nothing when the same files were prepared in the same way.

    Args:
      reader: Whose data it is.
      out_dir: Folder that holds prepared data sets.
      source: The publisher's folder or archive.
      trial: What its columns mean.
      files: split -> file. Without a file of its own, a split is drawn from the rows of "train".
      seed: Of the drawn splits and of the training order.
      block_size: Rows per record.
      fractions: Shares of the drawn splits.

    Raises:
      DataError: A file or column is missing, a label is not 0 or 1, or nobody is in the control group.
    """
    drawn = {k: x for k, x in fractions.items() if k not in files}
    layout = {"seed": seed, "block_size": block_size}
    job = Job.of(reader, out_dir, source, tuple(files.values()), {"fractions": drawn}, **layout)
    if job.done:
        return job.target
    with job.files() as found:
        tables = {split: read_trial(found[f][0], trial) for split, f in files.items()}
    splits = draw_splits(tables, drawn, seed)
    v = vocabularies(splits["train"], trial)
    arms = _arms(pl.concat(splits.values()), trial)
    if trial.control not in arms:
        raise DataError(f"no row has {trial.treatment} {trial.control!r}; there are {sorted(arms)}")
    report = {
        "rows": sum(x.height for x in splits.values()),
        "arms": arms,
        "splits": {
            split: {"rows": x.height, "arms": _arms(x, trial)} for split, x in splits.items()
        },
        "vocabularies": {name: len(x.values) for name, x in v.items()},
    }
    treatments = dict(zip(v["treatment"].values, v["treatment"].ids.tolist(), strict=True))
    return job.write(
        make_schema(v, trial),
        {},
        {split: functools.partial(columns, x, v, trial) for split, x in splits.items()},
        v,
        report,
        {
            "control": str(trial.control),
            "treatments": {str(arm): i for arm, i in treatments.items()},
            "propensity": {str(arm): a["share"] for arm, a in arms.items()},
        },
    )


def read_trial(file: pathlib.Path, trial: Trial) -> pl.DataFrame:
    """The columns of a trial, labels and numbers as float32."""
    raw = pl.scan_csv(file, infer_schema_length=100_000)
    names = raw.collect_schema().names()
    for column in trial.columns:
        if column not in names:
            raise DataError(f"{file} has no column {column!r}; it has {', '.join(names)}")
    numbers = pl.col(*trial.labels, *trial.dense).cast(pl.Float32)
    table: pl.DataFrame = raw.select(trial.treatment, *trial.ids, numbers).collect()
    for label in trial.labels:
        wrong = ~((table[label] == 0) | (table[label] == 1)).fill_null(False)
        if wrong.any():
            row = int(wrong.arg_max()) + 1
            raise DataError(f"{file}, row {row}: {label} is {table[label][row - 1]}, not 0 or 1")
    return table


def draw_splits(
    tables: Mapping[str, pl.DataFrame], fractions: Mapping[str, float], seed: int
) -> dict[str, pl.DataFrame]:
    """train, validation and test; those without a table of their own are a seeded draw from train's."""
    table, out = tables["train"], {}
    order = np.random.default_rng([seed, 1]).permutation(table.height)
    for split, share in fractions.items():
        taken, order = np.split(order, [round(share * table.height)])
        out[split] = table[np.sort(taken)]
    return {
        "train": table[np.sort(order)],
        **out,
        **{k: v for k, v in tables.items() if k != "train"},
    }


def vocabularies(train: pl.DataFrame, trial: Trial) -> dict[str, Vocabulary]:
    """Of the arm and the categories, from the training rows; the control is the first arm, the others by name."""
    counts = train[trial.treatment].value_counts(name="count").drop_nulls()
    counts = counts.sort(pl.col(trial.treatment) != trial.control, trial.treatment)
    rows = padded_rows(NUM_RESERVED + len(counts))
    arms = Vocabulary(
        "treatment", counts[trial.treatment], counts["count"].to_numpy().astype(np.int64), rows
    )
    return {"treatment": arms} | {c: Vocabulary.build(c, train[c]) for c in trial.ids}


def make_schema(v: Mapping[str, Vocabulary], trial: Trial) -> Schema:
    """The person's columns, the arm, the labels."""
    return Schema(
        id_spaces=tuple(x.space for x in v.values()),
        features=(
            *(Feature(c, "profile", c) for c in trial.ids),
            *(Feature(c, "profile", transform=how) for c, how in trial.dense.items()),
            Feature("treatment", "treatment", "treatment"),
            *(Feature(c, "label") for c in trial.labels),
        ),
    )


def columns(
    table: pl.DataFrame, v: Mapping[str, Vocabulary], trial: Trial
) -> dict[str, np.ndarray]:
    """What `write_prepared` takes."""
    out = {c: v[c].encode(table[c]) for c in trial.ids}
    out |= {c: table[c].fill_null(0).to_numpy() for c in (*trial.dense, *trial.labels)}
    out["treatment"] = v["treatment"].encode(table[trial.treatment])
    return out | {"time": np.zeros(table.height, np.int64)}


def _arms(table: pl.DataFrame, trial: Trial) -> dict[Any, dict[str, float]]:
    """arm -> rows, its share of them, and the mean of each label."""
    by = table.group_by(trial.treatment).agg(pl.len().alias("rows"), pl.col(*trial.labels).mean())
    by = by.with_columns((pl.col("rows") / table.height).alias("share")).sort(trial.treatment)
    return {r.pop(trial.treatment): r for r in by.to_dicts()}
