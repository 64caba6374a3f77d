"""Counts by tracing: of every model, against its trees and against the compiler."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from recjax import models
from recjax.trees import Params
from scaling.plan import counts, grades
from tests.messages import raises
from tests.models import test_nif, worlds
from tests.models.test_every_model import CONFIGS
from tests.scaling.plan.test_grades import of

LIGHT = dict(of("1"), name="lightsuan", local=8, dilation=4)


def programs(w, model):
    """(shapes of the dense tree, lowered forward pass, examples) of a model on a made-up batch."""
    data, system = w.batch(), models.build(w.schema, model)
    rows = {t.path: jnp.zeros((1, data["ids"][t.id_space].shape[1], t.dim)) for t in system.tables}
    dense, state = jax.eval_shape(lambda k: system.init(k, rows, data), jax.random.key(0))
    lowered = jax.jit(system.exports["score"].fn).lower(Params(dense, rows, state), data)
    return dense, lowered, data["valid"].size


def size(dense, *parts):
    leaves = jax.tree_util.tree_leaves_with_path(dense)
    return sum(
        x.size for p, x in leaves if not parts or any(k in jax.tree_util.keystr(p) for k in parts)
    )


VARIANTS = [
    {}, {"norm": "layer"}, {"ffn": "relu"}, {"af_net": False}, {"attention_bias": False}, {"gate_pool": "causal"},
    {"target": "zero_fill"}, {"head": (32, 16), "head_norm": "batch", "head_activation": "dice", "logit_bn": True},
]  # fmt: skip


@pytest.mark.parametrize("model, history", [
    *((of("1") | v, 20) for v in VARIANTS), (of("0"), 200), (of("4"), 50), (dict(LIGHT, sparse=False), 64), (LIGHT, 64),
], ids=str)  # fmt: skip
def test_counts_are_those_of_the_model_and_the_compiler(model, history):
    """Of one example for LightSUAN: its kernel is a scan over examples, whose body the compiler counts once."""
    w = worlds.world(1 if model["name"] == "lightsuan" else 8, 1, history)
    dense, lowered, examples = programs(w, model)
    got = counts.count(worlds.SCHEMA, model, history)
    assert got["n_blocks"] == size(dense, "layers_")
    assert got["n_head"] == size(dense, "mlp", "read_out")
    assert got["n_dense"] == size(dense)
    assert got["n_embedding"] == sum(s.rows for s in worlds.SCHEMA.id_spaces) * 8
    want = lowered.cost_analysis()["flops"] / examples
    assert got["flops_per_example"] == pytest.approx(want, rel=0.05)


def test_a_sparse_pattern_costs_less_than_the_dense_one():
    light, dense = (counts.count(worlds.SCHEMA, m, 64) for m in (LIGHT, of("1")))
    assert light["flops_per_example"] < dense["flops_per_example"]
    assert light["n_blocks"] == dense["n_blocks"]


@pytest.mark.parametrize("name, more", [
    ("nif", {}), ("nif", {"decoder": "ar"}), ("amen", {}), ("amen", {"flow": "none"}),
], ids=str)  # fmt: skip
def test_stages_of_a_moveline_are_counted(name, more):
    rung = grades.options(grades.named("0"), name)
    model = dict(name=name, table=dict(dim=8), **rung, **more)
    lengths = {s: 20 for s in test_nif.SCHEMA.lists}
    got = counts.count(test_nif.SCHEMA, model, lengths)
    if name == "nif" or more:
        dense, lowered, examples = programs(test_nif.world(4, 1, 20), model)
        assert got["n_blocks"] == size(dense, "layers_") and got["n_dense"] == size(dense)
        want = lowered.cost_analysis()["flops"] / examples
        assert got["flops_per_example"] == pytest.approx(want, rel=0.1)
    else:  # the generator of stage 1 is not trained, but it is run
        without = counts.count(test_nif.SCHEMA, dict(model, flow="none"), lengths)
        assert got["flops_per_example"] > without["flops_per_example"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_is_counted(name):
    got = counts.count(worlds.SCHEMA, CONFIGS[name], 6)
    assert got["flops_per_example"] > 2 * got["n_dense"] * (name == "din")
    assert got["n_blocks"] + got["n_head"] <= got["n_dense"] and got["n_embedding"] > 0


def test_rates_and_seeds_share_a_count_and_shapes_do_not(monkeypatch):
    calls = []
    real = counts.of_system
    monkeypatch.setattr(counts, "of_system", lambda *a: calls.append(1) or real(*a))
    schema = dataclasses.replace(worlds.SCHEMA, groups=("user",))  # seen by no other test
    din = CONFIGS["din"]
    one, same, wide = (
        counts.count(schema, dict(din, table=t), 6)
        for t in (dict(lr=0.1), dict(lr=0.2), dict(dim=4, lr=0.1))
    )
    assert one == same and len(calls) == 2
    assert wide["n_embedding"] == one["n_embedding"] // 2


def test_what_cannot_be_counted_is_named(monkeypatch):
    with raises(ValueError, "'din'", "'widht'"):
        counts.count(worlds.SCHEMA, dict(CONFIGS["din"], widht=3), 6)
    build = models.build
    for rules, words in (((), ("'din'", "counts_as")), ((("nothing", "head"),), ("counts_as", "MLP_0"))):  # fmt: skip
        monkeypatch.setattr(
            models, "build", lambda *a, r=rules: dataclasses.replace(build(*a), counts_as=r)
        )
        with raises(ValueError, *words):
            counts.count(worlds.SCHEMA, dict(CONFIGS["din"], attention=(7,)), 6)
