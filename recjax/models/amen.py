"""AMEN: click-through rate from items, the moveline of scenes and, in NIF's stage 2, a frozen generator's interest flow.

C. Gao et al., "All-domain Moveline Evolution Network for Click-Through Rate Prediction", arXiv 2411.11502 (AMEN-24: no
generator, TSP is the main mechanism; flow="none"), and the CTR model, again called AMEN, of arXiv 2510.11317 (NIF). Only
abstracts, one opening and third-party summaries could be read: the modules' names and what each is for are the papers'
[P, T], every formula is ours [OUR]; recjax/models/nif.py has stage 1. With MHTA(q; X) multi-head target attention,

    r_item = MHTA(e_i; S),  q_S = MLP([e_i; ids of scene and category]), r_S = MHTA(q_S; H),  r_I = MHTA(e_i; MLP(H))

(items and scenes are heterogeneous, so each is mapped into the other's space: two maps), the flow F (no gradient) adapted to
candidate and user by the Semantic Alignment Module, a residual adapter that starts as the identity (W_o = 0),

    g, b = MLP([e_i; h_user; mean_k F_k]),  F'_k = F_k + W_o GELU(LN(W_a F_k) (1 + g) + b),  r_nif = MHTA(e_i; F')

h_user being the latest state of H, and a head 256-128-64-1 with PReLU on [e_i, other features, r_item, r_S, r_I, r_nif,
e_i r_item, q_S r_S, e_i r_nif, and max, mean and first of cos(F'_k, T(i))].

    L_2 = BCE + tsp L_tsp + sam_weight L_sam

* L_sam: -log softmax, among a clicked item and the unclicked ones of the batch, of the soft maximum over k of cos(F'_k, T(i)) / 0.1,
  F' being made without the candidate, which it would otherwise read.
* L_tsp (Temporal Sequential Pairwise [T]: pairs of items whose labels come from *different times*): mean of w softplus(-(s_a - s_b)) over
  clicked a and unclicked b of one user in different requests with different moveline cut-offs, at most `tsp_window` apart,
  w = exp(-|time apart| / tsp_decay), each score with its own moveline. tsp_order="past" (b always earlier) can be lowered by a score
  that grows with time; tsp_pairs="same_request" is ordinary pairwise training, an ablation. A batch needs several
  requests of a user: recjax.data.store.movelines lays training rows out so.
* Difference in differences, D_ab = [s(a, M_a) - s(a, M_b)] - [s(b, M_a) - s(b, M_b)]: positive when the moveline moves clicked and unclicked
  items apart, 0 for a score that adds item and moveline. `did=True` reports its mean over each clicked row's nearest partner;
  `tsp_did` > 0 also adds mean softplus(-D) at three times the cost (M_b may lie after a: training only).

flow="shuffled" gives every row another user's flow: the control that must lose what the flow gives.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax.batch import Batch, part
from recjax.inputs import Inputs, embed
from recjax.layers import fields, sphere
from recjax.layers.flow import affinity
from recjax.layers.mlp import MLP, Logits
from recjax.layers.moveline import Attention, Encoders, Fields
from recjax.models.parts import building
from recjax.models.parts.nif_generator import OWNER, Generator, generator_tables, user_of
from recjax.schema import Schema, Table
from recjax.system import Export, Objective, System, bce, mean, weights_of
from recjax.trees import Params, Rows

CHOICES = {
    "flow": ("nif", "shuffled", "none"),
    "tsp_order": ("both", "past"),
    "tsp_pairs": ("across", "same_request"),
}
SAM_TEMPERATURE = 0.1

# ---- the model ------------------------------------------------------------------------------------------------


class SAM(nn.Module):
    """The Semantic Alignment Module: the identity when new."""

    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, flow: jax.Array, item: jax.Array, user: jax.Array) -> jax.Array:
        """flow [B, K, d], item [B, C, d], user [B, d] -> F' [B, C, K, d]; no gradient to the flow."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        flow, width = jax.lax.stop_gradient(flow).astype(self.dtype), flow.shape[-1]
        request = jnp.concatenate([user, flow.mean(1)], axis=-1)[:, None]
        request = jnp.broadcast_to(request, (*item.shape[:2], 2 * width))
        context = nn.Dense(width, name="context_0", **types)(
            jnp.concatenate([item, request], axis=-1)
        )
        both = nn.Dense(2 * width, name="context_1", **types)(nn.gelu(context))
        g, b = jnp.split(both[:, :, None], 2, axis=-1)  # [B, C, 1, d]
        x = nn.Dense(width, use_bias=False, name="in", **types)(flow)
        x = nn.LayerNorm(name="norm", **types)(x)[:, None] * (1 + g) + b
        zeros = nn.initializers.zeros
        out = nn.Dense(width, use_bias=False, kernel_init=zeros, name="out", **types)
        return flow[:, None] + out(nn.gelu(x))


