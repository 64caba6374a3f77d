"""The unit sphere: exponential, logarithm, parallel transport, and the motion of discrete trajectories on it.

Float32 whatever the compute type, and finite gradients everywhere: at q = p, at the antipode and for a trajectory that does
not move. `atan2` and never `arccos`, whose gradient is infinite at q = p.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

EPS = 1e-6
RIDGE = 1e-4  # of the projection on the directions already visited


def norm(v: jax.Array) -> jax.Array:
    """sqrt(<v, v> + EPS^2) over the last axis: EPS and a zero gradient at 0."""
    v = v.astype(jnp.float32)
    return jnp.sqrt(jnp.square(v).sum(-1) + EPS**2)


def unit(v: jax.Array) -> jax.Array:
    """v on the sphere, float32; zero stays zero."""
    return v.astype(jnp.float32) / norm(v)[..., None]


def log(p: jax.Array, q: jax.Array) -> jax.Array:
    """The tangent at p that leads to q, its norm their angle; [..., d] each."""
    c = (p * q).sum(-1, keepdims=True)
    r = q - c * p
    s = norm(r)[..., None]
    return jnp.arctan2(s, c) / s * r


def exp(p: jax.Array, v: jax.Array) -> jax.Array:
    """Where the geodesic from p along the tangent v ends; [..., d] each."""
    angle = norm(v)[..., None]
    return unit(jnp.cos(angle) * p + jnp.sin(angle) / angle * v)


def transport(p: jax.Array, q: jax.Array, v: jax.Array) -> jax.Array:
    """The tangent v at p, carried along the geodesic to q (undefined at the antipode); [..., d] each."""
    c = (p * q).sum(-1, keepdims=True)
    return v - (q * v).sum(-1, keepdims=True) / jnp.maximum(1 + c, EPS) * (p + q)


class Motion(NamedTuple):
    """How trajectories P_0 .. P_K move. Step k leads from P_k to P_{k+1}.

    Attributes:
      speed: Angle of the steps 0 .. K - 1, radians [..., K].
      steps: Which of them have both ends, bool [..., K].
      novelty: Of the steps 1 .. K - 1, what lies across all directions visited before, radians [..., K - 1].
      share: novelty / speed (a diagnostic) [..., K - 1].
      acceleration: Norm of the covariant acceleration at P_1 .. P_{K-1} [..., K - 1].
      bends: Where it is defined: both steps are there, bool [..., K - 1].
    """

    speed: jax.Array
    steps: jax.Array
    novelty: jax.Array
    share: jax.Array
    acceleration: jax.Array
    bends: jax.Array


def motion(points: jax.Array, real: jax.Array, ridge: float = RIDGE) -> Motion:
    """Speed, novelty and acceleration of trajectories.

    With v_k = log_{P_k}(P_{k+1}): novelty is |v_k - its ridge projection on span {log_{P_k}(P_j), j < k}|, and the
    acceleration v_k - PT(v_{k-1}) = log_{P_k}(P_{k+1}) + log_{P_k}(P_{k-1}): zero when P_k is the geodesic midpoint.

    Args:
      points: P_0 .. P_K, unit [..., K + 1, d].
      real: Which points exist, bool [..., K + 1]; the others have no effect on what is `steps` and `bends`.
      ridge: rho.
    """
    points = points.astype(jnp.float32)
    size = points.shape[-2]
    to = log(points[..., :, None, :], points[..., None, :, :])  # [..., K + 1, K + 1, d]
    at = jnp.arange(size - 1)
    ahead, back = to[..., at, at + 1, :], to[..., at + 1, at, :]  # v_0 ..; log_{P_1}(P_0) ..
    steps = real[..., :-1] & real[..., 1:]
    v = ahead[..., 1:, :]
    across = norm(_across(v, to[..., 1:-1, :, :], real, ridge))
    return Motion(
        speed=norm(ahead),
        steps=steps,
        novelty=across,
        share=across / norm(v),
        acceleration=norm(v + back[..., :-1, :]),
        bends=steps[..., :-1] & steps[..., 1:],
    )


def _across(v: jax.Array, to: jax.Array, real: jax.Array, ridge: float) -> jax.Array:
    """v_k without its part along the directions `to` [..., K - 1, K + 1, d] of real points before P_k."""
    inner, size = to.shape[-3:-1]
    earlier = jnp.arange(size) < jnp.arange(1, inner + 1)[:, None]
    w = unit(to) * (earlier & real[..., None, :])[..., None]  # other rows are zero: alpha is too
    gram = jnp.einsum("...kid,...kjd->...kij", w, w) + ridge * jnp.eye(size)
    alpha = _solve(gram, jnp.einsum("...kid,...kd->...ki", w, v))
    return v - jnp.einsum("...kid,...ki->...kd", w, alpha)


def _solve(a: jax.Array, b: jax.Array) -> jax.Array:
    """x of a x = b for many small symmetric positive definite a [..., n, n], b [..., n]: Gauss-Jordan, unrolled.

    LAPACK is called once for each of thousands of 9 x 9 systems; these are n vector operations. No pivoting: the ridge
    bounds the diagonal from below.
    """
    n = a.shape[-1]
    for i in range(n):
        others = (jnp.arange(n) != i).astype(a.dtype)
        factor = a[..., i] / a[..., i : i + 1, i] * others  # [..., n]
        a = a - factor[..., None] * a[..., i : i + 1, :]
        b = b - factor * b[..., i : i + 1]
    return b / jnp.diagonal(a, axis1=-2, axis2=-1)
