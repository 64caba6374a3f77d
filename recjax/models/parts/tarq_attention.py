"""TARQ's attention, which can be read before it is summed, and its sums by code: for training, the alignment loss and serving.

The equations and their sources are in recjax/models/tarq.py.
"""

import math
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.layers import residual_quantizer as rq
from recjax.layers.attention import masked_softmax


class HistoryAttention(nn.Module):
    """MHA(queries, H, H) without biases; queries that see no event get zeros.

    Attributes:
      width: D of queries, events and result.
      heads: Must divide D.
      linear: Weights are the masked logits themselves: an attention of sums is then a sum of attentions.
    """

    width: int
    heads: int
    linear: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        init, shape = nn.initializers.glorot_uniform(), (self.width, self.width)
        made = {n: self.param(n, init, shape, self.param_dtype) for n in ("q", "k", "v", "o")}
        self.kernels = {name: x.astype(self.dtype) for name, x in made.items()}

    def __call__(self, queries: jax.Array, events: jax.Array, mask: jax.Array) -> jax.Array:
        """queries [B, Q, D] (or [Q, D], the same for all), events [B, n, D], mask [B, n] -> [B, Q, D]."""
        weights = self.weights(queries, events, mask)
        value = self.split(events @ self.kernels["v"])
        out = jnp.einsum("bhqn,bhnd->bqhd", weights, value)
        return out.reshape(*out.shape[:2], self.width) @ self.kernels["o"]

    def read(
        self, queries: jax.Array, events: jax.Array, mask: jax.Array, project: jax.Array
    ) -> jax.Array:
        """`__call__` @ project [D, R], folded into the values so that no query is D wide: [B, R, Q]."""
        weights = self.weights(queries, events, mask)
        value = self.split(events @ self.kernels["v"])
        out = (self.kernels["o"] @ project).reshape(self.heads, -1, project.shape[1])
        return jnp.einsum("bhqn,bhnr->brq", weights, jnp.einsum("bhnd,hdr->bhnr", value, out))

    def weights(self, queries: jax.Array, events: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, H, Q, n], zero where masked."""
        query = self.split(queries @ self.kernels["q"])
        key = self.split(events @ self.kernels["k"])
        equation = "hqd,bhnd->bhqn" if queries.ndim == 2 else "bhqd,bhnd->bhqn"
        logits = jnp.einsum(equation, query, key, preferred_element_type=jnp.float32)
        logits, seen = logits / math.sqrt(key.shape[-1]), mask[:, None, None]
        weights = jnp.where(seen, logits, 0.0) if self.linear else masked_softmax(logits, seen)
        return weights.astype(events.dtype)

    def split(self, x: jax.Array) -> jax.Array:
        """[..., T, D] -> [..., H, T, D / H]."""
        return x.reshape(*x.shape[:-1], self.heads, self.width // self.heads).swapaxes(-3, -2)


def look_up(tables: jax.Array, codes: jax.Array) -> jax.Array:
    """sum_l T^l[z_l]: [B, L, K, D], int [B, C, L] -> [B, C, D]."""
    levels = range(tables.shape[1])
    found = [jnp.take_along_axis(tables[:, i], codes[..., i][..., None], axis=1) for i in levels]
    return cast(jax.Array, sum(found))


def alignment(
    c: jax.Array, h_tar: jax.Array, codebooks: jax.Array, tables: jax.Array, codes: jax.Array
) -> jax.Array:
    """A of each row: symmetric KL between soft codes in the original and in the personalised space.

    Args:
      c: [B, C, D].
      h_tar: [B, C, D]; no gradient reaches it.
      codebooks: [L, K, D].
      tables: [B, L, K, D].
      codes: int [B, C, L], of the original space.

    Returns:
      float32 [B, C], never negative.
    """
    v, w = c, jax.lax.stop_gradient(h_tar)
    total: Any = 0.0
    for level, book in enumerate(codebooks):
        table, z = tables[:, level], codes[..., level]
        log_p = nn.log_softmax(-rq.distances(v, book))
        log_q = nn.log_softmax(-jax.vmap(rq.distances)(w, table))  # [B, C, K]
        total = total + ((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q)).sum(-1)
        v = v - book[z]
        w = w - jnp.take_along_axis(table, z[..., None], axis=1)
    return total


def read_tables(tables: jax.Array, codes: jax.Array, readout: jax.Array | None) -> jax.Array:
    """sum_r u_r sum_l T^l_r[z_l], float32 [B, C].

    One look-up a level and dimension, each in K floats that stay in the cache: XLA:CPU turns those into vector gathers (0.7 ms
    for 100,000 candidates at R = 8, where a gather of whole rows of R takes 3.8 ms and a batched one 12).

    Args:
      tables: [B, L, R, K].
      codes: Integers [B, L, C] below K.
      readout: u, [B, R, C]; None for ones.
    """
    b, levels, width, size = tables.shape
    start = size * jnp.arange(b, dtype=jnp.int32)[:, None]  # all requests' tables end to end
    places = [codes[:, i].astype(jnp.int32) + start for i in range(levels)]
    total: Any = 0.0
    for r in range(width):
        flat = [tables[:, i, r].reshape(-1) for i in range(levels)]
        found = sum(
            t.at[z].get(mode="promise_in_bounds") for t, z in zip(flat, places, strict=True)
        )
        total = total + (found if readout is None else found * readout[:, r])
    return total.astype(jnp.float32)


def dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum, summed in float32."""
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)
