"""What a run tells, and what it does with steps that are not finite."""

import logging
from pathlib import Path
import shlex
import sys

import jax
import numpy as np
import pytest

from recjax.runtime.run import Run, RunError, Stop, read_jsonl
from recjax.training import progress
from recjax.training.core import NonFinite
from recjax.training.loop import Trainer, train
from tests import fakes
from tests.test_contracts import config, leaves

QUIET = dict(eval__every=0, eval__final=("test",))


@pytest.fixture
def poisoned(monkeypatch):
    """poisoned(steps): training batches of these numbers (from 0) have an infinite price."""

    def at(*steps):
        real = fakes.batch_at

        def batch_at(index, batch, candidates):
            out = real(index, batch, candidates)
            if index in steps and batch == 32:
                out["dense"]["price"][:] = np.inf
            return out

        monkeypatch.setattr(fakes, "batch_at", batch_at)

    return at


def test_a_step_that_is_not_finite_ends_the_run_with_its_number_and_the_last_good_checkpoint(
    poisoned, tmp_path
):
    """The step from 9 to 10: the run is saved after 4 and 8, and not after 12."""
    poisoned(9)
    with pytest.raises(NonFinite) as e:
        train(config("batch_norm", eval__batch=16, **QUIET), tmp_path)
    said = str(e.value)
    assert "step 10 is not finite: loss" in said and "step 8 is the last good checkpoint" in said
    assert "opt.clip" in said and "train.on_non_finite=skip" in said
    saved = sorted(int(p.name) for p in (tmp_path / "checkpoints/recent").iterdir())
    assert saved == [4, 8]
    assert all(np.isfinite(x).all() for x in leaves(tmp_path).values() if x.dtype.kind == "f")


def test_such_steps_are_left_out_and_counted_where_the_config_says_so(poisoned, tmp_path):
    """The stopped run goes on with another `on_non_finite`, and ends as one that was told from the start."""
    poisoned(9, 13)
    with pytest.raises(NonFinite):
        train(config("batch_norm", eval__batch=16, **QUIET), tmp_path / "cut")
    ends = []
    for name in ("cut", "whole"):
        c = config("batch_norm", eval__batch=16, train__on_non_finite="skip", **QUIET)
        summary = train(c, tmp_path / name)
        rows = [r for r in read_jsonl(tmp_path / name / "metrics.jsonl") if r["kind"] == "train"]
        assert {r["step"]: r["non_finite"] for r in rows if r["non_finite"]} == {12: 1, 15: 1}
        assert all(np.isfinite(r["loss/logits"]) for r in rows) and summary["test"]["auc"] > 0.5
        ends.append(leaves(tmp_path / name))
    assert all(np.array_equal(ends[0][k], ends[1][k], equal_nan=True) for k in ends[1])


def test_a_run_in_which_nothing_is_finite_any_more_ends_all_the_same(poisoned, tmp_path):
    poisoned(*range(5, 400))
    c = config("batch_norm", eval__batch=16, train__on_non_finite="skip", train__epochs=30, **QUIET)
    with pytest.raises(NonFinite, match="not finite"):
        train(c, tmp_path)


def test_nothing_in_the_loop_moves_implicitly(tmp_path):
    """Steps in microbatches, evaluations, a best checkpoint and the end: every copy is one that was asked for."""
    c = config("batch_norm", train__microbatches=2)
    with Stop() as stop, Run(tmp_path, c) as run:
        trainer = Trainer(c, run, stop)
        with trainer.checkpoints, jax.transfer_guard("disallow"):
            assert trainer.run_to_end()["step"] == 20


def test_a_run_says_what_it_does(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        summary = train(config("batch_norm", eval__every=10), tmp_path)
    said = caplog.text
    assert "step 6 of 20, loss/buy 0." in said and "examples/s" in said and "left" in said
    assert "waiting for batches" in said and "peak memory" in said
    assert "step 10, validation: auc 0." in said
    assert "20 steps are too few to judge the model by" in said
    table = said[said.index("is finished") :].splitlines()
    assert table[1].split()[:2] == ["split", "auc"] and table[1].endswith("auc of popularity")
    assert table[3].split()[0] == "test" and f"{summary['test']['auc']:.4f}" in table[3]
    assert f"{summary['popularity']['test']:.4f}" in table[3] and "20 steps of 32" in table[4]


def test_popularity_is_the_auc_of_how_often_an_item_is_in_the_vocabulary(tmp_path):
    """The fake counts an item as often as its number says."""
    summary = train(config("batch_norm", **QUIET), tmp_path)
    parts = [fakes.batch_at(i, 32, 1) for i in range(3)]
    item = np.concatenate([b["ids"]["item"][0][b["pos"]["item"][:, 0]] for b in parts])
    label = np.concatenate([b["label"]["click"][:, 0] for b in parts])
    above = item[label == 1][:, None] - item[label == 0]
    assert summary["popularity"]["test"] == pytest.approx(((above > 0) + 0.5 * (above == 0)).mean())


def test_norms_rates_and_counts_are_in_every_window_and_costs_in_the_event_file(tmp_path):
    c = config("batch_norm", opt__schedule="linear", opt__lr=0.1, **QUIET)
    train(c, tmp_path)
    rows = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    for name in ("grad_norm/dense", "grad_norm/rows", "update_norm/dense", "update_norm/rows"):
        assert all(r[name] > 0 for r in rows), name
    # steps 0, 1, 2 of 20, and a table's own rate
    assert rows[0]["lr/all"] == pytest.approx(0.1 * (1 - 1 / 20), rel=1e-6)
    assert rows[0]["lr/tables/item"] == pytest.approx(0.5 * (1 - 1 / 20), rel=1e-6)
    events = b"".join(p.read_bytes() for p in tmp_path.glob("events*"))
    for name in (b"train/examples_per_s", b"train/waited", b"train/peak_memory", b"train/lr/all"):
        assert name in events


def test_a_profile_of_some_steps_lies_in_the_workdir(tmp_path):
    train(config("batch_norm", train__profile="3:5", **QUIET), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", ["5:3", "3", "a:b", "3:21", "-1:2"])
def test_a_profile_of_no_steps_is_refused_before_anything_is_trained(steps, tmp_path):
    with pytest.raises(RunError, match="train.profile"):
        train(config("batch_norm", train__profile=steps, **QUIET), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_summary_says_where_it_comes_from(tmp_path):
    summary = train(config("batch_norm", **QUIET), tmp_path)
    assert {"recjax", "jax", "jaxlib", "flax", "optax", "numpy"} == set(summary["versions"])
    assert summary["versions"]["jax"] == jax.__version__
    assert summary["devices"] == 1 and summary["device"]
    # pytest, or a worker of its own that was started otherwise
    assert summary["command"] == shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
    assert summary["commit"] == "" or len(summary["commit"].removesuffix("-dirty")) == 40


def test_time_is_told_in_words():
    assert [progress.duration(s) for s in (0.4, 59.6, 75, 3_700)] == [
        "0 s", "1 min 0 s", "1 min 15 s", "1 h 1 min",
    ]  # fmt: skip
