"""Prepared data to batches: what batch i is made of, and who builds it.

Batch i is a pure function of (split, seed, i), and the Grain pipeline is a `MapDataset` over i. So
the stream is the same for any number of worker processes, and resuming is a slice: Grain's iterator
states are tied to the worker count and fail across it. Everything is read and cached by block,
never by impression (13 k against 3.6 M examples/s).

    order   of the requests in any epoch (`recjax.data.loading.order`)
    batch   B / P requests of each of the P partitions; every host takes a contiguous range of
            partitions, so the hosts' batches, one after the other, are the batch one host would
            build
    level   capacity of the unique-id lists: the smallest of a few that fits (`recjax.data.loading.layout`)

Worker processes start by spawn: guard the entry point with `if __name__ == "__main__"`, and parse
absl flags first.
"""

import collections
from collections.abc import Generator, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

from absl import flags, logging
import grain
import numpy as np
import polars as pl

from recjax.batch import Batch
from recjax.data.loading.batches import Assembler
from recjax.data.loading.choice import Choice, Index, buckets_of
from recjax.data.loading.layout import BatchError, Capacity, Layout, capacity_levels
from recjax.data.loading.mixed import MixedSource, side_by_side
from recjax.data.loading.order import Order, request_starts
from recjax.data.loading.protocol import Period
from recjax.data.loading.source import BatchSource
from recjax.data.store.growth import vocabulary_hash
from recjax.data.store.prepared import Prepared

PROBES = 8  # batches looked at to size the unique-id lists
COUNTER_NAMES = re.compile(r"(n|age)_.*|.*_(count|recency)")


# -------------------------------------------------------------------------------------- the batches


class Batches:
    """Batches of a source (`recjax.data.loading.protocol.Batches`).

    Attributes:
      batches_per_epoch: Of the whole stream.
    """

    def __init__(
        self,
        source: BatchSource | MixedSource,
        examples: int,
        start: int,
        workers: int,
        periods: Sequence[Period] = (),
    ):
        self._source, self._start, self._workers = source, start, workers
        self.examples, self.periods = examples, tuple(periods)
        self.batches_per_epoch = source.per_epoch
        self.levels = source.levels
        self._reset()

    def __len__(self) -> int:
        """Batches of the whole stream, whatever `start` is."""
        return len(self._source)

    def _reset(self) -> None:
        self._by_level: collections.Counter = collections.Counter()
        self._by_length: collections.Counter = collections.Counter()
        self._events = {name: [0, 0] for name in self._source.lists}

    @property
    def stats(self) -> dict[str, Any]:
        """Of the current pass: batches by capacity level, first-level overflows, batches by history length, and
        by list the share of history slots of used requests that no event fills."""
        by_level = [
            self._by_level[k] for k in range(max([len(self.levels) - 1, *self._by_level]) + 1)
        ]
        return {
            "batches": sum(by_level),
            "by_level": by_level,
            "overflow": sum(by_level[1:]),
            "by_length": dict(sorted(self._by_length.items())),
            "padding": {
                n: 1 - kept / slots if slots else 0.0 for n, (kept, slots) in self._events.items()
            },
        }

    def __iter__(self) -> Generator[Batch, None, None]:
        self._reset()
        if self._start == len(self):
            return
        iterator = iter(_pipeline(self._source, self._start, self._workers))
        try:
            for i, buffer in enumerate(iterator, self._start):
                batch, level = self._source.open(i, buffer)
                self._count(batch, level)
                yield batch
        finally:
            iterator.close()  # ends the worker processes when the reader leaves early

    def _count(self, batch: Batch, level: int) -> None:
        self._by_level[level] += 1
        used = int(batch["valid"].any(1).sum())
        self._by_length[max((m.shape[1] for m in batch["mask"].values()), default=0)] += 1
        for name, mask in batch["mask"].items():
            self._events[name][0] += int(np.count_nonzero(mask))
            self._events[name][1] += used * mask.shape[1]


def _pipeline(source: BatchSource | MixedSource, start: int, workers: int) -> grain.IterDataset:
    dataset = grain.MapDataset.source(source)[start:]
    if not workers:  # one thread builds the next batches while the device works
        return dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    if not flags.FLAGS.is_parsed():
        raise BatchError(
            "worker processes read absl flags, which nobody has parsed: start through absl.app.run, call "
            "absl.flags.FLAGS.mark_as_parsed() (tests, notebooks), or set workers to 0"
        )
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    return dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)
    )


# ----------------------------------------------------------------------------------------- the data


