"""RealDevBench tasks, AppEvalPilot case files, and the leaderboard (specification 2.1, 2.2, 8.6).

Formats: a task is a JSON line {label, category, scenario, features: [..], prompt, files: [..]}; a case file is JSON
{app: {url | work_path, test_cases: {"0": {case_desc, result, evidence}}}}, where a description may be split into "Task: ... Expected
Result: ... Note: ...".
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import pathlib
import re
from typing import Any

from tests.acceptance import scores
from tests.acceptance.cases import CaseError
from tests.acceptance.judge import BLOCKED, FAIL, PASS, UNCERTAIN

SCENARIOS = ("Display", "Analysis", "Data", "Game")
PARTS = re.compile(
    r"\s*(?:Task:\s*)?(.*?)\s*(?:Expected Result:\s*(.*?))?\s*(?:Note:\s*(.*))?", re.S
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A requirement to build an application from."""

    label: str
    scenario: str
    prompt: str
    features: tuple[str, ...]
    files: tuple[str, ...] = ()


def read_tasks(path: pathlib.Path) -> list[Task]:
    """Tasks of a RealDevBench file.

    Raises:
      CaseError: A line that is no task; it is named.
    """
    out = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            task = Task(
                str(row["label"]),
                row["scenario"],
                row["prompt"],
                tuple(row["features"]),
                tuple(row.get("files", ())),
            )
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise CaseError(
                f"{path.name}, line {number} is no task: {type(e).__name__} {e}"
            ) from None
        if task.scenario not in SCENARIOS:
            raise CaseError(
                f"{path.name}, line {number}: scenario {task.scenario!r}; use one of {', '.join(SCENARIOS)}"
            )
        out.append(task)
    return out


def read_case_file(path: pathlib.Path) -> dict[str, list[dict[str, str]]]:
    """{application: [{id, task, expected, note, result, evidence}]} of an AppEvalPilot file.

    Raises:
      CaseError: It is no such file, or a result is none of the judge's words.
    """
    try:
        content = json.loads(path.read_text())
        found = {app: body["test_cases"].items() for app, body in content.items()}
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as e:
        raise CaseError(
            f"{path.name} is no AppEvalPilot case file: {type(e).__name__} {e}"
        ) from None
    out: dict[str, list[dict[str, str]]] = {}
    for app, cases in found.items():
        out[app] = []
        for key, case in cases:
            task, expected, note = PARTS.fullmatch(case["case_desc"]).groups(default="")
            result = case.get("result") or ""
            if result not in ("", PASS, FAIL, UNCERTAIN, BLOCKED):
                raise CaseError(
                    f"{path.name}: result {result!r} of {app}, case {key}; use {PASS}, {FAIL} or {UNCERTAIN}"
                )
            out[app].append(
                dict(
                    id=str(key),
                    task=task,
                    expected=expected,
                    note=note,
                    result=result,
                    evidence=case.get("evidence") or "",
                )
            )
    return out


def write_case_file(
    path: pathlib.Path, url: str, app: str, rows: Iterable[Mapping[str, Any]]
) -> None:
    """Rows of results in AppEvalPilot's form."""
    cases = {
        str(i): {
            "case_desc": f"Task: {r['task']} Expected Result: {r['expected']}",
            "result": r["result"],
            "evidence": r["reason"] or f"{sum(c[1] is True for c in r['checks'])} checks hold",
        }
        for i, r in enumerate(rows)
    }
    path.write_text(
        json.dumps({app: {"url": url, "test_cases": cases}}, indent=1, ensure_ascii=False)
    )


def leaderboard(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of applications by score, for people."""
    lines = [
        "| application | score | executable | coverage | flaky | cases | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {
        app: scores.summary([r for r in rows if r["app"] == app])
        for app in dict.fromkeys(r["app"] for r in rows)
    }
    for app, s in sorted(found.items(), key=lambda x: (-x[1]["score"], x[0])):
        lines.append(
            f"| {app} | {s['score']:.3f} | {'yes' if s['executable'] else 'no'} | {s['coverage']:.3f} | {s['flaky']:.3f} | "
            f"{s['cases']} | {s['seconds']:.0f} |"
        )
    return "\n".join(lines)
