"""LightSUAN: SUAN with sparse self-attention and many candidates per pass.

Same paper, sources and tags as `recjax.models.suan`. Parameters are SUAN's: only the allowed pairs
change. With delta = i - j >= 0 [FIG-M; the rule reproduces the figure cell by cell]

    local    delta <= k - 1                               the window of k includes the token itself
    dilated  delta = anchor + m r, m = 1, 2, ...          beyond the window; anchor = k - 1

as one union under one softmax. The figure (k = 2) cannot tell the anchor k - 1 from 1; with k - 1
the gap to the first dilated key is r for any k, so that is the default [proposal], and `anchor`
sets another. k and r of the paper were not found; 16 and 4 (n = 100), 50 and 10 (n = 1000) are
ours. We take the mask to hold in all blocks and in training [proposal]. `gate_pool="causal"` by
default, for SUAN's reasons: "full" would let candidates see each other, and is folded to one
candidate per row.

`sparse=True` computes allowed pairs only (up to the corners of blocks): a band by blocks of k, each
meeting itself and the block before it, and the dilated keys shifted by k - 1 + r, so that queries
meet keys of their own residue mod r: r causal attentions of length n / r. Both share one maximum
and one sum (log-sum-exp merge), which is exact because their key sets are disjoint. Nothing but the
inputs is kept for the backward pass. On CPU it runs one example at a time, where it stays in cache.
`sparse=False` masks the dense form instead: the same numbers.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recjax import models
from recjax.layers.attention import attend
from recjax.models import suan
from recjax.models.suan import Layout, Pairs
from recjax.schema import Schema
from recjax.system import System


@dataclasses.dataclass(frozen=True)
class LocalDilated:
    """The allowed pairs of LightSUAN.

    Attributes:
      local: k.
      dilation: r.
      anchor: Of the dilated keys; None is k - 1.
      sparse: Compute the allowed pairs alone, instead of masking all.
    """

    local: int
    dilation: int
    anchor: int | None = None
    sparse: bool = True

    def __post_init__(self):
        if self.local < 1 or self.dilation < 1 or (self.anchor or 0) < 0:
            raise ValueError(
                "lightsuan wants local >= 1, dilation >= 1 and anchor >= 0, "
                f"got {self.local}, {self.dilation} and {self.anchor}"
            )

    @property
    def first(self) -> int:
        """Distance of the nearest dilated key: the first beyond the window that is anchor mod r."""
        anchor = self.local - 1 if self.anchor is None else self.anchor
        return self.local + (anchor - self.local) % self.dilation

    def allowed(self, delta: np.ndarray) -> np.ndarray:
        """Whether a query sees a key `delta` positions before it."""
        dilated = (delta >= self.first) & ((delta - self.first) % self.dilation == 0)
        return ((delta >= 0) & (delta < self.local)) | dilated

    def mask(self, behaviours: int, candidates: int) -> np.ndarray:
        """bool [n + C, n + C] of one pass over behaviours and candidates (FIG-M, both matrices)."""
        n, c = behaviours, candidates
        position = np.minimum(np.arange(n + c), n)  # every candidate stands at n
        mask = self.allowed(position[:, None] - position[None])
        mask[:, n:] = np.eye(n + c, dtype=bool)[:, n:]  # a candidate is seen by itself alone
        return mask

    def is_sparse(self, n: int) -> bool:
        """Whether `attend` takes the sparse path: not when the window covers everything."""
        return self.sparse and self.local < n

    def layouts(self, n: int) -> tuple[Layout, ...]:
        """The dense form, or the band [n, 2k] and the dilated keys [n, ceil(n / r)]."""
        query = np.arange(n)[:, None]
        if not self.is_sparse(n):
            return (Layout(None, self.allowed(query - np.arange(n)[None])),)
        k, r = self.local, self.dilation
        band = (query // k - 1) * k + np.arange(2 * k)[None]
        in_window = (band >= 0) & (band < n) & (query - band >= 0) & (query - band < k)
        dilated = query % r + r * np.arange(-(-n // r))[None] - self.first
        reached = (dilated >= 0) & (query - dilated >= self.first)
        return (
            Layout(np.clip(band, 0, n - 1), in_window),
            Layout(np.clip(dilated, 0, n - 1), reached),
        )

    def keys(self, n: int) -> np.ndarray:
        """Behaviours that a candidate at position n sees."""
        return np.flatnonzero(self.allowed(n - np.arange(n)))

    def pairs(self, n: int) -> int:
        """Allowed pairs among n behaviours and a candidate after them."""
        return int(self.mask(n, 1).sum())

    def attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, pairs: tuple[Pairs, ...]
    ) -> jax.Array:
        """[B, H, n, dh] x 3 -> [B, H, n, dh]; `pairs` follow `layouts`."""
        if len(pairs) == 1:
            return attend(q, k, v, *pairs[0])
        return sparse_attention(self, q, k, v, tuple(pairs))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sparse_attention(pattern: LocalDilated, q, k, v, pairs: tuple[Pairs, Pairs]) -> jax.Array:
    """Attention over the band and the dilated keys, [B, H, n, dh] -> [B, H, n, dh].

    Equal to `attend` under `pattern.mask`, in values and gradients (biases included).
    """
    return _each_example(functools.partial(_attend_one, pattern), q, k, v, pairs)


def _sparse_fwd(pattern, q, k, v, pairs):
    return sparse_attention(pattern, q, k, v, pairs), (q, k, v, pairs)


def _sparse_bwd(pattern, residuals, g):
    """Recomputes each example's weights: they are larger than everything else together."""

    def one(q, k, v, pairs, g):
        biases = [p.bias for p in pairs]

        def value(q, k, v, biases):
            return _attend_one(pattern, q, k, v, _with_biases(pairs, biases))

        return jax.vjp(value, q, k, v, biases)[1](g)

    dq, dk, dv, d_biases = _each_example(one, *residuals, g)
    pairs = residuals[3]
    d_biases = [  # a bias of batch 1 is shared by all examples
        d if d is None or p.bias.shape[0] == d.shape[0] else d.sum(0, keepdims=True)
        for p, d in zip(pairs, d_biases, strict=True)
    ]
    return dq, dk, dv, tuple(Pairs(None, d) for d in d_biases)


