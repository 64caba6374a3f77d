"""DIHN: how much of the trigger a user still wants decides what the history is asked.

Q. Shen et al., "Deep Interest Highlight Network for Click-Through Rate Prediction in Trigger-Induced Recommendation", WWW 2022,
arXiv 2202.08959; built from what public re-implementations do (see CCN's specification, section 2.8), without the paper's
body. A rival of CCN: it estimates the entry intention that CCN leaves out. With e_t, e_g the projected target and trigger:

    p = sigmoid(MLP([e_u; e_g; a_g]))              intention, once a request; a_g: the history attended by the trigger
    f = p e_g + (1 - p) e_t                        fused query
    soft = sum_j a(f, H_j) H_j,  H = block(S)      over the transformed history
    hard = sum_j a(f, e_j) e_j                     over the events of the trigger's category alone
    logit = MLP([soft; hard; f; e_t; e_g; other features])
    L = BCE + aux BCE(p, [category of target = category of trigger])

Ours: a Transformer block of one layer, softmax attention, `aux` = 0.1, no auxiliary term where there is no trigger, whose e_g is
then zero.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs, embed, raw_ids
from recjax.layers import fields, items
from recjax.layers.mlp import ACTIVATIONS, MLP
from recjax.layers.target_attention import ActivationUnit
from recjax.layers.transformer import TransformerBlock
from recjax.models.parts import building
from recjax.schema import PAD, Feature, Schema, SchemaError
from recjax.system import System, bce, mean, pointwise, weights_of

SAME = "event has the trigger's category"  # `Inputs.emb` key, float [B, L]


class DIHN(nn.Module):
    """The model; fields up to `dense_norm` are the options of `build`.

    Attributes:
      width: Of projected items and of the transformed history.
      heads: Of the Transformer block.
      attention: Hidden widths of the activation units.
      intention: Hidden widths of the intention MLP.
      history: The list read; "" for the schema's first.
      category: Candidate id that tells categories; "" for "category", else the smallest of the item's ids.
      head: Widths of the MLP.
      head_activation: See `recjax.layers.mlp.ACTIVATIONS`.
      dropout: In the head and the block.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    width: int = 32
    heads: int = 2
    attention: tuple[int, ...] = (80, 40)
    intention: tuple[int, ...] = (64, 32)
    history: str = ""
    category: str = ""
    head: tuple[int, ...] = (200, 80)
    head_activation: str = "dice"
    dropout: float = 0.0
    dense_norm: str = "batchnorm"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool = False) -> dict[str, jax.Array]:
        """logits float32 [B, C] and intention float32 [B, C], the logit of p."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        unit = functools.partial(ActivationUnit, self.attention, softmax=True, **types)
        target, trigger, events = self._items(inputs, types)
        mask, c = inputs.mask[self.history], inputs.candidates
        asked = unit(name="ask_trigger")(trigger[:, None], events, mask, train=train)[:, 0]
        x = jnp.concatenate([*inputs.ids("profile"), trigger, asked], axis=-1)
        x = MLP(self.intention, name="intention", **types)(x, train=train)
        intention = nn.Dense(1, name="intention_out", **types)(x).astype(jnp.float32)  # [B, 1]
        p = nn.sigmoid(intention).astype(self.dtype)[:, None]
        fused = p * trigger[:, None] + (1 - p) * target  # [B, C, D]
        own = inputs.emb[SAME] > 0.5
        soft = unit(name="ask_all")(
            fused, self._transform(events, mask, types, train), mask, train=train
        )
        hard = unit(name="ask_category")(fused, events, mask & own, train=train)
        roles = ("candidate", "context", "profile")
        other = fields.OtherFeatures(self.schema, self.dense_norm, roles, **types)(
            inputs, train=train
        )
        parts = [soft, hard, fused, target, fields.per_candidate(trigger, c), other]
        valid = fields.valid_of(inputs)
        mlp = MLP(self.head, "none", self.head_activation, self.dropout, **types)
        x = mlp(jnp.concatenate(parts, axis=-1), train=train, valid=valid)
        logits = nn.Dense(1, name="logits", **types)(x)[..., 0].astype(jnp.float32)
        return {"logits": logits, "intention": jnp.broadcast_to(intention, logits.shape)}

    def _items(self, inputs: Inputs, types) -> tuple[jax.Array, jax.Array, jax.Array]:
        """e_t [B, C, D], e_g [B, D] and the events [B, L, D]; no bias, so padding stays zero."""
        own = items.item_fields("dihn", self.schema, self.history)
        project = nn.Dense(self.width, use_bias=False, name="item", **types)
        sides = (items.CANDIDATE, items.TRIGGER, self.history)
        target, trigger, events = (items.read_items(inputs, own, side) for side in sides)
        return project(target), project(trigger), project(events)

    def _transform(self, events, mask, types, train) -> jax.Array:
        block = TransformerBlock(self.heads, self.width, dropout=self.dropout, **types)
        return block(
            events, jnp.broadcast_to(mask[:, None], (*mask.shape, mask.shape[1])), train=train
        )[0]


INTERNAL = ("schema", "dtype", "param_dtype")


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    label: str = "",
    aux: float = 0.1,
    **options,
) -> System:
    """DIHN as a system.

    Args:
      schema: Needs a trigger and a history list that share an id space with the candidate, and a label.
      table: To `Schema.tables`.
      compute_dtype: Of activations.
      param_dtype: Of dense parameters.
      label: Default: the schema's first.
      aux: Weight of the auxiliary task.
      **options: Fields of `DIHN`.
    """
    named = ("table", "compute_dtype", "param_dtype", "label", "aux")
    building.check_options("dihn", options, building.module_options(DIHN, INTERNAL), named)
    heads = building.make_heads(schema, [label] if label else None)
    tables = building.make_tables(schema, table)
    dtypes: dict[str, Any] = dict(
        dtype=jnp.dtype(compute_dtype), param_dtype=jnp.dtype(param_dtype)
    )
    options["history"] = fields.history_list(schema, options.get("history", ""))
    module = DIHN(schema=schema, **dtypes, **options)
    category = category_of(module)
    check(module, aux)
    look_up = with_same_category(functools.partial(embed, schema, owner=tables[0].owner, dtype=module.dtype), module, category)  # fmt: skip
    base = pointwise(
        schema,
        module,
        tables,
        heads=heads,
        compute_dtype=module.dtype,
        look_up=look_up,
        counts_as=building.counting(r"ask_|TransformerBlock_\d+/|intention", "(MLP_0|logits)/"),
    )
    _, trigger = sides_of(module, category)

    def loss(params, batch, rng):
        outs, state = base.forward(params, batch, rng)
        weights = weights_of(batch)
        clicks = bce(outs["logits"], batch["label"][heads["logits"]], weights)
        asked = raw_ids(schema, batch, trigger)[:, None]
        same = raw_ids(schema, batch, category.name) == asked
        entry = bce(outs["intention"], same.astype(jnp.float32), weights * (asked != PAD))
        return mean(*clicks) + aux * mean(*entry), (state, {"loss": clicks, "intention": entry})

    return dataclasses.replace(base, loss=loss, forward=None)


def category_of(module: DIHN) -> Feature:
    """The candidate id that tells categories."""
    own = items.item_fields("dihn", module.schema, module.history)
    ids = [f for f in own if f.kind == "id"]
    chosen = next((f for f in ids if f.name == (module.category or "category")), None)
    if chosen is None and (module.category or not ids):
        raise SchemaError(
            f"dihn: category={module.category!r} is no item id; there are {[f.name for f in ids]}"
        )
    return chosen or min(ids, key=lambda f: module.schema.space(f.id_space).size)


def sides_of(module: DIHN, category: Feature) -> tuple[str, str]:
    """Names of the category of an event and of the trigger; SchemaError where one has none."""
    found = []
    for side in (module.history, items.TRIGGER):
        own = items.item_fields("dihn", module.schema, module.history)
        match = items.counterparts(module.schema, own, side)[own.index(category)]
        if match is None:
            raise SchemaError(
                f"dihn needs {category.name!r} of the {side} too: give the schema a feature of id space {category.id_space!r}"
            )
        found.append(match.name)
    return found[0], found[1]


def with_same_category(look_up, module: DIHN, category: Feature):
    """`look_up` with `Inputs.emb[SAME]`: which events are of the trigger's category."""
    event, trigger = sides_of(module, category)

    def both(rows, batch):
        inputs = look_up(rows, batch)
        past, asked = (raw_ids(module.schema, batch, name) for name in (event, trigger))
        same = (past == asked[:, None]) & (past != PAD)
        return inputs.replace(emb={**inputs.emb, SAME: same.astype(jnp.float32)})

    return both


def check(module: DIHN, aux: float) -> None:
    """Raises ValueError on options that contradict each other."""
    building.check_choice("dihn", "head_activation", module.head_activation, ACTIVATIONS)
    building.check_choice("dihn", "dense_norm", module.dense_norm, ("batchnorm", "identity"))
    if module.heads < 1 or module.width % module.heads:
        raise ValueError(f"dihn: heads={module.heads} does not divide the width {module.width}")
    if aux < 0:
        raise ValueError(f"dihn: aux={aux} is negative; give 0 for no auxiliary task")
