"""A flow of points on the sphere against the points it should have met: NIF's losses (recjax/models/nif.py has the equations)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from recjax.layers import sphere

SHARPNESS = 0.1  # of the soft maximum over slots
DIVERSITY = ("tangent", "cosine", "none")
VELOCITY = ("accel_matched", "accel", "energy", "speed_matched", "cosine", "none")


class Pool(NamedTuple):
    """Items of each row, in slots.

    Attributes:
      points: T(i), float32 [B, n, d].
      ids: int32 [B, n].
      share: Of the targets, float32 [B, n].
      real: bool [B, n].
    """

    points: jax.Array
    ids: jax.Array
    share: jax.Array
    real: jax.Array

    def flat(self) -> "Pool":
        """All rows' items in one, [B * n]."""
        return Pool(*(x.reshape(-1, *x.shape[2:]) for x in self))


class Sampled(NamedTuple):
    """InfoNCE of each slot [B, K], and how many distinct negatives score at least as high as its target."""

    nce: jax.Array
    rank: jax.Array


def flow_nce(
    flow: jax.Array,
    targets: Pool,
    uniform: Pool,
    rejected: Pool,
    user: jax.Array,
    items: int,
    tau: float = 0.1,
) -> Sampled:
    """-log softmax of each slot's target among it and its negatives (see the module docstring).

    Args:
      flow: F [B, K, d].
      targets: The next K items, in order.
      uniform: Items drawn uniformly; all rows share them.
      rejected: Each row's own shown and unclicked items.
      user: Key of each row's user [B]; targets of the same user's other rows are no negatives.
      items: |I|.
      tau: Temperature.
    """
    n_b, n_u = targets.real.sum(), uniform.real.sum()

    def log_q(share):
        return jnp.log(jnp.maximum(n_b * share + n_u / items, 1e-30))

    shared, allowed = shared_negatives(targets, uniform, user)
    mine = (rejected.ids[:, :, None] == targets.ids[:, None]) & targets.real[:, None]
    mine = (rejected.real & ~mine.any(-1))[:, None]  # [B, 1, R]
    cos = jnp.einsum("bkd,nd->bkn", flow, shared.points)
    own = jnp.einsum("bkd,bnd->bkn", flow, rejected.points)
    best = (flow * targets.points).sum(-1)  # [B, K]
    plus = best / tau - log_q(targets.share)
    minus = cos / tau - log_q(shared.share)
    refused = own / tau - log_q(rejected.share)[:, None]
    minus = jnp.where(allowed[:, None], minus, -jnp.inf)
    refused = jnp.where(mine, refused, -jnp.inf)
    z = jnp.concatenate([plus[..., None], minus, refused], axis=-1)
    return Sampled(jax.nn.logsumexp(z, axis=-1) - plus, rank(cos, best, shared, allowed))


def shared_negatives(targets: Pool, uniform: Pool, user: jax.Array) -> tuple[Pool, jax.Array]:
    """All rows' targets and uniform items, [N], and which are negatives of which row, bool [B, N]: other users', not its own."""
    both = zip(targets.flat(), uniform.flat(), strict=True)
    shared = Pool(*(jnp.concatenate(x) for x in both))
    of = jnp.repeat(user, targets.ids.shape[1])
    others = jnp.pad(of != user[:, None], ((0, 0), (0, uniform.ids.size)), constant_values=True)
    own = ((shared.ids[None, :, None] == targets.ids[:, None]) & targets.real[:, None]).any(-1)
    return shared, others & shared.real & ~own


def rank(score: jax.Array, best: jax.Array, shared: Pool, allowed: jax.Array) -> jax.Array:
    """How many distinct negatives score at least as high as each target (ties count against it), [B, K].

    Args:
      score: Of the shared items, [B or 1, K or 1, N].
      best: Of the targets, [B, K].
      shared, allowed: From `shared_negatives`.
    """
    counted = one_of_each(shared.ids, allowed)[:, None]
    return (counted & (score >= best[..., None] - 1e-6)).sum(-1)


def one_of_each(ids: jax.Array, allowed: jax.Array) -> jax.Array:
    """True at one place of each id that is allowed anywhere, bool [B, N]; ids [N], allowed [B, N].

    An item may stand where a row may not count it (another request of its user) and where it may.
    """
    order = jnp.argsort(ids)
    new = jnp.diff(ids[order], prepend=ids.min() - 1) != 0
    first = jnp.zeros_like(new).at[order].set(new)
    which = jnp.zeros_like(ids).at[order].set(jnp.cumsum(new) - 1)  # ids by their rank
    anywhere = jax.ops.segment_max(allowed.T.astype(jnp.int8), which, num_segments=len(ids)) > 0
    return first & anywhere[which].T


def regularisers(
    flow: jax.Array,
    targets: jax.Array,
    start: jax.Array,
    real: jax.Array,
    started: jax.Array,
    diversity: str = "tangent",
    velocity: str = "accel_matched",
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """{"diversity", "velocity"}: (sum, count) of the two terms of L_1.

    Args:
      flow: F [B, K, d].
      targets: z* [B, K, d].
      start: P_0 [B, d].
      real: Which targets exist, bool [B, K].
      started: Which P_0 do, bool [B].
      diversity, velocity: Of `CHOICES`.
    """
    start = jax.lax.stop_gradient(start)[:, None]
    exist = jnp.concatenate([started[:, None], real], axis=1)
    own = sphere.motion(jnp.concatenate([start, flow], axis=1), exist)
    true = sphere.motion(jnp.concatenate([start, targets], axis=1), exist)
    true = jax.lax.stop_gradient(true)
    both = real[:, :, None] & real[:, None]
    cos = jnp.einsum("bkd,bjd->bkj", flow, flow)
    pairs = jnp.tril(jnp.ones(cos.shape[-2:], bool), -1) & both
    hinge = lambda x: jnp.square(jnp.maximum(x, 0.0))  # noqa: E731
    steps = own.steps[:, 1:]
    terms = {
        "tangent": (hinge(true.novelty - own.novelty), steps),
        "cosine": (hinge(cos - 0.5), pairs),
        "none": (jnp.zeros(1), jnp.ones(1, bool)),
    }
    speeds = {
        "accel_matched": (hinge(own.acceleration - true.acceleration), own.bends),
        "accel": (jnp.square(own.acceleration), own.bends),
        "energy": (jnp.square(own.speed), own.steps),
        "speed_matched": (jnp.square(own.speed - true.speed), own.steps),
        "cosine": (1 - jnp.diagonal(cos, 1, 1, 2), real[:, :-1] & real[:, 1:]),
        "none": terms["none"],
    }
    out = {"diversity": terms[diversity], "velocity": speeds[velocity]}
    return {
        k: (jnp.where(m, x, 0.0).sum(), m.sum().astype(jnp.float32)) for k, (x, m) in out.items()
    }


def aligned(x: jax.Array, mask: jax.Array, slots: int) -> jax.Array:
    """Left-padded x [B, L, ...] with its real places first, cut to `slots`: target k in slot k."""
    length = mask.shape[1]
    at = (jnp.arange(slots) + length - mask.sum(1, keepdims=True)) % length
    return jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), axis=1)


def affinity(flow: jax.Array, points: jax.Array) -> jax.Array:
    """Soft maximum over slots of the cosines, float32 [B, N]: flow [B, K, d], points [B, N, d] or [N, d]."""
    own = "b" if points.ndim == 3 else ""
    cos = jnp.einsum(f"bkd,{own}nd->bkn", flow, points)
    return jax.nn.logsumexp(cos / SHARPNESS, axis=1) * SHARPNESS
