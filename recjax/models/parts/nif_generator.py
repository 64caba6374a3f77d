"""NIF's generator: the network that reads a moveline and a history and outputs a flow. Equations: recjax/models/nif.py."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax.inputs import Inputs
from recjax.layers import sphere
from recjax.layers.moveline import Block, Encoders, Fields
from recjax.models.parts import building
from recjax.schema import Schema, SchemaError, Table

COUNTS_AS = building.counting(r"(encoders/|decoder_)layers_\d+/", "naming/")
OWNER = "generator"  # of the tables: a CTR model on the same batch has its own


class Generator(nn.Module):
    """G_phi.

    Attributes:
      fields: Of the schema.
      slots: K, length of the flow.
      width: d.
      heads: Of all attention.
      depth: Layers of moveline and decoder each.
      decoder: "parallel" or "ar".
      codes: (levels, codes a level) of the control with discrete targets; none otherwise.
    """

    fields: Fields
    slots: int = 8
    width: int = 64
    heads: int = 4
    depth: int = 2
    decoder: str = "parallel"
    codes: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.encoders = Encoders(self.fields, self.width, self.heads, self.depth, **types)
        init = nn.initializers.normal(1.0)  # distinct: a collapsed flow is a saddle of L_div
        self.queries = self.param("queries", init, (self.slots, self.width), self.param_dtype)
        small = nn.initializers.normal(0.02)  # or they drown the items
        self.kinds = self.param("kinds", small, (2, self.width), self.param_dtype)
        self.norm_past, self.norm_flow = (nn.LayerNorm(**types) for _ in range(2))
        self.decoder_layers = [Block(self.heads, **types) for _ in range(self.depth)]
        self.out = nn.Dense(self.width, use_bias=False, **types)
        if self.decoder == "ar":
            self.before = nn.Dense(self.width, use_bias=False, **types)
        if self.codes:
            self.naming = nn.DenseGeneral(self.codes, **types)

    def flow(self, inputs: Inputs, teacher: jax.Array | None = None) -> jax.Array:
        """F, float32 [B, K, d], unit rows. It knows no candidate.

        Args:
          inputs: Embedded batch.
          teacher: z* [B, K, d], which "ar" is fed in training; without it, its own output.
        """
        return sphere.unit(self.out(self.hidden(inputs, teacher)))

    def hidden(self, inputs: Inputs, teacher: jax.Array | None = None) -> jax.Array:
        """O [B, K, d]."""
        memory, seen = self.memory(inputs)
        if self.decoder == "parallel":
            return self.decode(memory, seen, None)
        if teacher is not None:
            return self.decode(memory, seen, _shifted(teacher))
        f = jnp.zeros((memory.shape[0], self.slots, self.width), jnp.float32)
        for _ in range(self.slots - 1):  # slot k is right after k passes
            f = sphere.unit(self.out(self.decode(memory, seen, _shifted(f))))
        return self.decode(memory, seen, _shifted(f))

    def memory(self, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """[H ; S] with their kinds [B, L + N, d], and where it is [B, 1, L + N]."""
        (h, there), (s, seen) = self.encoders.scenes(inputs), self.encoders.past(inputs)
        kinds = jnp.asarray(self.kinds, self.dtype)
        x = jnp.concatenate([h + kinds[0], self.norm_past(s) + kinds[1]], axis=1)
        return x, jnp.concatenate([there, seen], axis=1)[:, None]

    def decode(self, memory, seen, before) -> jax.Array:
        queries = self.queries.astype(self.dtype)
        x = jnp.broadcast_to(queries, (memory.shape[0], *queries.shape))
        x = x if before is None else x + self.before(before.astype(self.dtype))
        causal = jnp.tril(jnp.ones((self.slots,) * 2, bool))[None]
        for layer in self.decoder_layers:
            x = layer(x, causal, memory, seen)
        return self.norm_flow(x)

    def points(self, rows: jax.Array) -> jax.Array:
        """T of summed id embeddings, float32 [..., d]."""
        return self.encoders.point(self.encoders.item(rows))

    def name_codes(self, inputs: Inputs) -> jax.Array:
        """Logits of each level's codes, float32 [B, K, levels, codes]: read off F, so F is what is learnt."""
        f = self.flow(inputs) * np.sqrt(self.width)
        return self.naming(f.astype(self.dtype)).astype(jnp.float32)

    def everything(self, inputs: Inputs, rows: jax.Array):
        """Touches every parameter; for `init`."""
        points = self.points(rows)
        if self.codes:
            return self.name_codes(inputs), points
        teacher = jnp.zeros((points.shape[0], self.slots, self.width))
        return self.flow(inputs, teacher), points


def _shifted(f: jax.Array) -> jax.Array:
    """Slot k gets point k - 1, the first nothing."""
    return jnp.pad(f, ((0, 0), (1, 0), (0, 0)))[:, :-1]


def generator_tables(schema: Schema, found: Fields, table: Mapping[str, Any]) -> tuple[Table, ...]:
    """The generator's tables: those of items and scene events only."""
    tables = building.make_tables(schema, {"init_scale": 0.1, **table, "owner": OWNER}, dim=16)
    return tuple(t for t in tables if t.id_space in found.spaces)


def user_of(schema: Schema, key: str) -> str:
    """`key`, if it is a group of the schema; SchemaError lists them."""
    if key not in schema.groups:
        raise SchemaError(f"{key!r} is no group of the data; the groups are {schema.groups}")
    return key
