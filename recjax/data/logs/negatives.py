"""Negatives for logs that hold positives only: items the user could have taken in the same request, and did not.

Each request's negatives are a successive sample without replacement from the catalogue, given to `draw` with its weights:
items it took, or that were already drawn for it, are refused and drawn again. `log_q` is the log-probability of one draw
of the item, log(weight / sum), for positives too: what a correction of the softmax or of sampled scores needs.
"""

import dataclasses

import numpy as np

ROUNDS = 100  # after so many refusals in a row an item is not found: the catalogue is too small


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Items that may be drawn.

    Attributes:
      items: Ascending codes, int64 [M].
      weights: Of the draw, positive [M].
    """

    items: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, item: np.ndarray, kind: str) -> "Catalogue":
        """From the items of training rows [P]; kind "popular" or "uniform"."""
        return cls.counted(*np.unique(item, return_counts=True), kind)

    @classmethod
    def counted(cls, items: np.ndarray, counts: np.ndarray, kind: str) -> "Catalogue":
        """From ascending item codes and how often each was taken."""
        return cls(items, counts.astype(np.float64) if kind == "popular" else np.ones(len(items)))

    def log_q(self, item: np.ndarray) -> np.ndarray:
        """Log-probability of drawing each item, float32 [N]; -inf outside the catalogue."""
        at = np.minimum(np.searchsorted(self.items, item), len(self.items) - 1)
        q = np.where(self.items[at] == item, self.weights[at] / self.weights.sum(), 0)
        with np.errstate(divide="ignore"):
            return np.log(q).astype(np.float32)

    def holds(self, item: np.ndarray) -> np.ndarray:
        """Which items are in it, bool [N]."""
        return np.isin(item, self.items)


def draw(
    rng: np.random.Generator, catalogue: Catalogue, request: np.ndarray, item: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """k negatives for each positive, distinct within a request and none of them taken in it.

    Args:
      rng: Source of randomness.
      catalogue: What may be drawn.
      request: Of each positive [P].
      item: Code of each positive [P].
      k: Negatives per positive.

    Returns:
      Which positive each negative belongs to, ascending, and its item; fewer than k * P where a request has taken
      nearly the whole catalogue.
    """
    if not len(request):
        return request, item
    _, request = np.unique(request, return_inverse=True)
    items = int(max(catalogue.items.max(initial=0), item.max(initial=0))) + 1
    edges = np.cumsum(catalogue.weights)
    taken = np.unique(request * items + item)  # (request, item) pairs that are not free
    used = taken[:0]  # nor are those drawn meanwhile
    owner = np.repeat(np.arange(len(request)), k)
    owners, drawn = [owner[:0]], [item[:0]]
    for _ in range(ROUNDS):
        at = np.searchsorted(edges, rng.random(len(owner)) * edges[-1], side="right")
        found = catalogue.items[np.minimum(at, len(edges) - 1)]
        pair = request[owner] * items + found
        order = np.argsort(pair, kind="stable")
        pair = pair[order]
        free = np.append(True, pair[1:] != pair[:-1])[: len(pair)]  # the first of equal draws
        free &= ~_holds(taken, pair) & ~_holds(used, pair)
        fresh = np.zeros(len(pair), bool)
        fresh[order[free]] = True
        owners.append(owner[fresh])
        drawn.append(found[fresh])
        # Two ascending runs: a stable sort merges them in one pass.
        used = np.sort(np.concatenate([used, pair[free]]), kind="stable")
        owner = owner[~fresh]
        if not len(owner):
            break
    owner, found = np.concatenate(owners), np.concatenate(drawn)
    order = np.argsort(owner, kind="stable")
    return owner[order], found[order]


def _holds(ascending: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Which of `x` occur in a sorted array, bool [N]."""
    if not len(ascending):
        return np.zeros(len(x), bool)
    place = np.minimum(np.searchsorted(ascending, x), len(ascending) - 1)
    return ascending[place] == x
