"""Tries cases: an application, a browser, the judge, probes after a failure, and the files that show it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import json
import pathlib
import time
from typing import Any

from tests.acceptance import probes
from tests.acceptance.cases import Case
from tests.acceptance.driver import Evidence, Session, StepFailed
from tests.acceptance.judge import BLOCKED, FAIL, PASS, Judge, Verdict, regions_of


@dataclasses.dataclass(frozen=True)
class Application:
    """Something that runs on loopback and can be looked at.

    Attributes:
      name: Of its cases.
      url: Where it answers.
      oracles: name -> function of the truth.
      query: Of a planted defect, added to every page that a case begins on.
    """

    name: str
    url: str
    oracles: Mapping[str, Callable[..., Any]]
    query: str = ""

    def start(self, at: str) -> str:
        return at + (("&" if "?" in at else "?") + self.query if self.query else "")


def try_case(
    app: Application, case: Case, browser, folder: pathlib.Path | None = None, probing: bool = True
) -> Verdict:
    """The verdict of a case; a failure is looked into by probes."""
    began = time.monotonic()
    verdict = _once(app, case, browser, folder)
    if verdict.result == FAIL and probing:
        verdict = _diagnosed(app, case, browser, verdict)
    if verdict.result == BLOCKED:  # once more on a fresh profile; still so: it is the software's
        again = _once(app, case, browser, folder)
        verdict = (
            again
            if again.result != BLOCKED
            else dataclasses.replace(again, result=FAIL, reason=f"precondition: {again.reason}")
        )
    verdict.seconds = time.monotonic() - began
    return verdict


def _once(
    app: Application, case: Case, browser, folder: pathlib.Path | None = None, patience: float = 1.0
) -> Verdict:
    session, evidence, actions = Session(browser, app.url, patience), Evidence(folder), []
    try:
        session.do({"goto": app.start(case.at)})
        judge = Judge(session, app.oracles, None, {})
        for what, truth, found in map(judge.check, case.pre):
            if truth is not True:
                return Verdict(BLOCKED, f"{what}: {found}")
        last, effect = session.seen(), None if not case.steps else False
        regions = {css: judge.region(css) for css in regions_of(case)}
        evidence.keep("before", session)
        for i, step in enumerate(case.steps):
            at = time.monotonic()
            try:
                session.do(step)
            except StepFailed as e:
                evidence.keep("failed", session)
                return Verdict(FAIL, f"step {i + 1}: {e}")
            now = session.seen()
            effect = effect or not now.same(last) or bool(session.downloads)
            last = now
            actions.append({"step": dict(step), "seconds": round(time.monotonic() - at, 3)})
            evidence.keep(f"step-{i + 1:02d}", session)
        return Judge(session, app.oracles, effect, regions).verdict(case)
    except StepFailed as e:  # the page itself
        return Verdict(BLOCKED, str(e))
    finally:
        evidence.close(session, actions)
        session.close()


def _diagnosed(app: Application, case: Case, browser, failed: Verdict) -> Verdict:
    """The failure confirmed, or a recovered Pass."""
    belief = probes.START
    tries: list[tuple[str, Case, float]] = []
    if case.alternative:
        tries.append(("alternative", dataclasses.replace(case, steps=case.alternative), 1.0))
    tries += [("patience", case, 3.0), ("fresh", case, 1.0)]
    for probe, other, patience in tries:
        found = _once(app, other, browser, patience=patience)
        if found.result == PASS:
            return dataclasses.replace(
                found,
                recovered=True,
                belief=belief,
                reason=f"recovered by {probe}: {failed.reason}",
            )
        belief = probes.updated(belief, probe)
        if belief >= probes.CONFIRMED:
            break
    return dataclasses.replace(failed, belief=belief)


def run_cases(
    app: Application,
    cases: Sequence[Case],
    browser,
    out: pathlib.Path | None = None,
    *,
    probing: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Verdict]:
    """{case id: verdict}; with `out`, evidence and rows there."""
    found = {}
    for case in cases:
        folder = out / "evidence" / app.name / case.id if out else None
        found[case.id] = verdict = try_case(app, case, browser, folder, probing)
        tell(
            f"{verdict.result:9} {app.name} {case.id} ({verdict.seconds:.1f} s) {verdict.reason[:160]}"
        )
    return found


def rows(
    app: str, cases: Iterable[Case], verdicts: Mapping[str, Verdict], repeat: int = 0
) -> list[dict]:
    """results.jsonl's rows."""
    return [
        {
            "app": app, "feature": c.feature, "case": c.id, "kind": c.kind, "repeat": repeat, "weight": c.weight,
            "feature_weight": c.feature_weight, "task": c.task, "expected": c.expected,
            **dataclasses.asdict(verdicts[c.id]),
        }
        for c in cases
    ]  # fmt: skip


def write_rows(path: pathlib.Path, found: Iterable[dict]) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".part")
    temporary.write_text("".join(json.dumps(r) + "\n" for r in found))
    temporary.replace(path)
