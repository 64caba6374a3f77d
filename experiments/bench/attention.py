"""Local + dilated attention against dense forms: time, compiled temporaries, agreement.

    python -m experiments.bench.attention [--n=1000 --local=50 --dilation=10 --batch=8 --heads=2 --width=40]

Dense forms are masked softmax as written, [B, H, n, n] at once, and the same mapped over examples, or over examples and
heads, with and without recomputing in the backward pass: the best of those is what the kernel has to beat, by itself and
in a whole Unified Attention Block. Kinds take turns within each round, so a busy neighbour disturbs all alike; medians over
rounds, with the quartiles of the ratios.
"""

from collections.abc import Callable, Sequence
import json
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from recjax import command
from recjax.layers.attention import Pairs, attend
from recjax.layers.local_dilated import LocalDilated
from recjax.models.parts.suan_block import UnifiedAttentionBlock

Call = Callable[..., jax.Array]


def mapped(axes: int, checkpoint: bool) -> Call:
    """Masked dense attention, one example (axes=1) or one head of one (axes=2) at a time."""

    def one(q, k, v, mask, bias):
        lead = (None,) * axes
        out = attend(q[lead], k[lead], v[lead], mask[lead], bias[lead])
        return out.reshape(q.shape)

    one = jax.checkpoint(one) if checkpoint else one

    def call(q, k, v, pairs):
        b, h, n, _ = q.shape
        mask, bias = (jnp.broadcast_to(x, (b, h, n, n)) for x in pairs[0])
        args: tuple = (q, k, v, mask, bias)
        if axes == 2:
            args = tuple(x.reshape(b * h, *x.shape[2:]) for x in args)
        return jax.lax.map(lambda a: one(*a), args).reshape(q.shape)

    return call


def kinds(pattern: LocalDilated) -> dict[str, tuple[LocalDilated, Call]]:
    """Name -> (pattern whose layout of pairs it takes, call)."""
    dense = LocalDilated(pattern.local, pattern.dilation, pattern.anchor, sparse=False)
    out = {"sparse": (pattern, pattern.attend), "as written": (dense, dense.attend)}
    for axes, what in ((1, "examples"), (2, "heads")):
        for checkpoint in (False, True):
            name = f"mapped over {what}" + ", checkpointed" * checkpoint
            out[name] = (dense, mapped(axes, checkpoint))
    return out


def inputs(
    pattern: LocalDilated, q: jax.Array | np.ndarray, lengths: np.ndarray, bias: np.ndarray
) -> tuple[Pairs, ...]:
    """Pairs of a pattern: left padding down to `lengths` [B], biases [B, 1, n, n]."""
    n = q.shape[2]
    valid, out = np.arange(n) >= n - lengths[:, None], []
    for keys, allowed in pattern.layouts(n):
        mask = ((valid[:, None] if keys is None else valid[:, keys]) & allowed)[:, None]
        own = bias if keys is None else np.take_along_axis(bias, keys[None, None], -1)
        out.append(Pairs(jnp.asarray(mask), jnp.asarray(own)))
    return tuple(out)


def forward_and_backward(call: Call) -> Call:
    def loss(q, k, v, masks, biases):
        pairs = tuple(Pairs(m, b) for m, b in zip(masks, biases, strict=True))
        return jnp.sin(call(q, k, v, pairs)).sum()

    return jax.grad(loss, argnums=(0, 1, 2, 4))


def compiled(
    call: Call, backward: bool, q: jax.Array, k: jax.Array, v: jax.Array, pairs: Sequence[Pairs]
) -> tuple[Any, tuple]:
    """(program, its arguments)."""
    if backward:
        args = (q, k, v, tuple(p.mask for p in pairs), tuple(p.bias for p in pairs))
        return jax.jit(forward_and_backward(call)).lower(*args).compile(), args
    return jax.jit(call).lower(q, k, v, pairs).compile(), (q, k, v, pairs)


def rounds(programs: dict[str, tuple[Call, tuple]], n: int) -> dict[str, np.ndarray]:
    """Milliseconds of each program, [n]; the programs take turns."""
    for program, args in programs.values():
        jax.block_until_ready(program(*args))
    out: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(n):
        for name, (program, args) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*args))
            out[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(x) for name, x in out.items()}


def compare(times: dict[str, np.ndarray], new: str, *, best_of: list[str]) -> dict[str, Any]:
    """How many times faster `new` is than the fastest of some others: median and quartiles over rounds."""
    best = min(best_of, key=lambda name: float(np.median(times[name])))
    low, middle, high = np.percentile(times[best] / times[new], [25, 50, 75])
    ratio = {"against": best, "times_faster": round(float(middle), 2)}
    return ratio | {"quartiles": [round(float(low), 2), round(float(high), 2)]}


