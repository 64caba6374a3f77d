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


def rows(**auc):
    """Two sizes of each grade; only the larger counts, and only where all grades have it."""
    return [
        {"grade": g, "examples": n, "auc": a if n == 200 else 0.9, "run": g}
        for g, a in auc.items()
        for n in (100, 200)
    ]


def test_the_student_is_the_best_inside_the_budget_and_the_teacher_the_best_above_it():
    quality = distill.quality(rows(**{"0": 0.60, "1": 0.62, "2": 0.61, "3": 0.64}))
    assert quality == {"0": 0.60, "1": 0.62, "2": 0.61, "3": 0.64}
    ms = {"0": 1.0, "1": 2.0, "2": 3.0, "3": 9.0}
    assert distill.pick(quality, ms, 4.0) == {"student": "1", "teacher": "3"}
    assert distill.pick(quality, ms, 1.5) == {"student": "0", "teacher": "3"}
    assert distill.pick(quality, ms, 10.0) == {"student": "3", "teacher": "3"}
    with pytest.raises(ValueError, match="no grade answers within 0.5 ms.*grade 0, takes 1.0 ms"):
        distill.pick(quality, ms, 0.5)


def test_grades_are_compared_at_a_size_they_share():
    got = distill.quality(
        [*rows(**{"0": 0.6}), {"grade": "1", "examples": 100, "auc": 0.7, "run": "x"}]
    )
    assert got == {"0": 0.9, "1": 0.7}


def test_offline_needs_a_teacher():
    spec = dict(teacher="1", student="0", student_options={}, temperatures=(1,), weights=(1,))
    with pytest.raises(ValueError, match="needs finished teachers"):
        distill.Spec(**spec, mode="offline", examples=10, seeds=(0,))
    with pytest.raises(ValueError, match="'mode'|mode="):
        distill.Spec(**spec, mode="both", examples=10, seeds=(0,))
