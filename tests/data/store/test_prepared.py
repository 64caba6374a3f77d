"""Prepared data on disk: whole or absent, blocks in order, and clear words about damage."""

import concurrent.futures
import json
import os
import pickle

import numpy as np
import polars as pl
import pytest

from recjax.data import open_data
from recjax.data.store import prepared, vocabulary, writing
from recjax.data.store.prepared import DataError, Prepared
from recjax.data.store.vocabulary import DAY, Vocabulary
from recjax.data.store.writing import write_prepared
from recjax.schema import MISSING, OOV, Feature, IdSpace, Schema, SchemaError
from tests import messages
from tests.messages import raises

ROWS, EVENTS = 1000, 60
SCHEMA = Schema(
    id_spaces=(IdSpace("item", 50),),
    features=(
        Feature("item", "candidate", "item"),
        Feature("vector", "candidate", vector=3),
        Feature("price", "candidate", transform="log1p"),
        Feature("history_item", "history", "item", list="history"),
        Feature("click", "label"),
    ),
    groups=("user",),
)


def columns(rows=ROWS, partitions=1, seed=0):
    rng = np.random.default_rng(seed)
    end = rng.integers(0, EVENTS, rows)
    return {
        "time": rng.integers(EVENTS, 2 * EVENTS, rows),
        "history/end": end,
        "history/count": end // 2,
        "item": rng.integers(3, 50, rows),
        "vector": rng.random((rows, 3), np.float32),
        "price": np.arange(rows, dtype=np.float32),  # names the row
        "click": rng.integers(0, 2, rows),
        "user": rng.integers(0, 9, rows),
        "request": rng.permutation(rows) // 4,
        "partition": rng.integers(0, partitions, rows),
    }


def timelines(partitions=1):
    item = np.arange(EVENTS) % 47 + 3
    return {
        "history": [{"time": np.arange(EVENTS), "history_item": item} for _ in range(partitions)]
    }


def write(folder, splits=None, partitions=1, **options):
    splits = {"train": columns(partitions=partitions)} if splits is None else splits
    options = {"block_size": 64} | options
    return Prepared(write_prepared(folder, "toy", SCHEMA, timelines(partitions), splits, **options))


def read(data, split):
    blocks = [data.block(split, i) for i in range(data.blocks(split))]
    return {c: np.concatenate([b[c] for b in blocks]) for c in blocks[0] if c != "partition"}


def test_blocks_hold_every_row_once_with_its_columns(tmp_path):
    wanted = columns()
    data = write(tmp_path, {"train": wanted, "test": wanted})
    assert data.splits == {"train": ROWS, "test": ROWS}
    assert data.block_rows("train").sum() == ROWS and data.block_rows("train").max() == 64
    for split in data.splits:
        got = read(data, split)
        assert got["row"].tolist() == list(range(ROWS))
        for name, (dtype, shape) in prepared.column_dtypes(SCHEMA).items():
            assert got[name].dtype == dtype and got[name].shape == (ROWS, *shape), name
            if name in wanted:
                order = got["price"].astype(int)
                np.testing.assert_array_equal(got[name], wanted[name][order].astype(dtype), name)
        assert (got["weight"] == 1).all()


def test_training_order_is_one_seeded_permutation_and_others_are_by_request(tmp_path):
    splits = {"train": columns(), "train_matched": columns(), "test": columns()}
    first, same = write(tmp_path / "a", splits), write(tmp_path / "b", splits)
    other = write(tmp_path / "c", splits, seed=1)
    order = read(first, "train")["price"]
    assert sorted(order) == list(range(ROWS)) and not np.array_equal(order, np.arange(ROWS))
    np.testing.assert_array_equal(order, read(same, "train")["price"])
    assert not np.array_equal(order, read(other, "train")["price"])
    assert not np.array_equal(
        read(first, "train_matched")["request"], np.sort(columns()["request"])
    )
    np.testing.assert_array_equal(read(first, "test")["request"], np.sort(columns()["request"]))


