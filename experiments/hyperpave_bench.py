"""What a hypergraph convolution costs against its incidences.

    python -m experiments.hyperpave_bench

For 10^4 to 10^6 incidences (ten members a hyperedge, five hyperedges a node, d = 128): forward and backward, median of
several runs, and the compiled program's temporary memory; a dense incidence matrix of the same size beside it.
"""

import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from recjax import command
from recjax.layers.hypergraph import HypergraphConv, Incidence
from recjax.runtime.run import set_up


def example(incidences: int, width: int) -> tuple[jax.Array, Incidence]:
    """Random nodes and hyperedges."""
    rng = np.random.default_rng(0)
    nodes, edges = incidences // 5, incidences // 10
    x = jnp.asarray(rng.normal(size=(nodes, width)), jnp.float32)
    node = jnp.asarray(rng.integers(0, nodes, incidences), jnp.int32)
    edge = jnp.asarray(np.repeat(np.arange(edges), 10), jnp.int32)
    return x, Incidence(node, edge, jnp.ones(incidences), jnp.ones(edges))


def compiled(incidences: int, width: int) -> tuple[Any, tuple]:
    """(program, its arguments): gradient of a sum of squares with respect to parameters and nodes."""
    x, incidence = example(incidences, width)
    module = HypergraphConv(width, identity=True)
    params = jax.jit(module.init)(jax.random.key(0), x[:8], example(40, width)[1])

    def loss(params, x, incidence):
        return (jnp.asarray(module.apply(params, x, incidence)) ** 2).sum()

    args = params, x, incidence
    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*args).compile(), args


def main(_) -> None:
    set_up()
    print(
        f"{'incidences':>12s} {'ms':>10s} {'ns each':>9s} {'temporary MiB':>14s} {'dense H MiB':>12s}"
    )
    for n in (10_000, 30_000, 100_000, 300_000, 1_000_000):
        program, args = compiled(n, _WIDTH.value)
        times = []
        for _ in range(7):
            began = time.perf_counter()
            jax.block_until_ready(program(*args))
            times.append(time.perf_counter() - began)
        ms = 1e3 * float(np.median(times[1:]))
        temporary = program.memory_analysis().temp_size_in_bytes / 2**20
        dense = (n // 5) * (n // 10) * 4 / 2**20
        print(f"{n:12d} {ms:10.2f} {1e6 * ms / n:9.1f} {temporary:14.1f} {dense:12.1f}")


if __name__ == "__main__":
    _WIDTH = flags.DEFINE_integer("width", 128, "d")
    command.run(main)
