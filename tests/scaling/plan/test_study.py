"""Rows of a plan into trials."""

from ml_collections import ConfigDict
import pytest

from scaling.configs import complete_journey, quickstart, row_optimizers
from scaling.plan import counts, rows, study, sweep
from scaling.plan.grades import LADDER
from tests.messages import raises
from tests.models import worlds


def config(plan):
    c = complete_journey.get_config()
    c.sweep.trials = tuple(plan)
    c.experiment.opt.lr = 2e-3
    c.sweep.lr_exponent = 0.5
    return c


def trials(c, *data):
    return study.trials(study.Plan.of(c.sweep), c.experiment, *data)


def only(**row):
    plan = [dict(grade="0", seed=1, examples=(100, 300), **row)]
    return trials(config(plan), worlds.SCHEMA, "hash")[0]


def test_a_row_sets_its_axes_and_names_them():
    t = only(history=7, cooldown=0.2)
    assert (t.config.data.history, t.config.seed, t.config.train.examples) == (7, 1, 300)
    assert tuple(t.config.eval.at_examples) == (100, 300)
    assert t.config.model.width == LADDER["0"].width
    assert t.cooldown == 0.2 and t.columns["history"] == 7 and t.columns["variant"] == ""
    assert t.columns["n_blocks"] > 0 and t.columns["kind"] == "pass"


def test_dotted_keys_set_the_experiment_and_make_a_variant():
    t = only(**{"model.norm": "layer", "opt.schedule": "cosine", "kind": "independent"})
    assert (t.config.model.norm, t.config.opt.schedule) == ("layer", "cosine")
    assert t.columns["variant"] == "model.norm=layer" and t.columns["kind"] == "independent"
    for wrong in ("opt.lrr", "optt.lr"):
        with pytest.raises(KeyError, match=wrong):
            only(**{wrong: 1})


def test_other_data_makes_another_trial_wherever_it_lies():
    """The path is no part of a trial, so the data's own hash must tell two of them apart."""
    plan = [dict(grade="0", seed=1, examples=(100,), kind="other", **{"data.dir": d}) for d in "ab"]
    moved = dict(plan[0], **{"data.dir": "c"})
    hashes = {"a": "one", "b": "two", "c": "one"}
    other = lambda data: (worlds.SCHEMA, hashes[data.dir])  # noqa: E731
    a, b, c = trials(config([*plan, moved]), worlds.SCHEMA, "hash", other)
    assert a.run != b.run and a.run == c.run
    assert (a.columns["data"], b.columns["data"]) == ("one", "two")


def test_shapes_off_the_ladder_keep_its_rate_rule():
    t = only(blocks=3, width=64)
    assert (t.config.model.blocks, t.config.model.width, t.config.opt.lr) == (3, 64, 1e-3)
    assert only(**{"opt.lr": 0.5}).columns["lr"] == 0.5


OWN = {"small": {"attention": (8,)}, "large": {"attention": (32, 16)}}


def of_din(**section):
    c = config([])
    c.experiment.model = ConfigDict(dict(name="din", head=(16,)))
    c.sweep = ConfigDict(dict(section))
    return trials(c, worlds.SCHEMA, "hash")


def test_any_model_climbs_a_ladder_of_its_own():
    """A plain dict of options, every grade with every seed; without one, the experiment's model."""
    found = of_din(ladder=OWN, seeds=(0, 1), examples=(100, 300))
    assert {(t.columns["grade"], t.columns["seed"]) for t in found} == {
        (g, s) for g in OWN for s in (0, 1)
    }
    n = {t.columns["grade"]: t.columns["n_blocks"] for t in found}
    assert n["large"] > n["small"] > 0 and all("blocks" not in t.columns for t in found)
    assert rows.ladder_of([t.columns for t in found]) == ["small", "large"]
    (alone,) = of_din(seeds=(0,), examples=(100, 300))
    assert alone.columns["grade"] == "din" and rows.on_ladder(alone.columns)


@pytest.mark.parametrize("section, words", [
    (dict(ladder={"a": {"atention": (8,)}}), ("'din'", "'atention'")),
    (dict(ladder=OWN, lr_exponent=0.5), ("sweep.lr_exponent", "model.width")),
    (dict(grades=("0",)), ("'din'", "sweep.ladder")),
])  # fmt: skip
def test_a_ladder_that_does_not_fit_the_model_is_named(section, words):
    with raises((ValueError, KeyError), *words):
        of_din(seeds=(0,), examples=(100,), **section)


@pytest.mark.parametrize("make, arg", [
    (complete_journey, ""), (complete_journey, "gpu"), (quickstart, ""), (row_optimizers, ""), (row_optimizers, "long"),
])  # fmt: skip
def test_committed_plans_are_whole(make, arg, monkeypatch):
    """Every trial once, of known grades; seeds of a cell share a program."""
    monkeypatch.setattr(counts, "count", lambda *_: {})
    c = make.get_config(arg)
    found = trials(c, worlds.SCHEMA, "hash", lambda data: (worlds.SCHEMA, "hash"))
    assert len({t.run for t in found}) == len(found)
    groups = sweep.groups(found, c.sweep.get("members", 1))
    assert sum(map(len, groups)) == len(found)
    assert all(len({t.columns["grade"] for t in g}) == 1 for g in groups)
    if make is complete_journey:
        shapes = {(t.columns["blocks"], t.columns["width"]) for t in found if t.columns["kind"] == "pass"}  # fmt: skip
        n = sorted(blocks * width**2 for blocks, width in shapes)
        assert n[-1] / n[0] >= (1e4 if arg == "gpu" else 1e2)
    if make is complete_journey and not arg:
        assert {10, 20, 50, 100, 200} == {t.columns["history"] for t in found}
        parts = {t.columns["variant"] for t in found if t.columns["kind"] == "pass"}
        assert len(parts) == 1 + len(complete_journey.CLAIMED + complete_journey.VARIANTS)


def test_data_seeds_are_draws_within_a_law_and_not_variants():
    found = of_din(data_seeds=(0, 3), seeds=(0, 1), examples=(100, 300))
    cells = [(t.config.data.draw, t.config.seed) for t in found]
    assert cells == [(0, 0), (0, 1), (3, 0), (3, 1)]
    assert {t.columns["data_seed"] for t in found} == {0, 3}
    assert {t.columns["variant"] for t in found} == {""} and len({t.run for t in found}) == 4
    assert len({t.shape for t in found}) == 2  # one program reads one draw
    assert found[0].run == of_din(seeds=(0,), examples=(100, 300))[0].run  # 0 is the stored order


def test_systems_are_trials_of_one_study_on_the_same_data():
    systems = {"din": {"model": dict(name="din", head=(16,)), "ladder": OWN},
               "linear": {"model": dict(name="logistic")}}  # fmt: skip
    found = of_din(systems=systems, seeds=(0, 1), examples=(100, 300))
    cells = [(t.columns["system"], t.columns["grade"], t.config.model.name) for t in found[::2]]
    assert cells == [("din", "large", "din"), ("din", "small", "din"), ("linear", "logistic", "logistic")]  # fmt: skip
    with raises(KeyError, "'dim'", "din", "linear"):
        of_din(systems=systems, trials=[dict(system="dim", seed=0, examples=(100,))])
