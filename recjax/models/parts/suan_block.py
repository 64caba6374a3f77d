"""The unified attention block of SUAN, and its parameters and FLOPs in closed form; LightSUAN gives it another pattern of pairs.

The equations and their sources are in recjax/models/suan.py.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax.layers.attention import (
    Layout,
    Pairs,
    attend,
    masked_softmax,
    merge_heads,
    split_heads,
)
from recjax.layers.mlp import ReluFFN, SwiGLU
from recjax.layers.norm import make_norm


@dataclasses.dataclass(frozen=True)
class FullPattern:
    """Every behaviour sees all before it and itself (FIG-M, left); not `causal`: all behaviours."""

    causal: bool = True

    def layouts(self, n: int) -> tuple[Layout, ...]:
        allowed = np.ones((n, n), bool)
        return (Layout(None, np.tril(allowed) if self.causal else allowed),)

    def keys(self, n: int) -> np.ndarray:
        """Behaviours that a candidate at position n sees."""
        return np.arange(n)

    def attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, pairs: tuple[Pairs, ...]
    ) -> jax.Array:
        """[B, H, n, dh] x 3 -> [B, H, n, dh]; `pairs` follow `layouts`."""
        return attend(q, k, v, *pairs[0])


class SelfAttention(nn.Module):
    """Multi-head self-attention; candidates share the behaviours' keys. No projection biases."""

    width: int
    heads: int
    pattern: Any
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.query, self.key, self.value, self.out = (linear(self, self.width) for _ in range(4))

    def behaviours(self, x: jax.Array, pairs: tuple[Pairs, ...]):
        """x [B, n, D] -> [B, n, D], and K, V [B, H, m, dh] of what candidates see."""
        q, k, v = (split_heads(f(x), self.heads) for f in (self.query, self.key, self.value))
        out = self.out(merge_heads(self.pattern.attend(q, k, v, pairs)))
        keys = self.pattern.keys(x.shape[1])
        if len(keys) < x.shape[1]:
            k, v = k[:, :, keys], v[:, :, keys]
        return out, k, v

    def candidates(self, x: jax.Array, k: jax.Array, v: jax.Array, pairs: Pairs) -> jax.Array:
        """x [B, C, D] -> [B, C, D]: each sees K, V and itself, the last slot of `pairs`."""
        q, own_k, own_v = (
            split_heads(f(x), self.heads) for f in (self.query, self.key, self.value)
        )
        seen = jnp.einsum("bhcd,bhmd->bhcm", q, k, preferred_element_type=jnp.float32)
        own = (q * own_k).sum(-1, keepdims=True, dtype=jnp.float32)
        logits = jnp.concatenate([seen, own], axis=-1) / math.sqrt(q.shape[-1])
        weights = masked_softmax(logits if pairs.bias is None else logits + pairs.bias, pairs.mask)
        weights = weights.astype(v.dtype)
        out = jnp.einsum("bhcm,bhmd->bhcd", weights[..., :-1], v) + weights[..., -1:] * own_v
        return self.out(merge_heads(out))


class CrossAttention(nn.Module):
    """Sequence rows ask, profile tokens answer. No mask: a missing field has an id of its own."""

    width: int
    heads: int
    scale: str = "dh"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.query, self.key, self.value, self.out = (linear(self, self.width) for _ in range(4))

    def __call__(self, x: jax.Array, profile: jax.Array) -> jax.Array:
        """x [B, T, D], profile [B, n2, d] -> [B, T, D]."""
        q = split_heads(self.query(x), self.heads)
        k, v = (split_heads(f(profile), self.heads) for f in (self.key, self.value))
        logits = jnp.einsum("bhtd,bhpd->bhtp", q, k, preferred_element_type=jnp.float32)
        size = q.shape[-1] if self.scale == "dh" else profile.shape[1]
        weights = jax.nn.softmax(logits / math.sqrt(size), axis=-1).astype(v.dtype)
        return self.out(merge_heads(jnp.einsum("bhtp,bhpd->bhtd", weights, v)))


