"""What the suite does when something outside a test goes wrong."""

from pathlib import Path
import subprocess
import sys
import warnings

import numpy as np
import pytest

REPO = Path(__file__).resolve().parent.parent
DIES = "import os, signal\ndef test_dies(): os.kill(os.getpid(), signal.SIGSEGV)\n"
FINE = "import time\ndef test_one(): time.sleep(0.5)\ndef test_two(): pass\n"


@pytest.mark.parametrize(
    "kind", [DeprecationWarning, FutureWarning, np.exceptions.VisibleDeprecationWarning]
)
def test_a_deprecation_is_an_error(kind):
    with pytest.raises(kind):
        warnings.warn("it will go", kind, stacklevel=1)


def test_a_worker_that_dies_ends_the_run_with_the_test_s_name(tmp_path):
    """xdist's replacement of a dead worker never gets the files left to it: the run would wait for ever."""
    for name, text in (("dies", DIES), ("fine", FINE), ("more", FINE)):
        (tmp_path / f"test_{name}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"]
    config = ["-c", str(REPO / "pyproject.toml"), "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(
        [*command, *config], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "crashed while running 'test_dies.py::test_dies'" in done.stdout
