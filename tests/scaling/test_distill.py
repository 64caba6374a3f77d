"""The harness around distillation; the loss itself is tested with the models."""

import pytest

from scaling import distill


def test_paired_differences_are_by_seed():
    results = {
        "undistilled": {"test": {"auc": [0.60, 0.70]}},
        "distilled": {"test": {"auc": [0.61, 0.73]}},
    }
    got = distill.paired(results, "test")
    assert got["mean"] == pytest.approx(0.02) and got["sd"] == pytest.approx(0.0141, abs=1e-4)
    alone = {role: {"test": {"auc": v["test"]["auc"][:1]}} for role, v in results.items()}
    assert distill.paired(alone, "test")["sd"] is None
