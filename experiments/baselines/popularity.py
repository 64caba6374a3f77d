"""Popularity alone: how far is a score that knows only how often each candidate was bought in the training weeks?

    python -m experiments.baselines.popularity --data=DIR --train=train --test=test,test_matched

Counts each candidate id among the events of its own kind in the users' timelines (purchases, also of what was never
promoted) up to the last training request, or, where the data set keeps no such list, among the positives of the training
split; the score is log(1 + count). Report it beside every model: most of an easy AUC is popularity, and a test set whose
negatives were drawn in proportion to popularity leaves it below one half.
"""

from absl import flags
import numpy as np

from experiments.baselines import judging
from recjax import command
from recjax.data.store.prepared import Prepared
from recjax.schema import NUM_RESERVED


def positives(data: Prepared, split: str, feature: str) -> np.ndarray:
    """Positive labels of each id of a feature in a split, float64 [rows of its id space]."""
    label = data.schema.labels[0]
    rows = judging.columns(data, split, [feature, label])
    return np.bincount(rows[feature], weights=rows[label], minlength=id_rows(data, feature))


def events(data: Prepared, split: str, feature: str) -> np.ndarray | None:
    """Events of each id in the list of the same id space, up to the split's last request; None without such a list."""
    space = data.schema.feature(feature).id_space
    past = [f for f in data.schema.select("history", kind="id") if f.id_space == space]
    if not past:
        return None
    until = max(data.block(split, i)["time"].max() for i in range(data.blocks(split)))
    counts = np.zeros(id_rows(data, feature))
    for partition in np.unique(data.block_partitions(split)):
        timeline = data.timeline(past[0].list, int(partition))
        seen = timeline[past[0].name][timeline["time"] <= until]
        counts += np.bincount(seen, minlength=len(counts))
    return counts


def id_rows(data: Prepared, feature: str) -> int:
    return data.schema.space(data.schema.feature(feature).id_space).rows


def popularity(data: Prepared, split: str, feature: str) -> np.ndarray:
    """How popular each id is in the training period; nothing for ids that name nothing (reserved ones)."""
    counts = events(data, split, feature)
    counts = positives(data, split, feature) if counts is None else counts
    return np.where(np.arange(len(counts)) < NUM_RESERVED, 0.0, counts)


def run(
    data: Prepared, train: str, tests: list[str], feature: str = ""
) -> tuple[dict, dict[str, judging.Columns]]:
    """(figures, scores) of popularity on each test split; logloss and calibration mean nothing here and are left out."""
    feature = judging.candidate_id(data.schema, feature)
    counts = popularity(data, train, feature)
    out, scores = {}, {}
    for split in tests:
        rows = judging.columns(data, split, [feature, *judging.judged(data.schema)])
        logits = np.log1p(counts[rows[feature]])
        found = judging.figures(logits, rows, data.schema)
        scores[split] = judging.predictions(logits, rows, data.schema)
        out[split] = {
            k: v for k, v in found.items() if "auc" in k or k in ("examples", "rate", "undefined")
        }
    return {"baseline": "popularity", "feature": feature, "train": train, "test": out}, scores


def main(_) -> None:
    data = Prepared(_DATA.value)
    result, scores = run(data, _TRAIN.value, _TEST.value, _FEATURE.value)
    print(judging.write_result(_KEEP.value, data, result, scores))


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", None, "prepared directory")
    _TRAIN = flags.DEFINE_string("train", "train", "split whose period is counted")
    _TEST = flags.DEFINE_list("test", ["test"], "splits to score")
    _FEATURE = flags.DEFINE_string(
        "feature", "", "candidate id feature; default: the largest vocabulary"
    )
    _KEEP = flags.DEFINE_string("keep", "", "keep scores and figures here, for experiments.compare")
    flags.mark_flag_as_required("data")
    command.run(main)
