"""Which evaluation is the best so far, and when a run has waited long enough for another."""

import dataclasses

import pytest

from recjax.system import Select
from recjax.training.loop import select_best
from tests import fakes
from tests.messages import raises

FRESH = dict(best=None, bad=0, stop=False)


def told(mode, values, patience=0):
    """(best so far?, stop?) after each value."""
    system = fakes.build(fakes.SCHEMA, kind="batch_norm")
    system = dataclasses.replace(system, select=Select("figure", mode, patience))
    control, said = FRESH, []
    for value in values:
        control, best = select_best(system, control, dict(figure=value))
        said.append((best, control["stop"]))
    return [b for b, _ in said], [s for _, s in said]


@pytest.mark.parametrize("mode, best", [("max", [True, False, True]), ("min", [True, True, False])])
def test_larger_is_better_or_smaller(mode, best):
    assert told(mode, [0.5, 0.4, 0.6])[0] == best


def test_what_is_undefined_or_equal_is_no_better():
    assert told("max", [float("nan"), 0.5, 0.5, None])[0] == [False, True, False, False]


def test_a_run_stops_after_as_many_bad_evaluations_as_it_has_patience_for():
    assert told("max", [0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 2)[1] == [False] * 4 + [True] * 2
    assert not any(told("max", [0.5, 0.4, 0.3, 0.2])[1])


def test_a_metric_that_is_not_there_is_named():
    system = fakes.build(fakes.SCHEMA, kind="batch_norm")
    system = dataclasses.replace(system, select=Select("figure"))
    with raises(KeyError, "figure", "auc"):
        select_best(system, FRESH, dict(auc=0.5))