class AMEN(nn.Module):
    """F_theta.

    Attributes:
      schema: Of the inputs.
      fields: Of the schema.
      width: d.
      heads: Of all attention.
      depth: Layers of the moveline's Transformer.
      slots: K of the flow; 0 for none.
      sam: Whether the flow is adapted.
      head: Widths of the MLP.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    fields: Fields
    width: int = 64
    heads: int = 4
    depth: int = 2
    slots: int = 8
    sam: bool = True
    head: tuple[int, ...] = (256, 128, 64)
    dense_norm: str = "batchnorm"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        look = lambda: Attention(self.heads, **types)  # noqa: E731
        map_ = lambda: [nn.Dense(self.width, **types) for _ in range(2)]  # noqa: E731
        self.encoders = Encoders(self.fields, self.width, self.heads, self.depth, **types)
        self.at_items, self.at_scenes, self.at_scenes_as_items = look(), look(), look()
        self.to_scene, self.to_item = map_(), map_()
        if self.slots:
            self.at_flow = look()
            if self.sam:
                self.adapter = SAM(**types)
        beside = (self.schema, self.fields.history, self.dense_norm)
        self.other = fields.OtherFeatures.beside(*beside, **types)
        self.top = MLP(self.head, activation="prelu", **types)
        self.logit = Logits(("logits",), **types)

    def __call__(
        self, inputs: Inputs, flow: jax.Array | None = None, *, train: bool = False
    ) -> dict[str, jax.Array]:
        """{"logits": float32 [B, C]}; flow [B, K, d] where there are slots."""
        e = self.encoders.item(self.fields.candidates(inputs))  # [B, C, d]
        s, seen = self.encoders.past(inputs)
        h, there = self.encoders.scenes(inputs)
        seen, there = seen[:, None], there[:, None]
        q = self.scene_query(inputs, e)
        r_item, r_scene = self.at_items(e, s, seen), self.at_scenes(q, h, there)
        as_items = self.to_item[1](nn.gelu(self.to_item[0](h)))
        parts = [e, r_item, r_scene, self.at_scenes_as_items(e, as_items, there)]
        parts += [e * r_item, q * r_scene]
        if self.slots:
            adapted = self.adapt(flow, e, h)
            r_flow = self.at_flow(e, adapted, jnp.ones((1, 1, self.slots), bool))
            parts += [r_flow, e * r_flow, self.cosines(adapted, e).astype(e.dtype)]
        other = self.other(inputs, train=train)
        x = jnp.concatenate([*parts, *([] if other is None else [other])], axis=-1)
        valid = fields.valid_of(inputs)
        return self.logit(self.top(x, train=train, valid=valid), train=train)

    def scene_query(self, inputs: Inputs, e: jax.Array) -> jax.Array:
        """q_S [B, C, d]: the candidate in the space of scenes."""
        parts = [e]
        for f in self.fields.scene:
            x = inputs.emb[f.name]
            parts.append(x if f.axes == "BC" else fields.per_candidate(x, e.shape[1]))
        return self.to_scene[1](nn.gelu(self.to_scene[0](jnp.concatenate(parts, axis=-1))))

    def adapt(self, flow: jax.Array, e: jax.Array, h: jax.Array) -> jax.Array:
        """F' [B, C, K, d]."""
        if self.sam:
            return self.adapter(flow, e, h[:, -1])
        flow = jax.lax.stop_gradient(flow).astype(e.dtype)[:, None]
        return jnp.broadcast_to(flow, (*e.shape[:2], *flow.shape[2:]))

    def cosines(self, adapted: jax.Array, e: jax.Array) -> jax.Array:
        """max, mean and first of cos(F'_k, T(i)), float32 [B, C, 3]."""
        points = self.encoders.point(e)
        cos = (sphere.unit(adapted) * points[:, :, None]).sum(-1)
        return jnp.stack([cos.max(-1), cos.mean(-1), cos[..., 0]], axis=-1)

    def blind(self, inputs: Inputs, flow: jax.Array) -> jax.Array:
        """u [B, B * C]: affinity of each request's flow, adapted without a candidate, to every candidate of the batch."""
        e = self.encoders.item(self.fields.candidates(inputs))
        h, _ = self.encoders.scenes(inputs)
        adapted = self.adapt(flow, jnp.zeros_like(e[:, :1]), h)[:, 0]
        points = self.encoders.point(e)
        return affinity(sphere.unit(adapted), points.reshape(-1, points.shape[-1]))

    def scored(self, inputs: Inputs, flow: jax.Array | None):
        """What training needs: the logits, and u where there is an adapter."""
        out = self(inputs, flow, train=True)
        return out | ({"blind": self.blind(inputs, flow)} if self.slots and self.sam else {})


