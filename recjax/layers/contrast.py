"""Contrastive losses, and the views and negatives they are made of. Float32 whatever the compute type."""

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


def other_users(rng: jax.Array, user: jax.Array, real: jax.Array, most: int = 0) -> jax.Array:
    """bool [N, N]: which rows are negatives of which; one row (the first) stands for each other user.

    Args:
      rng: Of the draw, where there is one.
      user: Keys, int [N].
      real: bool [N], rows that count.
      most: At most so many negatives a row, drawn; 0: all.
    """
    same = (user[:, None] == user) & real
    first = real & (same.argmax(1) == jnp.arange(len(user)))
    allowed = (user[:, None] != user) & first
    if not most or most >= len(user):
        return allowed
    order = jnp.where(allowed, jax.random.uniform(rng, allowed.shape), -1.0)
    least = jax.lax.top_k(order, most)[0][:, -1:]
    return allowed & (order >= jnp.maximum(least, 0.0))


def keep_events(rng: jax.Array, mask: jax.Array, drop: float) -> jax.Array:
    """mask [B, L] with each event dropped with probability `drop`; a row that had one keeps at least one."""
    keys = jax.random.split(rng)
    kept = mask & jax.random.bernoulli(keys[0], 1 - drop, mask.shape)
    score = jnp.where(mask, jax.random.uniform(keys[1], mask.shape), -1.0)
    one = mask & (jnp.arange(mask.shape[1]) == score.argmax(1)[:, None])
    return jnp.where(kept.any(1, keepdims=True), kept, one)
