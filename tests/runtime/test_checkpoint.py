"""Checkpoints: damage is skipped, said, and written over."""

import shutil
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from recjax.runtime import checkpoint
from recjax.runtime.checkpoint import Checkpoints


def trees(value):
    return {"dense": {"w": jnp.full((3,), float(value))}}


@pytest.fixture
def folder(tmp_path):
    """Steps 1 and 2, the second without its arrays."""
    made = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        made.save(step, trees(step), {"step": step})
    made.close()
    shutil.rmtree(tmp_path / "recent" / "2" / "trees")
    return tmp_path


def test_a_damaged_step_is_skipped_and_then_written_again(folder):
    again = Checkpoints(folder, keep=3)
    step, found, meta = again.restore(trees(0))
    assert step == meta["step"] == 1 and found["dense"]["w"][0] == 1
    again.save(1, trees(9), {"step": 1})  # undamaged: left alone
    again.save(2, trees(5), {"step": 2})
    again.close()
    last = Checkpoints(folder, keep=3)
    step, found, _ = last.restore(trees(0))
    last.close()
    assert step == 2 and found["dense"]["w"][0] == 5


def test_when_nothing_can_be_read_the_reason_is_given(folder):
    shutil.rmtree(folder / "recent" / "1" / "trees")
    made = Checkpoints(folder, keep=3)
    with pytest.raises(
        ValueError, match=r"no checkpoint .* \(steps \[2, 1\]: \w+.*restore one from a copy"
    ):
        made.restore(trees(0))
    made.close()


def test_an_error_waits_for_what_is_being_saved(tmp_path):
    with pytest.raises(KeyError, match="broken"), Checkpoints(tmp_path) as made:
        made.save(1, {"w": jnp.zeros(10_000_000)}, {})  # takes longer than the next line
        raise KeyError("broken")
    assert [p.name for p in (tmp_path / "recent").iterdir()] == ["1"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_neither_dead_processes_nor_a_second_ctrl_c_are_waited_for(error, tmp_path, monkeypatch):
    never, made = threading.Event(), Checkpoints(tmp_path)
    monkeypatch.setattr(Checkpoints, "wait", lambda self: never.wait(60))
    monkeypatch.setattr(checkpoint, "LAST_SECONDS", 0.5)
    monkeypatch.setattr(jax, "process_count", lambda: 1 + (error is KeyError))
    began = time.monotonic()
    with pytest.raises(error), made:
        raise error
    never.set()
    assert time.monotonic() - began < 30


def test_the_error_is_raised_not_that_of_the_save_it_interrupts(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Checkpoints, "wait", lambda self: 1 / 0)
    with pytest.raises(KeyError, match="first"), Checkpoints(tmp_path):
        raise KeyError("first")
    assert "is lost (division by zero)" in caplog.text
