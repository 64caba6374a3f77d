"""TIN: what a behaviour was and how long ago, against the target, multiplied twice.

H. Zhou et al., "Temporal Interest Network for User Response Prediction", WWW 2024, arXiv 2308.08487. The body of the paper was
not available to us; what follows stands on the authors' code (zhouxy1003/TIN) [code] and the figures shipped with it
[fig]; what we had to decide is marked [ours]. With e_i, v the concatenated embeddings of behaviour i and target in the
fields both have, f(i) the target-relative position (most recent 1, the target 0):

    e~_i = e_i + p[f(i)],  v~ = v + p[0]            target-aware temporal encoding (TTE)  [code, fig]
    z_i = <e~_i, v~> / sqrt(d),  a = softmax(z)     target-aware attention (TA); no projections  [code]
    u = sum_i a_i (e~_i * v~)                       target-aware representation (TR), tr_mode="inner"  [fig]
    x = concat(u, v~, other features)               [fig; v~ kept: ours]
    logit = MLP_80_40(affine(x)) + item bias        sigmoid activations  [code]

tr_mode="repo" is the released code: u' = W affine(sum_i a_i e~_i) + b and x = concat(u', v~, u' * v~); with W the identity and
b = 0 its last block is u, because v~ does not depend on i. The code's "batch normalisation" is never told that it trains, so
it is the learned affine map y = g x / sqrt(1.001) + b, and is built as that (head_norm="affine"; "layer" is ours).

Deviations [ours]: time="interval" is TTE-T with buckets 1 + floor(log2(1 + hours)), at most 32 (the paper's edges were not
found); an empty history gives u = 0; histories are cut to the last `max_len` events; tables start at N(0, 0.1^2), since Glorot
on a table of 63,001 rows starts attention flat; heads > 1 split d. Ablations: time="none", attention="mean",
tr_mode="none". No table of the paper's results was found; its abstract claims +0.43 % GAUC on Amazon over the best
baseline.

`exports["correlation"]` is the learned correlation Cor = exp(z_i) ||e~_i * v~|| [code: half of the dimensions and no
1/sqrt(d); here all of them, the half being unreliable, ours]; experiments/tin_correlation.py draws it.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax.inputs import Inputs, embed
from recjax.layers import fields
from recjax.layers.attention import masked_softmax
from recjax.layers.mlp import ACTIVATIONS, MLP, Logits
from recjax.models.parts import building
from recjax.schema import Schema, Table
from recjax.system import System, pointwise, with_correlation

CHOICES = {
    "time": ("position", "interval", "none"),
    "attention": ("target", "mean"),
    "tr_mode": ("inner", "repo", "none"),
    "head_norm": ("affine", "layer", "none"),
    "head_activation": ACTIVATIONS,
    "dense_norm": ("batchnorm", "identity"),
}
BUCKETS = 32
# An event of at least so many seconds is in bucket 2, 3, ...: 3600 (2^k - 1), as far as int32 ages go.
BUCKET_EDGES = 3600 * (2 ** np.arange(1, 20) - 1)
BIAS = "item_bias"


def interval_buckets(age: jax.Array) -> jax.Array:
    """1 + floor(log2(1 + age / 1 h)) of ages in seconds, integers in 1 .. 32, exact at the edges."""
    edges = jnp.asarray(BUCKET_EDGES, jnp.int32)
    return jnp.minimum(1 + jnp.searchsorted(edges, age, side="right"), BUCKETS)


class Affine(nn.Module):
    """g x / sqrt(1 + 1e-3) + b: the released code's batch normalisation, whose statistics never move."""

    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        g = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        b = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        return (x * (g / math.sqrt(1 + 1e-3)) + b).astype(self.dtype)


