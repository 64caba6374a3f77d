"""Residual quantisation: a vector as a few codes, each of what the codes before it left over.

    r^0 = x;   z_l = argmin_k ||r^l - X^l_k||^2;   r^{l+1} = r^l - X^l_{z_l};   x^ = sum_l X^l_{z_l}

A. van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, arXiv 1711.00937 (codebook and commitment
losses; moving averages: appendix A.1); residual levels as in D. Lee et al., "Autoregressive Image Generation using Residual
Quantization", CVPR 2022, arXiv 2203.01941. The functions are pure; `ResidualQuantizer` adds codebooks that learn by gradient
("gradient": add `vq_loss` to the loss) or as moving averages of what they stand for ("ema": they lie in the collection
`codes`, not in `params`, and of `vq_loss` only the commitment reaches anything). Its `after_step` is a hook for
`System.after_step`: k-means of the first vectors, and codes that nothing has used for long start anew.

Everything is float32 and at the highest precision whatever the compute type: on accelerators, whose matrix units round their
inputs, codes would otherwise differ between training and export.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

STATE = "codes"  # collection of what is not learnt by gradient


class Quantized(NamedTuple):
    """What `quantize` found.

    Attributes:
      codes: int32 [..., L].
      vectors: x^, float32 [..., D].
      residuals: r^0 = x to r^L = x - x^, float32 [..., L + 1, D]. Their gradient is x's alone: codebooks are stopped.
    """

    codes: jax.Array
    vectors: jax.Array
    residuals: jax.Array


def distances(v: jax.Array, book: jax.Array) -> jax.Array:
    """||v - x_k||^2 less ||v||^2, which no argmin or softmax over k sees: [..., D], [..., K, D] -> float32 [..., K]."""
    v, book = v.astype(jnp.float32), book.astype(jnp.float32)
    cross = jnp.einsum("...d,...kd->...k", v, book, precision=jax.lax.Precision.HIGHEST)
    return jnp.square(book).sum(-1) - 2 * cross


def quantize(x: jax.Array, codebooks: jax.Array) -> Quantized:
    """Greedy codes of x [..., D] in codebooks [L, K, D]; of equally near codes the first."""
    residual = x.astype(jnp.float32)
    vectors, codes, residuals = jnp.zeros_like(residual), [], [residual]
    for book in codebooks.astype(jnp.float32):
        z = distances(jax.lax.stop_gradient(residual), jax.lax.stop_gradient(book)).argmin(-1)
        found = book[z]
        vectors = vectors + found
        residual = residual - jax.lax.stop_gradient(found)
        codes.append(z.astype(jnp.int32))
        residuals.append(residual)
    return Quantized(jnp.stack(codes, -1), vectors, jnp.stack(residuals, -2))


def dequantize(codes: jax.Array, codebooks: jax.Array) -> jax.Array:
    """sum_l X^l_{z_l}: int [..., L], [L, K, D] -> [..., D]."""
    return sum(book[codes[..., level]] for level, book in enumerate(codebooks))


def straight_through(x: jax.Array, vectors: jax.Array) -> jax.Array:
    """x^ in value, x in gradient."""
    return x + jax.lax.stop_gradient(vectors.astype(x.dtype) - x)


def vq_loss(found: Quantized, codebooks: jax.Array, beta: float = 0.25) -> jax.Array:
    """sum_l ||sg(r^l) - X^l_{z_l}||^2 + beta ||r^l - sg(X^l_{z_l})||^2 of each vector, float32 [...]."""
    residuals = found.residuals[..., :-1, :]
    books = codebooks.astype(jnp.float32)
    chosen = jnp.stack([b[found.codes[..., i]] for i, b in enumerate(books)], -2)
    stop = jax.lax.stop_gradient
    codebook = jnp.square(stop(residuals) - chosen).sum((-2, -1))
    return codebook + beta * jnp.square(residuals - stop(chosen)).sum((-2, -1))


# ---- monitoring ----------------------------------------------------------------------------------


def code_counts(codes: jax.Array, size: int, weights: jax.Array | None = None) -> jax.Array:
    """How often (or with what weight [...]) each code was given: int [..., L] -> float32 [L, K]."""
    levels = codes.shape[-1]
    flat = codes.reshape(-1, levels)
    w = jnp.ones(len(flat)) if weights is None else weights.reshape(-1).astype(jnp.float32)
    count = lambda z: jnp.zeros(size).at[z].add(w)  # noqa: E731
    return jax.vmap(count, in_axes=1)(flat)


def usage(counts: jax.Array) -> dict[str, jax.Array]:
    """What counts [..., K] say of each codebook, float32 [...]; zeros where nothing was counted.

    Returns:
      utilisation (share of the codes that occur), entropy (nats), perplexity (exp of it: codes in even use that would say as
      much) and top (share of the most frequent code).
    """
    total = counts.sum(-1, keepdims=True)
    p = counts / jnp.maximum(total, 1e-9)
    entropy = -jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-30)), 0.0).sum(-1)
    seen = total[..., 0] > 0
    return {
        "utilisation": (counts > 0).mean(-1),
        "entropy": entropy,
        "perplexity": jnp.where(seen, jnp.exp(entropy), 0.0),
        "top": p.max(-1),
    }


# ---- codebooks from data -------------------------------------------------------------------------


def kmeans(rng: jax.Array, x: jax.Array, size: int, iterations: int = 10) -> jax.Array:
    """Lloyd's k-means from random rows of x [N, D]: centres [size, D]; one that loses all its points stays where it was."""
    x = x.astype(jnp.float32)
    first = jax.random.choice(rng, len(x), (size,), replace=len(x) < size)

    def move(_, centres):
        nearest = distances(x, centres).argmin(-1)
        total = jnp.zeros_like(centres).at[nearest].add(x)
        count = jnp.zeros((size, 1)).at[nearest, 0].add(1.0)
        return jnp.where(count > 0, total / jnp.maximum(count, 1.0), centres)

    return jax.lax.fori_loop(0, iterations, move, x[first])


