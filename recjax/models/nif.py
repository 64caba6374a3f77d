"""NIF, stage 1: a generator pre-trained to output the flow of a user's next interests. Stage 2 is recjax/models/amen.py.

C. Gao et al., "Next Interest Flow: A Generative Pre-training Paradigm for Recommender Systems by Modeling All-domain
Movelines", arXiv 2510.11317. Only abstracts and third-party summaries could be read: *no equation and no hyper-parameter
of it is known*. What is the paper's: a Transformer decoder that outputs a dense vector sequence from the moveline (a
user's behaviours over all scenes of an app, whose carrier is the scene, not the item) [P, abstract; T, summaries], trained by
InfoNCE with a diversity and a velocity regulariser [T], which v2 obtains by a tangent-space decomposition and by geodesic
regularisation [P]. All formulas here are ours [OUR]:

    x_t  = LayerNorm(sum of the event's id embeddings + E_gap[log2 bucket of the gap to the event before])
    H    = two causal pre-LN Transformer layers with RoPE over x                                   moveline [B, L, d]
    e_i  = sum of the item's id embeddings, T(i) = unit(MLP(e_i)), S = e of past items + E_age     item tower, history
    F    = unit(O W_f), O = two layers of {causal self-attention over K learned queries; cross-attention to [H ; S]; FFN}

decoder="parallel" (default) is one pass, alike in training and serving; "ar" also gives slot k the point before it, the
target's in training. Targets are the next K positive interactions, in order, z*_k = T(i_k), and

    l_j   = <f_k, z_j> / tau - log(n_b share_j + n_u / |I|)
    L_gen = mean over slots of -log exp(l_+) / sum over {+, targets of other users, uniform items, own unclicked items} exp(l_j)

with false negatives (the user's own targets) masked. `share_j`, item j's share of targets, and all negatives come from the
loader, so the share is that of the whole stage-1 window and not a running one. With P_0 the last clicked item (no
gradient), P_k = f_k and the motion of recjax.layers.sphere (starred: of the targets' trajectory, no gradient)

    L_div = mean max(0, n*_k - n_k)^2      "tangent"; "cosine" (stand-in for v1): mean over j < k of max(0, <f_j, f_k> - 1/2)^2
    L_vel = mean max(0, |a_k| - |a*_k|)^2  "accel_matched"; "accel" mean |a_k|^2, "energy" mean theta_k^2,
                                           "speed_matched" mean (theta_k - theta*_k)^2, "cosine" mean 1 - <f_k, f_{k+1}>
    L_1   = L_gen + lambda_div L_div + lambda_vel L_vel

The true trajectory is a zero of both default terms. The unmatched modes pull towards geodesics, on which nothing is new: keep
their weights at 0.03 or less.

target="codes" is the control that discretises: the same generator, trained by cross-entropy to name the residual-quantised
codes of T(i), T and its tables being those of a finished dense run (`init_from`), frozen.

Deviations from our own specification: the history carries an age embedding too (without it S would be a set); tables may be
narrower than d (a Dense widens), so that grades leave them alone.

Metrics: `nce`, and `hr10`, `hr50`, `hr10/slot_k`: how often a target is among the ten (fifty) best of the distinct targets of
other users and uniform items *of its evaluation batch*; compare them at one eval.batch only.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax import models
from recjax.inputs import Batch, Inputs, embed, embed_targets, raw_ids
from recjax.layers import fields, sphere
from recjax.layers.attention import masked_softmax
from recjax.schema import NUM_RESERVED, Feature, Schema, SchemaError, Table
from recjax.system import Export, Objective, Rows, Select, Sums, System, mean

OWNER = "generator"  # of the tables: a CTR model on the same batch has its own
BUCKETS = 33  # of seconds: 0 for none, then 1 + floor(log2(1 + seconds))
SHARPNESS = 0.1  # of the soft maximum over slots
CHOICES = {
    "decoder": ("parallel", "ar"),
    "diversity": ("tangent", "cosine", "none"),
    "velocity": ("accel_matched", "accel", "energy", "speed_matched", "cosine", "none"),
    "target": ("dense", "codes"),
}
LISTS = ("next", "uniform", "rejected")  # of role target: positives, and the two drawn negatives

# ---- what both stages read ------------------------------------------------------------------------------------


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
        return sum(inputs.emb[c.name] for _, c in self.items)

    def past(self, inputs: Inputs) -> jax.Array:
        return sum(inputs.emb[h.name] for h, _ in self.items)


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
        width, types = x.shape[-1], dict(dtype=self.dtype, param_dtype=self.param_dtype)
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


# ---- the generator --------------------------------------------------------------------------------------------


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
        self.kinds = self.param("kinds", init, (2, self.width), self.param_dtype)
        self.norm_memory, self.norm_flow = (nn.LayerNorm(**types) for _ in range(2))
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
        both = self.encoders.scenes(inputs), self.encoders.past(inputs)
        kinds = self.kinds.astype(self.dtype)
        x = jnp.concatenate([x + kinds[i] for i, (x, _) in enumerate(both)], axis=1)
        return self.norm_memory(x), jnp.concatenate([m for _, m in both], axis=1)[:, None]

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

    def name_codes(self, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """F and the logits of each level's codes, [B, K, d] and float32 [B, K, levels, codes]."""
        hidden = self.hidden(inputs)
        return sphere.unit(self.out(hidden)), self.naming(hidden).astype(jnp.float32)

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


