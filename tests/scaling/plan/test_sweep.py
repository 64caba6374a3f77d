"""Sweeps: combinators, idempotent trials, shards, failures, and the same rows after any interruption."""

import json
from pathlib import Path
import subprocess
import sys
import time

from etils import epath
from ml_collections import ConfigDict
import pytest

from recjax.runtime.run import Interrupted
from scaling.plan import study, sweep
from tests.messages import raises
from tests.test_contracts import config

ROOT = Path(__file__).resolve().parents[3]


def trials(seeds=(0, 1)):
    out = []
    for row in study.product(seed=seeds):
        c = config("arms", train__epochs=1, eval__every=0)
        c.seed = row["seed"]
        c.eval.at_examples = (64, 128, 320)
        out.append(sweep.Trial(ConfigDict(c.to_dict()), row))
    return out


def test_combinators():
    assert study.product(a=(1, 2), b="x") == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    assert study.zipped(a=(1, 2), b=(3, 4)) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert study.chain([{"a": 1}], [{"a": 2}, {"a": 1}]) == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError):
        study.zipped(a=(1, 2), b=(3,))


def test_one_row_for_each_point_of_each_pass(tmp_path):
    rows = sweep.run_sweep(trials(), tmp_path)
    assert [(r["seed"], r["examples"]) for r in rows] == [
        (s, n) for s in (0, 1) for n in (64, 128, 320)
    ]
    assert {"run", "member", "parent", "kind", "auc", "logloss", "n_dense"} <= rows[0].keys()
    assert rows == [
        json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()
    ]


def test_points_between_steps_keep_their_planned_size(tmp_path):
    """So that a trial alone and one that trained with others stand at the same sizes."""
    (alone,) = trials(seeds=(0,))
    alone.config.eval.at_examples = (50, 130, 320)  # batches of 64
    rows = sweep.run_sweep([alone], tmp_path)
    assert [r["examples"] for r in rows] == [50, 130, 320]


def test_shards_together_are_the_sweep(tmp_path):
    whole = sweep.run_sweep(trials(), tmp_path / "whole")
    first = sweep.run_sweep(trials(), tmp_path / "parts", (0, 2))
    both = sweep.run_sweep(trials(), tmp_path / "parts", (1, 2))
    assert len(first) == 3 and both == whole


def test_a_killed_sweep_ends_with_the_same_rows(tmp_path, monkeypatch):
    whole = sweep.run_sweep(trials(), tmp_path / "whole")
    real, calls = sweep.train, []

    def killed_once(c, workdir):
        calls.append(workdir)
        if len(calls) == 2:
            raise Interrupted(143)
        return real(c, workdir)

    monkeypatch.setattr(sweep, "train", killed_once)
    with pytest.raises(Interrupted):
        sweep.run_sweep(trials(), tmp_path / "cut")
    assert sweep.run_sweep(trials(), tmp_path / "cut") == whole
    assert len(calls) == 3  # the finished trial was not trained again


def test_a_failed_trial_is_recorded_and_tried_again(tmp_path, monkeypatch):
    real = sweep.train

    def broken(c, workdir):
        if c.seed == 0:
            raise FloatingPointError("loss is NaN")
        return real(c, workdir)

    monkeypatch.setattr(sweep, "train", broken)
    with raises(RuntimeError, "1 of 2"):
        sweep.run_sweep(trials(), tmp_path)
    failed = next((tmp_path / "runs").glob("*/failed.json"))
    assert sweep.failures(tmp_path) == json.loads(failed.read_text())
    assert "loss is NaN" in sweep.failures(tmp_path)[0]["error"]
    monkeypatch.setattr(sweep, "train", real)
    assert len(sweep.run_sweep(trials(), tmp_path)) == 6
    assert not sweep.failures(tmp_path)


def test_a_trial_is_what_it_changes():
    one = trials()[0]
    assert one.run != trials()[1].run
    moved, newer = (ConfigDict(one.config.to_dict()) for _ in range(2))
    moved.data.dir = "elsewhere"
    assert sweep.Trial(moved, one.columns).run == one.run
    del newer.data["counters"]  # at its default, as if it had come later
    assert sweep.Trial(newer, one.columns).run == one.run
    newer.data.counters = False
    assert sweep.Trial(newer, one.columns).run != one.run
    named = {}
    for name in ("synthetic.nif", "worlds.nif", "worlds.tin"):
        moved.data.name = name
        named[name] = sweep.Trial(moved, one.columns).run
    assert named["synthetic.nif"] == named["worlds.nif"] != named["worlds.tin"]


def test_a_workdir_may_have_brackets_in_its_name(tmp_path):
    """What a pattern would take for a choice of letters: the finished trials there would be trained again."""
    root = epath.Path(tmp_path) / "runs [a-c]"
    (root / "trials").mkdir(parents=True)
    (root / "trials" / "x.json").write_text('{"x": []}')
    (root / "runs" / "y").mkdir(parents=True)
    (root / "runs" / "y" / "failed.json").write_text('[{"trial": "y"}, {"trial": "x"}]')
    assert sweep.finished(root) == {"x": []}
    assert sweep.failures(root) == [{"trial": "y"}]


SHARD = """
import sys
from tests.scaling.plan.test_sweep import trials
from scaling.plan import sweep
sweep.run_sweep(trials(range(8)), sys.argv[1], (int(sys.argv[2]), 4))
"""


@pytest.mark.slow  # a minute: pytest -m slow tests/scaling/plan/test_sweep.py
def test_four_processes_of_which_one_is_killed_leave_every_row_once(tmp_path):
    """What an array of a cluster does: shards of one directory at once, and the killed one started again."""

    def start(i):
        return subprocess.Popen([sys.executable, "-c", SHARD, str(tmp_path), str(i)], cwd=ROOT)

    shards = [start(i) for i in range(4)]
    todo = trials(range(8))
    first = tmp_path / "runs" / todo[2].run  # the first trial of shard 2
    while not (first / "config.json").exists():
        assert shards[2].poll() is None
        time.sleep(0.05)
    shards[2].kill()
    assert [s.wait() for s in shards] == [0, 0, -9, 0]
    assert todo[2].run not in sweep.finished(epath.Path(tmp_path))
    assert start(2).wait() == 0
    rows = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    want = [(t.run, n) for t in todo for n in (64, 128, 320)]
    assert [(r["trial"], r["examples"]) for r in rows] == want
