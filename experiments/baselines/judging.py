"""What the baselines share: flat columns of a prepared split, figures of a score, and the result file."""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

import numpy as np

from recjax.data.loading.choice import Choice, Index
from recjax.data.store.prepared import Prepared
from recjax.evaluation import kept_scores as kept
from recjax.evaluation.collector import Collector
from recjax.runtime.run import plain, write_json
from recjax.schema import Schema, SchemaError

Columns = dict[str, np.ndarray]


def columns(data: Prepared, split: str, names: Sequence[str], recent: int = 0) -> Columns:
    """Columns of a split's `recent` latest rows (0: all), as `train.recent` chooses; each [rows], in stored order."""
    blocks = [data.block(split, i) for i in range(data.blocks(split))]
    absent = [n for n in names if blocks and n not in blocks[0]]
    if absent:
        raise SchemaError(f"split {split!r} of {data.path} has no column {absent[0]!r}")
    whole = {n: np.concatenate([b[n] for b in blocks]) for n in names}
    if not recent:  # an index reads the split once more
        return whole
    rows = Index(data, split, data.schema.lists).rows(Choice(recent=recent))
    return {n: x[rows] for n, x in whole.items()}


def group_of(schema: Schema) -> str:
    """The data set's own group key, within which GAUC compares; "" where it has none."""
    return next(iter(schema.groups), "")


def figures(logits: np.ndarray, rows: Columns, schema: Schema) -> dict[str, Any]:
    """AUC, logloss, ECE, GAUC, ... of one score per row, exactly as a model's are computed.

    Args:
      logits: [rows]; only their order matters to AUC and GAUC.
      rows: With the schema's first label, `weight` and its first group.
      schema: Of the rows.
    """
    group = group_of(schema)
    collector = Collector(max_rows=max(len(logits), 1))
    groups = {group: rows[group]} if group else {}
    collector.add(logits, rows[schema.labels[0]], rows["weight"], groups=groups)
    return collector.compute()


def predictions(logits: np.ndarray, rows: Columns, schema: Schema) -> Columns:
    """What `experiments.compare` reads of a split's scores."""
    group = group_of(schema)
    groups = {f"group/{group}": rows[group]} if group else {}
    label = rows[schema.labels[0]]
    return dict(logit=logits, label=label, weight=rows["weight"], row=rows["row"], **groups)


def judged(schema: Schema) -> list[str]:
    """Columns that `figures` needs."""
    return [schema.labels[0], "weight", "row", *filter(None, [group_of(schema)])]


def candidate_id(schema: Schema, name: str = "") -> str:
    """The id feature that names the candidate: `name`, or the one with the largest vocabulary."""
    ids = schema.select("candidate", kind="id")
    if name:
        if name not in [f.name for f in ids]:
            raise SchemaError(f"{name!r} is no candidate id; there are {[f.name for f in ids]}")
        return name
    if not ids:
        raise SchemaError("the schema has no candidate id feature, so nothing can be popular")
    return max(ids, key=lambda f: schema.space(f.id_space).size).name


def write_result(
    folder: str, data: Prepared, result: Mapping[str, Any], scores: Mapping[str, Columns]
) -> str:
    """Returns the result with the data's identity, as JSON; unless `folder` is "", keeps it there with the scores.

    Args:
      folder: Gets summary.json and predictions-<split>.npz: a competitor of `experiments.compare`.
      data: What was scored.
      result: With the figures of each split under "test".
      scores: `predictions` of each split.
    """
    identity = {k: data.identity.get(k) for k in ("name", "version", "hash")}
    result = {**result, "data": identity, "rows": data.splits}
    text = json.dumps(plain(result), indent=1)
    if folder:
        os.makedirs(folder, exist_ok=True)
        for split, rows in scores.items():
            kept.keep(folder, split, rows)
        flat = {**result["test"], **{k: v for k, v in result.items() if k != "test"}}
        write_json(os.path.join(folder, "summary.json"), flat)
    return text