# ---- losses ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Which (clicked, unclicked) pairs L_tsp compares.

    Attributes:
      pairs: "across" requests of a user, or "same_request".
      order: "both", or "past": the unclicked one is the earlier.
      window: W, seconds.
      decay: T, seconds.
    """

    pairs: str = "across"
    order: str = "both"
    window: float = 3 * 86_400.0
    decay: float = 86_400.0

    def weights(self, label, user, time, cutoff, real) -> jax.Array:
        """w [n, n], clicked first; arguments [n]: labels, keys, seconds, moveline cut-offs, what counts."""
        favoured = (label > 0.5) & real
        pair = favoured[:, None] & ((label < 0.5) & real) & (user[:, None] == user)
        ahead = time[:, None] - time  # how much later the clicked one is
        if self.pairs == "same_request":
            return (pair & (ahead == 0)).astype(jnp.float32)
        apart = jnp.abs(ahead).astype(jnp.float32)
        pair &= (ahead != 0) & (cutoff[:, None] != cutoff) & (apart <= self.window)
        if self.order == "past":
            pair &= ahead > 0
        return pair * jnp.exp(-apart / self.decay)


def tsp_loss(scores: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum of w softplus(-(s_a - s_b)), sum of w): scores [n], weights [n, n]."""
    return (weights * jax.nn.softplus(scores - scores[:, None])).sum(), weights.sum()