def affinity(flow: jax.Array, points: jax.Array) -> jax.Array:
    """Soft maximum over slots of the cosines, float32 [B, N]: flow [B, K, d], points [B, N, d] or [N, d]."""
    own = "b" if points.ndim == 3 else ""
    cos = jnp.einsum(f"bkd,{own}nd->bkn", flow, points)
    return jax.nn.logsumexp(cos / SHARPNESS, axis=1) * SHARPNESS


# ---- losses ---------------------------------------------------------------------------------------------------


class Pool(NamedTuple):
    """Items of each row, in slots.

    Attributes:
      points: T(i), float32 [B, n, d].
      ids: int32 [B, n].
      share: Of the targets, float32 [B, n].
      real: bool [B, n].
    """

    points: jax.Array
    ids: jax.Array
    share: jax.Array
    real: jax.Array

    def flat(self) -> "Pool":
        """All rows' items in one, [B * n]."""
        return Pool(*(x.reshape(-1, *x.shape[2:]) for x in self))


class Sampled(NamedTuple):
    """InfoNCE of each slot [B, K], and how many distinct negatives score at least as high as its target."""

    nce: jax.Array
    rank: jax.Array


def flow_nce(
    flow: jax.Array,
    targets: Pool,
    uniform: Pool,
    rejected: Pool,
    user: jax.Array,
    items: int,
    tau: float = 0.1,
) -> Sampled:
    """-log softmax of each slot's target among it and its negatives (see the module docstring).

    Args:
      flow: F [B, K, d].
      targets: The next K items, in order.
      uniform: Items drawn uniformly; all rows share them.
      rejected: Each row's own shown and unclicked items.
      user: Key of each row's user [B]; targets of the same user's other rows are no negatives.
      items: |I|.
      tau: Temperature.
    """
    others, drawn = targets.flat(), uniform.flat()
    n_b, n_u = targets.real.sum(), uniform.real.sum()

    def log_q(share):
        return jnp.log(jnp.maximum(n_b * share + n_u / items, 1e-30))

    shared = Pool(*(jnp.concatenate(x) for x in zip(others, drawn, strict=True)))  # [N]
    of = jnp.repeat(user, targets.ids.shape[1])
    allowed = jnp.concatenate(
        [of != user[:, None], jnp.ones((len(user), len(drawn.ids)), bool)], axis=1
    )
    own = ((shared.ids[None, :, None] == targets.ids[:, None]) & targets.real[:, None]).any(-1)
    allowed &= shared.real & ~own  # [B, N]
    mine = (rejected.ids[:, :, None] == targets.ids[:, None]) & targets.real[:, None]
    cos = jnp.einsum("bkd,nd->bkn", flow, shared.points)
    best = (flow * targets.points).sum(-1)  # [B, K]
    plus = best / tau - log_q(targets.share)
    minus = [
        jnp.where(allowed[:, None], cos / tau - log_q(shared.share), -jnp.inf),
        jnp.where(
            (rejected.real & ~mine.any(-1))[:, None],
            jnp.einsum("bkd,bnd->bkn", flow, rejected.points) / tau
            - log_q(rejected.share)[:, None],
            -jnp.inf,
        ),
    ]
    z = jnp.concatenate([plus[..., None], *minus], axis=-1)
    counted = (allowed & first_of_its_id(shared.ids, shared.real))[:, None]
    rank = (counted & (cos >= best[..., None] - 1e-6)).sum(-1)  # ties count against the model
    return Sampled(jax.nn.logsumexp(z, axis=-1) - plus, rank)


