"""The harness around distillation; the loss itself is tested with the models."""

import pytest

from scaling import distil


def test_only_a_constant_keep_probability_corrects_what_is_served():
    identity = {"keep": {"train": 0.0023, "train_matched": 5e-5}}
    assert distil.keep_probability(identity, "train") == 0.0023
    assert distil.keep_probability(identity, "train_matched") == 1.0
    assert distil.keep_probability({}, "train") == 1.0


def test_paired_differences_are_by_seed():
    results = {
        "undistilled": {"test": {"auc": [0.60, 0.70]}},
        "distilled": {"test": {"auc": [0.61, 0.73]}},
    }
    got = distil.paired(results, "test")
    assert got["mean"] == pytest.approx(0.02) and got["sd"] == pytest.approx(0.0141, abs=1e-4)
    alone = {role: {"test": {"auc": v["test"]["auc"][:1]}} for role, v in results.items()}
    assert distil.paired(alone, "test")["sd"] is None
