"""SIM, ETA and TWIN: golden numbers of each search and attention, exact properties, and a planted history that a search must reach into."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import models
from recjax.layers import search
from recjax.models import eta, sim, twin
from recjax.schema import SchemaError
from tests.messages import raises
from tests.models.golden import waves as G
from tests.models.worlds import SCHEMA, auc, close, far, finite, jit, make, train, world

Q = jnp.asarray(G((2, 4), 0.7), jnp.float32)[None]  # two candidates of one request
W = {name: {"kernel": G((4, 4), s, 0.5)} for name, s in (("query", 0.5), ("key", 0.6), ("value", 0.7), ("out", 0.8))}  # fmt: skip


def f32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def attention(params, events, index, valid):
    return search.SearchedAttention(4, 2).apply({"params": f32(params)}, Q, events, index, valid)


# ---- golden numbers: float64 of the equations on `golden.waves`; independent float32 versions agree to 1e-6 ------


def test_golden_sim():
    e = jnp.asarray(G((6, 4), 0.1), jnp.float32)[None]
    mask = jnp.array([[0, 0, 1, 1, 1, 1]], bool)
    weights = f32({"candidate": G((4, 4), 0.3, 0.5), "event": G((4, 4), 0.4, 0.5)})
    r = sim.SoftSearch(4).apply({"params": weights}, Q, e)
    close(r[0, 0, 2:], [-0.456469, -0.856127, 0.130774, 0.814281])
    index, valid = search.nearest(r, mask[:, None], 3)
    assert index[0].tolist() == [[5, 4, 2], [2, 3, 5]] and valid.all()
    times = jnp.asarray(G((8, 2), 1.1, 0.5), jnp.float32)[jnp.array([[0, 0, 5, 3, 2, 1]])]
    z = jnp.concatenate([e, times], -1)
    params = W | {"key": {"kernel": G((6, 4), 0.6, 0.5)}, "value": {"kernel": G((6, 4), 0.7, 0.5)}}
    out = attention(params, z, index, valid)
    close(out[0, 0], [0.077110, 0.179428, 0.117429, -0.014388])
    close(out[0, 1], [0.118134, 0.158215, -0.075766, -0.141419])
    same = (jnp.array([0, 0, 1, 2, 1, 1]) == jnp.array([1, 2])[:, None])[None] & mask[:, None]
    index, valid = search.nearest(jnp.broadcast_to(jnp.arange(6), same.shape), same, 3)
    assert index[0, 0].tolist() == [5, 4, 2] and valid[0, 1].tolist() == [True, False, False]
    hard = attention(params, z, index, valid)[0, 1]
    close(hard, [-0.398101, -0.725812, -0.127583, 0.324357])


def test_golden_eta():
    e = jnp.asarray(G((8, 4), 0.1), jnp.float32)[None]
    rotation = jnp.asarray(G((4, 16), 3.1), jnp.float32)
    mask = jnp.arange(8)[None] >= 2
    bits = eta.code(Q, rotation)[0, 0] > 0
    assert "".join(str(int(b)) for b in bits) == "1000000001111111"
    index, valid = eta.hamming_nearest(Q, e, mask, rotation, 3)
    assert index[0].tolist() == [[5, 4, 6], [5, 4, 6]]  # of equals the latest: 6, not 2
    out = attention(W, e, index, valid)
    close(out[0, 0], [0.142239, 0.364913, 0.286503, 0.002449])
    close(out[0, 1], [0.247639, 0.474697, 0.146628, -0.159141])
    oldest = jnp.where(index == 6, 2, index)  # as public implementations choose
    close(attention(W, e, oldest, valid)[0, 0], [0.130772, 0.325784, 0.254274, 0.005438])
    scaled = eta.hamming_nearest(10 * Q, 3 * e, mask, rotation, 3)[0]
    assert (scaled == index).all()  # an angle
    grad = jax.grad(lambda x: attention(W, x, *eta.hamming_nearest(Q, x, mask, rotation, 3))[0, 0].sum())(e)  # fmt: skip
    assert jnp.flatnonzero(jnp.abs(grad[0]).sum(-1)).tolist() == [4, 5, 6]


def twin_golden(select, keep=3):
    e = jnp.asarray(G((6, 4), 0.1), jnp.float32)[None]
    kc = jnp.asarray(G((6, 4), 1.2, 0.8), jnp.float32).reshape(1, 6, 2, 2)
    wc = G((2, 2, 2), 1.3, 0.7)
    params = W | {
        "value": {"kernel": G((8, 4), 0.7, 0.5)},
        "beta": G((2, 2), 1.4),
        "cross_0": wc[:, 0],
        "cross_1": wc[:, 1],
    }
    net = twin.TwinAttention(4, 2, keep, select)
    cross = [kc[:, :, 0], kc[:, :, 1]]
    mask = jnp.array([[0, 0, 1, 1, 1, 1]], bool)
    scores = net.apply({"params": f32(params)}, Q, e, cross, method="scores")
    return scores, mask, net.apply({"params": f32(params)}, Q, e, cross, mask)[0]


def test_golden_twin():
    scores, mask, out = twin_golden("round_robin")
    close(scores[0, 0, 0, 2:], [-1.583717, -0.168578, 1.504388, 0.449784])
    assert twin.round_robin(scores, mask, 3)[0][0].tolist() == [[4, 5, 3], [4, 2, 5]]
    close(out[0, 0], [-0.027940, 0.007556, 0.083890, 0.032107])
    close(out[0, 1], [-0.048646, -0.157035, -0.180675, -0.044087])
    close(twin_golden("per_head")[2][0, 0], [-0.071913, -0.118015, -0.041899, 0.008534])
    full = [-0.069372, -0.099295, 0.002615, 0.037249]
    for select in twin.SELECTS:  # k of all events: full attention
        close(twin_golden(select, 6)[2][0, 0], full)


# ---- properties ---------------------------------------------------------------------------------------------


def test_round_robin_is_the_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.normal(size=(3, 12)).astype(np.float32)
        mask = rng.random(12) < 0.6
        index, valid = twin.round_robin(jnp.asarray(scores)[None, None], mask[None], 5)
        lists = [[j for j in np.argsort(-s, kind="stable") if mask[j]] for s in scores]
        want = list(dict.fromkeys(x for turn in zip(*lists, strict=True) for x in turn))[:5]
        assert index[0, 0][valid[0, 0]].tolist() == want


def test_a_padded_event_is_never_found():
    scores = jnp.array([[[5.0, -3.0, -4.0]]])  # padding has the best score
    index, valid = search.nearest(scores, jnp.array([[[False, True, True]]]), 9)
    assert index[0, 0].tolist()[:2] == [1, 2] and valid[0, 0].tolist() == [True, True, False]


def test_buckets_of_ages():
    hours = np.array([0, 0.9, 1, 3, 7, 500_000])
    mask = np.ones((1, 6), bool)
    ages = (hours * 3600).astype(np.int32)[None]
    assert search.age_bucket(ages, mask)[0].tolist() == [1, 1, 2, 3, 4, 19]
    assert not search.age_bucket(ages, ~mask).any()


SMALL = dict(width=8, head=(16,), dense_norm="identity", table=dict(dim=8))
KINDS = {
    "soft": dict(name="sim", **SMALL),
    "hard": dict(name="sim", search="hard", category="category", **SMALL),
    "eta": dict(name="eta", **SMALL),
    "twin": dict(name="twin", **SMALL),
}
BATCH = world(b=4, c=3, n=6)


@functools.cache
def model(kind, **options):
    return make(models.build(SCHEMA, KINDS[kind] | options), BATCH)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_padded_has_no_influence(kind):
    m = model(kind)
    want = m.logits(BATCH)
    close(m.logits(BATCH.padded(2)), want)
    noise = {f.name: np.where(BATCH.mask, BATCH.raw[f.name], 3) for f in SCHEMA.select("history")}
    close(m.logits(BATCH.replace(**noise)), want)
    (loss, _, _), grads = m.loss_and_grads(world(b=4, c=3, n=6, lengths=0))
    assert finite((loss, grads))


def test_the_soft_search_learns_from_its_own_loss_alone():
    m = model("soft")
    batch = BATCH.batch()

    def logits(dense):
        return m.system.outputs(m.replace(dense=dense).params(batch), batch)

    for output, moved in (("logits", False), ("gsu", True)):
        grads = jit(jax.grad(lambda d, o=output: logits(d)[o].sum()))(m.dense)
        assert bool(np.abs(grads["gsu"]["event"]).sum() > 0) is moved
    first = sim.SoftSearch(3).init(jax.random.key(0), Q, Q)["params"]
    close(first["event"], first["candidate"])  # begins as a similarity


def test_eta_finds_the_same_after_a_restart():
    close(model("eta").logits(BATCH), make(models.build(SCHEMA, KINDS["eta"]), BATCH).logits(BATCH), 0)  # fmt: skip
    assert far(model("eta", hash_seed=1, keep=2).logits(BATCH), model("eta", keep=2).logits(BATCH))


def test_names():
    with raises(SchemaError, "'brand'", "item, category"):
        models.build(SCHEMA, dict(name="sim", search="hard", category="brand"))
    with pytest.raises(ValueError, match="search='fuzzy'"):
        models.build(SCHEMA, dict(name="sim", search="fuzzy"))


# ---- a planted history --------------------------------------------------------------------------------------


def planted():
    """Long histories; a click when most old events of the candidate's category happened at hours below 13."""
    rng = np.random.default_rng(0)
    w = world(b=3072, c=1, n=24, lengths=24)
    category = rng.integers(1, 5, w.mask.shape).astype(np.int32)  # four of them
    bit = rng.integers(0, 2, w.mask.shape)
    asked = rng.integers(1, 5, (len(category), 1)).astype(np.int32)
    old = (category == asked) & (np.arange(24) < 20)
    share = (bit * old).sum(1) / np.maximum(old.sum(1), 1)
    click = (share + 1e-3 * rng.normal(size=len(share)) > 0.5).astype(np.float32)
    one = np.ones_like
    return w.replace(
        past_item=one(category), item=one(asked), category=asked, past_category=category,
        past_hour=(1 + 13 * bit).astype(np.int32), click=click[:, None],
    )  # fmt: skip


def heldout(kind, events):
    """AUC on requests that training never drew, with the latest `events` of each history."""
    w = planted()
    w = w.replace(mask=w.mask & (np.arange(24) >= 24 - events))
    system = models.build(SCHEMA, KINDS[kind] | dict(keep=8, recent=4))
    m = train(system, w.select(slice(2560)), steps=400, lr=5e-3)
    test = w.select(slice(2560, None))
    return auc(m.logits(test).ravel(), test.raw["click"].ravel())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_search_reaches_the_old_events_that_tell(kind):
    """`pytest -m slow tests/models/test_search.py`; the control sees only the latest events, that say nothing."""
    assert heldout(kind, 24) > 0.65
    assert 0.4 < heldout(kind, 4) < 0.58
