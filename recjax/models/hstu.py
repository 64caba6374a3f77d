"""HSTU: pointwise attention without a softmax over the history, each candidate at its end.

J. Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations", ICML
2024, arXiv 2402.17152 (its text was not read: equations as the authors' code runs them).

    h = LN(x),  U | V | Q | K = h W + b
    ranking:   SiLU on U;           s_ij = <Q_i, K_j> / sqrt(a) + rab_ij
    retrieval: SiLU on all four;    s_ij = <Q_i, K_j> + rab_ij
    A_ij = SiLU(s_ij) / M * mask_ij                                       no softmax: how many events agree is kept
    o_i = concat over heads of sum_j A_ij V_j
    ranking:   y = x + [U, o, U * LN(o)] W_o        retrieval: y = x + (U * LN(o)) W_o + b_o, LN without scale and bias
    rab_ij = w_pos[j - i] + w_time[bucket(t_i - t_j)], of each layer, shared by its heads
    logit = MLP(z, e, z * e, other features), z the candidate's row, e its token

History is causal; a candidate sees all history and itself, never another candidate, so events are encoded once a request. Deviations:
the ranking form with rab (the released ranker has none, its authors call it important); M is a constant, for one that depends on the
batch makes a score depend on its neighbours; each slice of W is Glorot uniform by itself; a candidate's token is made of its fields and
a learned vector where an event has its own fields (the "action"); request features go to the head beside the candidate, not to
tokens in front; no absolute positions; w_time takes a row's own time. The stochastic length of training is left out.

`LADDER`: model options of four sizes (a study takes it as `sweep.ladder`), blocks and head about 3 k, 26 k, 300 k and 3 M.
"""

import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax.inputs import Inputs
from recjax.layers import fields
from recjax.layers.attention import PairBias
from recjax.layers.mlp import MLP, Logits
from recjax.models.parts import building
from recjax.schema import Schema
from recjax.system import System

LADDER: dict[str, dict[str, Any]] = {
    "0": dict(width=16, heads=2, layers=1, head=(32, 16)),
    "1": dict(width=32, heads=2, layers=3, head=(64, 32)),
    "2": dict(width=80, heads=4, layers=6, head=(160, 80)),
    "3": dict(width=192, heads=6, layers=11, head=(384, 192)),
}
FORMS = ("ranking", "retrieval")


