"""The numbers of a run as records: `Trees`, which training changes, and `Params`, what a model reads of them.

Both are pytrees. A checkpoint stores `Trees` as a dict with these names (recjax.runtime.checkpoint).
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax

Tree = Any  # a pytree of arrays
Rows = Mapping[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Params:
    """What a model's functions read besides the batch.

    Attributes:
      dense: Parameters that optax updates.
      rows: Table path -> [S, U, d], the gathered rows of the batch's unique ids.
      state: Flax collections beside the parameters: batch statistics, code usage, ...
      frozen: Parameters of an earlier stage.
    """

    dense: Tree
    rows: Rows = dataclasses.field(default_factory=dict)
    state: Tree = dataclasses.field(default_factory=dict)
    frozen: Tree = dataclasses.field(default_factory=dict)

    def replace(self, **changes: Tree) -> "Params":
        return dataclasses.replace(self, **changes)

    @property
    def variables(self) -> dict[str, Tree]:
        """What `flax.linen.Module.apply` takes."""
        return {"params": self.dense, **self.state}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trees:
    """All numbers of a run.

    Attributes:
      dense: Parameters that optax updates.
      tables: Table path -> {"rows": [V, d], row-optimizer state ...} (see recjax.embedding); never seen by optax.
      state: Batch statistics, code usage, ...: changed by training, used in evaluation, checkpointed, exported.
      frozen: Parameters of an earlier stage: read, never updated.
      opt: State of optax for `dense`; () where nothing trains.
    """

    dense: Tree
    tables: dict[str, dict[str, jax.Array]] = dataclasses.field(default_factory=dict)
    state: Tree = dataclasses.field(default_factory=dict)
    frozen: Tree = dataclasses.field(default_factory=dict)
    opt: Tree = ()

    def replace(self, **changes: Tree) -> "Trees":
        return dataclasses.replace(self, **changes)

    def params(self, rows: Rows) -> Params:
        """What a model reads, with the rows that were gathered for a batch."""
        return Params(self.dense, rows, self.state, self.frozen)

    def as_dict(self) -> dict[str, Tree]:
        """The trees by name, for paths such as "dense/head/kernel"."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
