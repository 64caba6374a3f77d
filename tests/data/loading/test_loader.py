"""The stream: the same for any number of workers and hosts, and resumable anywhere."""

import dataclasses
import os
import pathlib
import pickle
import pkgutil

from absl import flags
import numpy as np
import pytest

import recjax.data
from recjax.data import open_data
from recjax.data.loading import loader
from recjax.data.loading.layout import BatchError
from recjax.data.loading.loader import PreparedData
from recjax.data.loading.order import Order, request_starts
from recjax.data.store.prepared import DataError, Prepared
from recjax.data.store.writing import write_prepared
from recjax.data.worlds import base
from recjax.schema import Feature, IdSpace, Schema
from tests.messages import raises

WORLD = dict(users=300, items=80, impressions=4_000, events=15)
L = 8


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return base.prepare(tmp_path_factory.mktemp("world"), block_size=300, **WORLD)


@pytest.fixture(scope="module")
def data(path):
    return PreparedData(Prepared(path), history=L)


@pytest.fixture(scope="module")
def split_data(tmp_path_factory):
    """The same world in four partitions: Data of host `index` of `count`."""
    folder = base.prepare(tmp_path_factory.mktemp("parts"), block_size=200, partitions=4, **WORLD)
    return lambda index=0, count=1: PreparedData(
        Prepared(folder), history=L, process_index=index, process_count=count
    )


def leaves(tree, path=()):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, np.asarray(tree)


def assert_equal_streams(got, want):
    got, want = list(got), list(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        a, b = dict(leaves(a)), dict(leaves(b))
        assert list(a) == list(b)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=str(key))


def rows(batches) -> np.ndarray:
    return np.concatenate([b["row"][b["valid"]] for b in batches])


# ---------------------------------------------------------------------------------- the same stream


def test_the_stream_is_the_same_for_any_number_of_workers_and_resumes_across_them(data):
    options = dict(epochs=2, shuffle_seed=3, shards=2, examples=1_500)
    want = list(data.batches("train", 128, **options))
    assert len(want) == len(data.batches("train", 128, start=5, **options)) == 24
    for workers, start in ((1, 0), (2, 11), (3, 5)):
        assert_equal_streams(
            data.batches("train", 128, start=start, workers=workers, **options), want[start:]
        )


def test_resumes_at_every_batch(data):
    options = dict(epochs=2, shuffle_seed=3, examples=900)
    want = list(data.batches("train", 256, **options))
    for start in range(len(want) + 1):
        assert_equal_streams(data.batches("train", 256, start=start, **options), want[start:])
    with raises(BatchError, "start=9", "'train'", "8"):
        data.batches("train", 256, start=9, **options)


def test_leaving_early_ends_the_workers(data):
    stream = iter(data.batches("train", 64, workers=1))
    next(stream)
    children = _children()
    stream.close()
    assert children and not children & _children()


def _children() -> set[str]:
    tasks = pathlib.Path(f"/proc/{os.getpid()}/task").iterdir()
    pids = {pid for task in tasks for pid in (task / "children").read_text().split()}
    return {
        p for p in pids if "resource_tracker" not in pathlib.Path(f"/proc/{p}/cmdline").read_text()
    }


def test_workers_without_parsed_flags_say_what_to_do(data):
    flags.FLAGS.unparse_flags()
    try:
        with pytest.raises(BatchError, match="mark_as_parsed"):
            next(iter(data.batches("train", 64, workers=1)))
        next(iter(data.batches("train", 64)))
    finally:
        flags.FLAGS.mark_as_parsed()


# ---------------------------------------------------------------------------------------- the order


