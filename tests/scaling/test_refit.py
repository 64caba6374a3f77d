"""A study of which only the rows were kept: its laws and its report again, and nothing lost."""

import json
import shutil

from etils import epath
import pytest

from scaling import refit
from scaling.plan import sweep

STUDY = epath.Path("scaling/studies/nif_stage2")


@pytest.fixture
def kept(tmp_path):
    """Rows and config only."""
    for name in ("trials.jsonl", "sweep.json"):
        shutil.copy(STUDY / name, tmp_path / name)
    return epath.Path(tmp_path)


def test_laws_and_report_are_written_from_the_rows(kept, monkeypatch):
    def absent(data):
        raise FileNotFoundError("no such folder")

    monkeypatch.setattr(refit, "open_data", absent)
    before = (kept / "trials.jsonl").read_text()
    page = epath.Path(refit.refit(kept)).read_text()
    assert (kept / "trials.jsonl").read_text() == before
    assert json.loads((kept / "laws.json").read_text())["larger_is_better"] is True
    assert "Best of what was measured: grade 0 at history 50" in page
    assert "no report.json of the prepared data" in page


def test_collecting_nothing_keeps_the_rows(kept):
    before = (kept / "trials.jsonl").read_text()
    assert sweep.collect([], kept) == []
    assert (kept / "trials.jsonl").read_text() == before
