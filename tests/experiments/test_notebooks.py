"""Both notebooks run from top to bottom, shortened, in a kernel of their own."""

import json
from pathlib import Path
import sys

import nbclient
import nbformat
import pytest

REPO = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPO / "experiments" / "notebooks").glob("*.ipynb"))


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
def test_runs_top_to_bottom(path, kernel, quickstart):
    notebook = nbformat.read(path, as_version=4)
    # Its command finds the finished stages of that run, and writes nothing into the checkout.
    for cell in notebook.cells:
        cell.source = cell.source.replace("runs/notebook_short", str(quickstart))
    nbclient.NotebookClient(
        notebook, kernel_name=kernel, timeout=300, resources={"metadata": {"path": str(REPO)}}
    ).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_is_committed_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert not any(c.get("outputs") or c.get("execution_count") for c in cells)
    assert sum("pip" in c.source for c in cells if c.cell_type == "code") == 1
