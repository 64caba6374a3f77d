"""Row optimizers: one pure update for the touched rows of a table.

Each takes rows [N, d], their state {name: [N, ...]} and gradients [N, d] and returns both anew, so a step costs
O(batch) whatever the vocabulary. Momentum-like state that would have to decay on every row every step does not
belong here: `lazy_adam` counts each row's own steps instead.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

State = dict[str, jax.Array]
INITIAL_ACCUMULATOR = 0.1  # as in TF and FBGEMM; keeps the first step finite
EPS = 1e-8


@dataclasses.dataclass(frozen=True)
class RowOptimizer:
    """`init(rows [V, d]) -> state` with leading axis V, and `update(rows, state, grads, lr) -> (rows, state)`."""

    init: Callable[[jax.Array], State]
    update: Callable[[jax.Array, State, jax.Array, jax.Array], tuple[jax.Array, State]]


def _rowwise_adagrad_update(rows, state, grads, lr):
    acc = state["acc"] + jnp.mean(jnp.square(grads), axis=-1)
    return rows - lr * grads * jax.lax.rsqrt(acc + EPS)[:, None], {"acc": acc}


def _adagrad_update(rows, state, grads, lr):
    acc = state["acc"] + jnp.square(grads)
    return rows - lr * grads * jax.lax.rsqrt(acc + EPS), {"acc": acc}


def _lazy_adam_update(rows, state, grads, lr, b1=0.9, b2=0.999):
    # a row that the batch does not touch keeps its moments; its own count corrects their bias
    touched = jnp.any(grads != 0, axis=-1)
    count = state["count"] + touched
    mu = jnp.where(touched[:, None], b1 * state["mu"] + (1 - b1) * grads, state["mu"])
    nu = jnp.where(touched[:, None], b2 * state["nu"] + (1 - b2) * jnp.square(grads), state["nu"])
    t = jnp.maximum(count, 1).astype(jnp.float32)[:, None]
    step = (mu / (1 - b1**t)) / (jnp.sqrt(nu / (1 - b2**t)) + EPS)
    return jnp.where(touched[:, None], rows - lr * step, rows), {"mu": mu, "nu": nu, "count": count}


OPTIMIZERS: dict[str, RowOptimizer] = {
    "sgd": RowOptimizer(lambda rows: {}, lambda rows, state, grads, lr: (rows - lr * grads, {})),
    "adagrad": RowOptimizer(
        lambda rows: {"acc": jnp.full(rows.shape, INITIAL_ACCUMULATOR)}, _adagrad_update
    ),
    "rowwise_adagrad": RowOptimizer(
        lambda rows: {"acc": jnp.full(rows.shape[:1], INITIAL_ACCUMULATOR)}, _rowwise_adagrad_update
    ),
    "lazy_adam": RowOptimizer(
        lambda rows: {
            "mu": jnp.zeros(rows.shape),
            "nu": jnp.zeros(rows.shape),
            "count": jnp.zeros(rows.shape[:1], jnp.int32),
        },
        _lazy_adam_update,
    ),
}
