"""TARQ's planted world: its constants as the oracle sees them, and as it is written."""

import numpy as np
import pytest

from recjax.data.loading.loader import PreparedData
from recjax.data.store.prepared import Prepared
from recjax.data.worlds import tarq
from recjax.metrics.classification import auc
from tests.messages import raises


def figures(world, n=60_000, seed=0):
    """Planted items and users, n requests, and their cosines."""
    rng = np.random.default_rng(seed)
    planted = tarq.plant(world, rng)
    drawn = tarq.sample(world, planted, n, rng)
    return planted, drawn, tarq.similarities(planted, drawn["user"], drawn["item"])


def test_the_world_is_what_its_docstring_says():
    planted, drawn, cosines = figures(tarq.World())
    click = drawn["click"]
    assert click.mean() == pytest.approx(0.526, abs=0.006)
    assert auc(drawn["oracle"], click) == pytest.approx(0.794, abs=0.006)
    assert auc(cosines.mean(1), click) == pytest.approx(0.744, abs=0.006)
    assert auc(cosines.max(1), click) == pytest.approx(0.786, abs=0.006)
    half = len(click) // 2
    rate = np.bincount(drawn["item"][:half], click[:half], 1280) / 23
    assert auc(rate[drawn["item"][half:]], click[half:]) < 0.53, "items alone say next to nothing"
    np.testing.assert_allclose(np.linalg.norm(planted.content, axis=1), 1, atol=1e-5)
    assert (planted.history // 20 == planted.interests[:, :1]).mean() == pytest.approx(1 / 3, abs=0.02)  # fmt: skip


def test_somebody_elses_history_says_nothing():
    _, drawn, cosines = figures(tarq.World(label="shuffled"), 20_000)
    assert abs(auc(cosines.mean(1), drawn["click"]) - 0.5) < 0.02
    with raises(ValueError, "label='clicks'"):
        tarq.World(label="clicks")


def test_it_is_written_as_it_is_sampled(tmp_path):
    sizes = dict(users=50, train=300, validation=40, test=60, seed=3)
    data = PreparedData(Prepared(tarq.prepare(tmp_path, **sizes)), history=20)
    world, rng = tarq.World(**sizes), np.random.default_rng(3)
    planted = tarq.plant(world, rng)
    tarq.sample(world, planted, 300, rng)
    want = tarq.sample(world, planted, 40, rng)
    batch = next(iter(data.batches("validation", 40)))
    np.testing.assert_array_equal(batch["group"]["user_key"], want["user"])
    np.testing.assert_allclose(batch["label"]["oracle"][:, 0], want["oracle"], rtol=1e-6)
    np.testing.assert_array_equal(batch["dense"]["content"][:, 0], planted.content[want["item"]])
    past = planted.history[want["user"]]
    np.testing.assert_array_equal(batch["dense"]["hist_content"], planted.content[past])
    ids = batch["ids"]["item"][0]
    np.testing.assert_array_equal(ids[batch["pos"]["hist_item"]], past + 3)
    assert batch["mask"]["history"].all() and (batch["age"]["history"] > 0).all()
    assert data.vocabulary("item").height == 1280