class TIN(nn.Module):
    """The model; fields up to `dense_norm` are the options of `build`.

    Attributes:
      time: "position" (TTE-P), "interval" (TTE-T) or "none".
      attention: "target", or "mean" over the behaviours (no TA).
      tr_mode: "inner" (the figure), "repo" (the code) or "none" (no TR: x without the product).
      heads: Of the attention; must divide the width d.
      max_len: Behaviours kept, the most recent; size of the position table less one.
      history: The list attended to; "" for the schema's first.
      item_bias: A bias per candidate id, added to the logit.
      head: Widths of the MLP.
      head_norm: Of its input: "affine", "layer" or "none".
      head_activation: Of the MLP.
      dropout: In the MLP.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    time: str = "position"
    attention: str = "target"
    tr_mode: str = "inner"
    heads: int = 1
    max_len: int = 50
    history: str = ""
    item_bias: bool = True
    head: tuple[int, ...] = (80, 40)
    head_norm: str = "affine"
    head_activation: str = "sigmoid"
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
        events, target, mask = self.encode(inputs)
        interest = self.pool(self.attention_logits(events, target), events, mask)  # [B, C, D]
        if self.tr_mode == "repo":
            interest = nn.Dense(
                interest.shape[-1],
                kernel_init=nn.initializers.glorot_uniform(),
                name="interest",
                **self.types,
            )(Affine(name="pooled", **self.types)(interest))
            interest = interest * mask.any(1)[:, None, None]  # no history: nothing, not b
        blocks = {
            "inner": [interest * target, target],
            "repo": [interest, target, interest * target],
            "none": [interest, target],
        }[self.tr_mode]
        beside = (self.schema, self.history, self.dense_norm)
        other = fields.OtherFeatures.beside(*beside, **self.types)(inputs, train=train)
        x = jnp.concatenate(blocks if other is None else [*blocks, other], axis=-1)
        return self._top(x, inputs, train)

    def encode(self, inputs: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
        """e~ [B, L, D], v~ [B, C, D] and the mask [B, L], of the last `max_len` behaviours."""
        events, target = fields.event_and_candidate(self.schema, inputs, self.history)
        kept = min(self.max_len, events.shape[1])
        cut = events.shape[1] - kept
        events, mask = events[:, cut:], inputs.mask[self.history][:, cut:]
        if self.time == "none":
            return events, target, mask
        size = 1 + (self.max_len if self.time == "position" else BUCKETS)
        init = nn.initializers.normal(0.1)
        table = self.param("time", init, (size, target.shape[-1]), self.param_dtype)
        table = table.astype(events.dtype)
        if self.time == "position":  # the last slot is the most recent: 1
            when = jnp.broadcast_to(jnp.arange(kept, 0, -1), mask.shape)
        else:
            when = interval_buckets(inputs.age[self.history][:, cut:])
        return events + table[when], target + table[0], mask

    def attention_logits(self, events: jax.Array, target: jax.Array) -> jax.Array:
        """z float32 [B, H, C, L]; zeros where attention is a mean."""
        e, v = (x.reshape(*x.shape[:2], self.heads, -1) for x in (events, target))
        z = jnp.einsum("blhd,bchd->bhcl", e, v, preferred_element_type=jnp.float32)
        return z * (self.attention == "target") / math.sqrt(e.shape[-1])

    def pool(self, z: jax.Array, events: jax.Array, mask: jax.Array) -> jax.Array:
        """sum_i a_i e~_i, [B, C, D]; exactly zero weight on masked events, zeros without any."""
        weights = masked_softmax(z, mask[:, None, None]).astype(events.dtype)
        e = events.reshape(*events.shape[:2], self.heads, -1)
        pooled = jnp.einsum("bhcl,blhd->bchd", weights, e)
        return pooled.reshape(*pooled.shape[:2], events.shape[-1])

    @nn.compact
    def correlation(self, inputs: Inputs) -> jax.Array:
        """exp(z) ||r|| of each behaviour and candidate, float32 [B, C, L]; 0 where masked."""
        events, target, mask = self.encode(inputs)
        z = self.attention_logits(events, target).mean(1)
        messages = events[:, None] * (1.0 if self.tr_mode == "none" else target[:, :, None])
        cor = jnp.exp(z) * jnp.linalg.norm(messages.astype(jnp.float32), axis=-1)
        return jnp.where(mask[:, None], cor, 0.0)

    def _top(self, x, inputs, train):
        if self.head_norm == "affine":
            x = Affine(name="top", **self.types)(x)
        elif self.head_norm == "layer":
            x = nn.LayerNorm(name="top", **self.types)(x)
        valid = fields.valid_of(inputs)
        init = nn.initializers.glorot_uniform()
        mlp = MLP(self.head, "none", self.head_activation, self.dropout, init, **self.types)
        logits = Logits(self.outputs, **self.types)(mlp(x, train=train, valid=valid), train=train)
        if self.item_bias:
            bias = inputs.emb[BIAS][..., 0].astype(jnp.float32)
            logits = {name: z + bias for name, z in logits.items()}
        return logits


INTERNAL = ("schema", "outputs", "dtype", "param_dtype")


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    labels: Iterable[str] | None = None,
    **options,
) -> System:
    """TIN as a system.

    Args:
      schema: Needs a history list with an id space that a candidate feature shares, and a label.
      table: To `Schema.tables`; rows start at N(0, 0.1^2) unless it says otherwise.
      compute_dtype: Of activations.
      param_dtype: Of dense parameters.
      labels: One output each, "logits" for the first; default: the schema's first.
      **options: Fields of `TIN`.
    """
    accepted = building.module_options(TIN, INTERNAL)
    building.check_options(
        "tin", options, accepted, ("table", "compute_dtype", "param_dtype", "labels")
    )
    heads = building.make_heads(schema, labels)
    table = {"init_scale": 0.1, **table}
    tables = building.make_tables(schema, table)
    dtypes: dict[str, Any] = dict(
        dtype=jnp.dtype(compute_dtype), param_dtype=jnp.dtype(param_dtype)
    )
    options["history"] = fields.history_list(schema, options.get("history", ""))
    module = TIN(schema=schema, outputs=tuple(heads), **dtypes, **options)
    check(module, tables)
    look_up = functools.partial(embed, schema, owner=tables[0].owner, dtype=module.dtype)
    if module.item_bias:
        bias = bias_table(module, tables)
        tables, look_up = (*tables, bias), with_bias(look_up, module, bias)
    system = pointwise(
        schema,
        module,
        tables,
        heads=heads,
        compute_dtype=module.dtype,
        look_up=look_up,
        counts_as=building.counting("time|pooled/|interest/", r"(top|MLP_0|Logits_0)/"),
    )

    return with_correlation(system, module, look_up=look_up)


def item_field(module: TIN) -> str:
    """The candidate's own id: of the shared fields, the one with the largest vocabulary."""
    both = fields.shared_fields(module.schema, module.history)
    return max((c for _, c in both), key=lambda f: module.schema.space(f.id_space).size).name


