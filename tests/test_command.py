"""Expected errors end in one sentence and exit 1, unusable flags in exit 2, and a bug keeps its traceback."""

import subprocess
import sys

import pytest

from recjax import command
from tests.conftest import REPO


def ended(module: str, *args: str, **env: str) -> subprocess.CompletedProcess:
    import os

    return subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=REPO,
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=300,
    )


@pytest.mark.parametrize(
    ("args", "code", "names"),
    [
        (("--config=experiments/suan_complete_journey.py:runlocla", "--workdir=WORKDIR"), 2, "'runlocal'"),
        (("--config=experiments/nosuch.py", "--workdir=WORKDIR"), 2, "experiments/nosuch.py"),
        (("--config=experiments/suan_logs.py", "--config.train.bacth=3"), 2, "bacth"),
        (("--config=experiments/suan_logs.py", "--config.train.batch=many"), 2, "many"),
        (("--config=experiments/suan_logs.py",), 2, "--workdir"),
        (("--config=experiments/suan_logs.py", "--workdir=WORKDIR", "stray"), 2, "stray"),
        (("--config=experiments/suan_logs.py", "--workdir=WORKDIR", "--config.opt.clip=-1"), 1, "opt.clip=-1"),
        (("--config=experiments/suan_logs.py", "--workdir=WORKDIR", "--config.data.dir=/nosuch"), 1, "/nosuch"),
    ],
)  # fmt: skip
def test_training_refuses_in_one_sentence(tmp_path, args, code, names):
    workdir = tmp_path / "run"
    done = ended("recjax.train", *(a.replace("WORKDIR", str(workdir)) for a in args))
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == code, done.stderr
    assert last.startswith("error: ") and names in last
    assert "Traceback" not in done.stderr
    assert not (workdir / "config.json").exists()


def raised(what):
    try:
        what()
    except Exception as e:
        return e


def test_what_a_library_raises_is_a_bug():
    assert not command.expected(raised(lambda: int("x")))
    assert not command.expected(raised(lambda: {}["x"]))
    assert not command.expected(raised(lambda: 1 / 0))


def test_a_file_that_the_system_refuses_is_no_bug(tmp_path):
    error = raised(lambda: open(tmp_path / "absent"))
    assert command.expected(error)
    assert command.sentence(error) == f"{tmp_path / 'absent'}: No such file or directory"


def test_messages_are_one_line():
    assert command.sentence(KeyError("no such key x")) == "no such key x"
    assert command.sentence(ValueError("two\n  lines")) == "two lines"
    assert command.sentence(RuntimeError()) == "RuntimeError"
