"""Next-item pairs: the counts, the histories and the negatives of TIN's Amazon protocol."""

import numpy as np
import pytest

from recjax.data.loading.loader import PreparedData
from recjax.data.sets import next_item
from recjax.data.store.prepared import DataError, Prepared
from recjax.metrics import classification
from tests.messages import raises


def test_a_user_of_five_gives_two_training_pairs_one_to_validate_and_one_to_test():
    lists = [np.array([3, 1, 4, 0, 5])]
    found = next_item.pairs(lists, 9)
    train = found["train"]
    assert train["position"].tolist() == [1, 1, 2, 2] and train["label"].tolist() == [1, 0, 1, 0]
    assert train["item"][::2].tolist() == [1, 4]
    assert (
        found["validation"]["position"].tolist() == [3, 3] and found["validation"]["item"][0] == 0
    )
    assert found["test"]["position"].tolist() == [4, 4] and found["test"]["item"][0] == 5
    for split in found.values():
        assert not set(split["item"][1::2]) & set(lists[0].tolist()), "past or future"


def test_counts_and_negatives_of_many_users():
    rng = np.random.default_rng(0)
    lists = [rng.integers(30, size=rng.integers(1, 25)) for _ in range(200)]
    found = next_item.pairs(lists, 30, seed=1)
    sizes = np.array([len(x) for x in lists])
    kept = sizes >= 3
    assert len(found["train"]["item"]) == 2 * (sizes[kept] - 3).sum()
    for split in ("validation", "test"):
        assert len(found[split]["item"]) == 2 * kept.sum()
    drawn = found["train"]["item"][1::2]
    for u, item in zip(found["train"]["user"][1::2], drawn, strict=True):
        assert item not in lists[u]
    assert (np.bincount(drawn, minlength=30) > 0).all(), "every item is drawn for somebody"
    again = next_item.pairs(lists, 30, seed=2)["train"]["item"][1::2]
    assert (again != drawn).any(), "another seed, other negatives"
    with raises(DataError, "user number 0"):
        next_item.negatives([np.arange(4)], np.zeros(1, int), 4, 0)


def test_one_pair_a_user_has_the_strict_comparisons_as_its_gauc():
    rng = np.random.default_rng(0)
    score = rng.normal(size=400)
    label, user = np.tile([1, 0], 200), np.repeat(np.arange(200), 2)
    strict = (score[::2] > score[1::2]).mean()
    assert classification.gauc(score, label, user).value == pytest.approx(strict)
    tied = score.copy()
    tied[1] = tied[0]
    strict = (tied[::2] > tied[1::2]).mean()
    assert classification.gauc(tied, label, user).value == pytest.approx(strict + 0.5 / 200), (
        "half credit"
    )
    n = rng.integers(2, 9, 60)
    user, label = np.repeat(np.arange(60), n), rng.integers(0, 2, n.sum())
    score = np.round(rng.normal(size=n.sum()), 1)
    each = [(user == u).nonzero()[0] for u in range(60)]
    each = [i for i in each if 0 < label[i].sum() < len(i)]
    want = sum(len(i) * classification.auc(score[i], label[i]) for i in each) / sum(map(len, each))
    assert classification.gauc(score, label, user).value == pytest.approx(want)


def test_beauty(real_data, tmp_path):
    path = next_item.prepare(tmp_path, source=real_data("amazon-sequences"), users=400)
    data = PreparedData(Prepared(path), history=5, candidates=2)
    batch = next(iter(data.batches("test", 400)))
    assert batch["valid"].all() and (batch["label"]["click"] == [1, 0]).all()
    assert data.splits["test"] == 800 and data.splits["train"] % 2 == 0
    ages = batch["age"]["history"] // next_item.DAY
    for row, mask in zip(ages, batch["mask"]["history"], strict=True):
        assert row[mask].tolist() == list(range(mask.sum(), 0, -1)), "the most recent is 1 back"
    item = batch["ids"]["item"][0]
    target, past = item[batch["pos"]["item"]], item[batch["pos"]["hist_item"]]
    assert not (past == target[:, 1:]).any(), "no negative in the history"
    with raises(DataError, "Nothing.txt.gz"):
        next_item.prepare(tmp_path, source=real_data("amazon-sequences"), name="Nothing")
