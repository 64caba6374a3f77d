"""The list of mutants follows the code, and `tests.mutate` tells who survives."""

import ast
import dataclasses
from pathlib import Path

import pytest

from tests import mutate
from tests.mutants import MUTANTS, Mutant

REPO = Path(__file__).resolve().parent.parent
SUM = Mutant("sum", "code.py", "a + b", "a - b", ("test_sum.py",))


def test_every_mutant_is_one_fault_in_the_code_as_it_is():
    assert len(MUTANTS) >= 80
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    texts = {m.file: (REPO / m.file).read_text() for m in MUTANTS}
    before = {file: ast.dump(ast.parse(text)) for file, text in texts.items()}
    for m in MUTANTS:
        assert before[m.file] != ast.dump(ast.parse(mutate.applied(texts[m.file], m))), m.name
        assert m.tests and all((REPO / t.partition("::")[0]).is_file() for t in m.tests), m.name


@pytest.mark.parametrize("text", ["def add(a, b): pass", "a + b, a + b"])
def test_a_line_that_is_gone_or_stands_twice_is_named(text):
    with pytest.raises(ValueError) as e:
        mutate.applied(text, SUM)
    assert all(word in str(e.value) for word in ("sum", "a + b", "code.py", "mutants.py"))


def test_a_fault_that_the_tests_pass_survives_and_the_tree_is_left_as_it_was(tmp_path):
    (tmp_path / "added.py").write_text("def add(a, b):\n    return a + b\n")
    mutant = dataclasses.replace(SUM, file="added.py")
    run = lambda tests: mutate.run_tests(tmp_path, tests, tmp_path / "cache", 100)  # noqa: E731
    outcomes = []
    for line in ("assert add(2, 0) == 2", "assert add(2, 1) == 3", "import nothing_of_the_kind"):
        (tmp_path / "test_sum.py").write_text(f"from added import add\ndef test():\n    {line}\n")
        with mutate.mutated(tmp_path, mutant):
            outcomes.append(run(SUM.tests))
        assert "a + b" in (tmp_path / "added.py").read_text()
    assert [*outcomes, run(("test_none.py",))] == ["survived", "killed", "killed", "broken"]


def test_survivors_are_reported_and_proven_equivalents_are_no_failure(capsys):
    alike = Mutant("alike", "code.py", "a", "b", SUM.tests, "they are the same")
    results = {"sum": dict(outcome="survived"), "alike": dict(outcome="survived")}
    assert mutate.report([SUM, alike], results) == 1
    said = capsys.readouterr().out
    assert "a + b" in said and "test_sum.py" in said and "they are the same" in said
    assert mutate.report([SUM], {"sum": dict(outcome="killed")}) == 0
    assert mutate.report([SUM], {}) == 1  # never run


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError) as e:
        mutate.chosen(["clip", "nonsense"])
    assert "nonsense" in str(e.value) and "clip" not in str(e.value)