class AlignmentGate(nn.Module):
    """Dual alignment attention: mixes two branches per channel [FIG-A, CODE]."""

    width: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.squeeze = linear(self, self.width // 4)
        self.to_self, self.to_cross = linear(self, self.width), linear(self, self.width)

    def weights(self, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
        """mean [B, rows, D] -> w_self, w_cross [B, rows, D], summing to 1."""
        h = nn.relu(self.squeeze(mean))
        w = nn.sigmoid((self.to_self(h) - self.to_cross(h)).astype(jnp.float32))  # softmax of two
        return w.astype(self.dtype), (1 - w).astype(self.dtype)

    def __call__(self, mean: jax.Array, own: jax.Array, cross: jax.Array) -> jax.Array:
        w_self, w_cross = self.weights(mean)
        return w_self * own + w_cross * cross


def linear(module, features: int, use_bias: bool = False) -> nn.Dense:
    init = nn.initializers.glorot_uniform()  # TF's default [CODE]
    types: dict[str, Any] = dict(dtype=module.dtype, param_dtype=module.param_dtype)
    return nn.Dense(features, use_bias=use_bias, kernel_init=init, **types)


class Rows(NamedTuple):
    """Rows halfway through a block, [B, rows, D]: residual stream, RMS_2 of it, cross-attention."""

    stream: jax.Array
    x2: jax.Array
    cross: jax.Array | None

    @property
    def total(self) -> jax.Array:
        """E_sum = E_self + E_cross, float32."""
        return self.x2.astype(jnp.float32) + (0.0 if self.cross is None else self.cross)


class UnifiedAttentionBlock(nn.Module):
    """See the module docstring. Behaviours and candidates pass through side by side."""

    width: int
    heads: int
    pattern: Any = FullPattern()
    gate_pool: str = "full"
    residual: str = "normalised"
    norm: str = "rms"
    ffn: str = "swiglu"
    af_net: bool = True
    alignment: bool = True
    cross_scale: str = "dh"
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.norm1, self.norm2, self.norm3 = (make_norm(self.norm, **types) for _ in range(3))
        self.attention = SelfAttention(self.width, self.heads, self.pattern, **types)
        if self.af_net:
            self.cross = CrossAttention(self.width, self.heads, self.cross_scale, **types)
            if self.alignment:
                self.gate = AlignmentGate(self.width, **types)
        self.feed_forward = (SwiGLU if self.ffn == "swiglu" else ReluFFN)(**types)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, behaviours, candidates, profile, pairs, candidate_pairs, valid, train=False):
        """One block over both.

        Args:
          behaviours: [B, n, D].
          candidates: [B, C, D]; C <= 1 with gate_pool "full".
          profile: [B, n2, d].
          pairs: Of the behaviours, as the pattern lays them out.
          candidate_pairs: [B, ., 1, m + 1]: the m behaviours a candidate sees, and itself.
          valid: bool [B, n].
          train: Static.

        Returns:
          behaviours [B, n, D], candidates [B, C, D].
        """
        b, k, v = self._behaviour_rows(behaviours, profile, pairs, train)
        c = self._candidate_rows(candidates, k, v, profile, candidate_pairs, train)
        total, count = _pool(b, valid)
        if self.gate_pool == "full":
            count = count + candidates.shape[1]
            mean_b = mean_c = (total + c.total.sum(1, keepdims=True)) / jnp.maximum(count, 1)
        else:
            mean_b, mean_c = self._behaviour_mean(b, valid), self._candidate_mean(c, total, count)
        return self._finish(b, mean_b, train), self._finish(c, mean_c, train)

    def prefix(self, behaviours, profile, pairs, valid) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The behaviours' half of the block, and all of it that candidates need."""
        b, k, v = self._behaviour_rows(behaviours, profile, pairs, False)
        total, count = _pool(b, valid)
        cache = {"key": k, "value": v, "total": total, "count": count}
        return self._finish(b, self._behaviour_mean(b, valid), False), cache

    def score(self, candidates, cache, profile, candidate_pairs) -> jax.Array:
        """The candidates' half, [B, C, D] -> [B, C, D]."""
        c = self._candidate_rows(
            candidates, cache["key"], cache["value"], profile, candidate_pairs, False
        )
        return self._finish(c, self._candidate_mean(c, cache["total"], cache["count"]), False)

    def _behaviour_rows(self, x, profile, pairs, train):
        x1 = self.norm1(x)
        attended, k, v = self.attention.behaviours(x1, pairs)
        return self._rows(x, x1, attended, profile, train), k, v

    def _candidate_rows(self, x, k, v, profile, pairs, train) -> Rows:
        x1 = self.norm1(x)
        return self._rows(x, x1, self.attention.candidates(x1, k, v, pairs), profile, train)

    def _rows(self, x, x1, attended, profile, train) -> Rows:
        stream = self._add(x, x1, attended, train)
        x2 = self.norm2(stream)
        return Rows(stream, x2, self.cross(x2, profile) if self.af_net else None)

    def _add(self, raw, normalised, update, train):
        """The residual; "raw" is textbook pre-norm."""
        start = normalised if self.residual == "normalised" else raw
        return start + self.drop(update, deterministic=not train)

    def _behaviour_mean(self, b: Rows, valid) -> jax.Array:
        """What gates behaviour rows, [B, 1 or n, D]."""
        if self.gate_pool == "causal":
            sums = jnp.cumsum(b.total * valid[..., None], axis=1)
            return sums / jnp.maximum(jnp.cumsum(valid, axis=1)[..., None], 1)
        total, count = _pool(b, valid)
        return total / jnp.maximum(count, 1)

    def _candidate_mean(self, c: Rows, total, count) -> jax.Array:
        """What gates candidate rows, [B, 1 or C, D]; "causal": behaviours and the candidate."""
        if self.gate_pool == "causal":
            return (total + c.total) / (count + 1)
        return total / jnp.maximum(count, 1)

    def _finish(self, rows: Rows, mean, train) -> jax.Array:
        stream, x2, cross = rows
        if self.af_net:
            f = self.gate(mean.astype(self.dtype), x2, cross) if self.alignment else cross
            stream = self._add(stream, x2, f, train)
        elif self.residual == "normalised":
            stream = x2
        x3 = self.norm3(stream)
        return self._add(stream, x3, self.feed_forward(x3), train)


def _pool(b: Rows, valid) -> tuple[jax.Array, jax.Array]:
    """Sum [B, 1, D] of E_sum over valid behaviours, and their number [B, 1, 1]."""
    return (b.total * valid[..., None]).sum(1, keepdims=True), valid.sum(1)[:, None, None]


def block_parameters(width: int, dim: int) -> int:
    """Parameters of one block, 15.75 D^2 + 2 d D + 10 D, for D divisible by 4.

    4 D^2 self-attention, 2 D^2 + 2 d D cross-attention, 0.75 D^2 gate, 9 D^2 + 7 D FFN, 3 D norms.
    """
    return 63 * width * width // 4 + 2 * dim * width + 10 * width


def block_flops(
    width: int,
    dim: int,
    tokens: int,
    profile_tokens: int,
    pairs: int | None = None,
    gate_rows: int = 1,
) -> int:
    """Forward FLOPs of one block for one example, two per multiply-add; matrix products only.

    Args:
      width: D.
      dim: d.
      tokens: T = n + 1 (n + C with candidates side by side).
      profile_tokens: n2.
      pairs: (query, key) pairs computed; default T^2, the masked dense form.
      gate_rows: Rows the gate is computed for: 1, or T with gate_pool "causal".
    """
    pairs = tokens**2 if pairs is None else pairs
    projections = 2 * tokens * (4 + 2 + 9) * width**2
    cross = 4 * profile_tokens * dim * width + 4 * tokens * profile_tokens * width
    return int(projections + cross + 4 * width * pairs + 1.5 * gate_rows * width**2)
