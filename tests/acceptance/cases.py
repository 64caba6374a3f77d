"""Cases: what an application must do, feature by feature, as YAML that people review."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import jsonschema
import yaml

HERE = pathlib.Path(__file__).resolve().parent
KINDS = ("displayed", "functional", "negative", "visual")
ACTING = ("functional", "negative")
HARD = ("no_console_error", "no_http_5xx", "no_broken_image", "loopback_only")
STEPS = (
    "goto",
    "click",
    "fill",
    "select",
    "press",
    "check",
    "focus",
    "hover",
    "upload",
    "download",
    "viewport",
    "settle",
)
CHECKS = (
    "visible", "hidden", "text", "count", "number", "numbers", "rows", "column", "sorted", "changed", "unchanged",
    "download", "url", "attribute", "no_overflow", "loads_within", "value",
)  # fmt: skip

_ONE_OF = lambda names: {  # noqa: E731
    "type": "object", "minProperties": 1, "maxProperties": 1, "propertyNames": {"enum": list(names)},
}  # fmt: skip
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["feature", "cases"],
    "properties": {
        "feature": {"type": "string", "pattern": r"^[a-z0-9_]+(\.[a-z0-9_]+)+$"},
        "weight": {"type": "number", "exclusiveMinimum": 0},
        "manifest": {"type": "object"},
        "cases": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["id", "kind", "task", "expected", "assert"],
                "properties": {
                    "id": {"type": "string", "pattern": "^[a-z0-9-]+$"},
                    "kind": {"enum": list(KINDS)},
                    "task": {"type": "string", "minLength": 3},
                    "expected": {"type": "string", "minLength": 3},
                    "weight": {"type": "number", "exclusiveMinimum": 0},
                    "at": {"type": "string"},
                    "pre": {"type": "array", "items": _ONE_OF(CHECKS)},
                    "steps": {"type": "array", "items": _ONE_OF(STEPS)},
                    "alternative": {"type": "array", "items": _ONE_OF(STEPS)},
                    "assert": {"type": "array", "minItems": 1, "items": _ONE_OF(CHECKS)},
                    "hard": {"type": "array", "items": {"enum": list(HARD)}},
                },
            },
        },
    },
}


class CaseError(ValueError):
    """A case file cannot be meant; the message names the file and the place."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing that somebody tries.

    Attributes:
      id: Of its own within an application.
      feature: "application.feature".
      kind: One of `KINDS`; `ACTING` ones must have an effect.
      task, expected: What is tried and what must come of it, in words.
      checks: Each {check: arguments}, all required (recjax's tests.acceptance.judge).
      steps: Each {step: arguments}, done in order (tests.acceptance.driver).
      pre: Checks without which the case cannot be tried.
      alternative: Another way to the same end, tried by a probe after a failure.
      hard: What must hold throughout.
      at: Path and query of the page it begins on.
      weight, feature_weight: In the scores.
    """

    id: str
    feature: str
    kind: str
    task: str
    expected: str
    checks: Sequence[Mapping[str, Any]]
    steps: Sequence[Mapping[str, Any]] = ()
    pre: Sequence[Mapping[str, Any]] = ()
    alternative: Sequence[Mapping[str, Any]] = ()
    hard: Sequence[str] = HARD
    at: str = "/"
    weight: float = 1.0
    feature_weight: float = 1.0

    @property
    def acts(self) -> bool:
        return self.kind in ACTING


def read(path: pathlib.Path) -> list[Case]:
    """The cases of one file, which may hold several features as YAML documents.

    Raises:
      CaseError: It is no YAML, or says something that no case can say.
    """
    try:
        documents = [d for d in yaml.safe_load_all(path.read_text()) if d]
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise CaseError(f"{path.name} is no YAML: {' '.join(str(e).split())}") from None
    out = []
    for document in documents:
        try:
            jsonschema.validate(document, SCHEMA)
        except jsonschema.ValidationError as e:
            where = "/".join(map(str, e.absolute_path)) or "the document"
            raise CaseError(f"{path.name}, {where}: {e.message}") from None
        for case in document["cases"]:
            own = {"checks" if k == "assert" else k: v for k, v in case.items()}
            weight = document.get("weight", 1.0)
            out.append(Case(feature=document["feature"], feature_weight=weight, **own))
    return out


def read_all(app: str, folder: pathlib.Path = HERE / "case_files") -> list[Case]:
    """The cases of an application: case_files/<app>.yaml and case_files/<app>_*.yaml, ids checked.

    Raises:
      CaseError: None, or two of one id.
    """
    paths = sorted({*folder.glob(f"{app}.yaml"), *folder.glob(f"{app}_*.yaml")})
    found = [case for path in paths for case in read(path)]
    if not found:
        raise CaseError(f"there are no cases for {app!r} in {folder}; write {app}.yaml")
    seen: set[str] = set()
    for case in found:
        if case.id in seen:
            raise CaseError(f"two cases of {app} are called {case.id!r}; rename one")
        seen.add(case.id)
    return found


def without_acting(cases: Sequence[Case]) -> list[str]:
    """Features that no case acts on: nobody clicked them, so they fail the gate."""
    acted = {c.feature for c in cases if c.acts}
    return sorted({c.feature for c in cases} - acted)
