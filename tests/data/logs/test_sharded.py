"""Preparation in shards: the rows of preparation at once, whatever the number of shards and whoever runs them.

The Beam tests need apache-beam, which pins older packages and gets an environment of its own:

    python -m venv beam && beam/bin/pip install -e '.[beam]' pytest
    PYTHONPATH=. beam/bin/python -m pytest tests/data/logs/test_sharded.py --noconftest -c /dev/null --rootdir=. \
        --import-mode=importlib
"""

import importlib.util

from etils import epath
import numpy as np
import polars as pl
import pytest

from recjax.data.logs import prepare as logs
from recjax.data.logs import sharded, sources
from recjax.data.logs.sources import list_files
from recjax.data.logs.whole import find_last_rows, last_row_arrays
from recjax.data.store.prepared import DataError, Prepared
from recjax.data.worlds.transactions import DAY, FIRST, transactions
from tests import messages

SPLIT = 'split = {"validation": "2024-02-10", "test": "2024-02-20"}\n'
SHOP = (
    'user, item, time = "customer_id", "item_id", "timestamp"\nitem_columns = ["price", "brand"]\n'
    'dense = ["price"]\nmin_count = 2\nuser_columns = ["country"]\n'
)
FEED = (
    'user, item, time = "user", "item", "at"\nlabels = ["click"]\nscene = "device"\n'
    'item_columns = ["price"]\ndense = ["price"]\nsession_gap = "3d"\nmovelines = {"moves": []}\n'
)


def shop() -> pl.DataFrame:
    frame = transactions(users=60, items=50, rows=1_500, days=60, seed=3)
    brand = [f"b{i % 7}" if i % 11 else None for i in range(len(frame))]  # it changes in time
    return frame.with_columns(brand=pl.Series(brand))


def feed(rows=2_000) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user": [f"u{x}" for x in rng.integers(40, size=rows)],
            "item": [f"i{x}" for x in rng.integers(30, size=rows)],
            "at": FIRST + rng.integers(0, 60 * DAY, rows) // 600 * 600,
            "click": rng.integers(0, 2, rows),
            "device": [f"d{x}" for x in rng.integers(3, size=rows)],
            "price": np.round(rng.random(rows) * 9, 2),
        }
    )
    return pl.concat([frame, frame[:25]])  # repeats, in the other file


LOGS = {"shop": (shop, SHOP), "feed": (feed, FEED)}


