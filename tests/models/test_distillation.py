"""Online distillation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import models
from recjax.models import distillation_online
from recjax.schema import SchemaError
from recjax.training import optim
from tests.messages import raises
from tests.models.worlds import SCHEMA, Model, close, far, jit, make, world

W = world(b=4, c=3, n=8)
HEAD = dict(head=(8,), head_activation="silu", head_norm="batch")
TEACHER = dict(name="suan", blocks=1, **HEAD)
STUDENT = dict(name="lightsuan", blocks=1, local=2, dilation=2, **HEAD)
OPTIONS = dict(teacher=TEACHER, student=STUDENT, student_history=5)


@functools.cache
def model(weight=1.0, temperature=2.0):
    system = models.build(
        SCHEMA, dict(name="distillation_online", weight=weight, temperature=temperature, **OPTIONS)
    )
    return make(system, W)


def alone(side):
    """The side as a model of its own, with its share of the pair's values."""
    pair = model()
    if side == "student":
        system, own = pair.system.export_view(pair.trees)
        return Model(system, own.dense, own.state, own.tables)
    system = models.build(SCHEMA, {**TEACHER, "table": {"owner": "teacher"}})
    tables = {k: v for k, v in pair.tables.items() if k.startswith(f"{side}/")}
    return pair.replace(
        system=system, dense=pair.dense[side], state=pair.state[side], tables=tables
    )


def side_of(grads, side):
    dense, rows = grads
    return dense[side], {k: v for k, v in rows.items() if k.startswith(f"{side}/")}


def test_the_teacher_does_not_know_it_teaches():
    _, with_term = model().loss_and_grads(W)
    _, without = model(weight=0.0).loss_and_grads(W)
    close(side_of(with_term, "teacher"), side_of(without, "teacher"), 1e-6)
    assert far(side_of(with_term, "student"), side_of(without, "student"))


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_weight_zero_is_independent_training(side):
    (_, state, sums), grads = model(weight=0.0).loss_and_grads(W)
    (loss, own_state, _), own = alone(side).loss_and_grads(W)
    total, count = sums["loss" if side == "student" else "loss/teacher"]
    close(total / count, loss, 1e-6)
    close(side_of(grads, side), own, 1e-6)
    close(state[side], own_state, 1e-6)


def test_the_loss_is_three_cross_entropies():
    (loss, _, sums), _ = model(weight=0.7, temperature=3.0).loss_and_grads(W)
    terms = {k: float(a / b) for k, (a, b) in sums.items()}
    assert set(terms) == {"loss", "loss/teacher", "loss/distil"}
    want = terms["loss"] + terms["loss/teacher"] + 0.7 * 9 * terms["loss/distil"]
    np.testing.assert_allclose(loss, want, rtol=1e-6)


def soft_gradient(z_s, z_t, temperature):
    pair = distillation_online.Pair(None, None, distillation_online.Softening(temperature, 1.0))
    z_s, z_t = jnp.asarray(z_s), jnp.asarray(z_t)
    return jax.grad(lambda s: temperature**2 * pair.soft(s, z_t, jnp.ones_like(s))[0])(z_s)


def test_the_third_term_s_gradient():
    z_s, z_t = np.array([-1.0, 0.5, 2.0]), np.array([0.3, 0.5, -1.5])
    close(soft_gradient(z_t, z_t, 2.0), np.zeros(3), 1e-6)
    np.testing.assert_allclose(
        soft_gradient(z_s, z_t, 100.0), (z_s - z_t) / 4, rtol=0.01, atol=1e-4
    )
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    close(soft_gradient(z_s, z_t, 1.0), sigmoid(z_s) - sigmoid(z_t))


def test_the_student_serves_alone():
    """Same logits from its own values, which are exactly plain LightSUAN's."""
    student, pair = alone("student"), model()
    close(student.logits(W), pair.logits(W), 1e-6)
    close(alone("teacher").logits(W), pair.outputs(W)["teacher"], 1e-6)
    plain = make(models.build(SCHEMA, STUDENT), distill_world())
    assert jax.tree.map(np.shape, plain.dense) == jax.tree.map(np.shape, pair.dense["student"])
    assert all(t.owner == "student" for t in student.system.tables)
    assert set(pair.system.exports) == {"score", "prefix", "candidates"}
    batch = W.batch()

    def score(dense):
        fn = pair.system.exports["score"].fn
        return jit(lambda b: fn(pair.replace(dense=dense).params(b), b))(batch)

    out = score(
        {"student": pair.dense["student"]}
    )  # the teacher's parameters are not even looked at
    assert set(out) == {"logits"}
    close(out["logits"], pair.logits(W))


def distill_world():
    """W as the student sees it: its last five events."""
    history = {f.name: W.raw[f.name][:, -5:] for f in SCHEMA.select("history")}
    return W.replace(**history, mask=W.mask[:, -5:], age=W.age[:, -5:])


def test_the_student_sees_its_last_events_only():
    pair, items = model(), W.raw["past_item"].copy()
    items[:, :3] = np.where(W.mask[:, :3], items[:, :3] % 50 + 3, 0)
    before, after = pair.outputs(W), pair.outputs(W.replace(past_item=items))
    close(before["logits"], after["logits"], 1e-6)
    assert far(before["teacher"], after["teacher"])
    close(alone("student").logits(distill_world()), before["logits"], 1e-6)


