"""The main job, small: from the wheel's logs to a served student and a report, and again for free."""

import json
import time

import pytest

from recjax import configs
from scaling import run


@pytest.fixture
def workdir(quickstart):
    return quickstart


def test_every_stage_left_its_file(workdir):
    for name in ("trials.jsonl", "fit.json", "distil.json", "latency.json", "report.html"):
        assert (workdir / name).stat().st_size > 0
    roles = json.loads((workdir / "distil.json").read_text())["roles"]
    assert set(roles) == {"teacher", "undistilled", "distilled"}
    latency = json.loads((workdir / "latency.json").read_text())
    assert latency["candidates"] == 20 and latency["rows"][0]["p50_ms"] > 0


def test_the_law_has_its_points(workdir):
    law = json.loads((workdir / "fit.json").read_text())[0]
    assert law["sizes"] == 4 and law["points"] == 8
    assert law["holdout"] is not None and "power" in law["competitors"]


def test_the_report_is_offline_and_says_what_three_grades_cannot(workdir):
    page = (workdir / "report.html").read_text()
    assert 'src="http' not in page and "purchase" in page
    assert "scaling/configs/complete_journey.py" in page


def test_the_same_command_does_nothing_twice(workdir):
    before = (workdir / "trials.jsonl").read_bytes()
    began = time.monotonic()
    run.run(configs.load("scaling/configs/quickstart.py", "runlocal"), str(workdir))
    assert (workdir / "trials.jsonl").read_bytes() == before
    assert time.monotonic() - began < 20
