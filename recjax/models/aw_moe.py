"""AW-MoE: experts are patterns of feature interaction, and each behaviour votes for the experts its user needs.

Y. Gong et al., "Attention Weighted Mixture of Experts with Contrastive Learning for Personalized Ranking in E-commerce", ICDE
2023, pp. 3222-3234, arXiv 2306.05011. The paper's body was not available to us: [P] is in its abstract, [I] the natural
reading of the abstract, everything else [ours]. No number or hyper-parameter of the paper was found; none is claimed.

    h_j = MLP_item(e(b_j)), h_t = MLP_item(e(t))        one MLP for both                              [ours]
    v_u = sum_j a_j h_j,  a_j = AU_u([h_j; h_t; h_j - h_t; h_j h_t])   not normalised               [I, ours]
    v   = [v_u; h_t; h_t v_u; log(1 + behaviours); other features]                                  [ours]
    f_k(v): K MLPs of one shape on the same v, one logit each                                        [P, I]
    g   = b_0 + sum_j AU_g(y_j) GU(y_j),  y_j = [h_j; h_c; h_j - h_c; h_j h_c]    gate unit x activation unit [P, I]
    alpha = softmax(g / T_g),  logit = sum_k alpha_k f_k(v)   (mix="linear": sum_k g_k f_k(v))        [ours]
    L = BCE + lambda L_cl,  L_cl = InfoNCE(g, g') over the batch      [P: that the gates are contrasted; I: the sum; ours: InfoNCE]

g' is the gate of the same history with each behaviour dropped with probability p (one is always left), which imitates a
long-tail user [P]; negatives are the rows of other users. Only the gate sees the masked history, so L_cl does not reach
the experts; it reaches the gate and the item encoder through both views.

h_c is what the gate attends against: the candidate ("item"), the request's context or trigger ids ("query"), the profile
("user"), or nothing ("none"). Only with "item" does g depend on the candidate; otherwise it is computed once a request and
is a function of the artifact ("gate", cadence request), which "score_gated" (cadence candidate) takes in place of GU and
AU_g (`Export.reads`). Rivals [ours]: gate="pooled" (an MLP of the mean of h_j, a usual mixture), "category" (of
the candidate's category alone, after JD's earlier AdvMoE, without its adversary), "prior" (b_0 alone: no personal gate),
experts=1 (DIN with this encoder), pooling="mean". LayerNorm on h keeps the sums in scale [ours] (`event_norm`).

What a row of the batch is: users are told apart by the group key `user_key`. Every request with events is an anchor of L_cl, and one
row of each other user a negative; without such a key each row is its own user.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.batch import part
from recjax.inputs import Inputs, embed
from recjax.layers import fields
from recjax.layers.contrast import info_nce, keep_events, other_users
from recjax.layers.experts import AttentionGate, Experts, PlainGate
from recjax.layers.mlp import MLP
from recjax.layers.pair_dense import EventPairs
from recjax.models.parts import building
from recjax.schema import Schema, SchemaError
from recjax.system import Export, System, bce, mean, pointwise, weights_of

CHOICES = {
    "gate": ("attention", "pooled", "category", "prior"),
    "gate_context": ("item", "query", "user", "none"),
    "mix": ("softmax", "linear"),
    "pooling": ("attention", "mean"),
    "event_norm": ("layer", "none"),
    "dense_norm": ("batchnorm", "identity"),
}
CONTEXT_ROLES = {"query": ("context", "trigger"), "user": ("profile",)}


class AWMoE(nn.Module):
    """The model; fields up to `dense_norm` are options of `build`.

    Attributes:
      experts: K.
      width: d, of h.
      expert: Hidden widths of each expert.
      gate: "attention", or a rival: "pooled", "category", "prior".
      gate_context: What the gate attends against: "item", "query", "user" or "none".
      gate_unit, activation_unit: Hidden widths of GU, and of AU_g and AU_u.
      mix: "softmax" or "linear".
      gate_temperature: T_g.
      pooling: Of v_u: "attention" or "mean".
      history: The list read; "" for the schema's first.
      category: Candidate id that the category gate sees; "" for the one with the smallest vocabulary.
      event_norm: Of h: "layer" (the specification's), or "none". LayerNorm gives a product that training has not
        seen, whose row is small noise, as much weight as a known one; without it such events hardly count.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    experts: int = 8
    width: int = 64
    expert: tuple[int, ...] = (128, 64)
    gate: str = "attention"
    gate_context: str = "item"
    gate_unit: tuple[int, ...] = (64,)
    activation_unit: tuple[int, ...] = (32,)
    mix: str = "softmax"
    gate_temperature: float = 1.0
    pooling: str = "attention"
    history: str = ""
    category: str = ""
    event_norm: str = "layer"
    dense_norm: str = "batchnorm"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @property
    def types(self) -> dict[str, Any]:
        return dict(dtype=self.dtype, param_dtype=self.param_dtype)

    @property
    def per_request(self) -> bool:
        """Whether g is the same for every candidate of a request."""
        personal = self.gate in ("attention", "pooled", "prior")
        return personal and not (self.gate == "attention" and self.gate_context == "item")

    def setup(self):
        self.item = nn.Dense(self.width, **self.types)
        norm = self.event_norm == "layer"
        self.item_norm = nn.LayerNorm(**self.types) if norm else lambda x: x
        beside = (self.schema, self.history, self.dense_norm)
        self.other = fields.OtherFeatures.beside(*beside, **self.types)
        if self.pooling == "attention":
            self.unit = MLP(self.activation_unit, **self.types)
            self.unit_score = nn.Dense(1, **self.types)
        self.stack = Experts(self.experts, self.expert, **self.types)
        zeros = nn.initializers.zeros
        self.gate_prior = self.param("gate_prior", zeros, (self.experts,), self.param_dtype)
        if self.gate == "attention":
            self.gating: Any = AttentionGate(
                self.experts, self.gate_unit, self.activation_unit, **self.types
            )
            if self.gate_context in CONTEXT_ROLES:
                self.query = nn.Dense(self.width, **self.types)
        elif self.gate != "prior":
            self.gating = PlainGate(self.experts, self.gate_unit, **self.types)

    def __call__(
        self,
        inputs: Inputs,
        *,
        train: bool = False,
        kept: jax.Array | None = None,
        gate: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Logits, gates and mixing weights.

        Args:
          inputs: Embedded batch.
          train: Batch statistics of dense features.
          kept: bool [B, L], the masked history of the second view; adds "gate_masked".
          gate: float32 [B, 1, K] computed before ("gate" of `gate_of`), in place of the gate network.

        Returns:
          logits float32 [B, C], gate and alpha float32 [B, C, K].
        """
        events, target, mask = self.encode(inputs)
        f = self.stack(self.expert_input(inputs, events, target, mask, train))  # [B, C, K]
        if gate is None:
            votes = self.votes(inputs, events, target)
            gate = self.sum_votes(votes, mask)  # [B, 1 or C, K]
        g = jnp.broadcast_to(gate, f.shape)
        alpha = nn.softmax(g / self.gate_temperature, axis=-1)
        logits = (f * (alpha if self.mix == "softmax" else g)).sum(-1)
        out = {"logits": logits, "gate": g, "alpha": alpha}
        if kept is not None:
            out["gate_masked"] = jnp.broadcast_to(self.sum_votes(votes, kept), f.shape)
        return out

    def gate_of(self, inputs: Inputs) -> jax.Array:
        """g of each request, float32 [B, 1, K]; only where it does not depend on the candidate."""
        events, mask = self.encode_events(inputs)
        return self.sum_votes(self.votes(inputs, events, None), mask)

    def encode_events(self, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """h_j [B, L, d] and the mask."""
        both = fields.shared_fields(self.schema, self.history)
        past = jnp.concatenate([inputs.emb[h.name] for h, _ in both], axis=-1)
        return self.item_norm(nn.relu(self.item(past))), inputs.mask[self.history]

    def encode(self, inputs: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
        """h_j [B, L, d], h_t [B, C, d] and the mask [B, L]."""
        _, target = fields.event_and_candidate(self.schema, inputs, self.history)
        events, mask = self.encode_events(inputs)
        return events, self.item_norm(nn.relu(self.item(target))), mask

    def expert_input(self, inputs, events, target, mask, train) -> jax.Array:
        """v [B, C, D]."""
        count = mask.sum(1).astype(self.dtype)
        if self.pooling == "attention":
            hidden = self.unit(EventPairs(events, target), train=train)
            scores = self.unit_score(hidden)[..., 0]  # [B, C, L]
            user = jnp.einsum("bcl,bld->bcd", scores * mask[:, None], events)
        else:
            user = (events * mask[..., None]).sum(1) / jnp.maximum(count, 1)[:, None]
            user = jnp.broadcast_to(user[:, None], target.shape)
        many = jnp.broadcast_to(jnp.log1p(count)[:, None, None], (*target.shape[:2], 1))
        other = self.other(inputs, train=train)
        return jnp.concatenate(
            [user, target, target * user, many, *([] if other is None else [other])], axis=-1
        )

    def votes(self, inputs: Inputs, events: jax.Array, target: jax.Array | None) -> jax.Array:
        """What g is made of before masks: votes of behaviours [B, 1 or C, L, K], or what a rival's gate reads.

        The sum over behaviours is apart (`sum_votes`), so that two masks cost one network.
        """
        if self.gate == "attention":
            return self.gating(events, self.gate_query(inputs, events, target))
        return inputs.emb[self.category] if self.gate == "category" else events

    def gate_query(self, inputs, events, target) -> jax.Array:
        """h_c, [B, 1 or C, d]."""
        if self.gate_context == "item":
            return target
        if self.gate_context == "none":
            return jnp.zeros_like(events[:, :1])
        ids = inputs.concat(*CONTEXT_ROLES[self.gate_context])  # [B, n * d]
        return self.item_norm(nn.relu(self.query(ids)))[:, None]

    def sum_votes(self, votes: jax.Array, mask: jax.Array) -> jax.Array:
        """g = b_0 + the votes of the events in `mask`, float32 [B, 1 or C, K]."""
        prior = self.gate_prior.astype(jnp.float32)
        if self.gate == "prior":  # b_0 for everybody
            return jnp.broadcast_to(prior, (len(mask), 1, self.experts))
        if self.gate == "attention":
            return prior + jnp.where(mask[:, None, :, None], votes, 0.0).sum(2)
        if self.gate == "pooled":
            total = (votes * mask[..., None]).sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]
            votes = total[:, None]
        return prior + self.gating(votes)


# ---- the system -----------------------------------------------------------------------------------------------

Sum = tuple[jax.Array, jax.Array]  # numerator, denominator
RANKINGS = ("pointwise", "session")
INTERNAL = ("schema", "dtype", "param_dtype")


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The second term of the loss.

    Attributes:
      weight: lambda; 0 leaves it, and its random draws, out.
      drop: p.
      temperature: tau.
      negatives: At most so many other users a row, drawn anew each step; 0: all.
      user_key: Group key that tells users apart; "" where each row is its own.
    """

    weight: float = 0.05
    drop: float = 0.3
    temperature: float = 0.1
    negatives: int = 0
    user_key: str = ""

    def __post_init__(self):
        if not (0 <= self.drop <= 1 and self.temperature > 0 and self.weight >= 0):
            raise ValueError(
                "aw_moe wants 0 <= mask_prob <= 1, tau > 0 and contrast >= 0, got "
                f"{self.drop}, {self.temperature} and {self.weight}"
            )

    def loss(self, rng, gate, masked, user, real) -> "Sum":
        """(sum, count) of InfoNCE over the requests that count, gates [B, K]."""
        negative = other_users(rng, user, real, self.negatives)
        each = info_nce(gate, masked, self.temperature, negative)
        return (each * real).sum(), real.sum().astype(jnp.float32)


def session_softmax(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Sum:
    """(sum, count) over positives of -log softmax among their request's candidates, [B, C] each."""
    real = weights > 0
    z = jnp.where(real, logits.astype(jnp.float32), -jnp.inf)
    total = jax.nn.logsumexp(z, axis=-1, keepdims=True, where=real)
    each = jnp.where(real, total - jnp.where(real, logits, 0.0), 0.0)
    return (each * labels * weights).sum(), (labels * weights).sum()


def monitors(alpha: jax.Array, weights: jax.Array) -> dict[str, Sum]:
    """Of the mixing weights [B, C, K]: mean entropy (nats), and each expert's load (mean weight)."""
    entropy = -(alpha * jnp.log(jnp.maximum(alpha, 1e-30))).sum(-1)
    total = weights.sum()
    loads = {f"load/{k}": ((alpha[..., k] * weights).sum(), total) for k in range(alpha.shape[-1])}
    return {"gate_entropy": ((entropy * weights).sum(), total), **loads}


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    label: str = "",
    ranking: str = "pointwise",
    contrast: float = 0.05,
    mask_prob: float = 0.3,
    tau: float = 0.1,
    negatives: int = 0,
    user_key: str | None = None,
    **options,
) -> System:
    """AW-MoE as a system.

    Args:
      schema: Needs a history list with an id space that a candidate feature shares, and a label.
      table: To `Schema.tables`; 16 wide unless it says otherwise.
      compute_dtype: Of activations.
      param_dtype: Of dense parameters.
      label: Default: the schema's first.
      ranking: "pointwise" (cross-entropy), or "session": softmax among the candidates of a request, which
        needs data.candidates > 1 and gives scores, no probabilities.
      contrast: lambda, the weight of L_cl.
      mask_prob: p.
      tau: Temperature of L_cl.
      negatives: At most so many a row, 0 for all other users of the batch.
      user_key: Group key of users; default: a group named "user" or "user_key", or like a profile id; else none.
      **options: Fields of `AWMoE`.
    """
    accepted = building.module_options(AWMoE, INTERNAL)
    building.check_options("aw_moe", options, accepted, _NAMED)
    heads = building.make_heads(schema, [label] if label else None)
    tables = building.make_tables(schema, table, dim=16)
    dtypes: dict[str, Any] = dict(
        dtype=jnp.dtype(compute_dtype), param_dtype=jnp.dtype(param_dtype)
    )
    options["history"] = fields.history_list(schema, options.get("history", ""))
    options["category"] = options.get("category") or smallest_candidate(schema)
    module = AWMoE(schema=schema, **dtypes, **options)
    check(module)
    building.check_choice("aw_moe", "ranking", ranking, RANKINGS)
    key = find_user_key(schema) if user_key is None else user_key
    if key and key not in schema.groups:
        raise SchemaError(f"user_key={key!r} is no group; the groups are {schema.groups}")
    term = Contrast(contrast, mask_prob, tau, negatives, key)
    return make_system(schema, module, tables, heads, term, ranking)


_NAMED = ("table", "compute_dtype", "param_dtype", "label", "ranking", "contrast", "mask_prob", "tau",
          "negatives", "user_key")  # fmt: skip


def find_user_key(schema: Schema) -> str:
    """The group that tells users apart, by its name; "" for none."""
    names = ("user", "user_key", *(f.name for f in schema.select("profile", kind="id")))
    return next((n for n in names if n in schema.groups), "")


def smallest_candidate(schema: Schema) -> str:
    """The candidate id with the smallest vocabulary; "" without any."""
    ids = schema.select("candidate", kind="id")
    return min(ids, key=lambda f: schema.space(f.id_space).size).name if ids else ""


def make_system(
    schema, module: AWMoE, tables, heads, term: Contrast, ranking: str = "pointwise"
) -> System:
    """Cross-entropy and the contrast, the monitors, and the gate as a function of its own."""
    look_up = functools.partial(embed, schema, owner=tables[0].owner, dtype=module.dtype)
    base = pointwise(
        schema,
        module,
        tables,
        heads=heads,
        compute_dtype=module.dtype,
        look_up=look_up,
        counts_as=building.counting(
            "unit|stack/|gating/|gate_prior", ""
        ),  # an expert's last layer is the score
    )
    personal = term.weight > 0 and module.gate in ("attention", "pooled")

    def forward(params, batch, kept):
        args = dict(train=True, kept=kept, mutable=list(params.state))
        outs, changed = module.apply(params.variables, look_up(params.rows, batch), **args)
        return outs, {**params.state, **changed}

    def loss(params, batch, rng):
        keys = jax.random.split(rng)
        mask = batch["mask"][module.history]
        kept = keep_events(keys[0], mask, term.drop) if personal else None
        outs, state = forward(params, batch, kept)
        weights = weights_of(batch)
        label = batch["label"][heads["logits"]]
        rank = bce if ranking == "pointwise" else session_softmax
        ranked = rank(outs["logits"], label, weights)
        sums = {"loss": ranked, **monitors(outs["alpha"], weights)}
        total = mean(*ranked)
        if personal:
            real = mask.any(1) & batch["valid"][:, 0]
            user = batch["group"][term.user_key] if term.user_key else jnp.arange(len(mask))
            gates = outs["gate"][:, 0], outs["gate_masked"][:, 0]  # one candidate stands for all
            sums["contrast"] = term.loss(keys[1], *gates, user, real)
            total += term.weight * mean(*sums["contrast"])
        return total, (state, sums)

    exports = {"score": Export(lambda *a: {"logits": base.outputs(*a)["logits"]}, "request")}
    if module.per_request:
        exports |= gate_exports(schema, module, look_up)
    return dataclasses.replace(base, loss=loss, forward=None, exports=exports)


def gate_exports(schema: Schema, module: AWMoE, look_up) -> dict[str, Export]:
    """ "gate" once a request, and "score_gated", which reads its outputs from batch["gate"]."""

    def gate(params, batch):
        inputs = look_up(params.rows, batch)
        return {"gate": module.apply(params.variables, inputs, method=AWMoE.gate_of)}

    def score_gated(params, batch):
        inputs = look_up(params.rows, batch)
        out: Any = module.apply(params.variables, inputs, gate=part(batch, "gate")["gate"])
        return {"logits": out["logits"]}

    reads = {"gate": "gate"}
    return {
        "gate": Export(gate, "request"),
        "score_gated": Export(score_gated, "candidate", reads),
    }


def check(module: AWMoE) -> None:
    """Raises ValueError (SchemaError) on options that contradict each other or the schema."""
    for option, choices in CHOICES.items():
        building.check_choice("aw_moe", option, getattr(module, option), choices)
    fields.check_shared_fields("aw_moe", module.schema, module.history)
    if module.experts < 1 or not module.gate_unit or module.gate_temperature <= 0:
        raise ValueError(
            "aw_moe wants experts >= 1, a gate_unit of at least one width, and T_g > 0"
        )
    roles = CONTEXT_ROLES.get(module.gate_context, ())
    if module.gate == "attention" and roles and not module.schema.select(*roles, kind="id"):
        raise SchemaError(
            f"gate_context={module.gate_context!r} needs an id feature of role "
            f"{' or '.join(roles)}; the schema has none: use 'item' or 'none'"
        )
