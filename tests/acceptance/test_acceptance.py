"""The acceptance system on its small applications: a sample of cases, defects that must be found, evidence that must be there.

All of it: `python -m tests.acceptance run` and `python -m tests.acceptance defects`.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from tests.acceptance import __main__ as command
from tests.acceptance import apps, cases, driver, label, running
from tests.acceptance.judge import FAIL, PASS
from tests.conftest import REPO

needs_browser = pytest.mark.skipif(bool(driver.missing()), reason=driver.missing() or "-")


@pytest.fixture(scope="module")
def browser():
    if driver.missing():
        pytest.skip(driver.missing())
    with driver.browser() as b:
        yield b


def case_of(app, name):
    return next(c for c in cases.read_all(app) if c.id == name)


@pytest.mark.parametrize(
    ("app", "case", "defect"),
    [
        ("form", "saving-lists-the-order", "dead_button"),
        ("table", "search-whatever-the-case", "case_matters"),
        ("chart", "bars-follow-the-region", "stale_chart"),
        ("upload", "blank-cells-are-missing", "blank_is_zero"),
    ],
)
def test_a_case_passes_and_finds_its_defect(browser, app, case, defect):
    one = case_of(app, case)
    for planted, want in (("", PASS), (defect, FAIL)):
        with apps.small(app, planted) as application:
            verdict = running.try_case(application, one, browser, probing=False)
        assert verdict.result == want, verdict


def test_a_failure_is_confirmed_by_probes_and_an_absent_page_is_a_precondition(browser):
    one = case_of("game", "undo-takes-back")
    with apps.small("game", "undo_dead") as application:
        verdict = running.try_case(application, one, browser)
        assert verdict.result == FAIL and verdict.belief == pytest.approx(0.833333, abs=1e-5)
        needs = dataclasses.replace(one, pre=[{"visible": "#nowhere"}])
        verdict = running.try_case(application, needs, browser)
        assert verdict.result == FAIL and verdict.reason.startswith("precondition")


def test_an_act_without_effect_fails_and_the_outside_is_out_of_reach(browser, tmp_path):
    (tmp_path / "p.html").write_text(
        "<title>p</title><button>Go</button><img alt='x' src='http://192.0.2.1/x.png'>"
    )
    checks = [{"visible": {"role": "button", "name": "Go"}}]
    one = cases.Case(
        "go",
        "p.go",
        "functional",
        "Press Go.",
        "Something.",
        checks,
        steps=[{"click": {"role": "button", "name": "Go"}}],
    )
    with apps.serving_folder(tmp_path) as url:
        application = running.Application("p", f"{url}/p.html", {})
        verdict = running.try_case(
            application, dataclasses.replace(one, at=""), browser, probing=False
        )
    said = {what: truth for what, truth, _ in verdict.checks}
    assert (
        verdict.result == FAIL
        and said["it has an effect"] is False
        and said["loopback_only"] is False
    )


@needs_browser
def test_a_run_keeps_evidence_that_its_manifest_vouches_for(tmp_path, capsys):
    out = tmp_path / "out"
    # in a process of its own, for a browser of this one is open
    words = [
        sys.executable,
        "-m",
        "tests.acceptance",
        "run",
        "--app=form",
        "--feature=form.total",
        f"--out={out}",
    ]
    ran = subprocess.run(words, cwd=REPO, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [r["result"] for r in rows] == [PASS] * 3
    files = json.loads((out / "manifest.json").read_text())["files"]
    assert {"evidence/form/a-year-is-cheaper/step-01.png", "results.jsonl"} <= set(files)
    for name, digest in files.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert "| form | 1.000 |" in ran.stdout
    assert command.main(["gate", f"--out={out}"]) == 0
    rows[0]["result"] = FAIL
    running.write_rows(out / "results.jsonl", rows)
    assert command.main(["gate", f"--out={out}"]) == 1
    assert "form" in capsys.readouterr().out
    assert command.main(["agree", f"--out={out}"]) == 1  # nobody has labelled
    assert "labels.json" in capsys.readouterr().err

    server = label.serve(rows, out)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    try:
        page = urllib.request.urlopen(base).read().decode()
        assert rows[0]["task"] in page and FAIL not in page.replace(">Fail<", "").replace(
            '"Fail"', ""
        )
        shot = urllib.request.urlopen(f"{base}/evidence/form/{rows[0]['case']}/before.png")
        assert shot.read(4) == b"\x89PNG"
        for path in ("/evidence/../results.jsonl", "/evidence/%2e%2e/results.jsonl"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(base + path)
        for row in rows:
            urllib.request.urlopen(base, f"key={label.key_of(row)}&label=Pass".encode())
        assert "All are labelled" in urllib.request.urlopen(base).read().decode()
    finally:
        server.shutdown()
        server.server_close()
    assert command.main(["agree", f"--out={out}"]) == 0
    assert "insufficient: 3 labels" in capsys.readouterr().out


def test_commands_end_in_a_sentence(tmp_path, capsys):
    assert command.main(["gate", f"--out={tmp_path}/none"]) == 1
    assert "run the cases first" in capsys.readouterr().err
    assert command.main(["generate", "--app=game"]) == 1
    assert "manifest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("case", "defect"),
    [
        ("filter-by-name", "filter_ignored"),
        ("final-figures", "nan_shown"),
        ("candidates-are-ranked", "probability_wrong"),
    ],
)
def test_the_console_passes_and_its_defects_are_found(browser, case, defect):
    one = case_of("console", case)
    for planted, want in (("", PASS), (defect, FAIL)):
        with apps.APPLICATIONS["console"](defect=planted) as application:
            verdict = running.try_case(application, one, browser, probing=False)
        assert verdict.result == want, verdict