def agreement(
    pattern: LocalDilated, q: jax.Array, k: jax.Array, v: jax.Array,
    lengths: np.ndarray, bias: np.ndarray,
) -> float:  # fmt: skip
    """Largest difference between sparse and dense, of values and of gradients relative to their largest."""
    dense = LocalDilated(pattern.local, pattern.dilation, pattern.anchor, sparse=False)
    outs = []
    for p in (pattern, dense):
        pairs = inputs(p, q, lengths, bias)
        args = (q, k, v, tuple(x.mask for x in pairs), tuple(x.bias for x in pairs))
        value, grads = (
            jax.jit(p.attend)(q, k, v, pairs),
            jax.jit(forward_and_backward(p.attend))(*args),
        )
        outs.append([value, *grads[:3]])
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(*outs, strict=True))


def measure(
    pattern: LocalDilated, n: int, batch: int, heads: int, width: int, repeats: int
) -> dict:
    """Everything the module docstring says."""
    rng = np.random.default_rng(0)
    shape = (batch, heads, n, width // heads)
    q, k, v = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3))
    bias = rng.normal(size=(batch, 1, n, n)).astype(np.float32)
    full = np.full(batch, n)
    ragged = np.linspace(1, n, batch).astype(int)
    out: dict[str, Any] = {
        "agreement": agreement(pattern, q, k, v, full, bias),
        "agreement_padded": agreement(pattern, q, k, v, ragged, bias),
        "agreement_without_bias": agreement(pattern, q, k, v, ragged, 0 * bias),
    }
    for backward in (False, True):
        programs: dict[str, tuple[Call, tuple]] = {}
        temporaries = {}
        for name, (p, call) in kinds(pattern).items():
            program, args = compiled(call, backward, q, k, v, inputs(p, q, full, bias))
            programs[name] = program, args
            temporaries[name] = round(program.memory_analysis().temp_size_in_bytes / 2**20, 2)
        times = rounds(programs, repeats)
        dense = [name for name in times if name.startswith("mapped")]
        out["forward and backward" if backward else "forward"] = {
            "ms": {name: round(float(np.median(x)), 2) for name, x in times.items()},
            "temporaries_mib": temporaries,
            "best dense": compare(times, "sparse", best_of=[*dense, "as written"]),
            "as written": compare(times, "sparse", best_of=["as written"]),
        }
    out["block"] = block(pattern, n, batch, heads, width, bias, repeats)
    return out


class _Mapped(LocalDilated):
    """The dense layout, one head of one example at a time, recomputed in the backward pass."""

    def attend(self, q, k, v, pairs):
        return mapped(2, True)(q, k, v, pairs)


def block(
    pattern: LocalDilated,
    n: int,
    batch: int,
    heads: int,
    width: int,
    bias: np.ndarray,
    repeats: int,
) -> dict[str, Any]:
    """A whole block over n behaviours and one candidate, forward and backward."""
    rng = np.random.default_rng(1)
    x, c, profile = (
        rng.normal(size=(batch, *s)).astype(np.float32) for s in ((n, width), (1, width), (6, 8))
    )
    valid, same = np.ones((batch, n), bool), (pattern.local, pattern.dilation, pattern.anchor)
    kinds_of_block = {
        "sparse": pattern,
        "as written": LocalDilated(*same, sparse=False),
        "mapped over heads, checkpointed": _Mapped(*same, sparse=False),
    }
    seen = jnp.ones((batch, 1, 1, len(pattern.keys(n)) + 1), bool)
    programs: dict[str, tuple[Call, tuple]] = {}
    for name, p in kinds_of_block.items():
        module = UnifiedAttentionBlock(width, heads, p, gate_pool="causal")
        pairs = inputs(p, np.empty((batch, heads, n, 1)), np.full(batch, n), bias)
        rest = (c, profile, pairs, Pairs(seen, None), valid)
        params = jax.jit(module.init)(jax.random.key(0), x, *rest)

        def loss(params, x, rest, module=module):
            return sum(jnp.sin(out).sum() for out in module.apply(params, x, *rest))

        args = (params, x, rest)
        programs[name] = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*args).compile(), args
    times = rounds(programs, repeats)
    return {
        "ms": {name: round(float(np.median(t)), 2) for name, t in times.items()},
        "best dense": compare(times, "sparse", best_of=list(times)[1:]),
    }


def main(_) -> None:
    pattern = LocalDilated(_LOCAL.value, _DILATION.value)
    result = measure(pattern, _N.value, _BATCH.value, _HEADS.value, _WIDTH.value, _REPEATS.value)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    _N = flags.DEFINE_integer("n", 1000, "behaviours")
    _LOCAL = flags.DEFINE_integer("local", 50, "k")
    _DILATION = flags.DEFINE_integer("dilation", 10, "r")
    _BATCH = flags.DEFINE_integer("batch", 8, "examples")
    _HEADS = flags.DEFINE_integer("heads", 2, "H")
    _WIDTH = flags.DEFINE_integer("width", 40, "D")
    _REPEATS = flags.DEFINE_integer("repeats", 21, "rounds")
    command.run(main)