class HSTULayer(nn.Module):
    """One layer over a history and candidates that see it; see the equations above.

    Attributes:
      heads: H.
      qk, v: Widths of one head's queries and keys, and of its values.
      form: One of `FORMS`.
      norm_len: M.
      dropout: On what W_o reads.
    """

    heads: int
    qk: int
    v: int
    form: str = "ranking"
    norm_len: int = 50
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        events: jax.Array,
        candidates: jax.Array,
        mask: jax.Array,
        bias: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Both after the layer.

        Args:
          events: [B, L, D], oldest first.
          candidates: [B, C, D]; C may be 0.
          mask: bool [B, L].
          bias: rab [B or 1, 1, L + 1, L + 1], the last row and column the candidate's; None: none.
          train: Whether dropout is on.
        """
        length = events.shape[1]
        u, v, q, k = self._project(jnp.concatenate([events, candidates], axis=1))
        past = [x[:, :length] for x in (v, q, k)]
        new = [x[:, length:] for x in (v, q, k)]
        zero = jnp.zeros((1, 1, length + 1, length + 1)) if bias is None else bias
        causal = mask[:, None, None] & jnp.tri(length, dtype=bool)
        seen = self._weights(past[1], past[2], zero[:, :, :-1, :-1], causal)
        told = self._weights(new[1], past[2], zero[:, :, -1:, :-1], mask[:, None, None])
        own = jnp.einsum("bchd,bchd->bch", new[1], new[2], preferred_element_type=jnp.float32)
        own = nn.silu(own * self._alpha + zero[:, :, -1, -1][:, None]) / self.norm_len
        both = [jnp.einsum("bhts,bshd->bthd", w.astype(v.dtype), past[0]) for w in (seen, told)]
        both[1] = both[1] + own.astype(v.dtype)[..., None] * new[0]
        x = jnp.concatenate([events, candidates], axis=1)
        o = jnp.concatenate(both, axis=1).reshape(*x.shape[:2], self.heads * self.v)
        x = x + self._out(u, o, train, x.shape[-1])
        return x[:, :length], x[:, length:]

    @property
    def _alpha(self) -> float:
        return 1 / math.sqrt(self.qk) if self.form == "ranking" else 1.0

    def _weights(self, q, k, bias, mask) -> jax.Array:
        s = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32)
        return jnp.where(mask, nn.silu(s * self._alpha + bias) / self.norm_len, 0.0)

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        affine = self.form == "ranking"
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        return nn.LayerNorm(use_scale=affine, use_bias=affine, name=name, **types)(x)

    def _project(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """U [B, T, H v]; V, Q, K [B, T, H, *]."""
        ranking, h = self.form == "ranking", self._norm("norm_in", x)
        widths = [self.heads * n for n in (self.v, self.v, self.qk, self.qk)]

        def init(key, shape, dtype):
            glorot = nn.initializers.glorot_uniform()
            keys = jax.random.split(key, 4)
            return jnp.concatenate([glorot(k, (shape[0], n), dtype) for k, n in zip(keys, widths, strict=True)], 1)  # fmt: skip

        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = nn.Dense(sum(widths), use_bias=ranking, kernel_init=init, name="uvqk", **types)(h)
        u, *vqk = jnp.split(h, np.cumsum(widths)[:-1], axis=-1)
        vqk = vqk if ranking else [nn.silu(y) for y in vqk]
        return nn.silu(u), *(y.reshape(*y.shape[:2], self.heads, -1) for y in vqk)

    def _out(self, u: jax.Array, o: jax.Array, train: bool, width: int) -> jax.Array:
        gated = u * self._norm("norm_out", o)
        ranking = self.form == "ranking"
        x = jnp.concatenate([u, o, gated], axis=-1) if ranking else gated
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        init = nn.initializers.glorot_uniform()
        return nn.Dense(width, use_bias=not ranking, kernel_init=init, name="out", **types)(x)


class HSTU(nn.Module):
    """The model; fields up to `dense_norm` are the options of `build`.

    Attributes:
      layers: Of HSTU.
      width: D, of tokens.
      heads: Must divide `width`.
      form: One of `FORMS`.
      norm_len: M; 0: the history's length and the candidate.
      rab: Whether places and gaps of time bias the attention.
      history: The list read; "" for the schema's first.
      head: Widths of the MLP.
      head_norm: "batch", "rms", "layer" or "none".
      head_activation: Of the MLP.
      dropout: In layers and MLP.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    layers: int = 2
    width: int = 32
    heads: int = 2
    form: str = "ranking"
    norm_len: int = 0
    rab: bool = True
    history: str = ""
    head: tuple[int, ...] = (80, 40)
    head_norm: str = "none"
    head_activation: str = "silu"
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
        x, token = self._tokens(inputs)
        z, mask = token, inputs.mask[self.history]
        age = jnp.pad(inputs.age[self.history], ((0, 0), (0, 1)))  # the request's: 0
        length, per_head = age.shape[1], self.width // self.heads
        place = np.arange(length)
        for i in range(self.layers):
            bias = None
            if self.rab:
                pairs = PairBias(param_dtype=self.param_dtype, name=f"layers_{i}_rab")
                gaps = age[:, None] - age[:, :, None]  # t_i - t_j
                bias = pairs(place[:, None] - place, gaps, length)
            layer = HSTULayer(
                self.heads,
                per_head,
                per_head,
                self.form,
                self.norm_len or length,
                self.dropout,
                name=f"layers_{i}",
                **self.types,
            )
            x, z = layer(x, z, mask, bias, train=train)
        z = nn.LayerNorm(name="norm", **self.types)(z)
        beside = (self.schema, self.history, self.dense_norm)
        other = fields.OtherFeatures.beside(*beside, name="other", **self.types)(
            inputs, train=train
        )
        parts = [z, token, z * token, *([] if other is None else [other])]
        valid = fields.valid_of(inputs)
        mlp = MLP(self.head, self.head_norm, self.head_activation, self.dropout, **self.types)
        h = mlp(jnp.concatenate(parts, axis=-1), train=train, valid=valid)
        return Logits(self.outputs, **self.types)(h, train=train, valid=valid)

    def _tokens(self, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """Events [B, L, D] and candidates [B, C, D]: what both have by one map, an event's own fields by a second."""
        events, target = fields.event_and_candidate(self.schema, inputs, self.history)
        content = nn.Dense(self.width, name="content", **self.types)
        actions = fields.events_alone(self.schema, inputs, self.history)
        init = nn.initializers.normal(0.02)
        unknown = self.param("unknown", init, (self.width,), self.param_dtype)
        x = content(events)
        if actions:
            action = nn.Dense(self.width, name="action", **self.types)
            x = x + action(jnp.concatenate(actions, axis=-1))
        return x, content(target) + unknown.astype(self.dtype)


COUNTS_AS = building.counting(r"layers_\d+")


def build(schema: Schema, **options) -> System:
    """HSTU as a system; options: those of `building.ranker` and the fields of `HSTU`."""
    building.check_choice("hstu", "form", options.get("form", HSTU.form), FORMS)
    width, heads = options.get("width", HSTU.width), options.get("heads", HSTU.heads)
    if width % heads:
        raise ValueError(f"model 'hstu': heads={heads} must divide width={width}")
    return building.ranker("hstu", HSTU, schema, COUNTS_AS, **options)
