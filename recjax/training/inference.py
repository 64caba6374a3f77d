"""What a finished run is asked: metrics on the splits of any data, scores, and a teacher's logits for students.

The work of `python -m recjax.evaluate --run=...`, `recjax.score --run=...` and `recjax.teach`.
"""

from collections.abc import Mapping, Sequence
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict
import numpy as np
import tqdm

from recjax.data.loading.batches import Assembler, Part
from recjax.data.loading.layout import Layout
from recjax.data.loading.slices import Slice, make_slices
from recjax.data.loading.taught import logits_file, question_file, question_of
from recjax.data.store.translate import Translated
from recjax.evaluation import kept_scores
from recjax.evaluation.probability import probability
from recjax.runtime import hosts
from recjax.runtime.identity import Use, without
from recjax.runtime.run import Stop, flat, plain, write_text
from recjax.training.loop import train
from recjax.training.opening import evaluator_for, open_run

# ---- metrics


def evaluate(run: str, data_dir: str, splits, *, best: bool, wanted: Sequence[str]) -> dict:
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


# ---- scores


class RunScorer:
    """Scores impressions with a run's checkpoint, as `recjax.serving.scorer.Scorer` does with an artifact.

    Args:
      run: Its workdir.
      data_dir: Prepared directory to score.
      best: The best checkpoint rather than the newest.
      chunk: Requests scored at a time.

    Attributes:
      prepared: The data, with the model's ids.
      schema: Features of a batch.
      objectives: [{"output", "label", "name"}].
      trained: {"split", "examples"}: what the model was trained on.
      model: Which it is: the same words on every host that scores with the same values.
    """

    def __init__(self, run: str, data_dir: str, *, best: bool = False, chunk: int = 512):
        config, data, system, trees, step = open_run(run, data_dir, best=best)
        self._evaluator = evaluator_for(system, config)
        shards = self._evaluator.mesh.size
        chunk = -(-chunk // shards) * shards
        self.prepared, self.schema = data.prepared, data.schema
        self.objectives = [
            dict(output=o.output, label=o.label, name=o.name) for o in system.objectives
        ]
        self.trained = trained_on(config)
        which = "best" if best else "newest"
        self.model = f"{which} step {step} of a run with config {_digest(config)}"
        self._trees = trees.replace(opt=())
        self._chunk = chunk
        self._assembler = Assembler(Layout(self.schema, chunk, data.history, 1, shards))

    @property
    def logits(self) -> list[str]:
        return list(dict.fromkeys(o["output"] for o in self.objectives))

    def probability(self, logits: np.ndarray, corrected: bool = False) -> np.ndarray:
        """Sigmoid; a run does not say how its negatives were kept, so nothing is corrected."""
        del corrected
        return probability(logits)

    def score_part(self, part: Part) -> dict[str, np.ndarray]:
        """{output: [rows]} of up to `chunk` impressions."""
        batch = self._assembler.build([Part(part.columns, part.timelines, slots=self._chunk)])
        outputs = self._evaluator.outputs(self._trees, self._evaluator.put(batch))
        return {n: np.asarray(outputs[n])[batch["valid"]] for n in self.logits}


def _digest(config: Mapping[str, Any]) -> str:
    """Of what a run's values depend on: the rest of config.json may change."""
    kept = without(flat(plain(config)), Use.FREE | Use.LATE)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def trained_on(config: Mapping[str, Any]) -> dict[str, Any]:
    """Which rows a run with this config trained on, as far as it says."""
    data, train = config.get("data", {}), config.get("train", {})
    return {"split": data.get("train", "train"), "examples": train.get("examples", 0)}


def train_and_keep(config: ConfigDict, run: epath.PathLike, splits: Sequence[str] = ()) -> dict:
    """Trains, or goes on, or finds a run finished, and keeps its scored rows of `splits` (none: of `eval.final`).

    Returns:
      The content of its summary.json.
    """
    summary = train(config, run, functools.partial(kept_scores.keep_scored, run))
    keep_missing(run, splits or config.eval.final)
    return summary


def keep_missing(run: epath.PathLike, splits: Sequence[str]) -> None:
    """Scores the splits of a finished run that have no file: the first `eval.examples` rows, by its newest checkpoint."""
    missing = [s for s in splits if not kept_scores.file_of(run, s).exists()]
    if not missing:
        return
    config, data, system, trees, _ = open_run(run, best=None)
    evaluator = evaluator_for(system, config)
    with Stop() as stop:
        for split in missing:
            batches = data.batches(
                split, config.eval.batch, examples=config.eval.examples, shards=evaluator.mesh.size
            )
            rows = evaluator.predictions(trees, batches, poll=stop.raise_if_requested)
            kept_scores.keep_scored(run, data, split, rows)


# ---- a teacher's logits


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
