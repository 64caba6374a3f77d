"""CCN: which items of one page got the same feedback, and which got another, for trigger-induced recommendation.

C. Gao et al., arXiv 2411.11508: v1 "Collaborative Contrastive Network for Click-Through Rate Prediction" (18 Nov 2024), v2
"Beyond the Trigger: Learning Collaborative Context for Generalizable Trigger-Induced Recommendation" (15 Apr 2026). Readable
to us were the abstracts, v1's footnote that defines the pairs [P] and third-party summaries [T]; no equation, table or
hyper-parameter. The equations and defaults below are [ours], inside the skeleton of [P] and [T]; no number of the paper is claimed.

A user clicks a trigger item, and items are ranked on the page that opens. (user, trigger) is one condition [P]; no binary
entry intention is estimated [P]. A page is a row of the batch (data.candidates items wide), so pairs never cross pages.

    r_i = MHTA(e_i; S),  r_g = MHTA(e_g; S)             target attention over the clicked history; empty: a learned vector
    h   = MLP_d([e_u; e_g; r_g; e_u * e_g; e_x'])       the condition, once a request; e_x' has no scenario id
    z_i = normalise(MLP_2d-d([e_i; r_i; h; e_i * h]))   conditioned item representation
    s_i = <w(h), z_i> + MLP([e_i; r_i; h; z_i; e_x])    w(h): the axis of the two clusters, whose sign the click loss fixes

Items of one page with labels 1,1 (co-click) or 0,0 (co-non-click) are collaborative, exactly one click (mono-click) is not [P].
With q_ab = <z_a, z_b> / tau:

    L_att = 1/2 mean_co-click softplus(-q) + 1/2 mean_co-non-click softplus(-q)     attraction [T: that there is one]
    L_rep = mean_mono-click softplus(q)                                              repulsion [T: that there is one]
    L     = BCE(s, y; weights) + alpha L_att + beta L_rep

over the unordered pairs of the batch; a class without a pair gives 0 and the other keeps its weight. Whatever is common to a
page cancels in pairs: that is how the contrast can carry over to another scenario. alpha = beta = 0 is the decisive baseline: the
pair terms are then not computed at all. Pages that were sampled carry 1 / inclusion probability as weights (recjax.data.store.pages);
pair losses need none, each class being a mean, then over the sampled population.

The trigger reaches the logit only through h: "avoids amplifying the impact of the trigger item" [P]. A missing trigger (padding id,
zero vector, none in the schema) is a learned null trigger. Pairs are for training only: serving needs no labels, no page and no other
candidate. Options, off by default: loss="supcon" (one term, weight alpha, in place of both), att_classes, seen_filter (skip-above: of
the unclicked, those shown before the last click), prototypes (a literal reading of "two item clusters": means of z over the clicked
and the unclicked of earlier exposures, <z_i, c+> - <z_i, c-> added to the logit), and the ablations `condition`, `condition_items`,
`trigger_in_head`, `scenario_id`, `scope`, `pair_label`.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax.batch import Batch, part
from recjax.inputs import Inputs, embed, raw_ids
from recjax.layers import fields, items, pairs
from recjax.layers.mlp import ACTIVATIONS, MLP, MaskedBatchNorm
from recjax.layers.target_attention import MultiHeadTargetAttention
from recjax.models.parts import building
from recjax.schema import PAD, Feature, Schema, SchemaError
from recjax.system import Export, Sums, System, bce, mean, pointwise, weights_of

CHOICES = {
    "condition": ("both", "user", "trigger"),
    "dense_norm": ("batchnorm", "identity"),
    "activation": ACTIVATIONS,
}
SCENARIOS = ("scene", "scenario")  # context ids that tell the scenario, unless told others


# ---- the network ----------------------------------------------------------------------------------------------


class Concat(nn.Module):
    """Some features of one shape side by side, numbers batch-normalised; None when there are none."""

    features: tuple[Feature, ...]
    norm: str = "batchnorm"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Inputs, valid: jax.Array | None, *, train: bool) -> jax.Array | None:
        """[B, D] or [B, C, D]; `valid` of the same leading shape."""
        parts = [inputs.emb[f.name] for f in self.features if f.kind == "id"]
        numbers = [
            inputs.dense[f.name] if f.kind == "vector" else inputs.dense[f.name][..., None]
            for f in self.features
            if f.kind != "id"
        ]
        if numbers:
            x = jnp.concatenate(numbers, axis=-1)
            if self.norm == "batchnorm":
                norm = MaskedBatchNorm(
                    dtype=self.dtype, param_dtype=self.param_dtype, name="numbers"
                )
                x = norm(x.astype(jnp.float32), train=train, valid=valid)
            parts.append(x.astype(self.dtype))
        return jnp.concatenate(parts, axis=-1) if parts else None


class CCN(nn.Module):
    """The model; fields up to `dense_norm` are options of `build`.

    Attributes:
      width: d, of embeddings, h and z.
      heads: Of the target attention.
      history: The list of clicked items; "" for the schema's first, if it has one.
      scenario: Context ids that tell the scenario, left out of h and head; None: those called "scene" or "scenario".
      scenario_id: Puts them back.
      condition: What h is made of: "both", "user" or "trigger".
      condition_items: False: z without h.
      trigger_in_head: e_g as an input of the head.
      prototypes: Name of a list of the user's earlier exposures; its first number is their feedback. "": no prototypes.
      head: Widths of the head.
      activation: Of every MLP.
      dropout: In the head.
      dense_norm: "batchnorm" or "identity", of numbers and vectors that are no item's.
    """

    schema: Schema
    width: int = 64
    heads: int = 4
    history: str = ""
    scenario: tuple[str, ...] | None = None
    scenario_id: bool = False
    condition: str = "both"
    condition_items: bool = True
    trigger_in_head: bool = False
    prototypes: str = ""
    head: tuple[int, ...] = (64,)
    activation: str = "relu"
    dropout: float = 0.0
    dense_norm: str = "batchnorm"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @property
    def types(self) -> dict[str, Any]:
        return dict(dtype=self.dtype, param_dtype=self.param_dtype)

    @property
    def item_fields(self) -> tuple[Feature, ...]:
        lists = [x for x in (self.history, self.prototypes) if x]
        return items.item_fields("ccn", self.schema, *lists, items.TRIGGER)

    def setup(self):
        dense: Any = functools.partial(nn.Dense, self.width, **self.types)
        mlp: Any = functools.partial(MLP, activation=self.activation, **self.types)
        concat: Any = functools.partial(Concat, norm=self.dense_norm, **self.types)
        item_names = {f.name for f in self.item_fields}
        hidden = () if self.scenario_id else scenario_of(self.schema, self.scenario)
        context = tuple(f for f in self.schema.select("context") if f.name not in hidden)
        beside = tuple(f for f in self.schema.select("candidate") if f.name not in item_names)
        self.item = dense()
        self.null_trigger = self.param(
            "null_trigger", nn.initializers.normal(0.02), (self.width,), self.param_dtype
        )
        self.attention = MultiHeadTargetAttention(self.width, self.heads, **self.types)
        self.user_fields = concat(self.schema.select("profile"))
        self.user = dense()
        self.context_fields = concat(context)
        self.beside = concat(beside)
        self.condition_mlp = mlp((self.width,))
        self.represent_mlp = mlp((2 * self.width,))
        self.represent_out = dense()
        self.axis = dense()
        self.head_mlp = mlp(self.head, dropout=self.dropout)
        self.head_out = nn.Dense(1, **self.types)

    def __call__(
        self, inputs: Inputs, *, train: bool = False, condition: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Logits float32 [B, C] and z float32 [B, C, d].

        Args:
          inputs: Embedded batch.
          train: Batch statistics and dropout.
          condition: h [B, d] computed before (`condition_of`), in place of its network.
        """
        valid = fields.valid_of(inputs)
        e = self.item(items.read_items(inputs, self.item_fields, items.CANDIDATE))  # [B, C, d]
        x = self.context(inputs, train)
        h = self.combine(inputs, x, train) if condition is None else condition
        r = self.attended(inputs, e)
        z = self.represent(e, r, h, train, valid)
        around = [e, r, self.spread(h, e), z.astype(self.dtype)]
        around += [] if x is None else [self.spread(x, e)]
        own = self.beside(inputs, valid, train=train)
        around += [] if own is None else [own]
        around += [self.spread(self.trigger(inputs), e)] if self.trigger_in_head else []
        top = self.head_mlp(jnp.concatenate(around, axis=-1), train=train, valid=valid)
        logits = self.head_out(top)[..., 0].astype(jnp.float32)
        logits += jnp.einsum("bd,bcd->bc", self.axis(h).astype(jnp.float32), z)
        if self.prototypes:
            logits += jnp.einsum("bd,bcd->bc", self.clusters(inputs, h, train), z)
        return {"logits": logits, "z": z}

    def condition_of(self, inputs: Inputs) -> jax.Array:
        """h, [B, d]: nothing of it depends on a candidate."""
        return self.combine(inputs, self.context(inputs, False), False)

    def context(self, inputs: Inputs, train: bool) -> jax.Array | None:
        """e_x' [B, D], what the schema says of the request beside user and trigger; None for nothing."""
        return self.context_fields(inputs, request_valid(fields.valid_of(inputs)), train=train)

    def combine(self, inputs: Inputs, context: jax.Array | None, train: bool) -> jax.Array:
        """h of user, trigger and context, [B, d]."""
        g = self.trigger(inputs)
        valid = request_valid(fields.valid_of(inputs))
        u = self.user_fields(inputs, valid, train=train)
        u = jnp.zeros_like(g) if u is None else self.user(u)
        of_user, of_trigger = [u], [g, self.attended(inputs, g[:, None])[:, 0]]
        by_kind = {"user": of_user, "trigger": of_trigger, "both": [*of_user, *of_trigger, u * g]}
        parts = by_kind[self.condition] + ([] if context is None else [context])
        return self.condition_mlp(jnp.concatenate(parts, axis=-1), train=train, valid=valid)

    def trigger(self, inputs: Inputs) -> jax.Array:
        """e_g [B, d], the learned null trigger where there is none."""
        x = items.read_items(inputs, self.item_fields, items.TRIGGER)
        null = self.null_trigger.astype(self.dtype)
        if x is None:
            batch = items.read_items(inputs, self.item_fields, items.CANDIDATE).shape[0]
            return jnp.broadcast_to(null, (batch, self.width))
        present = (x != 0).any(-1, keepdims=True)  # padding ids have zero rows
        return jnp.where(present, self.item(x), null)

    def attended(self, inputs: Inputs, query: jax.Array) -> jax.Array:
        """MHTA(query [B, T, d]; S), [B, T, d]."""
        if not self.history:
            return self.attention(query, None, None)
        past = self.item(items.read_items(inputs, self.item_fields, self.history))
        return self.attention(query, past, inputs.mask[self.history])

    def represent(self, e, r, h, train, valid=None) -> jax.Array:
        """z of items [B, T, d], unit norm, float32."""
        parts = [e, r]
        if self.condition_items:
            parts += [self.spread(h, e), e * h[:, None]]
        x = self.represent_mlp(jnp.concatenate(parts, axis=-1), train=train, valid=valid)
        x = self.represent_out(x).astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))

    def clusters(self, inputs: Inputs, h: jax.Array, train: bool) -> jax.Array:
        """c+ - c- of the user's earlier exposures, float32 [B, d]; a side without any is zero."""
        e = self.item(items.read_items(inputs, self.item_fields, self.prototypes))  # [B, P, d]
        mask = inputs.mask[self.prototypes]
        z = self.represent(e, self.attended(inputs, e), h, train, mask)
        clicked = inputs.dense[feedback_of(self.schema, self.prototypes)] > 0.5

        def mean_of(chosen):
            total = (z * chosen[..., None]).sum(1)
            return total / jnp.maximum(chosen.sum(1), 1)[:, None]

        return mean_of(mask & clicked) - mean_of(mask & ~clicked)

    @staticmethod
    def spread(x: jax.Array, like: jax.Array) -> jax.Array:
        """[B, D] -> [B, C, D]."""
        return fields.per_candidate(x, like.shape[1])


