"""SIM: search the history for what is like the candidate, then attend to that alone.

Q. Pi et al., "Search-based User Interest Modeling with Lifelong Sequential Behavior Data for Click-Through Rate Prediction",
CIKM 2020, arXiv 2006.05639 (its text was not read: equations as notes and public implementations give them).

    hard: the k most recent events of the candidate's category                          no parameters
    soft: the k events of the largest r_j = <W_b e_j, W_a e_c>; U = sum_j r_j e_j; an MLP on U predicts the label, too
    long  = multi-head attention of e_c over what was found, each event with its age and its own fields    W_q, W_k, W_v, W_o
    short = DIN's unit over the latest events, normalised
    logit = MLP(e_c, short, long, whether any, other features)

The soft search learns from its own loss alone, added with weight 1 and measured as `gsu/...`: its indices carry no gradient. W_b
begins as a copy of W_a, so that r begins as a similarity; apart from each other the search can stay at chance. Deviations:
padded events are never found (a public implementation lets them beat negative scores); no event gives zeros and a flag; the
hard search also tells the head log(1 + matches), which a softmax loses; buckets of ages are ours (doubling hours); the short
part is DIN's (the paper's is DIEN); the search shares the tables.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs, raw_ids
from recjax.layers import fields, search
from recjax.layers.mlp import MLP, Logits
from recjax.layers.target_attention import ActivationUnit
from recjax.models.parts import building
from recjax.schema import Schema, SchemaError
from recjax.system import System

SEARCHES = ("soft", "hard")
SAME = "same category"  # key of Inputs.dense: bool [B, C, L]
AUXILIARY = "gsu"


class SIM(nn.Module):
    """The model; fields up to `dense_norm` are the options of `build`.

    Attributes:
      search: "soft" or "hard".
      category: Candidate field that the hard search matches; "": of the shared ones, that of the fewest ids.
      keep: k, events found.
      recent: Events of the short part.
      width, heads: Of the attention over what was found; `width` of the soft search, too.
      history: The list searched; "" for the schema's first.
      attention: Hidden widths of the short part's unit.
      head: Widths of the MLP.
      head_norm: "batch", "rms", "layer" or "none".
      head_activation: Of the MLP.
      dropout: In the MLP.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    search: str = "soft"
    category: str = ""
    keep: int = 50
    recent: int = 10
    width: int = 64
    heads: int = 2
    history: str = ""
    attention: tuple[int, ...] = (80, 40)
    head: tuple[int, ...] = (200, 80)
    head_norm: str = "none"
    head_activation: str = "prelu"
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
        """Logits {output: float32 [B, C]}; of the soft search `gsu`, too."""
        events, target = fields.event_and_candidate(self.schema, inputs, self.history)
        mask, age = inputs.mask[self.history], inputs.age[self.history]
        beside = (self.schema, self.history, self.dense_norm)
        other = fields.OtherFeatures.beside(*beside, name="other", **self.types)(
            inputs, train=train
        )
        given = [target] if other is None else [target, other]
        valid = fields.valid_of(inputs)
        out = {}
        if self.search == "soft":
            r = SoftSearch(self.width, name="gsu", **self.types)(target, events)
            index, found = search.nearest(r, mask[:, None], self.keep)
            interest = jnp.einsum("bcl,bld->bcd", jnp.where(mask[:, None], r, 0), events)
            x = jnp.concatenate([*given, interest], axis=-1)
            x = MLP((64,), name="gsu_mlp", **self.types)(x, train=train)
            out = Logits((AUXILIARY,), name="gsu_logits", **self.types)(x, train=train)
        else:
            same = inputs.dense[SAME] & mask[:, None]
            latest = jnp.broadcast_to(jnp.arange(same.shape[-1]), same.shape)
            index, found = search.nearest(latest, same, self.keep)
            matches = same.sum(-1, keepdims=True).astype(self.dtype)
            given.append(jnp.log1p(matches))
        ages = search.AgeEmbedding(name="age", **self.types)(age, mask)
        own = fields.events_alone(self.schema, inputs, self.history)
        aged = jnp.concatenate([events, *own, ages], axis=-1)
        esu = search.SearchedAttention(self.width, self.heads, name="esu", **self.types)
        long = esu(target, aged, index, found)
        unit = ActivationUnit(self.attention, softmax=True, name="short", **self.types)
        now = search.last(events, self.recent), search.last(mask, self.recent)
        short = unit(target, *now, train=train)
        flag = found.any(-1, keepdims=True).astype(self.dtype)
        x = jnp.concatenate([*given, short, long, flag], axis=-1)
        mlp = MLP(self.head, self.head_norm, self.head_activation, self.dropout, **self.types)
        x = mlp(x, train=train, valid=valid)
        return Logits(self.outputs, **self.types)(x, train=train, valid=valid) | out


class SoftSearch(nn.Module):
    """r [B, C, L] of candidates [B, C, d] and events [B, L, d], float32."""

    width: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, target: jax.Array, events: jax.Array) -> jax.Array:
        shape, init = (target.shape[-1], self.width), nn.initializers.glorot_normal()
        candidate = self.param("candidate", init, shape, self.param_dtype)
        event = self.param("event", lambda _: candidate)  # the same values, then its own
        a, b = target @ candidate.astype(self.dtype), events @ event.astype(self.dtype)
        return jnp.einsum("bcd,bld->bcl", a, b, preferred_element_type=jnp.float32)


COUNTS_AS = building.counting("(gsu|gsu_mlp|gsu_logits|esu|short)/")


def build(schema: Schema, **options) -> System:
    """SIM as a system; options: those of `building.ranker` and the fields of `SIM`."""
    kind = options.get("search", SIM.search)
    building.check_choice("sim", "search", kind, SEARCHES)
    soft = kind == "soft"
    more: dict[str, Any] = dict(auxiliary=(AUXILIARY,)) if soft else dict(around=_with_same)
    return building.ranker("sim", SIM, schema, COUNTS_AS, **more, **options)


def _with_same(look_up: building.LookUp, module: SIM) -> building.LookUp:
    """`look_up` with `Inputs.dense[SAME]`."""
    schema = module.schema
    pairs = fields.shared_fields(schema, module.history)
    chosen = [p for p in pairs if p[1].name == (module.category or p[1].name)]
    if not chosen:
        names = ", ".join(c.name for _, c in pairs)
        raise SchemaError(f"model.category={module.category!r} is no shared field; use one of {names}")  # fmt: skip
    past, asked = min(chosen, key=lambda p: schema.space(p[1].id_space).size)

    def with_same(rows, batch) -> Inputs:
        inputs = look_up(rows, batch)
        events, candidates = (raw_ids(schema, batch, f.name) for f in (past, asked))
        same = candidates[:, :, None] == events[:, None]
        return inputs.replace(dense={**inputs.dense, SAME: same})

    return with_same
