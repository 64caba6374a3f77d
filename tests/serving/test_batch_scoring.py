"""The command, from a parquet file and from prepared data to a parquet file of scores."""

import json
import shutil

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from recjax.data.store.writing import write_prepared
from recjax.evaluation import score_files
from recjax.serving import artifact, batch_scoring
from recjax.serving.scorer import Scorer, probability
from tests import fakes, messages
from tests.serving.conftest import export, vocabularies

ROWS = 11


def raw_rows(**changes) -> pl.DataFrame:
    r = np.random.default_rng(0)
    lengths = r.integers(0, 9, ROWS)
    columns = {
        "key": [f"k{i}" for i in range(ROWS)],
        "time": 1000 + np.arange(ROWS),
        "user": r.integers(1003, 1003 + fakes.USERS - 3, ROWS),
        "arm": r.integers(1003, 1005, ROWS),
        "item": [f"a{i}" for i in r.integers(3, 60, ROWS)],  # some are unknown
        "price": r.random(ROWS),
        "hist_item": [[f"a{i}" for i in r.integers(3, 30, n)] for n in lengths],
        "history/time": [sorted(r.integers(1, 900, n).tolist()) for n in lengths],
    }
    return pl.DataFrame({**columns, **changes}, strict=False)


@pytest.fixture
def raw_file(tmp_path):
    raw_rows().write_parquet(tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


def as_request(row: dict) -> dict:
    history = [
        {"time": t, "hist_item": i}
        for t, i in zip(row["history/time"], row["hist_item"], strict=True)
    ]
    one = [{"item": row["item"], "price": row["price"]}]
    return {**row, "history": {"history": history}, "candidates": one}


def test_a_file_scores_as_its_requests(exported, loaded, raw_file, tmp_path):
    out = tmp_path / "out.parquet"
    assert batch_scoring.score(exported.path, raw_file, out, chunk=4) == ROWS
    got = pl.read_parquet(out)
    passed = ["key", "time", "user", "arm", "item", "price"]
    assert got.columns == [*passed, "logit", "probability", "buy/logit", "buy/probability"]
    assert got.select(passed).equals(raw_rows().select(passed))
    scorer = Scorer(loaded, requests=[16], candidates=[1])
    want = scorer.score_requests([as_request(row) for row in raw_rows().to_dicts()])
    for column, output in (
        ("logit", "logits"),
        ("buy/logit", "buy"),
        ("probability", "probability"),
    ):
        np.testing.assert_allclose(got[column], [w[output][0] for w in want], atol=1e-6)
    assert got["logit"].n_unique() > ROWS / 2
    batch_scoring.score(exported.path, raw_file, tmp_path / "plain.parquet", corrected=False)
    plain = pl.read_parquet(tmp_path / "plain.parquet")
    np.testing.assert_allclose(plain["probability"], probability(got["logit"]), rtol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "in.parquet",
        "out.parquet",
        "plain.parquet",
    ]


def test_lists_of_candidates_get_lists_of_scores(exported, tmp_path):
    one = raw_rows()
    listed = one.with_columns(pl.concat_list("item", "item"), pl.concat_list("price", "price"))
    for name, frame in (("one", one), ("two", listed), ("none", one[:0])):
        frame.write_parquet(tmp_path / f"{name}.parquet")
        batch_scoring.score(
            exported.path, tmp_path / f"{name}.parquet", tmp_path / f"{name}.out", chunk=ROWS
        )
    single, double, none = (pl.read_parquet(tmp_path / f"{n}.out") for n in ("one", "two", "none"))
    want = np.repeat(single["logit"].to_numpy()[:, None], 2, axis=1)
    np.testing.assert_allclose(np.array(double["logit"].to_list()), want, atol=1e-6)
    assert len(none) == 0 and none.columns == single.columns


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drop": "item"}, ["'item'", "user, item"]),
        ({"drop": "history/time"}, ["'history/time'"]),
        ({"item": [None] + ["a3"] * (ROWS - 1)}, ["row 0", "'item'", "null"]),
        ({"time": [1] * ROWS}, ["request at 1"]),
        ({"price": ["cheap"] * ROWS}, ["'price'", "string", "numbers"]),
        ({"user": ["u"] * ROWS}, ["'user'", "string"]),
        ({"logit": [0.0] * ROWS}, ["'logit'"]),
        ({"probability": [0.0] * ROWS}, ["'probability'"]),
    ],
)
def test_bad_files_are_one_sentence_and_no_output(exported, tmp_path, changes, words):
    drop = changes.pop("drop", [])
    raw_rows(**changes).drop(drop).write_parquet(tmp_path / "bad.parquet")
    with messages.raises(batch_scoring.ERRORS, "bad.parquet", *words) as e:
        batch_scoring.score(
            exported.path, tmp_path / "bad.parquet", tmp_path / "out.parquet", chunk=4
        )
    assert "\n" not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.parquet"]


