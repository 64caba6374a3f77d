"""Two-stage attention: a search keeps k events of a history for each candidate, multi-head attention reads those alone.

SIM, ETA and TWIN differ in the search. Shapes are fixed: k slots, of which those without an event are not valid. Indices carry no
gradient; a padded event is never valid, and where nothing is the result is zero.
"""

import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.layers.attention import lookup, masked_softmax

AGES = 32


def nearest(scores: jax.Array, mask: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k events of the largest scores: index int32 [..., k], valid bool [..., k]; k is cut to L.

    Args:
      scores: [..., L], floats or integers.
      mask: bool, broadcasts to scores; False is never valid.
      k: How many to keep.
    """
    mask = jnp.broadcast_to(mask, scores.shape)
    types = jnp.finfo if jnp.issubdtype(scores.dtype, jnp.floating) else jnp.iinfo
    scores = jnp.where(mask, jax.lax.stop_gradient(scores), types(scores.dtype).min)
    _, index = jax.lax.top_k(scores, min(k, scores.shape[-1]))
    return index, jnp.take_along_axis(mask, index, axis=-1)


def take_events(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [B, L, ...] at index [B, C, k] -> [B, C, k, ...]."""
    return jax.vmap(lambda row, i: row[i])(x, index)


class SearchedAttention(nn.Module):
    """concat over heads of softmax(q K^T / sqrt(d_h)) V over the events found, times W_o; no biases.

    Attributes:
      width: A, of all heads together.
      heads: Must divide it.
    """

    width: int = 64
    heads: int = 2
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, query: jax.Array, events: jax.Array, index: jax.Array, valid: jax.Array
    ) -> jax.Array:
        """query [B, C, d], events [B, L, z], index and valid [B, C, k] -> [B, C, d]."""

        def split(name: str, x: jax.Array) -> jax.Array:
            x = linear(name, self.width, self)(x)
            return x.reshape(*x.shape[:-1], self.heads, self.width // self.heads)

        q, k, v = split("query", query), split("key", events), split("value", events)
        k, v = take_events(k, index), take_events(v, index)  # [B, C, k, H, d_h]
        scores = jnp.einsum("bchd,bckhd->bchk", q, k, preferred_element_type=jnp.float32)
        weights = masked_softmax(scores / math.sqrt(q.shape[-1]), valid[:, :, None])
        out = jnp.einsum("bchk,bckhd->bchd", weights.astype(v.dtype), v)
        out = out.reshape(*out.shape[:2], self.width)
        return linear("out", query.shape[-1], self)(out)


def linear(name: str, width: int, module: Any) -> nn.Dense:
    """A Glorot normal map without a bias, in the types of `module`."""
    types: dict[str, Any] = dict(dtype=module.dtype, param_dtype=module.param_dtype)
    init = nn.initializers.glorot_normal()
    return nn.Dense(width, use_bias=False, kernel_init=init, name=name, **types)


def age_bucket(age: jax.Array, mask: jax.Array) -> jax.Array:
    """min(31, 1 + floor(log2(1 + hours))) of int seconds, 0 where masked, int32."""
    hours = jnp.maximum(age, 0).astype(jnp.float32) / 3600
    bucket = 1 + jnp.floor(jnp.log2(1 + hours)).astype(jnp.int32)
    return jnp.where(mask, jnp.minimum(bucket, AGES - 1), 0)


class AgeEmbedding(nn.Module):
    """A vector for each bucket of `age_bucket`; ages [B, L] -> [B, L, width]."""

    width: int = 4
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, age: jax.Array, mask: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.1)
        table = self.param("table", init, (AGES, self.width), self.param_dtype)
        found = lookup(table.T, age_bucket(age, mask))  # a histogram for a gradient
        return jnp.moveaxis(found, 0, -1).astype(self.dtype)


def everywhere(mask: jax.Array, candidates: int) -> tuple[jax.Array, jax.Array]:
    """Index and valid [B, C, L] that give every candidate all events [B, L]: a short part that needs no search."""
    shape = mask.shape[0], candidates, mask.shape[1]
    return jnp.broadcast_to(jnp.arange(shape[2]), shape), jnp.broadcast_to(mask[:, None], shape)


def last(x: jax.Array, n: int) -> jax.Array:
    """The latest n events of [B, L, ...], or all there are."""
    return x[:, -min(n, x.shape[1]) :]
