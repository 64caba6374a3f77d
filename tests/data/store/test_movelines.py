"""Stages apart in time, targets after their request, negatives, blocks of a user."""

import dataclasses
import types

import numpy as np
import pytest

from recjax import configs, models
from recjax.data.loading.layout import BatchError
from recjax.data.loading.loader import PreparedData
from recjax.data.loading.stages import check_stages, check_windows
from recjax.data.sets import complete_journey_movelines
from recjax.data.store import movelines
from recjax.data.store.prepared import Prepared
from recjax.data.worlds import nif
from recjax.training import transfer
from tests.messages import raises

LENGTHS = dict(history=6, moveline=8, next=8, uniform=4, rejected=4)
USERS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return nif.prepare(tmp_path_factory.mktemp("nif"), users=USERS, seed=1)


@pytest.fixture(scope="module")
def data(folder):
    return PreparedData(Prepared(folder), history=LENGTHS)


def ids(batch, data, name):
    return batch["ids"][data.schema.feature(name).id_space][0][batch["pos"][name]]


def test_inputs_lie_before_the_request_and_targets_do_not(data):
    batch = next(iter(data.batches("train_flow", 256)))
    for name in ("history", "moveline"):
        assert (batch["age"][name][batch["mask"][name]] > 0).all()
    ahead = batch["age"]["next"][batch["mask"]["next"]]
    assert (ahead <= 0).all() and (ahead > -movelines.HORIZON).all() and (ahead == 0).any()
    end = nif.STEPS["train_flow"][2] * nif.STEP
    at = np.broadcast_to(batch["group"]["second"][:, None], batch["mask"]["next"].shape)
    assert ((at - batch["age"]["next"])[batch["mask"]["next"]] < end).all()
    # the click of the request itself is a target, and no input
    truth = nif.sample(nif.World(users=USERS, seed=1))
    row = int(np.flatnonzero(batch["mask"]["next"].any(1))[0])
    user, second = (int(batch["group"][k][row]) for k in ("user", "second"))
    clicked = truth.item[(truth.user == user) & truth.click & (truth.step * nif.STEP >= second)]
    mask = batch["mask"]["next"][row]
    first = ids(batch, data, "next_item")[row][mask] - 3
    merged = clicked[np.r_[True, clicked[1:] != clicked[:-1]]]
    np.testing.assert_array_equal(first, merged[: mask.sum()])


def test_negatives_come_with_their_share(data):
    batch = next(iter(data.batches("train_flow", 256)))
    assert batch["mask"]["uniform"].all()
    share, item = batch["dense"]["uniform_share"], ids(batch, data, "uniform_item")
    truth = nif.sample(nif.World(users=USERS, seed=1))
    early = truth.click & (truth.step < nif.STEPS["train_flow"][2])
    counts = np.bincount(truth.item[early], minlength=200) / early.sum()
    np.testing.assert_allclose(share, counts[item - 3], rtol=1e-5)
    assert len(np.unique(item)) > 150
    shown = ids(batch, data, "rejected_item")[batch["mask"]["rejected"]]
    assert len(shown) > 500 and batch["mask"]["rejected"].sum(1).max() == 4


