"""Row optimizers: one pure update for the touched rows of a table.

Each takes rows [N, d], their state {name: [N, ...]} and gradients [N, d] and returns both anew, so a step costs
O(batch) whatever the vocabulary. Momentum-like state that would have to decay on every row every step does not
belong here: `lazy_adam` counts each row's own steps instead. Where a row's columns lie on several devices, `mean`
is the mean over the whole row.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp

State = dict[str, jax.Array]
Mean = Callable[[jax.Array], jax.Array]
FTRL_ACCUMULATOR = 0.1  # at 0 the closed form would forget the initial rows
EPS = 1e-8


def row_mean(x: jax.Array) -> jax.Array:
    """[N, d] -> [N]."""
    return jnp.mean(x, axis=-1)


@dataclasses.dataclass(frozen=True)
class RowOptimizer:
    """Two functions.

    Attributes:
      init: (rows [V, d], where sums of squares begin) -> state with leading axis V.
      update: (rows, state, grads, lr, *, mean, l1) -> (rows, state), all float32 with leading axis N.
    """

    init: Callable[[jax.Array, float], State]
    update: Callable[..., tuple[jax.Array, State]]


def _sgd_update(rows, state, grads, lr, **_):
    return rows - lr * grads, {}


def _rowwise_adagrad_update(rows, state, grads, lr, *, mean: Mean = row_mean, **_):
    acc = state["acc"] + mean(jnp.square(grads))
    return rows - lr * grads / (jnp.sqrt(acc) + EPS)[:, None], {"acc": acc}


def _adagrad_update(rows, state, grads, lr, **_):
    acc = state["acc"] + jnp.square(grads)
    return rows - lr * grads / (jnp.sqrt(acc) + EPS), {"acc": acc}


def _lazy_adam_update(rows, state, grads, lr, *, mean: Mean = row_mean, b1=0.9, b2=0.999, **_):
    # a row that the batch does not touch keeps its moments; its own count corrects their bias
    touched = mean((grads != 0).astype(jnp.float32)) > 0
    count = state["count"] + touched
    mu = jnp.where(touched[:, None], b1 * state["mu"] + (1 - b1) * grads, state["mu"])
    nu = jnp.where(touched[:, None], b2 * state["nu"] + (1 - b2) * jnp.square(grads), state["nu"])
    t = jnp.maximum(count, 1).astype(jnp.float32)[:, None]
    left = lambda b: -jnp.expm1(t * math.log(b))  # noqa: E731  (1 - b**t loses six bits at t = 1)
    step = (mu / left(b1)) / (jnp.sqrt(nu / left(b2)) + EPS)
    return jnp.where(touched[:, None], rows - lr * step, rows), {"mu": mu, "nu": nu, "count": count}


def _ftrl_init(rows, _):
    # `linear` starts where the closed form gives the initial rows back (TF starts at 0 and forgets them)
    n = FTRL_ACCUMULATOR
    return {"acc": jnp.full(rows.shape, n), "linear": -rows.astype(jnp.float32) * jnp.sqrt(n)}


def _ftrl_update(rows, state, grads, lr, *, l1: float = 0.0, **_):
    """FTRL-proximal (McMahan et al., KDD 2013, algorithm 1, beta = lambda2 = 0), `linear` being z times alpha.

    With l1 = 0 it is Adagrad; l1 makes coordinates exactly zero.
    """
    acc = state["acc"] + jnp.square(grads)
    linear = state["linear"] + lr * grads - (jnp.sqrt(acc) - jnp.sqrt(state["acc"])) * rows
    shrunk = jnp.sign(linear) * jnp.maximum(jnp.abs(linear) - lr * l1, 0.0)
    # An untouched coordinate keeps its value; a rate of zero (the end of a schedule) then moves nothing either.
    after = jnp.where(grads == 0, rows, -shrunk / jnp.sqrt(acc))
    return after, {"acc": acc, "linear": linear}


OPTIMIZERS: dict[str, RowOptimizer] = {
    "sgd": RowOptimizer(lambda rows, _: {}, _sgd_update),
    "adagrad": RowOptimizer(
        lambda rows, start: {"acc": jnp.full(rows.shape, start)}, _adagrad_update
    ),
    "rowwise_adagrad": RowOptimizer(
        lambda rows, start: {"acc": jnp.full(rows.shape[:1], start)}, _rowwise_adagrad_update
    ),
    "lazy_adam": RowOptimizer(
        lambda rows, _: {
            "mu": jnp.zeros(rows.shape),
            "nu": jnp.zeros(rows.shape),
            "count": jnp.zeros(rows.shape[:1], jnp.int32),
        },
        _lazy_adam_update,
    ),
    "ftrl": RowOptimizer(_ftrl_init, _ftrl_update),
}


def _mix(x: jax.Array) -> jax.Array:
    """murmur3's 32-bit finalizer."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def stochastic_round(
    x: jax.Array, rng: jax.Array, rows: jax.Array, columns: jax.Array
) -> jax.Array:
    """float32 [N, d] -> bfloat16, up or down with probabilities that keep the mean.

    The noise is a function of (rng, row id [N], column [d]) alone, so every mesh rounds alike. Without it a bfloat16
    table stops learning once a step is below 1/256 of a weight.
    """
    seed = jax.random.bits(rng, (2,), jnp.uint32)
    noise = _mix(
        _mix(rows.astype(jnp.uint32) + seed[0])[:, None] ^ (columns.astype(jnp.uint32) + seed[1])
    )
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) + (noise & 0xFFFF)
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32).astype(
        jnp.bfloat16
    )
