"""Which impressions make which batch: the requests of a partition, in the order of any epoch.

Epoch 0 is the stored order, so its first n examples are the nested subset of size n; later epochs
permute the blocks, and the requests within a block, by (seed, epoch). Some impressions may be left out (`kept`).
"""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Order:
    """The requests of one partition, in any epoch's order.

    Attributes:
      partition: Its number.
      blocks: Its blocks [K], in stored order.
      edges: Impressions before each block, and all of them [K + 1].
      starts: First (kept) impression of each request, and the number of (kept) impressions [N + 1];
        None when every impression is a request.
      seed: Of the later epochs' permutations; None: all epochs in stored order.
      kept: Places of the impressions to read, ascending; None: all.
    """

    partition: int
    blocks: np.ndarray
    edges: np.ndarray
    starts: np.ndarray | None = None
    seed: int | None = None
    kept: np.ndarray | None = None

    @functools.cached_property
    def units(self) -> np.ndarray:
        """Requests that begin before each block, and all of them [K + 1]."""
        edges = self.edges if self.kept is None else np.searchsorted(self.kept, self.edges)
        return edges if self.starts is None else np.searchsorted(self.starts, edges)

    def __len__(self) -> int:
        return int(self.units[-1])

    def requests(self, epoch: int, lo: int, hi: int) -> np.ndarray:
        """Numbers of the requests at places [lo, hi) of an epoch."""
        hi = min(hi, len(self))
        if self.seed is None or epoch == 0:
            return np.arange(lo, hi)
        order = np.random.default_rng([self.seed, epoch, self.partition]).permutation(
            len(self.blocks)
        )
        sizes = np.diff(self.units)[order]
        ends = np.cumsum(sizes)
        out = [np.empty(0, np.int64)]
        for k in range(
            np.searchsorted(ends, lo, side="right"),
            np.searchsorted(ends, hi, side="left") + (lo < hi),
        ):
            rng = np.random.default_rng([self.seed, epoch, self.partition, order[k]])
            begin = ends[k] - sizes[k]
            within = rng.permutation(sizes[k])[max(lo - begin, 0) : hi - begin]
            out.append(self.units[order[k]] + within)
        return np.concatenate(out)

    def rows(self, requests: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Impressions of some requests, and how many each has (None: one)."""
        rows, counts = self._numbered(requests)
        return (rows if self.kept is None else self.kept[rows]), counts

    def _numbered(self, requests: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """As `rows`, numbered among the kept."""
        if self.starts is None:
            return requests, None
        first = self.starts[requests]
        counts = self.starts[requests + 1] - first
        before = np.cumsum(counts) - counts
        return np.repeat(first - before, counts) + np.arange(counts.sum()), counts

    def pieces(self, rows: np.ndarray) -> list[tuple[int, slice | np.ndarray]]:
        """Runs of impressions within a block: (block, places in it), a slice where consecutive."""
        at = np.searchsorted(self.edges, rows, side="right") - 1
        cuts = np.flatnonzero(np.diff(at)) + 1
        out = []
        for run in np.split(np.arange(len(rows)), cuts) if len(rows) else []:
            k = at[run[0]]
            local = rows[run] - self.edges[k]
            straight = len(local) == 1 or (np.diff(local) == 1).all()
            out.append(
                (
                    int(self.blocks[k]),
                    slice(int(local[0]), int(local[-1]) + 1) if straight else local,
                )
            )
        return out


def request_starts(request: np.ndarray, candidates: int) -> np.ndarray:
    """First row of each run of equal `request` [N] values, runs over C rows cut up; and N at last."""
    begin = (
        np.flatnonzero(np.r_[True, request[1:] != request[:-1]])
        if len(request)
        else np.empty(0, np.int64)
    )
    lengths = np.diff(np.r_[begin, len(request)])
    pieces = -(-lengths // candidates)
    nth = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return np.r_[np.repeat(begin, pieces) + nth * candidates, len(request)]
