"""Counts of NIF's and AMEN's rungs against the models' trees and the compiler."""

import jax
import jax.numpy as jnp
import pytest

from recjax import models
from recjax.system import parameter_counts
from recjax.trees import Params
from scaling.plan import flow_grades, grades
from tests.models.test_nif import SCHEMA, world

CASES = [
    ("nif", "0", {}), ("nif", "2", dict(decoder="ar")), ("amen", "0", {}), ("amen", "1", dict(flow="none")),
    ("amen", "2", dict(sam=False, head=(32, 16))),
]  # fmt: skip


@pytest.mark.parametrize("name, grade, more", CASES, ids=str)
def test_counts_are_those_of_the_model_and_the_compiler(name, grade, more):
    model = dict(name=name, table=dict(dim=8), **grades.options(grades.named(grade), name), **more)
    w = world(4, 1, 20)
    data, system = w.batch(), models.build(SCHEMA, model)
    rows = {t.path: jnp.zeros((1, data["ids"][t.id_space].shape[1], t.dim)) for t in system.tables}
    dense, state = jax.eval_shape(lambda k: system.init(k, rows, data), jax.random.key(0))
    sizes = {jax.tree_util.keystr(p): x.size for p, x in jax.tree_util.tree_leaves_with_path(dense)}
    got = flow_grades.count(SCHEMA, model, {name: 20 for name in SCHEMA.lists})
    assert got["n_dense"] == sum(sizes.values())
    assert got["n_blocks"] == sum(n for k, n in sizes.items() if "layers_" in k)
    assert got["n_head"] == sum(n for k, n in sizes.items() if "top" in k or "logit" in k)
    counted = parameter_counts(system, dense)
    assert counted == {k: got[k] for k in counted}
    spaces = {t.path: SCHEMA.space(t.id_space).rows * t.dim for t in system.tables}
    assert got["n_embedding"] == sum(spaces.values())
    if more.get("flow") == "none" or name == "nif" and not more:
        score = system.exports["score"].fn
        want = jax.jit(score).lower(Params(dense, rows, state), data).cost_analysis()["flops"] / 4
        assert got["flops_per_example"] == pytest.approx(want, rel=0.1)
