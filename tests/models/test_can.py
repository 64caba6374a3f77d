"""CAN: golden numbers of its co-action, exact properties, and planted pairs that an MLP on sums does not find."""

import jax.numpy as jnp
import numpy as np
import pytest

from recjax import models
from recjax.models.can import co_action, row_width
from tests.models.golden import waves as G
from tests.models.worlds import SCHEMA, auc, close, far, make, train, world

WEIGHTS = jnp.asarray(G((2, 9), 0.2), jnp.float32)[:, None]  # one candidate of each request
FEED = jnp.asarray(G((2, 3, 2), 0.6), jnp.float32)
MASK = jnp.array([[1, 1, 1], [1, 1, 0]], bool)


def tiny(weights=WEIGHTS, feed=FEED, mask=MASK, orders=2):
    return co_action(weights, feed, mask, (2, 2, 1), orders, bias=True)[:, 0]


def test_golden():
    """The authors' function on `golden.waves`; dims 2-2-1 with biases, two orders: h1, h1, h2 of each."""
    out = tiny()
    close(out[0], [2.801006, 2.924094, -0.724692, 2.699555, 2.904766, -0.767824])
    close(out[1], [-0.032161, -0.298949, 0.027353, -1.881762, -1.699507, -0.871641])
    close(tiny(feed=FEED**2, orders=1), out[:, 3:])  # an order is the power's first


def test_golden_of_the_released_size():
    weights = jnp.asarray(G((2, 160), 0.3, 0.3), jnp.float32)[:, None]
    feed = jnp.asarray(G((2, 4, 16), 0.5, 0.5), jnp.float32)
    mask = jnp.array([[1, 1, 1, 1], [1, 0, 1, 0]], bool)
    out = co_action(weights, feed, mask, (16, 8, 4))[:, 0]
    assert out.shape == (2, 36) and row_width((16, 8, 4), False) == 160
    close(out[0, :4], [0.151740, 0.242491, 0.285360, 0.205074])
    close(out[1, -4:], [0.009511, 0.010464, 0.010886, 0.022138])
    odd = co_action(weights, -feed, mask, (16, 8, 4))[:, 0]
    close(odd[:, :12], -out[:, :12])
    close(odd[:, 12:24], out[:, 12:24])


def test_exact_properties():
    close(tiny(0 * WEIGHTS), np.zeros((2, 6)))
    close(tiny(feed=FEED[:, ::-1], mask=MASK[:, ::-1]), tiny())
    close(tiny(feed=FEED.at[1, 2].add(5.0)), tiny())  # masked, with biases too
    assert far(tiny(feed=FEED.at[1, 1].add(5.0)), tiny())
    dot = co_action(WEIGHTS[..., :2], FEED[:, :1], MASK[:, :1], (2, 1), 1)[:, 0, 0]
    close(dot, (WEIGHTS[:, 0, :2] * FEED[:, 0]).sum(-1))  # one layer, one event: an FM's product


def test_its_tables_are_apart():
    system = models.build(SCHEMA, dict(name="can", table=dict(dim=8, lr=0.1)))
    assert {t.owner: t.dim for t in system.tables} == {"": 8, "can_induce": 160, "can_feed": 16}
    assert {t.lr for t in system.tables} == {0.1}
    w = world()
    m = make(models.build(SCHEMA, dict(name="can", micro=(4, 2), head=(8,))), w)
    _, rows = m.loss_and_grads(w)[1]
    batch = w.batch()
    met = np.isin(batch["ids"]["item"][0], w.raw["item"])
    touched = np.abs(np.asarray(rows["can_induce/item"][0])).sum(-1) > 0
    assert touched.any() and not touched[~met].any()  # rows of candidates alone
    with pytest.raises(ValueError, match="micro"):
        models.build(SCHEMA, dict(name="can", micro=(16,)))


@pytest.mark.slow
def test_pairs_are_found():
    """Each (candidate, event) pair has a weight of its own: no sum of what each says alone tells the click."""
    rng = np.random.default_rng(0)
    w = world(b=5120, c=1, n=2, lengths=1)
    weight = rng.normal(size=(12, 12))
    past, asked = w.raw["past_category"], w.raw["category"]
    click = (weight[asked, past[:, -1:]] > 0).astype(np.float32)
    one = np.ones_like
    w = w.replace(past_item=one(past), item=one(asked), click=click)
    options = dict(micro=(8, 4), orders=2, head=(), dense_norm="identity")

    def heldout(pairs):
        m = train(models.build(SCHEMA, dict(name="can", pairs=pairs, **options)), w.select(slice(4096)), steps=300)  # fmt: skip
        test = w.select(slice(4096, None))
        return auc(m.logits(test).ravel(), test.raw["click"].ravel())

    with_pairs, without = heldout(2), heldout(0)
    assert with_pairs > 0.85 and with_pairs > without + 0.1, (with_pairs, without)
