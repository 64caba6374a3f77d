"""Three values, beliefs, numbers on screen, scores and agreement, by hand."""

import pytest

from tests.acceptance import apps, bench, cases, generate, probes, scores
from tests.acceptance.judge import BLOCKED, FAIL, PASS, UNCERTAIN, agrees, kleene, numbers
from tests.messages import raises


def test_three_values():
    assert kleene([True, True]) == PASS
    assert kleene([True, None, False]) == FAIL
    assert kleene([True, None]) == UNCERTAIN
    with raises(ValueError, "assert"):
        kleene([])


def test_beliefs():
    one = {"alternative": 0.625, "patience": 2 / 3, "fresh": 0.7142857}
    for probe, want in one.items():
        assert probes.updated(0.5, probe) == pytest.approx(want)
    p = 0.5
    for probe, want in (
        ("alternative", 0.625),
        ("alternative", 0.7352941),
        ("patience", 0.8474576),
    ):
        p = probes.updated(p, probe)
        assert p == pytest.approx(want)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("AUC 0.7012, 1,234 rows", [(0.7012, 4), (1234.0, 0)]),
        ("−17 and 3e-3 and -2.5e1", [(-17.0, 0), (0.003, 3), (-25.0, 0)]),
        ("v2 item_3 NaN", []),
        ("12.50 €", [(12.5, 2)]),
    ],
)
def test_numbers_of_a_text(text, found):
    assert numbers(text) == found


def test_a_number_is_right_at_the_precision_that_is_shown():
    assert agrees(0.70, 2, 0.7049) and not agrees(0.70, 2, 0.7051)
    assert agrees(341, 0, 341.4) and not agrees(341, 0, 342)
    assert not agrees(0.70, 2, float("nan")) and agrees(0.70, 2, 0.71, atol=0.01)


def row(feature, result, weight=1.0, feature_weight=1.0, case="c", repeat=0, recovered=False):
    return dict(app="a", feature=feature, case=case, repeat=repeat, result=result, weight=weight, feature_weight=feature_weight, recovered=recovered, seconds=1.0)  # fmt: skip


def test_scores_and_coverage():
    rows = [row("x", r, case=str(i)) for i, r in enumerate((PASS, FAIL, UNCERTAIN))]
    found = scores.summary(rows)
    assert found["features"] == {"x": pytest.approx(1 / 3)} and found["score"] == pytest.approx(
        1 / 3
    )
    assert found["coverage"] == pytest.approx(2 / 3) and found["executable"]
    dead = scores.summary(
        [row("x", FAIL, case=str(i)) for i in range(5)] + [row("x", PASS, case="p")]
    )
    assert not dead["executable"] and dead["score"] == 0.0 and dead["features"]["x"] > 0
    two = scores.summary(
        [row("x", PASS, 3, 1, "a"), row("x", FAIL, 1, 1, "b"), row("y", PASS, 1, 3, "c")]
    )
    assert two["score"] == pytest.approx((0.75 + 3 * 1) / 4)
    again = scores.summary([row("x", PASS), row("x", FAIL, repeat=1), row("y", BLOCKED, case="d")])
    assert again["flaky"] == 0.5 and again["coverage"] == pytest.approx(2 / 3)
    assert scores.summary([row("x", PASS, recovered=True)])["flaky"] == 1.0


