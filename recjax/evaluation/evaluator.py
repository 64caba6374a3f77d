"""The evaluator: metrics of a system on batches, while it trains and after.

Sums are kept on the device and merged; predictions are kept on the host up to 10 M rows, for exact AUC and grouped
AUC. The command is `recjax.evaluate`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from absl import logging
import jax
from jax.sharding import Mesh
import numpy as np

from recjax import embedding
from recjax.batch import Batch
from recjax.evaluation.collector import Collector, SliceCollector
from recjax.metrics import classification
from recjax.runtime import hosts
from recjax.runtime import mesh as meshes
from recjax.system import System, weights_of
from recjax.trees import Trees

if TYPE_CHECKING:  # a data set of one's own need not bring TFDS
    from recjax.data.loading.slices import Slice


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
        self._zeros = jax.jit(lambda: {o.name: classification.init() for o in system.objectives})
        self.outputs = jax.jit(self._forward)

    def _forward(self, trees: Trees, batch: Batch) -> dict[str, jax.Array]:
        rows = embedding.gather(self.system.tables, trees.tables, batch, self.plan)
        return self.system.outputs(trees.params(rows), batch)

    def put(self, batch: Batch) -> Batch:
        return meshes.put(self.mesh, self.plan.route(batch))

    def _measure(self, trees: Trees, sums: dict, batch: Batch):
        """New sums, and what `_collect` takes: the rows of all processes, everywhere."""
        outputs, out = self._forward(trees, batch), {}
        for o in self.system.objectives:
            args = outputs[o.output], batch["label"][o.label], weights_of(batch)
            out[o.name] = classification.update(sums[o.name], *args)
        seen = {k: batch[k] for k in ("label", "weight", "valid", "row", "group")}
        names = {o.output for o in self.system.objectives} | set(self.system.kept)
        wanted = {name: outputs[name] for name in sorted(names)}
        everywhere = meshes.replicated(self.mesh)
        return out, jax.lax.with_sharding_constraint((seen, wanted), everywhere)

    def __call__(
        self,
        trees: Trees,
        batches: Iterable[Batch],
        poll: Callable[[], None] = lambda: None,
        slices: Sequence["Slice"] = (),
        take: Callable[[dict[str, np.ndarray]], None] | None = None,
    ) -> dict:
        """Metrics of every objective (see recjax.metrics.classification.compute), those of named ones prefixed "<name>/".

        Args:
          trees: Of the system.
          batches: Host batches.
          poll: Called once a batch; may raise to end early.
          slices: Of the split; with any, the result has "slices": slice -> part -> metrics, exact like the others.
          take: Gets what `predictions` would return.

        Past the rows that a `Collector` keeps, `System.measure` and `take` are not called, and "undefined" says so.
        """
        objectives = self.system.objectives
        sums = self._zeros()
        rows = {o.name: (Collector(), SliceCollector(slices)) for o in objectives}
        kept: dict[str, list] = {name: [] for name in self.system.kept}
        trees = trees.replace(opt=())
        ahead = None
        for batch in batches:
            poll()
            sums, seen = self._step(trees, sums, self.put(batch))
            if ahead is not None:
                self._collect(rows, kept, *jax.device_get(ahead))
            ahead = seen
        if ahead is not None:
            self._collect(rows, kept, *jax.device_get(ahead))
        out = {}
        for o in objectives:
            prefix = f"{o.name}/" if o.name else ""
            whole, parts = rows[o.name]
            measured = classification.compute(jax.device_get(sums[o.name])) | whole.compute()
            measured["evaluated"] = measured.pop("examples")  # "examples" are those trained on
            measured |= {"slices": parts.compute()} if slices else {}
            out.update({prefix + k: v for k, v in measured.items()})
        first = rows[objectives[0].name][0]
        if first.exact:
            if self.system.measure is not None:
                out.update(self.system.measure(_columns(objectives, rows, kept)))
            if take is not None:
                take(first.rows())
        elif self.system.measure is not None or take is not None:
            reason = (
                f"{first.count} rows are more than the {first.max_rows} that are kept: figures and files of "
                "single rows are left out; set eval.examples to have them"
            )
            logging.warning("%s", reason)
            out["undefined"] = "; ".join(filter(None, (out.get("undefined"), reason)))
        return hosts.from_first(out)  # decisions follow: the last bit must not differ

    def predictions(
        self, trees: Trees, batches: Iterable[Batch], poll: Callable[[], None] = lambda: None
    ) -> dict[str, np.ndarray]:
        """Every scored row of the main objective: logit, label, weight, row, group/<key>, each [N]."""
        rows = {o.name: (Collector(),) for o in self.system.objectives}
        trees = trees.replace(opt=())
        for batch in batches:
            poll()
            self._collect(rows, {}, batch, self.outputs(trees, self.put(batch)))
        return rows[self.system.objectives[0].name][0].rows()

    def _collect(self, rows: dict, kept: dict, batch: Batch, outputs: dict) -> None:
        weights = batch["weight"] * batch["valid"]
        for o in self.system.objectives:
            own = outputs[o.output], batch["label"][o.label], weights, batch["row"], batch["group"]
            for collector in rows[o.name]:
                collector.add(*own)
        whole = rows[self.system.objectives[0].name][0]
        for name, parts in kept.items():
            parts.append(np.asarray(outputs[name])[weights > 0])
            if not whole.exact:
                parts.clear()  # `measure` will not be called


def _columns(objectives: tuple, rows: dict, kept: dict) -> dict[str, np.ndarray]:
    """What `System.measure` sees."""
    first, *others = objectives
    columns = rows[first.name][0].rows()
    for o in others:
        own = rows[o.name][0].rows()
        columns |= {f"{o.name}/{k}": own[k] for k in ("logit", "label")}
    return columns | {name: np.concatenate(parts) for name, parts in kept.items()}
