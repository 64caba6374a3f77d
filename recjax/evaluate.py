"""Evaluation: python -m recjax.evaluate --run=runs/suan --split=test [--data=DIR] [--best]

Sums are kept on the device and merged; predictions are kept on the host up to 10 M rows, for exact AUC and grouped
AUC. Prints one JSON object per split and writes it beside the run.
"""

from collections.abc import Callable, Iterable
import functools
import json

from absl import app, flags, logging
from etils import epath
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from recjax import checkpoint, embedding, metrics, models, transfer
from recjax import mesh as meshes
from recjax.collector import Collector
from recjax.data import open_data
from recjax.run import plain, set_up, write_text
from recjax.step import init_trees, zero_sums
from recjax.system import System, weights_of

Tree = dict


class Evaluator:
    """Compiled evaluation of one system; call it with trees and batches.

    Args:
      system: What to evaluate.
      mesh: Where.
      plan: Placement of the trees' tables; default: the planner's.
    """

    def __init__(self, system: System, mesh: Mesh, plan: embedding.Plan | None = None):
        self.system, self.mesh = system, mesh
        self.plan = plan or embedding.plan(system.tables, system.schema, mesh)
        self._step = jax.jit(self._measure, donate_argnums=1)

    def _forward(self, trees: Tree, batch: dict) -> dict[str, jax.Array]:
        rows = embedding.gather(self.system.tables, trees["tables"], batch, self.plan)
        return self.system.outputs(trees["dense"], rows, trees["state"], trees["frozen"], batch)

    def put(self, batch: dict) -> dict:
        return meshes.put(self.mesh, self.plan.route(batch))

    def _measure(self, trees: Tree, sums: dict, batch: dict):
        outputs, out = self._forward(trees, batch), {}
        for o in self.system.objectives:
            args = outputs[o.output], batch["label"][o.label], weights_of(batch)
            out[o.name] = metrics.update(sums[o.name], *args)
        return out, outputs

    def __call__(
        self, trees: Tree, batches: Iterable[dict], poll: Callable[[], None] = lambda: None
    ) -> dict:
        """Metrics of every objective (see recjax.metrics.compute), those of named ones prefixed "<name>/".

        Args:
          trees: dense, tables, state, frozen.
          batches: Host batches.
          poll: Called once a batch; may raise to end early.
        """
        objectives = self.system.objectives
        sums = {o.name: metrics.init() for o in objectives}
        rows = {o.name: Collector() for o in objectives}
        kept: dict[str, list] = {name: [] for name in self.system.kept}
        params = {k: trees[k] for k in ("dense", "tables", "state", "frozen")}
        ahead = None
        for batch in batches:
            poll()
            sums, outputs = self._step(params, sums, self.put(batch))
            if ahead is not None:
                self._collect(rows, kept, *ahead)
            ahead = batch, outputs
        if ahead is not None:
            self._collect(rows, kept, *ahead)
        out = {}
        for o in objectives:
            prefix = f"{o.name}/" if o.name else ""
            measured = metrics.compute(jax.device_get(sums[o.name])) | rows[o.name].compute()
            measured["evaluated"] = measured.pop("examples")  # "examples" are those trained on
            out.update({prefix + k: v for k, v in measured.items()})
        if self.system.measure is not None:
            out.update(self.system.measure(_columns(objectives, rows, kept)))
        return out

    def _collect(self, rows: dict, kept: dict, batch: dict, outputs: dict) -> None:
        weights = batch["weight"] * batch["valid"]
        for name in kept:
            kept[name].append(np.asarray(outputs[name])[weights > 0])
        for o in self.system.objectives:
            rows[o.name].add(
                outputs[o.output], batch["label"][o.label], weights, batch["row"], batch["group"]
            )


def _columns(objectives: tuple, rows: dict, kept: dict) -> dict[str, np.ndarray]:
    """What `System.measure` sees."""
    first, *others = objectives
    columns = rows[first.name].rows()
    for o in others:
        own = rows[o.name].rows()
        columns |= {f"{o.name}/{k}": own[k] for k in ("logit", "label")}
    return columns | {name: np.concatenate(parts) for name, parts in kept.items()}


def placement(system: System, config: ConfigDict, mesh: Mesh) -> embedding.Plan:
    """The plan for reading a run's tables on this mesh: not measured, so rows travel by the exact all_gather."""
    rules = config.get("embedding", {}).get("placement", ())
    return embedding.plan(system.tables, system.schema, mesh, rules=rules)


def open_run(run: epath.PathLike, data_dir: str = "", *, best: bool = False):
    """(config, data, system, trees) of a run that has a checkpoint.

    Args:
      run: Its workdir.
      data_dir: A prepared directory to use in place of the run's own; its schema must be the same.
      best: The best checkpoint rather than the newest.
    """
    path = epath.Path(run) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the --workdir of a recjax.train run")
    config = ConfigDict(json.loads(path.read_text()))
    if data_dir:
        config.data.dir = data_dir
    data = open_data(config.data)
    system = models.build(data.schema, config.model)
    split = config.data.train if config.data.train in data.splits else next(iter(data.splits))
    example = next(iter(data.batches(split, config.train.batch, shards=1)))
    mesh = meshes.make()
    plan, everywhere = placement(system, config, mesh), meshes.replicated(mesh)
    trees = init_trees(system, config, jax.device_put(example, everywhere), plan)
    trees = transfer.apply(trees, system, config, data, epath.Path(run))
    sums = zero_sums(system, trees, example)
    tables = plan.place(trees.pop("tables"))
    trees, sums = jax.device_put((trees, sums), everywhere)
    trees["tables"] = tables
    checkpoints = checkpoint.Checkpoints(epath.Path(run) / "checkpoints")
    check = functools.partial(transfer.check_data, data=data, where=run)
    restored = checkpoints.restore(dict(trees=trees, sums=sums), best=best, check=check)
    checkpoints.close()
    if restored is None:
        raise FileNotFoundError(
            f"{run} has no {'best ' if best else ''}checkpoint yet; train it first"
        )
    step, saved, _ = restored
    logging.info("evaluating step %d of %s", step, run)
    return config, data, system, saved["trees"]


def main(_) -> None:
    set_up()
    config, data, system, trees = open_run(_RUN.value, _DATA.value, best=_BEST.value)
    mesh = meshes.make()
    evaluator = Evaluator(system, mesh, placement(system, config, mesh))
    for split in _SPLIT.value:
        batches = data.batches(split, config.eval.batch, shards=mesh.size)
        result = plain(evaluator(trees, batches))
        print(json.dumps({"split": split, **result}))
        write_text(
            epath.Path(_RUN.value) / f"evaluation-{split}.json", json.dumps(result, indent=1)
        )


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "workdir of a recjax.train run")
    _DATA = flags.DEFINE_string(
        "data", "", "prepared directory to evaluate on; default: the run's own"
    )
    _SPLIT = flags.DEFINE_list("split", ["test"], "splits")
    _BEST = flags.DEFINE_bool("best", False, "the best checkpoint rather than the newest")
    flags.mark_flag_as_required("run")
    app.run(main)
