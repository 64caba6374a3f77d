"""The service does what its OpenAPI document says, and nothing else: schemathesis makes the requests."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPO
from tests.serving.client import serving

HERE = REPO / "tests" / "serving"


def schemathesis(client, folder, examples):
    """(test cases, output) of the command; a failure is a finding."""
    command = shutil.which("schemathesis", path=os.path.dirname(sys.executable))
    if command is None:
        pytest.skip("schemathesis is not installed; pip install 'recjax[test]'")
    done = subprocess.run(
        [
            command, f"--config-file={HERE / 'schemathesis.toml'}", "run",
            f"{client.base_url}/openapi.json", "--header=Authorization: Bearer r3load",
            "--checks=all", "--exclude-checks=positive_data_acceptance", "--seed=1",
            "--phases=examples,coverage,fuzzing", f"--max-examples={examples}",
            "--generation-database=none", "--continue-on-failure",
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.serving.openapi_checks", "PYTHONPATH": str(REPO)},
        cwd=folder,  # where it leaves a folder of its own
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return int(re.search(r"([\d,]+) generated", done.stdout)[1].replace(",", "")), done.stdout


@pytest.fixture(scope="module")
def client(exported):
    with serving(exported.path, reload_token="r3load") as (client, _):
        yield client


def test_a_sample_of_requests(client, tmp_path):
    assert schemathesis(client, tmp_path, 15)[0] >= 100


@pytest.mark.slow
def test_five_thousand_requests(client, tmp_path):
    assert schemathesis(client, tmp_path, 2500)[0] >= 5000
