"""MMoE: shared experts that each task mixes with a gate of its own; with `own` experts of a task, CGC of PLE.

J. Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018; H. Tang et
al., "Progressive Layered Extraction (PLE)", RecSys 2020, whose one-level form is CGC.

    f_e = expert_e(x),   g_k = softmax(x Wg_k),   m_k = sum_e g_k,e f_e,   z_k = tower_k(m_k)

A gate is one linear map without a bias. Experts and towers are ReLU MLPs, an expert's last layer included. CGC: task k mixes
its own experts and the shared ones, own first. Tasks are `labels`, each with all rows and weight 1; the loss is their sum.
Deviations: every kernel is initialised for each expert alone (constant or jointly scaled ones stay alike); gates begin near
1 / E; no masked conversion loss (a label of all rows is what the loop trains on); PLE's further levels are left out. History
fields are averaged: the papers have no histories. With one label it is a gated mixture, a control for the gates and no more.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs
from recjax.layers import fields
from recjax.models.parts import building
from recjax.schema import Schema
from recjax.system import System


class Stacked(nn.Module):
    """E ReLU MLPs side by side, [..., E, d] -> [..., E, widths[-1]]; `linear` leaves the last layer without ReLU."""

    widths: tuple[int, ...]
    linear: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.glorot_uniform(in_axis=-2, out_axis=-1, batch_axis=(0,))
        for i, width in enumerate(self.widths):
            shape = (*x.shape[-2:], width)
            kernel = self.param(f"kernel_{i}", init, shape, self.param_dtype).astype(self.dtype)
            bias = self.param(f"bias_{i}", nn.initializers.zeros, shape[::2], self.param_dtype)
            x = jnp.einsum("...ed,edh->...eh", x, kernel) + bias.astype(self.dtype)
            x = x if self.linear and i == len(self.widths) - 1 else nn.relu(x)
        return x


class Mixture(nn.Module):
    """m_k of every task; see the equations above.

    Attributes:
      tasks: K.
      experts: Shared ones.
      own: Experts of each task alone.
      widths: Of an expert.
    """

    tasks: int
    experts: int = 4
    own: int = 0
    widths: tuple[int, ...] = (64, 32)
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., d] -> mixed [..., K, h], gates float32 [..., K, own + E]."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        count = self.experts + self.tasks * self.own
        wide = jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], count, x.shape[-1]))
        f = Stacked(self.widths, name="experts", **types)(wide)  # [..., E + K own, h]
        shape = (self.tasks, x.shape[-1], self.own + self.experts)
        kernel = self.param("gate", nn.initializers.normal(0.01), shape, self.param_dtype)
        z = jnp.einsum("...d,kde->...ke", x, kernel.astype(self.dtype))
        gates = nn.softmax(z.astype(jnp.float32))
        first = [self.experts + k * self.own for k in range(self.tasks)]
        seen = [[*range(i, i + self.own), *range(self.experts)] for i in first]
        reached = f[..., jnp.asarray(seen), :]  # [..., K, own + E, h]
        return jnp.einsum("...ke,...keh->...kh", gates.astype(f.dtype), reached), gates


class MMoE(nn.Module):
    """The model; fields up to `dense_norm` are the options of `build`.

    Attributes:
      experts, own: See `Mixture`.
      expert: Widths of an expert.
      head: Hidden widths of a tower.
      head_norm, head_activation: Towers have no norm, and ReLU.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    experts: int = 4
    own: int = 0
    expert: tuple[int, ...] = (128, 64)
    head: tuple[int, ...] = (32,)
    head_norm: str = "none"
    head_activation: str = "relu"
    dense_norm: str = "batchnorm"
    outputs: tuple[str, ...] = ("logits",)
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool = False) -> dict[str, jax.Array]:
        """Logits {task: float32 [B, C]}."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = fields.Flat(self.schema, self.dense_norm, name="inputs", **types)(inputs, train=train)
        mixed, _ = Mixture(
            len(self.outputs), self.experts, self.own, self.expert, name="mixture", **types
        )(x)
        z = Stacked((*self.head, 1), linear=True, name="towers", **types)(mixed)[..., 0]
        return {name: z[..., k].astype(jnp.float32) for k, name in enumerate(self.outputs)}


COUNTS_AS = building.counting("mixture/", "towers/")


def build(schema: Schema, **options) -> System:
    """MMoE as a system, a task for each of `labels`; options: those of `building.ranker` and the fields of `MMoE`."""
    for option, only in (("head_norm", "none"), ("head_activation", "relu")):
        building.check_choice("mmoe", option, options.get(option, only), (only,))
    return building.ranker("mmoe", MMoE, schema, COUNTS_AS, **options)
