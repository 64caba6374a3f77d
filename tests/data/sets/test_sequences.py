"""Sets of untimed sequences: fixtures in the publishers' formats, and the real files where RECJAX_DATA has them."""

import numpy as np
import polars as pl
import pytest

from recjax.data import open_data
from recjax.data.sets import amazon_sid, microlens
from recjax.data.store.prepared import DataError, Prepared
from recjax.data.worlds.mm_ctr import write_files
from recjax.schema import NUM_RESERVED
from tests.messages import raises
from tests.reading import columns_of, decoded

# ---------------------------------------------------------------------------------------- MicroLens


def test_microlens_rows_have_their_own_history_and_vectors(tmp_path):
    raw = write_files(tmp_path / "MicroLens_1M_x1")
    data = Prepared(microlens.prepare(tmp_path, source=str(tmp_path), min_count=1, partitions=2))
    train, valid = (pl.read_parquet(raw / f"{n}.parquet") for n in ("train", "valid"))
    info = pl.read_parquet(raw / "item_info.parquet")
    assert sum(data.splits.values()) == 240 + 80 and data.splits["test"] == 80
    assert data.report["histories"] == 60 + 20  # of four rows each
    log = pl.concat([train, valid])
    assert data.schema.space("item_emb").vectors == 128
    vectors = data.vectors("item_emb")
    assert data.schema.feature("history_item_tags").multi == 5
    for split in data.splits:
        for b in (data.block(split, i) for i in range(data.blocks(split))):
            timeline = data.timeline("history", int(b["partition"]))
            for j, row in enumerate(b["request"]):
                me = log.row(int(row), named=True)
                end, n = b["history/end"][j], b["history/count"][j]
                seq = [x for x in me["item_seq"] if x]
                known = [x for x in decoded(data, "item", timeline["history_item"][end - n : end])]
                assert all(a in (x, None) for a, x in zip(known, seq, strict=True))
                assert b["label"][j] == me["label"] and b["user"][j] == me["user_id"]
                item = info.row(me["item_id"], named=True)
                mine = vectors[b["item_emb"][j]]
                np.testing.assert_array_equal(mine, np.float32(item["item_emb_d128"]))
                tags = decoded(data, "tag", b["item_tags"][j])
                assert tags == [t or None for t in item["item_tags"]]
                assert (b["item_tags"][j] == 0).sum() == item["item_tags"].count(0)


def test_microlens_validation_users_are_not_trained_on(tmp_path):
    write_files(tmp_path / "raw")
    data = Prepared(microlens.prepare(tmp_path, source=str(tmp_path / "raw"), validation_users=0.1))
    train, held = (set(columns_of(data, s)["user"].tolist()) for s in ("train", "validation"))
    assert len(held) == 6 and not train & held


def test_microlens_events_stand_for_vectors_and_may_carry_levels(tmp_path):
    raw = write_files(tmp_path / "raw")
    config = {"name": "microlens", "source": str(raw), "history": 8}
    data = open_data(config | {"prepare": {"history_levels": True, "min_count": 3}})
    batch = next(iter(data.batches("train", 16)))
    assert batch["pos"]["history_item_tags"].shape == (16, 8, 5)
    ids = {f: batch["ids"][f.removeprefix("history_")][0][p] for f, p in batch["pos"].items() if f in ("history_item_emb", "history_likes_level")}  # fmt: skip
    known = ids["history_item_emb"] >= NUM_RESERVED  # rare items, too
    assert np.array_equal(known, batch["mask"]["history"])
    assert np.array_equal(data.vectors("item_emb")[ids["history_item_emb"]].any(-1), known)
    items = decoded(data.prepared, "item_emb", ids["history_item_emb"][known])
    levels = decoded(data.prepared, "likes_level", ids["history_likes_level"][known])
    log = pl.concat([pl.read_parquet(raw / f"{n}.parquet") for n in ("train", "valid")])
    true = dict(log.select("item_id", "likes_level").iter_rows())
    assert levels == [true.get(item) for item in items] and len(set(levels)) > 3


def test_a_wrong_microlens_is_named(tmp_path):
    raw = write_files(tmp_path / "raw")
    pl.read_parquet(raw / "train.parquet").drop("views_level").write_parquet(raw / "train.parquet")
    with raises(DataError, "train.parquet", "'views_level'"):
        microlens.prepare(tmp_path, source=str(raw))


# -------------------------------------------------------------------------- Amazon with semantic ids


@pytest.mark.parametrize(
    ("category", "rows", "items"), [("Office_Products", (4_866, 4_866), 3_459)]
)
def test_amazon_sid_trains_on_nothing_that_is_asked_for(real_data, tmp_path, category, rows, items):
    source = real_data("amazon-2018-minionerec")
    data = Prepared(amazon_sid.prepare(tmp_path, source=str(source), category=category))
    tables = {s: pl.read_csv(source / f"{category}_{s}.csv.gz") for s in ("valid", "test")}
    splits = data.report["splits"]
    for split, count in zip(("validation", "test"), rows, strict=True):
        assert splits[split]["positives"] + splits[split]["outside_catalogue"] == count
    asked = {(r["user_id"], r["item_id"]) for t in tables.values() for r in t.iter_rows(named=True)}
    train, timeline = columns_of(data, "train"), data.timeline("history")
    users = decoded(data, "user", train["user_id"])
    known = decoded(data, "item", train["item"])
    assert train["label"].sum() > 1_000
    for i in np.flatnonzero(train["label"])[::17]:
        end, n = train["history/end"][i], train["history/count"][i]
        past = decoded(data, "item", timeline["history_item"][end - n : end])
        assert n and not asked & {(users[i], item) for item in [*past, known[i]]}
    valid = tables["valid"].with_columns(
        pl.col("history_item_id").str.json_decode(pl.List(pl.Int64))
    )
    histories = {tuple(h) for h in valid["history_item_id"]}
    held = columns_of(data, "validation")
    for i in range(0, len(held["label"]), 501):
        end, n = held["history/end"][i], held["history/count"][i]
        past = decoded(data, "item", timeline["history_item"][end - n : end])
        assert None in past or tuple(past) in histories
    items_of = data.vocabulary("item")
    assert items_of["title"].null_count() == 0 and items_of.height <= items
    codes = {c: decoded(data, c, held[c][:1])[0] for c in amazon_sid.CODES}
    assert codes["sid_1"].startswith("<a_") and codes["sid_3"].startswith("<c_")
