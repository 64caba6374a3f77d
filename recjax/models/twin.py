"""TWIN: the search scores events with the same attention, and the same parameters, that then reads what was found.

J. Chang et al., "TWIN: TWo-stage Interest Network for Lifelong User Behavior Modeling in CTR Prediction at Kuaishou", KDD 2023,
arXiv 2302.02352.

    s_a,l = <W^q_a q, W^h_a K_h,l> / sqrt(d_k) + sum_j beta_a,j <w^c_a,j, K_c,l,j>      one number per head and event
    kept: k events by s;  head_a = softmax over the kept (s_a) [K_h; K_c] W^v;  out = concat(heads) W^o
    logit = MLP(candidate, out, short, whether any, other features)

K_h are the event's fields that candidates have, too (a server may store W^h K_h of an item); K_c are what only the meeting of
user and item knows: its other id fields and the bucket of its age, each projected to one number, so their part is the same for
all candidates. The heads' ranked lists are visited in turn until k events are found (`select="round_robin"`), or each head keeps
its own (`"per_head"`). Deviations: no event gives zeros and a flag; the short part is ETA's attention, of the latest events
(the paper does not say which); training is exact, where the paper's cached projections lag.
"""

import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs
from recjax.layers import fields, search
from recjax.layers.attention import masked_softmax
from recjax.layers.mlp import MLP, Logits
from recjax.models.parts import building
from recjax.schema import Schema
from recjax.system import System

SELECTS = ("round_robin", "per_head")


def round_robin(scores: jax.Array, mask: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """scores [B, C, H, L], mask [B, L] -> index, valid [B, C, k]: the first k distinct of the heads' lists, in turn."""
    heads = scores.shape[2]
    order = jnp.where(mask[:, None, None], -jax.lax.stop_gradient(scores), jnp.inf)
    rank = jnp.argsort(jnp.argsort(order, axis=-1), axis=-1)  # stable: [B, C, H, L]
    turn = (rank * heads + jnp.arange(heads)[:, None]).min(2)
    return search.nearest(-turn, mask[:, None], k)


class TwinAttention(nn.Module):
    """Search and attention; see the equations above.

    Attributes:
      width: A, of all heads together.
      heads: Must divide it.
      keep: k.
      select: One of `SELECTS`.
    """

    width: int = 64
    heads: int = 4
    keep: int = 50
    select: str = "round_robin"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, query: jax.Array, events: jax.Array, cross: list[jax.Array], mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """query [B, C, d], events [B, L, d], cross [B, L, e_j] each, mask [B, L] -> [B, C, d], whether any [B, C, 1]."""
        scores = self.scores(query, events, cross)
        v = self._split("value", jnp.concatenate([events, *cross], axis=-1))
        if self.select == "round_robin":
            index, valid = round_robin(scores, mask, self.keep)
            index, valid = (jnp.stack([x] * self.heads, 2) for x in (index, valid))
        else:
            index, valid = search.nearest(scores, mask[:, None, None], self.keep)
        weights = masked_softmax(jnp.take_along_axis(scores, index, axis=-1), valid)
        by_head = jax.vmap(search.take_events, in_axes=(2, 2), out_axes=2)
        found = by_head(v, index)  # [B, C, H, k, d_k]
        out = jnp.einsum("bchk,bchkd->bchd", weights.astype(v.dtype), found)
        out = out.reshape(*out.shape[:2], self.width)
        any_event = valid.any((2, 3))[..., None]
        return search.linear("out", query.shape[-1], self)(out), any_event

    @nn.compact
    def scores(self, query: jax.Array, events: jax.Array, cross: list[jax.Array]) -> jax.Array:
        """s, float32 [B, C, H, L], not masked."""
        q, k = self._split("query", query), self._split("key", events)
        s = jnp.einsum("bchd,blhd->bchl", q, k, preferred_element_type=jnp.float32)
        s = s / math.sqrt(q.shape[-1])
        if not cross:
            return s
        init = nn.initializers.constant(1 / len(cross))
        beta = self.param("beta", init, (self.heads, len(cross)), self.param_dtype)
        for j, x in enumerate(cross):
            e = x.shape[-1]
            init = nn.initializers.normal(e**-0.5)
            w = self.param(f"cross_{j}", init, (self.heads, e), self.param_dtype)
            one = jnp.einsum("ble,he->bhl", x.astype(jnp.float32), w.astype(jnp.float32))
            s = s + (beta[:, j, None] * one)[:, None]
        return s

    def _split(self, name: str, x: jax.Array) -> jax.Array:
        x = search.linear(name, self.width, self)(x)
        return x.reshape(*x.shape[:2], self.heads, self.width // self.heads)


class TWIN(nn.Module):
    """The model; fields up to `dense_norm` are the options of `build`.

    Attributes:
      keep, heads, width, select: See `TwinAttention`.
      recent: Events of the short part.
      history: The list searched; "" for the schema's first.
      head: Widths of the MLP.
      head_norm: "batch", "rms", "layer" or "none".
      head_activation: Of the MLP.
      dropout: In the MLP.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    keep: int = 50
    heads: int = 4
    width: int = 64
    select: str = "round_robin"
    recent: int = 10
    history: str = ""
    head: tuple[int, ...] = (200, 80)
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
        events, target = fields.event_and_candidate(self.schema, inputs, self.history)
        mask, age = inputs.mask[self.history], inputs.age[self.history]
        cross = fields.events_alone(self.schema, inputs, self.history)
        cross.append(search.AgeEmbedding(8, name="age", **self.types)(age, mask))
        twin = TwinAttention(
            self.width, self.heads, self.keep, self.select, name="long", **self.types
        )
        long, found = twin(target, events, cross, mask)
        latest, seen = (search.last(x, self.recent) for x in (events, mask))
        every = search.everywhere(seen, target.shape[1])
        short = search.SearchedAttention(self.width, self.heads, name="short", **self.types)
        parts = [target, long, short(target, latest, *every), found.astype(self.dtype)]
        beside = (self.schema, self.history, self.dense_norm)
        other = fields.OtherFeatures.beside(*beside, name="other", **self.types)(
            inputs, train=train
        )
        parts += [] if other is None else [other]
        valid = fields.valid_of(inputs)
        mlp = MLP(self.head, self.head_norm, self.head_activation, self.dropout, **self.types)
        x = mlp(jnp.concatenate(parts, axis=-1), train=train, valid=valid)
        return Logits(self.outputs, **self.types)(x, train=train, valid=valid)


COUNTS_AS = building.counting("(long|short)/")


def build(schema: Schema, **options) -> System:
    """TWIN as a system; options: those of `building.ranker` and the fields of `TWIN`."""
    building.check_choice("twin", "select", options.get("select", TWIN.select), SELECTS)
    return building.ranker("twin", TWIN, schema, COUNTS_AS, **options)
