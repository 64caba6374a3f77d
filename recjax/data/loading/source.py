"""What batch i of a split is made of: blocks and timelines read, a packed batch returned."""

from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from recjax.batch import Batch
from recjax.data.loading.batches import Assembler, Part
from recjax.data.loading.order import Order
from recjax.data.store.prepared import Prepared

BLOCKS_CACHED = 16  # per process; a block is about a megabyte


@dataclasses.dataclass
class BatchSource:
    """Grain source whose element i is batch i, packed. Only what it was given is pickled.

    Attributes:
      prepared, split: What it reads.
      orders: Of this process's partitions.
      assembler: Builds the batches.
      slots: Requests each partition gives to a batch.
      per_epoch: Batches in an epoch.
      epochs: Their number.
    """

    prepared: Prepared
    split: str
    orders: Sequence[Order]
    assembler: Assembler
    slots: int
    per_epoch: int
    epochs: int = 1

    def __post_init__(self):
        read = functools.partial(self.prepared.block, self.split)
        self._block = functools.lru_cache(max(BLOCKS_CACHED, 4 * len(self.orders)))(read)
        self._timelines: dict[int, dict] = {}
        schema = self.assembler.layout.schema
        self._columns = [
            "time",
            "weight",
            "row",
            *schema.groups,
            *(f.name for f in schema.features if not f.list),
        ]
        self._columns += [f"{name}/{what}" for name in schema.lists for what in ("end", "count")]

    def __reduce__(self):
        return BatchSource, tuple(getattr(self, f.name) for f in dataclasses.fields(self))

    def __len__(self) -> int:
        return self.per_epoch * self.epochs

    def __getitem__(self, i: int) -> np.ndarray:
        return self.assembler.packed(self.parts(i))

    def open(self, i: int, buffer: np.ndarray) -> tuple[Batch, int]:
        """A batch from its buffer, and its capacity level."""
        del i  # all have the same form
        return self.assembler.open(buffer)

    @property
    def levels(self) -> tuple:
        """Capacities of the unique-id lists, small to large."""
        return self.assembler.levels

    @property
    def lists(self) -> tuple[str, ...]:
        return self.assembler.layout.schema.lists

    def parts(self, i: int) -> list[Part]:
        """The partitions' shares of batch i."""
        epoch, place = divmod(int(i), self.per_epoch)
        return [self._part(order, epoch, place * self.slots) for order in self.orders]

    def _part(self, order: Order, epoch: int, lo: int) -> Part:
        rows, counts = order.rows(order.requests(epoch, lo, lo + self.slots))
        pieces = [(self._block(b), at) for b, at in order.pieces(rows)]
        if len(pieces) == 1:  # views, where a run is straight
            columns = {name: pieces[0][0][name][pieces[0][1]] for name in self._columns}
        elif pieces:
            columns = {
                name: np.concatenate([b[name][at] for b, at in pieces]) for name in self._columns
            }
        else:  # a partition that ran out before the others
            columns = {"time": np.empty(0, np.int64)}
        return Part(columns, self._timeline(order.partition), counts, self.slots)

    def _timeline(self, partition: int) -> dict:
        if partition not in self._timelines:
            lists = self.assembler.layout.schema.lists
            self._timelines[partition] = {
                name: self.prepared.timeline(name, partition) for name in lists
            }
        return self._timelines[partition]