def residual_kmeans(
    rng: jax.Array, x: jax.Array, levels: int, size: int, iterations: int = 10
) -> jax.Array:
    """Codebooks [levels, size, D] of x [N, D]: k-means of what the levels before left over."""
    books, residual = [], x.astype(jnp.float32)
    for key in jax.random.split(rng, levels):
        book = kmeans(key, residual, size, iterations)
        residual = residual - book[distances(residual, book).argmin(-1)]
        books.append(book)
    return jnp.stack(books)


# ---- the module ----------------------------------------------------------------------------------


class ResidualQuantizer(nn.Module):
    """Codebooks that learn, and what is known of their use.

    Attributes:
      width: D.
      levels: L.
      size: K.
      update: "gradient" (codebooks are parameters) or "ema" (moving averages, in the state).
      decay: Of the moving averages.
      init_scale: Standard deviation of the first codebooks.
      kmeans: Residual k-means of the first `bank` vectors, as soon as there are so many (by `after_step`).
      reset_after: Steps without use after which a code becomes a recent vector's residual (by `after_step`); 0: never.
        With microbatches each counts as a step.
      bank: Recent vectors kept for both; none without them.
    """

    width: int
    levels: int = 3
    size: int = 128
    update: str = "gradient"
    decay: float = 0.99
    init_scale: float = 0.3
    kmeans: bool = False
    reset_after: int = 0
    bank: int = 8192
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        if self.update not in ("gradient", "ema"):
            raise ValueError(f"update={self.update!r} is not one of 'gradient', 'ema'")
        init, shape = nn.initializers.normal(self.init_scale), (self.levels, self.size, self.width)
        if self.update == "gradient":
            self.books: Any = self.param("codebooks", init, shape, self.param_dtype)
        else:
            draw = lambda: init(self.make_rng("params"), shape, jnp.float32)  # noqa: E731
            self.books = self.variable(STATE, "codebooks", draw)
            self.sums = self.variable(STATE, "sums", lambda: self.books.value)
            self.counts = self.variable(STATE, "counts", jnp.ones, shape[:2])
        if self.hook:
            self.unused = self.variable(STATE, "unused", jnp.zeros, shape[:2], jnp.int32)
            self.recent = self.variable(STATE, "recent", jnp.zeros, (self.bank, self.width))
            self.seen = self.variable(STATE, "seen", jnp.zeros, (), jnp.int32)
            self.fitted = self.variable(STATE, "fitted", jnp.zeros, (), jnp.bool_)

    @property
    def hook(self) -> bool:
        """Whether it needs its `after_step`."""
        return self.kmeans or self.reset_after > 0

    @property
    def codebooks(self) -> jax.Array:
        """[L, K, D]."""
        return self.books if self.update == "gradient" else self.books.value

    def __call__(
        self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None
    ) -> Quantized:
        """Codes of x [..., D]; in training, what is learnt without gradient sees the vectors where `valid`, bool [...]."""
        found = quantize(x, self.codebooks)
        if train and not self.is_initializing():
            flat = jax.tree.map(jax.lax.stop_gradient, found)
            weight = jnp.ones(x.shape[:-1]) if valid is None else valid.astype(jnp.float32)
            codes, weight = flat.codes.reshape(-1, self.levels), weight.reshape(-1)
            residuals = flat.residuals.reshape(-1, self.levels + 1, self.width)
            counts = code_counts(codes, self.size, weight)
            if self.update == "ema":
                self._average(codes, residuals, weight, counts)
            if self.hook:
                self._remember(residuals[:, 0], weight, counts)
        return found

    def _average(self, codes, residuals, weight, counts):
        """N <- d N + (1 - d) n, m <- d m + (1 - d) sum of r, X = m / N; codes nearly unused stay."""
        add = lambda z, r: jnp.zeros((self.size, self.width)).at[z].add(r * weight[:, None])  # noqa: E731
        sums = jax.vmap(add, in_axes=1)(codes, residuals[:, :-1])
        self.counts.value = self.decay * self.counts.value + (1 - self.decay) * counts
        self.sums.value = self.decay * self.sums.value + (1 - self.decay) * sums
        n = self.counts.value[..., None]
        mean = self.sums.value / jnp.maximum(n, 1e-3)
        self.books.value = jnp.where(n > 1e-3, mean, self.books.value)

    def _remember(self, x, weight, counts):
        """Writes the vectors that count into the bank, over the oldest, and how long codes went unused."""
        self.unused.value = jnp.where(counts > 0, 0, self.unused.value + 1)
        x, weight = x[: self.bank], weight[: self.bank]
        rank = jnp.cumsum(weight > 0) - 1
        at = jnp.where(weight > 0, (self.seen.value + rank) % self.bank, self.bank)
        self.recent.value = self.recent.value.at[at].set(x, mode="drop")
        more = (weight > 0).sum(dtype=jnp.int32)
        self.seen.value = jnp.minimum(self.seen.value + more, 2**30 - 2**30 % self.bank)


