"""Randomised trials: Hillstrom's real file, and fixtures in the publishers' formats."""

import gzip

import numpy as np
import polars as pl
import pytest

from recjax.data import open_data
from recjax.data.sets import criteo_uplift, hillstrom, mt_lift
from recjax.data.store.prepared import DataError, Prepared
from tests.messages import raises
from tests.reading import columns_of, decoded, info_of, train_on


def customers(rows=600, seed=0) -> pl.DataFrame:
    """Hillstrom's columns in his order."""
    rng = np.random.default_rng(seed)
    visit = rng.random(rows) < 0.3
    return pl.DataFrame(
        {
            "recency": rng.integers(1, 13, rows),
            "history_segment": rng.choice(["1) $0 - $100", "2) $100 - $200"], rows),
            "history": np.round(rng.random(rows) * 200, 2),
            "mens": rng.integers(0, 2, rows),
            "womens": rng.integers(0, 2, rows),
            "zip_code": rng.choice(["Surburban", "Rural", "Urban"], rows),
            "newbie": rng.integers(0, 2, rows),
            "channel": rng.choice(["Phone", "Web", "Multichannel"], rows),
            "segment": rng.choice(["Mens E-Mail", "Womens E-Mail", "No E-Mail"], rows),
            "visit": visit.astype(int),
            "conversion": (visit & (rng.random(rows) < 0.3)).astype(int),
            "spend": np.round(rng.random(rows) * visit, 2),
        }
    )


@pytest.fixture
def challenge(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    customers().write_csv(folder / "Kevin_Hillstrom_MineThatData_E-MailAnalytics_DataMiningChallenge_2008.03.20.csv")  # fmt: skip
    return folder


def test_hillstrom_counts_are_the_published_ones(real_data, tmp_path):
    data = Prepared(hillstrom.prepare(tmp_path, source=str(real_data("hillstrom"))))
    assert data.splits == {"train": 51_200, "validation": 6_400, "test": 6_400}
    rows = [columns_of(data, split) for split in data.splits]
    assert sum(r["visit"].sum() for r in rows) == 9_394
    assert sum(r["conversion"].sum() for r in rows) == 578
    assert not any(((r["visit"] == 0) & (r["conversion"] == 1)).any() for r in rows)
    arms = data.report["arms"]
    for arm, visit, conversion in (
        ("Mens E-Mail", 0.1828, 0.0125),
        ("Womens E-Mail", 0.1514, 0.0088),
        ("No E-Mail", 0.1062, 0.0057),
    ):
        assert arms[arm]["visit"] == pytest.approx(visit, abs=5e-5)
        assert arms[arm]["conversion"] == pytest.approx(conversion, abs=5e-5)
    assert "64,000 customers" in info_of(data)["description"]


def test_a_trial_knows_its_arms_and_keeps_every_row_once(challenge, tmp_path):
    data = Prepared(hillstrom.prepare(tmp_path, source=str(challenge)))
    (treatment,) = data.schema.select("treatment")
    assert (treatment.kind, data.identity["control"]) == ("id", "No E-Mail")
    assert data.schema.labels == ("visit", "conversion") and not data.schema.lists
    assert "spend" not in {f.name for f in data.schema.features}
    assert sum(data.identity["propensity"].values()) == pytest.approx(1)
    got = []
    for split in data.splits:
        rows = columns_of(data, split)
        arms = decoded(data, "treatment", rows["treatment"])
        assert [data.identity["treatments"][a] for a in arms] == rows["treatment"].tolist()
        zips = decoded(data, "zip_code", rows["zip_code"])
        cents = np.round(rows["history"] * 100).astype(int).tolist()
        got += zip(arms, zips, cents, rows["conversion"].astype(int).tolist(), strict=True)
    cents = (pl.col("history") * 100).round().cast(pl.Int64)
    wanted = customers().select("segment", "zip_code", cents, "conversion")
    assert sorted(got) == sorted(wanted.iter_rows())


def test_the_splits_of_a_trial_are_a_seeded_draw(challenge, tmp_path):
    make = lambda seed: Prepared(hillstrom.prepare(tmp_path, source=str(challenge), seed=seed))  # noqa: E731
    one, again, other = make(0), make(0), make(1)
    assert one.path == again.path != other.path
    histories = [np.sort(columns_of(d, "test")["history"]) for d in (one, other)]
    assert len(histories[0]) == 60 and not np.array_equal(*histories)


def test_hillstrom_trains_by_its_name(challenge, tmp_path):
    heads = {"name": "logistic", "labels": ("visit", "conversion")}
    summary = train_on("hillstrom", challenge, tmp_path / "run", heads)
    assert summary["examples"] == 128 and np.isfinite(summary["test"]["logloss"])


def test_a_batch_of_a_trial_has_one_candidate(challenge):
    data = open_data({"name": "hillstrom", "source": str(challenge)})
    batch = next(iter(data.batches("train", 16)))
    assert batch["label"]["visit"].shape == (16, 1) and batch["pos"]["treatment"].shape == (16,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pl.lit(2).alias("visit"), ["row 1", "visit", "2.0"]),
        (pl.lit("Mens E-Mail").alias("segment"), ["segment", "'No E-Mail'"]),
    ],
)
def test_a_damaged_trial_is_refused(tmp_path, change, words):
    customers(50).with_columns(change).write_csv(tmp_path / "hillstrom.csv")
    with raises(DataError, *words):
        hillstrom.prepare(tmp_path / "out", source=str(tmp_path))
    customers(50).drop("zip_code").write_csv(tmp_path / "hillstrom.csv")
    with raises(DataError, "'zip_code'"):
        hillstrom.prepare(tmp_path / "out", source=str(tmp_path))


