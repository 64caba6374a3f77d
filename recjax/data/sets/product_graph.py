"""Graphs of products, aspects and categories: the batches that HyperPAVE trains on. NumPy only.

Aspects are those of `recjax.data.sets.product_catalog`. A batch is one category's graph and B products to score against C aspects each:

    x      {type: float32 [N_type, F]}   text vectors of product, aspect and category nodes; zeros fill up
    id     {type: int32 [N_type]}        node numbers, for the control that learns an embedding per node
    attribute int32 [A]                  attribute name of each aspect; OOV for one that training never saw
    hyper  {kind: {node, edge, writes, weight}}   incidences of view, buy, pa, cpa over all nodes, numbered
                                         products first, then aspects, then categories (recjax.layers.hypergraph)
    sage   {edge type: {source, target}} numbered within their type
    product int32 [B], aspect int32 [B, C]        what is scored
    label, weight, valid, group, row     as in recjax.batch; group "unseen": 0 an aspect with a training link,
                                         1 one held out on purpose, 2 one that only held-out products have

Only training links make P-A and C-P-A hyperedges and SAGE edges, and in training only those that the batch
does not ask for. Products of validation and test have a category and, where given, behaviour lists; they read
their category's hyperedge and write to behaviour lists alone.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
from typing import Any

import numpy as np
import polars as pl

from recjax.batch import Batch
from recjax.data.loading.layout import Capacity
from recjax.data.loading.protocol import refuse
from recjax.data.sets import attribute_values, product_catalog
from recjax.data.sets.category_graph import TYPES, Category, Slots, padded
from recjax.data.sets.product_catalog import SPLITS, TRAIN, Catalog, GraphError
from recjax.schema import NUM_RESERVED, Feature, IdSpace, Schema

SUPERVISE = ("links", "products")


@dataclasses.dataclass(frozen=True)
class Options:
    """How training asks.

    Attributes:
      supervised: Share of a category's training links that a step asks for; the others carry messages.
      supervise: "links" draws them one by one; "products" draws products and asks for all their links, so
        that they look as new ones will.
      negatives: Per positive; the first half uniform, the rest of the same attribute. Never a positive.
      isolate: Share of the aspects, drawn anew for each step, whose links carry no messages. At test every unseen
        aspect is alone; without this, one is alone in training only where all its links are asked for, and being
        alone tells that it is somebody's.
      shuffle: Permute the membership of hyperedges: the control.
      seed: Of the draws.
    """

    supervised: float = 0.3
    supervise: str = "links"
    negatives: int = 2
    isolate: float = 0.0
    shuffle: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.supervise not in SUPERVISE:
            raise GraphError(
                f"data.prepare.supervise={self.supervise!r} is unknown; use one of {', '.join(SUPERVISE)}"
            )
        if not 0 < self.supervised < 1 or not 0 <= self.isolate < 1 or self.negatives < 1:
            raise GraphError(
                "data.prepare: supervised and isolate lie between 0 and 1 and negatives is at least 1"
            )


def draw_supervised(
    links: np.ndarray, options: Options, most: int, rng: np.random.Generator
) -> np.ndarray:
    """Which links a step asks for, bool [K]; at most `most`, at least one."""
    want = min(max(1, round(options.supervised * len(links))), most)
    if options.supervise == "links":
        asked = np.zeros(len(links), bool)
        asked[rng.permutation(len(links))[:want]] = True
        return asked
    owners, count = np.unique(links[:, 0], return_counts=True)
    order = rng.permutation(len(owners))
    fits = np.cumsum(count[order]) <= want
    fits[0] = count[order[0]] <= most
    return np.isin(links[:, 0], owners[order[fits]])


def draw_negatives(
    products: np.ndarray,
    aspects: np.ndarray,
    positive: np.ndarray,
    attribute: np.ndarray,
    count: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Aspects [R, count] that the products do not have, and where there was one, bool [R, count].

    Args:
      products, aspects: [R], the positives.
      positive: bool [P, A].
      attribute: [A].
      count: Of negatives; from the middle on of the positive's own attribute, where it has another value.
    """
    allowed = ~positive[products]  # [R, A]
    same = allowed & (attribute[aspects][:, None] == attribute)
    hard = np.where(same.any(1, keepdims=True), same, allowed)
    drawn = []
    for i in range(count):
        keys = rng.random(allowed.shape, np.float32) + (allowed if i < (count + 1) // 2 else hard)
        drawn.append(keys.argmax(1))
    out = np.stack(drawn, 1)
    return out, np.take_along_axis(allowed, out, axis=1)


@dataclasses.dataclass(frozen=True)
class Batches:
    """A resumable sequence: batch i is a function of i alone."""

    data: "Data"
    split: str
    size: int
    start: int
    stop: int
    examples: int
    levels: tuple = ()
    periods: tuple = ()

    def __len__(self) -> int:
        return self.stop

    def __iter__(self) -> Iterator[Batch]:
        make = self.data.training if self.split == "train" else self.data.scoring
        return (make(self.split, i, self.size) for i in range(self.start, self.stop))


class Data:
    """Graphs as the training loop reads them (`recjax.data.loading.protocol.Data`).

    Args:
      catalog: Products, aspects and their split.
      options: Of training batches.
      identity: Says where the catalog came from.
    """

    def __init__(self, catalog: Catalog, options: Options, identity: Mapping[str, Any]):
        self.catalog, self.options, self.identity = catalog, options, dict(identity)
        self.schema = schema(catalog)
        self.splits = {n: int((catalog.split == s).sum()) for n, s in SPLITS.items()}
        shuffle = options.seed if options.shuffle else None
        self.categories = {
            split: [c for c in _categories(catalog, split, shuffle) if _has_rows(c, split)]
            for split in SPLITS
        }
        if not self.categories["train"]:
            raise GraphError(
                "no product is left to train on; lower data.prepare.unseen, or read more products"
            )
        self.slots = {"train": _slots(self.categories["train"])}
        held = [c for s in ("validation", "test") for c in self.categories[s]]
        self.slots |= dict.fromkeys(("validation", "test"), _slots(held) if held else None)

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        start: int = 0,
        examples: int = 0,
        recent: int = 0,
        recent_days: float = 0.0,
        period: tuple[int, int] | None = None,
        online: str = "",
        buckets: Sequence[int] = (),
        epochs: int = 1,
        shards: int = 1,
        workers: int = 0,
        shuffle_seed: int | None = None,
        levels: Sequence[Capacity] = (),
    ) -> Batches:
        """Batches of `batch_size` rows: positives in training (an epoch asks once of each category), else products.

        `shards`, `workers` and `levels` are other sources' concerns: every device sees the whole graph.
        """
        del shards, workers, shuffle_seed, levels
        no_times = dict(recent=recent, recent_days=recent_days, period=period, online=online)
        refuse("a product graph", **no_times, buckets=buckets)
        if split not in self.splits:
            raise GraphError(f"there is no split {split!r}; there are {', '.join(self.splits)}")
        chunks = self.chunks(split, batch_size)
        stop = epochs * len(chunks)
        if examples:
            stop = min(stop, max(1, examples // batch_size))
        return Batches(self, split, batch_size, start, stop, stop * batch_size)

    def chunks(self, split: str, size: int) -> list[tuple[Category, np.ndarray]]:
        """(category, local products asked about) of each batch of an epoch."""
        out = []
        for c in self.categories[split]:
            mine = np.flatnonzero(self.catalog.split[c.products] == SPLITS[split])
            step = len(mine) if split == "train" else size
            out += [(c, mine[at : at + step]) for at in range(0, len(mine), step)]
        return out

    def training(self, split: str, index: int, size: int) -> dict[str, Any]:
        """Training batch number `index`: some links are asked for, the others carry messages."""
        categories = self.categories[split]
        epoch, at = divmod(index, len(categories))
        order = np.random.default_rng((self.options.seed, epoch)).permutation(len(categories))
        c = categories[order[at]]
        rng = np.random.default_rng((self.options.seed, epoch, at, 1))
        asked = draw_supervised(c.links, self.options, size, rng)
        positive = np.zeros((len(c.products), len(c.aspects)), bool)
        positive[c.links[:, 0], c.links[:, 1]] = True
        product, aspect = c.links[asked].T
        names = self.catalog.attribute[c.aspects]
        drawn = product, aspect, positive, names, self.options.negatives, rng
        negatives, real = draw_negatives(*drawn)
        candidates = np.concatenate([aspect[:, None], negatives], 1)
        valid = np.concatenate([np.ones((len(aspect), 1), bool), real], 1)
        labels = np.zeros(candidates.shape, np.float32)
        labels[:, 0] = 1.0
        alone = rng.random(len(c.aspects)) < self.options.isolate
        graph = c.graph(c.links[~asked & ~alone[c.links[:, 1]]], self.slots[split])
        return graph | self._rows(c, product, candidates, labels, valid, size)

    def scoring(self, split: str, index: int, size: int) -> dict[str, Any]:
        """Scoring batch: held-out products against every aspect of their category."""
        c, product = self.chunks(split, size)[index]
        slots = self.slots[split]
        count = len(c.aspects)
        mine = c.local(self.catalog.links, "aspect")
        labels = np.zeros((len(c.products), slots.aspects), np.float32)
        labels[mine[:, 0], mine[:, 1]] = 1.0
        candidates = np.broadcast_to(np.arange(slots.aspects), (len(product), slots.aspects))
        valid = np.broadcast_to(np.arange(slots.aspects) < count, candidates.shape)
        graph = c.graph(c.links, slots)
        return graph | self._rows(c, product, candidates, labels[product], valid, size)

    def standing(self, number: int) -> tuple[Category, dict[str, Any]]:
        """A category's training products with all its aspects, and their graph: what new products are put to."""
        split = "test" if self.categories["test"] else "train"
        found = next((c for c in self.categories[split] if c.number == number), None)
        if found is None:
            names = [self.catalog.names["category"][c.number] for c in self.categories[split]]
            raise GraphError(f"there is no graph of that category; there are {', '.join(names)}")
        known = found.products[self.catalog.split[found.products] == TRAIN]
        c = dataclasses.replace(found, products=known)
        return c, c.graph(c.links, self.slots[split])

    def _rows(self, c: Category, product, candidates, labels, valid, size) -> dict[str, Any]:
        """The scored part of a batch, filled up to `size` rows."""
        inside = np.minimum(candidates, len(c.aspects) - 1)
        aspect = c.aspects[inside]
        row = c.products[product][:, None] * len(self.catalog.attribute) + aspect
        row = np.where(valid, row, -1)
        return {
            "product": padded(product.astype(np.int32), size),
            "aspect": padded(candidates.astype(np.int32), size),
            "label": {"linked": padded(labels, size)},
            "weight": np.ones((size, candidates.shape[1]), np.float32),
            "valid": padded(np.asarray(valid), size, False),
            "group": {
                "product": padded(c.products[product].astype(np.int32), size),
                "aspect": padded(aspect.astype(np.int32), size),
                "unseen": padded(self.catalog.unseen[aspect].astype(np.int32), size),
            },
            "row": padded(row.astype(np.int32), size, -1),
        }

    def vocabulary(self, space: str) -> pl.DataFrame:
        """Columns value, id and count of an id space."""
        ids = np.arange(NUM_RESERVED, self.schema.space(space).size)
        values = list(self.catalog.names[space])
        return pl.DataFrame({"value": values, "id": ids, "count": np.ones_like(ids)})

    def vocabulary_hash(self, space: str) -> str:
        text = "\n".join(map(str, self.catalog.names[space]))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _has_rows(c: Category, split: str) -> bool:
    if split == "train":
        return len(c.links) > 0
    return bool((c.catalog.split[c.products] == SPLITS[split]).any())


def _categories(catalog: Catalog, split: str, shuffle: int | None) -> list[Category]:
    """Each category's training products, with those of `split`, and the aspects known then."""
    out = []
    for number in range(len(catalog.names["category"])):
        inside = np.isin(catalog.split, (TRAIN, SPLITS[split])) & (catalog.category == number)
        own = catalog.aspect_category == number
        aspects = own & (catalog.unseen == 0) if split == "train" else own
        out.append(
            Category(catalog, number, np.flatnonzero(inside), np.flatnonzero(aspects), shuffle)
        )
    return out


def _slots(categories: Sequence[Category]) -> Slots:
    def most(sizes):
        return -(-max(sizes, default=1) // 8) * 8

    lists = {
        k: most(
            len(c.local(c.catalog.lists.get(k, np.zeros((0, 2), np.int64)), "product"))
            for c in categories
        )
        for k in ("view", "buy")
    }
    return Slots(
        products=most(len(c.products) for c in categories),
        aspects=most(len(c.aspects) for c in categories),
        links=most(len(c.links) for c in categories),
        listed=lists,
    )


def schema(catalog: Catalog) -> Schema:
    """Id spaces of the nodes and attribute names; the text vector; the label."""
    spaces = {t: len(catalog.names[t]) + NUM_RESERVED for t in (*TYPES, "attribute")}
    width = catalog.x["product"].shape[1]
    return Schema(
        tuple(IdSpace(n, s) for n, s in spaces.items()),
        (Feature("text", "profile", vector=width), Feature("linked", "label")),
        groups=("product", "aspect", "unseen"),
    )


def open_data(config: Mapping[str, Any]) -> Data:
    """Opens `data.source` as `data.prepare.set` says; see `build` and `Options` for the other keys of prepare."""
    options = dict(config.get("prepare", {}))
    name = options.pop("set", "oa-mine")
    ask = {k: options.pop(k) for k in list(options) if k in _names(Options) - {"seed"}}
    known = ("text", "split", "unseen", "seed", "limit")
    for key in options:
        if key not in known:
            every = sorted({"set", *known, *_names(Options)})
            raise GraphError(f"data.prepare.{key} is unknown; there are {', '.join(every)}")
    products, report = attribute_values.read(config.get("source", ""), name)
    catalog = product_catalog.build(products, **options)
    identity = {"name": "product_graph", "config": {"set": name, **options, **ask}}
    return Data(catalog, Options(seed=options.get("seed", 0), **ask), identity | {"report": report})


def _names(record) -> set[str]:
    return {f.name for f in dataclasses.fields(record)}