def prepare(folder, kind, extra="", **options) -> Prepared:
    """Two files, so that shards are put together from pieces; a bad row in the second."""
    make, mapping = LOGS[kind]
    frame = make()
    folder.mkdir(parents=True, exist_ok=True)
    frame[: len(frame) // 2].write_csv(folder / "a.csv")
    user = frame.columns[0]
    half = frame[len(frame) // 2 :]
    half = half.with_columns(
        pl.when(pl.int_range(pl.len()) == 5).then(None).otherwise(pl.col(user)).alias(user)
    )
    half.write_csv(folder / "b.csv")
    (folder / "mapping.py").write_text(mapping + SPLIT + extra)
    source, mapping_file = str(folder / "*.csv"), str(folder / "mapping.py")
    name = (
        "-".join(f"{k}{v}" for k, v in options.items() if k not in ("runner", "work", "extends"))
        or "whole"
    )
    return Prepared(
        logs.prepare(folder / name, source=source, mapping=mapping_file, block_size=128, **options)
    )


def read(data, split) -> dict[str, np.ndarray]:
    blocks = [data.block(split, i) for i in range(data.blocks(split))]
    out = {c: np.concatenate([b[c] for b in blocks]) for c in blocks[0] if c != "partition"}
    sizes = [len(b["time"]) for b in blocks]
    return out | {"partition": np.repeat(data.block_partitions(split), sizes)}


def as_frame(data, split) -> pl.DataFrame:
    """Rows with what they mean: numbers of requests and places in stores replaced by what they point to."""
    rows = read(data, split)
    gone = {"row", "request", "user", "session", "page", "partition"}
    gone |= {c for c in rows if c.endswith("/end")}
    columns = {c: pl.Series(x) for c, x in rows.items() if c not in gone}
    for name in data.schema.lists:
        fields = [f.name for f in data.schema.features if f.list == name]
        past = []
        for p, end, count in zip(
            rows["partition"], rows[f"{name}/end"], rows[f"{name}/count"], strict=True
        ):
            t = data.timeline(name, int(p))
            past.append(str([t[c][end - count : end].tolist() for c in ("time", *fields)]))
        columns[f"{name}/past"] = pl.Series(past)
    frame = pl.DataFrame(columns)
    return frame.sort(frame.columns)


def assert_same(a: Prepared, b: Prepared) -> None:
    """Bit by bit."""
    assert a.splits == b.splits and a.schema == b.schema
    for split in a.splits:
        one, two = read(a, split), read(b, split)
        for column, x in one.items():
            np.testing.assert_array_equal(x, two[column], err_msg=f"{split}: {column}")
    for name in a.schema.lists:
        for p in range(1 + max(int(a.block_partitions(s).max()) for s in a.splits)):
            for column, x in a.timeline(name, p).items():
                np.testing.assert_array_equal(x, b.timeline(name, p)[column], err_msg=column)
    for space in a.schema.id_spaces:
        assert a.vocabulary(space.name).equals(b.vocabulary(space.name))


# ------------------------------------------------------------------------------------ one process


@pytest.mark.parametrize("kind", LOGS)
def test_one_shard_is_the_log_at_once_bit_by_bit(tmp_path, kind):
    whole, one = prepare(tmp_path, kind), prepare(tmp_path, kind, shards=1)
    assert_same(whole, one)
    got, want = one.report, whole.report
    assert got.keys() == want.keys()
    for key in want:
        if key in ("by_day", "by_scene"):  # sums of float32 means
            assert got[key].keys() == want[key].keys()
            for k, v in want[key].items():
                assert got[key][k] == pytest.approx(v, abs=1e-6)
        elif key == "splits":
            for split, figures in want[key].items():
                rates = got[key][split].pop("label_rates")
                assert rates == pytest.approx(figures.pop("label_rates"), abs=1e-6)
                assert got[key][split] == pytest.approx(figures, abs=1e-6)
        elif key == "probes":  # drawn rows' item columns are not probed
            assert len(got[key]) >= 5 and got[key].items() <= want[key].items()
        else:
            assert got[key] == want[key], key


def test_shards_hold_the_rows_of_the_log_at_once(tmp_path):
    whole, shards = prepare(tmp_path, "feed"), prepare(tmp_path, "feed", shards=5)
    assert shards.splits == whole.splits
    assert set(shards.block_partitions("train")) == set(range(5))
    for space in whole.schema.id_spaces:
        assert shards.vocabulary(space.name).equals(whole.vocabulary(space.name))
    for split in whole.splits:
        assert as_frame(shards, split).equals(as_frame(whole, split))
        rows = read(shards, split)
        np.testing.assert_array_equal(rows["row"], np.arange(len(rows["row"])))
    bad = [
        pl.read_parquet(d.path / "quarantine.parquet").sort("file", "row") for d in (whole, shards)
    ]
    assert bad[0].equals(bad[1]) and {"missing", "duplicate"} == set(bad[0]["reason"])
    for key in ("rows", "events", "users", "items", "nulls", "cold_start", "duplicates", "splits"):
        got, want = shards.report[key], whole.report[key]
        if key != "splits":
            assert got == want, key
        else:
            assert {s: v["items"] for s, v in got.items()} == {
                s: v["items"] for s, v in want.items()
            }
            for s, v in want.items():
                assert got[s]["history_p90"] == v["history_p90"]
                assert got[s]["requests"] == v["requests"]


def test_groups_stay_apart_between_shards(tmp_path):
    shards = prepare(tmp_path, "feed", shards=5)
    rows = read(shards, "train")
    users = rows["user_id"]
    for key in ("user", "request", "session"):
        owners = {}
        for number, user in zip(rows[key].tolist(), users.tolist(), strict=True):
            owners.setdefault(number, set()).add(user)
        assert all(len(o) == 1 for o in owners.values()), key
    assert (rows["user"] % 5 == rows["partition"]).all()


def test_drawn_rows_of_shards_know_the_whole_log(tmp_path):
    """Positives are those of the log at once, last rows and counters of other users included; draws keep the rules."""
    whole, shards = prepare(tmp_path, "shop"), prepare(tmp_path, "shop", shards=4)
    log = shop().with_row_index("at").filter(pl.col("at") != 755)  # it has no user
    log = log.sort("timestamp", maintain_order=True)
    for split in whole.splits:
        one, two = (as_frame(d, split).filter(pl.col("positive") == 1) for d in (whole, shards))
        assert one.equals(two) and len(one) > 50
        assert one["item_taken_count"].max() > 10 and one["price"].n_unique() > 20
    rows = read(shards, "test")
    items = {i: v for v, i in shards.vocabulary("item").select("value", "id").iter_rows()}
    drawn = np.flatnonzero((rows["positive"] == 0) & np.isin(rows["item"], list(items)))
    known = 0
    for j in drawn[::9]:
        past = log.filter(
            (pl.col("item_id") == items[rows["item"][j]]) & (pl.col("timestamp") < rows["time"][j])
        )
        assert rows["price"][j] == np.float32(past["price"][-1] if len(past) else 0)
        assert rows["item_taken_count"][j] == len(past)
        known += len(past) > 0
    assert known > 20
    taken = set(zip(*(rows[c][rows["positive"] == 1] for c in ("request", "item")), strict=True))
    assert not taken & set(zip(*(rows[c][drawn] for c in ("request", "item")), strict=True))


def test_a_stage_holds_no_more_than_a_shard(tmp_path, monkeypatch):
    heights: list[int] = []
    original = sharded.Folder.frame

    def watched(self, name):
        frame = original(self, name)
        if name.startswith(("read/", "log/")):
            heights.append(frame.height)
        return frame

    monkeypatch.setattr(sharded.Folder, "frame", watched)
    prepare(tmp_path, "feed", shards=8)
    split = max(heights)
    heights.clear()
    prepare(tmp_path, "feed", shards=1)
    assert split < 0.3 * max(heights)


def test_fractions_split_as_at_once(tmp_path):
    extra = 'split = {"validation": 0.1, "test": 0.2}\n'
    whole, shards = (prepare(tmp_path, "feed", extra, **o) for o in ({}, {"shards": 3}))
    assert whole.splits == shards.splits
    assert read(whole, "test")["time"].min() == read(shards, "test")["time"].min()


def test_vocabularies_go_on_as_at_once(tmp_path):
    day = prepare(tmp_path / "day", "feed", "min_count = 3\n", head_room=0.5)
    whole, shards = (
        prepare(tmp_path / "next", "feed", extends=str(day.path), **o) for o in ({}, {"shards": 3})
    )
    assert {s.name: s.rows for s in whole.schema.id_spaces} == {
        s.name: s.rows for s in day.schema.id_spaces
    }
    for space in whole.schema.id_spaces:
        assert shards.vocabulary(space.name).equals(whole.vocabulary(space.name))
        assert shards.schema.space(space.name) == space
    assert as_frame(shards, "test").equals(as_frame(whole, "test"))
    assert shards.identity["vocabulary_history"] == whole.identity["vocabulary_history"]


SIDE = 'user_table = "users.tsv"\nuser_columns = ["age", "taste"]\nvectors = ["taste"]\n'


def user_table(folder, users, tastes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"user": users, "age": [f"a{i}" for i in range(len(users))], "taste": tastes}
    pl.DataFrame(columns).write_csv(folder / "users.tsv", separator="\t")


def test_a_side_table_may_know_nobody_of_a_shard(tmp_path):
    user_table(tmp_path, ["u1", "u2", "u3"], ["1 2", "3 4", "5 6"])
    whole, shards = (prepare(tmp_path, "feed", SIDE, **o) for o in ({}, {"shards": 8}))
    assert shards.schema == whole.schema
    for split in whole.splits:
        names = ("user_id", "age", "taste", "time", "item", "click")
        one, two = (read(d, split) for d in (whole, shards))
        order, other = (np.lexsort([x[n] for n in names if n != "taste"]) for x in (one, two))
        for n in names:
            np.testing.assert_array_equal(one[n][order], two[n][other], err_msg=n)
        assert len(np.unique(two["taste"], axis=0)) == 4  # three users' and nobody's


def test_a_log_column_may_hold_no_vector_of_a_shard(tmp_path, monkeypatch):
    vector = pl.when(pl.col("user") == "u1").then(pl.lit("1 2 3")).alias("seen")
    monkeypatch.setitem(LOGS, "feed", (lambda: feed().with_columns(vector), FEED))
    extra = 'context_columns = ["seen"]\nvectors = ["seen"]\n'
    whole, shards = (prepare(tmp_path, "feed", extra, **o) for o in ({}, {"shards": 8}))
    assert shards.schema == whole.schema
    for split in whole.splits:
        one, two = (read(d, split)["seen"] for d in (whole, shards))
        assert one.shape == two.shape and one.sum() == two.sum() > 0


@pytest.mark.parametrize(
    ("users", "tastes", "words"),
    [
        (["x1", "x2"], ["1 2", "3 4"], ["users.tsv", "'user'"]),
        (["u1", "u2"], ["1 2", "3"], ["'taste'", "[1, 2]"]),
        (["u1", "u2"], [None, None], ["'taste'", "[]"]),
    ],
)
def test_shards_refuse_a_side_table_as_the_log_at_once_does(tmp_path, users, tastes, words):
    user_table(tmp_path, users, tastes)
    said = []
    for options in ({}, {"shards": 8}):
        with messages.raises(DataError, *words) as e:
            prepare(tmp_path, "feed", SIDE, **options)
        said.append(str(e.value))
    assert said[0] == said[1]


def test_shards_refuse_a_log_as_the_log_at_once_is(tmp_path):
    late = pl.col("timestamp") >= FIRST + 50 * DAY
    new = pl.when(late).then(pl.lit("new")).otherwise(pl.col("item_id").cast(pl.String))
    shop().with_columns(item_id=new).write_csv(tmp_path / "new.csv")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1" * 9)
    (tmp_path / "mapping.py").write_text(SHOP.replace("user_columns", "context_columns") + SPLIT)
    for name, message in (
        ("new.csv", "'test'"),
        ("damaged.parquet", "write it"),
    ):
        for n in (0, 3):
            with pytest.raises(DataError, match=message):
                logs.prepare(
                    tmp_path / "out",
                    source=str(tmp_path / name),
                    mapping=str(tmp_path / "mapping.py"),
                    shards=n,
                )


def test_strict_and_impossible_options_are_refused(tmp_path):
    with messages.raises(DataError, "--strict"):
        prepare(tmp_path, "feed", shards=3, strict=True)
    with pytest.raises(DataError, match="every shard becomes a partition"):
        prepare(tmp_path, "feed", shards=3, partitions=2)
    with messages.raises(DataError, "'test'"):
        prepare(tmp_path, "feed", 'split = {"test": "2031-01-01"}\n', shards=3)


def test_the_stages_may_meet_in_a_bucket(tmp_path):
    """fsspec's memory file system stands in for the bucket, which etils reaches in the same way."""
    fsspec = pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    for name in ("gcs", "gs"):
        fsspec.register_implementation(name, MemoryFileSystem, clobber=True)
    bucket = prepare(tmp_path / "bucket", "feed", shards=2, work="gs://bucket/work")
    assert_same(prepare(tmp_path / "disk", "feed", shards=2), bucket)
    assert any("/work/log" in f for f in MemoryFileSystem.store)
    log = epath.Path("gs://bucket/logs/a.jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text('{"a": 1}\n{"a"')
    assert list_files("gs://bucket/logs/*.jsonl") == ["gs://bucket/logs/a.jsonl"]
    assert len(sources.fingerprint(["gs://bucket/logs/a.jsonl"])) == 1
    rows, bad = sources._salvage("gs://bucket/logs/a.jsonl", sources.TextForm())
    assert rows["a"].to_list() == ["1"] and bad["reason"].to_list() == ["not a JSON object"]


def test_parquet_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "PIECE", 300)
    feed().write_parquet(tmp_path / "log.parquet")
    (tmp_path / "mapping.py").write_text(FEED + SPLIT)
    files = list_files(str(tmp_path / "log.parquet"))
    assert len(sharded.pieces_of(files)) == 7
    made = [
        Prepared(
            logs.prepare(
                tmp_path / f"out{n}", source=str(tmp_path / "log.parquet"),
                mapping=str(tmp_path / "mapping.py"), shards=n,
            )
        )
        for n in (0, 1)
    ]  # fmt: skip
    assert_same(*made)


def test_the_last_row_of_any_shard_wins_and_ties_go_by_place():
    a = last_row_arrays(np.array([1, 1]), np.array([5, 7]) * 10**6, np.array([0, 1]), {"x": np.array([50, 70])})  # fmt: skip
    b = last_row_arrays(np.array([1, 2]), np.array([7, 6]) * 10**6, np.array([9, 3]), {"x": np.array([71, 60])})  # fmt: skip
    for shards in ([a, b], [b, a]):
        found = find_last_rows(
            lambda shards=shards: iter(shards), np.array([1, 1, 1, 2, 3]),
            np.array([8, 7, 5, 9, 9]), {"x": np.array(-1)},
        )  # fmt: skip
        assert found["x"].tolist() == [71, 50, -1, 60, -1]


# ------------------------------------------------------------------------------------------- Beam

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="needs apache-beam (see this file's top)",
)


@needs_beam
@pytest.mark.parametrize("kind", LOGS)
def test_beam_makes_what_one_process_makes(tmp_path, kind):
    local = prepare(tmp_path / "local", kind, shards=3)
    beam = prepare(tmp_path / "beam", kind, shards=3, runner=sharded.BeamRunner("DirectRunner"))
    assert_same(local, beam)
    assert local.report | {"quarantined_where": 0} == beam.report | {"quarantined_where": 0}


def test_without_beam_the_remedy_is_named(tmp_path):
    if importlib.util.find_spec("apache_beam"):
        pytest.skip("apache-beam is installed")
    with messages.raises(DataError, "apache-beam"):
        prepare(tmp_path, "feed", shards=2, runner=sharded.BeamRunner())
