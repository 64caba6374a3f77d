"""The two layers of QIN (recjax/models/qin.py): sparse target attention, and products of x with linear maps of itself."""

import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.layers.attention import masked_softmax
from recjax.layers.mlp import MaskedBatchNorm

glorot = nn.initializers.glorot_normal()


def attention_weights(scores: jax.Array, mask: jax.Array, kind: str, norm: str) -> jax.Array:
    """Weights float32 [B, C, S] of scores [B, C, S] and mask [B, S]; exactly 0 where masked.

    Args:
      scores: Already divided by sqrt(A).
      mask: Real events.
      kind: "relu" (un-normalised) or "softmax".
      norm: "length" divides a ReLU's weights by the number of events.
    """
    mask = mask[:, None]
    if kind == "softmax":
        return masked_softmax(scores, mask)
    weights = nn.relu(jnp.where(mask, scores, 0.0))
    return weights / jnp.maximum(mask.sum(-1, keepdims=True), 1) if norm == "length" else weights


class ASTA(nn.Module):
    """Adaptive sparse target attention.

    Attributes:
      features: I, of an item; queries and keys have twice as many.
      attention: "relu", "softmax" or "none" (o = x_t).
      norm: See `attention_weights`.
      output_bias: Of W_o.
    """

    features: int
    attention: str = "relu"
    norm: str = "none"
    output_bias: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        dense = functools.partial(
            nn.Dense, kernel_init=glorot, dtype=self.dtype, param_dtype=self.param_dtype
        )
        if self.attention != "none":
            self.query, self.key, self.value = (
                dense(2 * self.features, use_bias=False) for _ in range(3)
            )
            self.output = dense(self.features, use_bias=self.output_bias)

    def __call__(self, events: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
        """Events [B, S, I], targets [B, C, I], mask [B, S] -> interests [B, C, I]."""
        if self.attention == "none":
            return target
        weights = self.weights(events, target, mask).astype(self.dtype)
        pooled = jnp.einsum("bcs,bsa->bca", weights, self.value(events))
        return self.output(pooled) + target

    def weights(self, events: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
        """a, float32 [B, C, S]."""
        q, k = self.query(target), self.key(events)
        scores = jnp.einsum("bca,bsa->bcs", q, k, preferred_element_type=jnp.float32)
        scores = scores / math.sqrt(q.shape[-1])
        return attention_weights(scores, mask, self.attention, self.norm)

    def correlation(self, events: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
        """Size of what each event adds, a_j |V_j W_o|, float32 [B, C, S]."""
        if self.attention == "none":
            return jnp.zeros((*target.shape[:2], events.shape[1]), jnp.float32)
        kernel = self.output.variables["params"]["kernel"].astype(self.dtype)
        added = (self.value(events) @ kernel).astype(jnp.float32)
        return self.weights(events, target, mask) * jnp.linalg.norm(added, axis=-1)[:, None]


def quadratic(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """sum_m x * (x W_m + b_m) of x [..., D], kernel [D, M D] and bias [M D]: x * (x W + b) with the rows' sums."""
    d = x.shape[-1]
    return x * (x @ kernel.reshape(d, -1, d).sum(1) + bias.reshape(-1, d).sum(0))


class QuadraticLayer(nn.Module):
    """One layer of the quadratic network.

    Attributes:
      rows: M.
      heads: H, of `mid_activation="relu"` only; divides the width.
      mid_activation: "none" (QIN) or "relu" (QNN-alpha).
      dropout: Rate, of the rows and of the output.
    """

    rows: int = 3
    heads: int = 1
    mid_activation: str = "none"
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array | None = None) -> jax.Array:
        """x [..., D] -> [..., D]; batch statistics count rows where `valid`, bool [...]."""
        d = x.shape[-1]
        kernel = self.param("kernel", glorot, (d, self.rows * d), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.rows * d,), self.param_dtype)
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        # torch's momentum .1; its running variance divides by n - 1, ours by n
        norm = MaskedBatchNorm(eps=1e-5, momentum=0.9, name="norm", **types)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        if self.mid_activation == "relu":
            h = drop(nn.relu(norm(x @ kernel + bias, train=train, valid=valid)))
            h = h.reshape(*x.shape[:-1], self.heads, self.rows, d // self.heads)
            parts = x.reshape(*x.shape[:-1], self.heads, 1, d // self.heads)
            return drop((parts * h).sum(-2).reshape(x.shape) + x)
        if train and self.dropout:  # each row of each example is dropped by itself
            h = drop(x @ kernel + bias).reshape(*x.shape[:-1], self.rows, d)
            y = (x[..., None, :] * h).sum(-2)
        else:
            y = quadratic(x, kernel, bias)
        y = norm(y, train=train, valid=valid)
        slope = self.param("slope", nn.initializers.constant(0.25), (1,), self.param_dtype)
        return drop(jnp.where(y >= 0, y, slope.astype(y.dtype) * y)) + x
