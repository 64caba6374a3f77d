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

Deviations from our own specification: targets begin at the cut-off, with the request's own positives; every request of stage 1 is
a cut-off, not four a user and epoch; no weight decay; the history carries an age embedding too (without it S would be a set); tables
may be narrower than d (a Dense widens), so that grades leave them alone.

Metrics: `nce_loss`, and `hr10`, `hr50`, `hr10/slot_k`: how often a target is among the ten (fifty) best of the distinct targets of
other users and uniform items *of its evaluation batch*; compare them at one eval.batch only. `hr10_popular` and `hr10_last` are
the same of two rivals: an item's share of the targets, and nearness to the last clicked item.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax import models
from recjax.inputs import Batch, Inputs, embed, embed_targets, raw_ids
from recjax.layers import sphere
from recjax.layers.flow import (
    DIVERSITY,
    VELOCITY,
    Pool,
    Sampled,
    affinity,
    aligned,
    flow_nce,
    rank,
    regularisers,
    shared_negatives,
)
from recjax.layers.moveline import Block, Encoders, Fields
from recjax.schema import NUM_RESERVED, Feature, Schema, SchemaError, Table
from recjax.system import Export, Objective, Rows, Select, System, mean

OWNER = "generator"  # of the tables: a CTR model on the same batch has its own
CHOICES = {
    "decoder": ("parallel", "ar"),
    "diversity": DIVERSITY,
    "velocity": VELOCITY,
    "target": ("dense", "codes"),
}
LISTS = ("next", "uniform", "rejected")  # of role target: positives, and the two drawn negatives

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


# ---- the batch ------------------------------------------------------------------------------------------------


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
                f"there is none in {missing[0]!r}: prepare the data with recjax.data.store.movelines"
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
      schema: With a history list, a moveline, and the target lists `LISTS` (recjax.data.store.movelines).
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
      patience: Evaluations without a better `nce_loss` before training stops; 0: never.
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
        if decoder != "parallel":
            raise ValueError(
                "nif: target='codes' has no point to feed back; set decoder='parallel'"
            )
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
        measured |= self.rivals(dense, rows, batch, pools)
        logits = affinity(flow, self.candidates(dense, rows, batch)) / self.goal.tau
        return {"logits": logits, **by_candidate(logits, measured | {"real": pools[0].real})}

    def rivals(self, dense, rows, batch, pools) -> dict[str, jax.Array]:
        """Ranks [B, K] by popularity, and by nearness to the last clicked item."""
        targets, user = pools[0], batch["group"][self.user_key]
        shared, allowed = shared_negatives(targets, pools[1], user)
        near = self.last_item(dense, rows, batch)[0][:, None]  # [B, 1, d]
        score = jnp.einsum("bkd,nd->bkn", near, shared.points)
        last = rank(score, (near * targets.points).sum(-1), shared, allowed)
        popular = rank(shared.share[None, None], targets.share + 1e-6, shared, allowed)
        return {"rank_last": last, "rank_popular": popular}

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
    """nce_loss, hr10, hr50 over all slots, hr10 of each and of rivals; from columns nce, real and rank* [N, K]."""
    real = columns["real"] > 0
    total = max(int(real.sum()), 1)
    out = {"nce_loss": float(columns["nce"][real].sum() / total), "targets": int(real.sum())}
    for k in (10, 50):
        out[f"hr{k}"] = float((columns["rank"][real] < k).sum() / total)
    for name in (c for c in columns if c.startswith("rank_")):
        out[name.replace("rank", "hr10")] = float((columns[name][real] < 10).sum() / total)
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
        select=Select("nce_loss", "min", patience),
        exports=stage.exports(),
        measure=hit_rates,
        kept=("nce", "rank", "rank_last", "rank_popular", "real"),
    )