def test_a_split_goes_to_several_files_and_never_through_tfds_s_buffer(tmp_path, monkeypatch):
    """TFDS's own writer sorts a split in memory and needs TensorFlow for one of more than 1 GiB."""
    whole = write(tmp_path / "one")
    monkeypatch.setattr(writing, "SHARD_BYTES", 10_000)
    monkeypatch.setattr("tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE", 0)
    parts = write(tmp_path / "many")
    files = sorted(f.name for f in parts.path.glob("*.array_record*"))
    assert len(files) > 3 and files[1].endswith(f"-00001-of-{len(files):05d}")
    assert not list(parts.path.glob("*.writing"))
    one, many = read(whole, "train"), read(parts, "train")
    for name, x in one.items():
        np.testing.assert_array_equal(x, many[name], err_msg=name)


def test_an_empty_split_is_refused(tmp_path):
    with raises(DataError, "'test'", "rows"):
        write(tmp_path, {"train": columns(), "test": columns(0)})


@pytest.mark.parametrize("split", ["train", "test"])
def test_requests_stay_together_inside_a_block(tmp_path, split):
    data = write(tmp_path, {split: columns()}, unit="request", block_size=30)
    seen = set()
    for i in range(data.blocks(split)):
        request = data.block(split, i)["request"]
        runs = request[np.r_[True, request[1:] != request[:-1]]]
        assert len(runs) == len(set(runs)) and not seen & set(runs.tolist())
        seen |= set(runs.tolist())
    assert len(seen) == ROWS // 4 and data.block_rows(split).max() <= 30


def test_a_request_larger_than_a_block_is_its_own_block(tmp_path):
    rows = columns(10) | {"request": np.array([0, 1, 1, 1, 1, 1, 1, 1, 2, 2])}
    data = write(tmp_path, {"test": rows}, block_size=3)
    assert data.block_rows("test").tolist() == [1, 7, 2]


def test_a_block_belongs_to_one_partition(tmp_path):
    wanted = columns(partitions=3)
    data = write(tmp_path, {"train": wanted}, partitions=3)
    assert set(data.block_partitions("train")) == {0, 1, 2}
    for i in range(data.blocks("train")):
        block = data.block("train", i)
        assert block["partition"] == data.block_partitions("train")[i]
        assert (wanted["partition"][block["price"].astype(int)] == block["partition"]).all()
    # Partitions take turns, so a prefix of the pass is no single partition's.
    assert len(set(data.block_partitions("train")[:6])) > 1


def test_timelines_are_mapped_and_survive_pickling(tmp_path):
    data = write(tmp_path)
    assert isinstance(data.timeline("history", 0)["history_item"], np.memmap)
    data.block("train", 0)
    text = pickle.dumps(data)
    assert len(text) < 1000  # neither blocks nor timelines travel
    copy = pickle.loads(text)
    assert copy.schema == SCHEMA and copy.identity == data.identity
    np.testing.assert_array_equal(copy.timeline("history", 0)["time"], np.arange(EVENTS))


def test_threads_read_the_same_blocks(tmp_path):
    data = write(tmp_path, block_size=16)
    alone = [data.block("train", i)["price"] for i in range(data.blocks("train"))]
    fresh = Prepared(data.path)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda i: fresh.block("train", i)["price"], range(len(alone))))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_identity_names_the_directory_and_the_same_options_do_nothing(tmp_path):
    def forbidden():
        raise AssertionError("prepared again")

    data = write(tmp_path, {"train": columns}, options={"a": 1}, facts={"counters": ["n"]})
    assert data.identity["hash"] in os.fspath(data.path)
    assert data.identity["counters"] == ["n"]
    assert data.identity["config"] == {"a": 1, "block_size": 64, "unit": "impression", "seed": 0}
    assert write(tmp_path, {"train": forbidden}, options={"a": 1}).path == data.path
    with pytest.raises(AssertionError, match="prepared again"):
        write(tmp_path, {"train": forbidden}, options={"a": 2})


