"""No two uses of a run share a random key."""

import dataclasses

import jax
import numpy as np

from recjax import embedding
from recjax.training import keys
from recjax.training.step import init_trees, make_step, settings, zero_window
from tests import fakes
from tests.messages import raises
from tests.test_contracts import config

STEPS, PARTS = 4, 4


def test_every_key_of_a_run_is_used_once(monkeypatch):
    """Those of the initial trees, and of steps in microbatches: each, and what a loss splits off its own."""
    used = []

    def note(name, key):
        for k in (key, *jax.random.split(key)):
            jax.debug.callback(
                lambda data: used.append((name, tuple(data.tolist()))), jax.random.key_data(k)
            )

    def noted(name, real, at):
        def call(*args):
            note(name, args[at])
            return real(*args)

        return call

    system = fakes.build(fakes.SCHEMA, kind="batch_norm", table=dict(dtype="bfloat16"))
    system = dataclasses.replace(
        system,
        init=noted("dense_init", system.init, 0),
        loss=noted("loss", system.loss, -1),
        after_step=noted("after_step", lambda trees, rng: trees, 1),
    )
    monkeypatch.setattr(embedding, "init", noted("tables_init", embedding.init, 0))
    monkeypatch.setattr(embedding, "apply", noted("stochastic_rounding", embedding.apply, -1))

    c = config("batch_norm", train__microbatches=PARTS)
    batch = jax.device_put(fakes.batch_at(0, 8, 1))
    trees = init_trees(system, c, batch)
    window = zero_window(system, c, trees, batch)
    used.clear()  # shapes were traced
    trees = init_trees(system, c, batch)
    step = jax.jit(make_step(system, c, STEPS))
    for i in range(STEPS):
        trees, window = step(trees, window, batch, settings(system, c), i, np.float32(1))
    jax.effects_barrier()
    uses = {"tables_init": 1, "dense_init": 1, "loss": STEPS * PARTS}
    uses |= {"after_step": STEPS, "stochastic_rounding": STEPS}
    assert {n: sum(name == n for name, _ in used) for n in keys.NAMES} == {
        n: 3 * k for n, k in uses.items()
    }
    assert len({key for _, key in used}) == len(used)


def test_a_stream_that_nobody_named_is_refused():
    with raises(ValueError, "dropuot", "loss"):
        keys.stream(jax.random.key(0), "dropuot")
