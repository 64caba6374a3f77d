"""ETA: the search is by the Hamming distance of random hashes of the model's own, current embeddings.

Q. Chen et al., "End-to-End User Behavior Retrieval in Click-Through Rate Prediction Model", arXiv 2108.04468 (its text was not
read: equations as public implementations give them).

    code(x) = [x R > 0], R [d, m] random, never trained and the same for items and events
    kept: the k events of the smallest Hamming distance to the candidate's code
    long  = multi-head attention of the candidate over them, short = the same with its own weights over the latest events
    logit = MLP(candidate, short, long, whether any, other features)

A distance estimates the angle: scaling a vector changes nothing. There is one loss, and no gradient through the choice. R is drawn
from `hash_seed`, so a stored code stays true. Deviations: of events equally near the latest is kept (distances take m + 1
values, many tie); keys and values also see the event's age and the fields that only events have; codes are float32; no event gives zeros and a flag.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax.inputs import Inputs
from recjax.layers import fields, search
from recjax.layers.mlp import MLP, Logits
from recjax.models.parts import building
from recjax.schema import Schema
from recjax.system import System


def code(x: jax.Array, rotation: jax.Array) -> jax.Array:
    """+1 where x R > 0, else -1: float32 [..., m]."""
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    return jnp.where(x @ rotation > 0, 1.0, -1.0)


def hamming_nearest(
    target: jax.Array, events: jax.Array, mask: jax.Array, rotation: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """The k events [B, L, d] nearest to each target [B, C, d], the latest first among equals: index, valid [B, C, k]."""
    bits, length = rotation.shape[-1], events.shape[1]
    same = jnp.einsum("bcm,blm->bcl", code(target, rotation), code(events, rotation))
    agreeing = ((bits + same) / 2).astype(jnp.int32)
    return search.nearest(agreeing * length + jnp.arange(length), mask[:, None], k)


class ETA(nn.Module):
    """The model; fields up to `dense_norm` are the options of `build`.

    Attributes:
      bits: m.
      hash_seed: Of R.
      keep: k, events found.
      recent: Events of the short part.
      width, heads: Of both attentions.
      history: The list searched; "" for the schema's first.
      head: Widths of the MLP.
      head_norm: "batch", "rms", "layer" or "none".
      head_activation: Of the MLP.
      dropout: In the MLP.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    bits: int = 128
    hash_seed: int = 0
    keep: int = 50
    recent: int = 10
    width: int = 64
    heads: int = 2
    history: str = ""
    head: tuple[int, ...] = (200, 80)
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
        events, target = fields.event_and_candidate(self.schema, inputs, self.history)
        mask, age = inputs.mask[self.history], inputs.age[self.history]
        index, found = hamming_nearest(target, events, mask, self.rotation(target), self.keep)
        ages = search.AgeEmbedding(name="age", **self.types)(age, mask)
        own = fields.events_alone(self.schema, inputs, self.history)
        aged = jnp.concatenate([events, *own, ages], axis=-1)
        long = search.SearchedAttention(self.width, self.heads, name="long", **self.types)
        parts = [target, long(target, aged, index, found)]
        latest, seen = (search.last(x, self.recent) for x in (aged, mask))
        short = search.SearchedAttention(self.width, self.heads, name="short", **self.types)
        every = search.everywhere(seen, target.shape[1])
        parts += [short(target, latest, *every), found.any(-1, keepdims=True)]
        beside = (self.schema, self.history, self.dense_norm)
        other = fields.OtherFeatures.beside(*beside, name="other", **self.types)(
            inputs, train=train
        )
        parts += [] if other is None else [other]
        x = jnp.concatenate([p.astype(self.dtype) for p in parts], axis=-1)
        valid = fields.valid_of(inputs)
        mlp = MLP(self.head, self.head_norm, self.head_activation, self.dropout, **self.types)
        return Logits(self.outputs, **self.types)(
            mlp(x, train=train, valid=valid), train=train, valid=valid
        )

    def rotation(self, target: jax.Array) -> jax.Array:
        """R, float32 [d, m]: a constant of the program."""
        rng = np.random.default_rng(self.hash_seed)
        return jnp.asarray(rng.normal(size=(target.shape[-1], self.bits)), jnp.float32)


COUNTS_AS = building.counting("(long|short)/")


def build(schema: Schema, **options) -> System:
    """ETA as a system; options: those of `building.ranker` and the fields of `ETA`."""
    return building.ranker("eta", ETA, schema, COUNTS_AS, **options)
