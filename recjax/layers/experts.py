"""Mixtures of experts."""

from flax import linen as nn
import jax
import jax.numpy as jnp


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
