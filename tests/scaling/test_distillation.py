"""The harness around distillation; the loss itself is tested with the models."""

import json
import types

from etils import epath
from ml_collections import ConfigDict
import pytest

from scaling import choice, distillation
from scaling.cache import cached
from tests.messages import raises


def test_paired_differences_are_by_seed():
    results = {
        "undistilled": {"test": {"auc": [0.60, 0.70]}},
        "distilled": {"test": {"auc": [0.61, 0.73]}},
    }
    got = distillation.paired(results, "test")
    assert got["mean"] == pytest.approx(0.02) and got["sd"] == pytest.approx(0.0141, abs=1e-4)
    alone = {role: {"test": {"auc": v["test"]["auc"][:1]}} for role, v in results.items()}
    assert distillation.paired(alone, "test")["sd"] is None


def test_a_teacher_that_trained_with_others_has_its_own_last_row(tmp_path):
    row = lambda member, kind, n, auc: dict(  # noqa: E731
        step=n, kind=kind, member=member, examples=n, split="test", auc=auc
    )
    measured = [
        row(0, "pass", 20, 0.5),
        row(1, "pass", 10, 0.6),
        row(1, "pass", 20, 0.7),
        row(1, "cooldown", 20, 0.8),
    ]
    (tmp_path / "members" / "1").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in measured))
    assert distillation.finals(tmp_path / "members" / "1")["test"]["auc"] == 0.7
    (tmp_path / "summary.json").write_text('{"test": {"auc": 0.9}}')
    assert distillation.finals(tmp_path)["test"]["auc"] == 0.9


def test_a_result_of_other_settings_is_not_passed_off(tmp_path):
    path = epath.Path(tmp_path / "x.json")
    assert cached(path, lambda: 1, {"weights": [0.1]}) == 1
    assert cached(path, lambda: 2, {"weights": [0.1]}) == 1
    with raises(ValueError, "settings", "delete"):
        cached(path, lambda: 2, {"weights": [0.3]})


def test_a_key_that_came_later_and_is_left_alone_disowns_nothing(tmp_path):
    path, usual = epath.Path(tmp_path / "x.json"), {"data.new": [], "seed": 0}
    assert cached(path, lambda: 1, [{"mode": "a"}, {"seed": 0}], usual=usual) == 1
    assert cached(path, lambda: 2, [{"mode": "a"}, {"data.new": []}], usual=usual) == 1
    for other in ({"data.new": ["x"]}, {"seed": 1}, {"unknown": []}):
        with pytest.raises(ValueError, match="made with other settings"):
            cached(path, lambda: 2, [{"mode": "a"}, other], usual=usual)


def test_what_takes_minutes_is_made_again(tmp_path):
    path = epath.Path(tmp_path / "latency.json")
    assert cached(path, lambda: 1, ["0"], again=True) == 1
    assert cached(path, lambda: 2, ["0"], again=True) == 1
    assert cached(path, lambda: 2, ["0", "1"], again=True) == 2
    assert cached(path, lambda: 3, ["0", "1"], again=True) == 2


def test_a_distillation_does_not_depend_on_where_it_lies():
    def of(root, data, **more):
        spec = distillation.Spec("2", "0", {"local": 4}, "offline", (1.0,), (0.3,), 100, (0,), (f"{root}/runs/a",))  # fmt: skip
        return spec.depends_on(ConfigDict({"data": {"dir": data, **more}}), epath.Path(root))

    assert of("x", "here") == of("y", "there")
    assert of("x", "here", history=5) != of("x", "here", history=6)


def test_gauc_is_of_the_data_s_own_group():
    data = types.SimpleNamespace(schema=types.SimpleNamespace(groups=("user", "request")))
    assert distillation.judged(data) == ("auc", "gauc_user", "logloss", "ece")
    data.schema.groups = ()
    assert distillation.judged(data) == ("auc", "logloss", "ece")


def rows(**auc):
    """Two sizes of each grade; only the larger counts, and only where all grades have it."""
    return [
        {"grade": g, "examples": n, "auc": a if n == 200 else 0.9, "run": g}
        for g, a in auc.items()
        for n in (100, 200)
    ]


def test_the_student_is_the_best_inside_the_budget_and_the_teacher_the_best_above_it():
    quality = choice.quality(rows(**{"0": 0.60, "1": 0.62, "2": 0.61, "3": 0.64}))
    assert quality == {"0": 0.60, "1": 0.62, "2": 0.61, "3": 0.64}
    ms = {"0": 1.0, "1": 2.0, "2": 3.0, "3": 9.0}
    assert choice.pick(quality, ms, 4.0) == {"student": "1", "teacher": "3"}
    assert choice.pick(quality, ms, 1.5) == {"student": "0", "teacher": "3"}
    assert choice.pick(quality, ms, 10.0) == {"student": "3", "teacher": "3"}
    with raises(ValueError, "0.5 ms", "grade 0", "1.0 ms"):
        choice.pick(quality, ms, 0.5)


def test_grades_are_compared_at_a_size_they_share():
    got = choice.quality(
        [*rows(**{"0": 0.6}), {"grade": "1", "examples": 100, "auc": 0.7, "run": "x"}]
    )
    assert got == {"0": 0.9, "1": 0.7}


def test_offline_needs_a_teacher():
    spec = dict(teacher="1", student="0", student_options={}, temperatures=(1,), weights=(1,))
    with raises(ValueError, "teachers"):
        distillation.Spec(**spec, mode="offline", examples=10, seeds=(0,))
    with raises(ValueError, "mode"):
        distillation.Spec(**spec, mode="both", examples=10, seeds=(0,))


def test_a_sweep_that_was_written_under_the_former_name_goes_on_there(tmp_path):
    """Its folder is distil/, its results distil.json, and its config's section `distil`."""
    root = epath.Path(tmp_path)
    assert distillation.folder(root) == root / "distill"
    assert distillation.results_file(root) == root / "distill.json"
    (root / "distil").mkdir()
    assert distillation.folder(root) == root / "distil"
    assert distillation.results_file(root) == root / "distil.json"
    for name in ("distil", "distill"):
        assert distillation.section(ConfigDict({name: {"teacher": "2"}})).teacher == "2"
    assert distillation.section(ConfigDict({"title": "no student"})) is None
