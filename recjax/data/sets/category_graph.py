"""The graph of one category of products: its nodes, hyperedges and SAGE edges, padded to fixed sizes. NumPy only.

What the arrays mean is in recjax.data.sets.product_graph, which makes batches of them.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import numpy as np

from recjax.data.sets.product_catalog import TRAIN, Catalog, GraphError
from recjax.schema import NUM_RESERVED, OOV

TYPES = ("product", "aspect", "category")
KINDS = ("view", "buy", "pa", "cpa")


@dataclasses.dataclass(frozen=True)
class Slots:
    """Fixed sizes of the graphs of a split: the largest category's, rounded up."""

    products: int
    aspects: int
    links: int
    listed: Mapping[str, int]

    def entries(self, kind: str) -> tuple[int, int]:
        """(incidences, hyperedges) that a kind can have."""
        p, a = self.products, self.aspects
        if kind in ("view", "buy"):
            return self.listed[kind] + 2 * p, p
        return (self.links + p + a, p + a) if kind == "pa" else (p + a + 1, a + 1)


def incidences(
    kind: str, products: np.ndarray, listed: np.ndarray, links: np.ndarray, aspects: int, new
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(node, edge, writes) of one kind's hyperedges of one category, without singletons.

    Args:
      kind: Of `KINDS`.
      products: Local numbers 0 .. P - 1.
      listed: [M, 2] local (product, listed product).
      links: [K, 2] local (product, aspect) that carry messages.
      aspects: A.
      new: bool [P], products that read only.
    """
    p = len(products)
    if kind in ("view", "buy"):
        owners = np.unique(listed[listed[:, 0] != listed[:, 1], 0])  # more than one member
        pairs = np.unique(np.concatenate([np.stack([owners, owners], 1), listed]), axis=0)
        pairs = pairs[np.isin(pairs[:, 0], owners)]
        edge = np.searchsorted(owners, pairs[:, 0])
        return pairs[:, 1], edge, np.ones(len(edge))
    if kind == "pa":
        owners = np.unique(links[:, 0])
        node = np.concatenate([owners, p + links[:, 1]])
        edge = np.searchsorted(owners, np.concatenate([owners, links[:, 0]]))
        return node, edge, np.ones(len(node))
    node = np.concatenate([products, p + np.unique(links[:, 1]), [p + aspects]])
    writes = np.ones(len(node))
    writes[:p] = ~new
    return node, np.zeros(len(node), np.int64), writes


def with_singletons(
    node: np.ndarray, edge: np.ndarray, writes: np.ndarray, nodes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gives every one of `nodes` that no hyperedge covers a hyperedge to itself."""
    alone = np.setdiff1d(nodes, node)
    first = int(edge.max(initial=-1)) + 1
    return (
        np.concatenate([node, alone]),
        np.concatenate([edge, first + np.arange(len(alone))]),
        np.concatenate([writes, np.ones(len(alone))]),
    )


@dataclasses.dataclass(frozen=True)
class Category:
    """One category's part of a catalog, restricted to some products; numbers are local.

    Attributes:
      catalog: Whole.
      number: Of the category.
      products, aspects: Global numbers of its nodes.
      shuffle: Seed of a permutation of the nodes' memberships, None for the truth.
    """

    catalog: Catalog
    number: int
    products: np.ndarray
    aspects: np.ndarray
    shuffle: int | None = None

    @functools.cached_property
    def new(self) -> np.ndarray:
        return self.catalog.split[self.products] != TRAIN

    @functools.cached_property
    def links(self) -> np.ndarray:
        """Training links, local [K, 2]."""
        c = self.catalog
        return self.local(
            c.links[c.trained & (c.aspect_category[c.links[:, 1]] == self.number)], "aspect"
        )

    def local(self, pairs: np.ndarray, second: str) -> np.ndarray:
        """Pairs of global numbers as local ones; those not in this graph are left out."""
        to = self.aspects if second == "aspect" else self.products
        inside = np.isin(pairs[:, 0], self.products) & np.isin(pairs[:, 1], to)
        pairs = pairs[inside]
        return np.stack(
            [np.searchsorted(self.products, pairs[:, 0]), np.searchsorted(to, pairs[:, 1])], 1
        )

    def graph(self, links: np.ndarray, slots: Slots) -> dict[str, Any]:
        """Leaves x, id, attribute, hyper and sage of a batch in which `links` [K, 2] carry messages."""
        c = self.catalog
        chosen = {
            "product": self.products,
            "aspect": self.aspects,
            "category": np.array([self.number]),
        }
        size = {"product": slots.products, "aspect": slots.aspects, "category": 1}
        named = np.zeros(len(c.names["attribute"]), bool)
        named[c.attribute[c.links[c.trained, 1]]] = True
        attribute = np.where(named[c.attribute], c.attribute + NUM_RESERVED, OOV)[self.aspects]
        return {
            "x": {t: padded(c.x[t][n], size[t]) for t, n in chosen.items()},
            "id": {
                t: padded((n + NUM_RESERVED).astype(np.int32), size[t]) for t, n in chosen.items()
            },
            "attribute": padded(attribute.astype(np.int32), slots.aspects),
            "hyper": {kind: self._hyper(kind, links, slots) for kind in KINDS},
            "sage": self._sage(links, slots),
        }

    def _hyper(self, kind: str, links: np.ndarray, slots: Slots) -> dict[str, np.ndarray]:
        p, a = len(self.products), len(self.aspects)
        listed = self.local(self.catalog.lists.get(kind, np.zeros((0, 2), np.int64)), "product")
        given = incidences(kind, np.arange(p), listed, links, a, self.new)
        if self.shuffle is not None:
            # New products change places with each other alone, so that they still read and do not write.
            rng = np.random.default_rng(self.shuffle)
            moved = np.concatenate([np.arange(p), p + rng.permutation(a), [p + a]])
            for alike in (np.flatnonzero(self.new), np.flatnonzero(~self.new)):
                moved[alike] = rng.permutation(alike)
            given = moved[given[0]], given[1], given[2]
        nodes = {"view": np.arange(p), "buy": np.arange(p), "pa": np.arange(p + a)}
        node, edge, writes = with_singletons(*given, nodes.get(kind, np.arange(p + a + 1)))
        # Fillers lie between the types: products first, then aspects, then the category.
        node = node + (node >= p) * (slots.products - p) + (node >= p + a) * (slots.aspects - a)
        entries, edges = slots.entries(kind)
        past = slots.products + slots.aspects + 1
        weight = np.zeros(edges, np.float32)
        weight[: int(edge.max(initial=-1)) + 1] = 1.0
        return {
            "node": padded(node.astype(np.int32), entries, past),
            "edge": padded(edge.astype(np.int32), entries, edges),
            "writes": padded(writes.astype(np.float32), entries),
            "weight": weight,
        }

    def _sage(self, links: np.ndarray, slots: Slots) -> dict[str, dict[str, np.ndarray]]:
        every, known = np.arange(len(self.products)), np.flatnonzero(~self.new)
        past = {"product": slots.products, "aspect": slots.aspects, "category": 1}
        pairs = {
            ("product", "category"): (known, 0 * known),
            ("category", "product"): (0 * every, every),
            ("product", "aspect"): (links[:, 0], links[:, 1]),
            ("aspect", "product"): (links[:, 1], links[:, 0]),
        }
        out = {}
        for (source, target), (i, j) in pairs.items():
            size = slots.links if "aspect" in (source, target) else slots.products
            out[f"{source}_{target}"] = {
                "source": padded(i.astype(np.int32), size, past[source]),
                "target": padded(j.astype(np.int32), size, past[target]),
            }
        return out


def padded(x: np.ndarray, size: int, value: float = 0) -> np.ndarray:
    """`x` followed by `value` up to `size` rows."""
    if len(x) > size:
        raise GraphError(f"{len(x)} rows do not fit {size} slots")
    out = np.full((size, *x.shape[1:]), value, x.dtype)
    out[: len(x)] = x
    return out
