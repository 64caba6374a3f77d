"""Dense optimizers, clipping and schedules against numbers worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from recjax import configs
from recjax.schema import Table
from recjax.training import optim
from tests import fakes

SYSTEM = fakes.build(fakes.SCHEMA, kind="batch_norm")
DENSE = {"w": jnp.array([3.0, 0.0])}
ROWS = {"item": jnp.array([[0.0, 4.0]])}


def scheduled(name: str, warmup: int, total: int, steps) -> list[float]:
    factor = optim.schedule(ConfigDict(dict(schedule=name, warmup_steps=warmup)), total)
    return [float(factor(jnp.float32(t))) for t in steps]


@pytest.mark.parametrize(
    "most, scale", [(1.0, 1 / 5), (2.0, 2 / 5), (5.0, 1.0), (50.0, 1.0), (0.0, 1.0)]
)
def test_a_group_is_clipped_by_the_norm_of_dense_and_rows_together(most, scale):
    """(3, 0) and (0, 4): the joint norm is 5. A smaller one is never enlarged, and 0 clips nothing."""
    (got,) = optim.clip_scales(SYSTEM, DENSE, ROWS, most).values()
    np.testing.assert_allclose(got, scale, rtol=1e-6)


def test_each_group_has_a_norm_of_its_own():
    system = dataclasses.replace(SYSTEM, groups=(("^tables/", "rows"), (".*", "dense")))
    got = optim.clip_scales(system, DENSE, ROWS, 1.0)
    np.testing.assert_allclose(got["dense"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(got["rows"], 1 / 4, rtol=1e-6)


@pytest.mark.parametrize("name", optim.TRANSFORMS)
def test_weight_decay_is_of_matrices_alone(name):
    tx = optim.transform(ConfigDict(dict(name=name, args={}, weight_decay=0.1)))
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(())}
    got, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(got["kernel"], 0.1, rtol=1e-6)
    assert not got["bias"].any() and not got["scale"].any()


@pytest.mark.parametrize(
    "name, after",  # 4, 5 and 10 of the ten steps that follow four of warm-up
    [("constant", [1, 1, 1]), ("linear", [0.6, 0.5, 0.0]), ("cosine", [0.6545085, 0.5, 0.0])],
)
def test_schedules_by_hand(name, after):
    """The first step is a fifth of the rate, not nothing, and the fifth step is all of it."""
    got = scheduled(name, 4, 14, (0, 3, 4, 8, 9, 14))
    np.testing.assert_allclose(got, [1 / 5, 4 / 5, 1.0, *after], atol=1e-6)


def test_without_warm_up_a_run_begins_at_its_full_rate_and_stays_at_the_end():
    assert scheduled("linear", 0, 10, (0, 5, 10, 11)) == [1.0, 0.5, 0.0, 0.0]


def test_a_table_takes_the_first_schedule_that_fits_and_else_the_run_s():
    config = configs.base()
    config.opt.schedule, config.opt.warmup_steps = "linear", 0
    config.embedding.schedule = (("^item", "constant"), ("em", "cosine"))
    factors = optim.row_schedules(config, 12, [Table(n, 4) for n in ("item", "email", "user")])
    got = {path: float(f(jnp.float32(3))) for path, f in factors.items()}
    assert got == pytest.approx(dict(item=1.0, email=0.8535534, user=0.75))


def test_a_group_may_have_a_rate_of_its_own():
    config = ConfigDict(dict(lr=0.1, group_lr=dict(teacher=0.5)))
    assert optim.learning_rates(config, {"teacher", "student"}) == dict(teacher=0.5, student=0.1)
    with pytest.raises(ValueError) as e:
        optim.learning_rates(config, {"student"})
    assert "opt.group_lr" in str(e.value) and "teacher" in str(e.value)