def test_a_bad_row_late_in_the_file_is_named_and_leaves_no_output(exported, tmp_path):
    items = raw_rows()["item"].to_list()
    raw_rows(item=[*items[:9], None, items[10]]).write_parquet(tmp_path / "bad.parquet")
    (tmp_path / "out.parquet").write_text("an earlier result")
    with messages.raises(batch_scoring.ERRORS, "bad.parquet", "row 9", "'item'"):
        batch_scoring.score(
            exported.path, tmp_path / "bad.parquet", tmp_path / "out.parquet", chunk=4
        )
    assert (tmp_path / "out.parquet").read_text() == "an earlier result"
    assert len(list(tmp_path.iterdir())) == 2


def test_files_that_are_not_there_or_not_parquet(exported, tmp_path):
    with messages.raises(batch_scoring.ScoreError, "none.parquet", "--in"):
        batch_scoring.score(exported.path, tmp_path / "none.parquet", tmp_path / "out.parquet")
    (tmp_path / "text.parquet").write_text("not parquet at all")
    with messages.raises(batch_scoring.ScoreError, "text.parquet"):
        batch_scoring.score(exported.path, tmp_path / "text.parquet", tmp_path / "out.parquet")
    raw_rows().write_parquet(tmp_path / "in.parquet")
    with messages.raises(batch_scoring.ScoreError, "--out"):
        batch_scoring.score(exported.path, tmp_path / "in.parquet", tmp_path / "no" / "out.parquet")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The rows of `raw_rows`, prepared by hand with the artifact's vocabularies."""
    rows, vocab = raw_rows(), vocabularies()
    known = dict(vocab["item"].iter_rows())
    lists = rows["hist_item"].to_list()
    timeline = {
        "time": np.concatenate(rows["history/time"].to_list()).astype(np.int64),
        "hist_item": np.array([known.get(i, 1) for past in lists for i in past]),
    }
    lengths = np.array([len(past) for past in lists])
    columns = {
        "time": rows["time"].to_numpy(),
        "user": rows["user"].to_numpy() - 1000,
        "arm": rows["arm"].to_numpy() - 1000,
        "item": np.array([known.get(i, 1) for i in rows["item"]]),
        "price": rows["price"].to_numpy(),
        "click": np.arange(ROWS) % 2.0,
        "buy": np.zeros(ROWS),
        "page": np.arange(ROWS) // 2,
        "history/end": np.cumsum(lengths),
        "history/count": lengths,
    }
    out = tmp_path_factory.mktemp("prepared")
    vocab = {s: f.with_columns(count=pl.lit(1)) for s, f in vocab.items()}
    return write_prepared(
        out,
        "tiny",
        fakes.SCHEMA,
        {"history": [timeline]},
        {"test": columns},
        vocab=vocab,
        block_size=4,
    )


