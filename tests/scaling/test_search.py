"""The validation-only grid search."""

import pytest

from experiments import logistic_complete_journey
from scaling import search


def config(split: str = "validation"):
    c = logistic_complete_journey.get_config("runlocal")
    c.eval.splits = (split,)
    return c


def test_every_combination_is_a_trial_judged_on_the_one_split():
    grid = search.parse(["opt.lr=1e-3,3e-3", "model.table.lr=0.1", "opt.name=adam,sgd"])
    trials = search.trials(config(), grid, 512, "hash")
    assert [(t.config.opt.lr, t.config.opt.name) for t in trials] == [
        (1e-3, "adam"),
        (1e-3, "sgd"),
        (3e-3, "adam"),
        (3e-3, "sgd"),
    ]
    assert {t.config.model.table.lr for t in trials} == {0.1}
    assert {t.config.eval.final for t in trials} == {("validation",)}
    assert {t.config.train.examples for t in trials} == {512}
    assert len({t.run for t in trials}) == 4


def test_rates_are_never_chosen_on_test_data():
    with pytest.raises(ValueError, match="test_matched"):
        search.trials(config("test_matched"), {}, 512, "hash")


def test_a_misspelt_axis_is_named():
    with pytest.raises(KeyError, match="lrr"):
        search.trials(config(), {"opt.lrr": (1.0,)}, 512, "hash")
    with pytest.raises(ValueError, match="opt.lr"):
        search.parse(["opt.lr"])


def test_losses_rank_upwards_and_scores_downwards():
    rows = [{"auc": 0.6, "logloss": 0.3}, {"auc": 0.7, "logloss": 0.4}]
    assert search.ranked(rows, "auc")[0]["auc"] == 0.7
    assert search.ranked(rows, "logloss")[0]["auc"] == 0.6
