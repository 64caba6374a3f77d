"""Offline distillation: a student trained on labels and on what finished teachers answered.

The loss of `recjax.models.distillation_online` with the teachers' term read from the batch (`recjax.data.loading.taught`): with t the
temperature and K teachers

    loss = BCE(z_s, y) + weight t^2 BCE(z_s / t, mean over teachers of sigmoid(z_k / t))

Ours: the paper distills online [SUM]. A teacher is trained once however many students follow, may be any model of the
library, and several may teach together (the cross-entropy is linear in the target, so the mean of the softened
probabilities is the mean of their losses). The trees are the student's own, as if nobody had taught it.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from recjax import models
from recjax.models.distillation_online import SOFT_LOSS, Softening
from recjax.schema import Schema
from recjax.system import System, bce, mean, weights_of


def build(
    schema: Schema,
    *,
    student: Mapping[str, Any],
    temperature: float = 1.0,
    weight: float = 0.2,
    schedule: str = "constant",
    schedule_examples: int = 0,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
) -> System:
    """A student under teachers whose logits are in the batch.

    Args:
      schema: Of the batches; a batch without teachers (evaluation, export) trains on labels alone.
      student: Model config, `name` and options.
      temperature, weight, schedule, schedule_examples: See `distillation_online.Softening`.
      table: Default for the student's `table`.
      compute_dtype: Default for the student.
    """
    soften = Softening(temperature, weight, schedule, schedule_examples)
    config = {"compute_dtype": compute_dtype, **student}
    config["table"] = {**table, **config.get("table", {})}
    system = models.build(schema, config)
    if system.forward is None or system.setup or system.after_step or system.on_eval:
        raise ValueError(
            f"distillation: model {config['name']!r} cannot be the student: it is not trained by "
            "cross-entropy alone (System.forward, no hooks)"
        )
    own = lambda fn: _on_own_state(fn, soften)  # noqa: E731
    exports = {k: dataclasses.replace(e, fn=own(e.fn)) for k, e in system.exports.items()}
    return dataclasses.replace(
        system,
        init=_with_progress(system.init, soften),
        loss=_loss(system, soften),
        outputs=own(system.outputs),
        exports=exports,
    )


def _with_progress(init, soften: Softening):
    def with_progress(rng, rows, batch):
        dense, state = init(rng, rows, batch)
        return dense, {**state, **soften.progress()}

    return with_progress


def _on_own_state(fn, soften: Softening):
    """`fn` with the state that the student knows."""
    return lambda params, *rest: fn(params.replace(state=soften.split(params.state)[1]), *rest)


def _loss(system: System, soften: Softening):
    main = system.objectives[0]

    def loss(params, batch, rng):
        weights = weights_of(batch)
        progress, own = soften.split(params.state)
        outs, changed = system.forward(params.replace(state=own), batch, rng)
        sums: dict[str, Any] = {}
        total: Any = 0.0
        for o in system.objectives:
            term = bce(outs[o.output], batch["label"][o.label], weights)
            total = total + mean(*term)
            sums["/".join(filter(None, ("loss", o.name)))] = term
        if "teacher" in batch:
            target = targets(batch["teacher"], soften.temperature)
            term = bce(outs[main.output] / soften.temperature, target, weights)
            total = total + soften.factor(progress) * mean(*term)
            sums[SOFT_LOSS] = term
        return total, ({**changed, **soften.advance(progress, batch)}, sums)

    return loss


def targets(logits: Mapping[str, jax.Array], temperature: float) -> jax.Array:
    """Mean of the teachers' softened probabilities, [B, C]."""
    return jnp.mean(jnp.stack([jax.nn.sigmoid(z / temperature) for z in logits.values()]), axis=0)
