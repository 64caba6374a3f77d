"""Members of one program end where separately trained runs end; forks start from their pass; kills change nothing."""

import json
import signal

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from recjax.runtime import checkpoint
from recjax.runtime.run import Interrupted, RunError
from recjax.training import core, optim
from recjax.training.loop import train
from recjax.training.opening import open_run
from scaling.plan import sweep, together
from tests import messages
from tests.test_contracts import config, with_hash
from tests.training.test_item_vectors import config as of_vectors
from tests.training.test_item_vectors import data as log_with_vectors  # noqa: F401 (a fixture)


def member(seed=0, lr=0.05, **keys):
    c = ConfigDict(config("batch_norm", **{"train__epochs": 1, "eval__every": 0, **keys}).to_dict())
    c.seed, c.opt.lr = seed, lr
    c.eval.at_examples = (64, 160, 320)
    return c


MEMBERS = ((0, 0.05), (1, 0.05), (0, 0.2))


def rows_by(rows, *keys):
    return {tuple(r[k] for k in keys): r for r in rows}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    rows, facts = together.train_together([member(*m) for m in MEMBERS], folder, 0.25)
    return folder, rows, facts


def test_members_end_where_separate_runs_end(three, tmp_path):
    folder, rows, facts = three
    found = rows_by(rows, "member", "kind", "examples", "split")
    for i, (seed, lr) in enumerate(MEMBERS):
        alone = train(member(seed, lr), tmp_path / str(i))
        got = found[i, "pass", 320, "test"]
        assert got["auc"] == pytest.approx(alone["test"]["auc"], abs=1e-6)
        assert got["logloss"] == pytest.approx(alone["test"]["logloss"], rel=1e-5)
        assert facts["n_dense"] == alone["n_dense"]
        mine, _ = checkpoint.read(folder / "members" / str(i) / "checkpoints")
        theirs, _ = checkpoint.read(tmp_path / str(i) / "checkpoints")
        assert_close(mine["trees"], theirs["trees"])
    assert found[0, "pass", 320, "test"]["auc"] != found[1, "pass", 320, "test"]["auc"]
    assert found[0, "pass", 320, "test"]["auc"] != found[2, "pass", 320, "test"]["auc"]


def test_members_at_once_are_members_one_by_one(tmp_path, monkeypatch):
    """What accelerators run: vmap over members. A larger eps keeps Adam from magnifying rounding (see `sequential`)."""
    eps = {"opt__args": dict(eps=1e-3)}
    rows = {}
    for sequential in (True, False):
        monkeypatch.setattr(together.Together, "sequential", sequential)
        configs = [member(*m, **eps) for m in MEMBERS]
        found, _ = together.train_together(configs, tmp_path / str(sequential), 0.0)
        rows[sequential] = rows_by(found, "member", "kind", "examples", "split")
    assert len(rows[True]) == len(rows[False]) > 0
    for key, row in rows[True].items():
        assert rows[False][key]["logloss"] == pytest.approx(row["logloss"], rel=1e-5)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), a, b)


def test_a_members_run_directory_is_a_plain_finished_looking_run(three):
    folder, _, _ = three

    c, _, _, trees, _ = open_run(folder / "members" / "2")
    assert c.opt.lr == 0.2 and trees.dense


def test_a_fork_is_the_run_planned_for_its_length(tmp_path, monkeypatch):
    """Constant for three of five steps, then down: one run with that schedule, and only forks differ from passes.

    A larger eps keeps Adam from magnifying rounding (see `Together.sequential`): these are two programs.
    """
    eps = {"opt__args": dict(eps=1e-3)}
    rows, _ = together.train_together([member(0, **eps)], tmp_path / "forks", 0.25)
    found = rows_by(rows, "member", "kind", "examples", "split")
    c = member(0, **eps)
    c.train.examples, c.eval.at_examples, c.eval.final = 160, (), c.eval.splits
    steps, tail = 5, 2  # 160 examples in batches of 32; 25 % of 5, rounded up
    fall = lambda opt, total: lambda s: jnp.minimum(1.0, (steps - s) / tail).astype(jnp.float32)  # noqa: E731
    monkeypatch.setattr(optim, "schedule", fall)
    alone = train(c, tmp_path / "alone")[c.eval.splits[0]]
    fork, point = (found[0, kind, 160, c.eval.splits[0]] for kind in ("cooldown", "pass"))
    assert fork["logloss"] == pytest.approx(alone["logloss"], rel=1e-5)
    assert abs(point["logloss"] - alone["logloss"]) > 1e-4


