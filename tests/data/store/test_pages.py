"""Pages: what is kept of a long one, its pairs, and the trigger rule, against brute force."""

import numpy as np
import pytest

from recjax.data.store import pages


def some_pages(rng, count=40, longest=9):
    size = rng.integers(1, longest + 1, count)
    return np.repeat(rng.permutation(count), size), rng.random(size.sum()) < 0.45


def test_sampling_keeps_the_clicked_and_says_with_which_probability():
    rng = np.random.default_rng(0)
    page, label = some_pages(rng)
    kept, probability = pages.sample_pages(rng, page, label, 4)
    for p in np.unique(page):
        mine, own = page == p, page[kept] == p
        n, k = mine.sum(), label[mine].sum()
        assert own.sum() == min(n, 4)
        room = min(k, 4 - (n > k))
        assert label[kept][own].sum() == room
        of_others = probability[own & ~label[kept]]
        np.testing.assert_allclose(of_others, min(1, (4 - room) / max(n - k, 1)))
        np.testing.assert_allclose(probability[own & label[kept]], min(1, room / max(k, 1)))
    assert np.bincount(page, label).max() > 4, "some page has more clicks than places"
    assert (np.diff(kept) > 0).all()
    with pytest.raises(ValueError, match="at least two items"):
        pages.sample_pages(rng, page, label, 1)


def test_inverse_probabilities_give_the_mean_over_whole_pages():
    """Specification, section 7: within two standard errors over many draws."""
    rng = np.random.default_rng(1)
    page, label = some_pages(rng)
    loss = rng.exponential(size=len(page)) * (1 + 3 * label)
    weighted, plain = [], []
    for _ in range(2_000):
        kept, probability = pages.sample_pages(rng, page, label, 4)
        weighted.append((loss[kept] / probability).sum() / len(page))
        plain.append(loss[kept].mean())
    error = np.std(weighted) / np.sqrt(len(weighted))
    assert abs(np.mean(weighted) - loss.mean()) < 2 * error
    assert abs(np.mean(plain) - loss.mean()) > 10 * error, "control: unweighted"


def test_pair_counts_against_enumeration():
    rng = np.random.default_rng(2)
    page, label = some_pages(rng)
    found = pages.pair_counts(page, label)
    a, b = np.triu_indices(len(page), 1)
    same = page[a] == page[b]
    both = label[a].astype(int) + label[b]
    for name, clicks in (("co_click", 2), ("co_non_click", 0), ("mono_click", 1)):
        assert found[name] == (same & (both == clicks)).sum()
    assert found["pages"] == 40
    assert found["mixed_pages"] == sum(len(set(label[page == p])) == 2 for p in range(40))
    assert pages.pair_counts(page[:0], label[:0])["pages"] == 0


def brute_force(events, user, time, within):
    best = -1
    for i in np.argsort(events["time"], kind="stable"):
        age = time - events["time"][i]
        if events["user"][i] == user and age > 0 and (not within or age <= within):
            best = i
    return best


@pytest.mark.parametrize("within", [0, 40])
def test_triggers_are_the_latest_click_of_an_earlier_page(within):
    rng = np.random.default_rng(3)
    events = {"user": rng.integers(0, 5, 200), "time": rng.integers(0, 300, 200)}
    user, time = rng.integers(0, 7, 60), rng.integers(-5, 320, 60)
    found = pages.latest_before(events, user, time, within)
    want = [brute_force(events, u, t, within) for u, t in zip(user, time, strict=True)]
    np.testing.assert_array_equal(found, want)
    assert (found < 0).any() and (found >= 0).any()
    known = found >= 0
    assert (events["time"][found[known]] < time[known]).all(), (
        "strictly before: no item of the page"
    )


def test_later_events_change_no_trigger():
    rng = np.random.default_rng(4)
    events = {"user": rng.integers(0, 5, 100), "time": np.sort(rng.integers(0, 300, 100))}
    user, time = rng.integers(0, 5, 40), np.full(40, 150)
    base = pages.latest_before(events, user, time)
    changed = {k: v.copy() for k, v in events.items()}
    late = changed["time"] >= 150
    changed["user"][late] = rng.integers(0, 5, late.sum())
    np.testing.assert_array_equal(pages.latest_before(changed, user, time), base)
    none = {k: v[:0] for k, v in events.items()}
    assert (pages.latest_before(none, user, time) == -1).all()


def test_a_trigger_may_be_as_old_as_the_limit_and_no_older():
    events = {"user": np.array([0]), "time": np.array([100])}
    found = pages.latest_before(events, np.zeros(2, int), np.array([140, 141]), within=40)
    assert found.tolist() == [0, -1]
