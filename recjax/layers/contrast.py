"""Contrastive losses. Float32 whatever the compute type."""

import jax
import jax.numpy as jnp


def cosine(a: jax.Array, b: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Cosines of all pairs, a [N, D], b [M, D] -> [N, M]; 0 where a row is zero (gradient too)."""

    def unit(x):
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), eps))

    return unit(a) @ unit(b).T


def info_nce(a: jax.Array, b: jax.Array, temperature: float, negative: jax.Array) -> jax.Array:
    """-log softmax of each row's own pair among it and its negatives, [N].

    Args:
      a, b: Two views, [N, D]; similarity is the cosine.
      temperature: Divides it.
      negative: bool [N, N], True where b_j is a negative of a_i; the diagonal does not matter.
    """
    s = cosine(a, b) / temperature
    s = s - jnp.diagonal(s)[:, None]
    s = jnp.where(negative & ~jnp.eye(len(s), dtype=bool), s, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.maximum(s.max(-1, keepdims=True), -1e30))  # finite without any
    others = top[:, 0] + jnp.log(jnp.maximum(jnp.exp(s - top).sum(-1), 1e-38))
    return jax.nn.softplus(others)  # log(1 + sum), exact where the sum is tiny
