"""The main job, small: from the wheel's logs to a served student and a report, again for free, and in both notebooks."""

import json
from pathlib import Path
import sys
import time

import nbclient
import nbformat
import pytest

from recjax import configs
from scaling import run

REPO = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPO / "experiments" / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """The directory of one finished quickstart, shortened; the most expensive thing here, so made once."""
    folder = tmp_path_factory.mktemp("quickstart")
    run.run(configs.load("scaling/configs/quickstart.py", "runlocal"), str(folder))
    return folder


def test_every_stage_left_its_file(workdir):
    for name in (
        "trials.jsonl",
        "fit.json",
        "laws.json",
        "decisions.json",
        "distill.json",
        "latency.json",
        "report.html",
    ):
        assert (workdir / name).stat().st_size > 0
    roles = json.loads((workdir / "distill.json").read_text())["roles"]
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
    report = (workdir / "report.html").read_text()
    assert "--artifact=" in report
    run.run(
        configs.load("scaling/configs/quickstart.py", "runlocal"), str(workdir), only_report=True
    )
    again = (workdir / "report.html").read_text()
    assert "no student was distilled" not in again and "--artifact=" in again


def test_a_student_trained_again_is_exported_again(workdir):
    manifest = workdir / "artifact" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    summary = workdir / "distill" / "distilled-0" / "summary.json"
    summary.write_text(summary.read_text() + " ")
    config = configs.load("scaling/configs/quickstart.py", "runlocal")
    run.run(config, str(workdir))
    assert manifest.stat().st_mtime_ns > before


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """The name of a kernel that is this interpreter, whatever kernels the machine has."""
    folder = tmp_path / "kernels" / "recjax-test"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = dict(argv=argv, display_name="recjax test", language="python")
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("RECJAX_SHORT", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    return folder.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_top_to_bottom(path, kernel, workdir):
    notebook = nbformat.read(path, as_version=4)
    # Its command finds the finished stages of that run, and writes nothing into the checkout.
    for cell in notebook.cells:
        cell.source = cell.source.replace("runs/notebook_short", str(workdir))
    nbclient.NotebookClient(
        notebook, kernel_name=kernel, timeout=300, resources={"metadata": {"path": str(REPO)}}
    ).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_is_committed_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert not any(c.get("outputs") or c.get("execution_count") for c in cells)
    assert sum("pip" in c.source for c in cells if c.cell_type == "code") == 1
