"""A finished run, opened: its config, data, system and trees, to evaluate, score, teach, distill or export it."""

import functools
from typing import Any, NamedTuple

from absl import logging
from etils import epath
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from recjax import embedding, models
from recjax.data import open_data
from recjax.evaluation.evaluator import Evaluator
from recjax.runtime import checkpoint, hosts
from recjax.runtime import mesh as meshes
from recjax.runtime.run import read_json
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