@pytest.mark.parametrize("partitions", [1, 4])
def test_another_draw_puts_other_impressions_first_and_its_sizes_are_nested(tmp_path, partitions):
    folder = base.prepare(tmp_path, block_size=50, partitions=partitions, **WORLD)
    drawn = lambda seed: PreparedData(Prepared(folder), history=L, draw=("train", seed))  # noqa: E731
    one, two, stored = drawn(1), drawn(2), drawn(0)
    n = stored.splits["train"]
    read = lambda data, size, **o: rows(data.batches("train", 64, examples=size, **o))  # noqa: E731
    assert sorted(read(one, 0)) == list(range(n)) == sorted(read(two, 0))
    small, large = read(one, 640), read(one, 1_280)
    assert len(small) == len(set(small)) == 640 and set(small) <= set(large)
    if partitions == 1:
        np.testing.assert_array_equal(small, large[:640])
    assert set(read(stored, 640)) == set(range(640)) or partitions > 1
    # Draws share what chance says: 640 of n, give or take.
    for other in (read(two, 640), read(stored, 640)):
        assert len(set(small) & set(other)) < 640 * (640 / n + 0.35)
    assert set(read(one, 640, epochs=2, shuffle_seed=3)) == set(small)
    np.testing.assert_array_equal(rows(one.batches("test", 64)), rows(stored.batches("test", 64)))
    with raises(BatchError, "data.draw", "history length"):
        one.batches("train", 64, recent=100)


def test_data_with_an_order_of_its_own_refuse_a_draw(tmp_path):
    with raises(BatchError, "data.draw"):
        open_data(dict(name="product_graph", draw=1))


def test_the_first_epoch_is_the_stored_order_and_a_prefix_is_a_nested_subset(data):
    n = data.splits["train"]
    np.testing.assert_array_equal(rows(data.batches("train", 128, shuffle_seed=1)), np.arange(n))
    small, big = (
        data.batches("train", 128, examples=640),
        data.batches("train", 128, examples=1_000),
    )
    levels = big.levels
    assert (small.examples, len(small), big.examples, len(big)) == (640, 5, 1000, 8)
    np.testing.assert_array_equal(rows(big), np.arange(1_000))
    options = dict(levels=levels)
    assert_equal_streams(
        data.batches("train", 128, examples=640, **options),
        list(data.batches("train", 128, examples=1_000, **options))[:5],
    )


def times(data, split="train") -> np.ndarray:
    prepared = data.prepared
    return np.concatenate([prepared.block(split, i)["time"] for i in range(prepared.blocks(split))])


def test_the_latest_impressions_in_stored_order(data):
    latest = np.sort(np.argsort(times(data), kind="stable")[-700:])
    stream = data.batches("train", 128, recent=700)
    assert (stream.examples, len(stream)) == (700, 6)
    np.testing.assert_array_equal(rows(stream), latest)
    np.testing.assert_array_equal(
        rows(data.batches("train", 128, recent=700, examples=90)), latest[:90]
    )
    later = rows(data.batches("train", 100, recent=700, epochs=2, shuffle_seed=1)).reshape(2, 700)
    np.testing.assert_array_equal(np.sort(later[1]), latest)
    assert (later[1] != latest).any()
    everything = data.batches("train", 128, recent=data.splits["train"] + 5)
    np.testing.assert_array_equal(rows(everything), np.arange(data.splits["train"]))


def test_the_latest_impressions_of_partitions_and_of_whole_requests(split_data, path):
    whole = split_data()
    latest = np.sort(np.argsort(times(whole), kind="stable")[-700:])
    np.testing.assert_array_equal(np.sort(rows(whole.batches("train", 128, recent=700))), latest)
    grouped = PreparedData(Prepared(path), history=L, candidates=4)
    stream = list(grouped.batches("valid", 16, recent=41))
    assert len(rows(stream)) == 41
    request = np.concatenate([grouped.prepared.block("valid", i)["request"] for i in range(2)])
    for batch in stream:
        for row, valid in zip(batch["row"], batch["valid"], strict=True):
            assert len(set(request[row[valid]])) <= 1


def test_the_last_batch_is_filled_up(data):
    last = list(data.batches("train", 128, examples=130))[-1]
    assert last["valid"].sum() == 2 and last["valid"][:2].all()
    assert (
        (last["row"][2:] == -1).all()
        and not last["weight"][2:].any()
        and not last["mask"]["clicks"][2:].any()
    )
    for name, pos in last["pos"].items():
        space = data.schema.feature(name).id_space
        assert (last["ids"][space][0][pos[2:]] == 0).all(), "filling is the padding id"


