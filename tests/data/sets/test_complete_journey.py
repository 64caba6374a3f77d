"""The Complete Journey: the join, the draws and the as-of features against brute force on a small log of the same form."""

import datetime

import numpy as np
import polars as pl
import pytest

from recjax.data.sets import complete_journey as cj
from recjax.data.sets import exposures
from recjax.data.sets.complete_journey_log import text_of_product
from recjax.data.sets.text import hashed
from recjax.data.store.histories import NEVER
from recjax.data.store.prepared import DataError, Prepared
from recjax.schema import MISSING, OOV
from tests.messages import raises

HOUSEHOLDS, STORES, PRODUCTS, VISITS = 12, 3, 60, 900
LATE = 58 * 11 + 1000  # promoted in the test weeks only, never sold
START = datetime.datetime(2017, 1, 1, 8)


def small_log():
    """A year of purchases in the publisher's columns; ids are sparse, some products unknown or never sold."""
    rng = np.random.default_rng(0)
    week = np.sort(rng.integers(1, 54, VISITS))
    visits = pl.DataFrame(
        {
            "basket_id": rng.permutation(VISITS) * 7 + 10**9,
            "household_id": rng.integers(1, HOUSEHOLDS + 1, VISITS) * 3,
            "store_id": rng.integers(1, STORES + 1, VISITS) * 100,
            "week": week,
            # Whole hours: baskets of one household share seconds.
            "transaction_timestamp": [
                START + datetime.timedelta(days=7 * (int(w) - 1), hours=int(h))
                for w, h in zip(week, rng.integers(0, 150, VISITS), strict=True)
            ],
        }
    )
    size = rng.integers(1, 12, VISITS)
    bought = visits[np.repeat(np.arange(VISITS), size)]
    taste = rng.zipf(1.6, len(bought)) % PRODUCTS
    late = (bought["week"] > 47).to_numpy() & (rng.random(len(bought)) < 0.1)
    bought = bought.with_columns(
        pl.Series("product_id", np.where(late, 59, taste % 50) * 11 + 1000)
    )
    bought = bought.unique(["basket_id", "product_id"], maintain_order=True)
    bought = bought.sample(fraction=1.0, shuffle=True, seed=1)  # logs come in any order
    n = 9000
    promotions = pl.DataFrame(
        {
            "product_id": rng.integers(0, PRODUCTS, n) * 11 + 1000,
            "store_id": rng.integers(1, STORES + 2, n) * 100,
            "display_location": rng.choice(list("0369A"), n),
            "mailer_location": rng.choice(list("0ADZ"), n),
            "week": rng.integers(1, 54, n),
        }
    ).unique(maintain_order=True)
    promotions = promotions.filter((pl.col("product_id") != LATE) | (pl.col("week") > 47))
    known = np.arange(PRODUCTS - 5)
    products = pl.DataFrame(
        {
            "product_id": known * 11 + 1000,
            "manufacturer_id": known % 7,
            "department": [["GROCERY", "DRUG"][i % 2] for i in known],
            "brand": [["National", "Private"][i % 2] for i in known],
            "product_category": [None if i % 9 == 0 else f"C{i % 8}" for i in known],
            "product_type": [f"T{i % 20}" for i in known],
            "package_size": "1 LB",
        }
    )
    people = pl.DataFrame({"household_id": np.arange(1, 7) * 3})
    people = people.with_columns(
        pl.lit(None, pl.String).alias(c) if c == "marital_status" else pl.lit("x").alias(c)
        for c in cj.PROFILE
    )
    return {
        "transactions": bought,
        "promotions": promotions,
        "products": products,
        "demographics": people,
    }


