"""The walls: six fake systems (tests/fakes.py), each through train -> resume -> export -> score."""

import dataclasses
import functools
import json
import signal

import jax
import numpy as np
import pytest

from recjax import configs, embedding, models
from recjax.data import open_data
from recjax.evaluation import evaluator
from recjax.evaluation.collector import Collector
from recjax.metrics.classification import compute
from recjax.runtime import checkpoint
from recjax.runtime.run import Interrupted, Run, RunError, read_jsonl
from recjax.schema import Feature, IdSpace, Schema, SchemaError
from recjax.training import opening
from recjax.training.loop import Trainer, train
from recjax.trees import Params
from tests import fakes, messages
from tests.messages import raises


def config(kind, **keys):
    c = configs.base()
    c.data.name = "tests.fakes"
    c.data.source = "graph" if kind == "graph" else "log"
    c.data.candidates = 3 if kind == "pages" else 1
    c.model.name, c.model.kind = "tests.fakes", kind
    c.model.table = dict(lr=0.5)
    c.opt.lr = 0.05
    c.train.batch = c.eval.batch = 32
    c.train.log_every = 3
    c.train.checkpoint_every = 4
    c.train.epochs = 2
    c.eval.every = 6
    for key, value in keys.items():
        c.update_from_flattened_dict({key.replace("__", "."): value})
    return c


@pytest.fixture
def stage_one(tmp_path):
    """A finished run that the frozen stage starts from."""
    train(config("batch_norm"), tmp_path / "one")
    rules = (
        (str(tmp_path / "one"), r"dense/(block|logits)/(.*)", r"frozen/generator/\1/\2"),
        (str(tmp_path / "one"), r"tables/(\w+)/rows", r"tables/generator/\1/rows"),
    )
    return rules


def keys_for(kind, request):
    return {"init_from": request.getfixturevalue("stage_one")} if kind == "stage_two" else {}


class StopAfter(Trainer):
    """A trainer that receives SIGTERM after some steps."""

    steps = 7

    def put(self, batch):
        if getattr(self, "trees", None) is not None and self.step == self.steps:
            self.stop._note(signal.SIGTERM, None)
        return super().put(batch)


def interrupted(c, workdir, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr("recjax.training.loop.Trainer", StopAfter)
        with pytest.raises(Interrupted) as e:
            train(c, workdir)
    assert e.value.code == 128 + signal.SIGTERM


def leaves(workdir):
    trees, _ = checkpoint.read(workdir / "checkpoints")
    return {
        jax.tree_util.keystr(p): np.asarray(x)
        for p, x in jax.tree_util.tree_leaves_with_path(trees)
    }


def learnt(rows):
    losses = [
        next(v for k, v in r.items() if k in ("loss", "pair", "loss/logits", "student"))
        for r in rows
        if r["kind"] == "train"
    ]
    return losses[-1] < losses[0]


@pytest.mark.parametrize("kind", fakes.SYSTEMS)
def test_resume_equals_uninterrupted_bit_for_bit(kind, request, tmp_path, monkeypatch):
    c = config(kind, **keys_for(kind, request))
    whole = train(c, tmp_path / "whole")
    interrupted(c, tmp_path / "cut", monkeypatch)
    resumed = train(c, tmp_path / "cut")
    a, b = leaves(tmp_path / "whole"), leaves(tmp_path / "cut")
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)
    assert whole["test"] == resumed["test"]
    rows = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    assert rows == read_jsonl(tmp_path / "cut" / "metrics.jsonl")
    assert learnt(rows)