def test_agreement():
    same = [("f", True, True), ("f", False, False), ("g", True, True), ("g", True, True)]
    found = scores.agreement(same, resamples=50)
    assert found["accuracy"] == found["kappa"] == found["pearson"] == 1 and found["bias"] == 0
    assert not found["sufficient"]
    golden = (
        [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    )
    found = scores.agreement([(str(i % 7), v, h) for i, (v, h) in enumerate(golden)], resamples=200)
    assert found["accuracy"] == pytest.approx(0.70) and found["kappa"] == pytest.approx(0.40)
    assert found["defect_precision"] == 15 / 25 and found["defect_recall"] == 15 / 20
    low, high = found["accuracy/interval"]
    assert low < 0.70 < high
    constant = scores.agreement(
        [("f", True, h) for h in (True, False)] + [("g", True, True)], resamples=20
    )
    assert constant["kappa"] is None and constant["pearson"] is None


CASE = """
feature: a.b
cases:
  - {id: one, kind: functional, task: Press it., expected: It works., steps: [{click: "#x"}], assert: [{visible: "#y"}]}
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("functional", "wishful"), ["a.yaml", "wishful"]),
        (("visible", "pretty"), ["a.yaml", "pretty"]),
        (("click", "eval"), ["a.yaml", "eval"]),
        (('assert: [{visible: "#y"}]', "assert: []"), ["a.yaml", "assert"]),
        (("feature: a.b", "feature: a"), ["a.yaml", "feature"]),
        (
            (
                "{id",
                "{id: [",
            ),
            ["a.yaml", "YAML"],
        ),
    ],
)
def test_a_wrong_case_file_is_named(tmp_path, change, words):
    path = tmp_path / "a.yaml"
    path.write_text(CASE)
    (found,) = cases.read(path)  # the control
    assert found.acts and found.checks == [{"visible": "#y"}]
    path.write_text(CASE.replace(*change))
    with raises(cases.CaseError, *words):
        cases.read(path)


def test_the_committed_cases_are_whole():
    small, product = 0, 0
    for app in apps.APPLICATIONS:
        own, defects = cases.read_all(app), apps.defects_of(app)
        assert not cases.without_acting(own), "nobody acts on these"
        features = {c.feature for c in own}
        assert all(set(broken) <= features for broken in defects.values())
        if app in apps.DEFECTS:
            small += len(own)
            assert len(defects) == 10
        else:
            product += len(own)
    assert small >= 40 and product >= 60
    assert len(apps.defects_of("console")) >= 18


def test_cases_are_generated_from_a_manifest(tmp_path):
    manifest = {"region": "#t", "inputs": [{"label": "Search", "good": "mug", "bad": "zzz"}], "actions": [{"role": "button", "name": "Next"}], "keeps": True}  # fmt: skip
    found = generate.from_manifest("table.filter", manifest)
    kinds = [c["id"].removeprefix("filter-") for c in found]
    assert kinds == ["displayed", "input-1-changes", "input-1-bad", "input-1-stays", "action-1-works", "action-1-keyboard"]  # fmt: skip
    with raises(cases.CaseError, "a.b", "inputs"):
        generate.from_manifest("a.b", {"region": "#t"})
    (tmp_path / "t.yaml").write_text(generate.proposed("table"))
    assert len(cases.read(tmp_path / "t.yaml")) >= 10  # what is printed can be read


def test_realdevbench_and_appevalpilot_files(tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(
        '{"label": 1, "scenario": "Data", "prompt": "A tracker", "features": ["chart"], "files": []}\n\n'
    )
    assert bench.read_tasks(tasks)[0].features == ("chart",)
    tasks.write_text('{"label": 1, "scenario": "Poem", "prompt": "", "features": []}\n')
    with raises(cases.CaseError, "tasks.jsonl", "line 1", "Poem"):
        bench.read_tasks(tasks)
    path = tmp_path / "cases.json"
    done = dict(
        task="Log in.",
        expected="The name is shown.",
        result=PASS,
        reason="",
        checks=[("x", True, "")],
    )
    bench.write_case_file(path, "http://127.0.0.1", "app", [done])
    (read,) = bench.read_case_file(path)["app"]
    assert (read["task"], read["expected"], read["result"]) == (
        "Log in.",
        "The name is shown.",
        PASS,
    )
    path.write_text('{"app": {"test_cases": {"0": {"case_desc": "Log in", "result": "Great"}}}}')
    with raises(cases.CaseError, "cases.json", "Great"):
        bench.read_case_file(path)
    assert "| a | 1.000 | yes |" in bench.leaderboard([row("x", PASS)])