sparse_attention.defvjp(_sparse_fwd, _sparse_bwd)


def _with_biases(pairs, biases) -> tuple[Pairs, ...]:
    return tuple(Pairs(p.mask, b) for p, b in zip(pairs, biases, strict=True))


def _each_example(fn, q, *rest):
    """Maps `fn` over the leading axis: one at a time on CPU (in cache), all together elsewhere."""
    b = q.shape[0]
    spread = lambda x: jnp.broadcast_to(x, (b, *x.shape[1:]))  # noqa: E731
    args = (q, *jax.tree.map(spread, rest))
    return jax.lax.platform_dependent(
        *args,
        cpu=lambda *a: jax.lax.map(lambda one: fn(*one), a),
        default=jax.vmap(fn),
    )


def _attend_one(pattern: LocalDilated, q, k, v, pairs: tuple[Pairs, Pairs]) -> jax.Array:
    """One example: q, k, v [H, n, dh], pairs' leaves [H or 1, n, s] -> [H, n, dh]."""
    window, r = pattern.local, pattern.dilation
    n, band, dilated = q.shape[1], *pairs
    q = q * jnp.asarray(1 / math.sqrt(q.shape[-1]), q.dtype)
    near = jnp.einsum("hawd,hasd->haws", _blocks(q, window), _own_and_previous(k, window), **F32)
    far = jnp.einsum(
        "hard,hcrd->harc", _by_residue(q, r), _by_residue(_shift(k, pattern.first), r), **F32
    )
    near, far = (_logits(x, p, n) for x, p in ((near, band), (far, dilated)))

    top = jnp.maximum(near.max(-1, keepdims=True), far.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(top)
    near, far = (
        jnp.where(p.mask, jnp.exp(x - top), 0.0) for x, p in ((near, band), (far, dilated))
    )
    total = near.sum(-1, keepdims=True) + far.sum(-1, keepdims=True)

    near, far = _blocks(near.astype(v.dtype), window), _by_residue(far.astype(v.dtype), r)
    out = _rows(jnp.einsum("haws,hasd->hawd", near, _own_and_previous(v, window), **F32), n)
    out += _rows(
        jnp.einsum("harc,hcrd->hard", far, _by_residue(_shift(v, pattern.first), r), **F32), n
    )
    return (out / jnp.where(total > 0, total, 1.0)).astype(v.dtype)


F32 = dict(preferred_element_type=jnp.float32)


def _logits(x: jax.Array, pairs: Pairs, n: int) -> jax.Array:
    """Blocked products [H, a, b, s] -> masked logits [H, n, s]."""
    x = _rows(x, n)
    x = x if pairs.bias is None else x + pairs.bias
    return jnp.where(pairs.mask, x, jnp.finfo(jnp.float32).min)


def _rows(x: jax.Array, n: int) -> jax.Array:
    """[H, a, b, s] -> [H, n, s], dropping the filling of the last block."""
    return x.reshape(x.shape[0], -1, x.shape[-1])[:, :n]


def _blocks(x: jax.Array, size: int) -> jax.Array:
    """[H, n, d] -> [H, ceil(n / size), size, d], zero-filled."""
    h, n, d = x.shape
    blocks = -(-n // size)
    return jnp.pad(x, ((0, 0), (0, blocks * size - n), (0, 0))).reshape(h, blocks, size, d)


_by_residue = _blocks  # position a r + s is in row a, column s: columns are the residues mod r


def _own_and_previous(x: jax.Array, size: int) -> jax.Array:
    """[H, n, d] -> [H, blocks, 2 size, d]: the keys that a block of queries may reach."""
    own = _blocks(x, size)
    previous = jnp.pad(own[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    return jnp.concatenate([previous, own], axis=2)


def _shift(x: jax.Array, by: int) -> jax.Array:
    """Keys moved `by` positions later, so that the nearest dilated key lies under its query."""
    n = x.shape[1]
    return jnp.pad(x, ((0, 0), (by, 0), (0, 0)))[:, :n]


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    labels: Iterable[str] | None = None,
    local: int = 16,
    dilation: int = 4,
    anchor: int | None = None,
    sparse: bool = True,
    gate_pool: str = "causal",
    **options,
) -> System:
    """LightSUAN as a system.

    Args:
      schema: As SUAN's.
      table: To `Schema.tables`; its dim is d.
      compute_dtype: Of activations.
      param_dtype: Of dense parameters.
      labels: One output each.
      local: k, the window, the token itself included.
      dilation: r.
      anchor: Of the dilated keys; None is k - 1.
      sparse: The sparse kernel, or the masked dense form.
      gate_pool: "causal", "behaviour", or "full" (folds the candidates).
      **options: Fields of `suan.SUAN`.
    """
    own = (
        "local",
        "dilation",
        "anchor",
        "sparse",
        "table",
        "compute_dtype",
        "param_dtype",
        "labels",
    )
    accepted = set(models.module_options(suan.SUAN, suan.INTERNAL)) - {"causal"}
    models.check_options("lightsuan", options, (*accepted, *own))
    pattern = LocalDilated(local, dilation, anchor, sparse)
    options = {**options, "gate_pool": gate_pool}
    return suan.make_system(schema, table, compute_dtype, param_dtype, labels, pattern, options)