def first_of_its_id(ids: jax.Array, real: jax.Array) -> jax.Array:
    """True at one real place of each id, bool [N]."""
    ids = jnp.where(real, ids, -1)
    order = jnp.argsort(ids)
    new = jnp.diff(ids[order], prepend=-2) != 0
    return jnp.zeros_like(new).at[order].set(new) & real


def regularisers(
    flow: jax.Array,
    targets: jax.Array,
    start: jax.Array,
    real: jax.Array,
    started: jax.Array,
    diversity: str = "tangent",
    velocity: str = "accel_matched",
) -> Sums:
    """{"diversity", "velocity"}: (sum, count) of the two terms of L_1.

    Args:
      flow: F [B, K, d].
      targets: z* [B, K, d].
      start: P_0 [B, d].
      real: Which targets exist, bool [B, K].
      started: Which P_0 do, bool [B].
      diversity, velocity: Of `CHOICES`.
    """
    start = jax.lax.stop_gradient(start)[:, None]
    exist = jnp.concatenate([started[:, None], real], axis=1)
    own = sphere.motion(jnp.concatenate([start, flow], axis=1), exist)
    true = sphere.motion(jnp.concatenate([start, targets], axis=1), exist)
    true = jax.lax.stop_gradient(true)
    both = real[:, :, None] & real[:, None]
    cos = jnp.einsum("bkd,bjd->bkj", flow, flow)
    pairs = jnp.tril(jnp.ones(cos.shape[-2:], bool), -1) & both
    hinge = lambda x: jnp.square(jnp.maximum(x, 0.0))  # noqa: E731
    steps = own.steps[:, 1:]
    terms = {
        "tangent": (hinge(true.novelty - own.novelty), steps),
        "cosine": (hinge(cos - 0.5), pairs),
        "none": (jnp.zeros(1), jnp.ones(1, bool)),
    }
    speeds = {
        "accel_matched": (hinge(own.acceleration - true.acceleration), own.bends),
        "accel": (jnp.square(own.acceleration), own.bends),
        "energy": (jnp.square(own.speed), own.steps),
        "speed_matched": (jnp.square(own.speed - true.speed), own.steps),
        "cosine": (1 - jnp.diagonal(cos, 1, 1, 2), real[:, :-1] & real[:, 1:]),
        "none": terms["none"],
    }
    out = {"diversity": terms[diversity], "velocity": speeds[velocity]}
    return {
        k: (jnp.where(m, x, 0.0).sum(), m.sum().astype(jnp.float32)) for k, (x, m) in out.items()
    }


# ---- the batch ------------------------------------------------------------------------------------------------