# ---------------------------------------------------------------------------- MT-LIFT, Criteo uplift


def rows_of(
    features: int, arms: int, labels: tuple[str, str], rows: int, seed: int
) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 2, rows)
    columns = {f"f{i}": np.round(rng.normal(size=rows), 6) for i in range(features)}
    then = dict(zip(labels, (first, first * rng.integers(0, 2, rows)), strict=True))
    return pl.DataFrame(columns | {"treatment": rng.integers(0, arms, rows), **then})


def test_mt_lift_keeps_the_publishers_test(tmp_path):
    """train.csv and test.csv: click, conversion, treatment, f0 to f98."""
    order = ["click", "conversion", "treatment", *(f"f{i}" for i in range(99))]
    tables = {name: rows_of(99, 5, ("click", "conversion"), n, n) for name, n in (("train", 400), ("test", 90))}  # fmt: skip
    for name, table in tables.items():
        table.select(order).write_csv(tmp_path / f"{name}.csv")
    data = Prepared(mt_lift.prepare(tmp_path, source=str(tmp_path)))
    assert data.splits == {"train": 360, "validation": 40, "test": 90}
    rows = columns_of(data, "test")
    np.testing.assert_array_equal(rows["f98"], tables["test"]["f98"].cast(pl.Float32))
    np.testing.assert_array_equal(rows["conversion"], tables["test"]["conversion"])
    assert decoded(data, "treatment", rows["treatment"]) == tables["test"]["treatment"].to_list()
    assert set(data.identity["treatments"]) == set("01234") and data.identity["control"] == "0"
    assert data.schema.labels == ("click", "conversion")


def test_criteo_uplift_trains_without_exposure_or_ids(tmp_path):
    """criteo-research-uplift-v2.1.csv.gz: f0 to f11, treatment, conversion, visit, exposure."""
    order = [*(f"f{i}" for i in range(12)), "treatment", "conversion", "visit", "exposure"]
    table = rows_of(12, 2, ("visit", "conversion"), 500, 0)
    text = table.with_columns(exposure=pl.col("treatment")).select(order).write_csv()
    name = "criteo-research-uplift-v2.1.csv.gz"
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / name).write_bytes(gzip.compress(text.encode()))
    data = Prepared(criteo_uplift.prepare(tmp_path, source=str(tmp_path / "raw")))
    assert "exposure" not in {f.name for f in data.schema.features}
    assert data.report["files"] == {name: "differs from what was published"}
    assert data.report["arms"]["1"]["rows"] == table["treatment"].sum()
    assert "Diemert" in info_of(data)["citation"]
    summary = train_on("criteo_uplift", tmp_path / "raw", tmp_path / "run", {"name": "logistic"})
    assert summary["examples"] == 128 and np.isfinite(summary["test"]["logloss"])
