"""Kept scores: in the order of their rows, and refused where models were not judged alike."""

import numpy as np

from recjax.evaluation import kept_scores
from tests.messages import raises


def rows(n=8):
    return dict(
        logit=np.arange(n, dtype=np.float32),
        label=(np.arange(n) % 3 == 0).astype(np.float32),
        weight=np.ones(n, np.float32),
        row=np.arange(n),
        **{"group/visit": np.arange(n) // 4},
    )


def test_what_was_kept_comes_back_by_row(tmp_path):
    shuffled = {k: v[[3, 1, 0, 2, 7, 6, 5, 4]] for k, v in rows().items()}
    kept_scores.keep(tmp_path, "test", shuffled)
    got = kept_scores.load(tmp_path, "test")
    assert got.keys() == rows().keys()
    for k, v in rows().items():
        np.testing.assert_array_equal(got[k], v)
    assert [p.name for p in tmp_path.iterdir()] == ["predictions-test.npz"]


def test_other_rows_labels_and_scores_that_are_not_finite_are_refused():
    kept_scores.check({"a": [rows()], "b": [rows(), rows()]}, "test")
    for key in ("row", "label"):
        other = rows()
        other[key] = 1 - other[key]
        with raises(ValueError, "seed 1", "'test'", "rows"):  # fmt: skip
            kept_scores.check({"a": [rows()], "b": [rows(), other]}, "test")
    diverged = rows()
    diverged["logit"][2] = np.nan
    with raises(ValueError, "b, seed 0", "'test'", "finite"):
        kept_scores.check({"a": [rows()], "b": [diverged]}, "test")


def test_the_group_is_the_data_s_first_or_the_one_named():
    assert kept_scores.group_key(rows()) == kept_scores.group_key(rows(), "visit") == "group/visit"
    assert kept_scores.group_key({"logit": np.zeros(3)}) == ""
    with raises(ValueError, "--group=user", "group/visit"):
        kept_scores.group_key(rows(), "user")