def aligned(x: jax.Array, mask: jax.Array, slots: int) -> jax.Array:
    """Left-padded x [B, L, ...] with its real places first, cut to `slots`: target k in slot k."""
    length = mask.shape[1]
    at = (jnp.arange(slots) + length - mask.sum(1, keepdims=True)) % length
    return jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), axis=1)


@dataclasses.dataclass(frozen=True)
class Reader:
    """The target lists of a batch as pools.

    Attributes:
      schema: With the lists of `LISTS`, each with the item's id fields and a number <list>_share.
      fields: Of the schema.
      owner: Of the tables.
    """

    schema: Schema
    fields: Fields
    owner: str = OWNER

    def __post_init__(self):
        for name in LISTS:
            self.ids_of(name)
            self.schema.feature(f"{name}_share")

    def ids_of(self, name: str) -> tuple[Feature, ...]:
        """A list's id features in the order of the item's fields."""
        own = {f.id_space: f for f in self.schema.select("target", kind="id", list=name)}
        missing = [h.id_space for h, _ in self.fields.items if h.id_space not in own]
        if missing:
            raise SchemaError(
                f"nif reads a list {name!r} of role target with a field in every id space of an item; "
                f"there is none in {missing[0]!r}: prepare the data with recjax.data.movelines"
            )
        return tuple(own[h.id_space] for h, _ in self.fields.items)

    def rows(self, rows: Rows, batch: Batch, name: str) -> jax.Array:
        """Summed id embeddings of a list's items [B, n, dim]."""
        found = embed_targets(self.schema, rows, batch, owner=self.owner)
        return sum(found[f.name] for f in self.ids_of(name))

    def pool(self, points: jax.Array, batch: Batch, name: str) -> Pool:
        """A list's items, given their T."""
        ids = raw_ids(self.schema, batch, self.ids_of(name)[0].name)
        share = batch["dense"][f"{name}_share"]
        valid = batch["valid"].any(1, keepdims=True)
        return Pool(points, ids, share, batch["mask"][name] & valid)

    def ordered(self, pool: Pool, slots: int) -> Pool:
        """Targets in the slots they belong to."""
        length = pool.ids.shape[1]
        if length < slots:
            raise SchemaError(
                f"the flow has {slots} slots and the batch {length} targets; set data.history.next={slots}"
            )
        mask = pool.real
        real = jnp.arange(slots) < mask.sum(1, keepdims=True)
        points, ids, share = (aligned(x, mask, slots) for x in pool[:3])
        return Pool(points, ids, share, real)


# ---- the system -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Objectives:
    """What stage 1 minimises.

    Attributes:
      tau: Temperature.
      diversity, velocity: Modes, see `CHOICES`.
      div_weight, vel_weight: lambda_div, lambda_vel.
    """

    tau: float = 0.1
    diversity: str = "tangent"
    velocity: str = "accel_matched"
    div_weight: float = 0.1
    vel_weight: float = 0.1

    def __post_init__(self):
        for option in ("diversity", "velocity"):
            models.check_choice("nif", option, getattr(self, option), CHOICES[option])
        if self.tau <= 0 or self.div_weight < 0 or self.vel_weight < 0:
            raise ValueError("nif wants tau > 0 and weights >= 0")


def generator_tables(schema: Schema, found: Fields, table: Mapping[str, Any]) -> tuple[Table, ...]:
    """The generator's tables: those of items and scene events only."""
    tables = models.make_tables(schema, {"init_scale": 0.1, **table, "owner": OWNER}, dim=16)
    return tuple(t for t in tables if t.id_space in found.spaces)


