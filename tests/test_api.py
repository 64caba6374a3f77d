"""The way from a frame to an answer, in Python: what the commands write, and what they read."""

import numpy as np
import polars as pl
import pytest

import recjax
from recjax.data.store.prepared import DataError
from recjax.evaluation.probability import probability

MAPPING = dict(
    user="user", item="item", time="at", labels=["click"], counters=False, min_count=1,
    split={"validation": 0.2, "test": 0.2},
)  # fmt: skip


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    """Every item has its own rate of clicks."""
    rng, n = np.random.default_rng(0), 4_000
    item = rng.integers(20, size=n)
    return pl.DataFrame(
        {
            "user": rng.integers(50, size=n),
            "item": item,
            "at": 1_700_000_000 + np.sort(rng.integers(10**6, size=n)),
            "click": (rng.random(n) < item / 20).astype(int),
        }
    )


@pytest.fixture(scope="module")
def run(log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    data = recjax.prepare(log, MAPPING, folder / "data")
    c = recjax.config("logistic")
    c.train.batch = c.eval.batch = 64
    c.data.history = 4
    return recjax.train(c, folder / "run", data=data)


def test_a_frame_is_prepared_once_polars_or_pandas(log, tmp_path):
    first = recjax.prepare(log, MAPPING, tmp_path)
    again = recjax.prepare(log, MAPPING, tmp_path)
    assert first.prepared.path == again.prepared.path
    other = recjax.prepare(log.to_pandas(), MAPPING, tmp_path / "pandas")
    assert other.splits == first.splits
    with pytest.raises(DataError, match="'clicked'"):
        recjax.prepare(log, MAPPING | dict(labels=["clicked"]), tmp_path)


def test_a_run_says_what_it_measured(run):
    assert run.summary["test"]["auc"] > 0.75  # an item's rate is all there is
    assert run.evaluate(["test"])["test"]["auc"] == pytest.approx(
        run.summary["test"]["auc"], abs=1e-6
    )


def test_predictions_and_a_served_answer_agree(run, tmp_path):
    """Values are written as the log's own preparation spells them: ids are texts."""
    requests = pl.DataFrame(
        {
            "time": [1_701_000_000] * 2,
            "user_id": ["1", "2"],
            "hour": [9] * 2,
            "weekday": [3] * 2,
            "item": [["3", "19"], ["19", "3"]],
            "history_item": [[], ["4"]],
            "history/time": [[], [1_700_000_000]],
        },
        schema_overrides={"history_item": pl.List(pl.String), "history/time": pl.List(pl.Int64)},
    )
    scored = run.predict(requests)
    low, high = scored["probability"][0]
    assert low < high and scored["probability"][1][0] > scored["probability"][1][1]
    served = recjax.load(run.export(tmp_path / "artifact", rows_format="float32"))
    answer = served.score(
        {
            "time": 1_701_000_000,
            "profile": {"user_id": "1"},
            "context": {"hour": 9, "weekday": 3},
            "history": {"history": []},
            "candidates": [{"item": "3"}, {"item": "19"}],
        }
    )
    np.testing.assert_allclose(answer["probability"], [low, high], rtol=1e-5)
    np.testing.assert_allclose(
        probability(np.array(answer["logits"])), answer["probability"], rtol=1e-6
    )


def test_what_recjax_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nosuch"):
        getattr(recjax, "nosuch")  # noqa: B009