def test_a_directory_prepared_with_other_options_is_said_to_be(tmp_path, caplog):
    data = write(tmp_path, {"train": columns}, options={"text": "hashed", "weeks": [1, 2]})
    same = dict(text="hashed", weeks=(1, 2), other=0)
    open_data(dict(dir=os.fspath(data.path), prepare=same))
    assert "data.prepare" not in caplog.text
    open_data(dict(dir=os.fspath(data.path), prepare=same | dict(text="wordllama", limit=3)))
    for words in ("text='hashed'", "data.prepare", "'wordllama'", "limit=None"):
        assert words in caplog.text


def test_other_content_without_options_gets_another_directory(tmp_path):
    one = write(tmp_path, {"train": columns(seed=0)})
    assert write(tmp_path, {"train": columns(seed=0)}).path == one.path
    assert write(tmp_path, {"train": columns(seed=1)}).path != one.path


def test_an_interrupted_preparation_publishes_nothing(tmp_path):
    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, {"train": columns, "test": broken}, options={"a": 1})
    assert not list(tmp_path.rglob("dataset_info.json"))
    write(tmp_path, {"train": columns}, options={"a": 1})
    assert len(list(tmp_path.rglob("dataset_info.json"))) == 1


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def corrupt(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))


def test_damage_is_named_with_its_remedy(tmp_path):
    data = write(tmp_path, report={"rows": ROWS})
    (record,) = data.path.glob("*.array_record*")
    timeline = data.path / "timelines/history/part-00000/history_item.npy"
    for file, damage in (
        (record, truncate),
        (timeline, truncate),
        (data.path / "report.json", os.unlink),
        (data.path / "files.json", os.unlink),
        (data.path / "metadata.json", os.unlink),
    ):
        kept = file.read_bytes()
        damage(file)
        with raises(DataError, os.fspath(file), "prepare"):
            Prepared(data.path)
        file.write_bytes(kept)
    assert Prepared(data.path).report == {"rows": ROWS}  # the control: repaired, it opens
    (data.path / "files.json").write_text("{")
    with raises(DataError, "description", "prepare"):
        Prepared(data.path)
    (data.path / "files.json").write_text("{}")
    corrupt(record)
    with raises(DataError, "block 0", "'train'", "prepare"):
        Prepared(data.path).block("train", 0)


def flipped(file, bit: int):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bytes(data))


def read_all(path):
    """Everything that a run reads."""
    data = Prepared(path)
    blocks = [data.block(s, i) for s in data.splits for i in range(data.blocks(s))]
    timelines = [data.timeline(n) for n in data.schema.lists]
    vocabularies = [data.vocabulary(s.name).to_dict(as_series=False) for s in data.schema.id_spaces]
    parts = [data.schema, data.identity, data.report, data.splits, vocabularies]
    columns = [{k: np.asarray(v).tolist() for k, v in x.items()} for x in (*blocks, *timelines)]
    return parts, columns


