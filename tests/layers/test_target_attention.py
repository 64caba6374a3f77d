import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.layers.target_attention import ActivationUnit, MultiHeadTargetAttention


def run(softmax, query, events, mask):
    unit = ActivationUnit((3,), "sigmoid", softmax)
    variables = unit.init(jax.random.key(0), query, events, mask, train=False)
    return variables["params"], unit.apply(variables, query, events, mask, train=False)


@pytest.mark.parametrize("softmax", [False, True])
def test_equals_the_sum_over_events_one_by_one(softmax):
    rng = np.random.default_rng(0)
    query, events = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 5, 4))
    mask = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]], bool)
    params, out = run(softmax, query.astype(np.float32), events.astype(np.float32), mask)
    hidden, score = params["MLP_0"]["dense_0"], params["score"]
    for b in range(2):
        for c in range(3):
            e, q = events[b][mask[b]], query[b, c]
            x = np.concatenate([e, np.broadcast_to(q, e.shape), e - q, e * q], -1)
            h = 1 / (1 + np.exp(-(x @ hidden["kernel"] + hidden["bias"])))
            w = (h @ score["kernel"] + score["bias"])[:, 0]
            if softmax:
                w = np.exp(w) / np.exp(w).sum()
            np.testing.assert_allclose(out[b, c], w @ e, atol=1e-5)


@pytest.mark.parametrize("softmax", [False, True])
def test_an_empty_history_gives_zeros(softmax):
    ones = jnp.ones((1, 2, 4))
    _, out = run(softmax, ones, ones, np.zeros((1, 2), bool))
    assert not out.any()


def test_a_request_without_events_has_the_learnt_vector_and_no_other():
    rng = np.random.default_rng(0)
    query, events = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4), (2, 5, 4)))
    mask = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 1]], bool)
    attention = MultiHeadTargetAttention(4, 2)
    variables = attention.init(jax.random.key(0), query, events, mask)
    empty = variables["params"]["empty"]
    out = attention.apply(variables, query, events, mask)
    np.testing.assert_allclose(out[0], np.broadcast_to(empty, (3, 4)), rtol=1e-6)
    assert np.abs(out[1] - empty).min() > 1e-4
    alone = attention.apply(variables, query, None, None)
    np.testing.assert_allclose(alone, np.broadcast_to(empty, (2, 3, 4)), rtol=1e-6)
