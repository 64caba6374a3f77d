"""A finished run, opened: its config, data, system and trees, to evaluate, score, teach, distill or export it."""

from collections.abc import Mapping, Sequence
import functools
import hashlib
import json
from typing import Any, NamedTuple

from absl import logging
from etils import epath
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from recjax import embedding, models
from recjax.data import open_data
from recjax.data.loading.batches import Assembler, Part
from recjax.data.loading.layout import Layout
from recjax.evaluation import kept_scores
from recjax.evaluation.evaluator import Evaluator
from recjax.evaluation.probability import probability
from recjax.runtime import checkpoint, hosts
from recjax.runtime import mesh as meshes
from recjax.runtime.identity import Use, without
from recjax.runtime.run import Stop, flat, plain, read_json
from recjax.system import System
from recjax.training import transfer
from recjax.trees import Trees


def placement(system: System, config: ConfigDict, mesh: Mesh) -> embedding.Plan:
    """The plan for reading a run's tables on this mesh: not measured, so rows travel by the exact all_gather."""
    rules = config.get("embedding", {}).get("placement", ())
    return embedding.plan(system.tables, system.schema, mesh, rules=rules)


def evaluator_for(system: System, config: ConfigDict) -> Evaluator:
    """The evaluator of an opened run on all devices."""
    mesh = meshes.make()
    return Evaluator(system, mesh, placement(system, config, mesh))


def open_both(config: ConfigDict, data_dir: str):
    """(data to evaluate on, with the ids of, data that was trained on); the same without `data_dir`."""
    share = dict(process_index=jax.process_index(), process_count=jax.process_count())
    if not data_dir:
        return (data := open_data(config.data, **share)), data
    other = ConfigDict({**config.data.to_dict(), "dir": data_dir})
    data = open_data(other, **share)
    try:
        trained = open_data(config.data, **share)
    except (ValueError, OSError):  # moved or deleted: then `data_dir` must hold the same
        config.data.dir = data_dir
        return data, data
    spaces = [s.name for s in trained.schema.id_spaces]
    if data.identity == trained.identity or all(
        data.vocabulary_hash(s) == trained.vocabulary_hash(s) for s in spaces
    ):
        return data, trained
    return open_data(other, ids_of=trained, **share), trained


class Opened(NamedTuple):
    """A run that has a checkpoint.

    Attributes:
      config: As saved; "data.dir" is the directory that was opened where the run's own is gone.
      data: What it reads, with the ids that it was trained on.
      system: The model.
      trees: Of the checkpoint.
      step: Of the checkpoint that was read, which need not be the newest by the time the reader looks again.
    """

    config: ConfigDict
    data: Any
    system: System
    trees: Trees
    step: int


def open_run(run: epath.PathLike, data_dir: str = "", *, best: bool | None = False) -> Opened:
    """Opens a run that has a checkpoint.

    Args:
      run: Its workdir.
      data_dir: A prepared directory to use in place of the run's own. Where its vocabularies are others, its ids are
        translated (`recjax.data.store.translate`), for which the run's own data must still be there.
      best: The best checkpoint rather than the newest; None: the one that training's final evaluation was of.
    """
    path = epath.Path(run) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the --workdir of a recjax.train run")
    config = ConfigDict(read_json(path))
    best = config.eval.use_best if best is None else best
    data, trained = open_both(config, data_dir)
    system = models.build(trained.schema, config.model)
    split = config.data.train if config.data.train in data.splits else next(iter(data.splits))
    mesh = meshes.make()
    plan = placement(system, config, mesh)
    prefix = config.train.examples  # more than that teachers were not asked about
    batches = data.batches(split, config.eval.batch, shards=mesh.size, examples=prefix)
    example = meshes.put(mesh, plan.route(next(iter(hosts.in_step(batches, plan)))))
    trees, sums = transfer.start(system, config, trained, epath.Path(run), example, plan)
    checkpoints = checkpoint.Checkpoints(epath.Path(run) / "checkpoints")
    check = functools.partial(transfer.check_data, data=trained, where=run)
    restored = checkpoints.restore(dict(trees=trees, sums=sums), best=best, check=check)
    checkpoints.close()
    if restored is None:
        raise FileNotFoundError(
            f"{run} has no {'best ' if best else ''}checkpoint yet; train it first"
        )
    step, saved, _ = restored
    logging.info("evaluating step %d of %s", step, run)
    return Opened(config, data, system, saved["trees"], step)


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
        mesh = meshes.make()
        chunk = -(-chunk // mesh.size) * mesh.size
        self.prepared, self.schema = data.prepared, data.schema
        self.objectives = [
            dict(output=o.output, label=o.label, name=o.name) for o in system.objectives
        ]
        self.trained = trained_on(config)
        which = "best" if best else "newest"
        self.model = f"{which} step {step} of a run with config {_digest(config)}"
        self._trees = trees.replace(opt=())
        self._chunk = chunk
        self._evaluator = Evaluator(system, mesh, placement(system, config, mesh))
        self._assembler = Assembler(
            Layout(self.schema, chunk, data.history, 1, mesh.size),
        )

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
