"""The compiled step: parts of a batch that are unlike each other, steps that are not finite, what a window adds up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import embedding, models
from recjax.training.step import gradients, init_trees, make_step, settings, zero_window
from tests import fakes
from tests.models.worlds import SCHEMA, close, far, jit, key, make, world
from tests.test_contracts import config

W = world(b=8, c=2, n=4)


@pytest.mark.parametrize("options", [dict(name="suan", width=8, blocks=1), dict(name="din")])
def test_a_part_that_is_nothing_but_padding_has_no_say(options):
    """The last batch of an epoch: three requests in four parts of two. Batch statistics of no rows are 0 / 0."""
    model = make(models.build(SCHEMA, dict(head=(8,), **options)), W)
    batch = W.replace(valid=np.arange(8)[:, None] < [3, 3]).batch()

    def of(batch, parts):
        run = jit(lambda b, rows: gradients(model.system, model.trees, rows, b, key(0), parts))
        return run(batch, model.rows(batch))

    four, state, sums = of(batch, 4)
    half = {k: v if k == "ids" else jax.tree.map(lambda x: x[:4], v) for k, v in batch.items()}
    two, expected, same = of(half, 2)
    for mine, theirs in ((four, two), (state, expected), (sums, same)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mine, theirs)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((four, state, sums)))


def poisoned_step(kind, table, loss=None):
    """Trees before and after a step on a batch whose price is infinite (or with another loss), and the window."""
    system = fakes.build(fakes.SCHEMA, kind=kind, table=table)
    system = dataclasses.replace(system, loss=loss(system.loss)) if loss else system
    c = config(kind)
    batch = fakes.batch_at(0, 8, 1)
    trees = init_trees(system, c, jax.device_put(batch))
    window = zero_window(system, c, trees, batch)
    step = jax.jit(make_step(system, c, 10))
    args = settings(system, c), np.int32(4), np.float32(1)
    trees, window = step(trees, window, batch, *args)  # momentum, and rows that l2 would pull
    if loss is None:
        batch["dense"]["price"][:] = np.inf
    return trees, *step(trees, window, batch, settings(system, c), np.int32(5), np.float32(1))


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "lazy_adam", "sgd", "ftrl"])
def test_a_step_that_is_not_finite_changes_nothing(optimizer):
    before, after, window = poisoned_step("batch_norm", dict(optimizer=optimizer, l2=0.1))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((after, window.sums)))
    assert (int(window.steps), int(window.bad), int(window.first)) == (2, 1, 6)
    assert "step 6 is not finite: loss" in window.fault()


def nan_gradient_of(path):
    """A loss that is as ever, and whose gradient with respect to one table is not a number."""

    def wrapped(loss):
        def changed(params, batch, rng):
            value, aux = loss(params, batch, rng)
            nothing = jnp.sqrt(0 * params.rows[path].sum())  # 0, with the slope 1 / 0 times 0
            return value + jnp.where(batch["valid"].any(), nothing, 0), aux

        return changed

    return wrapped


def test_what_is_not_finite_is_named():
    (_, _, window) = poisoned_step("batch_norm", {}, nan_gradient_of("item"))
    assert window.fault() == "step 5 is not finite: tables/item"


def test_seeds_rates_and_clips_share_a_program():
    system, c = fakes.build(fakes.SCHEMA, kind="teacher_student", table={}), config("batch_norm")
    batch = jax.device_put(fakes.batch_at(0, 8, 1))
    trees = init_trees(system, c, batch)
    window, step, ends = zero_window(system, c, trees, batch), jax.jit(make_step(system, c, 10)), []
    for changes in (
        {},
        dict(seed=1),
        {"opt.lr": 0.3},
        {"opt.clip": 1e-3},
        {"opt.group_lr.teacher": 0.3},
    ):
        c = config("batch_norm")
        c.update_from_flattened_dict(changes)
        after, _ = step(trees, window, batch, settings(system, c), np.int32(0), np.float32(1))
        ends.append(np.concatenate([x.ravel() for x in jax.tree.leaves(after.dense)]))
    assert step._cache_size() == 1
    assert np.array_equal(ends[0], ends[1])  # nothing here is random
    assert len({e.tobytes() for e in ends}) == 4


def test_the_norms_of_a_window_are_those_of_gradients_and_of_what_has_changed():
    system, c = (
        fakes.build(fakes.SCHEMA, kind="batch_norm", table=dict(optimizer="sgd", lr=0.5)),
        config("batch_norm"),
    )
    c.opt.name, c.opt.lr, c.opt.clip = "sgd", 0.25, 1e-3
    batch = jax.device_put(fakes.batch_at(0, 8, 1))
    before = init_trees(system, c, batch)
    window = zero_window(system, c, before, batch)
    after, window = jax.jit(make_step(system, c, 10))(
        before, window, batch, settings(system, c), np.int32(0), np.float32(1)
    )

    def moved(a, b):
        pairs = zip(*map(jax.tree.leaves, (a, b)), strict=True)
        return np.sqrt(sum(((x - y) ** 2).sum() for x, y in pairs))

    got = window.ratios()
    dense, rows = moved(before.dense, after.dense), moved(before.tables, after.tables)
    assert got["update_norm/dense"] == pytest.approx(dense, rel=1e-4)
    assert got["update_norm/rows"] == pytest.approx(rows, rel=1e-4)
    joint = np.hypot(got["grad_norm/dense"], got["grad_norm/rows"])
    assert joint > 1e-3  # so it is clipped to this, and then multiplied by the rates
    assert np.hypot(dense / 0.25, rows / 0.5) == pytest.approx(1e-3, rel=1e-4)


def test_every_rate_follows_its_schedule_and_the_scale():
    """Step 5 of 10: a linear decay is at a half, and the scale halves what there is."""
    system = fakes.build(fakes.SCHEMA, kind="batch_norm", table=dict(optimizer="sgd", lr=0.5))
    batch = jax.device_put(fakes.batch_at(0, 8, 1))

    def moves(schedule, scale, of_rows):
        c = config("batch_norm")
        c.opt.name, c.opt.schedule, c.embedding.schedule = "sgd", schedule, of_rows
        before = init_trees(system, c, batch)
        window, step = zero_window(system, c, before, batch), jax.jit(make_step(system, c, 10))
        number = np.int32(5), np.float32(scale)
        after, _ = step(before, window, batch, settings(system, c), *number)
        return jax.tree.map(
            jnp.subtract, (after.dense, after.tables), (before.dense, before.tables)
        )

    dense, rows = moves("constant", 1.0, ())
    slow_dense, slow_rows = moves("linear", 0.5, ((".*", "constant"),))
    close(slow_dense, jax.tree.map(lambda x: 0.25 * x, dense), 1e-6)
    close(slow_rows, jax.tree.map(lambda x: 0.5 * x, rows), 1e-6)
    assert far(dense, slow_dense, 1e-6) and far(rows, slow_rows, 1e-6)


def test_unequal_parts_weigh_by_their_examples():
    model = make(models.build(SCHEMA, dict(name="logistic", dense_norm="identity")), W)
    batch = W.replace(valid=np.arange(8)[:, None] < [8, 3]).batch()
    rows = model.rows(batch)
    one, two = (
        jit(lambda b, r, n=n: gradients(model.system, model.trees, r, b, key(0), n))(batch, rows)[0]
        for n in (1, 2)
    )
    close(two, one, 1e-5)


def test_every_step_and_every_part_draws_anew():
    """A loss whose only gradient is a draw."""

    def loss(params, batch, rng):
        value = jax.random.uniform(rng) * params.dense["logits"]["bias"].sum()
        return value, (params.state, sums)

    system, c = fakes.build(fakes.SCHEMA, kind="batch_norm"), config("batch_norm")
    batch = jax.device_put(fakes.batch_at(0, 8, 1))
    trees = init_trees(system, c, batch)
    _, _, sums = gradients(system, trees, *_rows_of(system, trees, batch), jax.random.key(0), 1)
    system = dataclasses.replace(system, loss=loss)
    drawn = []
    for parts in (1, 2, 4):
        (_, (dense, _)), _, _ = gradients(
            system, trees, *_rows_of(system, trees, batch), jax.random.key(0), parts
        )
        drawn.append(float(dense["logits"]["bias"][0]))
    assert len(set(drawn)) == 3
    c.opt.name, ends = "sgd", []
    window, step = zero_window(system, c, trees, batch), jax.jit(make_step(system, c, 10))
    for number in (0, 1):
        args = settings(system, c), np.int32(number), np.float32(1)
        ends.append(step(trees, window, batch, *args)[0].dense["logits"]["bias"])
    assert far(ends[0], ends[1], 1e-6)


def _rows_of(system, trees, batch):
    return embedding.gather(system.tables, trees.tables, batch), batch
