"""Asking a teacher: what is kept, what is asked again, and what begins anew."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from recjax import configs
from recjax.data.loading.taught import question_file, question_of
from recjax.runtime.run import Interrupted
from recjax.training import inference
from recjax.training.loop import train
from tests.data.loading.test_slices import write

ROWS, BATCH = 300, 64


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pair whose best checkpoint is not its newest: evaluated before the end only."""
    folder = tmp_path_factory.mktemp("teacher")
    c = configs.base()
    c.data.name, c.data.dir, c.data.history = "", str(write(folder, rows=ROWS).path), 4
    side = dict(name="logistic", table=dict(lr=0.5))
    c.model = dict(name="distillation_online", teacher=side, student=dict(name="logistic"))
    c.train.batch, c.train.epochs = BATCH, 2
    c.eval.batch, c.eval.every, c.eval.splits, c.eval.final = BATCH, 4, ("test",), ()
    train(c, str(folder / "run"))
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def asked(monkeypatch):
    """Batches that the teacher was asked about."""
    calls, made = [], inference.evaluator_for

    def counting(*args):
        evaluator = made(*args)
        answer = evaluator.outputs
        evaluator.outputs = lambda *a: calls.append(1) or answer(*a)
        return evaluator

    monkeypatch.setattr(inference, "evaluator_for", counting)
    return calls


def answers(run, **question) -> np.ndarray:
    return np.load(inference.teach(run, "train", **question))


def file_of(run):
    (file,) = (run / "logits").glob("*/train.npy")
    return file


def test_another_question_begins_anew(run, asked, caplog):
    newest = answers(run)
    step = question_of(file_of(run))["step"]
    assert len(asked) == 5 and np.isfinite(newest).all() and not caplog.messages
    np.testing.assert_array_equal(answers(run), newest)
    assert len(asked) == 5, "it has all of them"
    teacher = answers(run, output="teacher")
    best = answers(run, best=True)
    again = answers(run)
    assert len(asked) == 20
    assert len([m for m in caplog.messages if "starting anew" in m]) == 3
    np.testing.assert_array_equal(again, newest)
    assert abs(teacher - newest).min() > 0 and abs(best - newest).min() > 0
    (saved,) = (p for p in (run / "checkpoints" / "recent").iterdir() if p.name == str(step))
    saved.rename(saved.with_name(f"{step + 1}"))  # it trained on
    answers(run)
    assert len(asked) == 25
    said = json.loads(question_file(file_of(run)).read_text())
    assert said == {"output": "logits", "best": False, "step": step + 1}


def test_answers_of_earlier_versions_are_to_the_newest_logits(run, asked):
    newest = answers(run)
    question_file(file_of(run)).unlink()
    np.testing.assert_array_equal(answers(run), newest)
    assert len(asked) == 5
    assert abs(answers(run, output="teacher") - newest).min() > 0
    question_file(file_of(run)).unlink()
    answers(run, best=True)
    assert len(asked) == 15


def test_a_longer_prefix_asks_for_what_is_missing_only(run, asked):
    short = answers(run, examples=2 * BATCH)
    assert np.isfinite(short).sum() == 2 * BATCH and len(asked) == 2
    whole = answers(run)
    assert np.isfinite(whole).all() and len(asked) == 5
    np.testing.assert_array_equal(whole[: 2 * BATCH], short[: 2 * BATCH])


@pytest.mark.parametrize("last", [2, 5])
def test_sigterm_keeps_what_was_answered(run, asked, monkeypatch, last):
    """During the last batch too."""

    class Killed(inference.Stop):
        def raise_if_requested(self, save):
            if len(asked) == last:
                os.kill(os.getpid(), signal.SIGTERM)
            super().raise_if_requested(save)

    with monkeypatch.context() as m:
        m.setattr(inference, "Stop", Killed)
        with pytest.raises(Interrupted):
            answers(run)
    kept = np.load(file_of(run))
    assert np.isfinite(kept).sum() == min(last * BATCH, ROWS)
    whole = answers(run)
    assert len(asked) == 5 and np.isfinite(whole).all()
    np.testing.assert_array_equal(whole[np.isfinite(kept)], kept[np.isfinite(kept)])


def test_a_crash_between_question_and_answers_pairs_nothing_wrongly(run, asked, monkeypatch):
    answers(run)

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as m:
        m.setattr(np, "save", full)
        with pytest.raises(OSError, match="no space"):
            answers(run, output="teacher")
    assert not list((run / "logits").glob("*/train.npy"))
    assert np.isfinite(answers(run)).all() and len(asked) == 15
