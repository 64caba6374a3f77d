"""Message passing over sparse graphs and hypergraphs: segment sums, cost linear in the incidences.

An incidence list is two integer columns (source, target); padding entries point one past the end of both
sides and are dropped, so they change nothing, bit for bit.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

NORMALISATIONS = ("row", "symmetric")


class Incidence(NamedTuple):
    """Hyperedges as (node, hyperedge) entries.

    Attributes:
      node: int32 [M], N on padding entries.
      edge: int32 [M], E on padding entries.
      writes: float32 [M]. 0: the node reads this hyperedge and adds nothing to it.
      weight: float32 [E], W of the hyperedges.
    """

    node: jax.Array
    edge: jax.Array
    writes: jax.Array
    weight: jax.Array


class Edges(NamedTuple):
    """Directed edges: source and target int32 [M]; padding entries hold the number of nodes of their side."""

    source: jax.Array
    target: jax.Array


def take(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[index], zeros where the index is past the end: [N, d], [M] -> [M, d]."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def segment_mean(
    x: jax.Array, segment: jax.Array, segments: int, weight: jax.Array | None = None
) -> jax.Array:
    """Weighted mean of the rows of each segment; zeros where nothing falls.

    Args:
      x: [M, d].
      segment: int32 [M]; `segments` or more is dropped.
      segments: Their number S.
      weight: [M]; None: ones.

    Returns:
      [S, d].
    """
    weight = jnp.ones(x.shape[0], x.dtype) if weight is None else weight
    total = jax.ops.segment_sum(weight[:, None] * x, segment, segments)
    count = jax.ops.segment_sum(weight, segment, segments)
    return total / jnp.where(count > 0, count, 1.0)[:, None]


def neighbour_mean(x: jax.Array, edges: Edges, targets: int) -> jax.Array:
    """Mean of x [N, d] over each target's sources, [targets, d]; zeros for a target without any."""
    return segment_mean(take(x, edges.source), edges.target, targets)


def edge_means(x: jax.Array, incidence: Incidence) -> jax.Array:
    """B^-1 H^T x: the mean of the nodes that write to each hyperedge, [N, d] -> [E, d]."""
    return segment_mean(
        take(x, incidence.node), incidence.edge, len(incidence.weight), incidence.writes
    )


def node_means(edge: jax.Array, incidence: Incidence, nodes: int) -> jax.Array:
    """D^-1 H W edge: each node's weighted mean of its hyperedges, [E, d] -> [nodes, d]."""
    weight = take(incidence.weight, incidence.edge)
    return segment_mean(take(edge, incidence.edge), incidence.node, nodes, weight)


def degrees(incidence: Incidence, nodes: int) -> jax.Array:
    """D: total weight of each node's hyperedges, [nodes]."""
    return jax.ops.segment_sum(take(incidence.weight, incidence.edge), incidence.node, nodes)


