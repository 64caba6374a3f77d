"""Evaluation of a run, an artifact, or scores that many hosts wrote, on any prepared data:

    python -m recjax.evaluate --run=runs/suan --split=test [--data=DIR] [--best]
    python -m recjax.evaluate --artifact=DIR --data=PREPARED --split=test
    python -m recjax.evaluate --scores='scores-*.parquet' --data=PREPARED      (recjax.score --shard)

Prints one JSON object per split and writes it beside the run; under "slices" it holds the same figures of new users,
cold items, scenes and history lengths (`recjax.data.loading.slices`; docs/evaluate.md).
"""

from collections.abc import Sequence
import glob
import json
import sys
import tempfile

from absl import app, flags, logging
from etils import epath
import jax
from ml_collections import ConfigDict

from recjax import score
from recjax.data.loading.layout import BatchError
from recjax.data.loading.slices import Slice, default_slices, make_slices
from recjax.data.store.prepared import Prepared
from recjax.data.store.translate import Translated
from recjax.evaluation import score_files
from recjax.runtime import hosts
from recjax.runtime.run import plain, set_up, write_text
from recjax.training.opening import evaluator_for, open_run


def evaluate_run(run: str, data_dir: str, splits, *, best: bool, wanted: Sequence[str]) -> dict:
    """split -> metrics of a run, with the wanted slices."""
    config, data, system, trees, _ = open_run(run, data_dir, best=best)
    evaluator = evaluator_for(system, config)
    out = {}
    for split in splits:
        batches = data.batches(split, config.eval.batch, shards=evaluator.mesh.size)
        slices = slices_of(data, config, split, wanted)
        out[split] = plain(evaluator(trees, hosts.in_step(batches, evaluator.plan), slices=slices))
    return out


def slices_of(data, config: ConfigDict, split: str, wanted: Sequence[str]) -> list[Slice]:
    """Slices of a split; new is what the run has not trained on, where its own data is the one evaluated."""
    if not wanted or not hasattr(data, "prepared"):
        return []
    trained = None
    if not isinstance(data.prepared, Translated) and config.data.train in data.splits:
        trained = dict(
            prepared=data.prepared, split=config.data.train, examples=config.train.examples
        )
    return make_slices(data.prepared, split, wanted, trained)


def evaluate_scores(pattern: str, data_dir: str, wanted: Sequence[str]) -> dict:
    """split -> metrics of files that `recjax.score` wrote."""
    files = sorted(glob.glob(pattern))
    about = score_files.read_about(files)
    slices: list[Slice] = []
    if wanted:
        if not data_dir:
            raise BatchError("slices are made from the scored data; give --data, or --slices=")
        prepared = Prepared(data_dir)
        score_files.check_data(about, prepared)
        if about["translated"]:  # what the model knew, this data's ids do not tell
            wanted = default_slices(prepared.schema) if list(wanted) == ["default"] else wanted
            wanted = [w for w in wanted if not w.startswith("new:")]
            logging.warning("scored with a model of other data: new: slices are left out")
        trained = dict(about["trained"], prepared=prepared)
        known = trained["split"] in prepared.splits
        slices = make_slices(prepared, about["split"], wanted, trained if known else None)
    return {about["split"]: plain(score_files.measure(files, slices))}


def evaluate_artifact(artifact: str, data_dir: str, splits, wanted: Sequence[str]) -> dict:
    """split -> metrics of an artifact on prepared data."""
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for split in splits:
            file = f"{folder}/{split}.parquet"
            score.score(artifact, data_dir, file, split=split)
            out |= evaluate_scores(file, data_dir, wanted)
    return out


def main(_) -> None:
    with hosts.joined():
        set_up()
        run_flags()


def run_flags() -> None:
    """What the flags ask for."""
    if sum(map(bool, (_RUN.value, _ARTIFACT.value, _SCORES.value))) != 1:
        sys.exit("error: give one of --run, --artifact and --scores")
    if _ARTIFACT.value and not _DATA.value:
        sys.exit("error: an artifact is evaluated on a prepared directory; give --data")
    wanted = [w for w in _SLICES.value if w]
    if _RUN.value:
        found = evaluate_run(_RUN.value, _DATA.value, _SPLIT.value, best=_BEST.value, wanted=wanted)
    elif _ARTIFACT.value:
        found = evaluate_artifact(_ARTIFACT.value, _DATA.value, _SPLIT.value, wanted)
    else:
        found = evaluate_scores(_SCORES.value, _DATA.value, wanted)
    folder = _OUT.value or _RUN.value
    for split, result in found.items() if jax.process_index() == 0 else ():
        print(json.dumps({"split": split, **result}))
        if folder:
            write_text(
                epath.Path(folder) / f"evaluation-{split}.json", json.dumps(result, indent=1)
            )


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", "", "workdir of a recjax.train run")
    _ARTIFACT = flags.DEFINE_string("artifact", "", "directory of an exported artifact")
    _SCORES = flags.DEFINE_string("scores", "", "quoted pattern of files that recjax.score wrote")
    _DATA = flags.DEFINE_string(
        "data", "", "prepared directory to evaluate on; default: the run's own"
    )
    _SPLIT = flags.DEFINE_list("split", ["test"], "splits")
    _SLICES = flags.DEFINE_list(
        "slices",
        ["default"],
        "new:FEATURE, by:FEATURE, length:LIST; default: recjax.data.loading.slices; '': none",
    )
    _BEST = flags.DEFINE_bool("best", False, "the best checkpoint rather than the newest")
    _OUT = flags.DEFINE_string("out", "", "folder for evaluation-<split>.json; default: the run's")
    app.run(main)
