"""Two processes x 4 devices train as one x 8 do, stop together, and neither waits for a dead one."""

import contextlib
import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from recjax.data.worlds import base
from recjax.runtime import checkpoint
from recjax.runtime.run import read_jsonl

REPO = Path(__file__).resolve().parents[2]
HEARTBEAT = 10
CONFIG = """
from recjax import configs

def get_config(arg=""):
    c = configs.base()
    c.data.dir, c.data.history = {data!r}, 8
    c.model.name = "logistic"
    c.embedding.placement = ((".*", "row:all_to_all"),)
    c.train.batch = c.eval.batch = 64
    c.train.log_every, c.train.epochs, c.train.checkpoint_every = 5, int(arg or 1), 20
    c.eval.every, c.eval.splits, c.eval.final = 30, ("valid",), ("test",)
    return c
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    world = dict(users=300, items=80, impressions=4_000, events=15)
    data = base.prepare(folder, partitions=2, block_size=300, **world)
    (folder / "c.py").write_text(CONFIG.format(data=os.fspath(data)))
    return folder / "c.py"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(index, count, port, *args):
    """Process `index` of `count`, with 8 devices between them."""
    xla = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={8 // count}"
    keys = dict(NUM_PROCESSES=count, PROCESS_ID=index, COORDINATOR_ADDRESS=f"127.0.0.1:{port}")
    env = {**os.environ, **{f"JAX_{k}": str(v) for k, v in keys.items()}, "XLA_FLAGS": xla}
    env["RECJAX_HEARTBEAT_SECONDS"] = str(HEARTBEAT)
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, args)], cwd=REPO, env=env,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@contextlib.contextmanager
def started(count, *args):
    port = free_port()
    processes = [start(k, count, port, *args) for k in range(count)]
    try:
        yield processes
    finally:
        for p in processes:
            p.kill()


def ended(processes, seconds=240):
    """(exit codes, what they said)."""
    said = [p.communicate(timeout=seconds)[1] for p in processes]
    return [p.returncode for p in processes], said


def train(config, workdir, count, arg=""):
    args = "recjax.train", f"--config={config}:{arg}", f"--workdir={workdir}"
    return started(count, *args)


def run(config, workdir, count, arg="", expected=0):
    with train(config, workdir, count, arg) as processes:
        codes, said = ended(processes)
    assert codes == [expected] * count, "\n---\n".join(x[-3000:] for x in said)


def wait_for(path, processes, seconds=240):
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        assert all(p.poll() is None for p in processes), ended(processes)
        time.sleep(0.05)
    assert path.exists()


def leaves(workdir):
    import jax

    trees, _ = checkpoint.read(workdir / "checkpoints")
    pairs = jax.tree_util.tree_leaves_with_path(trees["trees"])
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in pairs}


def assert_close(a, b, far):
    """Metrics rows of two runs, equal but for rounding."""
    a, b = (read_jsonl(x / "metrics.jsonl") for x in (a, b))
    assert len(a) == len(b) > 10
    for x, y in zip(a, b, strict=True):
        assert {k: v for k, v in x.items() if not isinstance(v, float)} == {
            k: v for k, v in y.items() if not isinstance(v, float)
        }
        for k in ("loss", "logloss"):
            assert k not in x or abs(x[k] - y[k]) <= far * abs(y[k]), (k, x, y)
        assert "auc" not in x or abs(x["auc"] - y["auc"]) < 1e-3  # a rounding may swap two ranks


def test_processes_agree_on_widths_on_a_signal_and_on_a_value(tmp_path):
    port = free_port()  # each writes a file of its own, so `started` does not do
    processes = [start(k, 2, port, "tests.on_hosts", tmp_path / f"{k}.json") for k in (0, 1)]
    codes, said = ended(processes)
    assert codes == [0, 0], said
    a, b = (json.loads((tmp_path / f"{k}.json").read_text()) for k in (0, 1))
    # [width, ids, last]: the lists grow to the longest, ids stay, and fillers go on from 40 + slot
    assert [x[:3] for x in a["seen"][:3]] == [[4, 3, 43], [8, 3, 47], [6, 5, 45]]
    assert [x[:3] for x in b["seen"][:3]] == [[4, 3, 43], [8, 7, 47], [6, 3, 45]]
    # fullest bucket of any (5 rows a device: ids 0-4 have one owner, 5 and 6 the next), and `send`
    assert [x[3] for x in a["seen"][:3]] == [x[3] for x in b["seen"][:3]] == [3, 5, 5]
    assert [x[4:] for x in a["seen"]] == [x[4:] for x in b["seen"]]
    assert a["stopped"] == b["stopped"] == 128 + signal.SIGTERM and 3 <= len(a["seen"]) < 6
    assert a["told"] == b["told"] == {"auc": 0.5, "n": 3}


@pytest.mark.slow  # four trainings in processes of their own
def test_two_processes_train_stop_and_resume_as_one_does(config, tmp_path):
    """SIGTERM to one of two stops both; one process, and then two again, go on from what they saved."""
    run(config, tmp_path / "whole", 1, "2")
    run(config, tmp_path / "two", 2, "2")
    assert_close(tmp_path / "two", tmp_path / "whole", 1e-6)
    a, b = leaves(tmp_path / "two"), leaves(tmp_path / "whole")
    for k in a:
        np.testing.assert_allclose(a[k], b[k], rtol=1e-5, atol=1e-6, err_msg=k)

    with train(config, tmp_path / "cut", 2, "2") as processes:
        wait_for(tmp_path / "cut" / "metrics.jsonl", processes)
        processes[1].send_signal(signal.SIGTERM)
        codes, said = ended(processes)
    assert codes == [128 + signal.SIGTERM] * 2, said
    assert not (tmp_path / "cut" / "summary.json").exists()
    run(config, tmp_path / "cut", 1, "2")
    assert_close(tmp_path / "cut", tmp_path / "whole", 1e-6)


@pytest.mark.slow
def test_a_signal_to_one_process_in_an_evaluation_saves_and_ends_both(config, tmp_path):
    with started(2, "tests.on_hosts", config, tmp_path / "run") as processes:
        codes, said = ended(processes)
    assert codes == [128 + signal.SIGTERM] * 2, said
    assert "saved step 30" in said[0]  # where the first evaluation is
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert rows and not any(r["kind"] == "eval" for r in rows)
    run(config, tmp_path / "run", 2)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in rows if r["kind"] == "eval"] == [30]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_stops_the_other_which_says_how_to_go_on(config, tmp_path, victim):
    with train(config, tmp_path / "run", 2, "200") as processes:
        wait_for(tmp_path / "run" / "checkpoints" / "recent" / "20", processes)
        processes[victim].kill()
        began = time.monotonic()
        codes, said = ended(processes, HEARTBEAT + 30)
    assert time.monotonic() - began < HEARTBEAT + 20
    other = 1 - victim
    assert codes[victim] == -signal.SIGKILL and codes[other] not in (0, None)
    assert f"recjax: process {other} of 2 has stopped" in said[other]
    assert "distributed service detected fatal errors" in said[other] or "Gloo" in said[other]
    assert "with the same command; the run goes on from its last checkpoint" in said[other]
    if victim:  # and so it does
        later = tmp_path / "run" / "checkpoints" / "recent"
        step = max(int(p.name) for p in later.iterdir() if p.name.isdigit())
        with train(config, tmp_path / "run", 2, "200") as processes:
            wait_for(later / str(step + 40), processes)
            processes[0].send_signal(signal.SIGTERM)
            assert ended(processes)[0] == [128 + signal.SIGTERM] * 2


@pytest.mark.parametrize("count", [None, "1"])
def test_where_nothing_speaks_of_other_processes_there_is_one_and_nothing_waits(count, monkeypatch):
    for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAX_{name}", raising=False)
    if count:  # even in a cluster job
        monkeypatch.setenv("JAX_NUM_PROCESSES", count)
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "nowhere.invalid:1")
    code = "import jax\nfrom recjax.runtime import hosts\nwith hosts.joined(): print(jax.process_count())"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout == "1\n" and time.monotonic() - began < 60, done.stderr


def test_a_number_of_processes_without_an_address_is_refused(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    code = "from recjax.runtime import hosts\nwith hosts.joined(): print('alone')"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode and not done.stdout and "coordinator_address" in done.stderr