def test_finished_run_is_not_redone(tmp_path):
    first = train(config("batch_norm"), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert train(config("batch_norm"), tmp_path) == first
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_learns_and_shuffled_labels_do_not(tmp_path, monkeypatch):
    honest = train(config("batch_norm", train__epochs=8), tmp_path / "honest")
    original = fakes.batch_at

    def shuffled(index, batch, candidates):
        out = original(index, batch, candidates)
        labels = {k: np.random.default_rng(index).permutation(v) for k, v in out["label"].items()}
        return out | {"label": labels}

    monkeypatch.setattr(fakes, "batch_at", shuffled)
    control = train(config("batch_norm", train__epochs=8), tmp_path / "shuffled")
    assert honest["validation"]["auc"] > 0.9
    # the shuffled validation labels carry nothing: 0.5 within 3 standard errors (48 x 48 pairs or so)
    assert abs(control["validation"]["auc"] - 0.5) < 3 * np.sqrt((96 + 1) / (12 * 48 * 48))


def test_stage_two_freezes_what_it_was_given(stage_one, tmp_path):
    train(config("stage_two", init_from=stage_one), tmp_path / "two")
    one, _ = checkpoint.read(tmp_path / "one" / "checkpoints")
    two, _ = checkpoint.read(tmp_path / "two" / "checkpoints")
    one, two = one["trees"], two["trees"]
    np.testing.assert_array_equal(
        one.dense["block"]["kernel"], two.frozen["generator"]["block"]["kernel"]
    )
    np.testing.assert_array_equal(one.tables["item"]["rows"], two.tables["generator/item"]["rows"])


def test_a_run_goes_on_without_what_it_began_from(stage_one, tmp_path, monkeypatch):
    c = config("stage_two", init_from=stage_one)
    train(c, tmp_path / "whole")
    interrupted(c, tmp_path / "two", monkeypatch)
    (tmp_path / "one").rename(tmp_path / "moved")
    train(c, tmp_path / "two")
    whole, two = (
        checkpoint.read(tmp_path / n / "checkpoints")[0]["trees"] for n in ("whole", "two")
    )
    jax.tree.map(np.testing.assert_array_equal, whole, two)
    assert opening.open_run(tmp_path / "two").trees.frozen["generator"]
    with raises(FileNotFoundError, "workdir"):
        train(c, tmp_path / "three")


def test_init_from_maps_rows_by_key_when_vocabularies_differ(tmp_path, monkeypatch):
    train(config("batch_norm"), tmp_path / "one")
    original = fakes.Data.vocabulary

    def reversed_ids(self, space):
        frame = original(self, space)
        return frame.with_columns(id=frame["id"].reverse()) if self.cfg.history == 99 else frame

    monkeypatch.setattr(fakes.Data, "vocabulary", reversed_ids)
    monkeypatch.setattr(
        fakes.Data, "vocabulary_hash", lambda self, space: f"{space}{self.cfg.history}"
    )
    rules = ((str(tmp_path / "one"), r"tables/item/rows", r"tables/item/rows"),)
    c = config("batch_norm", init_from=rules, data__history=99, train__examples=32, train__epochs=1)
    c.model.table = dict(optimizer="frozen")
    train(c, tmp_path / "two")
    one, _ = checkpoint.read(tmp_path / "one" / "checkpoints")
    two, _ = checkpoint.read(tmp_path / "two" / "checkpoints")
    a, b = (np.asarray(t["trees"].tables["item"]["rows"]) for t in (one, two))
    np.testing.assert_array_equal(b[3 : fakes.ITEMS], a[3 : fakes.ITEMS][::-1])


def test_needs_runs_earlier_stages_first(tmp_path):
    stage = tmp_path / "stage.py"
    stage.write_text(
        "from tests.test_contracts import config\n"
        "def get_config(arg=''):\n"
        "    return config('batch_norm', train__examples=int(arg))\n"
    )
    rules = (
        ("needs/0", r"dense/(block|logits)/(.*)", r"frozen/generator/\1/\2"),
        ("needs/0", r"tables/(\w+)/rows", r"tables/generator/\1/rows"),
    )
    train(config("stage_two", needs=(f"{stage}:64",), init_from=rules), tmp_path / "run")
    assert json.loads((tmp_path / "run/needs/0/summary.json").read_text())["examples"] == 64


def test_a_teacher_does_not_change_a_student(tmp_path):
    """Clipping and optimizers are per group: a teacher whose loss explodes leaves the student's step alone."""
    trees = []
    for rate in (0.05, 5.0):
        c = config(
            "teacher_student", opt__clip=0.1, train__epochs=1, eval__every=0, train__examples=32
        )
        c.opt.group_lr = dict(teacher=rate)
        train(c, tmp_path / str(rate))
        trees.append(checkpoint.read(tmp_path / str(rate) / "checkpoints")[0]["trees"])
    a, b = (t.dense["student"]["block"]["kernel"] for t in trees)
    np.testing.assert_array_equal(a, b)
    a, b = (t.dense["teacher"]["block"]["kernel"] for t in trees)
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("kind", ["batch_norm", "teacher_student", "pages", "arms"])
def test_candidate_independence(kind):
    """logits[:, c] do not depend on the other candidates."""
    system = fakes.build(fakes.SCHEMA, kind=kind)
    batch = fakes.batch_at(0, 4, 5)
    tables = embedding.init(jax.random.key(0), system.tables, fakes.SCHEMA)
    rows = embedding.gather(system.tables, tables, batch)
    dense, state = system.init(jax.random.key(1), rows, batch)
    other = jax.tree.map(np.copy, batch)
    other["pos"]["item"][:, 1:] = batch["pos"]["item"][:, :0:-1]
    other["dense"]["price"][:, 1:] += 1
    a, b = (system.outputs(Params(dense, rows, state), x)["logits"][:, 0] for x in (batch, other))
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_gradient_accumulation_equals_one_batch(tmp_path):
    trees = []
    for m in (1, 4):
        c = config("arms", train__microbatches=m, eval__every=0, train__epochs=1)
        train(c, tmp_path / str(m))
        trees.append(leaves(tmp_path / str(m)))
    for k in trees[0]:
        if "trees" in k:
            np.testing.assert_allclose(trees[0][k], trees[1][k], atol=2e-5)


def test_evaluate_reproduces_the_final_metrics(tmp_path):
    summary = train(config("batch_norm"), tmp_path)
    _, data, system, trees, _ = opening.open_run(tmp_path)
    from recjax.runtime import mesh

    again = evaluator.Evaluator(system, mesh.make())(trees, data.batches("test", 32))
    assert again["auc"] == summary["test"]["auc"]
    assert again["buy/logloss"] == summary["test"]["buy/logloss"]


def test_rows_that_are_too_many_to_keep_cost_their_figures_not_the_run(
    tmp_path, monkeypatch, caplog
):
    """With them it is as ever; without, the reason names the setting, and stands beside one that is there."""
    build, calls = models.build, []

    def measure(columns):
        calls.append({k: len(x) for k, x in columns.items()})
        return {"positives": float(columns["label"].sum())}

    monkeypatch.setattr(
        models, "build",
        lambda *a: dataclasses.replace(build(*a), measure=measure, kept=("logits",)),
    )  # fmt: skip
    c = config("batch_norm", train__epochs=1, eval__every=0, eval__final=("test",))
    scored = lambda data, split, rows: calls.append((split, len(rows["logit"])))  # noqa: E731
    whole = train(c, tmp_path / "whole", scored)["test"]
    assert [set(calls[0].values()), calls[1]] == [{96}, ("test", 96)] and whole["positives"] > 0
    assert "undefined" not in whole

    calls.clear()
    few = functools.partial(Collector, 50)
    monkeypatch.setattr(evaluator, "Collector", few)
    monkeypatch.setattr(
        "recjax.evaluation.collector.compute", lambda sums: compute(sums) | {"undefined": "x"}
    )
    with caplog.at_level("WARNING", logger="absl"):
        cut = train(c, tmp_path / "cut", scored)["test"]
    assert not calls and not cut["exact"] and "positives" not in cut
    assert cut["undefined"].startswith("x; 96 rows are more than the 50 that are kept")
    assert "eval.examples" in cut["undefined"] and "eval.examples" in caplog.text
    assert cut["auc"] == pytest.approx(whole["auc"], abs=1e-3)


# ---- bad input ----------------------------------------------------------------------------------------------


def test_second_writer_is_refused(tmp_path):
    c = config("batch_norm")
    with Run(tmp_path, c), pytest.raises(RunError, match="another process is writing"):
        Run(tmp_path, c).__enter__()


def test_another_config_on_the_same_workdir_is_refused(tmp_path):
    train(config("batch_norm", train__examples=32), tmp_path)
    with pytest.raises(RunError, match="opt.lr"):
        train(config("batch_norm", train__examples=32, opt__lr=0.1), tmp_path)


def test_unknown_config_key_is_named():
    c = config("batch_norm").unlock()
    c.train.bacth = 3
    with raises(KeyError, "train.bacth", "train.batch"):
        configs.check(c)


def test_other_vocabulary_is_refused(tmp_path, monkeypatch):
    c = config("batch_norm")
    interrupted(c, tmp_path, monkeypatch)
    monkeypatch.setattr(fakes.Data, "vocabulary_hash", lambda self, space: "other")
    with raises(RunError, "'item'", "vocabulary"):
        train(c, tmp_path)


def with_hash(digest, monkeypatch):
    """The data say that they are these."""
    identity = {"name": "fake", "config": {}} | ({"hash": digest} if digest else {})

    def opened(cfg):
        data = fakes.Data(cfg)
        data.identity = identity
        return data

    monkeypatch.setattr(fakes, "open_data", opened)


def test_a_run_goes_on_with_the_data_it_began_with_wherever_they_lie(tmp_path, monkeypatch):
    c = config("batch_norm")
    with_hash("monday", monkeypatch)
    interrupted(c, tmp_path, monkeypatch)
    c.data.dir = "moved"
    with_hash("tuesday", monkeypatch)
    with raises(RunError, "'monday'", "'tuesday'", "--workdir"):
        train(c, tmp_path)
    opening.open_run(tmp_path)  # another day is there to be judged
    with_hash("monday", monkeypatch)
    assert train(c, tmp_path)["step"] == 20
    assert json.loads((tmp_path / "config.json").read_text())["data"]["dir"] == "moved"


def test_a_run_of_data_without_a_hash_goes_on(tmp_path, monkeypatch):
    c = config("batch_norm")
    with_hash("", monkeypatch)
    interrupted(c, tmp_path, monkeypatch)
    with_hash("later", monkeypatch)
    assert train(c, tmp_path)["step"] == 20


@pytest.mark.parametrize(
    ("key", "value"),
    [("eval.final", ("test", "tset")), ("eval.splits", ("tset",)), ("data.train", "tset")],
)
def test_a_split_that_the_data_lack_is_named_before_anything_is_trained(key, value, tmp_path):
    c = config("batch_norm", **{key: value})
    with raises(RunError, key, "'tset'", "train, validation, test"):
        train(c, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_splits_that_are_never_evaluated_need_not_be_there(tmp_path):
    keys = dict(eval__every=0, eval__splits=("tset",), eval__final=("test",), train__epochs=1)
    assert train(config("batch_norm", **keys), tmp_path)["test"]["auc"] > 0


def test_what_is_judged_at_the_end_may_change_until_then(tmp_path, monkeypatch):
    interrupted(config("batch_norm"), tmp_path, monkeypatch)
    c = config("batch_norm", eval__final=("test",))
    summary = train(c, tmp_path)
    assert "test" in summary and "validation" not in summary
    assert train(c, tmp_path) == summary
    with pytest.raises(RunError, match="eval.final"):
        train(config("batch_norm"), tmp_path)


@pytest.mark.parametrize("best", [False, True])
def test_an_error_does_not_lose_the_checkpoint_being_saved(best, tmp_path, monkeypatch):
    """The one at the end, and one of the best so far: training goes on from it."""
    c, save = config("batch_norm", train__checkpoint_every=1000), Trainer.save

    def broken(self, **keys):
        save(self, **keys)
        if keys.get("best", False) == best:
            raise OSError("broken")

    with monkeypatch.context() as m:
        m.setattr(Trainer, "save", broken)
        with pytest.raises(OSError, match="broken"):
            train(c, tmp_path)
    folder, step = tmp_path / "checkpoints" / ("best" if best else "recent"), 6 if best else 20
    assert [p.name for p in folder.iterdir()] == [str(step)]
    assert train(c, tmp_path)["step"] == 20


def test_a_start_that_fails_closes_its_checkpoints(tmp_path, monkeypatch):
    closed, close = [], checkpoint.Checkpoints.close
    monkeypatch.setattr(
        checkpoint.Checkpoints, "close", lambda self: (close(self), closed.append(1))
    )
    system = functools.partial(dataclasses.replace, setup=lambda trees, batches: 1 / 0)
    build = models.build
    monkeypatch.setattr(models, "build", lambda *a: system(build(*a)))
    with pytest.raises(ZeroDivisionError):
        train(config("batch_norm"), tmp_path)
    assert closed


def test_other_schema_is_refused(tmp_path, monkeypatch):
    c = config("batch_norm")
    interrupted(c, tmp_path, monkeypatch)
    wider = Schema(
        (IdSpace("item", fakes.ITEMS + 8), *fakes.SCHEMA.id_spaces[1:]),
        fakes.SCHEMA.features,
        ("page",),
    )
    monkeypatch.setattr(fakes, "SCHEMA", wider)
    with pytest.raises((SchemaError, ValueError), match="item"):
        train(c, tmp_path)


def test_batch_that_devices_do_not_divide_is_refused(tmp_path):
    with raises(SchemaError, "32", "1 devices", "5 microbatches"):
        train(config("batch_norm", train__microbatches=5), tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IdSpace("item", 2), "id space 'item'"),
        (lambda: Feature("x", "profil"), "'x'.*profil"),
        (lambda: Feature("x", "history", "item"), "list"),
        (lambda: Feature("x", "label", "item"), "label"),
        (lambda: Schema((), (Feature("x", "profile", "item"),)), "'x'.*'item'|'item'"),
        (
            lambda: Schema((), (Feature("x", "profile"), Feature("x", "context"))),
            "'x'",
        ),
        (lambda: models.build(fakes.SCHEMA, {"name": "nosuch"}), "nosuch"),
    ],
)
def test_bad_declarations_name_the_field(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_schema_round_trip():
    assert Schema.from_json(fakes.SCHEMA.to_json()) == fakes.SCHEMA


def test_open_data_names_an_unknown_set():
    c = configs.base()
    c.data.name = "nosuch"
    with messages.raises(ValueError, "recjax.data.sets.nosuch"):
        open_data(c.data)
