"""Items, histories and movelines as vectors: what NIF's generator and its CTR model both read (recjax/models/nif.py)."""

import dataclasses
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax.inputs import Inputs
from recjax.layers import fields, sphere
from recjax.layers.attention import masked_softmax
from recjax.schema import Feature, Schema, SchemaError

BUCKETS = 33  # of seconds: 0 for none, then 1 + floor(log2(1 + seconds))


@dataclasses.dataclass(frozen=True)
class Fields:
    """Which features carry what.

    Attributes:
      history: The list of past items.
      items: (history field, candidate field) of an item, the item's own id first.
      moveline: Id fields of the scene events.
      scene: Id features of candidate and context in an id space of the moveline, the item's own aside.
    """

    history: str
    items: tuple[tuple[Feature, Feature], ...]
    moveline: tuple[Feature, ...]
    scene: tuple[Feature, ...]

    @classmethod
    def of(cls, schema: Schema, with_item: bool = False) -> "Fields":
        """Found by role and id space; SchemaError says what is missing."""
        history = fields.history_list(schema)
        fields.check_shared_fields("nif", schema, history)
        items = fields.shared_fields(schema, history)
        own = items[0][0].id_space
        events = schema.select("moveline", kind="id")
        events = tuple(f for f in events if with_item or f.id_space != own)
        if not events:
            raise SchemaError(
                "nif and amen read a list of role moveline with an id feature (a scene); the schema has none"
            )
        spaces = {f.id_space for f in events} - {own}
        ids = schema.select("candidate", "context", kind="id")
        return cls(history, items, events, tuple(f for f in ids if f.id_space in spaces))

    @property
    def line(self) -> str:
        """Name of the moveline's list."""
        return self.moveline[0].list

    @property
    def spaces(self) -> tuple[str, ...]:
        """Id spaces of items and events."""
        both = [h for h, _ in self.items] + list(self.moveline)
        return tuple(dict.fromkeys(f.id_space for f in both))

    def part_of(self, schema: Schema) -> Schema:
        """What a generator reads: without ids of other spaces, for which it has no tables."""
        ids = [f for f in schema.features if f.kind == "id" and f.role != "target"]
        return schema.without(f.name for f in ids if f.id_space not in self.spaces)

    def candidates(self, inputs: Inputs) -> jax.Array:
        return cast(jax.Array, sum(inputs.emb[c.name] for _, c in self.items))

    def past(self, inputs: Inputs) -> jax.Array:
        return cast(jax.Array, sum(inputs.emb[h.name] for h, _ in self.items))


def log_buckets(seconds: jax.Array) -> jax.Array:
    """1 + floor(log2(1 + seconds)) of int32 seconds >= 0: 1 .. 32, exact at the edges."""
    n = jnp.maximum(seconds, 0).astype(jnp.uint32) + 1
    return 32 - jax.lax.clz(n).astype(jnp.int32)


