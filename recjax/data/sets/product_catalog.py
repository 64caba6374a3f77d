"""Products with aspects, their text vectors and a zero-shot split: what `recjax.data.sets.product_graph` makes graphs of. NumPy only.

An *aspect* is an attribute with its value within a category ("color: red" of Shirts).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools

import numpy as np

from recjax.data.sets import attribute_values
from recjax.data.sets import text as texts

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


class GraphError(ValueError):
    """A graph cannot be built; the message names the option and the remedy."""


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Products with aspects, vectors and a split.

    Attributes:
      x: Text vectors {type: float32 [N_type, F]}.
      names: {type: values}, and "attribute".
      category: int [P], of each product.
      aspect_category: int [A].
      attribute: int [A], index into names["attribute"].
      links: int [K, 2], (product, aspect).
      split: int [P], of `SPLITS`.
      chosen: bool [A], aspects held out on purpose.
      lists: {"view" | "buy": int [M, 2], (product, listed product)}.
    """

    x: Mapping[str, np.ndarray]
    names: Mapping[str, Sequence[str]]
    category: np.ndarray
    aspect_category: np.ndarray
    attribute: np.ndarray
    links: np.ndarray
    split: np.ndarray
    chosen: np.ndarray
    lists: Mapping[str, np.ndarray]

    def __post_init__(self):
        if self.chosen[self.links[self.trained, 1]].any():
            raise GraphError("a held-out aspect has a training link: the split leaks")

    @functools.cached_property
    def trained(self) -> np.ndarray:
        """Training links, bool [K]."""
        return self.split[self.links[:, 0]] == TRAIN

    @functools.cached_property
    def unseen(self) -> np.ndarray:
        """[A]: 0 has a training link, 1 held out on purpose, 2 only held-out products have it."""
        seen = np.bincount(self.links[self.trained, 1], minlength=len(self.attribute)) > 0
        return np.where(seen, 0, np.where(self.chosen, 1, 2))


# ---- the split ----------------------------------------------------------------------------------------------


def disjoint_split(
    links: np.ndarray,
    aspect_category: np.ndarray,
    products: int,
    *,
    share: float = 0.2,
    least: int = 3,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """A zero-shot split: chosen aspects, and every product that has one, never train.

    In each category a `share` of the aspects with `least` or more products is chosen; the products linked to
    any go to validation and test, half and half, with all their links.

    Returns:
      split int [P], chosen bool [A].
    """
    rng = np.random.default_rng(seed)
    common = np.bincount(links[:, 1], minlength=len(aspect_category)) >= least
    chosen = np.zeros(len(aspect_category), bool)
    for c in np.unique(aspect_category):
        own = np.flatnonzero(common & (aspect_category == c))
        take = int(round(share * len(own)))
        chosen[rng.permutation(own)[:take]] = True
    return hold_out(links, chosen, products, rng), chosen


def hold_out(
    links: np.ndarray, chosen: np.ndarray, products: int, rng: np.random.Generator
) -> np.ndarray:
    """Split of the products [P], those linked to a chosen aspect half in validation, half in test."""
    split = np.full(products, TRAIN)
    held = rng.permutation(np.unique(links[chosen[links[:, 1]], 0]))
    split[held] = TEST
    split[held[: len(held) // 2]] = VALIDATION
    return split


# ---- from products ------------------------------------------------------------------------------------------


def build(
    products: Sequence[attribute_values.Product],
    *,
    text: str = "wordllama",
    split: str = "disjoint",
    unseen: float = 0.2,
    seed: int = 0,
    limit: int = 0,
) -> Catalog:
    """A catalog of products read from files.

    Args:
      products: From `attribute_values.read`.
      text: Encoder (recjax.data.sets.text).
      split: "disjoint" (`disjoint_split`), or "published": the publisher's test file, a tenth of the rest
        validates, no aspect is chosen.
      unseen: Share of the aspects that "disjoint" chooses.
      seed: Of the split.
      limit: Products per category, 0 for all.
    """
    if split not in ("disjoint", "published"):
        raise GraphError(f"data.prepare.split={split!r} is unknown; use disjoint or published")
    products = [p for p in _limited(products, limit) if p.values]
    categories = sorted({p.category for p in products})
    aspects = sorted({(p.category, *v) for p in products for v in p.values})
    attributes = sorted({a for _, a, _ in aspects})
    of_category = {c: i for i, c in enumerate(categories)}
    of_aspect = {a: i for i, a in enumerate(aspects)}
    of_attribute = {a: i for i, a in enumerate(attributes)}
    links = np.array(
        [[i, of_aspect[p.category, *v]] for i, p in enumerate(products) for v in p.values]
    )
    aspect_category = np.array([of_category[c] for c, _, _ in aspects])
    if split == "disjoint":
        parts, chosen = disjoint_split(
            links, aspect_category, len(products), share=unseen, seed=seed
        )
    else:
        parts, chosen = _published(products, seed), np.zeros(len(aspects), bool)
    trained = links[parts[links[:, 0]] == TRAIN, 1]
    encode = texts.encoder(text)
    described = [_describe(c, [aspects[a] for a in trained]) for c in categories]
    x = {
        "product": encode([p.text for p in products]),
        "aspect": encode([f"{a} is {v}" for _, a, v in aspects]),
        "category": encode(described),
    }
    names = {
        "product": [p.key for p in products],
        "aspect": [f"{c}|{a}: {v}" for c, a, v in aspects],
        "category": categories,
        "attribute": attributes,
    }
    return Catalog(
        x=x,
        names=names,
        category=np.array([of_category[p.category] for p in products]),
        aspect_category=aspect_category,
        attribute=np.array([of_attribute[a] for _, a, _ in aspects]),
        links=links,
        split=parts,
        chosen=chosen,
        lists=_lists(products),
    )


def _limited(products, limit: int) -> list:
    if not limit:
        return list(products)
    counts: dict[str, int] = {}
    out = []
    for p in products:
        counts[p.category] = counts.get(p.category, 0) + 1
        if counts[p.category] <= limit:
            out.append(p)
    return out


def _published(products, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    validates = rng.random(len(products)) < 0.1
    return np.array(
        [
            TEST if p.test else VALIDATION if v else TRAIN
            for p, v in zip(products, validates, strict=True)
        ]
    )


def _describe(category: str, linked: list[tuple[str, str, str]], most: int = 5) -> str:
    """A category's name and the attribute names its training products have most often."""
    counts: dict[str, int] = {}
    for c, attribute, _ in linked:
        if c == category:
            counts[attribute] = counts.get(attribute, 0) + 1
    often = sorted(counts, key=lambda a: (-counts[a], a))[:most]
    return f"{category}: {', '.join(often)}" if often else category


def _lists(products) -> dict[str, np.ndarray]:
    number = {p.key: i for i, p in enumerate(products)}
    out = {}
    for kind in ("view", "buy"):
        pairs = [
            (i, number[k])
            for i, p in enumerate(products)
            for k in getattr(p, f"also_{kind}")
            if k in number
        ]
        out[kind] = np.array(pairs, np.int64).reshape(-1, 2)
    return out
