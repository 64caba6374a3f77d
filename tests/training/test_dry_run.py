"""--dry_run and --print_config: what a run would be, without one."""

import json
import subprocess
import sys

import pytest

from recjax import configs
from recjax.training.dry_run import dry_run, table
from tests import messages
from tests.conftest import REPO

CONFIG = "experiments/tin_planted.py:runlocal"


@pytest.fixture(scope="module")
def config():
    return configs.load(str(REPO / "experiments" / "tin_planted.py"), "runlocal")


def test_it_says_what_a_run_costs_and_leaves_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = config.to_json()
    out = dry_run(config)
    assert out["steps"] > 0 and out["batch"] == config.train.batch
    assert 0 < out["temporary_bytes"] and out["n_dense"] * 4 < out["arguments_bytes"]
    assert out["train_s"] == out["step_s"] * out["steps"] > 0
    messages.names(table(out), f"{out['steps']:,}", "n_dense", "MiB", "ms")
    assert not list(tmp_path.glob("recjax*")) and config.to_json() == before


def test_what_stops_a_run_stops_it(config):
    wrong = config.copy_and_resolve_references()
    wrong.train.batch = 10**9
    with messages.raises(ValueError, "GiB", "train.batch"):
        dry_run(wrong)


def test_the_flags(tmp_path):
    def ends(*flags):
        command = [sys.executable, "-m", "recjax.train", f"--config={CONFIG}", *flags]
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True)

    printed = ends("--print_config", "--config.train.batch=77")
    assert printed.returncode == 0 and json.loads(printed.stdout)["train"]["batch"] == 77
    nowhere = ends()
    assert nowhere.returncode == 2
    messages.names(nowhere.stderr, "--workdir")
    assert "Traceback" not in nowhere.stderr
