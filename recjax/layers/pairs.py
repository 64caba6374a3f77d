"""Pairs of one page and the losses that pull them together or apart (CCN). Float32 whatever the compute type.

Two items shown on the same page are a co-click pair (labels 1, 1), a co-non-click pair (0, 0) or a mono-click pair (exactly one).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from recjax.system import Sums, mean

Sum = tuple[jax.Array, jax.Array]  # numerator, denominator


class Pairs(NamedTuple):
    """Unordered pairs of one page, each once, above the diagonal: bool [B, n, n]."""

    co_click: jax.Array
    co_non_click: jax.Array
    mono_click: jax.Array


def page_pairs(label: jax.Array, real: jax.Array) -> Pairs:
    """The pairs of pages [B, n]; `real` bool [B, n] leaves out filling slots."""
    clicked = label > 0.5
    n = label.shape[1]
    both = real[:, :, None] & real[:, None] & (jnp.arange(n)[:, None] < jnp.arange(n))
    a, b = clicked[:, :, None], clicked[:, None]
    return Pairs(both & a & b, both & ~a & ~b, both & (a != b))


def above_last_click(label: jax.Array, position: jax.Array, real: jax.Array) -> jax.Array:
    """bool [B, n]: the clicked, and the unclicked shown before the page's last click (they were probably seen)."""
    clicked = (label > 0.5) & real
    last = jnp.where(clicked, position, -jnp.inf).max(1, keepdims=True)
    return clicked | (real & (position < last))


def similarity(z: jax.Array, tau: float) -> jax.Array:
    """q_ab = <z_a, z_b> / tau, float32 [B, n, n]."""
    return jnp.einsum("bad,bcd->bac", z, z, preferred_element_type=jnp.float32) / tau


def mean_over(values: jax.Array, chosen: jax.Array) -> Sum:
    """(sum, count) of the chosen values."""
    return (values * chosen).sum(), chosen.sum().astype(jnp.float32)


def attraction(q: jax.Array, pairs: Pairs, classes: str = "both") -> tuple[jax.Array, Sums]:
    """L_att, and the mean of each class of pairs (float32; 0 where a class is empty).

    Args:
      q: Similarities [B, n, n].
      pairs: Of the pages.
      classes: "both", each of weight 1/2; "cc_only", co-click alone; "unbalanced", one mean over all collaborative pairs.
    """
    loss = jax.nn.softplus(-q)
    click, none = mean_over(loss, pairs.co_click), mean_over(loss, pairs.co_non_click)
    sums = {"attraction/co_click": click, "attraction/co_non_click": none}
    if classes == "cc_only":
        return mean(*click), sums
    if classes == "unbalanced":
        return mean(click[0] + none[0], click[1] + none[1]), sums
    return 0.5 * mean(*click) + 0.5 * mean(*none), sums


def repulsion(q: jax.Array, pairs: Pairs) -> tuple[jax.Array, Sums]:
    """L_rep, and its sums."""
    total = mean_over(jax.nn.softplus(q), pairs.mono_click)
    return mean(*total), {"repulsion": total}


def supcon(q: jax.Array, label: jax.Array, real: jax.Array) -> tuple[jax.Array, Sums]:
    """Mean over anchors a of -1/|P(a)| sum_p log [e^q_ap / (e^q_ap + sum_n e^q_an)]; anchors without P or N are skipped."""
    clicked = label > 0.5
    both = real[:, :, None] & real[:, None] & ~jnp.eye(label.shape[1], dtype=bool)
    same = clicked[:, :, None] == clicked[:, None]
    p, n = both & same, both & ~same
    others = jax.nn.logsumexp(jnp.where(n, q, -1e30), axis=-1, keepdims=True)
    each = (jax.nn.softplus(others - q) * p).sum(-1) / jnp.maximum(p.sum(-1), 1)
    total = mean_over(each, p.any(-1) & n.any(-1))
    return mean(*total), {"supcon": total}
