"""BST: a Transformer over the history and the candidate together, flattened into an MLP.

Q. Chen et al., "Behavior Sequence Transformer for E-commerce Recommendation in Alibaba", DLP-KDD 2019, arXiv 1905.06874.

    x_i = e_i + p[t(target) - t(i)], the candidate is the last token        sec. 2.1.1, positions are time gaps
    S' = LN(x + Drop(MH(x))),  F = LN(S' + Drop(LeakyReLU(S' W1 + b1) W2 + b2))        eq. 2-5
    logit = MLP(concat(all tokens of F, other features))

Deviations: the paper concatenates item and position, here they are added (as is usual since); gaps are bucketed as in
recjax.layers.attention.time_buckets (the paper's were not given). Every token sees the candidate, so candidates are folded
into the batch, [B * C, 1]: scoring many costs a Transformer each. The MLP is narrower than the paper's 1024-512-256.

`exports["correlation"]`: exp(z_i) ||value_i||, z the first block's attention logit of the candidate (see
recjax.metrics.correlation).
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs
from recjax.layers import fields
from recjax.layers.attention import REACHABLE_BUCKETS, time_buckets
from recjax.layers.mlp import MLP, Logits
from recjax.layers.transformer import Probe, TransformerBlock
from recjax.models.parts import building
from recjax.schema import Schema
from recjax.system import System


class BST(nn.Module):
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
    blocks: int = 1
    heads: int = 1
    history: str = ""
    head: tuple[int, ...] = (80, 40)
    head_norm: str = "none"
    head_activation: str = "prelu"
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
        candidates = inputs.candidates
        inputs = fields.fold_candidates(self.schema, inputs)
        x, _ = self.read(inputs, train)
        parts = [x.reshape(len(x), 1, -1)]
        beside = (self.schema, self.history, self.dense_norm)
        other = fields.OtherFeatures.beside(*beside, **self.types)(inputs, train=train)
        parts += [] if other is None else [other]
        valid = fields.valid_of(inputs)
        mlp = MLP(self.head, self.head_norm, self.head_activation, self.dropout, **self.types)
        x = mlp(jnp.concatenate(parts, axis=-1), train=train, valid=valid)
        logits = Logits(self.outputs, **self.types)(x, train=train, valid=valid)
        return {name: z.reshape(-1, candidates) for name, z in logits.items()}

    def read(self, inputs: Inputs, train: bool) -> tuple[jax.Array, Probe]:
        """Tokens [N, L + 1, D] of N folded candidates, zeros where masked; the first block's probe."""
        events, target = fields.event_and_candidate(self.schema, inputs, self.history)
        gaps = time_buckets(inputs.age[self.history]) + 1  # 0 is the candidate's
        init = nn.initializers.normal(0.02)
        shape = (REACHABLE_BUCKETS + 1, target.shape[-1])
        positions = self.param("position", init, shape, self.param_dtype).astype(events.dtype)
        x = jnp.concatenate([events + positions[gaps], target + positions[0]], axis=1)
        mask = jnp.pad(inputs.mask[self.history], ((0, 0), (0, 1)), constant_values=True)
        seen = jnp.broadcast_to(mask[:, None], (*mask.shape, mask.shape[1]))
        probes = []
        for i in range(self.blocks):
            block = TransformerBlock(
                self.heads,
                4 * x.shape[-1],
                nn.leaky_relu,
                pre_norm=False,
                dropout=self.dropout,
                name=f"layers_{i}",
                **self.types,
            )
            x, probe = block(x, seen, train=train)
            probes.append(probe)
        return jnp.where(mask[..., None], x, 0.0), probes[0]

    @nn.compact
    def correlation(self, inputs: Inputs) -> jax.Array:
        """exp(z) ||value|| of each behaviour and candidate, float32 [B, C, L]; 0 where masked."""
        candidates = inputs.candidates
        inputs = fields.fold_candidates(self.schema, inputs)
        _, probe = self.read(inputs, False)
        cor = (jnp.exp(probe.logits) * probe.strength)[:, :-1]
        cor = jnp.where(inputs.mask[self.history], cor, 0.0)
        return cor.reshape(-1, candidates, cor.shape[1])


COUNTS_AS = building.counting(r"layers_\d+/")


def build(schema: Schema, **options) -> System:
    """BST as a system; options: those of `building.ranker` and the fields of `BST`."""
    return building.ranker("bst", BST, schema, COUNTS_AS, **options)
