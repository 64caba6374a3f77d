"""The ladder, and its analytic counts against the model's trees and the compiler."""

import jax
import jax.numpy as jnp
import pytest

from recjax import models
from recjax.trees import Params
from scaling.plan import grades
from tests.messages import raises
from tests.models import worlds

TABLE = dict(dim=8)


def of(grade, **more):
    return dict(name="suan", table=TABLE, **grades.named(grade).options(), **more)


def programs(model, history, batch=8):
    """(shapes of the dense tree, lowered forward pass, examples) of a model on a made-up batch."""
    w = worlds.world(batch, 1, history)
    data = w.batch()
    system = models.build(w.schema, model)
    rows = {t.path: jnp.zeros((1, data["ids"][t.id_space].shape[1], t.dim)) for t in system.tables}
    dense, state = jax.eval_shape(lambda k: system.init(k, rows, data), jax.random.key(0))
    lowered = jax.jit(system.outputs).lower(Params(dense, rows, state), data)
    return w.schema, dense, lowered, batch


def size(dense, *parts):
    leaves = jax.tree_util.tree_leaves_with_path(dense)
    return sum(
        x.size for p, x in leaves if not parts or any(k in jax.tree_util.keystr(p) for k in parts)
    )


VARIANTS = [
    {}, {"norm": "layer"}, {"ffn": "relu"}, {"af_net": False}, {"alignment": False}, {"attention_bias": False},
    {"gate_pool": "causal"}, {"residual": "raw"}, {"per_head_bias": True, "per_block_bias": True},
    {"target": "zero_fill"}, {"time_emb": ("past_hour", "hour")}, {"dense_norm": "identity"}, {"abs_pos": False},
    {"head": (32, 16), "head_norm": "batch", "head_activation": "dice", "logit_bn": True},
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_counts_are_those_of_the_model_and_the_compiler(variant):
    model = {**of("1"), **variant}
    schema, dense, lowered, examples = programs(model, 20)
    got = grades.count(schema, model, 20)
    assert got["n_blocks"] == size(dense, "layers_")
    assert got["n_head"] == size(dense, "mlp", "read_out")
    assert got["n_dense"] == size(dense)
    assert got["n_embedding"] == sum(s.rows for s in schema.id_spaces) * 8
    want = lowered.cost_analysis()["flops"] / examples
    assert got["flops_per_example"] == pytest.approx(want, rel=0.1)


@pytest.mark.parametrize(
    "grade, history", [("-2", 20), ("0", 200), ("3", 50), ("6", 20), ("8", 20)]
)
def test_flops_of_grades_agree_with_the_compiler_s_count(grade, history):
    schema, dense, lowered, examples = programs(of(grade), history)
    got = grades.count(schema, of(grade), history)
    want = lowered.cost_analysis()["flops"] / examples
    assert got["flops_per_example"] == pytest.approx(want, rel=0.1)
    assert got["n_dense"] == size(dense)


def test_flops_of_the_optimised_program():
    model = of("1")
    schema, _, lowered, examples = programs(model, 20)
    want = lowered.compile().cost_analysis()["flops"] / examples
    assert grades.count(schema, model, 20)["flops_per_example"] == pytest.approx(want, rel=0.1)


@pytest.mark.parametrize("sparse", [True, False])
def test_lightsuan_counts_the_pairs_it_computes(sparse):
    """One example: the sparse kernel is a scan over examples, whose body the compiler counts once."""
    model = {**of("1"), "name": "lightsuan", "local": 8, "dilation": 4, "sparse": sparse}
    schema, dense, lowered, examples = programs(model, 64, batch=1)
    got = grades.count(schema, model, 64)
    assert got["flops_per_example"] == pytest.approx(lowered.cost_analysis()["flops"], rel=0.1)
    assert got["n_dense"] == size(dense)
    suan = grades.count(schema, of("1"), 64)
    assert (got["flops_per_example"] < suan["flops_per_example"]) == sparse
    assert got["n_blocks"] == suan["n_blocks"]


def test_the_ladder_spans_four_orders_of_magnitude_and_grows():
    """Blocks, head, biases and projections: all that is no embedding."""
    counts = [grades.count(worlds.SCHEMA, of(g), 20) for g in grades.LADDER]
    assert counts[-1]["n_dense"] >= 1e4 * counts[0]["n_dense"]
    for name in ("n_blocks", "n_dense", "flops_per_example"):
        values = [c[name] for c in counts]
        assert values == sorted(values) and len(set(values)) == len(values)


def test_a_rate_follows_its_rule_and_an_unknown_grade_is_listed():
    assert grades.learning_rate(grades.named("0"), 2e-3, 0.5) == 2e-3
    assert grades.learning_rate(grades.Grade(1, 64), 2e-3, 0.5) == 1e-3
    with raises(KeyError, "'9'"):
        grades.named("9")
    with pytest.raises(KeyError, match="not counted"):
        grades.count(worlds.SCHEMA, dict(name="din"), 20)
