"""The ladder that comes with the models, and those of a study's own."""

from ml_collections import ConfigDict
import pytest

from recjax import configs
from scaling.plan import counts, grades
from tests.messages import raises
from tests.models import worlds


def of(grade, **more):
    return dict(name="suan", table=dict(dim=8), **grades.named(grade).options(), **more)


def test_the_ladder_spans_four_orders_of_magnitude_and_grows():
    """Blocks, head, biases and projections: all that is no embedding."""
    found = [counts.count(worlds.SCHEMA, of(g), 20) for g in ("-2", "-1", "0", "2", "8")]
    assert found[-1]["n_dense"] >= 1e4 * found[0]["n_dense"]
    for name in ("n_blocks", "n_dense", "flops_per_example"):
        values = [c[name] for c in found]
        assert values == sorted(values) and len(set(values)) == len(values)


def test_a_rate_follows_its_rule_and_an_unknown_grade_is_listed():
    assert grades.learning_rate(16, 2e-3, 0.5) == 2e-3
    assert grades.learning_rate(64, 2e-3, 0.5) == 1e-3
    with raises(KeyError, "'9'"):
        grades.named("9")


def config(name="din"):
    c = ConfigDict(configs.base().to_dict())
    c.model = ConfigDict(dict(name=name, head=(16,)))
    return c


LADDER = {"small": {"attention": (8,)}, "large": {"attention": (32, 16), "opt.lr": 5e-4}}


def test_an_own_ladder_sets_options_of_the_model_and_dotted_keys_of_the_config():
    c = config()
    assert grades.climb(c, dict(grade="large"), LADDER) == dict(grade="large")
    assert (c.model.attention, c.opt.lr, c.model.head) == ((32, 16), 5e-4, (16,))
    c = config()
    assert grades.climb(c, dict(grade="small", width=3), LADDER) == dict(grade="small", width=3)
    assert c.model.width == 3  # counting will say that the model has none


def test_without_a_grade_the_model_is_the_experiment_s_own():
    c = config("mymodels.attention")
    before = c.model.to_dict()
    assert grades.climb(c, dict(seed=0), None) == dict(grade="attention")
    assert c.model.to_dict() == before


@pytest.mark.parametrize("row, ladder, words", [
    (dict(grade="0"), None, ("'din'", "sweep.ladder")), (dict(grade="middle"), LADDER, ("'middle'", "small", "large")),
])  # fmt: skip
def test_a_grade_that_is_nowhere_is_named(row, ladder, words):
    with raises(KeyError, *words):
        grades.climb(config(), row, ladder)