def test_events_are_ordered_and_forks_come_before_their_points():
    c = member()
    got = together.events(c, 0.25, 320)
    assert got == [(1, "cooldown", 64), (2, "pass", 64), (3, "cooldown", 160), (5, "pass", 160),
                   (7, "cooldown", 320), (10, "pass", 320)]  # fmt: skip
    assert [e.examples for e in together.events(c, 0.0, 100)] == [64, 100]


def test_what_must_train_by_itself():
    assert together.suits(member())
    assert not together.suits(member(eval__every=6))
    assert together.shape(member(0, 0.1)) == together.shape(member(3, 0.2))
    assert together.shape(member()) != together.shape(member(train__batch=64))


class Killer:
    """SIGTERM at the n-th chunk or evaluation of a run, as often as `at` lists one."""

    def __init__(self, monkeypatch, at):
        self.at, self.calls = list(at), 0
        for name in ("advance", "evaluate"):
            real = getattr(together.Together, name)
            monkeypatch.setattr(together.Together, name, self.wrapped(real))

    def wrapped(self, real):
        def call(t, *args):
            self.calls += 1
            if self.at and self.calls >= self.at[0]:
                self.at.pop(0)
                self.calls = 0
                t.stop._note(signal.SIGTERM, None)
                t.stop.raise_if_requested(t.interrupted)
            return real(t, *args)

        return call


def plan(seeds=(0, 1)):
    return [sweep.Trial(member(s), dict(seed=s), 0.25) for s in seeds]


def without_times(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("wall_s", "examples_per_s")} for r in rows]


def killed_and_restarted(tmp_path, monkeypatch, kills, rng):
    sweep.run_sweep(plan(), tmp_path / "whole", members=2)
    with monkeypatch.context() as m:
        Killer(m, rng.integers(1, 9, size=kills))
        restarts = 0
        while True:
            try:
                sweep.run_sweep(plan(), tmp_path / "cut", members=2)
                break
            except Interrupted:
                restarts += 1
    assert without_times(tmp_path / "cut" / "trials.jsonl") == without_times(
        tmp_path / "whole" / "trials.jsonl"
    )
    return restarts


def test_a_sweep_killed_twice_ends_with_the_same_trials(tmp_path, monkeypatch):
    assert killed_and_restarted(tmp_path, monkeypatch, 2, np.random.default_rng(0)) == 2


@pytest.mark.slow
def test_a_sweep_killed_ten_times_ends_with_the_same_trials(tmp_path, monkeypatch):
    """pytest -m slow tests/scaling/plan/test_together.py"""
    assert killed_and_restarted(tmp_path, monkeypatch, 10, np.random.default_rng(1)) == 10


def test_rows_say_what_is_a_member_and_what_a_fork(tmp_path):
    rows = sweep.run_sweep(plan(), tmp_path, members=2)
    passes = [r for r in rows if r["kind"] == "pass"]
    forks = [r for r in rows if r["kind"] == "cooldown"]
    assert {r["run"] for r in passes} == {r["parent"] for r in forks}
    assert {(r["seed"], r["member"]) for r in passes} == {(0, 0), (1, 1)}
    assert len({r["run"] for r in forks}) == 3  # one a point; seeds are members
    assert [r["examples"] for r in forks if r["seed"] == 1] == [64, 160, 320]
    again = sweep.groups(plan((0, 1, 2)), 2)  # a third seed later joins nobody's finished run
    assert [len(g) for g in again] == [2, 1]


