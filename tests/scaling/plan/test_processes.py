"""A sweep by several processes: the rows of one process, every run once, and signals that reach all."""

import os
import signal
import subprocess
import sys
import time

import pytest

from recjax.runtime.run import Run
from scaling.plan import processes, sweep
from tests.messages import raises
from tests.scaling.plan.test_sweep import trials

TIMES = ("examples_per_s", "wall_s", "seconds")


def timeless(rows):
    return [{k: v for k, v in r.items() if k not in TIMES} for r in rows]


def test_cores_in_parts():
    assert processes.parts({0, 1, 2}, 2) == [{0, 2}, {1}]
    assert processes.parts({3, 5}, 2) == [{3}, {5}]
    with raises(ValueError, "--processes=3", "2 cores"):
        processes.parts({0, 1}, 3)


@pytest.mark.skipif(len(processes.available()) < 2, reason="one core")
def test_two_processes_leave_the_rows_of_one(tmp_path):
    one = sweep.run_sweep(trials((0, 1, 2)), tmp_path / "one")
    two = processes.run_sweep(trials((0, 1, 2)), tmp_path / "two", processes=2)
    assert timeless(two) == timeless(one)
    logs = "".join((tmp_path / f"two/worker-{i}.log").read_text() for i in range(2))
    assert logs.count(" of 3: ") - logs.count("is another process's") == 3  # none by both


def test_a_run_that_another_process_holds_is_left_to_it(tmp_path):
    held, free = trials()
    with Run(tmp_path / "runs" / held.run, held.config):
        rows = sweep.run_sweep([held, free], tmp_path)
    assert {r["seed"] for r in rows} == {1}
    assert not sweep.failures(tmp_path)


def test_no_locks_in_a_bucket(tmp_path):
    with raises(ValueError, "--workdir"):
        processes.run_sweep(trials(), "gs://somewhere/sweep", processes=2)


SWEEP = """
from scaling.plan import processes
from tests.scaling.plan.test_sweep import trials
if __name__ == "__main__":
    processes.run_sweep(trials(range(40)), {workdir!r}, processes=1 + (len(processes.available()) > 1))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_of_them_and_the_sweep_goes_on(tmp_path, number):
    if len(processes.available()) < 2:
        pytest.skip("one core")
    script = tmp_path / "sweep.py"
    script.write_text(SWEEP.format(workdir=str(tmp_path / "out")))
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    child = subprocess.Popen([sys.executable, str(script)], env=env, start_new_session=True)
    while not list((tmp_path / "out").glob("trials/*.json")):
        assert child.poll() is None
        time.sleep(0.2)
    child.send_signal(number)
    assert child.wait(60) == 128 + number
    left = ["pgrep", "-g", str(child.pid)]
    deadline = time.monotonic() + 10  # Python's own helpers end a moment after their parent
    while subprocess.run(left, capture_output=True).stdout and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not subprocess.run(left, capture_output=True).stdout
    done = {r["seed"] for r in sweep.collect(trials(range(40)), tmp_path / "out")}
    assert 0 < len(done) < 40
