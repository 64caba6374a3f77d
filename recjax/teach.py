"""A teacher's logits, once for each impression: python -m recjax.teach --run=runs/suan --split=train_matched

Any run of the library with an output "logits" (a pair's is its student's; --output=teacher takes the other side). The
answers go to <run>/logits/<data hash>/<split>.npy, and students are trained on them by

    python -m recjax.train --config=experiments/distill_complete_journey.py:offline \
        --config.data.teachers="('runs/suan',)" --config.data.train=train_matched --workdir=runs/student

What was answered already is not asked again, nor after SIGTERM or Ctrl-C. A run has one file a split: asked for another
output or of another checkpoint, it begins anew, and students get the latest answers.
"""

import functools
import json
import os
import pathlib
from typing import Any

from absl import app, flags, logging
import numpy as np
import tqdm

from recjax.data.loading.taught import logits_file, question_file, question_of
from recjax.runtime.run import Stop, set_up, write_text
from recjax.training.opening import evaluator_for, open_run


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
      Interrupted: SIGTERM or Ctrl-C; what was answered until then is kept.
    """
    config, data, system, trees, step = open_run(run, data_dir, best=best)
    if output not in {o.output for o in system.objectives}:
        known = ", ".join(o.output for o in system.objectives)
        raise KeyError(f"the teacher in {run} has no output {output!r}; it has {known}")
    file = logits_file(run, data.identity["hash"], split)
    asked = min(examples or data.splits[split], data.splits[split])
    question = dict(output=output, best=best, step=step)
    column = _answered(file, data.splits[split], question)
    if np.isfinite(column[:asked]).all():
        logging.info("%s has all of them", file)
        return str(file)
    evaluator = evaluator_for(system, config)
    batches = data.batches(split, config.eval.batch, examples=asked, shards=evaluator.mesh.size)
    save = functools.partial(_save, file, column, question)
    with Stop() as stop:
        for batch in tqdm.tqdm(batches, total=len(batches), desc=f"teacher on {split}"):
            rows = batch["row"][batch["valid"]]
            if not np.isfinite(column[rows]).all():
                outputs = evaluator.outputs(trees, evaluator.put(batch))
                column[rows] = np.asarray(outputs[output], np.float32)[batch["valid"]]
            stop.raise_if_requested(save)  # last, so that nothing is replaced by no answers
        save()
    return str(file)


def _answered(file: pathlib.Path, rows: int, question: dict[str, Any]) -> np.ndarray:
    """Answers to this question that are there, [rows], NaN elsewhere."""
    if file.exists() and _answers(file, question):
        return np.load(file)
    if file.exists():
        logging.warning(
            "%s answers %s, now asked is %s: starting anew", file, question_of(file), question
        )
    return np.full(rows, np.nan, np.float32)


def _answers(file: pathlib.Path, question: dict[str, Any]) -> bool:
    return all(question.get(k) == v for k, v in question_of(file).items())


def _save(file: pathlib.Path, column: np.ndarray, question: dict[str, Any]) -> None:
    """Writes the question, then the answers, in an order that never pairs one with those to another."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not _answers(file, question):
        file.unlink(missing_ok=True)
    write_text(question_file(file), json.dumps(question))
    temporary = file.with_name(f".{file.name}.{os.getpid()}.npy")
    np.save(temporary, column)
    temporary.replace(file)


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