def test_a_member_that_diverges_is_said_to_have_and_the_others_end_as_ever(tmp_path):
    """A rate of 1e38: its first step would be larger than float32 can square."""
    keys = dict(eval__batch=16, opt__args=dict(eps=1e-3))  # eps: as above, these are two programs
    trials = [sweep.Trial(member(0, lr, **keys), dict(seed=0, lr=lr), 0.25) for lr in (0.05, 1e38)]
    with messages.raises(RuntimeError, "1 of 1"):
        sweep.run_sweep(trials, tmp_path / "both", members=2)
    (failed,) = sweep.failures(tmp_path / "both")
    assert failed["lr"] == 1e38 and "step 1 is not finite: dense/" in failed["error"]
    alone = sweep.run_sweep(trials[:1], tmp_path / "alone", members=2)
    both = [json.loads(line) for line in (tmp_path / "both/trials.jsonl").read_text().splitlines()]
    losses = [[r["logloss"] for r in rows] for rows in (both, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(both) == 6
    (run,) = (tmp_path / "both/runs").iterdir()
    assert [p.name for p in (run / "members").iterdir()] == ["0"]
    with messages.raises(RuntimeError, "1 of 1"):  # by itself it has no other end
        sweep.run_sweep(trials[1:], tmp_path / "alone", members=2)
    assert "all members diverged" in sweep.failures(tmp_path / "alone")[0]["error"]


def test_members_go_on_with_the_data_they_began_with(tmp_path, monkeypatch):
    with_hash("monday", monkeypatch)
    with monkeypatch.context() as m:
        Killer(m, [3])
        with pytest.raises(Interrupted):
            together.train_together([member()], tmp_path)
    with_hash("tuesday", monkeypatch)
    with pytest.raises(RunError) as e:
        together.train_together([member()], tmp_path)
    assert all(word in str(e.value) for word in ("monday", "tuesday", "--workdir"))
    with_hash("monday", monkeypatch)
    assert together.train_together([member()], tmp_path)[0]


def test_an_error_does_not_lose_the_checkpoint_being_saved(tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(together.Together, "evaluate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            together.train_together([member()], tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints/recent").iterdir()] == ["2"]


def test_windows_of_every_member_are_logged(three):
    folder, _, _ = three
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    windows = {(r["member"], r["step"]): r for r in rows if r["kind"] == "train"}
    assert {m for m, _ in windows} == {0, 1, 2} and all(
        r["non_finite"] == 0 for r in windows.values()
    )
    for (m, step), r in windows.items():
        assert r["lr/all"] == pytest.approx(MEMBERS[m][1]) and r["loss/logits"] > 0, (m, step)


def test_rates_clips_and_seeds_are_arguments_of_one_program():
    seeds = [member(0), member(1), member(0, 0.2), member(0, opt__clip=1.0)]
    assert len({together.shape(c) for c in seeds}) == 1


@pytest.mark.parametrize("use", ["frozen", "trained"])
def test_rows_of_members_begin_as_item_vectors(log_with_vectors, tmp_path, use):  # noqa: F811
    c = of_vectors(log_with_vectors, ("item", "mine", use, 0.5))
    train(c, tmp_path / "alone")
    together.train_together([c], tmp_path / "together")
    folders = tmp_path / "alone", tmp_path / "together" / "members" / "0"
    alone, member = (checkpoint.read(f / "checkpoints")[0]["trees"].tables for f in folders)
    assert_close(member, alone)


@pytest.mark.parametrize("use", ["stop", "skip"])
def test_members_that_nothing_can_save_end_the_run(tmp_path, monkeypatch, use):
    """With "skip" it takes a hundred steps of which none is finite."""
    monkeypatch.setattr(core, "HOPELESS", 6)
    c = member(0, 1e38, eval__batch=16, train__on_non_finite=use, train__log_every=2)
    with pytest.raises(core.NonFinite, match="all members diverged"):
        together.train_together([c], tmp_path)
