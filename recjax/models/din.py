"""DIN: target attention over the history.

G. Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, arXiv
1706.06978.

    v_U(c) = sum over events j of a(e_j, v_c) e_j          # eq. 3, weights not normalised
    logit  = MLP(v_U(c), candidate, profile, context, trigger, numbers)

a is the activation unit (an MLP on event, candidate, their difference and product; the paper feeds
an outer product, the authors' code difference and product). Deviations: a candidate field that no
event has is absent from v_c, an event field that no candidate has meets zeros; mini-batch aware
regularisation is the tables' `l2` (on touched rows); the sum over history sizes is left out. All
candidates of a request are scored beside each other. `exports["correlation"]` is exp(a_j) ||e_j||, what TIN's authors
compare (see recjax.metrics.correlation), with a the activation unit's output in place of their dot product.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs
from recjax.layers import fields
from recjax.layers.mlp import ACTIVATIONS, MLP, Logits
from recjax.layers.target_attention import ActivationUnit
from recjax.models.parts import building
from recjax.schema import Schema
from recjax.system import System


class DIN(nn.Module):
    """The model; fields up to `dense_norm` are the options of `build`.

    Attributes:
      attention: Hidden widths of the activation unit.
      attention_activation: Its activation; the authors' code uses sigmoid, the paper PReLU or Dice.
      softmax: Normalise the attention (the paper does not).
      history: The list attended to; "" for the schema's first.
      head: Widths of the MLP.
      head_norm: "batch", "rms", "layer" or "none".
      head_activation: "dice" or "prelu" in the paper.
      dropout: In the head.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    attention: tuple[int, ...] = (80, 40)
    attention_activation: str = "sigmoid"
    softmax: bool = False
    history: str = ""
    head: tuple[int, ...] = (200, 80)
    head_norm: str = "none"
    head_activation: str = "dice"
    dropout: float = 0.0
    dense_norm: str = "batchnorm"
    outputs: tuple[str, ...] = ("logits",)
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool = False) -> dict[str, jax.Array]:
        """Logits {output: float32 [B, C]}."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        unit, query, events, mask = self._attention(inputs)
        interest = unit(query, events, mask, train=train)
        roles = ("candidate", "context", "profile", "trigger")
        other = fields.OtherFeatures(self.schema, self.dense_norm, roles, **types)(
            inputs, train=train
        )
        x = jnp.concatenate([interest, other], axis=-1)
        valid = fields.valid_of(inputs)
        mlp = MLP(self.head, self.head_norm, self.head_activation, self.dropout, **types)
        x = mlp(x, train=train, valid=valid)
        return Logits(self.outputs, **types)(x, train=train, valid=valid)

    def _attention(self, inputs: Inputs):
        """The activation unit, candidates [B, C, D], events [B, L, D] and their mask."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        own = self.schema.select("history", kind="id", list=self.history)
        events = jnp.concatenate([inputs.emb[f.name] for f in own], axis=-1)
        query = fields.candidate_as_event(self.schema, inputs, self.history)
        widths, activation = self.attention, self.attention_activation
        unit = ActivationUnit(widths, activation, self.softmax, name="ActivationUnit_0", **types)
        return unit, query, events, inputs.mask[self.history]

    @nn.compact
    def correlation(self, inputs: Inputs) -> jax.Array:
        """exp(a) ||e|| of each behaviour and candidate, float32 [B, C, L]; 0 where masked."""
        unit, query, events, mask = self._attention(inputs)
        z = unit.scores(query, events, mask, train=False)
        cor = jnp.exp(z) * jnp.linalg.norm(events.astype(jnp.float32), axis=-1)[:, None]
        return jnp.where(mask[:, None], cor, 0.0)


COUNTS_AS = building.counting("ActivationUnit_0/")


def build(schema: Schema, **options) -> System:
    """DIN as a system; options: those of `building.ranker` and the fields of `DIN`."""
    unit = options.get("attention_activation", DIN.attention_activation)
    building.check_choice("din", "attention_activation", unit, ACTIVATIONS)
    return building.ranker("din", DIN, schema, COUNTS_AS, **options)
