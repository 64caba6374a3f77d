"""The exchange capacity derived from a few batches against the true distribution of what a bucket has to hold.

python -m tests.embedding.test_capacity      # the figures in recjax/embedding/README.md
"""

import numpy as np
import pytest

from recjax import embedding
from recjax.embedding.placement import MAX_OVERFLOW
from recjax.schema import IdSpace, Schema, spread
from tests.embedding import worlds

OWNERS, ROWS, DRAWS, EXPONENT = 8, 1_000_000, 51_200, 1.1


def seen(rows=ROWS, draws=DRAWS, permuted=True):
    """Chance that a device's ids include an id, float64 [rows], by id."""
    rank = np.arange(rows - 3)
    q = (rank + 1.0) ** -EXPONENT
    p = np.zeros(rows)
    ids = spread(rank, rows) if permuted else rank + 3
    p[ids] = -np.expm1(draws * np.log1p(-q / q.sum()))
    return p


def step_overflow(p, capacity, owners=OWNERS):
    """Upper bound on the chance that any of owners^2 buckets holds more than `capacity` ids.

    Chernoff: P(X > c) <= exp(-s (c + 1)) E exp(s X), smallest over s, for a sum of indicators. Those of the distinct
    values of a sample are negatively associated, so the product over independent ones bounds E exp(s X).
    """
    s, total = np.linspace(0, 1, 201)[1:], 0.0
    for block in np.split(p, owners):
        p_s, n_s = np.unique(np.round(block, 7), return_counts=True)  # few distinct small ones
        log_mgf = np.log1p(np.expm1(s)[:, None] * (p_s + 1e-7)) @ n_s
        total += owners * np.exp((log_mgf - s * (capacity + 1)).min())
    return total


def draw(r, rows=ROWS, draws=DRAWS):
    """One device's unique ids."""
    rank = r.zipf(EXPONENT, 2 * draws)
    return np.unique(spread(rank[rank < rows - 3][:draws] - 1, rows))


def derived(seed=0, batches=4):
    """The skew that training would measure, on its first batches."""
    r, lists = np.random.default_rng(seed), []
    for _ in range(batches):
        ids = [draw(r) for _ in range(OWNERS)]
        slots = -(-max(map(len, ids)) // 256) * 256
        lists.append({"ids": {"item": np.stack([worlds.unique_ids(u, ROWS, slots) for u in ids])}})
    return embedding.measure(lists, Schema((IdSpace("item", ROWS, ROWS),), ()), OWNERS)["item"]


def bytes_ratio(skew, capacity, dim):
    """Bytes a device exchanges (ids once, rows out, gradients back) over one way of its unique rows."""
    return OWNERS * capacity * (4 + 2 * 4 * dim) / (skew.unique * dim * 4)


@pytest.fixture(scope="module")
def skew():
    return derived()


def test_a_step_overflows_the_derived_capacity_less_than_once_in_ten_thousand(skew):
    capacity = skew.capacity(skew.slots, OWNERS, MAX_OVERFLOW)
    assert step_overflow(seen(), capacity) < 1e-4
    assert all(bytes_ratio(skew, capacity, dim) <= 2.3 for dim in (32, 64, 128))


def test_without_the_bijection_the_same_capacity_overflows_always(skew):
    """The control: the bound is no bound there, and one owner's mean alone is past the capacity."""
    capacity = skew.capacity(skew.slots, OWNERS, MAX_OVERFLOW)
    p = seen(permuted=False)
    assert step_overflow(p, capacity) > 1 and np.split(p, OWNERS)[0].sum() > 3 * capacity


def test_the_distribution_is_that_of_the_draws(skew):
    """Means and deviations of drawn buckets are those the bound is computed from."""
    r, p = np.random.default_rng(1), seen()
    counts = np.stack([np.bincount(draw(r) * OWNERS // ROWS, minlength=OWNERS) for _ in range(40)])
    mean = np.array([b.sum() for b in np.split(p, OWNERS)])
    spread_ = np.array([np.sqrt((b * (1 - b)).sum()) for b in np.split(p, OWNERS)])
    assert (np.abs(counts.mean(0) - mean) < 4 * spread_ / np.sqrt(40)).all()
    assert counts.std(0).mean() < 1.1 * spread_.mean()  # negative association only helps
    assert skew.mean == pytest.approx(mean.max(), rel=0.02)


if __name__ == "__main__":
    for seed in range(10):
        found = derived(seed)
        c = found.capacity(found.slots, OWNERS, MAX_OVERFLOW)
        ratios = ", ".join(f"{bytes_ratio(found, c, d):.3f} at D={d}" for d in (32, 64, 128))
        print(
            f"seed {seed}: {found.unique:.0f} unique, capacity {c}, chance of an overflow in a step at most "
            f"{step_overflow(seen(), c):.1g}; bytes / ideal {ratios}"
        )