def user_of(schema: Schema, key: str) -> str:
    """`key`, if it is a group of the schema; SchemaError lists them."""
    if key not in schema.groups:
        raise SchemaError(f"{key!r} is no group of the data; the groups are {schema.groups}")
    return key


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    slots: int = 8,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    decoder: str = "parallel",
    moveline_with_item: bool = False,
    tau: float = 0.1,
    diversity: str = "tangent",
    velocity: str = "accel_matched",
    div_weight: float = 0.1,
    vel_weight: float = 0.1,
    target: str = "dense",
    codes: tuple[int, int] = (3, 32),
    user_key: str = "user",
    patience: int = 0,
) -> System:
    """Stage 1 as a system; its tables are named generator/<id space>.

    Args:
      schema: With a history list, a moveline, and the target lists `LISTS` (recjax.data.movelines).
      table: To `Schema.tables`; 16 wide unless it says otherwise.
      compute_dtype: Of activations; geometry and losses are float32.
      param_dtype: Of dense parameters.
      slots: K; data.history.next must be at least as long.
      width: d.
      heads: Of all attention; divides the width.
      layers: Of the moveline's encoder and of the decoder, each.
      decoder: "parallel" or "ar".
      moveline_with_item: Whether events show their item (an ablation: the carrier is the scene).
      tau, diversity, velocity, div_weight, vel_weight: Of `Objectives`.
      target: "dense" (InfoNCE) or "codes" (cross-entropy on residual-quantised targets, the control).
      codes: Levels and codes a level of the control.
      user_key: Group key of users.
      patience: Evaluations without a better `nce` before training stops; 0: never.
    """
    for option, value in dict(decoder=decoder, target=target).items():
        models.check_choice("nif", option, value, CHOICES[option])
    if width % (2 * heads):
        raise ValueError(f"nif: heads={heads} must divide width={width} into even parts")
    found = Fields.of(schema, moveline_with_item)
    goal = Objectives(tau, diversity, velocity, div_weight, vel_weight)
    module = Generator(
        found, slots, width, heads, layers, decoder,
        tuple(codes) if target == "codes" else (),
        jnp.dtype(compute_dtype), jnp.dtype(param_dtype),
    )  # fmt: skip
    tables = generator_tables(schema, found, table)
    stage = Stage(schema, module, goal, Reader(schema, found), user_of(schema, user_key))
    if target == "codes":
        from recjax.models import nif_codes  # the control, in a file of its own

        return nif_codes.make_system(stage, tables, patience)
    return make_system(stage, tables, patience)


