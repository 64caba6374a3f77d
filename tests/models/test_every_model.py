"""What holds for every model of the registry."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import models
from recjax.system import parameter_counts
from recjax.trees import Params
from tests.models.worlds import SCHEMA, close, far, finite, initial, jit, make, world

W = world(b=4, c=3, n=6)
HEAD = dict(head=(16,), head_activation="silu", head_norm="none")
LIGHT = dict(name="lightsuan", blocks=1, local=2, dilation=2, **HEAD)
CONFIGS = {
    "suan": dict(name="suan", blocks=1, **HEAD),
    "suan causal": dict(name="suan", blocks=1, gate_pool="causal", **HEAD),
    "suan behaviour": dict(name="suan", blocks=2, gate_pool="behaviour", **HEAD),
    "lightsuan": LIGHT,
    "din": dict(name="din", attention=(8,), **HEAD),
    "logistic": dict(name="logistic"),
    "sasrec": dict(name="sasrec", blocks=1, **HEAD),
    "bst": dict(name="bst", heads=2, **HEAD),
    "tin": dict(name="tin", head=(16,)),
    "tin repo interval": dict(name="tin", tr_mode="repo", time="interval", heads=2, head=(16,)),
    "aw_moe": dict(name="aw_moe", experts=3, width=8, expert=(16, 8), contrast=0.5),
    "ccn": dict(name="ccn", width=8, heads=2, head=(8,)),
    "aw_moe user": dict(
        name="aw_moe", experts=3, width=8, expert=(8,), gate_context="user", mix="linear"
    ),
    "tarq": dict(
        name="tarq", width=8, levels=2, codes=6, tower=(8,), encoder=(8,), teacher_head=(8,)
    ),
    "qin": dict(name="qin", vectors="none", table=dict(dim=8), layers=1, dense_norm="identity"),
    "dcnv2": dict(name="dcnv2", layers=2, **HEAD),
    "dcnv2 mix": dict(name="dcnv2", rank=4, experts=2, structure="stacked", **HEAD),
    "mmoe": dict(name="mmoe", experts=3, own=1, expert=(8,), labels=["click", "like"]),
    "wukong": dict(name="wukong", layers=2, rows=3, rank=3, mlp=(8,), width=8, **HEAD),
    "sim": dict(name="sim", width=8, keep=3, recent=2, attention=(8,), **HEAD),
    "sim hard": dict(name="sim", search="hard", width=8, keep=3, recent=2, attention=(8,), **HEAD),
    "eta": dict(name="eta", width=8, keep=3, recent=2, **HEAD),
    "twin": dict(name="twin", width=8, keep=3, recent=2, **HEAD),
    "hstu": dict(name="hstu", layers=1, width=8, **HEAD),
    "can": dict(name="can", micro=(4, 2), orders=2, **HEAD),
    "distillation": dict(
        name="distillation_online", teacher=dict(name="din", **HEAD), student=LIGHT
    ),
}


@functools.cache
def model(name):
    return make(models.build(SCHEMA, CONFIGS[name]), W)


every_model = pytest.mark.parametrize("name", CONFIGS)


@every_model
def test_a_logit_does_not_depend_on_other_candidates(name):
    m = model(name)
    changed = {f.name: W.raw[f.name].copy() for f in SCHEMA.select("candidate")}
    for x in changed.values():
        x[:, 1] = x[:, 1] % 7 + 3
    before, after = m.outputs(W), m.outputs(W.replace(**changed))
    for output in before:
        close(after[output][:, [0, 2]], before[output][:, [0, 2]], 1e-6)
        if np.ndim(before[output]) == 2:  # logits; a gate may be the request's
            assert far(after[output][:, 1], before[output][:, 1])


# What DIN reads and a model does not: a comparison with DIN is then one of inputs, too.
UNREAD = {
    **dict.fromkeys(("sasrec", "bst", "tin", "tin repo interval", "ccn"), {"past_hour"}),
    **dict.fromkeys(("aw_moe", "aw_moe user"), {"past_hour"}),
    "qin": {"user", "age_group", "past_hour"},  # model.user=True reads the first two
    "tarq": {"count", "recency"},  # what a stored item cannot know
}


@every_model
def test_it_reads_what_din_reads(name):
    """Each input feature, changed alone, changes the logits: but those named here."""
    m = model(name)
    before, unread = m.logits(W), set()
    for f in SCHEMA.select("profile", "context", "candidate", "history"):
        x = W.raw[f.name]
        other = x % 7 + 1 if f.kind == "id" else x + 1
        changed = np.where(x == other, other + 1, other).astype(x.dtype)
        if not far(m.logits(W.replace(**{f.name: changed})), before, 1e-6):
            unread.add(f.name)
    assert unread == UNREAD.get(name, set())


@every_model
def test_filling_slots_do_not_count(name):
    m = model(name)
    (loss, _, _), _ = m.loss_and_grads(W)
    valid = W.valid.copy()
    valid[1, 2] = False
    labels = W.raw["click"].copy()
    (fewer, _, _), _ = m.loss_and_grads(W.replace(valid=valid))
    labels[1, 2] = 1 - labels[1, 2]
    (same, _, _), _ = m.loss_and_grads(W.replace(valid=valid, click=labels))
    assert same == fewer and fewer != loss


@every_model
def test_an_empty_history_is_finite(name):
    m, empty = model(name), world(b=4, c=3, n=6, lengths=0)
    (loss, state, _), grads = m.loss_and_grads(empty)
    assert finite((loss, state, grads, m.outputs(empty)))


@every_model
def test_every_parameter_counts_as_something(name):
    m = model(name)
    found = parameter_counts(m.system, m.dense)
    assert found["n_dense"] == sum(x.size for x in jax.tree.leaves(m.dense))
    assert (found["n_blocks"] > 0) == (name not in ("logistic", "can")) and found["n_head"] >= 0
    assert found["n_blocks"] + found["n_head"] <= found["n_dense"]
    if "suan" in name:  # as always counted
        own = {
            jax.tree_util.keystr(p): x.size for p, x in jax.tree_util.tree_leaves_with_path(m.dense)
        }
        assert found["n_blocks"] == sum(n for p, n in own.items() if "layers_" in p)


def test_nothing_is_counted_that_nobody_has_declared():
    m = model("din")
    silent = dataclasses.replace(m.system, counts_as=())
    assert parameter_counts(silent, m.dense)["n_blocks"] is None
    for rules in ((("MLP_0/", "head"),), ((".*", "tail"),)):
        with pytest.raises(ValueError, match=r"System.counts_as .*ActivationUnit_0"):
            parameter_counts(dataclasses.replace(m.system, counts_as=rules), m.dense)


@pytest.mark.parametrize("name", ["suan", "din", "tin", "aw_moe", "distillation"])
def test_one_batch_can_be_overfitted(name):
    """From the entropy of knowing nothing to almost none."""
    system = models.build(SCHEMA, CONFIGS[name])
    m, batch = initial(system, W), W.batch()

    def loss(params):
        total, (_, sums) = system.loss(Params(*params, m.state), batch, jax.random.key(0))
        return total, sums["loss"][0] / sums["loss"][1]

    @jit
    def run(params):
        def step(carry, _):
            params, m1, m2, t = carry
            (_, student), grads = jax.value_and_grad(loss, has_aux=True)(params)
            m1 = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m1, grads)
            m2 = jax.tree.map(lambda m, g: 0.99 * m + 0.01 * g * g, m2, grads)
            scale = 0.01 * jnp.sqrt(1 - 0.99**t) / (1 - 0.9**t)
            new = jax.tree.map(lambda p, a, b: p - scale * a / (jnp.sqrt(b) + 1e-8), params, m1, m2)
            return (new, m1, m2, t + 1), student

        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(step, (params, zeros, zeros, 1.0), length=150)[1]

    losses = np.asarray(run((m.dense, m.rows(batch))))
    assert abs(losses[0] - np.log(2)) < 0.15
    assert losses[-1] < 0.1


DROPPING = {
    name: CONFIGS[name] | dict(dropout=0.5)
    for name in ("suan", "lightsuan", "din", "sasrec", "bst", "tin", "ccn", "qin")
}


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_is_off_in_evaluation_and_on_in_training(name):
    plain = model(name)
    dropping = plain.replace(system=models.build(SCHEMA, DROPPING[name]))
    close(dropping.logits(W), plain.logits(W), 1e-5)
    losses = [float(dropping.loss_and_grads(W, seed)[0][0]) for seed in (0, 1)]
    assert losses[0] != losses[1]
