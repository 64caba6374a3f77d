"""A dense layer on (event, query) pairs, without ever holding the pairs' features.

The activation units of DIN, DIHN and AW-MoE read [e; q; e - q; e * q] of each event and query. The first layer is linear, so

    W [e; q; e - q; e * q] = (W_e + W_d) e + (W_q - W_d) q + W_p (e * q)

The terms of e and q are computed once for an event and once for a query, and the [B, C, L, 4 D] tensor of the features is
never made. Parameters are those of a dense layer on that tensor: `kernel` [4 D, W] and `bias` [W].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp


class EventPairs(NamedTuple):
    """Every event of a history beside every query: what `PairDense` and an `MLP` take in place of features.

    Attributes:
      events: [B, L, D].
      query: [B, C, D].
    """

    events: jax.Array
    query: jax.Array

    def features(self) -> jax.Array:
        """[e; q; e - q; e * q], [B, C, L, 4 D]: what the layer computes with, written out."""
        e, q = jnp.broadcast_arrays(self.events[:, None], self.query[:, :, None])
        return jnp.concatenate([e, q, e - q, e * q], axis=-1)


class PairDense(nn.Module):
    """A dense layer on `EventPairs.features()`, to rounding.

    Attributes:
      features: W.
      kernel_init: Of the [4 D, W] kernel.
    """

    features: int
    kernel_init: Callable[..., Any] = nn.initializers.he_normal()
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: EventPairs) -> jax.Array:
        """[B, C, L, W]."""
        d = x.query.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (4 * d, self.features), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        w_e, w_q, w_d, w_p = jnp.split(kernel, 4)
        # Sums of weights are taken in the parameters' type: bfloat16 would lose a bit in each.
        own_e, own_q, both, bias, e, q = (
            a.astype(self.dtype) for a in (w_e + w_d, w_q - w_d, w_p, bias, x.events, x.query)
        )
        of_query = (q @ own_q + bias)[:, :, None]  # [B, C, 1, W]
        if q.shape[1] == 1:  # one product twice as deep is faster than two products
            pair = jnp.concatenate([e, e * q], axis=-1) @ jnp.concatenate([own_e, both])
            return pair[:, None] + of_query
        return (e @ own_e)[:, None] + of_query + (e[:, None] * q[:, :, None]) @ both