def save(tables, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def tables():
    return small_log()


@pytest.fixture(scope="module")
def source(tables, tmp_path_factory):
    return save(tables, tmp_path_factory.mktemp("journey"))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def prepared(source, out):
    return Prepared(cj.prepare(out, source=str(source), rate="1:2", min_count=1, block_size=256))


@pytest.fixture(scope="module")
def joined(tables):
    """The join written out: one row per visit and distinct promoted product, with its label."""
    promoted = tables["promotions"].select("store_id", "week", "product_id").unique()
    visits = (
        tables["transactions"]
        .select("basket_id", "household_id", "store_id", "week", "transaction_timestamp")
        .unique()
    )
    bought = (
        tables["transactions"]
        .select("basket_id", "product_id")
        .with_columns(pl.lit(True).alias("bought"))
    )
    join = visits.join(promoted, on=["store_id", "week"]).join(
        bought, on=["basket_id", "product_id"], how="left"
    )
    return join.with_columns(
        pl.col("bought").fill_null(False),
        pl.col("transaction_timestamp").dt.epoch("s").alias("time"),
    )


@pytest.fixture(scope="module")
def log(source):
    return cj.read_log(source)


@pytest.fixture(scope="module")
def o(log):
    return cj.opportunities(log)


def read(data, split):
    blocks = [data.block(split, i) for i in range(data.blocks(split))]
    return {c: np.concatenate([b[c] for b in blocks]) for c in blocks[0] if c != "partition"}


def raw_rows(data, split, source):
    """Rows of a split with the log's own ids: basket, household, store, product."""
    rows = read(data, split)
    o = cj.opportunities(cj.read_log(source))
    frame = {
        c: data.vocabulary(s)["value"] for c, s in (("product", "product"), ("store", "store"))
    }
    out = {"basket": o.visits["basket"][rows["visit"]]}
    for c in frame:
        v = dict(zip(data.vocabulary(c)["id"], data.vocabulary(c)["value"], strict=True))
        out[c] = [v.get(i) for i in rows[c].tolist()]
    return rows, out


def test_opportunities_are_the_distinct_join(log, o, joined):
    visit, promotion = o.locate(np.arange(o.offset[-1]))
    pairs = set(
        zip(
            o.visits["basket"][visit].tolist(),
            log.values["product"][o.product[promotion]].tolist(),
            strict=True,
        )
    )
    assert len(pairs) == o.offset[-1] == len(joined)
    assert pairs == set(joined.select("basket_id", "product_id").iter_rows())
    visit, promotion = o.locate(o.bought)
    pairs = set(
        zip(
            o.visits["basket"][visit].tolist(),
            log.values["product"][o.product[promotion]].tolist(),
            strict=True,
        )
    )
    assert pairs == set(joined.filter("bought").select("basket_id", "product_id").iter_rows())


def test_repeated_promotions_keep_the_highest_place_and_are_counted(log, o, tables, joined):
    keys = ["store_id", "week", "product_id"]
    best = (
        tables["promotions"].sort("display_location", "mailer_location").unique(keys, keep="last")
    )
    want = {
        tuple(r[:3]): r[3:]
        for r in best.select(*keys, "display_location", "mailer_location").iter_rows()
    }
    visit, promotion = o.locate(np.arange(0, o.offset[-1], 17))
    for v, p in zip(visit, promotion, strict=True):
        key = (
            log.values["store"][o.visits["store"][v]],
            o.visits["week"][v],
            log.values["product"][o.product[p]],
        )
        assert want[key] == (
            log.letters["display"][int(o.display[p])],
            log.letters["mailer"][int(o.mailer[p])],
        )
    per_key = tables["promotions"].group_by(keys).len()
    assert per_key["len"].max() > 1
    assert o.joined == joined.join(per_key, on=keys)["len"].sum() > o.offset[-1]


def test_splits_are_by_week_and_keep_every_purchase(prepared, joined, o):
    for split, (first, last) in cj.WEEKS.items():
        here = joined.filter(pl.col("week").is_between(first, last))
        for name in (split, f"{split}_matched"):
            rows = read(prepared, name)
            week = o.visits["week"][rows["visit"]]
            assert week.min() >= first and week.max() <= last
            assert rows["purchase"].sum() == here["bought"].sum()
            assert (
                len(set(zip(rows["visit"], rows["product"], strict=True)))
                >= len(rows["visit"]) - (rows["product"] == OOV).sum()
            )


def test_labels_are_the_purchases(prepared, source, joined):
    rows, raw = raw_rows(prepared, "train", source)
    bought = set(joined.filter("bought").select("basket_id", "product_id").iter_rows())
    labels = [(b, p) in bought for b, p in zip(raw["basket"].tolist(), raw["product"], strict=True)]
    assert rows["purchase"].tolist() == labels


def test_natural_negatives_are_one_bernoulli_draw(o):
    w = exposures.keep_rate(o, "1:2")
    unbought = o.offset[-1] - len(o.bought)
    assert w == pytest.approx(2 * len(o.bought) / unbought)
    draws = [exposures.draw_natural(np.random.default_rng(seed), o, w) for seed in range(200)]
    times = np.bincount(np.concatenate(draws), minlength=o.offset[-1])
    assert times[o.bought].sum() == 0
    rest = np.delete(times, o.bought)
    sigma = (w * (1 - w) / 200) ** 0.5
    assert abs(rest.mean() / 200 - w) < 5 * sigma / len(rest) ** 0.5
    # Every opportunity has the same chance: the spread over opportunities is the binomial one.
    assert rest.std() / 200 == pytest.approx(sigma, rel=0.05)
    sizes = np.array([len(d) for d in draws])
    assert sizes.std() == pytest.approx((unbought * w * (1 - w)) ** 0.5, rel=0.2)
    # Visits without a promoted purchase are drawn from too.
    idle = np.setdiff1d(np.flatnonzero(np.diff(o.offset)), o.locate(o.bought)[0])
    assert np.isin(o.locate(draws[0])[0], idle).any()


def test_matched_negatives_have_their_stated_probability(log, o):
    split = o.of_weeks(1, 47)
    sold = log.purchases["product"][log.purchases["week"] <= 47]
    pop = np.bincount(sold, minlength=len(log.values["product"]))[o.product]
    expected, n = 1500, 300
    draws = [
        exposures.draw_matched(np.random.default_rng(seed), o, split, pop, expected)
        for seed in range(n)
    ]
    assert np.mean([len(d) for d, _ in draws]) == pytest.approx(expected, rel=0.01)
    times = np.bincount(np.concatenate([d for d, _ in draws]), minlength=o.offset[-1])
    assert times[o.bought].sum() == 0 and times[o.offset[split.stop] :].sum() == 0
    c = draws[0][1]
    free = exposures._within(o, split, np.setdiff1d(np.arange(o.offset[-1]), o.bought))
    popularity = pop[o.locate(free)[1]]
    assert (popularity == 0).any()
    for p in np.unique(popularity):
        mine = times[free[popularity == p]]
        keep = -np.expm1(-c * p)
        assert abs(mine.mean() / n - keep) <= 5 * (keep * (1 - keep) / n / len(mine)) ** 0.5


def test_more_negatives_than_there_are_is_refused(source, out):
    with raises(DataError, "rate='1:900'"):
        cj.prepare(out, source=str(source), rate="1:900")
    with raises(DataError, "1:4"):
        cj.prepare(out, source=str(source), rate="many")


@pytest.mark.parametrize("split", ["train", "test_matched"])
def test_features_are_as_of_the_visit(prepared, source, tables, split):
    """Counters and histories equal a scan of the raw log, strictly before the visit's time."""
    rows, raw = raw_rows(prepared, split, source)
    events = tables["transactions"].with_columns(
        pl.col("transaction_timestamp").dt.epoch("s").alias("time")
    )
    sides = tables["products"].rename({"product_category": "category"})
    events = events.join(sides, on="product_id", how="left")
    baskets = dict(zip(events["basket_id"], events["household_id"], strict=True))
    kinds = dict(zip(sides["product_id"], sides["category"], strict=True))
    history = prepared.timeline("history")
    products = dict(prepared.vocabulary("product").select("value", "id").iter_rows())
    ties = 0
    for i in np.random.default_rng(0).choice(len(rows["time"]), 60, replace=False):
        product, now = raw["product"][i], rows["time"][i]
        household = baskets[raw["basket"][i]]
        past = events.filter(pl.col("time") < now)
        mine = past.filter(pl.col("household_id") == household)
        ties += (events["time"] == now).sum() > 1
        subsets = {
            "household": mine,
            "household_category": mine.filter(pl.col("category").eq_missing(kinds.get(product))),
            "store_product": past.filter(
                (pl.col("product_id") == product) & (pl.col("store_id") == raw["store"][i])
            ),
        }
        if product is not None:
            subsets |= {
                "product": past.filter(pl.col("product_id") == product),
                "household_product": mine.filter(pl.col("product_id") == product),
            }
        else:
            subsets = {"household": mine}
        for name, seen in subsets.items():
            assert rows[f"{name}_count"][i] == len(seen), name
            want = now - seen["time"].max() if len(seen) else NEVER
            assert rows[f"{name}_recency"][i] == np.float32(want), name
        end, count = rows["history/end"][i], rows["history/count"][i]
        assert count == len(mine)
        got = history["history_product"][end - count : end].tolist()
        want = mine.sort("time", maintain_order=True)["product_id"].to_list()
        assert got == [products.get(p, OOV) for p in want]
    assert ties  # simultaneous purchases were among those looked at


def test_later_events_change_no_earlier_feature(tables, source, prepared, tmp_path):
    """Replaces all purchases of weeks 50 and later: rows of earlier weeks keep every feature."""
    changed = tables["transactions"].with_columns(
        pl.when(pl.col("week") >= 50).then(1000).otherwise("product_id").alias("product_id")
    )
    changed = changed.unique(["basket_id", "product_id"], maintain_order=True)
    other = save(tables | {"transactions": changed}, tmp_path / "changed")
    log, before = cj.read_log(other), cj.read_log(source)
    np.testing.assert_array_equal(
        log.values["product"], before.values["product"]
    )  # comparable codes
    o = cj.opportunities(log)
    early = np.arange(o.offset[o.of_weeks(50, 53).start])
    label = np.zeros(len(early))
    got, want = (
        cj.impressions(o, cj.encoders(each, o, 1, 1), early, label) for each in (log, before)
    )
    for name in set(want) - {"history/end"}:  # ends count other users' later events too
        np.testing.assert_array_equal(got[name], want[name], name)
    late = np.arange(early[-1] + 1, o.offset[-1])
    got, want = (
        cj.impressions(o, cj.encoders(each, o, 1, 1), late, late) for each in (log, before)
    )
    assert not np.array_equal(got["product_count"], want["product_count"])  # the control


def test_vocabularies_know_only_the_training_weeks(prepared, tables):
    sold = set(tables["transactions"].filter(pl.col("week") <= 47)["product_id"])
    promoted = set(
        tables["promotions"].filter((pl.col("week") <= 47) & (pl.col("store_id") <= STORES * 100))[
            "product_id"
        ]
    )
    values = set(prepared.vocabulary("product")["value"])
    assert sold <= values <= sold | promoted and LATE not in values
    assert LATE in set(tables["promotions"]["product_id"])
    known = set(tables["products"]["product_id"])
    rows = read(prepared, "test")
    ids = prepared.vocabulary("product").filter(~pl.col("value").is_in(list(known)))["id"]
    unknown = np.isin(rows["product"], ids.to_numpy())
    assert unknown.any() and (rows["department"][unknown] == MISSING).all()
    assert (rows["marital_status"] == MISSING).all()


def test_min_count_sends_rare_products_to_oov(source, out):
    data = Prepared(cj.prepare(out, source=str(source), rate="1:2", min_count=120))
    count = data.vocabulary("product")["count"]
    assert count.min() >= 120
    assert (read(data, "train")["product"] == OOV).any()
    assert not (read(data, "train")["household_id"] == OOV).any()


def test_keep_probability_corrects_both_kinds(prepared, joined):
    """Unbought opportunities, estimated by weighting negatives with 1 / keep probability."""
    here = joined.filter(pl.col("week") <= 47)
    for split, pool in (("train", ~here["bought"]), ("train_matched", ~here["bought"])):
        rows = read(prepared, split)
        negative = rows["purchase"] == 0
        keep = cj.keep_probability(prepared, split, rows["product"][negative])
        popular = cj.popularity(prepared)
        ids = dict(prepared.vocabulary("product").select("value", "id").iter_rows())
        sold = [popular[ids.get(p, OOV)] > 0 for p in here.filter(pool)["product_id"]]
        true = len(sold) if split == "train" else sum(sold)
        assert (1 / keep).sum() == pytest.approx(true, rel=0.1)


def test_same_options_do_nothing_and_others_prepare_anew(source, out, prepared, monkeypatch):
    again = dict(source=str(source), rate="1:2", min_count=1, block_size=256)
    other = Prepared(cj.prepare(out, **again | {"seed": 1}))
    assert other.path != prepared.path and other.splits != prepared.splits
    monkeypatch.setattr(cj, "read_log", None)  # would raise if called
    assert cj.prepare(out, **again) == prepared.path


def test_partitions_and_order_change_no_row(source, out, prepared):
    data = Prepared(
        cj.prepare(out, source=str(source), rate="1:2", min_count=1, partitions=3, unit="request")
    )
    assert set(data.block_partitions("train")) == {0, 1, 2}
    a, b = read(prepared, "train"), read(data, "train")
    key = lambda rows: np.lexsort((rows["product_count"], rows["product"], rows["visit"]))  # noqa: E731
    for name in set(a) - {"row", "history/end"}:
        np.testing.assert_array_equal(a[name][key(a)], b[name][key(b)], name)


def test_report_and_identity_say_what_was_done(prepared, joined):
    report = prepared.report
    assert report["opportunities"] == len(joined) and report["purchases"] == joined["bought"].sum()
    assert report["quarantined"] == {"null_id": 0, "future": 0, "duplicate": 0}
    assert report["splits"]["train"]["rows"] == prepared.splits["train"]
    assert set(prepared.identity["counters"]) <= {f.name for f in prepared.schema.features}
    assert len(prepared.identity["counters"]) == 2 * len(cj.COUNTERS)
    assert prepared.schema.groups == ("visit", "household") and prepared.schema.labels == (
        "purchase",
    )
    assert "purchases" in cj.report_text(report)


def test_texts_stand_for_vectors_of_candidates_and_events(tables, source, out, prepared):
    data = Prepared(cj.prepare(out, source=str(source), rate="1:2", min_count=1, text="hashed"))
    assert data.path != prepared.path and "text" not in {f.name for f in prepared.schema.features}
    assert data.schema.space("text").vectors == 256
    texts = dict(
        tables["products"]
        .select("product_id", text_of_product(tables["products"].columns))
        .iter_rows()
    )
    known, vectors = dict(data.vocabulary("text").select("value", "id").iter_rows()), data.vectors("text")  # fmt: skip
    assert set(known) <= set(texts.values()) and "t1 c1 private 1 lb" in known
    np.testing.assert_array_equal(vectors[[*known.values()]], hashed([*known]))
    columns, timeline = read(data, "test"), data.timeline("history")
    products = {i: v for v, i in data.vocabulary("product").select("value", "id").iter_rows()}
    for product, text in (
        *zip(columns["product"], columns["text"], strict=True),
        *zip(timeline["history_product"][:50], timeline["history_text"][:50], strict=True),
    ):
        if product in products:
            assert text == known.get(texts.get(products[product]), MISSING)


def test_bad_rows_are_quarantined(tables, tmp_path):
    t = tables["transactions"]
    bad = pl.concat(
        [t, t.head(3), t.head(2).with_columns(pl.lit(None, pl.Int64).alias("household_id"))]
    )
    folder = save(tables | {"transactions": bad}, tmp_path / "bad")
    assert cj.read_log(folder).found["quarantined"] == {"null_id": 2, "future": 0, "duplicate": 3}


def test_missing_source_is_named(tmp_path):
    with raises(DataError, "transactions.parquet", "source"):
        cj.prepare(tmp_path, source=str(tmp_path))


def test_command_line(source, tmp_path, run_python):
    done = run_python(
        "recjax.data.sets.complete_journey", f"--out={tmp_path}", f"--source={source}", "--rate=1:1"
    )
    assert Prepared(done.stdout.strip().splitlines()[-1]).splits["train"] > 0


def test_a_few_households_of_the_wheel(tmp_path):
    data = Prepared(cj.prepare(tmp_path, rate="1:1", limit_households=10))
    assert data.report["users"] == 10 and data.splits["train"] > 100
    assert data.report["products_not_in_table"] >= 0


@pytest.mark.slow
def test_the_whole_log_has_its_published_counts():
    log = cj.read_log(cj.locate(""))
    o = cj.opportunities(log)
    assert (o.joined, o.offset[-1], len(o.bought)) == (567_871_289, 567_375_914, 327_041)
    rows, _ = exposures.draw(log, o, cj.WEEKS, "1:4", 0)
    assert len(rows["train"][0]) == pytest.approx(1_453_500, abs=5 * 1_078)
    assert len(rows["test"][0]) == pytest.approx(129_600, abs=5 * 324)
