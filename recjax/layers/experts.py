"""Mixtures of experts: stacked experts, and what may weigh them."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.layers.mlp import MLP
from recjax.layers.pair_dense import EventPairs


class Experts(nn.Module):
    """K MLPs of one shape side by side, each to one number.

    Attributes:
      experts: K.
      widths: Of the hidden layers, ReLU.
    """

    experts: int
    widths: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> float32 [..., K]."""
        init = nn.initializers.he_normal(in_axis=-2, out_axis=-1, batch_axis=0)
        x = jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], self.experts, x.shape[-1]))
        for i, width in enumerate((*self.widths, 1)):
            shape = (self.experts, x.shape[-1], width)
            kernel = self.param(f"kernel_{i}", init, shape, self.param_dtype)
            bias = self.param(f"bias_{i}", nn.initializers.zeros, shape[::2], self.param_dtype)
            x = jnp.einsum("...kd,kdh->...kh", x, kernel.astype(self.dtype))
            x = x + bias.astype(self.dtype)
            x = nn.relu(x) if i < len(self.widths) else x
        return x[..., 0].astype(jnp.float32)


class AttentionGate(nn.Module):
    """g - b_0: what each behaviour votes for, times how much it counts (AW-MoE).

    Attributes:
      experts: K.
      gate: Hidden widths of the gate unit.
      activation: Hidden widths of the activation unit.
    """

    experts: int
    gate: tuple[int, ...] = (64,)
    activation: tuple[int, ...] = (32,)
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, events: jax.Array, context: jax.Array) -> jax.Array:
        """events [B, L, D], context [B, Q, D] -> float32 [B, Q, L, K], not masked."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        y = EventPairs(events, context)
        votes = MLP(self.gate, name="gate", **types)(y, train=False)
        votes = nn.Dense(self.experts, name="votes", **types)(votes)
        counts = MLP(self.activation, name="activation", **types)(y, train=False)
        counts = nn.Dense(1, name="counts", **types)(counts)
        return (votes * counts).astype(jnp.float32)


class PlainGate(nn.Module):
    """An MLP to one vote an expert: the gate of a usual mixture.

    Attributes:
      experts: K.
      widths: Hidden, ReLU.
    """

    experts: int
    widths: tuple[int, ...] = (64,)
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., K]."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = MLP(self.widths, name="gate", **types)(x, train=False)
        return nn.Dense(self.experts, name="votes", **types)(x).astype(jnp.float32)
