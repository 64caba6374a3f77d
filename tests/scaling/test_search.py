"""The validation-only grid search."""

import math

import pytest

from experiments import din_complete_journey, logistic_complete_journey
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


def test_the_documented_search_is_judged_on_the_split_that_it_is_said_to_be():
    """The tables of recjax/models/README.md are of matched negatives; so are the rates."""
    trials = search.trials(din_complete_journey.get_config("decisive"), {}, 512, "hash")
    assert trials[0].config.eval.final == ("validation_matched",)
    trials = search.trials(config(), {}, 512, "hash", split="validation_matched")
    assert trials[0].config.eval.splits == ("validation_matched",)


def test_a_rate_at_an_edge_is_looked_for_beyond_it():
    def run(best: float):
        asked.clear()

        def rows(grid):
            asked.append(grid["opt.lr"])
            near = sorted(grid["opt.lr"], key=lambda x: abs(math.log(x / best)))
            return [{"opt.lr": x, "model.dropout": 0.1} for x in near]

        return rows

    asked: list[tuple] = []
    grid = {"opt.lr": (1e-3, 3e-3, 1e-2), "model.dropout": (0.1, 0.2)}
    _, same = search.search(run(3e-3), grid, 2)
    assert same == grid and len(asked) == 1
    rows, wider = search.search(run(0.03), grid, 2)
    assert wider["opt.lr"] == (1e-3, 3e-3, 1e-2, 0.0333, 0.111) and rows[0]["opt.lr"] == 0.0333
    assert search.at_edge(wider, rows[0]) == {"model.dropout": None}  # told, not guessed
    _, low = search.search(run(1e-9), grid, 1)
    assert low["opt.lr"][-1] == 0.000333 and len(asked) == 2
    _, kept = search.search(run(1e-9), grid, 0)
    assert kept == grid


def test_a_misspelt_axis_is_named():
    with pytest.raises(KeyError, match="lrr"):
        search.trials(config(), {"opt.lrr": (1.0,)}, 512, "hash")
    with pytest.raises(ValueError, match="opt.lr"):
        search.parse(["opt.lr"])


def test_losses_rank_upwards_and_scores_downwards():
    rows = [{"auc": 0.6, "logloss": 0.3}, {"auc": 0.7, "logloss": 0.4}]
    assert search.ranked(rows, "auc")[0]["auc"] == 0.7
    assert search.ranked(rows, "logloss")[0]["auc"] == 0.6
