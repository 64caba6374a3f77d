"""CAN: each candidate id brings a small MLP of its own, through which the events of the history pass.

W. Bian et al., "CAN: Feature Co-Action for Click-Through Rate Prediction", WSDM 2022, arXiv 2011.05625.

    row of the candidate's id in P = (W_1, b_1, .., W_N, b_N);   x_t: row of event t's id in F
    h_0 = x_t^c (elementwise),  h_l = tanh(h_(l-1) W_l + b_l),  the last layer without tanh          order c = 1 .. O
    Y_c = sum_t concat_l h_l,   co-action = concat_c Y_c
    logit = MLP(candidate, sum of events, co-actions, other features)

P and F are apart from the embeddings ("parameter independence"). As in the authors' code: all layers' outputs, orders
concatenated, no biases unless asked, sums over at most `recent` events. Deviations: masked after the MLP and in the
sum of events, too (the code counts padded ones); logits instead of an epsilon in a logarithm; one segment of P and F a pair; P begins
N(0, 0.3) and F N(0, 0.1), for row-wise Adagrad does not wake the paper's 0.01 (never zero both: each one's gradient is
proportional to the other). Pairs: the first `pairs` fields that candidates and events share.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs, take
from recjax.layers import fields
from recjax.layers.mlp import MLP, Logits
from recjax.layers.search import last
from recjax.models.parts import building
from recjax.schema import Schema, Table, table_path
from recjax.system import System

INDUCE, FEED = "can_induce", "can_feed"  # owners of the tables P and F


def row_width(micro: tuple[int, ...], bias: bool) -> int:
    """D' of P's rows: (16, 8, 4) without biases takes 160."""
    return sum(a * b + bias * b for a, b in zip(micro[:-1], micro[1:], strict=True))


def co_action(
    weights: jax.Array,
    feed: jax.Array,
    mask: jax.Array,
    micro: tuple[int, ...],
    orders: int = 3,
    bias: bool = False,
) -> jax.Array:
    """The co-action vector of one pair of fields.

    Args:
      weights: Rows of P, [B, C, D'].
      feed: Rows of F, [B, T, micro[0]].
      mask: bool [B, T].
      micro: Widths, the feed's first.
      orders: O.
      bias: Whether rows hold biases.

    Returns:
      [B, C, O * sum(micro[1:])].
    """
    out = []
    for order in range(1, orders + 1):
        h, start = (feed**order)[:, None], 0  # [B, 1 or C, T, d]
        for layer, (a, b) in enumerate(zip(micro[:-1], micro[1:], strict=True)):
            w = weights[..., start : start + a * b].reshape(*weights.shape[:2], a, b)
            h, start = jnp.einsum("bctd,bcde->bcte", jnp.broadcast_to(h, (*w.shape[:2], *h.shape[2:])), w), start + a * b  # fmt: skip
            if bias:
                h, start = h + weights[:, :, None, start : start + b], start + b
            h = nn.tanh(h) if layer < len(micro) - 2 else h
            out.append(jnp.where(mask[:, None, :, None], h, 0).sum(2))
    return jnp.concatenate(out, axis=-1)


class CAN(nn.Module):
    """The model; fields up to `dense_norm` are the options of `build`.

    Attributes:
      micro: Widths of the candidate's MLP, the event's vector first.
      orders: Powers of that vector.
      bias: Whether the MLP has biases.
      pairs: How many of the shared fields meet.
      recent: Events that are read.
      history: The list read; "" for the schema's first.
      head: Widths of the MLP.
      head_norm: "batch", "rms", "layer" or "none".
      head_activation: Of the MLP.
      dropout: In the MLP.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    micro: tuple[int, ...] = (16, 8, 4)
    orders: int = 3
    bias: bool = False
    pairs: int = 2
    recent: int = 100
    history: str = ""
    head: tuple[int, ...] = (200, 80)
    head_norm: str = "none"
    head_activation: str = "prelu"
    dropout: float = 0.0
    dense_norm: str = "batchnorm"
    outputs: tuple[str, ...] = ("logits",)
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool = False) -> dict[str, jax.Array]:
        """Logits {output: float32 [B, C]}."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        events, target = fields.event_and_candidate(self.schema, inputs, self.history)
        mask = inputs.mask[self.history]
        own = fields.events_alone(self.schema, inputs, self.history)
        total = jnp.where(mask[..., None], jnp.concatenate([events, *own], axis=-1), 0).sum(1)
        parts = [target, fields.per_candidate(total, inputs.candidates)]
        latest = last(mask, self.recent)
        for past, candidate in fields.shared_fields(self.schema, self.history)[: self.pairs]:
            w, x = inputs.emb[f"{INDUCE}/{candidate.name}"], inputs.emb[f"{FEED}/{past.name}"]
            parts.append(
                co_action(w, last(x, self.recent), latest, self.micro, self.orders, self.bias)
            )
        beside = (self.schema, self.history, self.dense_norm)
        other = fields.OtherFeatures.beside(*beside, name="other", **types)(inputs, train=train)
        parts += [] if other is None else [other]
        valid = fields.valid_of(inputs)
        mlp = MLP(self.head, self.head_norm, self.head_activation, self.dropout, **types)
        x = mlp(jnp.concatenate(parts, axis=-1), train=train, valid=valid)
        return Logits(self.outputs, **types)(x, train=train, valid=valid)


COUNTS_AS = building.counting("")  # what meets are rows of tables


def build(schema: Schema, *, table: Mapping[str, Any] = {}, **options) -> System:
    """CAN as a system; options: those of `building.ranker` and the fields of `CAN`."""
    micro = tuple(options.get("micro", CAN.micro))
    if len(micro) < 2 or min(micro) < 1:
        raise ValueError(f"model 'can': micro={micro!r} wants at least two widths, such as 16,8,4")
    options["micro"] = micro
    history = fields.history_list(schema, options.get("history", ""))
    met = fields.shared_fields(schema, history)[: options.get("pairs", CAN.pairs)]
    wide = row_width(micro, options.get("bias", CAN.bias))
    own = {k: v for k, v in table.items() if k not in ("dim", "owner", "init_scale")}
    spaces = dict.fromkeys(c.id_space for _, c in met)
    more = [Table(s, wide, INDUCE, init_scale=0.3, **own) for s in spaces]
    more += [Table(s, micro[0], FEED, init_scale=0.1, **own) for s in spaces]

    def around(look_up: building.LookUp, module: CAN) -> building.LookUp:
        def with_rows(rows, batch) -> Inputs:
            inputs = look_up(rows, batch)
            emb = dict(inputs.emb)
            for past, candidate in met:
                for owner, f in ((INDUCE, candidate), (FEED, past)):
                    path = table_path(owner, f.id_space)
                    found = take(rows[path], batch["pos"][f.name])
                    emb[f"{owner}/{f.name}"] = found.astype(module.dtype)
            return inputs.replace(emb=emb)

        return with_rows

    return building.ranker(
        "can", CAN, schema, COUNTS_AS, table=table, more_tables=more, around=around, **options
    )
