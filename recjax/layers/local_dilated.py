"""Local plus dilated attention, LightSUAN's: which pairs are allowed, and a kernel that computes no others.

`sparse=True` computes allowed pairs only (up to the corners of blocks): a band by blocks of k, each
meeting itself and the block before it, and the dilated keys shifted by k - 1 + r, so that queries
meet keys of their own residue mod r: r causal attentions of length n / r. Both share one maximum
and one sum (log-sum-exp merge), which is exact because their key sets are disjoint. The backward pass
keeps the output and the log-sum-exp and computes the weights again. On CPU it runs one example at a time, where it stays in cache.
`sparse=False` masks the dense form instead: the same numbers.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from recjax.layers.attention import Layout, Pairs, attend


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
    return _sparse_fwd(pattern, q, k, v, pairs)[0]


def _sparse_fwd(pattern, q, k, v, pairs):
    out, lse = _each_example(functools.partial(_attend_one, pattern), q, k, v, pairs)
    return out, (q, k, v, pairs, out, lse)


def _sparse_bwd(pattern, residuals, g):
    """Recomputes each example's weights: they are larger than everything else together."""
    one = functools.partial(_attend_one_bwd, pattern)
    dq, dk, dv, d_biases = _each_example(one, *residuals, g)
    pairs = residuals[3]
    d_biases = [  # a bias of batch 1 is shared by all examples
        d if d is None or p.bias.shape[0] == d.shape[0] else d.sum(0, keepdims=True)
        for p, d in zip(pairs, d_biases, strict=True)
    ]
    return dq, dk, dv, tuple(Pairs(None, d) for d in d_biases)


sparse_attention.defvjp(_sparse_fwd, _sparse_bwd)


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


def _attend_one(pattern: LocalDilated, q, k, v, pairs: tuple[Pairs, Pairs]):
    """One example: q, k, v [H, n, dh], pairs' leaves [H or 1, n, s] -> [H, n, dh], log-sum-exp [H, n, 1]."""
    near, far = _logits(pattern, q, k, pairs)
    top = jnp.maximum(near.max(-1, keepdims=True), far.max(-1, keepdims=True))
    near, far = (
        jnp.where(p.mask, jnp.exp(x - top), 0.0) for x, p in zip((near, far), pairs, strict=True)
    )
    total = near.sum(-1, keepdims=True) + far.sum(-1, keepdims=True)
    out = _to_queries(pattern, near.astype(v.dtype), far.astype(v.dtype), v)
    total = jnp.where(total > 0, total, 1.0)  # a query that sees no key gets zeros
    return (out / total).astype(v.dtype), top + jnp.log(total)


def _attend_one_bwd(pattern: LocalDilated, q, k, v, pairs, out, lse, g):
    """Gradients of `_attend_one` with respect to q, k, v and the two biases.

    With P the weights and dP = g v^T: dV = P^T g, dS = P (dP - g . out), dQ = dS K, dK = dS^T Q.
    """
    logits = _logits(pattern, q, k, pairs)
    near, far = (
        jnp.where(p.mask, jnp.exp(x - lse), 0.0) for x, p in zip(logits, pairs, strict=True)
    )
    dv = _to_keys(pattern, near.astype(g.dtype), far.astype(g.dtype), g)
    mean = (g.astype(jnp.float32) * out).sum(-1, keepdims=True)
    near, far = (w * (d - mean) for w, d in zip((near, far), _products(pattern, g, v), strict=True))
    biases = [_like(p.bias, d) for p, d in zip(pairs, (near, far), strict=True)]
    scale = 1 / math.sqrt(q.shape[-1])
    near, far = near.astype(q.dtype), far.astype(q.dtype)
    dq = scale * _to_queries(pattern, near, far, k)
    dk = scale * _to_keys(pattern, near, far, q)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), biases


def _like(bias: jax.Array | None, d: jax.Array) -> jax.Array | None:
    """The gradient d [H, n, s] of a bias [H or 1, n, s]."""
    if bias is None:
        return None
    return d if bias.shape[0] == d.shape[0] else d.sum(0, keepdims=True)


def _logits(pattern: LocalDilated, q, k, pairs) -> tuple[jax.Array, jax.Array]:
    """Masked logits of the band [H, n, 2k] and of the dilated keys [H, n, ceil(n / r)]."""
    q = q * jnp.asarray(1 / math.sqrt(q.shape[-1]), q.dtype)
    band, dilated = (
        jnp.where(p.mask, x if p.bias is None else x + p.bias, jnp.finfo(jnp.float32).min)
        for x, p in zip(_products(pattern, q, k), pairs, strict=True)
    )
    return band, dilated


# Three products over the pairs; [H, n, s] is a number for each query and each slot of its layout.

F32 = dict(preferred_element_type=jnp.float32)


def _products(pattern: LocalDilated, x, y) -> tuple[jax.Array, jax.Array]:
    """x of the query times y of the key, [H, n, s] each."""
    (w, r), n = (pattern.local, pattern.dilation), x.shape[1]
    near = jnp.einsum("hawd,hasd->haws", _blocks(x, w), _own_and_previous(y, w), **F32)
    late = _by_residue(_shift(y, pattern.first), r)
    far = jnp.einsum("hard,hcrd->harc", _by_residue(x, r), late, **F32)
    return _rows(near, n), _rows(far, n)


def _to_queries(pattern: LocalDilated, near, far, y) -> jax.Array:
    """Sums over a query's keys of weight times y, [H, n, d]."""
    (w, r), n = (pattern.local, pattern.dilation), y.shape[1]
    out = jnp.einsum("haws,hasd->hawd", _blocks(near, w), _own_and_previous(y, w), **F32)
    late = _by_residue(_shift(y, pattern.first), r)
    return _rows(out, n) + _rows(jnp.einsum("harc,hcrd->hard", _by_residue(far, r), late, **F32), n)


def _to_keys(pattern: LocalDilated, near, far, x) -> jax.Array:
    """Sums over the queries of a key of weight times x, [H, n, d]."""
    (w, r), n = (pattern.local, pattern.dilation), x.shape[1]
    both = jnp.einsum("haws,hawd->hasd", _blocks(near, w), _blocks(x, w), **F32)
    previous = jnp.pad(both[:, 1:, :w], ((0, 0), (0, 1), (0, 0), (0, 0)))
    late = jnp.einsum("harc,hard->hcrd", _by_residue(far, r), _by_residue(x, r), **F32)
    late = _rows(late, n)[:, pattern.first :]
    return _rows(both[:, :, w:] + previous, n) + jnp.pad(
        late, ((0, 0), (0, n - late.shape[1]), (0, 0))
    )


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