def test_cost_of_serving_is_the_student_s():
    pair, student, batch = model(), alone("student"), W.batch()

    def flops(m, fn):
        run = jit(lambda params: fn(params, batch))
        return run.lower(m.params(batch)).compile().cost_analysis()["flops"]

    own = flops(student, student.system.exports["score"].fn)
    assert flops(pair, pair.system.exports["score"].fn) == pytest.approx(own, rel=1e-3)
    assert flops(pair, pair.system.outputs) > 1.5 * own  # the control: with the teacher


def test_groups_keep_gradients_apart():
    pair = model()
    groups = optim.dense_groups(pair.system, pair.dense)
    assert set(jax.tree.leaves(groups["teacher"])) == {"teacher"}
    assert set(jax.tree.leaves(groups["student"])) == {"student"}
    _, (dense, rows) = pair.loss_and_grads(W)
    small = optim.clip_scales(pair.system, dense, rows, 0.01)
    dense = {**dense, "teacher": jax.tree.map(lambda g: g * 1e3, dense["teacher"])}
    rows = {k: g * (1e3 if k.startswith("teacher/") else 1) for k, g in rows.items()}
    large = optim.clip_scales(pair.system, dense, rows, 0.01)
    assert large["student"] == small["student"] and large["teacher"] < small["teacher"]


def test_shared_embeddings_are_the_student_s():
    system = models.build(
        SCHEMA, dict(name="distillation_online", **OPTIONS, share_embeddings=True)
    )
    assert {t.owner for t in system.tables} == {"student"}
    assert len(system.tables) == 5
    m = make(system, W)
    assert set(m.outputs(W)) == {"logits", "teacher"}
    with raises(SchemaError, "share_embeddings", "dim=8", "dim=4"):
        models.build(
            SCHEMA,
            dict(
                name="distillation_online",
                teacher=TEACHER,
                student={**STUDENT, "table": {"dim": 4}},
                share_embeddings=True,
            ),
        )


def test_bad_settings_are_named():
    with raises(ValueError, "temperature"):
        models.build(SCHEMA, dict(name="distillation_online", **OPTIONS, temperature=0.0))
    with raises(ValueError, "'distillation_online'", "teacher"):
        models.build(
            SCHEMA,
            dict(
                name="distillation_online",
                student=STUDENT,
                teacher=dict(name="distillation_online", **OPTIONS),
            ),
        )


def offline(**options):
    return models.build(SCHEMA, dict(name="distillation_offline", student=STUDENT, **options))


def taught(*logits):
    return {**W.batch(), "teacher": {str(i): jnp.asarray(z) for i, z in enumerate(logits)}}


def offline_loss(system, m, batch, state=None):
    state = m.state if state is None else state
    loss = jit(lambda b: system.loss(m.replace(state=state).params(b), b, jax.random.key(0)))
    return loss(batch)


def test_offline_is_the_third_term_of_the_pair():
    """Same values, the teacher's logits as a column: the same soft term, and the student's own trees."""
    m = make(offline(weight=0.7, temperature=3.0), W)
    z = np.random.default_rng(0).normal(size=W.batch()["valid"].shape).astype(np.float32)
    total, (_, sums) = offline_loss(m.system, m, taught(z))
    terms = {k: float(a / b) for k, (a, b) in sums.items()}
    np.testing.assert_allclose(total, terms["loss"] + 0.7 * 9 * terms["loss/distil"], rtol=1e-6)
    twice = offline_loss(m.system, m, taught(z, z))[0]
    np.testing.assert_allclose(twice, total, rtol=1e-6)
    assert abs(offline_loss(m.system, m, taught(z, z + 3))[0] - total) > 1e-3  # a second one counts
    plain = offline_loss(make(models.build(SCHEMA, STUDENT), W).system, m, W.batch())[0]
    close(offline_loss(m.system, m, W.batch())[0], plain, 1e-6)  # nobody teaches


def test_schedules_follow_the_examples_seen():
    z = np.ones(W.batch()["valid"].shape, np.float32)
    n = int(W.batch()["valid"].sum())
    for schedule, factors in (("decay", (1, 0.5, 0)), ("warmup", (0, 0.5, 1))):
        m = make(offline(weight=0.5, schedule=schedule, schedule_examples=2 * n), W)
        state, got = m.state, []
        for _ in factors:
            total, (state, sums) = offline_loss(m.system, m, taught(z), state)
            terms = {k: float(a / b) for k, (a, b) in sums.items()}
            got.append((float(total) - terms["loss"]) / (0.5 * terms["loss/distil"]))
        np.testing.assert_allclose(got, factors, atol=1e-4)
        assert (
            m.outputs(W)["logits"].shape == W.batch()["valid"].shape
        )  # the count is no collection
    with raises(ValueError, "schedule_examples"):
        offline(schedule="decay")


def test_a_config_saved_before_the_renaming_builds():
    """Saved runs name the models "distil" and "distil_offline", also by their path."""
    for old in ("distil", "recjax.models.distil"):
        system = models.build(SCHEMA, dict(name=old, **OPTIONS))
        assert {t.owner for t in system.tables} == {"teacher", "student"}
    system = models.build(SCHEMA, dict(name="distil_offline", student=STUDENT))
    assert system.tables == models.build(SCHEMA, STUDENT).tables
    tarq = models.with_new_names(dict(name="tarq", distil=0.5))
    assert tarq == dict(name="tarq", distill=0.5)
