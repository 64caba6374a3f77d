"""Cases from a feature manifest, without a model: displayed, works, changes on input, refused input, survives a reload, by keyboard.

A manifest stands in a case file beside its cases and says what a feature's controls are:

    manifest:
      at: ""
      region: "#products"                       # what must change
      inputs:
        - {role: searchbox | ..., label: Search, good: mug, bad: zzz, empty: ""}
      actions:
        - {role: button, name: Next}
      keeps: true                               # whether a reload keeps its state

What comes out is reviewed like any other case: `generate` prints it and writes nothing.
"""

from collections.abc import Iterator, Mapping
import functools
from typing import Any

import yaml

from tests.acceptance.cases import HERE, CaseError


def from_manifest(feature: str, manifest: Mapping[str, Any]) -> list[dict]:
    """Cases of one feature, as a case file holds them.

    Raises:
      CaseError: The manifest has no control.
    """
    inputs, actions = manifest.get("inputs", []), manifest.get("actions", [])
    if not inputs and not actions:
        raise CaseError(
            f"{feature}: the manifest has neither inputs nor actions; name what a person uses"
        )
    return list(_cases(feature.split(".")[-1], manifest, inputs, actions))


def _cases(name: str, manifest, inputs, actions) -> Iterator[dict]:
    at, region = manifest.get("at", ""), manifest["region"]
    where = lambda c: {k: c[k] for k in ("role", "name", "label", "testid", "css") if k in c}  # noqa: E731

    def case(own, kind, task, expected, steps, checks):
        return {
            "id": f"{name}-{own}", "kind": kind, "task": task, "expected": expected, "at": at, "steps": steps, "assert": checks,
        }  # fmt: skip

    controls = [where(c) for c in (*inputs, *actions)]
    yield case(
        "displayed",
        "displayed",
        "Open the page.",
        "Every control is shown.",
        [],
        [{"visible": c} for c in controls],
    )
    for i, c in enumerate(inputs, 1):
        said = c.get("label") or c.get("name") or c.get("testid")
        fill = functools.partial(_filled, c)
        yield case(
            f"input-{i}-changes",
            "functional",
            f"Give {said} the value {c['good']!r}.",
            "The page follows.",
            [fill(c["good"])],
            [{"changed": {"region": region}}],
        )
        for kind in ("bad", "empty"):
            if kind in c:
                steps = [fill(c["good"]), fill(c[kind])]
                yield case(
                    f"input-{i}-{kind}",
                    "negative",
                    f"Give {said} the value {c[kind]!r}.",
                    "The page stays whole: no error, no NaN.",
                    steps,
                    [
                        {"text": {"at": "body", "lacks": "NaN"}},
                        {"text": {"at": "body", "lacks": "undefined"}},
                    ],
                )
        if manifest.get("keeps"):
            steps = [fill(c["good"]), {"press": "F5"}]
            yield case(
                f"input-{i}-stays",
                "functional",
                f"Give {said} a value and reload.",
                "The address and the page keep it.",
                steps,
                [{"changed": {"region": region}}],
            )
    for i, c in enumerate(actions, 1):
        yield case(
            f"action-{i}-works",
            "functional",
            f"Press {c.get('name')}.",
            "Something comes of it.",
            [{"click": where(c)}],
            [{"changed": {"region": region}}],
        )
        yield case(
            f"action-{i}-keyboard",
            "functional",
            f"Focus {c.get('name')} and press Enter.",
            "The same comes of it.",
            [{"focus": where(c)}, {"press": "Enter"}],
            [{"changed": {"region": region}}],
        )


def _filled(control: Mapping[str, Any], value: Any) -> dict:
    """The step that gives a control a value."""
    where = {k: control[k] for k in ("label", "testid", "css") if k in control}
    return {"select" if control.get("role") == "combobox" else "fill": {**where, "value": value}}


def proposed(app: str) -> str:
    """YAML of all generated cases of an application, by its case files' manifests.

    Raises:
      CaseError: None of them has a manifest.
    """
    documents = []
    for path in sorted((HERE / "case_files").glob(f"{app}*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document and "manifest" in document:
                cases = from_manifest(document["feature"], document["manifest"])
                documents.append({"feature": document["feature"], "cases": cases})
    if not documents:
        raise CaseError(
            f"no case file of {app!r} has a manifest; add one to a feature of case_files/{app}.yaml"
        )
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=120)
