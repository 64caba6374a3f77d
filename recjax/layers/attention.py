"""Attention with learned biases on relative position and on time gaps.

Logits, biases and softmax are float32 whatever the compute type.
"""

import math
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

BUCKET_WIDTH = 0.301  # of ln(seconds), as in HSTU's and SUAN's released code
# Bucket of the largest int32 gap, plus one: no other bucket can be reached from int32 seconds.
REACHABLE_BUCKETS = int(math.log(2**31) / BUCKET_WIDTH) + 1


class Pairs(NamedTuple):
    """Which (query, key) pairs attend, and their bias.

    Attributes:
      mask: bool [B, 1, n, s].
      bias: float32 [B, heads or 1, n, s], or None.
    """

    mask: jax.Array
    bias: jax.Array | None


class Layout(NamedTuple):
    """Static key positions of each query, laid out for one attention kernel.

    Attributes:
      keys: int [n, s], or None for "all n, in order".
      allowed: bool [n, s].
    """

    keys: np.ndarray | None
    allowed: np.ndarray


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[B, T, D] -> [B, H, T, D / H]."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def merge_heads(x: jax.Array) -> jax.Array:
    """[B, H, T, dh] -> [B, T, H * dh]."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def masked_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Float32 softmax over the slots where `mask`, last axis; a row without any gets zeros.

    No NaN in value or gradient, fully masked rows included.
    """
    logits = jnp.where(mask, logits.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    e = jnp.where(mask, jnp.exp(logits - top), 0.0)
    total = e.sum(-1, keepdims=True)
    return e / jnp.where(total > 0, total, 1.0)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(dh) + bias) v over allowed keys.

    Args:
      q: [B, H, T, dh].
      k: [B, H, S, dh].
      v: [B, H, S, dh].
      mask: bool, broadcasts to [B, H, T, S]; True where a query may see a key.
      bias: float32, broadcasts to [B, H, T, S], or None.

    Returns:
      [B, H, T, dh] of v's type; zeros for queries that see no key.
    """
    logits = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
    logits = logits / math.sqrt(q.shape[-1])
    weights = masked_softmax(logits if bias is None else logits + bias, mask)
    return jnp.einsum("bhts,bhsd->bhtd", weights.astype(v.dtype), v)


def time_buckets(seconds: jax.Array, num_buckets: int = 128) -> jax.Array:
    """clip(floor(ln(max(|x|, 1)) / 0.301), 0, num_buckets) of *integer* time differences, int32.

    Take the difference in integers: unix seconds do not fit float32.
    """
    if not jnp.issubdtype(jnp.result_type(seconds), jnp.integer):
        raise TypeError(f"time_buckets wants integer differences, got {jnp.result_type(seconds)}")
    gap = jnp.maximum(jnp.abs(seconds.astype(jnp.float32)), 1.0)
    return jnp.clip(jnp.floor(jnp.log(gap) / BUCKET_WIDTH), 0, num_buckets).astype(jnp.int32)


@jax.custom_vjp
def lookup(table: jax.Array, index: jax.Array) -> jax.Array:
    """table [H, N] of a few entries, index int [...] -> [H, ...].

    Millions of pairs share each entry, so the gradient is a histogram. XLA:GPU's float scatter-add
    collapses under such contention (xla #46225): there, compare and reduce; on CPU the scatter is
    faster (11 ms against 290 ms for 2.6 M pairs on one core).
    """
    return table[:, index]


def _lookup_fwd(table, index):
    return lookup(table, index), (table.shape[1], index)


def _lookup_bwd(residuals, g):
    entries, index = residuals
    flat = g.reshape(g.shape[0], -1).astype(jnp.float32)
    grad = jax.lax.platform_dependent(
        index.reshape(-1),
        flat,
        cpu=lambda i, x: histogram_scatter(i, x, entries),
        default=lambda i, x: histogram_compare(i, x, entries),
    )
    return grad, None


def histogram_scatter(index: jax.Array, x: jax.Array, entries: int) -> jax.Array:
    """Sums of x [H, N] by index [N], [H, entries]."""
    return jnp.zeros((x.shape[0], entries)).at[:, index].add(x)


def histogram_compare(index: jax.Array, x: jax.Array, entries: int) -> jax.Array:
    """The same in one fused pass: the [H, N, entries] comparison is never stored."""
    hit = index[None, :, None] == jnp.arange(entries)
    return jnp.where(hit, x[..., None], 0.0).sum(1)


lookup.defvjp(_lookup_fwd, _lookup_bwd)


class PairBias(nn.Module):
    """b_pos + b_time of (query, key) pairs.

    b_pos[i, j] = w_pos[j - i + T - 1] and b_time[b, i, j] = w_time[bucket(t_i - t_j)], both N(0,
    0.02).

    Attributes:
      heads: Rows of each table; 1 shares it among heads.
      num_buckets: w_time has num_buckets + 1 entries.
      time: False leaves b_time out.
    """

    heads: int = 1
    num_buckets: int = 128
    time: bool = True
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, distance: np.ndarray, seconds: jax.Array, length: int) -> jax.Array:
        """Biases of the pairs, float32 [B or 1, heads, n, s].

        Args:
          distance: i - j of each pair, [n, s], static.
          seconds: t_i - t_j of each pair, integers [B, n, s].
          length: T of the longest sequence; w_pos has 2T - 1 entries (T reachable under a causal
            mask).
        """
        init = nn.initializers.normal(0.02)
        positions = self.param("position", init, (self.heads, 2 * length - 1), self.param_dtype)
        index = jnp.asarray(length - 1 - distance, jnp.int32)
        bias = lookup(positions.astype(jnp.float32), index)[None]  # [1, heads, n, s]
        if not self.time:
            return bias
        buckets = jax.lax.stop_gradient(time_buckets(seconds, self.num_buckets))
        times = self.param("time", init, (self.heads, self.num_buckets + 1), self.param_dtype)
        reachable = times.astype(jnp.float32)[:, :REACHABLE_BUCKETS]
        return bias + lookup(reachable, buckets).swapaxes(0, 1)