def request_valid(valid: jax.Array | None) -> jax.Array | None:
    """bool [B]: requests with a real candidate."""
    return None if valid is None else valid.any(1)


def scenario_of(schema: Schema, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of the context ids that tell the scenario."""
    context = [f.name for f in schema.select("context", kind="id")]
    if names is None:
        return tuple(n for n in context if n in SCENARIOS)
    for n in names:
        if n not in context:
            raise SchemaError(f"ccn: scenario={n!r} is no context id; there are {context}")
    return tuple(names)


def feedback_of(schema: Schema, exposures: str) -> str:
    """The number of a list of exposures that says whether each was clicked."""
    found = [f.name for f in schema.select("history", kind="dense", list=exposures)]
    if not found:
        raise SchemaError(
            f"ccn: prototypes={exposures!r} names no history list with a number, the feedback; "
            f"the lists are {', '.join(schema.lists) or 'none'}"
        )
    return found[0]


# ---- the pair terms -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Collaboration:
    """The pair terms of the loss.

    Attributes:
      alpha, beta: Weights of attraction and repulsion; both 0 leave the plain model.
      tau: Temperature of the similarities.
      loss: "decoupled" (attraction and repulsion) or "supcon" (one term of weight alpha).
      att_classes: "both", "cc_only" or "unbalanced" (see `attraction`).
      scope: "page", or the control "batch": all pairs of the batch, across pages.
      pair_label: Label whose pairs count; "" for the clicks. A control gives shuffled ones.
      seen_filter: Candidate number or label that holds an item's place on the page; "" for no filter.
    """

    alpha: float = 0.1
    beta: float = 0.1
    tau: float = 0.2
    loss: str = "decoupled"
    att_classes: str = "both"
    scope: str = "page"
    pair_label: str = ""
    seen_filter: str = ""

    def __post_init__(self):
        building.check_choice("ccn", "loss", self.loss, ("decoupled", "supcon"))
        building.check_choice(
            "ccn", "att_classes", self.att_classes, ("both", "cc_only", "unbalanced")
        )
        building.check_choice("ccn", "scope", self.scope, ("page", "batch"))
        if not (self.alpha >= 0 and self.beta >= 0 and self.tau > 0):
            raise ValueError(
                f"ccn wants alpha >= 0, beta >= 0 and tau > 0, got {self.alpha}, {self.beta} and {self.tau}"
            )

    @property
    def active(self) -> bool:
        return self.alpha > 0 or (self.beta > 0 and self.loss == "decoupled")

    def __call__(self, z: jax.Array, label: jax.Array, real: jax.Array) -> tuple[jax.Array, Sums]:
        """The weighted terms of pages, z [B, n, d], label and real [B, n], and their sums."""
        if self.scope == "batch":
            z, label, real = (x.reshape(1, -1, *x.shape[2:]) for x in (z, label, real))
        q = pairs.similarity(z, self.tau)
        if self.loss == "supcon":
            total, sums = pairs.supcon(q, label, real)
            return self.alpha * total, sums
        found = pairs.page_pairs(label, real)
        attract, a = pairs.attraction(q, found, self.att_classes)
        repel, b = pairs.repulsion(q, found)
        return self.alpha * attract + self.beta * repel, {**a, **b}

    def of_batch(self, z: jax.Array, batch: Batch, click: str) -> tuple[jax.Array, Sums]:
        """The terms of a batch whose first label is `click`."""
        label, real = batch["label"][self.pair_label or click], weights_of(batch) > 0
        if self.seen_filter:
            given = batch["label"] if self.seen_filter in batch["label"] else batch["dense"]
            real = pairs.above_last_click(label, given[self.seen_filter], real)
        return self(z, label, real)


# ---- the system -----------------------------------------------------------------------------------------------

INTERNAL = ("schema", "dtype", "param_dtype")
_TERMS = tuple(f.name for f in dataclasses.fields(Collaboration))


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    label: str = "",
    **options,
) -> System:
    """CCN as a system.

    Args:
      schema: Needs a candidate id or vector that a history list or the trigger has too, and a label. Pages with more
        than one item (data.candidates > 1), or there are no pairs.
      table: To `Schema.tables`; 16 wide unless it says otherwise.
      compute_dtype: Of activations.
      param_dtype: Of dense parameters.
      label: The click; default: the schema's first label.
      **options: Fields of `CCN` and of `Collaboration`.

    Returns:
      A system with the outputs logits [B, C] and z [B, C, d], and the functions "score", "condition" (h, once a request) and
      "score_conditioned" (candidates under an h that was computed before). Where the trigger has ids, evaluation also gives
      the share of each page's ten best that are of the trigger's category.
    """
    accepted = building.module_options(CCN, INTERNAL) | building.module_options(Collaboration, ())
    named = ("table", "compute_dtype", "param_dtype", "label")
    building.check_options("ccn", options, accepted, named)
    term = Collaboration(**{k: options.pop(k) for k in _TERMS if k in options})
    heads = building.make_heads(schema, [label] if label else None)
    tables = building.make_tables(schema, table, dim=16)
    dtypes: dict[str, Any] = dict(
        dtype=jnp.dtype(compute_dtype), param_dtype=jnp.dtype(param_dtype)
    )
    options["history"] = clicked_list(schema, options.get("history", ""), options.get("prototypes"))
    module = CCN(schema=schema, **dtypes, **options)
    check(module, term)
    return make_system(schema, module, tables, heads, term)


def clicked_list(schema: Schema, name: str, exposures: str | None) -> str:
    """`name`, or the first history list that has an item field and is not the exposures; "" without any."""
    if name and name not in schema.lists:
        raise SchemaError(f"ccn: history={name!r} is no list; there are {schema.lists}")
    own = tuple(items.side_features(schema, items.CANDIDATE))
    lists = dict.fromkeys(f.list for f in schema.select("history") if f.list != exposures)
    shared = [x for x in lists if any(items.counterparts(schema, own, x))]
    return name or next(iter(shared), "")


def make_system(schema, module: CCN, tables, heads, term: Collaboration) -> System:
    """Cross-entropy of the clicks, the pair terms, and h as a function of its own."""
    owner = tables[0].owner if tables else ""
    look_up = functools.partial(embed, schema, owner=owner, dtype=module.dtype)
    base = pointwise(
        schema,
        module,
        tables,
        heads=heads,
        compute_dtype=module.dtype,
        look_up=look_up,
        counts_as=building.counting("attention|condition_mlp/|represent_|axis/", "head_"),
    )

    def loss(params, batch, rng):
        outs, state = base.forward(params, batch, rng)
        clicks = bce(outs["logits"], batch["label"][heads["logits"]], weights_of(batch))
        pulled, sums = term.of_batch(outs["z"], batch, heads["logits"])
        return mean(*clicks) + pulled, (state, {"loss": clicks, **sums})

    exports = {"score": Export(lambda *a: {"logits": base.outputs(*a)["logits"]}, "request")}
    exports |= condition_exports(module, look_up)
    # Without a pair term the loss is the plain model's own, and a distiller may use it.
    own: dict[str, Any] = dict(loss=loss, forward=None) if term.active else {}
    system = dataclasses.replace(base, exports=exports, **own)
    return with_trigger_share(system, module)


def condition_exports(module: CCN, look_up) -> dict[str, Export]:
    """ "condition" once a request, and "score_conditioned", which reads its output from batch["condition"]."""

    def condition(params, batch):
        inputs = look_up(params.rows, batch)
        return {"h": module.apply(params.variables, inputs, method=CCN.condition_of)}

    def score_conditioned(params, batch):
        inputs = look_up(params.rows, batch)
        out: Any = module.apply(params.variables, inputs, condition=part(batch, "condition")["h"])
        return {"logits": out["logits"]}

    return {
        "condition": Export(condition, "request"),
        "score_conditioned": Export(score_conditioned, "candidate", {"condition": "condition"}),
    }


def with_trigger_share(system: System, module: CCN) -> System:
    """Adds the metric "top10_trigger_category": how similar to the trigger the best of each page are.

    Categories are the item's id of the smallest vocabulary; a system whose trigger has no id stays as it is.
    """
    own, schema = module.item_fields, module.schema
    both = zip(own, items.counterparts(schema, own, items.TRIGGER), strict=True)
    ids = [(f, t) for f, t in both if t is not None and f.kind == "id"]
    if not ids or not schema.groups:
        return system
    mine, asked = min(ids, key=lambda pair: schema.space(pair[0].id_space).size)

    def outputs(params, batch):
        trigger = raw_ids(schema, batch, asked.name)[:, None]
        same = (raw_ids(schema, batch, mine.name) == trigger) & (trigger != PAD)
        return {**system.outputs(params, batch), "of_trigger": same * 1.0}

    def measure(columns: dict[str, np.ndarray]) -> dict[str, float]:
        page = columns[f"group/{schema.groups[0]}"]
        return {"top10_trigger_category": top_share(columns["logit"], page, columns["of_trigger"])}

    return dataclasses.replace(system, outputs=outputs, measure=measure, kept=("of_trigger",))


def top_share(scores: np.ndarray, group: np.ndarray, hit: np.ndarray, k: int = 10) -> float:
    """Mean of `hit` [N] over the k best scores of each group; NaN without rows."""
    order = np.lexsort((-scores, group))
    group, hit = group[order], hit[order]
    first = np.searchsorted(group, group, side="left")
    return float(hit[np.arange(len(group)) - first < k].mean()) if len(group) else float("nan")


def check(module: CCN, term: Collaboration) -> None:
    """Raises ValueError (SchemaError) on options that contradict each other or the schema."""
    for option, choices in CHOICES.items():
        building.check_choice("ccn", option, getattr(module, option), choices)
    if module.heads < 1 or module.width % module.heads:
        raise ValueError(f"ccn: heads={module.heads} does not divide the width {module.width}")
    _ = module.item_fields
    scenario_of(module.schema, module.scenario)
    if module.prototypes:
        feedback_of(module.schema, module.prototypes)
    if term.pair_label and term.pair_label not in module.schema.labels:
        raise SchemaError(f"ccn: pair_label={term.pair_label!r} is no label of the schema")
    numbers = [f.name for f in module.schema.select("candidate", "label", kind="dense")]
    if term.seen_filter and term.seen_filter not in numbers:
        raise SchemaError(f"ccn: seen_filter={term.seen_filter!r} is none of {', '.join(numbers)}")
