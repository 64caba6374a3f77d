"""SASRec as a ranker: a causal Transformer reads the history, its last state meets the candidate.

W.-C. Kang and J. McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, arXiv 1808.09781.

    x_i = e_i sqrt(d) + p_i                        sec. 3.1 (the factor: the authors' code)
    x <- x + Drop(SA(LN(x))), x <- x + Drop(FFN(LN(x)))    eq. 2-6, causal, b blocks
    h = LN(x_n), the state after the last behaviour

Deviations: the paper ranks by <h, e_candidate>; here an MLP reads concat(h, e_c, h * e_c, other features), so that the model
sees what the other click models see. Learned positions count back from the request, so that cutting a history changes
nothing. Nothing in h depends on the candidate: behaviours are encoded once per request.

`exports["correlation"]`: exp(z_i) ||value_i||, z the first block's attention logit of the last behaviour (see
recjax.metrics.correlation); the same for every candidate.
"""

import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs
from recjax.layers import fields
from recjax.layers.mlp import MLP, Logits
from recjax.layers.transformer import Probe, TransformerBlock
from recjax.models.parts import building
from recjax.schema import Schema
from recjax.system import System


class SASRec(nn.Module):
    """The model; fields up to `dense_norm` are the options of `build`.

    Attributes:
      blocks: Transformer blocks.
      heads: Of each; must divide the width.
      history: The list read; "" for the schema's first.
      head: Widths of the MLP.
      head_norm: "batch", "rms", "layer" or "none".
      head_activation: Of the MLP.
      dropout: In blocks and MLP.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    blocks: int = 2
    heads: int = 1
    history: str = ""
    head: tuple[int, ...] = (80, 40)
    head_norm: str = "none"
    head_activation: str = "relu"
    dropout: float = 0.0
    dense_norm: str = "batchnorm"
    outputs: tuple[str, ...] = ("logits",)
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @property
    def types(self) -> dict[str, Any]:
        return dict(dtype=self.dtype, param_dtype=self.param_dtype)

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool = False) -> dict[str, jax.Array]:
        """Logits {output: float32 [B, C]}."""
        state, _, target = self.read(inputs, train)
        state = jnp.broadcast_to(state[:, None], target.shape)
        beside = (self.schema, self.history, self.dense_norm)
        other = fields.OtherFeatures.beside(*beside, **self.types)(inputs, train=train)
        x = [state, target, state * target, *([] if other is None else [other])]
        valid = fields.valid_of(inputs)
        mlp = MLP(self.head, self.head_norm, self.head_activation, self.dropout, **self.types)
        h = mlp(jnp.concatenate(x, axis=-1), train=train, valid=valid)
        return Logits(self.outputs, **self.types)(h, train=train, valid=valid)

    def read(self, inputs: Inputs, train: bool) -> tuple[jax.Array, Probe, jax.Array]:
        """The user's state [B, D] (zeros without events), the first block's probe, candidates [B, C, D]."""
        events, target = fields.event_and_candidate(self.schema, inputs, self.history)
        mask = inputs.mask[self.history]
        length, width = events.shape[1:]
        init = nn.initializers.normal(0.02)
        positions = self.param("position", init, (length, width), self.param_dtype)
        x = events * math.sqrt(width) + positions[::-1].astype(events.dtype)  # the last slot: 0
        x = jnp.where(mask[..., None], x, 0.0)
        seen = mask[:, None] & jnp.tri(length, dtype=bool)
        probes = []
        for i in range(self.blocks):
            block = TransformerBlock(
                self.heads, width, dropout=self.dropout, name=f"layers_{i}", **self.types
            )
            x, probe = block(x, seen, train=train)
            probes.append(probe)
        state = nn.LayerNorm(name="norm", **self.types)(x[:, -1]) * mask[:, -1:]
        return state, probes[0], target

    @nn.compact
    def correlation(self, inputs: Inputs) -> jax.Array:
        """exp(z) ||value|| of each behaviour, float32 [B, C, L]; 0 where masked."""
        _, probe, target = self.read(inputs, False)
        cor = jnp.where(inputs.mask[self.history], jnp.exp(probe.logits) * probe.strength, 0.0)
        return jnp.broadcast_to(cor[:, None], (*target.shape[:2], cor.shape[1]))


COUNTS_AS = building.counting(r"layers_\d+/")


def build(schema: Schema, **options) -> System:
    """SASRec as a system; options: those of `building.ranker` and the fields of `SASRec`."""
    return building.ranker("sasrec", SASRec, schema, COUNTS_AS, **options)