def test_later_epochs_permute_the_same_rows(data):
    n = 1_000
    stream = data.batches("train", 100, examples=n, epochs=3, shuffle_seed=5)
    epochs = rows(stream).reshape(3, n)
    assert stream.examples == 3 * n and stream.batches_per_epoch == 10
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (3, 1)))
    assert len({tuple(e) for e in epochs}) == 3
    assert (np.diff(epochs[1]) == 1).mean() < 0.1, "rows within a block move"
    assert len(set(epochs[1][:100] // 300)) < len(set(epochs[1] // 300)), (
        "but blocks are read one after another"
    )
    other = rows(data.batches("train", 100, examples=n, epochs=2, shuffle_seed=6)).reshape(2, n)
    np.testing.assert_array_equal(other[0], epochs[0])
    assert (other[1] != epochs[1]).any()
    kept = rows(data.batches("train", 100, examples=n, epochs=2)).reshape(2, n)
    np.testing.assert_array_equal(kept[1], np.arange(n))


def test_every_impression_meets_its_own_columns_and_history(data):
    """Against the blocks and timelines themselves, in a shuffled epoch, over all rows."""
    prepared = data.prepared
    blocks = [prepared.block("train", i) for i in range(prepared.blocks("train"))]
    stored = {k: np.concatenate([b[k] for b in blocks]) for k in blocks[0] if k != "partition"}
    timeline = prepared.timeline("clicks", 0)
    stream = data.batches("train", 512, epochs=2, shuffle_seed=0, start=7, shards=4)
    for batch in stream:
        valid = batch["valid"][:, 0]
        row = batch["row"][valid, 0]
        for name, pos in batch["pos"].items():
            ids = np.take_along_axis(
                batch["ids"][data.schema.feature(name).id_space], pos.reshape(4, -1), 1
            )
            ids = ids.reshape(pos.shape)[valid]
            if not name.startswith("hist_"):
                np.testing.assert_array_equal(ids.reshape(-1), stored[name][row])
                continue
            for r, mine, age in zip(row[:40], ids, batch["age"]["clicks"][valid], strict=False):
                end, count = stored["clicks/end"][r], min(stored["clicks/count"][r], L)
                np.testing.assert_array_equal(
                    mine, np.r_[[0] * (L - count), timeline[name][end - count : end]]
                )
                past = stored["time"][r] - timeline["time"][end - count : end]
                np.testing.assert_array_equal(age, np.r_[[0] * (L - count), past])
                assert (past > 0).all()
        np.testing.assert_array_equal(batch["label"]["oracle"][valid, 0], stored["oracle"][row])
        np.testing.assert_array_equal(batch["group"]["uid"][valid], stored["uid"][row])


# ------------------------------------------------------------------------ hosts, shards, candidates


def test_hosts_build_the_halves_of_the_batch_one_host_would_build(split_data):
    options = dict(shards=4, epochs=2, shuffle_seed=2, examples=2_000)
    whole = split_data().batches("train", 64, **options)
    hosts = [split_data(i, 2).batches("train", 64, **options) for i in range(2)]
    assert hosts[0].levels == hosts[1].levels == whole.levels and len(hosts[0]) == len(whole)
    for want, *got in zip(whole, *hosts, strict=True):
        parts = [dict(leaves(g)) for g in got]
        for key, leaf in leaves(want):
            np.testing.assert_array_equal(
                np.concatenate([p[key] for p in parts]), leaf, err_msg=str(key)
            )
    np.testing.assert_array_equal(np.sort(rows(whole)), np.sort(np.tile(np.arange(2_000), 2)))


def test_sizes_that_do_not_divide_are_refused(data, split_data):
    for source, size, shards, words in (
        (data, 100, 8, ("100", "8 device shards")),
        (split_data(), 66, 1, ("batch_size = 66", "4 partitions")),
        (split_data(0, 3), 12, 3, ("partitions", "4", "3 hosts")),
        (split_data(0, 2), 64, 1, ("device shards = 1", "2 hosts")),
    ):
        with raises(BatchError, *words):
            source.batches("train", size, shards=shards)
    with raises(DataError, "'trian'", "train, valid, test"):
        data.batches("trian", 64)


def test_candidates_put_a_request_side_by_side(path):
    pages, flat = (PreparedData(Prepared(path), history=L, candidates=c) for c in (3, 1))
    requests = list(pages.batches("test", 16))
    n = pages.splits["test"]
    np.testing.assert_array_equal(rows(requests), np.arange(n))
    want = np.concatenate([b["label"]["oracle"][b["valid"]] for b in flat.batches("test", 16)])
    got = np.concatenate([b["label"]["oracle"][b["valid"]] for b in requests])
    np.testing.assert_array_equal(got, want)
    counts = np.concatenate([b["valid"].sum(1) for b in requests])
    assert set(counts[counts > 0][:-1]) == {3, 1}, "requests of 4 become 3 and 1"
    shuffled = PreparedData(Prepared(path), history=L, candidates=4).batches(
        "test", 16, epochs=2, shuffle_seed=0
    )
    per_epoch = shuffled.batches_per_epoch
    together = list(shuffled)[per_epoch:]
    np.testing.assert_array_equal(np.sort(rows(together)), np.arange(n))
    for b in together:
        used = b["valid"].any(1)
        assert (np.diff(b["row"][used], axis=1)[b["valid"][used][:, 1:]] == 1).all()


def test_candidates_of_scattered_requests_are_warned_about(path, caplog):
    with caplog.at_level("WARNING"):
        PreparedData(Prepared(path), history=L, candidates=4).batches("train", 16, examples=200)
    assert "unit='request'" in caplog.text


def test_request_starts_cut_long_runs():
    np.testing.assert_array_equal(
        request_starts(np.array([5, 5, 5, 5, 5, 1, 5, 5]), 2), [0, 2, 4, 5, 6, 8]
    )
    np.testing.assert_array_equal(request_starts(np.array([7, 7]), 4), [0, 2])
    np.testing.assert_array_equal(request_starts(np.array([], int), 4), [0])


def test_requests_may_straddle_blocks():
    order = Order(0, np.array([4, 9]), np.array([0, 3, 6]), np.array([0, 2, 4, 6]), seed=1)
    rows_, counts = order.rows(order.requests(0, 0, 3))
    assert counts.tolist() == [2, 2, 2] and len(order) == 3
    pieces = order.pieces(rows_)
    assert [(b, np.arange(3)[at].tolist()) for b, at in pieces] == [(4, [0, 1, 2]), (9, [0, 1, 2])]
    assert sorted(order.requests(1, 0, 3)) == [0, 1, 2]


# ----------------------------------------------------------------------------- capacities and stats


def test_overflow_is_counted_and_nothing_is_lost(data):
    ample = data.batches("train", 128, examples=1_000)
    worst = ample.levels[-1]
    tight = data.batches("train", 128, examples=1_000, levels=[dict(worst, user=100), worst])
    got = list(tight)
    assert tight.stats["overflow"] == tight.stats["by_level"][1] > 0 == ample.stats["overflow"]
    assert sum(tight.stats["by_level"]) == tight.stats["batches"] == 8
    np.testing.assert_array_equal(rows(got), np.arange(1_000))
    with raises(BatchError, "'user'"):
        list(data.batches("train", 128, levels=[dict(worst, user=100)]))


def test_levels_do_not_depend_on_where_the_stream_starts(path):
    fresh = [
        PreparedData(Prepared(path), history=L).batches("train", 128, start=s).levels
        for s in (0, 9)
    ]
    assert fresh[0] == fresh[1]


def test_padding_is_reported(data):
    stream = data.batches("train", 100, examples=250)
    kept = sum(b["mask"]["clicks"].sum() for b in stream)
    assert stream.stats["padding"]["clicks"] == pytest.approx(1 - kept / (250 * L))


# ------------------------------------------------------------------------------------------ opening


def test_open_data_prepares_once_and_then_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("RECJAX_CACHE", str(tmp_path))
    cfg = dict(
        name="worlds.base",
        dir="",
        history={"clicks": 5},
        prepare=dict(users=50, items=20, impressions=200),
    )
    opened = open_data(cfg)
    assert tmp_path in opened.prepared.path.parents and opened.splits["train"] == 160
    assert next(iter(opened.batches("test", 8)))["mask"]["clicks"].shape == (8, 5)
    stamp = (opened.prepared.path / "schema.json").stat().st_mtime_ns
    again = open_data(cfg)
    assert (
        again.identity == opened.identity
        and (again.prepared.path / "schema.json").stat().st_mtime_ns == stamp
    )
    direct = open_data(dict(dir=str(opened.prepared.path), counters=False))
    gone = {f.name for f in opened.schema.features} - {f.name for f in direct.schema.features}
    assert gone == set(base.COUNTER.columns)
    assert gone.isdisjoint(next(iter(direct.batches("train", 8)))["dense"])


def test_open_data_names_what_it_cannot_find(tmp_path, path):
    with raises(BatchError, "'nowhere.set'"):
        open_data(dict(name="nowhere.set"))
    with pytest.raises(BatchError, match="both empty"):
        open_data(dict(name="", dir=""))
    with pytest.raises(DataError, match="there is no prepared data"):
        open_data(dict(dir=str(tmp_path / "absent")))
    with raises(BatchError, "history", "'views'", "clicks"):
        open_data(dict(dir=str(path), history={"views": 3}))


def test_what_a_data_module_lacks_is_not_mistaken_for_the_module(tmp_path, monkeypatch):
    (tmp_path / "mydata").mkdir()
    (tmp_path / "mydata" / "shop.py").write_text("import nosuchlibrary\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nosuchlibrary"):
        open_data(dict(name="mydata.shop"))
    (tmp_path / "mydata" / "shop.py").write_text("open_data = dict\n")
    assert open_data(dict(name="mydata.shop", source="a")) == dict(name="mydata.shop", source="a")


def test_a_bad_id_in_a_timeline_is_named(tmp_path):
    schema = Schema(
        (IdSpace("item", 10, 16),),
        (
            Feature("item", "candidate", "item"),
            Feature("seen", "history", "item", list="views"),
            Feature("y", "label"),
        ),
    )
    columns = dict(
        time=[100] * 4,
        item=[3] * 4,
        y=np.zeros(4, np.float32),
        **{"views/end": [2] * 4, "views/count": [2] * 4},
    )
    timeline = {"time": np.array([1, 2]), "seen": np.array([3, 16])}
    where = write_prepared(
        tmp_path,
        "bad",
        schema,
        {"views": [timeline]},
        {"train": {k: np.asarray(v) for k, v in columns.items()}},
    )
    for workers in (0, 1):
        with raises(BatchError, "'seen'", "id 16", "'item'", "16 rows"):
            list(
                PreparedData(Prepared(where), history=4).batches(
                    "train", 4, workers=workers, levels=[{"item": 16}]
                )
            )


def test_a_damaged_block_is_named(tmp_path):
    where = base.prepare(tmp_path, users=50, items=20, impressions=2_000, block_size=500)
    record = next(where.glob("*train*.array_record*"))
    content = bytearray(record.read_bytes())
    content[len(content) // 3 : 2 * len(content) // 3] = bytes(len(content) // 3 + 1)[
        : 2 * len(content) // 3 - len(content) // 3
    ]
    record.write_bytes(content)
    with raises(DataError, "block", "'train'", "prepare"):
        list(PreparedData(Prepared(where)).batches("train", 64))


def test_the_data_plane_never_imports_jax(run_python):
    """Grain imports JAX where it finds it, so JAX is hidden: then importing it from here fails."""
    modules = [m.name for m in pkgutil.walk_packages(recjax.data.__path__, "recjax.data.")]
    assert "recjax.data.loading.loader" in modules
    hide = "import sys; sys.modules['jax'] = sys.modules['flax'] = None\n"
    run_python(hide + "".join(f"import {m}\n" for m in modules), devices=1)
    with pytest.raises(AssertionError, match="import of (jax|flax) halted"):
        run_python(hide + "import recjax.inputs", devices=1)


def test_a_source_travels_light(data):
    source = data.batches("train", 128)._source
    source[0]
    assert len(pickle.dumps(source)) < 20_000
    opened = [s.assembler.open(s[1])[0] for s in (pickle.loads(pickle.dumps(source)), source)]
    assert_equal_streams(opened[:1], opened[1:])
    assert isinstance(dataclasses.replace(source, epochs=2), loader.BatchSource)
