"""DCN-V2: bit-wise feature crosses of growing order beside an MLP, and DCN-Mix, its gated low-rank experts.

R. Wang et al., "DCN V2: Improved Deep & Cross Network", WWW 2021, arXiv 2008.13535.

    x_(l+1) = x0 * (W_l x_l + b_l) + x_l                                  full matrix, `rank` 0
    x_(l+1) = sum_i G_i(x_l) x0 * (U_i g(C_i g(V_i^T x_l)) + b_l) + x_l   `rank` r, `experts` K; one expert: no gate, C or g
    parallel: logit = w . concat(x_L, MLP(x0));  stacked: logit = w . MLP(x_L);  cross: logit = w . x_L

* is elementwise and the bias lies inside the product. G is a softmax over experts with one set of weights for all layers and
g is tanh, as released reimplementations have it (the paper tunes both). Deviations: kernels begin Glorot normal to three
layers and N(0, 0.02) beyond (the paper's He normal grows 28-fold in six layers); an expert's kernel is initialised alone,
for Glorot on [K, d, r] takes K for a convolution; numbers are batch-normalised; the paper's clipping and average of weights are
left to the config. History fields are averaged: the paper has no histories.
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

STRUCTURES = ("parallel", "stacked", "cross")


class CrossNet(nn.Module):
    """The crosses; see the equations above.

    Attributes:
      layers: L.
      rank: r of U and V; 0: a full matrix.
      experts: K, with `rank`.
    """

    layers: int = 3
    rank: int = 0
    experts: int = 1
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x0: jax.Array) -> jax.Array:
        """[..., d] -> [..., d]."""
        x, d = x0, x0.shape[-1]
        gate = None
        if self.rank and self.experts > 1:
            gate = self._weight("gate", (self.experts, d), nn.initializers.normal(0.01))
        for i in range(self.layers):
            bias = self._weight(f"cross_{i}_bias", (d,), nn.initializers.zeros)
            if not self.rank:
                x = x + x0 * (x @ self._weight(f"cross_{i}_kernel", (d, d)).T + bias)
            else:
                x = x + self._low_rank(i, x0, x, bias, gate)
        return x

    def _low_rank(self, i: int, x0, x, bias, gate) -> jax.Array:
        k, d, r = self.experts, x0.shape[-1], self.rank
        u, v = (self._weight(f"cross_{i}_{name}", (k, d, r)) for name in "UV")
        h = jnp.einsum("...d,kdr->...kr", x, v)
        if k > 1:
            c = self._weight(f"cross_{i}_C", (k, r, r))
            h = nn.tanh(jnp.einsum("krs,...ks->...kr", c, nn.tanh(h)))
        crossed = x0[..., None, :] * (jnp.einsum("kdr,...kr->...kd", u, h) + bias)
        if gate is None:
            return crossed[..., 0, :]
        weights = nn.softmax((x @ gate.T).astype(jnp.float32)).astype(x.dtype)
        return jnp.einsum("...k,...kd->...d", weights, crossed)

    def _weight(self, name: str, shape: tuple[int, ...], init=None) -> jax.Array:
        if init is None and self.layers > 3:
            init = nn.initializers.normal(0.02)
        elif init is None:
            batch = tuple(range(len(shape) - 2))
            init = nn.initializers.glorot_normal(in_axis=-2, out_axis=-1, batch_axis=batch)
        return self.param(name, init, shape, self.param_dtype).astype(self.dtype)


class DCNv2(nn.Module):
    """The model; fields up to `dense_norm` are the options of `build`.

    Attributes:
      layers, rank, experts: See `CrossNet`.
      structure: One of `STRUCTURES`.
      head: Widths of the MLP.
      head_norm: "batch", "rms", "layer" or "none".
      head_activation: Of the MLP.
      dropout: In the MLP.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    layers: int = 3
    rank: int = 0
    experts: int = 1
    structure: str = "parallel"
    head: tuple[int, ...] = (200, 80)
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
        valid = fields.valid_of(inputs)
        x0 = fields.Flat(self.schema, self.dense_norm, name="inputs", **types)(inputs, train=train)
        crossed = CrossNet(self.layers, self.rank, self.experts, **types)(x0)
        x = crossed
        if self.structure != "cross":
            mlp = MLP(self.head, self.head_norm, self.head_activation, self.dropout, **types)
            x = mlp(crossed if self.structure == "stacked" else x0, train=train, valid=valid)
        if self.structure == "parallel":
            x = jnp.concatenate([crossed, x], axis=-1)
        return Logits(self.outputs, **types)(x, train=train, valid=valid)


COUNTS_AS = building.counting("CrossNet_0/")


def build(schema: Schema, **options) -> System:
    """DCN-V2 as a system; options: those of `building.ranker` and the fields of `DCNv2`."""
    structure = options.get("structure", DCNv2.structure)
    building.check_choice("dcnv2", "structure", structure, STRUCTURES)
    if options.get("experts", 1) > 1 and not options.get("rank", 0):
        raise ValueError("model 'dcnv2': experts > 1 are of low rank; set model.rank, too")
    return building.ranker("dcnv2", DCNv2, schema, COUNTS_AS, **options)