def bias_table(module: TIN, tables: tuple[Table, ...]) -> Table:
    """One number per item, zero at first, its own table."""
    space = module.schema.feature(item_field(module)).id_space
    of_items = next(t for t in tables if t.id_space == space)
    owner = f"{of_items.owner}/bias" if of_items.owner else "bias"
    return dataclasses.replace(of_items, owner=owner, dim=1, init_scale=0.0)


def with_bias(look_up, module: TIN, bias: Table):
    """`look_up` with the item's bias as `Inputs.emb[BIAS]`, [B, C, 1]."""
    item = module.schema.feature(item_field(module))
    only_item = dataclasses.replace(module.schema, features=(item,))

    def both(rows, batch):
        inputs = look_up(rows, batch)
        found = embed(only_item, rows, batch, owner=bias.owner, dtype=jnp.float32)
        return inputs.replace(emb={**inputs.emb, BIAS: found.emb[item.name]})

    return both


def check(module: TIN, tables: tuple[Table, ...]) -> None:
    """Raises ValueError (SchemaError) on options that contradict each other or the schema."""
    for option, choices in CHOICES.items():
        building.check_choice("tin", option, getattr(module, option), choices)
    fields.check_shared_fields("tin", module.schema, module.history)
    both = fields.shared_fields(module.schema, module.history)
    width = sum(module.schema.width(f, building.width_of(module.schema, tables)) for f, _ in both)
    if module.heads < 1 or width % module.heads:
        raise ValueError(f"tin: heads={module.heads} does not divide the width {width}")
    if module.max_len < 1:
        raise ValueError(f"tin: max_len={module.max_len} leaves no behaviour; give at least 1")