def test_a_flipped_bit_is_refused_or_harmless(tmp_path):
    """Two hundred bits, spread over all files: what is read is what was written, or nothing is."""
    frame = pl.DataFrame(
        {"value": [f"v{i}" for i in range(40)], "id": range(3, 43), "count": [1] * 40}
    )
    data = write(tmp_path, vocab={"item": frame}, report={"rows": ROWS})
    truth, rng, refused = read_all(data.path), np.random.default_rng(0), 0
    files = sorted(f for f in data.path.rglob("*") if f.is_file() and f.stat().st_size)
    for file in files * (200 // len(files) + 1):
        kept = file.read_bytes()
        flipped(file, int(rng.integers(8 * len(kept))))
        try:
            assert read_all(data.path) == truth, file
        except DataError as e:
            refused += 1
            assert str(data.path) in str(e)
        file.write_bytes(kept)
    assert refused > 150
    assert read_all(data.path) == truth  # the control


def test_verify_names_a_damaged_file_and_counts_the_others(tmp_path):
    data = write(tmp_path, report={"rows": ROWS})
    files = json.loads((data.path / "files.json").read_text())
    assert Prepared(data.path).verify() == len(files) >= 6
    (record,) = data.path.glob("*.array_record*")
    flipped(record, 8 * 100)
    with pytest.raises(DataError, match=record.name):
        Prepared(data.path).verify()


def test_data_of_earlier_versions_open_by_their_sizes(tmp_path):
    data = write(tmp_path, report={"rows": ROWS})
    files = json.loads((data.path / "files.json").read_text())
    (data.path / "files.json").write_text(json.dumps({n: f["bytes"] for n, f in files.items()}))
    old = Prepared(data.path)
    assert old.report == {"rows": ROWS} and old.verify() == 0
    truncate(data.path / "report.json")
    with messages.raises(DataError, "report.json"):
        Prepared(data.path)


def test_absent_data_is_named(tmp_path):
    with raises(DataError, "nowhere"):
        Prepared(tmp_path / "nowhere")
    data = write(tmp_path)
    with raises(DataError, "'tset'", "train"):
        data.block("tset", 0)
    with raises(DataError, "'item'", "vocabulary"):
        data.vocabulary("item")
    with raises(IndexError, "99"):
        data.block("train", 99)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"item": None}, ["'item'"]),
        ({"item": np.zeros(5, int)}, ["'item'", "(5,)"]),
        ({"item": np.full(ROWS, 0.5)}, ["'item'", "float64", "int32"]),
        ({"item": np.full(ROWS, 999)}, ["'item'", "999"]),
        ({"history/end": np.full(ROWS, EVENTS + 1)}, ["history", EVENTS + 1]),
        ({"history/count": np.full(ROWS, EVENTS)}, ["history", "start"]),
        ({"time": np.zeros(ROWS, int)}, ["histories", "request"]),
    ],
)
def test_bad_columns_are_refused(tmp_path, change, words):
    rows = {k: v for k, v in (columns() | change).items() if v is not None}
    with raises(DataError, *words):
        write(tmp_path, {"train": rows})


