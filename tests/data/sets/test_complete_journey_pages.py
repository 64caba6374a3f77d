"""Pages of The Complete Journey against the join written out, on a small log of the same form."""

import numpy as np
import polars as pl
import pytest

from recjax.data.loading.loader import PreparedData
from recjax.data.sets import complete_journey as cj
from recjax.data.sets import complete_journey_pages as cjp
from recjax.data.sets import exposures
from recjax.data.store.pages import page_starts, pair_counts
from recjax.data.store.prepared import DataError, Prepared
from tests.data.sets.test_complete_journey import save, small_log
from tests.messages import raises

HELD_OUT = "DRUG"
OPTIONS = dict(held_out=HELD_OUT, first_week=20, min_count=1, block_size=256)


@pytest.fixture(scope="module")
def tables():
    return small_log()


@pytest.fixture(scope="module")
def source(tables, tmp_path_factory):
    return save(tables, tmp_path_factory.mktemp("journey"))


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    return Prepared(cjp.prepare(out, source=str(source), keep=6, **OPTIONS))


def brute_force(tables):
    """(basket, department) -> {product: bought}, by joins."""
    products = tables["products"].select("product_id", "department", "product_category")
    products = products.drop_nulls()
    bought = tables["transactions"].filter(pl.col("week") >= 20).join(products, on="product_id")
    visit = ["basket_id", "store_id", "week"]
    shelves = bought.select(*visit, "department", "product_category").unique()
    promoted = tables["promotions"].select("store_id", "week", "product_id").unique()
    promoted = promoted.join(products, on="product_id")
    rows = shelves.join(promoted, on=["store_id", "week", "department", "product_category"])
    taken = set(bought.select("basket_id", "product_id").iter_rows())
    out = {}
    for r in rows.iter_rows(named=True):
        label = (r["basket_id"], r["product_id"]) in taken
        out.setdefault((r["basket_id"], r["department"]), {})[r["product_id"]] = label
    return {k: v for k, v in out.items() if len(v) >= cjp.SHORTEST}


def test_pages_are_the_promoted_products_of_the_bought_categories(tables, source):
    log = cj.read_log(source)
    o = exposures.opportunities(log)
    pages = cjp.lay_out(log, o, 20)
    want = brute_force(tables)
    departments = log.sides["department"].unique().drop_nulls().sort().to_list()
    every = np.arange(len(pages.size))
    kept = cjp.draw(o, pages, every, 10_000, 0)
    assert (kept.inclusion == 1).all(), "nothing was left out"
    product = log.values["product"][o.product[o.locate(kept.opportunity)[1]]]
    found = {}
    for page, item, label in zip(kept.page, product, kept.label, strict=True):
        key = (o.visits["basket"][pages.visit[page]], departments[pages.department[page]])
        found.setdefault(key, {})[item] = label
    assert found == want
    assert len({len(v) for v in want.values()}) > 3 and any(any(v.values()) for v in want.values())


def rows_of(prepared, split):
    blocks = [prepared.block(split, i) for i in range(prepared.blocks(split))]
    return {k: np.concatenate([b[k] for b in blocks]) for k in blocks[0] if k != "partition"}


def test_what_was_kept(prepared, tables):
    want = brute_force(tables)
    sizes = sorted(len(v) for v in want.values())
    assert sizes[-1] > 6, "some page is longer than what is kept"
    for split in prepared.splits:
        rows = rows_of(prepared, split)
        starts = page_starts(rows["page"])
        assert np.diff(starts).max() <= 6 and np.diff(starts).min() >= cjp.SHORTEST
        assert len(np.unique(rows["page"])) == len(starts) - 1, "a page lies together"
        np.testing.assert_allclose(rows["weight"], 1 / rows["inclusion"], rtol=1e-5)
        np.testing.assert_array_equal(rows["page"], rows["request"])
        counted = prepared.report["splits"][split]
        assert pair_counts(rows["page"], rows["purchase"]).items() <= counted.items()
        total = np.add.reduceat(rows["weight"], starts[:-1]).sum()
        assert total == pytest.approx(counted["products_before_sampling"], rel=0.15)


def test_the_held_out_department_is_only_tested_on(prepared):
    for split, counted in prepared.report["splits"].items():
        departments = set(counted["pages_by_department"])
        assert (departments == {HELD_OUT}) == (split == "test_unseen")
        assert HELD_OUT not in departments or split == "test_unseen"


def test_triggers_are_earlier_purchases_of_the_department(prepared, tables):
    known = tables["products"].select("product_id", "department").drop_nulls()
    events = tables["transactions"].join(known, on="product_id", maintain_order="left")
    events = events.with_columns(pl.col("transaction_timestamp").dt.epoch("s").alias("time"))
    events = events.unique(["household_id", "basket_id", "product_id", "time"], maintain_order=True)
    by = {k: g for k, g in events.group_by("household_id", "department")}
    value = {r["id"]: r["value"] for r in prepared.vocabulary("product").iter_rows(named=True)}
    homes = np.unique(tables["transactions"]["household_id"])
    departments = dict(test="GROCERY", test_unseen="DRUG")
    missing = seen = 0
    for split, department in departments.items():
        rows = rows_of(prepared, split)
        for at in page_starts(rows["page"])[:-1]:
            past = by.get((int(homes[rows["household"][at]]), department), events[:0])
            past = past.filter(pl.col("time") < rows["time"][at])
            if not len(past):
                assert rows["trigger_product"][at] == 0
                missing += 1
                continue
            last = past.filter(pl.col("time") == past["time"].max())["product_id"].to_list()
            trigger = value.get(int(rows["trigger_product"][at]))
            if trigger is not None:  # admitted to the vocabulary
                assert int(trigger) in last
                seen += 1
    assert seen > 50


def test_batches_hold_a_page_in_a_row(prepared):
    data = PreparedData(prepared, candidates=6, history=5, counters=False)
    batch = next(iter(data.batches("train", 16)))
    assert batch["valid"].shape == (16, 6) and batch["valid"][:, : cjp.SHORTEST].all()
    assert len(set(batch["group"]["page"])) == 16
    assert not [f for f in data.schema.features if f.name.endswith("_recency")]
    assert [f.name for f in data.schema.select("trigger")][0] == "trigger_product"
    assert "department" not in [f.name for f in data.schema.select("candidate", "context")]


def test_bad_options_are_named(source, tmp_path):
    with raises(DataError, "held_out='MEET'", "DRUG", "GROCERY"):
        cjp.prepare(tmp_path, source=str(source), **{**OPTIONS, "held_out": "MEET"})
    with raises(DataError, "'train'", "page"):
        cjp.prepare(tmp_path, source=str(source), **{**OPTIONS, "first_week": 48})
