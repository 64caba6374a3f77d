"""Wukong: stacked factorisation machines, made to be enlarged.

B. Zhang et al., "Wukong: Towards a Scaling Law for Large-Scale Recommendation", ICML 2024, arXiv 2403.02545.

    FM(X)  = X (X^T Y)                                  X [n, d], Y [n, k]: never the n x n products
    FMB(X) = reshape(MLP(LN(flatten(FM(X)))))           [n_F, d], the MLP's last layer linear
    LCB(X) = W_L X                                      [n_L, d]
    X'     = LN(concat(FMB(X), LCB(X)) + P X)           P = I where n = n_F + n_L, else learned
    logit  = MLP(flatten(X_l))

Rows of X_0: one per id field, one per averaged history field, one of all numbers through an MLP; a field whose embedding is not
`width` wide is projected. Deviations: Y, W_L and P begin N(0, 1 / n) (the paper does not say); tables begin N(0, 0.05), for FM is
quadratic and its LayerNorm's epsilon silences small rows (std 0.01: a third is left); no attentive Y.

`LADDER`: model options of four sizes (a study takes it as `sweep.ladder`), block and head parameters about 3 k, 33 k, 310 k and 3 M at 20 fields. `width` is fixed
over them, so the tables are, too; LN without batch statistics throughout.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs
from recjax.layers import fields
from recjax.layers.mlp import MLP, Logits
from recjax.models.parts import building
from recjax.schema import Schema
from recjax.system import System

LADDER: dict[str, dict[str, Any]] = {
    "0": dict(layers=1, rows=2, rank=3, mlp=(16,), head=(16,)),
    "1": dict(layers=2, rows=4, rank=4, mlp=(64, 64), head=(64,)),
    "2": dict(layers=4, rows=8, rank=8, mlp=(160, 160), head=(128,)),
    "3": dict(layers=6, rows=16, rank=16, mlp=(416, 416), head=(256,)),
}


class WukongLayer(nn.Module):
    """One layer; see the equations above.

    Attributes:
      rows: n_F and n_L each.
      rank: k.
      mlp: Hidden widths of the FMB.
      dropout: Inside its MLP.
    """

    rows: int
    rank: int
    mlp: tuple[int, ...]
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """[..., n, d] -> [..., 2 rows, d]."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        n, d = x.shape[-2:]
        y = self._weight("Y", (n, self.rank), n)
        products = jnp.einsum("...nd,...dk->...nk", x, jnp.einsum("...nd,nk->...dk", x, y))
        h = products.reshape(*x.shape[:-2], n * self.rank)
        h = nn.LayerNorm(epsilon=1e-5, name="fm_norm", **types)(h)
        h = MLP(self.mlp, dropout=self.dropout, name="mlp", **types)(h, train=train)
        init = nn.initializers.he_normal()
        h = nn.Dense(self.rows * d, kernel_init=init, name="mlp_out", **types)(h)
        fmb = h.reshape(*x.shape[:-2], self.rows, d)
        lcb = jnp.einsum("mn,...nd->...md", self._weight("W_L", (self.rows, n), n), x)
        if n != 2 * self.rows:
            x = jnp.einsum("mn,...nd->...md", self._weight("P", (2 * self.rows, n), n), x)
        x = jnp.concatenate([fmb, lcb], axis=-2) + x
        return nn.LayerNorm(epsilon=1e-5, name="out_norm", **types)(x)

    def _weight(self, name: str, shape: tuple[int, int], fan_in: int) -> jax.Array:
        init = nn.initializers.normal(fan_in**-0.5)
        return self.param(name, init, shape, self.param_dtype).astype(self.dtype)


class Wukong(nn.Module):
    """The model; fields up to `dense_norm` are the options of `build`.

    Attributes:
      layers: l.
      rows, rank, mlp: See `WukongLayer`.
      width: d of every row.
      head: Widths of the MLP.
      head_norm: "batch", "rms", "layer" or "none".
      head_activation: Of the MLP.
      dropout: In all MLPs.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    layers: int = 2
    rows: int = 8
    rank: int = 8
    mlp: tuple[int, ...] = (128, 128)
    width: int = 16
    head: tuple[int, ...] = (128,)
    head_norm: str = "none"
    head_activation: str = "relu"
    dropout: float = 0.0
    dense_norm: str = "batchnorm"
    outputs: tuple[str, ...] = ("logits",)
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool = False) -> dict[str, jax.Array]:
        """Logits {output: float32 [B, C]}."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = self._rows(inputs, train)
        for i in range(self.layers):
            layer = WukongLayer(
                self.rows, self.rank, self.mlp, self.dropout, name=f"layers_{i}", **types
            )
            x = layer(x, train=train)
        x = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])
        valid = fields.valid_of(inputs)
        mlp = MLP(self.head, self.head_norm, self.head_activation, self.dropout, **types)
        return Logits(self.outputs, **types)(
            mlp(x, train=train, valid=valid), train=train, valid=valid
        )

    def _rows(self, inputs: Inputs, train: bool) -> jax.Array:
        """X_0 [B, C, n, width]."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        named = self.schema.select("candidate", "context", "profile", "trigger", kind="id")
        found = [(f.name, inputs.emb[f.name]) for f in named]
        lists = self.schema.select("history", kind="id")
        found += [
            (f.name, x)
            for f, x in zip(lists, fields.pooled_lists(self.schema, inputs), strict=True)
        ]
        numbers = fields.OtherFeatures(self.schema, self.dense_norm, ids=(), name="dense", **types)(
            inputs, train=train
        )
        if numbers is not None:
            row = MLP((2 * self.width,), name="numbers", **types)(numbers, train=train)
            found.append(("numbers_row", nn.Dense(self.width, name="numbers_out", **types)(row)))
        rows = []
        for name, x in found:
            x = fields.per_candidate(x, inputs.candidates) if x.ndim == 2 else x
            if x.shape[-1] != self.width:
                x = nn.Dense(self.width, use_bias=False, name=f"project_{name}", **types)(x)
            rows.append(x)
        return jnp.stack(rows, axis=-2)


COUNTS_AS = building.counting(r"layers_\d+/")


def build(schema: Schema, **options) -> System:
    """Wukong as a system; options: those of `building.ranker` and the fields of `Wukong`."""
    width = options.get("width", Wukong.width)
    table = {"dim": width, "init_scale": 0.05, **options.pop("table", {})}
    return building.ranker("wukong", Wukong, schema, COUNTS_AS, table=table, **options)
