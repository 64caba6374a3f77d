"""What a model is, in numbers, from its `System` alone: parameters by what it declares, FLOPs by tracing. Nothing is trained.

"N" is never a bare number here. A trial has

    n_blocks            parameters that combine inputs, as `System.counts_as` says
    n_head              of what makes logits of them
    n_dense             both, and biases, positions and projections: everything that optax updates
    n_embedding         rows times width of the tables
    flops_per_example   forward, of one example with one candidate; a training step costs about three times that
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from recjax import models
from recjax.batch import Batch
from recjax.data.loading.layout import Layout
from recjax.models.parts import building
from recjax.runtime import flops
from recjax.schema import Schema
from recjax.system import System, parameter_counts
from recjax.trees import Params

TRAIN_FACTOR = 3  # forward, and twice as much backward
NOT_SHAPE = ("optimizer", "lr", "l2", "accumulator", "init_scale")  # of `model.table`


class Size(TypedDict):
    """See the module docstring."""

    n_blocks: int
    n_head: int
    n_dense: int
    n_embedding: int
    flops_per_example: int


SIZES = tuple(Size.__annotations__)


def count(
    schema: Schema,
    model: Mapping[str, Any],
    history: int | Mapping[str, int],
    batch: Callable[[], Batch] | None = None,
) -> Size:
    """The numbers of any model config.

    Args:
      schema: Of the batches.
      model: `name` and options, as in a config's `model`.
      history: L, or the length of each list.
      batch: A batch of data whose batches hold more than their schema says, such as graphs; FLOPs are then of one of its examples.

    Raises:
      ValueError: An option that the model lacks, or a parameter that its `counts_as` leaves out.
    """
    plain = {k: building.plain(v) for k, v in model.items()}
    lengths = {s: history[s] if isinstance(history, Mapping) else history for s in schema.lists}
    own = {k: v for k, v in plain.items() if k != "table"}
    own["table"] = {k: v for k, v in plain.get("table", {}).items() if k not in NOT_SHAPE}
    key = repr((own, sorted(lengths.items()), batch is not None))
    found = _counted(schema).get(key)
    if found is None:
        example = batch() if batch else Layout(schema, 1, lengths).blank()
        found = _counted(schema)[key] = of_system(models.build(schema, plain), example, plain)
    return found


@functools.lru_cache(maxsize=64)
def _counted(schema: Schema) -> dict[str, Size]:
    """What was counted for batches of this schema: seeds and rates of a plan share it."""
    return {}


def of_system(system: System, batch: Any, model: Mapping[str, Any]) -> Size:
    """The numbers of a system on batches of these shapes; `model` names it in messages."""
    rows: Any = {
        t.path: jax.ShapeDtypeStruct((*batch["ids"][t.id_space].shape, t.dim), jnp.dtype(t.dtype))
        for t in system.tables
    }
    dense, state = jax.eval_shape(lambda r, b: system.init(jax.random.key(0), r, b), rows, batch)
    own: Any = parameter_counts(system, dense)
    if own["n_blocks"] is None:
        raise ValueError(
            f"model {model.get('name')!r} does not say what its parameters count as, so there is no law in its size: "
            "give its System counts_as (docs/add_your_own_model.md)"
        )
    earlier = jax.eval_shape(system.earlier, rows, batch) if system.earlier else {}
    score = system.exports.get("score")
    scored = score.fn if score and not score.reads else system.outputs
    cost = flops.of(scored, Params(dense, rows, state, earlier), batch)
    examples = batch["valid"].size if "valid" in batch else 1
    return Size(
        n_dense=own["n_dense"],
        n_blocks=own["n_blocks"],
        n_head=own["n_head"],
        n_embedding=sum(system.schema.space(t.id_space).rows * t.dim for t in system.tables),
        flops_per_example=round(cost / examples),
    )
