"""Evaluation of a run, an artifact, or scores that many hosts wrote, on any prepared data:

    python -m recjax.evaluate --run=runs/suan --split=test [--data=DIR] [--best]
    python -m recjax.evaluate --artifact=DIR --data=PREPARED --split=test
    python -m recjax.evaluate --scores='scores-*.parquet' --data=PREPARED      (recjax.score --shard)

Sums are kept on the device and merged; predictions are kept on the host up to 10 M rows, for exact AUC and grouped
AUC. Prints one JSON object per split and writes it beside the run; under "slices" it holds the same figures of new users,
cold items, scenes and history lengths (`recjax.data.slices`; docs/evaluate.md).
"""

from collections.abc import Callable, Iterable, Sequence
import functools
import glob
import json
import sys
import tempfile
from typing import TYPE_CHECKING

from absl import app, flags, logging
from etils import epath
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from recjax import checkpoint, embedding, metrics, models, transfer
from recjax import mesh as meshes
from recjax.collector import Collector, SliceCollector
from recjax.data import open_data
from recjax.data.layout import BatchError
from recjax.run import plain, set_up, write_text
from recjax.step import init_trees, zero_sums
from recjax.system import System, weights_of

if TYPE_CHECKING:  # a data set of one's own need not bring TFDS
    from recjax.data.slices import Slice

Tree = dict


class Evaluator:
    """Compiled evaluation of one system; call it with trees and batches.

    Args:
      system: What to evaluate.
      mesh: Where.
      plan: Placement of the trees' tables; default: the planner's.

    Attributes:
      outputs: (trees, batch from `put`) -> {output: array}.
    """

    def __init__(self, system: System, mesh: Mesh, plan: embedding.Plan | None = None):
        self.system, self.mesh = system, mesh
        self.plan = plan or embedding.plan(system.tables, system.schema, mesh)
        self._step = jax.jit(self._measure, donate_argnums=1)
        self.outputs = jax.jit(self._forward)

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
        self,
        trees: Tree,
        batches: Iterable[dict],
        poll: Callable[[], None] = lambda: None,
        slices: Sequence["Slice"] = (),
    ) -> dict:
        """Metrics of every objective (see recjax.metrics.compute), those of named ones prefixed "<name>/".

        Args:
          trees: dense, tables, state, frozen.
          batches: Host batches.
          poll: Called once a batch; may raise to end early.
          slices: Of the split; with any, the result has "slices": slice -> part -> metrics, exact like the others.
        """
        objectives = self.system.objectives
        sums = {o.name: metrics.init() for o in objectives}
        rows = {o.name: [Collector(), SliceCollector(slices)] for o in objectives}
        params = {k: trees[k] for k in ("dense", "tables", "state", "frozen")}
        ahead = None
        for batch in batches:
            poll()
            sums, outputs = self._step(params, sums, self.put(batch))
            if ahead is not None:
                self._collect(rows, *ahead)
            ahead = batch, outputs
        if ahead is not None:
            self._collect(rows, *ahead)
        out = {}
        for o in objectives:
            prefix = f"{o.name}/" if o.name else ""
            whole, parts = rows[o.name]
            measured = metrics.compute(jax.device_get(sums[o.name])) | whole.compute()
            measured["evaluated"] = measured.pop("examples")  # "examples" are those trained on
            measured |= {"slices": parts.compute()} if slices else {}
            out.update({prefix + k: v for k, v in measured.items()})
        return out

    def predictions(
        self, trees: Tree, batches: Iterable[dict], poll: Callable[[], None] = lambda: None
    ) -> dict[str, np.ndarray]:
        """Every scored row of the main objective: logit, label, weight, row, group/<key>, each [N]."""
        rows = {o.name: [Collector()] for o in self.system.objectives}
        params = {k: trees[k] for k in ("dense", "tables", "state", "frozen")}
        for batch in batches:
            poll()
            self._collect(rows, batch, self.outputs(params, self.put(batch)))
        return rows[self.system.objectives[0].name][0].rows()

    def _collect(self, rows: dict, batch: dict, outputs: dict) -> None:
        for o in self.system.objectives:
            weights = batch["weight"] * batch["valid"]
            for collector in rows[o.name]:
                collector.add(
                    outputs[o.output],
                    batch["label"][o.label],
                    weights,
                    batch["row"],
                    batch["group"],
                )


def placement(system: System, config: ConfigDict, mesh: Mesh) -> embedding.Plan:
    """The plan for reading a run's tables on this mesh: not measured, so rows travel by the exact all_gather."""
    rules = config.get("embedding", {}).get("placement", ())
    return embedding.plan(system.tables, system.schema, mesh, rules=rules)


