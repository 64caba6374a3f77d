"""The Transformer block of the sequential recommenders (SASRec, BST)."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.layers.attention import attend, merge_heads, split_heads


class Probe(NamedTuple):
    """What the last token asks of the others: for reading a trained model, dead code elsewhere.

    Attributes:
      logits: Its attention logits, mean over heads, float32 [B, T].
      strength: Norm of each token's value, float32 [B, T].
    """

    logits: jax.Array
    strength: jax.Array


class TransformerBlock(nn.Module):
    """Self-attention and a feed-forward layer, each with a residual, dropout and LayerNorm.

    Attributes:
      heads: Must divide the width.
      hidden: Width of the feed-forward layer.
      activation: Of it.
      pre_norm: LayerNorm before each part (SASRec) or after its residual (BST).
      dropout: Rate.
    """

    heads: int
    hidden: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    pre_norm: bool = True
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool) -> tuple[jax.Array, Probe]:
        """x [B, T, D], mask bool [B, T, T] (True: a query may see a key) -> [B, T, D], probe."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        width = x.shape[-1]
        norms = [nn.LayerNorm(name=f"norm_{i}", **types) for i in range(2)]
        y = norms[0](x) if self.pre_norm else x
        q, k, v = (
            split_heads(nn.Dense(width, use_bias=False, name=n, **types)(y), self.heads)
            for n in ("query", "key", "value")
        )
        out = merge_heads(attend(q, k, v, mask[:, None]))
        x = x + drop(nn.Dense(width, name="out", **types)(out))
        x = x if self.pre_norm else norms[0](x)
        y = norms[1](x) if self.pre_norm else x
        y = drop(self.activation(nn.Dense(self.hidden, name="ffn_0", **types)(y)))
        x = x + drop(nn.Dense(width, name="ffn_1", **types)(y))
        x = x if self.pre_norm else norms[1](x)
        return x, self._probe(q, k, v)

    def _probe(self, q, k, v) -> Probe:
        q = q[:, :, -1:].astype(jnp.float32)
        logits = jnp.einsum("bhqd,bhtd->bht", q, k.astype(jnp.float32)) / math.sqrt(q.shape[-1])
        return Probe(logits.mean(1), jnp.linalg.norm(merge_heads(v).astype(jnp.float32), axis=-1))
