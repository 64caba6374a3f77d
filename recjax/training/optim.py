"""Dense optimizers: optax without the learning rate, so that one scalar rules dense parameters and rows alike.

A *group* (System.groups) is a set of parameters with its own rate and clipping; a gradient norm is taken over a
group's dense and row gradients together, so that a teacher's gradients never change a student's step.
"""

from collections.abc import Callable, Collection, Sequence
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from recjax.schema import Table
from recjax.system import System

Tree = Any

TRANSFORMS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.scale_by_adam,
    "lamb": lambda **kw: optax.chain(optax.scale_by_adam(**kw), optax.scale_by_trust_ratio()),
    "lion": optax.scale_by_lion,
    "adagrad": optax.scale_by_rss,
    "rmsprop": optax.scale_by_rms,
    "sgd": optax.identity,
}


def transform(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """The configured optimizer's direction (no learning rate), with decoupled weight decay on matrices."""
    if config.name not in TRANSFORMS:
        raise ValueError(f"opt.name={config.name!r} is unknown; use one of {', '.join(TRANSFORMS)}")
    parts = [TRANSFORMS[config.name](**config.get("args", {}))]
    if config.weight_decay:
        matrices = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=matrices))
    return optax.chain(*parts)


SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda steps: optax.constant_schedule(1.0),
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
    "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
}


def schedule(config: ml_collections.ConfigDict, total_steps: int) -> optax.Schedule:
    """step -> factor in [0, 1] on every learning rate: constant, cosine or linear decay, after a linear warm-up.

    Of w warm-up steps the first has the factor 1 / (w + 1), and step w is the first with the whole rate.
    """
    if config.schedule not in SCHEDULES:
        raise ValueError(
            f"opt.schedule={config.schedule!r} is unknown; use one of {', '.join(SCHEDULES)}"
        )
    warmup = max(int(config.warmup_steps), 0)
    decay = SCHEDULES[config.schedule](max(total_steps - warmup, 1))
    return lambda step: (
        decay(jnp.maximum(step - warmup, 0)) * jnp.minimum((step + 1) / (warmup + 1), 1.0)
    )


def row_schedules(
    config: ml_collections.ConfigDict, total_steps: int, tables: Sequence[Table]
) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Each table's factor by step: `opt.schedule`, or the first (regex, schedule) of `embedding.schedule` that fits."""

    def of(path):
        rules = config.embedding.schedule
        name = next((n for p, n in rules if re.search(p, path)), config.opt.schedule)
        return schedule(ml_collections.ConfigDict({**config.opt, "schedule": name}), total_steps)

    return {t.path: of(t.path) for t in tables}


def path_name(path) -> str:
    """A key path as "dense/Dense_0/kernel"."""
    return "/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path)


def group_of(system: System, path: str) -> str:
    """The group of a parameter path; a path that no rule covers is an error."""
    for pattern, name in system.groups:
        if re.search(pattern, path):
            return name
    raise ValueError(
        f"no rule of System.groups covers {path!r}; add one, or end with ('.*', 'all')"
    )


def dense_groups(system: System, dense: Tree) -> Tree:
    """Group name of every dense leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda p, _: group_of(system, f"dense/{path_name(p)}"), dense
    )


def clip_scales(
    system: System,
    dense_grads: Tree,
    row_grads: dict[str, jax.Array],
    max_norm: jax.Array | float,
) -> dict[str, jax.Array]:
    """Factor per group that brings its joint gradient norm down to `max_norm` (0: no clipping, factor 1)."""
    names = jax.tree.leaves(dense_groups(system, dense_grads))
    squares: dict[str, jax.Array] = {}
    for name, g in zip(names, jax.tree.leaves(dense_grads), strict=True):
        squares[name] = squares.get(name, 0.0) + square(g)
    for path, g in row_grads.items():
        name = group_of(system, f"tables/{path}")
        squares[name] = squares.get(name, 0.0) + square(g)
    factor = lambda s: jnp.minimum(1.0, max_norm / jnp.maximum(jnp.sqrt(s), 1e-12))  # noqa: E731
    return {n: jnp.where(max_norm > 0, factor(s), 1.0) for n, s in squares.items()}


def square(x: jax.Array) -> jax.Array:
    """Sum of squares [], in float32."""
    return jnp.sum(jnp.square(x.astype(jnp.float32)))


def learning_rates(config: ml_collections.ConfigDict, names: Collection[str]) -> dict[str, float]:
    """Dense learning rate per group: `opt.lr`, or `opt.group_lr.<group>`."""
    unknown = set(config.group_lr) - set(names)
    if unknown:
        raise ValueError(
            f"opt.group_lr names {sorted(unknown)}, but the groups are {sorted(names)}"
        )
    return {n: config.group_lr.get(n, config.lr) for n in names}
