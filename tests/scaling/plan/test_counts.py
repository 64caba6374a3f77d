"""Counts by tracing against the former formulas, and against the compiler."""

import pytest

from scaling.plan import counts, flow_grades, grades
from tests.models import worlds
from tests.models.test_every_model import CONFIGS
from tests.models.test_nif import SCHEMA as MOVELINES
from tests.scaling.plan.test_flow_grades import CASES
from tests.scaling.plan.test_grades import VARIANTS, of

LADDER = [("-2", 20), ("0", 200), ("3", 50), ("6", 20)]


@pytest.mark.parametrize("model, history", [
    *((of("1") | v, 20) for v in VARIANTS), *((of(g), h) for g, h in LADDER),
    *((dict(of("1"), name="lightsuan", local=8, dilation=4, sparse=s), 64) for s in (True, False)),
], ids=str)  # fmt: skip
def test_tracing_gives_the_numbers_of_the_formulas(model, history):
    want = grades.count(worlds.SCHEMA, model, history)
    got = counts.count(worlds.SCHEMA, model, history)
    flops = got.pop("flops_per_example"), want.pop("flops_per_example")
    assert got == want
    assert flops[0] == pytest.approx(flops[1], rel=0.1)


@pytest.mark.parametrize("name, grade, more", CASES, ids=str)
def test_tracing_gives_the_numbers_of_the_flow_formulas(name, grade, more):
    model = dict(name=name, table=dict(dim=8), **grades.options(grades.named(grade), name), **more)
    lengths = {s: 20 for s in MOVELINES.lists}
    want = flow_grades.count(MOVELINES, model, lengths)
    got = counts.count(MOVELINES, model, lengths)
    flops = got.pop("flops_per_example"), want.pop("flops_per_example")
    assert got == want
    if more.get("decoder") != "ar":  # the formula counts one of its steps
        assert flops[0] == pytest.approx(flops[1], rel=0.1)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_is_counted(name):
    got = counts.count(worlds.SCHEMA, CONFIGS[name], 6)
    assert got["flops_per_example"] > 0 and got["n_embedding"] > 0
