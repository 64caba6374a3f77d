"""The planted world of HyperPAVE: behaviour lists carry what titles only hint at.

    styles    4 random unit vectors in 64 dimensions
    aspects   40; aspect j has style j mod 4 and text style + 0.3 N(0, I / 64); the last 8 are never trained
    products  600 of a random style, text 0.15 style + N(0, I / 64), linked to 4 random aspects of their style
    lists     each product's also-view list: 10 products, each of its own style with probability 0.9

So a product's text is nearly noise, and the mean over its list is not. Measured without any training, mean
(standard deviation) over seeds 0-4 of the mAP on the 8 unseen aspects, products that have one (`oracle`, by
`python -m recjax.data.worlds.hyperpave`): see ORACLE.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from recjax.data.sets.product_catalog import Catalog, hold_out
from recjax.data.sets.product_graph import Data, Options
from recjax.data.sets.text import unit

ORACLE = {
    "text": (0.584, 0.010),
    "smoothed": (0.795, 0.008),
    "shuffled": (0.501, 0.026),
    "text and shuffled": (0.584, 0.010),
}


@dataclasses.dataclass(frozen=True)
class World:
    """Sizes and strengths; the same values make the same world.

    Attributes:
      products, aspects, unseen, styles, dim: Counts; `unseen` are the last aspects.
      links: Aspects of a product.
      listed: Products of a list.
      same: Probability that a listed product has the owner's style.
      hint: Share of the style in a product's text.
      noise: Of aspect texts.
      shuffled_labels: Links at random, whatever the style: the null.
      seed: Of everything.
    """

    products: int = 600
    aspects: int = 40
    unseen: int = 8
    styles: int = 4
    dim: int = 64
    links: int = 4
    listed: int = 10
    same: float = 0.9
    hint: float = 0.15
    noise: float = 0.3
    shuffled_labels: bool = False
    seed: int = 0


def catalog(world: World) -> Catalog:
    """The world as a catalog of one category."""
    rng = np.random.default_rng(world.seed)
    n, dim = world.products, world.dim
    styles = unit(rng.normal(size=(world.styles, dim)))
    aspect_style = np.arange(world.aspects) % world.styles
    aspect = styles[aspect_style] + world.noise * rng.normal(size=(world.aspects, dim)) / dim**0.5
    style = rng.integers(world.styles, size=n)
    text = world.hint * styles[style] + rng.normal(size=(n, dim)) / dim**0.5
    links = []
    for p in range(n):
        own = np.flatnonzero(aspect_style == style[p])
        pool = np.arange(world.aspects) if world.shuffled_labels else own
        links += [(p, a) for a in rng.choice(pool, world.links, replace=False)]
    links = np.array(links)
    chosen = np.arange(world.aspects) >= world.aspects - world.unseen
    return Catalog(
        x={
            "product": text.astype(np.float32),
            "aspect": aspect.astype(np.float32),
            "category": np.zeros((1, dim), np.float32),
        },
        names={
            "product": [f"product {i}" for i in range(n)],
            "aspect": [f"style: {i}" for i in range(world.aspects)],
            "category": ["all"],
            "attribute": ["style"],
        },
        category=np.zeros(n, np.int64),
        aspect_category=np.zeros(world.aspects, np.int64),
        attribute=np.zeros(world.aspects, np.int64),
        links=links,
        split=hold_out(links, chosen, n, rng),
        chosen=chosen,
        lists={"view": _lists(world, style, rng)},
    )


def _lists(world: World, style: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(product, listed product) [products * listed, 2]."""
    pairs = []
    for p in range(world.products):
        own = np.flatnonzero(style == style[p])
        same = rng.random(world.listed) < world.same
        others = rng.integers(world.products, size=world.listed)
        pairs += [(p, q) for q in np.where(same, rng.choice(own, world.listed), others)]
    return np.array(pairs)


def open_data(config: Mapping[str, Any]) -> Data:
    """Data of `World` and `Options` fields in `data.prepare`."""
    given = dict(config.get("prepare", {}))
    asked = ("supervised", "supervise", "negatives", "isolate")
    ask = {k: given.pop(k) for k in asked if k in given}
    ask["shuffle"] = given.pop("shuffle", False)
    world = World(**given)
    identity = {"name": "synthetic.hyperpave", "config": {**dataclasses.asdict(world), **ask}}
    return Data(catalog(world), Options(seed=world.seed, **ask), identity)


# ---- the oracle: no training --------------------------------------------------------------------------------


def oracle(world: World) -> dict[str, float]:
    """mAP on the unseen aspects of text cosine, of one row-normalised convolution, and of shuffled ones."""
    c = catalog(world)
    text, unseen = c.x["product"], np.flatnonzero(c.chosen)
    truth = np.zeros((len(text), len(c.chosen)), bool)
    truth[c.links[:, 0], c.links[:, 1]] = True
    smoothed = smooth(text, c.lists["view"])
    rng = np.random.default_rng(world.seed + 1)
    shuffled = smooth(text, c.lists["view"], rng.permutation(len(text)))
    vectors = {
        "text": text,
        "smoothed": smoothed,
        "shuffled": shuffled,
        "text and shuffled": 0.5 * text + 0.5 * shuffled,
    }
    return {k: _map(v, c.x["aspect"][unseen], truth[:, unseen]) for k, v in vectors.items()}


def smooth(text: np.ndarray, pairs: np.ndarray, moved: np.ndarray | None = None) -> np.ndarray:
    """D^-1 H B^-1 H^T text over hyperedges of a product with its list, dense; for the oracle only.

    With `moved` product i has the memberships of product moved[i].
    """
    n = len(text)
    h = np.zeros((n, n))
    h[pairs[:, 1], pairs[:, 0]] = 1.0
    h[np.arange(n), np.arange(n)] = 1.0
    if moved is not None:
        h = h[moved]
    edge = (h.T @ text) / h.sum(0)[:, None]
    return (h @ edge) / h.sum(1)[:, None]


def _map(products: np.ndarray, aspects: np.ndarray, truth: np.ndarray) -> float:
    scores = unit(products) @ unit(aspects).T
    some = truth.any(1)
    order = np.argsort(-scores[some], axis=1)
    hits = np.take_along_axis(truth[some], order, axis=1)
    precision = np.cumsum(hits, 1) / np.arange(1, hits.shape[1] + 1)
    return float(((precision * hits).sum(1) / hits.sum(1)).mean())


def main() -> None:
    runs = [oracle(World(seed=seed)) for seed in range(5)]
    for name in runs[0]:
        values = np.array([r[name] for r in runs])
        print(f"{name:20s} {values.mean():.3f} +- {values.std(ddof=1):.3f}")


if __name__ == "__main__":
    main()
