"""Gradient-boosted trees (LightGBM) on the causal counters: the reference a neural model has to beat.

    pip install -e '.[bench]'
    python -m experiments.baselines.boosted_trees --data=DIR --train=train --test=test,test_matched --keep=runs/trees

Inputs: every dense feature of the request and its candidate (the as-of counters and recencies) and, as categories, every
id feature with a vocabulary of at most --max_categories, or those that --categories names. Histories and the ids of
products and households are left to the counters. 300 trees of 63 leaves, learning rate 0.05, LightGBM's defaults
otherwise; no early stopping, so no split beyond the training one is looked at.
"""

from collections.abc import Sequence
import time
from typing import Any

from absl import flags, logging
import lightgbm
import numpy as np

from experiments.baselines import judging
from recjax import command
from recjax.data.loading.loader import counter_features
from recjax.data.store.prepared import Prepared
from recjax.schema import Schema, SchemaError

FIXED = dict(objective="binary", verbosity=-1, deterministic=True, force_row_wise=True)


def inputs(
    schema: Schema, max_categories: int, categories: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """(all input columns, those of them that are categories): dense features, and ids by size or by name."""
    flat = schema.select("profile", "context", "candidate")
    dense = [f.name for f in flat if f.kind == "dense"]
    ids = {f.name: schema.space(f.id_space).size for f in flat if f.kind == "id" and not f.multi}
    for name in categories:
        if name not in ids:
            raise SchemaError(
                f"--categories: {name!r} is no id feature of the request; there are {', '.join(ids)}"
            )
    chosen = list(categories) or [name for name, size in ids.items() if size <= max_categories]
    return dense + chosen, chosen


def matrix(rows: judging.Columns, names: list[str]) -> np.ndarray:
    """Input columns side by side, float32 [rows, inputs]: ids of small vocabularies are exact in it."""
    return np.column_stack([rows[n].astype(np.float32) for n in names])


def fit(
    data: Prepared,
    split: str,
    names: list[str],
    categories: list[str],
    recent: int = 0,
    **params: Any,
) -> lightgbm.Booster:
    """Trains on the `recent` latest rows of a split (0: all). `params` are LightGBM's, with `num_iterations`."""
    label = data.schema.labels[0]
    rows = judging.columns(data, split, [*names, label, "weight"], recent)
    train = lightgbm.Dataset(
        matrix(rows, names),
        rows[label],
        weight=rows["weight"],
        feature_name=names,
        categorical_feature=categories,
    )
    return lightgbm.train({**FIXED, **params}, train)


def run(
    data: Prepared,
    train: str,
    tests: list[str],
    max_categories: int = 1000,
    pick: Sequence[str] = (),
    counters: bool = True,
    recent: int = 0,
    **params: Any,
) -> tuple[dict, dict[str, judging.Columns]]:
    """(figures, scores) of trees trained on one split, on each test split; `params` are LightGBM's."""
    schema = data.schema if counters else data.schema.without(counter_features(data))
    names, categories = inputs(schema, max_categories, pick)
    if not names:
        raise ValueError(
            f"{data.path} has no dense feature and no small vocabulary: nothing for trees to split on"
        )
    logging.info("inputs: %s; categories: %s", ", ".join(names), ", ".join(categories) or "none")
    began = time.monotonic()
    booster = fit(data, train, names, categories, recent, **params)
    fitted = time.monotonic() - began
    out, scores = {}, {}
    for split in tests:
        rows = judging.columns(data, split, [*names, *judging.judged(data.schema)])
        logits = np.asarray(booster.predict(matrix(rows, names), raw_score=True))
        out[split] = judging.figures(logits, rows, data.schema)
        scores[split] = judging.predictions(logits, rows, data.schema)
    gain = dict(zip(names, booster.feature_importance("gain").tolist(), strict=True))
    found = {
        "baseline": "boosted_trees",
        "train": train,
        "recent": recent,
        "test": out,
        "inputs": names,
        "categories": categories,
        "gain": dict(sorted(gain.items(), key=lambda kv: -kv[1])),
        "params": {**FIXED, **params},
        "fit_s": fitted,
        "versions": {"lightgbm": lightgbm.__version__},
    }
    return found, scores


def main(_) -> None:
    data = Prepared(_DATA.value)
    params: dict[str, Any] = dict(
        num_iterations=_TREES.value,
        num_leaves=_LEAVES.value,
        learning_rate=_LR.value,
        seed=_SEED.value,
    )
    chosen = _MAX_CATEGORIES.value, _CATEGORIES.value, _COUNTERS.value, _RECENT.value
    result, scores = run(data, _TRAIN.value, _TEST.value, *chosen, **params)
    print(judging.write_result(_KEEP.value, data, result, scores))


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", None, "prepared directory")
    _TRAIN = flags.DEFINE_string("train", "train", "split to train on")
    _TEST = flags.DEFINE_list("test", ["test"], "splits to score")
    _TREES = flags.DEFINE_integer("trees", 300, "boosting rounds", lower_bound=1)
    _LEAVES = flags.DEFINE_integer("leaves", 63, "leaves of a tree", lower_bound=2)
    _LR = flags.DEFINE_float("learning_rate", 0.05, "shrinkage", lower_bound=0.0)
    _MAX_CATEGORIES = flags.DEFINE_integer(
        "max_categories", 1000, "id features up to this vocabulary are categories"
    )
    _CATEGORIES = flags.DEFINE_list(
        "categories", [], "these id features are categories; default: by size"
    )
    _COUNTERS = flags.DEFINE_boolean("counters", True, "use the causal counters")
    _RECENT = flags.DEFINE_integer(
        "recent", 0, "train on the latest so many rows alone, as train.recent does; 0 is all", 0
    )
    _SEED = flags.DEFINE_integer("seed", 0, "LightGBM's seed")
    _KEEP = flags.DEFINE_string("keep", "", "keep scores and figures here, for experiments.compare")
    flags.mark_flag_as_required("data")
    command.run(main)