@dataclasses.dataclass(frozen=True)
class Stage:
    """The functions of stage 1; methods are what `System` holds."""

    schema: Schema
    module: Generator
    goal: Objectives
    reader: Reader
    user_key: str

    def look_up(self, rows: Rows, batch: Batch) -> Inputs:
        part = self.reader.fields.part_of(self.schema)
        return embed(part, rows, batch, owner=OWNER, dtype=self.module.dtype)

    def init(self, rng, rows, batch):
        inputs = self.look_up(rows, batch)
        candidates = self.reader.fields.candidates(inputs)
        args = rng, inputs, candidates
        return self.module.init(*args, method=Generator.everything)["params"], {}

    def flow(self, dense, rows, batch, teacher=None) -> jax.Array:
        args = self.look_up(rows, batch), teacher
        return self.module.apply({"params": dense}, *args, method=Generator.flow)

    def points(self, dense, summed: jax.Array) -> jax.Array:
        summed = summed.astype(self.module.dtype)
        return self.module.apply({"params": dense}, summed, method=Generator.points)

    def pools(self, dense, rows, batch) -> tuple[Pool, Pool, Pool]:
        """Targets in their slots, uniform and rejected items."""
        out = []
        for name in LISTS:
            points = self.points(dense, self.reader.rows(rows, batch, name))
            out.append(self.reader.pool(points, batch, name))
        return self.reader.ordered(out[0], self.module.slots), out[1], out[2]

    def last_item(self, dense, rows, batch) -> tuple[jax.Array, jax.Array]:
        """P_0 [B, d] and where it is; histories are left-padded, so the last slot is the latest."""
        inputs = self.look_up(rows, batch)
        points = self.points(dense, self.reader.fields.past(inputs)[:, -1])
        return points, inputs.mask[self.reader.fields.history][:, -1]

    def sampled(self, flow, pools, batch) -> Sampled:
        items = self.schema.space(self.reader.ids_of("next")[0].id_space).size - NUM_RESERVED
        return flow_nce(flow, *pools, batch["group"][self.user_key], items, self.goal.tau)

    def loss(self, dense, rows, state, frozen, batch, rng):
        pools = self.pools(dense, rows, batch)
        targets, goal = pools[0], self.goal
        flow = self.flow(dense, rows, batch, targets.points)
        nce = self.sampled(flow, pools, batch).nce
        start, started = self.last_item(dense, rows, batch)
        terms = regularisers(
            flow, targets.points, start, targets.real, started, goal.diversity, goal.velocity
        )
        real = targets.real.astype(jnp.float32)
        sums = {"loss": ((nce * real).sum(), real.sum()), **terms}
        total = mean(*sums["loss"]) + goal.div_weight * mean(*terms["diversity"])
        return total + goal.vel_weight * mean(*terms["velocity"]), (state, sums)

    def score(self, dense, rows, state, frozen, batch):
        """Affinity of flow and candidate / tau, [B, C]: a ranking, no probability."""
        flow = self.flow(dense, rows, batch)
        points = self.candidates(dense, rows, batch)
        return {"logits": affinity(flow, points) / self.goal.tau}

    def candidates(self, dense, rows, batch) -> jax.Array:
        return self.points(dense, self.reader.fields.candidates(self.look_up(rows, batch)))

    def outputs(self, dense, rows, state, frozen, batch):
        """logits [B, C]; of each slot [B, C, K]: nce, rank and real."""
        pools = self.pools(dense, rows, batch)
        flow = self.flow(dense, rows, batch)
        measured = dict(zip(("nce", "rank"), self.sampled(flow, pools, batch), strict=True))
        logits = affinity(flow, self.candidates(dense, rows, batch)) / self.goal.tau
        return {"logits": logits, **by_candidate(logits, measured | {"real": pools[0].real})}

    def exports(self) -> dict[str, Export]:
        """The flow once a request, the point of an item once and for all, and their affinity."""
        flow = lambda dense, rows, state, frozen, batch: {  # noqa: E731
            "flow": self.flow(dense, rows, batch)
        }
        point = lambda dense, rows, state, frozen, batch: {  # noqa: E731
            "point": self.candidates(dense, rows, batch)
        }
        return {
            "score": Export(self.score, "request"),
            "flow": Export(flow, "request"),
            "item": Export(point, "item"),
        }


def by_candidate(logits: jax.Array, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """[B, K] values of a request beside each of its candidates, float32 [B, C, K]."""
    shape = logits.shape
    wide = lambda x: jnp.broadcast_to(x[:, None], (*shape, x.shape[1]))  # noqa: E731
    return {k: wide(x.astype(jnp.float32)) for k, x in values.items()}


def hit_rates(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`nce`, hr10, hr50 over all slots, and hr10 of each; from columns nce, rank and real [N, K]."""
    real = columns["real"] > 0
    total = max(int(real.sum()), 1)
    out = {"nce": float(columns["nce"][real].sum() / total), "targets": int(real.sum())}
    for k in (10, 50):
        out[f"hr{k}"] = float((columns["rank"][real] < k).sum() / total)
    for slot in range(real.shape[1]):
        own = columns["rank"][:, slot][real[:, slot]]
        out[f"hr10/slot_{slot + 1}"] = float((own < 10).mean()) if len(own) else float("nan")
    return out


def make_system(stage: Stage, tables: tuple[Table, ...], patience: int) -> System:
    """The dense system."""
    return System(
        schema=stage.schema,
        tables=tables,
        init=stage.init,
        loss=stage.loss,
        outputs=stage.outputs,
        objectives=(Objective("logits", stage.schema.labels[0]),),
        select=Select("nce", "min", patience),
        exports=stage.exports(),
        measure=hit_rates,
        kept=("nce", "rank", "real"),
    )