def after_step(quantizer: ResidualQuantizer, path: Sequence[str]) -> Callable | None:
    """The hook (trees, rng) -> trees of a quantizer that lies at `path` in the parameters; None when it needs none.

    Fits the codebooks to the first `bank` vectors (`kmeans`), and from then on, or from the start, gives each code that was
    not used for `reset_after` steps the residual of a random recent vector at its level.
    """
    if not quantizer.hook:
        return None

    def hook(trees, rng):
        state = _at(trees.state[STATE], path)
        dense = _at(trees.dense, path) if quantizer.update == "gradient" else {}
        books = (dense if quantizer.update == "gradient" else state)["codebooks"]
        new, state = maintain(quantizer, books, state, rng)
        if quantizer.update == "gradient":
            trees = trees.replace(dense=_put(trees.dense, path, {**dense, "codebooks": new}))
        else:
            state = {**state, "codebooks": new}
        codes = _put(trees.state[STATE], path, state)
        return trees.replace(state={**trees.state, STATE: codes})

    return hook


def maintain(
    q: ResidualQuantizer, books: jax.Array, state: Mapping[str, jax.Array], rng: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Codebooks [L, K, D] and state after one step's k-means or resets."""
    old, state, keys = books, dict(state), jax.random.split(rng)
    recent, unused = state["recent"], state["unused"]
    if q.kmeans:
        now = (state["seen"] >= q.bank) & ~state["fitted"]
        fit = lambda: residual_kmeans(keys[0], recent, q.levels, q.size).astype(books.dtype)  # noqa: E731
        books = jax.lax.cond(now, fit, lambda: books)
        state["fitted"] = state["fitted"] | now
        unused = jnp.where(now, 0, unused)
    if q.reset_after:
        ready = state["fitted"] if q.kmeans else state["seen"] > 0
        dead = ready & (unused >= q.reset_after)
        known = jnp.clip(state["seen"], 1, q.bank)
        draw = recent[jax.random.randint(keys[1], dead.shape, 0, known)]  # [L, K, D]
        levels = [quantize(draw[i], books).residuals[:, i] for i in range(q.levels)]
        books = jnp.where(dead[..., None], jnp.stack(levels).astype(books.dtype), books)
        unused = jnp.where(dead, 0, unused)
    state["unused"] = unused
    if q.update == "ema":  # a code that moved begins with the weight of one vector
        moved = (books != old).any(-1)
        state["sums"] = jnp.where(moved[..., None], books, state["sums"])
        state["counts"] = jnp.where(moved, 1.0, state["counts"])
    return books, state


def _at(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: Mapping[str, Any], path: Sequence[str], value: Any) -> Any:
    """The tree with `value` at `path`."""
    if not path:
        return value
    return {**tree, path[0]: _put(tree[path[0]], path[1:], value)}