def test_needs_neither_tensorflow_nor_jax(tmp_path, run_python):
    data = write(tmp_path)
    run_python(
        "import sys; from recjax.data.store.prepared import Prepared\n"
        f"assert len(Prepared({os.fspath(data.path)!r}).block('train', 0)['item']) == 64\n"
        "loaded = {'tensorflow', 'jax', 'torch'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )


# --------------------------------------------------------------------------------------------------- vocabularies


def test_vocabulary_admits_by_count_and_round_trips(tmp_path):
    column = pl.Series(["b", "a", "a", None, "c", "b", "d", "a", "c"])
    v = Vocabulary.build("letter", column, min_count=2)
    assert v.values.to_list() == ["a", "b", "c"] and v.counts.tolist() == [3, 2, 2]
    ids = v.encode(pl.Series(["a", "d", None, "z", "c"]))
    assert ids[[1, 2, 3]].tolist() == [OOV, MISSING, OOV]
    assert v.decode(ids).to_list() == ["a", None, None, None, "c"]
    v.save(tmp_path / "letter.parquet")
    np.testing.assert_array_equal(Vocabulary.load("letter", tmp_path / "letter.parquet").ids, v.ids)
    assert os.listdir(tmp_path) == ["letter.parquet"]


def test_vocabulary_refuses_other_types_and_foreign_ids():
    v = Vocabulary.build("letter", pl.Series(["a", "b"]))
    with raises(SchemaError, "'letter'", "String", "Int64", "cast"):
        v.encode(pl.Series("x", [1, 2]))
    with raises(SchemaError, "'letter'", "version"):
        Vocabulary.load("letter", v.frame().with_columns(pl.col("id") + 1))


def test_empty_vocabulary_encodes_to_reserved_ids():
    v = Vocabulary.build("letter", pl.Series("x", [], dtype=pl.String))
    assert v.encode(pl.Series(["a", None])).tolist() == [OOV, MISSING]


@pytest.mark.parametrize("rows", [8, 16, 2048, 65536])
def test_ids_are_a_bijection_that_spreads_frequent_values(rows):
    ids = vocabulary.spread(np.arange(rows - 3), rows)
    assert sorted(ids) == list(range(3, rows))
    if (
        rows >= 2048
    ):  # the 64 most frequent values over 8 equal blocks of rows: 8 each, give or take 2
        per_block = np.bincount(ids[:64] // (rows // 8), minlength=8)
        assert per_block.min() >= 6 and per_block.max() <= 10
        in_order = np.bincount(np.arange(3, 67) // (rows // 8), minlength=8)
        assert in_order.max() == 64  # the control: without the bijection one block has them all


def test_vocabularies_are_stored_with_the_data(tmp_path):
    v = Vocabulary.build("item", pl.Series([7, 7, 8]))
    data = write(tmp_path, vocab=vocabulary.frames({"item": v}))
    assert data.vocabulary("item").to_dict(as_series=False)["value"] == [7, 8]
    assert "vocab/item.parquet" in json.loads((data.path / "files.json").read_text())


def test_vocabularies_keep_ids_from_day_to_day_and_reclaim_the_longest_unseen():
    first = Vocabulary.build(
        "item", pl.Series(["a", "a", "b", "c"]), times=np.array([0, 9, 5, 3]) * DAY, head_room=1.0
    )
    assert first.rows == 16 and first.frame()["last"].to_list() == [9 * DAY, 5 * DAY, 3 * DAY]
    later = pl.Series(["b", *"opqrstuvwx"])  # ten new values, exactly the spare rows
    second = first.extend(later, 1, np.full(11, 10 * DAY), 1)
    assert second.rows == 16 and second.space.size == 16
    same = [*"abc"]
    np.testing.assert_array_equal(second.encode(pl.Series(same)), first.encode(pl.Series(same)))
    assert sorted(second.ids) == list(range(3, 16)) and second.since.tolist() == [0] * 3 + [1] * 10
    assert second.last[:3].tolist() == [9 * DAY, 10 * DAY, 3 * DAY]
    with raises(SchemaError, "'item'", "2 new", "0 of", "16 rows"):
        second.extend(pl.Series(["y", "z"]), 1, np.full(2, 11 * DAY), 2)
    with raises(SchemaError, "7 days"):
        second.extend(pl.Series(["y", "z"]), 1, np.full(2, 11 * DAY), 2, reclaim_days=7)
    third = second.extend(pl.Series(["y", "y", "z", "a"]), 1, np.full(4, 12 * DAY), 2, 1.5)
    # c was unseen for 9 days and goes first; then b and the new ones tie at two days, b and o have one row each: b's
    # place is taken because it comes first. a is older still, but it is in the new data.
    assert third.encode(pl.Series(["c", "b"])).tolist() == [OOV, OOV]
    np.testing.assert_array_equal(
        third.encode(pl.Series(["y", "z", "a"])), first.encode(pl.Series(["c", "b", "a"]))
    )
    again = Vocabulary.load("item", third.frame(), third.rows)
    assert again.frame().equals(third.frame()) and again.since[:3].tolist() == [0, 2, 2]


def test_preparing_leaves_no_temporary_folder(tmp_path, monkeypatch):
    """TFDS makes one, tmp...tfds, for what a bucket might know of a data set."""
    from recjax.data.worlds import tin

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert tin.prepare(tmp_path / "data").exists()
    assert list(temporary.iterdir()) == []
