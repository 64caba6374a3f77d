"""Normalisation over channels. Statistics and scales are float32 whatever the compute type."""

from flax import linen as nn
import jax
import jax.numpy as jnp


def safe_sqrt(x: jax.Array) -> jax.Array:
    """sqrt(x) for x >= 0, with gradient 0 (not infinity) at 0: padding rows are exactly zero."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


class RMSNorm(nn.Module):
    """y = g * x / (rms(x) + eps), eps *outside* the root, no bias (SUAN's released code).

    For eps inside the root use `flax.linen.RMSNorm`.
    """

    eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        g = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        x = x.astype(jnp.float32)
        rms = safe_sqrt(jnp.mean(jnp.square(x), -1, keepdims=True))
        return (g * (x / (rms + self.eps))).astype(self.dtype)


def make_norm(
    kind: str, dtype: jnp.dtype, param_dtype: jnp.dtype, name: str | None = None
) -> nn.Module:
    """`rms` (RMSNorm above) or `layer` (LayerNorm with scale and bias)."""
    types = {"rms": RMSNorm, "layer": nn.LayerNorm}
    if kind not in types:
        raise ValueError(f"norm {kind!r} is unknown; use one of {', '.join(types)}")
    return types[kind](dtype=dtype, param_dtype=param_dtype, name=name)