def test_a_prepared_split_scores_as_the_file(exported, prepared, raw_file, tmp_path):
    out = tmp_path / "split.parquet"
    assert batch_scoring.score(exported.path, prepared, out, chunk=3) == ROWS
    batch_scoring.score(exported.path, raw_file, tmp_path / "file.parquet")
    mine, theirs = pl.read_parquet(out).sort("request"), pl.read_parquet(tmp_path / "file.parquet")
    assert mine.columns[:7] == ["row", "request", "time", "page", "click", "buy", "weight"]
    np.testing.assert_allclose(mine["logit"], theirs["logit"], atol=1e-6)
    np.testing.assert_array_equal(mine["page"], np.arange(ROWS) // 2)
    with messages.raises(batch_scoring.ERRORS, "'week'", "test"):
        batch_scoring.score(exported.path, prepared, out, split="week")


def test_hosts_without_a_block_write_parts_that_evaluate_takes(exported, prepared, tmp_path):
    """Three blocks for five hosts."""
    whole = tmp_path / "whole.parquet"
    assert batch_scoring.score(exported.path, prepared, whole) == ROWS
    rows = [
        batch_scoring.score(exported.path, prepared, tmp_path / "s.parquet", shard=(i, 5))
        for i in range(5)
    ]
    assert rows == [4, 4, 3, 0, 0]
    first, last = (pq.read_schema(tmp_path / f"s-0000{i}-of-00005.parquet") for i in (0, 4))
    assert last.equals(first)
    want = score_files.evaluate(str(whole), str(prepared), [])
    assert score_files.evaluate(str(tmp_path / "s-*.parquet"), str(prepared), []) == want


def test_parts_of_two_artifacts_are_refused(exported, prepared, tmp_path):
    export(tmp_path / "other", metadata={"keep_prob": 0.5})
    for i, path in enumerate((exported.path, tmp_path / "other")):
        batch_scoring.score(path, prepared, tmp_path / "s.parquet", shard=(i, 2))
    with pytest.raises(
        score_files.ScoredError, match=r"same model \('score' of artifact \w+; 'score'"
    ):
        score_files.evaluate(str(tmp_path / "s-*.parquet"), str(prepared), [])


def test_data_with_another_vocabulary_is_scored_by_its_values(exported, prepared, tmp_path):
    """The vocabulary turned round: every stored id now means another item."""
    other = shutil.copytree(prepared, tmp_path / "other")
    file = other / "vocab" / "item.parquet"
    frame = pl.read_parquet(file)
    turned = frame.with_columns(value=pl.col("value").reverse())
    turned.write_parquet(file)
    sizes = json.loads((other / "files.json").read_text())
    (other / "files.json").write_text(
        json.dumps(sizes | {"vocab/item.parquet": file.stat().st_size})
    )
    means = dict(zip(frame["value"], turned["value"], strict=True))
    rows = raw_rows()
    seen = [[means.get(i, i) for i in past] for past in rows["hist_item"].to_list()]
    items = [means.get(i, i) for i in rows["item"]]
    raw_rows(item=items, hist_item=seen).write_parquet(tmp_path / "turned.parquet")
    for source in ("other", "turned.parquet"):
        batch_scoring.score(exported.path, tmp_path / source, tmp_path / f"{source}.out")
    mine, theirs = (pl.read_parquet(tmp_path / f"{n}.out") for n in ("other", "turned.parquet"))
    np.testing.assert_allclose(mine.sort("request")["logit"], theirs["logit"], atol=1e-6)
    batch_scoring.score(exported.path, prepared, tmp_path / "as_it_was")
    before = pl.read_parquet(tmp_path / "as_it_was")
    assert abs(before["logit"] - mine["logit"]).max() > 0.01


def test_the_command(exported, raw_file, tmp_path, run_python):
    out = tmp_path / "out.parquet"
    flags = [f"--artifact={exported.path}", f"--in={raw_file}"]
    done = run_python("recjax.score", *flags, f"--out={out}", devices=1)
    assert f"{ROWS} rows scored into {out}" in done.stdout
    assert len(pl.read_parquet(out)) == ROWS
    with pytest.raises(AssertionError, match="exit 1\n(.|\n)*error: .* does not exist"):
        run_python("recjax.score", *flags, f"--out={tmp_path}/no/out.parquet", devices=1)


def test_a_broken_artifact_stops_the_command(raw_file, tmp_path):
    (tmp_path / "half").mkdir()
    with pytest.raises(artifact.ArtifactError, match="artifact"):
        batch_scoring.score(tmp_path / "half", raw_file, tmp_path / "out.parquet")
