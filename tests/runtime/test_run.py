"""The run directory, and the command as a process: SIGTERM saves, the same command goes on."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from recjax.data.store.prepared import say_prepared
from recjax.runtime.run import Interrupted, RunError, Stop, plain, read_jsonl, write_text
from tests import messages

REPO = Path(__file__).resolve().parents[2]
CONFIG = """
from tests.test_contracts import config

def get_config(arg=""):
    return config("arms", train__epochs=40, train__checkpoint_every=20, eval__every=0)
"""


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_text(path, "one")
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        write_text(path, "two")
    assert path.read_text() == "one"


def test_plain_turns_numbers_into_json():
    value = {"a": np.float32("nan"), "b": np.arange(2), "c": (np.int64(3),), 1: float("inf")}
    assert json.loads(json.dumps(plain(value))) == {"a": None, "b": [0, 1], "c": [3], "1": None}


def test_a_torn_last_line_is_left_out(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"ste')
    assert read_jsonl(tmp_path / "m.jsonl") == [{"step": 1}]
    (tmp_path / "m.jsonl").write_text('{"step"\n{"step": 2}\n')
    with messages.raises(RunError, "line 1", "JSON"):
        read_jsonl(tmp_path / "m.jsonl")


def test_second_ctrl_c_ends_at_once():
    with pytest.raises(KeyboardInterrupt), Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_no_poll_saw_is_for_whoever_is_outside(number):
    with pytest.raises(Interrupted), Stop() as outer:
        with Stop() as inner:
            os.kill(os.getpid(), number)
        assert inner.signum == outer.signum == number
        outer.raise_if_requested()
    seen = []
    before = signal.signal(number, lambda n, _: seen.append(n))
    try:
        with Stop():
            os.kill(os.getpid(), number)
            assert not seen
        assert seen == [number]
    finally:
        signal.signal(number, before)


def command(config, workdir):
    return [sys.executable, "-m", "recjax.train", f"--config={config}", f"--workdir={workdir}"]


def test_sigterm_saves_and_the_same_command_finishes(tmp_path):
    config = tmp_path / "c.py"
    config.write_text(CONFIG)
    process = subprocess.Popen(command(config, tmp_path / "run"), cwd=REPO, stderr=subprocess.PIPE)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM, process.stderr.read()[-2000:]
    assert not (tmp_path / "run" / "summary.json").exists()
    saved = list((tmp_path / "run/checkpoints/recent").glob("[0-9]*"))
    assert saved
    subprocess.run(command(config, tmp_path / "run"), cwd=REPO, check=True)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["step"] == 400


def test_unknown_flag_value_exits_non_zero_and_names_the_key(tmp_path):
    args = command("experiments/suan_complete_journey.py:runlocal", tmp_path)
    done = subprocess.run(
        [*args, "--config.opt.learning_rate=1"], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode != 0 and "learning_rate" in done.stderr


def test_a_second_run_compiles_nothing(tmp_path, run_python):
    code = f"""
import sys
from recjax.configs import load
from recjax.runtime.run import set_up
from recjax.training.loop import train
set_up()
print("compiled", train(load({str(tmp_path / "c.py")!r}), sys.argv[1])["compiled"])
"""
    (tmp_path / "c.py").write_text(CONFIG.replace("epochs=40", "epochs=1"))
    env = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    counts = [
        int(run_python(code, str(tmp_path / run), devices=1, env=env).stdout.split("compiled ")[1])
        for run in ("first", "second")
    ]
    assert counts[0] > 0 and counts[1] == 0


def test_info_lines_of_a_user_are_shown_and_those_of_libraries_that_narrate_are_not(run_python):
    code = """
import types
from absl import logging
import jax, orbax.checkpoint
from recjax.runtime.run import set_up

def called_from(path):
    exec(compile("logging.info('told by %s', name)", path, "exec"), {"logging": logging, "name": path.split("/")[-1]})

set_up()
called_from("/home/somebody/jax/own_model.py")
called_from(jax.__path__[0] + "/narrator_of_jax.py")
called_from(list(orbax.checkpoint.__path__)[0] + "/narrator_of_orbax.py")
logging.warning("a warning is always shown")
"""
    said = run_python(code, devices=1).stderr
    assert "told by own_model.py" in said and "a warning is always shown" in said
    assert "narrator_of" not in said


def test_data_that_lie_there_are_said_to_once(tmp_path, caplog):
    with caplog.at_level("INFO", logger="absl"):
        for path in (tmp_path / "a", tmp_path / "b", tmp_path / "a"):
            say_prepared("world", path)
    assert [m.split(" in ")[1] for m in caplog.messages] == [f"{tmp_path}/a", f"{tmp_path}/b"]
