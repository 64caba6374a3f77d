"""Target attention: the candidate weighs the events of a history."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.layers.attention import attend, masked_softmax, merge_heads, split_heads
from recjax.layers.mlp import MLP
from recjax.layers.pair_dense import EventPairs


class ActivationUnit(nn.Module):
    """DIN's activation unit: an MLP on (event, candidate, difference, product) weighs events.

    Attributes:
      widths: Of its hidden layers.
      activation: See `recjax.layers.mlp.ACTIVATIONS`.
      softmax: Normalise the weights; DIN sums unnormalised ones, to keep the intensity of
        interests.
    """

    widths: tuple[int, ...] = (80, 40)
    activation: str = "sigmoid"
    softmax: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, query: jax.Array, events: jax.Array, mask: jax.Array, *, train: bool
    ) -> jax.Array:
        """query [B, C, D], events [B, L, D], mask [B, L] -> [B, C, D]; zeros without events."""
        scores = self.scores(query, events, mask, train=train)
        seen = mask[:, None]
        weights = masked_softmax(scores, seen) if self.softmax else jnp.where(seen, scores, 0.0)
        return jnp.einsum("bcl,bld->bcd", weights.astype(events.dtype), events)

    @nn.compact
    def scores(
        self, query: jax.Array, events: jax.Array, mask: jax.Array, *, train: bool
    ) -> jax.Array:
        """The unit's output for each pair, float32 [B, C, L], not masked."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        seen = jnp.broadcast_to(mask[:, None], (*query.shape[:2], mask.shape[1]))  # [B, C, L]
        mlp = MLP(self.widths, activation=self.activation, **types)
        x = mlp(EventPairs(events, query), train=train, valid=seen)
        return nn.Dense(1, name="score", **types)(x)[..., 0].astype(jnp.float32)


class MultiHeadTargetAttention(nn.Module):
    """MHTA(q; X): multi-head attention of queries over events; without events a learned vector.

    Attributes:
      width: d, of the result.
      heads: Must divide it.
    """

    width: int
    heads: int = 4
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, query: jax.Array, events: jax.Array | None, mask: jax.Array | None
    ) -> jax.Array:
        """query [B, T, d], events [B, L, d] (None: there is no list), mask [B, L] -> [B, T, d]."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        empty = self.param("empty", nn.initializers.normal(0.02), (self.width,), self.param_dtype)
        empty = jnp.broadcast_to(empty.astype(self.dtype), (*query.shape[:2], self.width))
        if events is None:
            return empty
        q, k, v = (
            split_heads(nn.Dense(self.width, name=name, **types)(x), self.heads)
            for name, x in (("query", query), ("key", events), ("value", events))
        )
        out = merge_heads(attend(q, k, v, mask[:, None, None]))
        out = nn.Dense(self.width, name="out", **types)(out)
        return jnp.where(mask.any(1)[:, None, None], out, empty)