def open_both(config: ConfigDict, data_dir: str):
    """(data to evaluate on, with the ids of, data that was trained on); the same without `data_dir`."""
    if not data_dir:
        return (data := open_data(config.data)), data
    other = ConfigDict({**config.data.to_dict(), "dir": data_dir})
    data = open_data(other)
    try:
        trained = open_data(config.data)
    except (ValueError, OSError):  # moved or deleted: then `data_dir` must hold the same
        config.data.dir = data_dir
        return data, data
    spaces = [s.name for s in trained.schema.id_spaces]
    if data.identity == trained.identity or all(
        data.vocabulary_hash(s) == trained.vocabulary_hash(s) for s in spaces
    ):
        return data, trained
    return open_data(other, ids_of=trained), trained


def open_run(run: epath.PathLike, data_dir: str = "", *, best: bool = False):
    """(config, data, system, trees) of a run that has a checkpoint.

    Args:
      run: Its workdir.
      data_dir: A prepared directory to use in place of the run's own. Where its vocabularies are others, its ids are
        translated (`recjax.data.translate`), for which the run's own data must still be there.
      best: The best checkpoint rather than the newest.
    """
    path = epath.Path(run) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the --workdir of a recjax.train run")
    config = ConfigDict(json.loads(path.read_text()))
    data, trained = open_both(config, data_dir)
    system = models.build(trained.schema, config.model)
    split = config.data.train if config.data.train in data.splits else next(iter(data.splits))
    example = next(iter(data.batches(split, config.train.batch, shards=1)))
    mesh = meshes.make()
    plan, everywhere = placement(system, config, mesh), meshes.replicated(mesh)
    trees = init_trees(system, config, jax.device_put(example, everywhere), plan)
    trees = transfer.apply(trees, system, config, trained, epath.Path(run))
    sums = zero_sums(system, trees, example)
    tables = plan.place(trees.pop("tables"))
    trees, sums = jax.device_put((trees, sums), everywhere)
    trees["tables"] = tables
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
    return config, data, system, saved["trees"]


# ---- the command


def evaluate_run(run: str, data_dir: str, splits, *, best: bool, wanted: Sequence[str]) -> dict:
    """split -> metrics of a run, with the wanted slices."""
    config, data, system, trees = open_run(run, data_dir, best=best)
    mesh = meshes.make()
    evaluator = Evaluator(system, mesh, placement(system, config, mesh))
    out = {}
    for split in splits:
        batches = data.batches(split, config.eval.batch, shards=mesh.size)
        slices = slices_of(data, config, split, wanted)
        out[split] = plain(evaluator(trees, batches, slices=slices))
    return out


def slices_of(data, config: ConfigDict, split: str, wanted: Sequence[str]) -> list["Slice"]:
    """Slices of a split; new is what the run has not trained on, where its own data is the one evaluated."""
    if not wanted or not hasattr(data, "prepared"):
        return []
    from recjax.data.slices import make_slices
    from recjax.data.translate import Translated

    trained = None
    if not isinstance(data.prepared, Translated) and config.data.train in data.splits:
        trained = dict(
            prepared=data.prepared, split=config.data.train, examples=config.train.examples
        )
    return make_slices(data.prepared, split, wanted, trained)


def evaluate_scores(pattern: str, data_dir: str, wanted: Sequence[str]) -> dict:
    """split -> metrics of files that `recjax.score` wrote."""
    from recjax import scored  # which itself evaluates
    from recjax.data.prepared import Prepared
    from recjax.data.slices import default_slices, make_slices

    files = sorted(glob.glob(pattern))
    about = scored.read_about(files)
    slices: list[Slice] = []
    if wanted:
        if not data_dir:
            raise BatchError("slices are made from the scored data; give --data, or --slices=")
        prepared = Prepared(data_dir)
        scored.check_data(about, prepared)
        if about["translated"]:  # what the model knew, this data's ids do not tell
            wanted = default_slices(prepared.schema) if list(wanted) == ["default"] else wanted
            wanted = [w for w in wanted if not w.startswith("new:")]
            logging.warning("scored with a model of other data: new: slices are left out")
        trained = dict(about["trained"], prepared=prepared)
        known = trained["split"] in prepared.splits
        slices = make_slices(prepared, about["split"], wanted, trained if known else None)
    return {about["split"]: plain(scored.measure(files, slices))}


def evaluate_artifact(artifact: str, data_dir: str, splits, wanted: Sequence[str]) -> dict:
    """split -> metrics of an artifact on prepared data."""
    from recjax import score

    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for split in splits:
            file = f"{folder}/{split}.parquet"
            score.score(artifact, data_dir, file, split=split)
            out |= evaluate_scores(file, data_dir, wanted)
    return out


def main(_) -> None:
    set_up()
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
    for split, result in found.items():
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
        "new:FEATURE, by:FEATURE, length:LIST; default: recjax.data.slices; '': none",
    )
    _BEST = flags.DEFINE_bool("best", False, "the best checkpoint rather than the newest")
    _OUT = flags.DEFINE_string("out", "", "folder for evaluation-<split>.json; default: the run's")
    app.run(main)