def sam_loss(u: jax.Array, label: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum, count) of L_sam over clicked impressions.

    Args:
      u: float32 [B, B * C], from `AMEN.blind`.
      label, real: [B, C].
    """
    b, c = label.shape
    own = u.reshape(b, b, c)[jnp.arange(b), jnp.arange(b)] / SAM_TEMPERATURE  # [B, C]
    unclicked = ((label < 0.5) & real).reshape(-1)
    others = jax.nn.logsumexp(jnp.where(unclicked, u / SAM_TEMPERATURE, -1e30), axis=1)  # [B]
    clicked = ((label > 0.5) & real).astype(jnp.float32)
    return (jax.nn.softplus(others[:, None] - own) * clicked).sum(), clicked.sum()


def take(inputs: Inputs, index: jax.Array) -> Inputs:
    """Other requests in the place of these: rows `index` of every array."""
    pick = lambda tree: jax.tree.map(lambda x: x[index], tree)  # noqa: E731
    return inputs.replace(
        emb=pick(inputs.emb), dense=pick(inputs.dense), mask=pick(inputs.mask),
        age=pick(inputs.age), valid=pick(inputs.valid),
    )  # fmt: skip


def with_moveline(inputs: Inputs, other: Inputs, found: Fields) -> Inputs:
    """`inputs` with the moveline of `other`."""
    swap = lambda mine, theirs, keys: {**mine, **{k: theirs[k] for k in keys}}  # noqa: E731
    names = [f.name for f in inputs.schema.select("moveline", kind="id") if f.name in inputs.emb]
    return inputs.replace(
        emb=swap(inputs.emb, other.emb, names),
        mask=swap(inputs.mask, other.mask, [found.line]),
        age=swap(inputs.age, other.age, [found.line]),
    )


# ---- the system -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stage:
    """The functions of stage 2; methods are what `System` holds.

    Attributes:
      module, generator: F_theta, and G_phi or None.
      pairs: Of L_tsp.
      tsp, sam, did_weight: Weights of the terms.
      did: Whether evaluation reports D.
      shuffled: The control.
      keys: Group keys of user, time and moveline cut-off.
    """

    schema: Schema
    module: AMEN
    generator: Generator | None
    pairs: Pairs
    tsp: float
    sam: float
    did_weight: float
    did: bool
    shuffled: bool
    keys: tuple[str, ...]

    def look_up(self, rows: Rows, batch: Batch) -> Inputs:
        return embed(self.schema, rows, batch, dtype=self.module.dtype)

    def both(self, rows: Rows, batch: Batch) -> tuple[Inputs, Inputs | None]:
        """The batch as F_theta sees it, and as G_phi does."""
        mine = self.look_up(rows, batch)
        if self.generator is None:
            return mine, None
        part = self.generator.fields.part_of(self.schema)
        return mine, embed(part, rows, batch, owner=OWNER, dtype=self.generator.dtype)

    def flow(self, frozen, inputs: Inputs | None) -> jax.Array | None:
        """F [B, K, d] of the frozen generator; None without one."""
        if self.generator is None:
            return None
        if "generator" not in frozen:
            raise ValueError(
                "amen reads the flow of a frozen generator and there is none: name its run in init_from, as "
                "experiments/nif_complete_journey.py does, or set model.flow=none"
            )
        params = {"params": frozen["generator"]}
        flow: Any = self.generator.apply(params, inputs, method=Generator.flow)
        if self.shuffled:
            flow = jnp.roll(flow, flow.shape[0] // 2, axis=0)
        return jax.lax.stop_gradient(flow)

    def init(self, rng, rows, batch):
        inputs, _ = self.both(rows, batch)
        flow = None
        if self.generator is not None:
            b = next(iter(inputs.mask.values())).shape[0]
            flow = jnp.zeros((b, self.generator.slots, self.generator.width))
        variables = dict(self.module.init(rng, inputs, flow))
        return variables.pop("params"), variables

    def earlier(self, rows: Rows, batch: Batch) -> dict:
        """A generator of the shapes that stage 1 leaves."""
        if self.generator is None:
            return {}
        _, inputs = self.both(rows, batch)
        made = self.generator.init(jax.random.key(0), inputs, method=Generator.flow)
        return {"generator": made["params"]}

    def logits(self, params: Params, inputs, of_generator) -> jax.Array:
        flow = self.flow(params.frozen, of_generator)
        out: Any = self.module.apply(params.variables, inputs, flow)
        return out["logits"]

    def outputs(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """logits [B, C]; with `did` also D and where it is defined."""
        inputs = self.both(params.rows, batch)
        out = {"logits": self.logits(params, *inputs)}
        if self.did:
            w = self.pair_weights(batch, rows_only=True)
            score = lambda *i: self.logits(params, *i)[:, 0]  # noqa: E731
            d, defined = self.differences(score, w, inputs, out["logits"][:, 0])
            wide = lambda x: jnp.broadcast_to(  # noqa: E731
                x[:, None].astype(jnp.float32), out["logits"].shape
            )
            out |= {"did": wide(d), "did_defined": wide(defined)}
        return out

    def pair_weights(self, batch: Batch, rows_only: bool = False) -> jax.Array:
        """w of all impressions [B * C, B * C], or of the first candidates [B, B]."""
        label = batch["label"][self.schema.labels[0]]
        real = weights_of(batch) > 0
        c = 1 if rows_only else label.shape[1]
        user, time, cutoff = (jnp.repeat(batch["group"][k], c) for k in self.keys)
        label, real = label[:, :c].reshape(-1), real[:, :c].reshape(-1)
        return self.pairs.weights(label, user, time, cutoff, real)

    def differences(self, score, weights, inputs, s):
        """D [B] of each clicked row with the partner of the largest weight, and where there is one."""
        b = weights.argmax(1)
        pick = lambda x: None if x is None else take(x, b)  # noqa: E731
        partner = tuple(pick(x) for x in inputs)
        swap = lambda x, y: None if x is None else with_moveline(x, y, self.module.fields)  # noqa: E731
        a_with_b = score(*(swap(x, y) for x, y in zip(inputs, partner, strict=True)))
        b_with_a = score(*(swap(y, x) for x, y in zip(inputs, partner, strict=True)))
        return (s - a_with_b) - (b_with_a - s[b]), weights.max(1) > 0

    def loss(self, params: Params, batch: Batch, rng: jax.Array):
        inputs, of_generator = self.both(params.rows, batch)
        flow = self.flow(params.frozen, of_generator)
        apply = lambda *args, **kw: self.module.apply(  # noqa: E731
            params.variables, *args, mutable=list(params.state), **kw
        )
        out, changed = apply(inputs, flow, method=AMEN.scored)
        label, weights = batch["label"][self.schema.labels[0]], weights_of(batch)
        sums = {"loss": bce(out["logits"], label, weights)}
        total = mean(*sums["loss"])
        if self.sam and "blind" in out:
            sums["sam"] = sam_loss(out["blind"], label, weights > 0)
            total += self.sam * mean(*sums["sam"])
        if self.tsp:
            w = self.pair_weights(batch)
            sums["tsp"] = tsp_loss(out["logits"].reshape(-1), w)
            total += self.tsp * sums["tsp"][0] / (sums["tsp"][1] + 1e-6)
        if self.did_weight:

            def score(i, g):
                return apply(i, self.flow(params.frozen, g), train=True)[0]["logits"][:, 0]

            w = self.pair_weights(batch, rows_only=True)
            d, defined = self.differences(score, w, (inputs, of_generator), out["logits"][:, 0])
            sums["did"] = (jax.nn.softplus(-d) * defined).sum(), defined.sum().astype(jnp.float32)
            total += self.did_weight * mean(*sums["did"])
        return total, ({**params.state, **changed}, sums)

    def exports(self) -> dict[str, Export]:
        """The whole score; with a generator also the flow of a request, and a score that reads it."""

        def score(params, batch):
            return {"logits": self.logits(params, *self.both(params.rows, batch))}

        def flow(params, batch):
            return {"flow": self.flow(params.frozen, self.both(params.rows, batch)[1])}

        def score_flow(params, batch):
            inputs, known = self.look_up(params.rows, batch), part(batch, "flow")["flow"]
            return self.module.apply(params.variables, inputs, known)

        out = {"score": Export(score, "request")}
        if self.generator is not None and not self.shuffled:
            out["flow"] = Export(flow, "request")
            out["score_flow"] = Export(score_flow, "candidate", {"flow": "flow"})
        return out


def mean_difference(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`did`: mean D over clicked rows with a partner, and `did_pairs`, their number."""
    defined = columns["did_defined"] > 0
    value = float(columns["did"][defined].mean()) if defined.any() else float("nan")
    return {"did": value, "did_pairs": int(defined.sum())}


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    head: tuple[int, ...] = (256, 128, 64),
    dense_norm: str = "batchnorm",
    moveline_with_item: bool = False,
    flow: str = "nif",
    slots: int = 8,
    decoder: str = "parallel",
    sam: bool = True,
    sam_weight: float = 0.05,
    tsp: float = 0.1,
    tsp_pairs: str = "across",
    tsp_order: str = "both",
    tsp_window: float = 3 * 86_400.0,
    tsp_decay: float = 86_400.0,
    tsp_did: float = 0.0,
    did: bool = False,
    user_key: str = "user",
    time_key: str = "second",
    cutoff_key: str = "cutoff",
) -> System:
    """AMEN as a system; the generator, if there is a flow, is frozen/generator with tables generator/<id space>.

    Args:
      schema: With a history list and a moveline.
      table: To `Schema.tables`; 16 wide unless it says otherwise.
      compute_dtype: Of activations.
      param_dtype: Of dense parameters.
      width, heads, layers, slots, decoder, moveline_with_item: As in stage 1, whose generator is read; without a
        flow they are AMEN's own.
      head: Widths of the MLP.
      dense_norm: "batchnorm" or "identity", of dense features.
      flow: "nif", "shuffled" (the control) or "none" (AMEN-24).
      sam: Whether the flow is adapted.
      sam_weight: Of L_sam.
      tsp: Of L_tsp; 0 leaves it out.
      tsp_pairs, tsp_order, tsp_window, tsp_decay: See `Pairs`; seconds.
      tsp_did: Of mean softplus(-D).
      did: Whether evaluation reports D, of each request's first candidate.
      user_key, time_key, cutoff_key: Group keys: whose, when (seconds), and after how many events of the moveline.
    """
    for option, value in dict(flow=flow, tsp_order=tsp_order, tsp_pairs=tsp_pairs).items():
        building.check_choice("amen", option, value, CHOICES[option])
    if width % (2 * heads):
        raise ValueError(f"amen: heads={heads} must divide width={width} into even parts")
    if min(tsp_window, tsp_decay) <= 0 or min(tsp, tsp_did, sam_weight) < 0:
        raise ValueError("amen wants tsp_window and tsp_decay > 0 seconds, and weights >= 0")
    found = Fields.of(schema, moveline_with_item)
    types: dict[str, Any] = dict(dtype=jnp.dtype(compute_dtype), param_dtype=jnp.dtype(param_dtype))
    tables: tuple[Table, ...] = building.make_tables(schema, {"init_scale": 0.1, **table}, dim=16)
    generator = None
    if flow != "none":
        generator = Generator(found, slots, width, heads, layers, decoder, **types)
        frozen = {**table, "optimizer": "frozen"}
        tables += generator_tables(schema, found, frozen)
    slots = slots if generator else 0
    keys: tuple[str, ...] = (user_key, time_key, cutoff_key)
    if tsp or tsp_did or did:
        keys = tuple(user_of(schema, k) for k in keys)
    module = AMEN(schema, found, width, heads, layers, slots, sam, tuple(head), dense_norm, **types)
    pairs = Pairs(tsp_pairs, tsp_order, tsp_window, tsp_decay)
    stage = Stage(
        schema, module, generator, pairs, tsp, sam_weight, tsp_did, did, flow == "shuffled", keys
    )
    return System(
        schema=schema,
        tables=tables,
        init=stage.init,
        loss=stage.loss,
        outputs=stage.outputs,
        objectives=(Objective("logits", schema.labels[0]),),
        counts_as=building.counting(r"encoders/layers_\d+/", "(top|logit)/"),
        exports=stage.exports(),
        measure=mean_difference if did else None,
        kept=("did", "did_defined") if did else (),
        stages_apart=generator is not None,
        earlier=stage.earlier,
    )