def gap_buckets(age: jax.Array, mask: jax.Array) -> jax.Array:
    """Bucket of the time since the event before, 0 where there is none; [B, L]."""
    before = jnp.pad(age, ((0, 0), (1, 0)))[:, :-1]
    known = mask & jnp.pad(mask, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(known, log_buckets(before - age), 0)


def rotate(x: jax.Array) -> jax.Array:
    """RoPE: x [B, T, H, dh], pairs of channels turned by angles that grow with the position."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * 10_000.0 ** (-np.arange(half) / half)
    cos, sin = (jnp.asarray(f(angle), x.dtype)[None, :, None] for f in (np.cos, np.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class Attention(nn.Module):
    """Multi-head attention with its own projections.

    Attributes:
      heads: Must divide the width.
      rope: Rotary positions, for self-attention.
    """

    heads: int
    rope: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, source: jax.Array, mask: jax.Array) -> jax.Array:
        """x [B, Q, d] looks at source [B, T, d] (or [B, Q, T, d]: each at its own) where mask [B, 1 or Q, T]."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        width = x.shape[-1]
        shape = (self.heads, width // self.heads)
        q, k, v = (
            nn.DenseGeneral(shape, use_bias=False, name=n, **types)(y)
            for n, y in (("query", x), ("key", source), ("value", source))
        )
        if self.rope:
            q, k = rotate(q), rotate(k)
        own = "q" if source.ndim == 4 else ""
        z = jnp.einsum(f"bqhd,b{own}thd->bhqt", q, k, preferred_element_type=jnp.float32)
        a = masked_softmax(z / np.sqrt(shape[1]), mask[:, None]).astype(v.dtype)
        out = jnp.einsum(f"bhqt,b{own}thd->bqhd", a, v)
        return nn.DenseGeneral(width, axis=(-2, -1), use_bias=False, name="out", **types)(out)


class Block(nn.Module):
    """Pre-LN self-attention, cross-attention where there is a memory, and a feed-forward layer of 4 d."""

    heads: int
    rope: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask, memory=None, seen=None) -> jax.Array:
        """x [B, T, d], mask [B or 1, T, T]; memory [B, M, d], seen [B, 1, M]."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        y = nn.LayerNorm(name="norm_self", **types)(x)
        x = x + Attention(self.heads, self.rope, name="self", **types)(y, y, mask)
        if memory is not None:
            y = nn.LayerNorm(name="norm_cross", **types)(x)
            x = x + Attention(self.heads, name="cross", **types)(y, memory, seen)
        y = nn.LayerNorm(name="norm_ffn", **types)(x)
        y = nn.gelu(nn.Dense(4 * x.shape[-1], name="ffn_0", **types)(y))
        return x + nn.Dense(x.shape[-1], name="ffn_1", **types)(y)


class Encoders(nn.Module):
    """Items, their points and the moveline: what generator and CTR model both have, under the same names.

    Attributes:
      fields: Of the schema.
      width: d.
      heads: Of the moveline's attention.
      depth: Layers of the moveline's Transformer.
    """

    fields: Fields
    width: int = 64
    heads: int = 4
    depth: int = 2
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @property
    def types(self) -> dict[str, Any]:
        return dict(dtype=self.dtype, param_dtype=self.param_dtype)

    def setup(self):
        self.widen, self.widen_scene = (
            nn.Dense(self.width, use_bias=False, **self.types) for _ in range(2)
        )
        self.tower = [nn.Dense(self.width, **self.types) for _ in range(2)]
        init = nn.initializers.normal(0.1)
        shape = (BUCKETS, self.width)
        self.age = self.param("age", init, shape, self.param_dtype)
        self.gap = self.param("gap", init, shape, self.param_dtype)
        self.norm_in, self.norm_out = (nn.LayerNorm(**self.types) for _ in range(2))
        self.layers = [Block(self.heads, True, **self.types) for _ in range(self.depth)]

    def item(self, rows: jax.Array) -> jax.Array:
        """e_i of summed id embeddings, [..., d]."""
        return self.widen(rows)

    def point(self, e: jax.Array) -> jax.Array:
        """T(i), float32 [..., d], unit."""
        return sphere.unit(self.tower[1](nn.gelu(self.tower[0](e))))

    def past(self, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """S [B, N, d] and its mask."""
        mask, age = inputs.mask[self.fields.history], inputs.age[self.fields.history]
        s = self.item(self.fields.past(inputs))
        return s + jnp.asarray(self.age, s.dtype)[log_buckets(age)], mask

    def scenes(self, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """H [B, L, d], zero where no event is, and the mask."""
        name = self.fields.line
        mask, age = inputs.mask[name], inputs.age[name]
        x = self.widen_scene(sum(inputs.emb[f.name] for f in self.fields.moveline))
        x = self.norm_in(x + jnp.asarray(self.gap, x.dtype)[gap_buckets(age, mask)])
        causal = jnp.tril(jnp.ones((mask.shape[1],) * 2, bool)) & mask[:, None]
        for layer in self.layers:
            x = layer(x, causal)
        return self.norm_out(x) * mask[..., None], mask
