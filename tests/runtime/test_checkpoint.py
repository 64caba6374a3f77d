"""Checkpoints: damage is skipped, said, and written over."""

import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from recjax.runtime import checkpoint
from recjax.runtime.checkpoint import Checkpoints
from recjax.trees import Trees


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


def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bytes(data))


def test_a_flipped_bit_restores_the_step_before(tmp_path):
    """Fifty bits, spread over all files of the newest step: its own values, or those of the step before it."""
    made = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        made.save(step, {"dense": {"w": jnp.arange(64.0) * step}}, {"step": step})
    made.close()
    rng, skipped = np.random.default_rng(0), 0
    files = [f for f in sorted((tmp_path / "recent" / "2").rglob("*")) if f.is_file() and f.stat().st_size]  # fmt: skip
    for file in (files * 50)[:50]:
        kept = file.read_bytes()
        flip(file, int(rng.integers(8 * len(kept))))
        again = Checkpoints(tmp_path, keep=3)
        step, found, meta = again.restore({"dense": {"w": jnp.zeros(64)}})
        again.close()
        assert meta["step"] == step
        np.testing.assert_array_equal(found["dense"]["w"], np.arange(64.0) * step)
        skipped += step == 1
        file.write_bytes(kept)
    assert skipped == 50  # every file is under its sum
    assert (
        Checkpoints(tmp_path, keep=3).restore({"dense": {"w": jnp.zeros(64)}})[0] == 2
    )  # the control
    flip(files[0], 3)
    with pytest.raises(ValueError, match="not what was written"):
        checkpoint.read(tmp_path)


def test_sums_go_with_their_steps(tmp_path):
    made = Checkpoints(tmp_path, keep=1)
    for step in (1, 2, 3):
        made.save(step, trees(step), {"step": step})
    made.save(3, trees(3), {"step": 3}, best=True)
    made.close()
    assert sorted(p.name for p in (tmp_path / "sums").iterdir()) == ["best-3.json", "recent-3.json"]


def test_when_nothing_can_be_read_the_reason_is_given(folder):
    shutil.rmtree(folder / "recent" / "1" / "trees")
    made = Checkpoints(folder, keep=3)
    with pytest.raises(ValueError, match=r"\[2, 1\].*1.trees.*copy"):
        made.restore(trees(0))
    made.close()


def written_as_dicts(step, path):
    """The trees and a checkpoint of them as all runs before the record `Trees` wrote it, by Orbax alone."""
    r = np.random.default_rng(0)
    dense = {"block": {"kernel": jnp.asarray(r.normal(size=(3, 2)), jnp.float32)}}
    table = {"rows": r.normal(size=(8, 4)), "sums": r.random((8,))}
    opt = optax.adam(0.1).init(dense)
    tables = {"student/item": jax.tree.map(jnp.float32, table)}
    old = dict(dense=dense, tables=tables, state={"mean": {"var": jnp.ones(2)}}, frozen={}, opt=opt)
    stored = dict(trees=old, sums={"loss": (jnp.ones(()), jnp.ones(()))})
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    with ocp.CheckpointManager(path / "recent", options=options) as manager:
        meta = ocp.args.JsonSave({"step": step})
        both = ocp.args.Composite(trees=ocp.args.StandardSave(stored), meta=meta)
        manager.save(step, args=both)
    return stored


def test_a_checkpoint_of_dicts_is_read_as_trees_bit_for_bit(tmp_path):
    old = written_as_dicts(3, tmp_path)
    like = jax.tree.map(jnp.zeros_like, {**old, "trees": Trees(**old["trees"])})
    with Checkpoints(tmp_path) as made:
        step, found, meta = made.restore(like)
    assert step == meta["step"] == 3 and jax.tree.structure(found) == jax.tree.structure(like)
    jax.tree.map(np.testing.assert_array_equal, found["trees"].as_dict(), old["trees"])
    jax.tree.map(np.testing.assert_array_equal, found["sums"], old["sums"])
    read = checkpoint.read(tmp_path)[0]["trees"]
    for name in ("dense", "tables", "state", "frozen"):
        got, want = getattr(read, name), old["trees"][name]
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_trees_are_stored_under_the_names_that_dicts_had(tmp_path):
    """So that a run of today is read by what was written for runs of yesterday."""
    old = written_as_dicts(1, tmp_path / "old")
    with Checkpoints(tmp_path / "new") as made:
        made.save(1, {**old, "trees": Trees(**old["trees"])}, {"step": 1})
    one, two = (checkpoint.shapes(tmp_path / name) for name in ("old", "new"))
    names = [jax.tree_util.tree_leaves_with_path(x) for x in (one, two)]
    assert [p for p, _ in names[0]] == [p for p, _ in names[1]] and names[0]
    assert [x.shape for _, x in names[0]] == [x.shape for _, x in names[1]]


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
    assert "division by zero" in caplog.text
