"""Evaluation of a run, an artifact, or scores that many hosts wrote, on any prepared data:

    python -m recjax.evaluate --run=runs/suan --split=test [--data=DIR] [--best]
    python -m recjax.evaluate --artifact=DIR --data=PREPARED --split=test
    python -m recjax.evaluate --scores='scores-*.parquet' --data=PREPARED      (recjax.score --shard)

Prints one JSON object per split and writes it beside the run; under "slices" it holds the same figures of new users,
cold items, scenes and history lengths (`recjax.data.loading.slices`; docs/evaluate.md).
"""

import json
import sys

from absl import flags
from etils import epath
import jax

from recjax import command
from recjax.evaluation import score_files
from recjax.runtime import hosts
from recjax.runtime.run import set_up, write_text
from recjax.serving import batch_scoring
from recjax.training import inference


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
        found = inference.evaluate(
            _RUN.value, _DATA.value, _SPLIT.value, best=_BEST.value, wanted=wanted
        )
    elif _ARTIFACT.value:
        found = batch_scoring.evaluate(_ARTIFACT.value, _DATA.value, _SPLIT.value, wanted)
    else:
        found = score_files.evaluate(_SCORES.value, _DATA.value, wanted)
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
    command.run(main)