class HypergraphConv(nn.Module):
    """D^-1 H W B^-1 H^T X Theta + b, or D^-1/2 H W B^-1 H^T D^-1/2 X Theta + b.

    S. Bai et al., "Hypergraph Convolution and Hypergraph Attention", 2019, arXiv 1901.08150. Node to hyperedge
    mean, hyperedge to node mean; the row-normalised propagation has rows that sum to one.

    Attributes:
      width: Of the output.
      normalise: "row" or "symmetric".
      identity: Theta starts as the identity.
      attention: With "row": hyperedges of a node are weighted by
        softmax_e(LeakyReLU(a^T [x_v Theta ; mean of e])) in place of W / D.
    """

    width: int
    normalise: str = "row"
    attention: bool = False
    identity: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        init = scaled_identity() if self.identity else nn.initializers.glorot_uniform()
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.theta = nn.Dense(self.width, use_bias=False, kernel_init=init, **types)
        self.bias = self.param("bias", nn.initializers.zeros, (self.width,), self.param_dtype)
        if self.attention:
            shape = (2 * self.width,)
            self.a = self.param("a", nn.initializers.normal(0.1), shape, self.param_dtype)

    def __call__(self, x: jax.Array, incidence: Incidence) -> jax.Array:
        """x [N, d] -> [N, width]."""
        return self.read(x, self.edges(x, incidence), incidence)

    def edges(self, x: jax.Array, incidence: Incidence) -> jax.Array:
        """What each hyperedge holds, [E, width]."""
        x = self.theta(x)
        if self.normalise == "symmetric":
            x = x * _inverse_root(degrees(incidence, len(x)))[:, None]
        return edge_means(x, incidence)

    def read(self, x: jax.Array, edge: jax.Array, incidence: Incidence) -> jax.Array:
        """What each node makes of its hyperedges, [N, width]."""
        nodes = len(x)
        if self.normalise == "symmetric":
            degree = degrees(incidence, nodes)
            out = node_means(edge, incidence, nodes) * (degree * _inverse_root(degree))[:, None]
        elif self.attention:
            out = self._attend(self.theta(x), edge, incidence)
        else:
            out = node_means(edge, incidence, nodes)
        return out + self.bias.astype(out.dtype)

    def alone(self, x: jax.Array) -> jax.Array:
        """The output of nodes that have a hyperedge to themselves, in every variant: x Theta + b."""
        return self.theta(x) + self.bias.astype(self.dtype)

    def _attend(self, x, edge, incidence):
        pair = jnp.concatenate([take(x, incidence.node), take(edge, incidence.edge)], axis=-1)
        score = nn.leaky_relu(pair.astype(jnp.float32) @ self.a)
        top = jax.ops.segment_max(score, incidence.node, len(x))
        weight = jnp.exp(score - take(jax.lax.stop_gradient(top), incidence.node))
        return segment_mean(
            take(edge, incidence.edge), incidence.node, len(x), weight.astype(x.dtype)
        )


def scaled_identity(scale: float = 1.0):
    """Initialiser of kernels [n, m]: `scale` on the diagonal, zeros beside it."""

    def init(rng, shape, dtype=jnp.float32):
        del rng
        rows, columns = shape
        return scale * jnp.eye(rows, columns, dtype=dtype)

    return init


def _inverse_root(degree: jax.Array) -> jax.Array:
    return jnp.where(degree > 0, jax.lax.rsqrt(jnp.maximum(degree, 1e-30)), 0.0)


class HeteroSAGE(nn.Module):
    """h_i = sum over edge types r into i's type of W_r^nbr mean_{j in N_r(i)} x_j + b_r + W_r^self x_i.

    W. Hamilton et al., "Inductive Representation Learning on Large Graphs", NeurIPS 2017, with parameters of
    their own for each edge type.

    Attributes:
      width: Of the output.
      relations: (name, source type, target type) of each edge type.
      identity: Starts as h_i = x_i: W^nbr at zero, W^self at the identity shared out among the edge types.
    """

    width: int
    relations: tuple[tuple[str, str, str], ...]
    identity: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = {}
        for name, _, target in self.relations:
            count = sum(t == target for _, _, t in self.relations)
            own = scaled_identity(1 / count) if self.identity else nn.initializers.lecun_normal()
            other = nn.initializers.zeros if self.identity else nn.initializers.lecun_normal()
            dense[f"{name}_neighbours"] = nn.Dense(self.width, kernel_init=other, **types)
            dense[f"{name}_self"] = nn.Dense(self.width, use_bias=False, kernel_init=own, **types)
        self.maps = dense

    def __call__(
        self, x: Mapping[str, jax.Array], edges: Mapping[str, Edges]
    ) -> dict[str, jax.Array]:
        """Node vectors by type, [N_type, d] -> [N_type, width]."""
        means: dict[str, dict[str, jax.Array]] = {kind: {} for kind in x}
        for name, source, target in self.relations:
            means[target][name] = neighbour_mean(x[source], edges[name], len(x[target]))
        return {kind: self.update(kind, x[kind], means[kind]) for kind in x}

    def update(self, kind: str, x: jax.Array, means: Mapping[str, jax.Array]) -> jax.Array:
        """Nodes of one type [N, d], given the mean [N, d] of their neighbours of each relation into it.

        A relation that `means` lacks has no neighbours: only its self term and bias count.
        """
        out: Any = 0.0
        for name, _, target in self.relations:
            if target == kind:
                mean = means.get(name, jnp.zeros_like(x))
                out += self.maps[f"{name}_neighbours"](mean) + self.maps[f"{name}_self"](x)
        return out