def test_impressions_have_no_targets_and_lie_in_blocks_of_a_user(data):
    batch = next(iter(data.batches("train", 64)))
    for name in movelines.LISTS:
        assert not batch["mask"][name].any()
    user, second = batch["group"]["user"], batch["group"]["second"]
    same = np.diff(user) == 0
    assert same.mean() > 0.7  # blocks of eight, a user's last one shorter
    assert (np.diff(second)[same] > 0).mean() > 0.6  # successive requests, not one request's list
    assert (batch["group"]["cutoff"] == batch["group"]["second"] // nif.STEP).all()


def test_user_blocks():
    user = np.repeat([0, 1], [6, 3])
    time = np.array([1, 1, 1, 2, 2, 3, 5, 6, 7])
    got = movelines.user_blocks(user, time, np.random.default_rng(0), size=3)
    assert (
        len(set(got[[0, 3, 5]])) == 1 and len(set(got[[1, 4, 2]])) == 1
    )  # first rows, then second ones
    assert len(set(got)) == 3 and sorted(np.unique(got)) == [0, 1, 2]


def test_stages_that_overlap_are_refused(tmp_path, folder):
    stages = Prepared(folder).identity["stages"]
    check_windows(stages, folder, False)
    late = {**stages, "train_flow": {**stages["train_flow"], "end": stages["train"]["end"]}}
    with raises(BatchError, "'train_flow'", "'train'", "stage 1", "stage 2"):
        check_windows(late, folder, False)
    check_windows(late, folder, True)
    prepared = Prepared(folder)
    prepared.identity["stages"] = late
    with raises(BatchError, "'train_flow'", "'train'"):
        check_stages(prepared, "train")
    longer = nif.prepare(tmp_path, users=USERS, seed=1, overlap=True)
    later = PreparedData(Prepared(longer), history=LENGTHS)
    assert (
        later.splits["train_flow"]
        > 1.5 * PreparedData(prepared, history=LENGTHS).splits["train_flow"]
    )
    check_stages(later.prepared, "train_flow")


def test_rows_and_targets_outside_their_window_are_refused(folder):
    for change in (dict(begin=4 * nif.STEP + nif.EPOCH), dict(end=26 * nif.STEP + nif.EPOCH)):
        prepared = Prepared(folder)
        stages = prepared.identity["stages"]
        stages["train_flow"] = {**stages["train_flow"], **change}
        with raises(BatchError, "train_flow", "window"):
            check_stages(prepared, "train_flow")


def test_a_run_checks_stages_where_the_model_wants_them_apart(folder, data):
    config = configs.base()
    config.data.train, config.eval.final = "train", ("test",)
    amen, din = (models.build(data.schema, dict(name=name)) for name in ("amen", "din"))
    transfer.check_stages(config, data, amen)
    wrong = PreparedData(Prepared(folder), history=LENGTHS)
    wrong.prepared.identity["stages"]["test"] |= dict(begin=0, end=1)
    transfer.check_stages(config, wrong, din)
    with raises(BatchError, "'test'", "window"):
        transfer.check_stages(config, wrong, amen)


def test_shuffled_labels_say_nothing_and_histories_stay(tmp_path, data):
    other = PreparedData(
        Prepared(nif.prepare(tmp_path, users=USERS, seed=1, label="shuffled")), history=LENGTHS
    )
    a, b = (next(iter(d.batches("test", 512))) for d in (data, other))
    assert abs(a["label"]["click"].mean() - b["label"]["click"].mean()) < 0.05

    def gap(x):
        return x["label"]["oracle"][x["label"]["click"] > 0].mean() - x["label"]["oracle"].mean()

    assert gap(a) > 1 and abs(gap(b)) < 0.6


def test_windows_cover_the_log():
    windows = nif.windows(nif.World())
    assert all(dataclasses.astuple(w)[1] < dataclasses.astuple(w)[2] for w in windows.values())
    assert windows["train_early"].end == windows["train"].begin


def test_products_of_a_visit_come_in_no_order():
    """The log has them by number, which is nobody's intent."""
    household, time = np.repeat([0, 0, 1], 20), np.repeat([7, 9, 7], 20)
    product = np.tile(np.arange(20), 3)
    log = types.SimpleNamespace(
        purchases=dict(household=household, time=time, product=product),
        values=dict(household=["a", "b"]),
    )
    items = movelines.Items({"product": np.arange(20)}, np.ones(20, np.float32), np.arange(20))
    lines = [complete_journey_movelines.targets_ahead(log, items, seed) for seed in (0, 0, 1)]
    visits = [line.columns["next_product"].reshape(3, 20) for line in lines]
    np.testing.assert_array_equal(lines[0].columns["time"], time)
    np.testing.assert_array_equal(np.sort(visits[0], 1), product.reshape(3, 20))
    np.testing.assert_array_equal(visits[0], visits[1])
    assert (visits[0] != visits[2]).any()
    assert all((np.diff(v) < 0).any() for v in visits[0])
