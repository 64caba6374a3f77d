"""launch.local: processes that find each other, and that end together."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launch import local

JOIN = """
import os, jax
jax.distributed.initialize(
    num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
)
print("joined", jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count())
"""
LAST_DIES = """
import os, sys, time
print("here")
if os.environ["JAX_PROCESS_ID"] == "2":
    sys.exit(7)
time.sleep(600)
"""
STUBBORN = LAST_DIES.replace(
    "import os", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nimport os"
)
SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved"), sys.exit(143)))
print("ready")
time.sleep(600)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    def write(code: str) -> str:
        (tmp_path / "a_module.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.getcwd()]))
        return "a_module"

    return write


def environments(n, devices=2):
    port = local.free_port()
    return [local.environment(i, n, devices, "cpu", port) for i in range(n)]


def test_processes_find_each_other(module, capfd):
    assert local.launch([], environments(2), module(JOIN)) == 0
    out = capfd.readouterr().out
    assert "[0] joined 0 2 2 4" in out and "[1] joined 1 2 2 4" in out


@pytest.mark.parametrize("code", [LAST_DIES, STUBBORN])
def test_one_death_ends_the_others_with_its_code(module, capfd, monkeypatch, code):
    monkeypatch.setattr(local, "GRACE", 1.0)
    began = time.monotonic()
    assert local.launch([], environments(3), module(code)) == 7
    assert time.monotonic() - began < 30
    assert "process 2 ended with 7; ending the others" in capfd.readouterr().err


def test_sigterm_reaches_every_process(module, tmp_path):
    code = f"from launch import local; import sys; sys.exit(local.launch([], [{{}}, {{}}], {module(SAVES)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert {process.stdout.readline(), process.stdout.readline()} == {"[0] ready\n", "[1] ready\n"}
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert set(rest.splitlines()) == {"[0] saved", "[1] saved"}


def test_dry_run_prints_the_commands(capfd):
    args = ["--processes=2", "--devices=4", "--port=1234", "--dry_run", "--", "--config=a b.py"]
    subprocess.run([sys.executable, "-m", "launch.local", *args], check=True)
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2
    for i, line in enumerate(lines):
        assert (
            f"JAX_COORDINATOR_ADDRESS=127.0.0.1:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={i} "
            in line
        )
        assert line.endswith("python -m recjax.train '--config=a b.py'")


def test_gpus_are_dealt_out():
    assert local.environment(1, 2, 2, "cuda", 1)["JAX_LOCAL_DEVICE_IDS"] == "2,3"