class PreparedData:
    """A prepared data set as a source of batches (`recjax.data.loading.protocol.Data`).

    Attributes:
      prepared: What it reads.
      history: List -> events kept.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        history: int | Mapping[str, int] = 50,
        candidates: int = 1,
        counters: bool = True,
        draw: tuple[str, int] = ("", 0),
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Args:
        prepared: The data.
        history: L, events kept of each list, for all lists or by list.
        candidates: C. More than one puts a request's contiguous impressions side by side.
        counters: Whether the causal counters are features.
        draw: (split, seed): another seed puts other impressions of that split first; 0 is the stored order. Blocks are
          permuted, each a random part of a split that was permuted when it was prepared.
        process_index: Of this host.
        process_count: Hosts; each builds its part of every batch.
        """
        self.prepared = prepared
        self.schema = (
            prepared.schema if counters else prepared.schema.without(counter_features(prepared))
        )
        self.identity, self.splits = prepared.identity, prepared.splits
        by_list = (
            dict(history)
            if hasattr(history, "items")
            else dict.fromkeys(self.schema.lists, int(history))
        )
        unknown = sorted(set(by_list) - set(self.schema.lists))
        if unknown:
            raise BatchError(
                f"history names {unknown[0]!r}; the lists are {', '.join(self.schema.lists) or 'none'}"
            )
        self.history: dict[str, int] = by_list
        self._layout = functools.partial(
            Layout, self.schema, history=by_list, candidates=candidates
        )
        self._candidates, self._draw = candidates, draw
        self._partitions = 1 + max(
            int(prepared.block_partitions(s).max(initial=0)) for s in self.splits
        )
        self._process = process_index, process_count
        self._levels: dict[tuple, tuple[Capacity, ...]] = {}
        self._indexes: dict[str, Index] = {}
        self._streams: dict[tuple, tuple[MixedSource, list[Period]]] = {}

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
        """See `recjax.data.loading.protocol.Data.batches`."""
        choice = Choice(examples, recent, recent_days, period)
        options = dict(epochs=epochs, shards=shards, seed=shuffle_seed, levels=levels)
        make = functools.partial(self._source, split, batch_size, **options)
        source: BatchSource | MixedSource
        if online or buckets:
            key = (split, batch_size, choice, online, tuple(buckets), *map(str, options.values()))
            if key not in self._streams:
                self._streams[key] = self._mixed(
                    split, choice, online, tuple(buckets), make, epochs
                )
            source, periods = self._streams[key]
        else:
            source, periods = make(choice), []
        if not 0 <= start <= len(source):
            raise BatchError(f"start={start}: the stream of {split!r} has {len(source)} batches")
        return Batches(source, self._count(split, choice) * epochs, start, workers, periods)

    def _source(
        self, split, batch_size, choice: Choice, longest: int = 0, *, epochs, shards, seed, levels
    ) -> BatchSource:
        """This host's batches of some impressions; their histories have at most `longest` events (0: any)."""
        orders = self._orders(split, choice, seed)
        history = {n: min(size, longest or size) for n, size in self.history.items()}
        whole = self._layout(batch_size=batch_size, shards=shards, history=history)
        local, mine = self._share(whole, len(orders))
        slots = batch_size // len(orders)
        per_epoch = max(-(-len(order) // slots) for order in orders)
        everything = BatchSource(self.prepared, split, orders, Assembler(whole), slots, per_epoch)
        key = (split, batch_size, choice, shards, longest)
        if not levels and key not in self._levels:
            self._levels[key] = _probed_levels(everything)
        assembler = Assembler(local, levels or self._levels[key])
        return dataclasses.replace(
            everything, orders=orders[mine], assembler=assembler, epochs=epochs
        )

    def _mixed(
        self, split: str, choice: Choice, online: str, buckets: tuple[int, ...], make, epochs: int
    ) -> tuple[MixedSource, list[Period]]:
        """Periods one after the other, the buckets of each side by side; and where the periods end."""
        lengths = buckets_of(buckets, max(self.history.values(), default=0))
        index = self._index(split)
        spans = index.periods(index.rows(choice), online) if online else [choice.period]
        levels = {}  # one set of shapes for all periods
        if online:
            for b in lengths:
                part = dataclasses.replace(choice, lengths=b)
                levels[b] = make(part, longest=b[1]).levels
        sources, schedules, ends = [], [np.zeros((0, 2), np.int32)], [0]
        for span in spans:
            parts = []
            for b in lengths:
                part = dataclasses.replace(choice, period=span, lengths=b)
                given = {"levels": levels[b]} if online else {}
                parts.append(make(part, longest=b[1], **given))
            schedules.append(side_by_side([p.per_epoch for p in parts], epochs, len(sources)))
            sources += parts
            ends.append(ends[-1] + len(schedules[-1]))
        periods = [
            Period(end, *span) for end, span in zip(ends[1:], spans[1:], strict=False)
        ]  # none after the last
        per_epoch = ends[-1] // max(epochs, 1)
        return MixedSource(sources, np.concatenate(schedules), per_epoch), periods

    def _index(self, split: str) -> Index:
        if split not in self._indexes:
            self._indexes[split] = Index(self.prepared, split, tuple(self.history))
        return self._indexes[split]

    def _count(self, split: str, choice: Choice) -> int:
        """Impressions of a choice."""
        size = self.splits.get(split, 0)
        if choice.prefix_only:
            return min(choice.examples or size, size)
        return len(self._index(split).rows(choice))

    @property
    def report(self) -> dict[str, Any]:
        """What preparation found."""
        return self.prepared.report

    def vocabulary(self, space: str) -> pl.DataFrame:
        """The vocabulary of an id space: columns value, id, count."""
        return self.prepared.vocabulary(space)

    def vocabulary_hash(self, space: str) -> str:
        """Same hash, same rows: a checkpoint's tables fit. "" for a space without a vocabulary."""
        return vocabulary_hash(self.prepared.path, space)

    def vectors(self, space: str) -> np.ndarray:
        """Frozen vectors of an id space by id, float32 [rows, width]."""
        return self.prepared.vectors(space)

    def _share(self, whole: Layout, partitions: int) -> tuple[Layout, slice]:
        """This host's part of a global batch: its layout and its partitions."""
        index, count = self._process
        for what, size, parts in (
            ("batch_size", whole.batch_size, ("partitions of the data", partitions)),
            ("device shards", whole.shards, ("hosts", count)),
            ("partitions of the data", partitions, ("hosts", count)),
        ):
            if size % parts[1]:
                raise BatchError(
                    f"{what} = {size} does not divide over {parts[1]} {parts[0]}; make it a multiple"
                )
        local = dict(batch_size=whole.batch_size // count, shards=whole.shards // count)
        share = partitions // count
        return dataclasses.replace(whole, **local), slice(index * share, (index + 1) * share)

    def _orders(self, split: str, choice: Choice, seed: int | None) -> list[Order]:
        """One order per partition, of the chosen impressions."""
        rows = self.prepared.block_rows(split)
        ends = np.cumsum(rows)
        first = self._drawn(split, choice, len(rows))
        partitions = self.prepared.block_partitions(split)
        chosen = None
        if choice.prefix_only:
            before = np.cumsum(rows[first]) - rows[first]
            rows = rows.copy()
            rows[first] = np.clip(self._count(split, choice) - before, 0, rows[first])
        else:
            chosen = self._index(split).rows(choice)
        orders = []
        for p in range(self._partitions):
            blocks = first[(partitions[first] == p) & (rows[first] > 0)]
            edges = np.r_[0, np.cumsum(rows[blocks])]
            kept = None
            if chosen is not None:  # rows of the split -> places in the partition
                block = np.searchsorted(ends, chosen, side="right")
                mine = partitions[block] == p
                block, at = block[mine], chosen[mine]
                kept = edges[np.searchsorted(blocks, block)] + at - (ends - rows)[block]
            starts = self._starts(split, blocks, rows, kept) if self._candidates > 1 else None
            orders.append(Order(p, blocks, edges, starts, seed, kept))
        return orders

    def _drawn(self, split: str, choice: Choice, blocks: int) -> np.ndarray:
        """The blocks of a split, those that are read first before the others."""
        drawn, seed = self._draw
        if not seed or split != drawn:
            return np.arange(blocks)
        if not choice.prefix_only:
            raise BatchError(
                f"data.draw={seed} says which impressions come first; leave it out where time or history length does"
            )
        return np.random.default_rng([seed, 1]).permutation(blocks)

    def _starts(self, split: str, blocks: np.ndarray, rows: np.ndarray, kept) -> np.ndarray:
        read = [self.prepared.block(split, int(b))["request"][: rows[b]] for b in blocks]
        request = np.concatenate(read or [np.empty(0, np.int32)])
        starts = request_starts(request if kept is None else request[kept], self._candidates)
        if len(starts) > 1 and starts[-1] < 1.5 * (len(starts) - 1):
            logging.warning(
                "%s: %.2f of %d candidates filled: the rows of a request do not lie together; prepare with "
                "unit='request', or set candidates to 1", split, starts[-1] / (len(starts) - 1), self._candidates
            )  # fmt: skip
        return starts


def _probed_levels(source: BatchSource) -> tuple[Capacity, ...]:
    """Capacities from a few batches of the first epoch: the same on every host and restart."""
    places = (
        np.unique(np.linspace(0, max(len(source) - 1, 0), PROBES).astype(int))
        if len(source)
        else []
    )
    needs = [source.assembler.need(source.parts(i)) for i in places]
    layout = source.assembler.layout
    return capacity_levels(
        layout, {s: max((n[s] for n in needs), default=0) for s in layout.worst()}
    )


def counter_features(prepared: Prepared) -> tuple[str, ...]:
    """Causal counters: those the builder lists, or dense candidates named as `Counter` names them."""
    named = prepared.identity.get("counters") or prepared.identity.get("config", {}).get("counters")
    if isinstance(named, (list, tuple)):
        return tuple(named)
    inputs = prepared.schema.select("candidate", kind="dense")
    return tuple(f.name for f in inputs if COUNTER_NAMES.fullmatch(f.name))
