"""Pages: all items shown to one user in one request, their triggers, their pairs, and what is kept of a long one.

A page that is longer than a batch can hold keeps all clicked items and some of the others, drawn without replacement, each with
the same probability. What was kept carries that probability: a loss or a metric weighted by its inverse is one over whole pages
(Horvitz and Thompson). None of this is JAX's business: it is done once, when the data is prepared.
"""

from collections.abc import Mapping

import numpy as np

from recjax.data.store.histories import Clock


def page_starts(page: np.ndarray) -> np.ndarray:
    """First row of each run of equal `page` [N], and N at last."""
    new = np.flatnonzero(page[1:] != page[:-1]) + 1 if len(page) else np.empty(0, np.int64)
    return np.r_[np.zeros(min(len(page), 1), np.int64), new, len(page)]


def sample_pages(
    rng: np.random.Generator, page: np.ndarray, label: np.ndarray, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most `keep` rows of each page: the clicked ones, then unclicked ones drawn uniformly.

    A page with too many clicks keeps a uniform draw of them, and one place for the unclicked: then no row's probability is
    zero, without which inverse probabilities would not give whole pages.

    Args:
      rng: Source of randomness.
      page: Key of each row, rows of a page together [N].
      label: Whether it was clicked [N].
      keep: Most rows of a page, at least 2.

    Returns:
      The kept rows, ascending, and with which probability each was kept, float64.
    """
    if keep < 2:
        raise ValueError(f"keep={keep}: a page keeps at least two items, or it has no pair")
    starts = page_starts(page)
    size = np.diff(starts)
    number = np.repeat(np.arange(len(size)), size)
    clicked = np.asarray(label) > 0.5
    clicks = np.bincount(number, clicked, len(size)).astype(np.int64)
    room = np.minimum(clicks, keep - (size > clicks))  # for the clicked
    order = np.lexsort((rng.random(len(page)), ~clicked, number))  # clicked rows in front
    rank = np.empty(len(page), np.int64)
    rank[order] = np.arange(len(page)) - starts[number[order]]
    rank = np.where(clicked, rank, rank - clicks[number])
    places = np.where(clicked, room[number], keep - room[number])
    of_all = np.where(clicked, clicks[number], (size - clicks)[number])
    kept = np.flatnonzero(rank < places)
    return kept, np.minimum(1, places[kept] / of_all[kept])


def pair_counts(page: np.ndarray, label: np.ndarray) -> dict[str, int]:
    """Pages, and the unordered pairs within them of both clicked, both unclicked, and exactly one clicked."""
    size = np.diff(page_starts(page))
    number = np.repeat(np.arange(len(size)), size)
    k = np.bincount(number, np.asarray(label) > 0.5, len(size)).astype(np.int64)
    return {
        "pages": len(size),
        "mixed_pages": int(((k > 0) & (k < size)).sum()),
        "co_click": int((k * (k - 1) // 2).sum()),
        "co_non_click": int(((size - k) * (size - k - 1) // 2).sum()),
        "mono_click": int((k * (size - k)).sum()),
    }


def latest_before(
    events: Mapping[str, np.ndarray], user: np.ndarray, time: np.ndarray, within: int = 0
) -> np.ndarray:
    """The trigger rule: each page's latest click of an earlier page, as a row of `events`, or -1.

    Earlier means at an earlier second, so no item of the page itself qualifies; ties keep the order of the log.

    Args:
      events: Clicks: "user" (codes from 0) and "time" (seconds), [E], any order.
      user: Of each page [N].
      time: Of each page, seconds [N].
      within: Not longer ago than so many seconds (public trigger-induced code: 480 minutes); 0: any time.
    """
    clock = Clock.of(events["time"])
    keys = clock.pack(events["user"], events["time"])
    order = np.argsort(keys, kind="stable")
    at = np.searchsorted(keys[order], clock.pack(user, time), side="left") - 1
    row = np.where(at >= 0, order[at], -1) if len(order) else np.full(len(user), -1)
    known = row >= 0
    known[known] = events["user"][row[known]] == user[known]
    if within:
        known[known] = time[known] - events["time"][row[known]] <= within
    return np.where(known, row, -1)
