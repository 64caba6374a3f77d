"""A teacher's logits, once for each impression: python -m recjax.teach --run=runs/suan --split=train_matched

Any run of the library with an output "logits" (a pair's is its student's; --output=teacher takes the other side). The
answers go to <run>/logits/<data hash>/<split>.npy, and students are trained on them by

    python -m recjax.train --config=experiments/distil_complete_journey.py:offline \
        --config.data.teachers="('runs/suan',)" --config.data.train=train_matched --workdir=runs/student

What was answered already is not asked again.
"""

import os

from absl import app, flags, logging
import numpy as np
import tqdm

from recjax.data.taught import logits_file
from recjax.evaluator import evaluator_for, open_run
from recjax.run import Stop, set_up


def teach(
    run: str | os.PathLike,
    split: str,
    *,
    examples: int = 0,
    output: str = "logits",
    data_dir: str = "",
    best: bool = False,
) -> str:
    """Asks the teacher about the first `examples` impressions of a split (0: all); returns the file.

    Args:
      run: The teacher's workdir.
      split: Whose impressions.
      examples: Prefix of the training permutation.
      output: Of the teacher's system, [B, C].
      data_dir: A prepared directory in place of the run's own; its schema must be the same.
      best: The best checkpoint rather than the newest.

    Raises:
      KeyError: The teacher has no such output.
    """
    config, data, system, trees = open_run(run, data_dir, best=best)
    if output not in {o.output for o in system.objectives}:
        known = ", ".join(o.output for o in system.objectives)
        raise KeyError(f"the teacher in {run} has no output {output!r}; it has {known}")
    file = logits_file(run, data.identity["hash"], split)
    asked = min(examples or data.splits[split], data.splits[split])
    column = _answered(file, data.splits[split])
    if np.isfinite(column[:asked]).all():
        logging.info("%s has all of them", file)
        return str(file)
    evaluator = evaluator_for(system, config)
    batches = data.batches(split, config.eval.batch, examples=asked, shards=evaluator.mesh.size)
    with Stop() as stop:
        for batch in tqdm.tqdm(batches, total=len(batches), desc=f"teacher on {split}"):
            stop.raise_if_requested()
            answers = np.asarray(evaluator.outputs(trees, evaluator.put(batch))[output], np.float32)
            column[batch["row"][batch["valid"]]] = answers[batch["valid"]]
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.npy")
    np.save(temporary, column)
    temporary.replace(file)
    return str(file)


def _answered(file, rows: int) -> np.ndarray:
    return np.array(np.load(file)) if file.exists() else np.full(rows, np.nan, np.float32)


def main(_) -> None:
    set_up()
    print(
        teach(
            _RUN.value,
            _SPLIT.value,
            examples=_EXAMPLES.value,
            output=_OUTPUT.value,
            data_dir=_DATA.value,
            best=_BEST.value,
        )
    )


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "workdir of the teacher", required=True)
    _SPLIT = flags.DEFINE_string("split", "train", "whose impressions")
    _EXAMPLES = flags.DEFINE_integer("examples", 0, "only the first so many; 0: all")
    _OUTPUT = flags.DEFINE_string("output", "logits", "of the teacher")
    _DATA = flags.DEFINE_string("data", "", "prepared directory in place of the run's own")
    _BEST = flags.DEFINE_bool("best", False, "the best checkpoint rather than the newest")
    app.run(main)
