import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.layers import attention
from recjax.layers.attention import PairBias, attend, lookup, masked_softmax, time_buckets

# The paper file's reference values.
BUCKETS = {
    0: 0, 1: 0, 2: 2, 10: 7, 23: 10, 60: 13, 3600: 27, 86400: 37, 604800: 44, 2592000: 49, 31536000: 57,
    2**31 - 1: 71,
}  # fmt: skip


def test_time_buckets_match_the_reference_values_and_are_symmetric():
    gaps = np.array(list(BUCKETS), np.int32)
    np.testing.assert_array_equal(time_buckets(gaps), list(BUCKETS.values()))
    np.testing.assert_array_equal(time_buckets(-gaps), list(BUCKETS.values()))
    assert 1 not in time_buckets(np.arange(100, dtype=np.int32))
    assert attention.REACHABLE_BUCKETS == 72


def test_time_buckets_saturate():
    assert time_buckets(np.int32(2**31 - 1), num_buckets=50) == 50
    with jax.enable_x64(True):
        assert time_buckets(np.int64(9.2e18)) == 128


def test_differences_of_unix_seconds_are_taken_in_integers():
    a, b = jnp.int32(1_700_000_000), jnp.int32(1_700_000_003)
    assert time_buckets(a - b) == 3
    assert jnp.float32(a) - jnp.float32(b) != -3  # the control: float32 cannot hold them
    with pytest.raises(TypeError, match="integer"):
        time_buckets(a.astype(jnp.float32) - b)


def position_bias(table, n):
    """[n, n] of a model whose longest sequence is n."""
    distance = np.arange(n)[:, None] - np.arange(n)
    module = PairBias(time=False)
    return module.apply(
        {"params": {"position": table}}, distance, jnp.zeros((1, n, n), jnp.int32), n
    )[0, 0]


def test_position_bias_is_w_of_j_minus_i():
    n = 6
    w = jax.random.normal(jax.random.key(0), (1, 2 * n - 1))
    bias = position_bias(w, n)
    for i in range(n):
        for j in range(n):
            assert bias[i, j] == w[0, j - i + n - 1]
    for k in range(-n + 1, n):
        assert len(set(np.diagonal(bias, k).tolist())) == 1
    future = position_bias(w.at[:, n:].add(5.0), n)  # entries with j > i
    np.testing.assert_array_equal(np.tril(future), np.tril(bias))
    assert (np.triu(future, 1) != np.triu(bias, 1)).any()


def test_time_bias_adds_the_bucket_s_entry_per_head():
    seconds = jnp.array([[[0, 60], [3600, -60]]])
    module = PairBias(heads=2)
    params = module.init(jax.random.key(0), np.zeros((2, 2), int), seconds, 2)["params"]
    assert params["position"].shape == (2, 3) and params["time"].shape == (2, 129)
    bias = module.apply({"params": params}, np.zeros((2, 2), int), seconds, 2)
    buckets = np.array([[0, 13], [27, 13]])
    want = params["position"][:, 1][:, None, None] + params["time"][:, buckets]
    np.testing.assert_allclose(bias[0], want, atol=1e-6)


def test_lookup_gradient_is_the_histogram_on_every_platform():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(2, 7)).astype(np.float32)
    index = rng.integers(0, 7, (3, 4, 5))
    g = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    out, vjp = jax.vjp(lambda t: lookup(t, index), table)
    np.testing.assert_array_equal(out, table[:, index])
    want = np.zeros((2, 7))
    np.add.at(want, (slice(None), index.ravel()), g.reshape(2, -1))
    np.testing.assert_allclose(vjp(g)[0], want, atol=1e-5)
    for histogram in (attention.histogram_scatter, attention.histogram_compare):
        np.testing.assert_allclose(histogram(index.ravel(), g.reshape(2, -1), 7), want, atol=1e-5)


def test_masked_softmax_equals_softmax_over_what_is_allowed():
    logits = jax.random.normal(jax.random.key(0), (3, 5)) * 4
    mask = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]], bool)
    out = masked_softmax(logits, mask)
    for row, allowed, got in zip(logits, mask, out, strict=True):
        np.testing.assert_allclose(got[allowed], jax.nn.softmax(row[allowed]), atol=1e-6)
        assert not got[~allowed].any()


def test_fully_masked_rows_give_zeros_and_finite_gradients():
    logits = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    mask = np.array([[False, False], [True, False]])
    value, grad = jax.value_and_grad(
        lambda x: (masked_softmax(x, mask) * jnp.array([1.0, 3.0])).sum()
    )(logits)
    assert value == 1.0 and np.isfinite(grad).all() and not grad[0].any()


def test_softmax_gradient_of_a_single_key_is_zero():
    """A maximum(total, 1) guard would halve it: the tie at total == 1."""
    grad = jax.grad(lambda x: masked_softmax(x, np.array([[True, False]]))[0, 0])(
        jnp.array([[1.0, 2.0]])
    )
    np.testing.assert_allclose(grad, 0.0, atol=1e-7)


def test_attend_matches_numpy_and_is_causal_under_a_causal_mask():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 3, 5, 4)).astype(np.float32) for _ in range(3))
    bias = rng.normal(size=(1, 1, 5, 5)).astype(np.float32)
    mask = np.tril(np.ones((5, 5), bool))
    logits = np.where(mask, q @ k.swapaxes(-1, -2) / 2 + bias, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    want = weights / weights.sum(-1, keepdims=True) @ v
    out = attend(q, k, v, mask, bias)
    np.testing.assert_allclose(out, want, atol=1e-5)
    k[:, :, 3], v[:, :, 3] = 9.0, 9.0
    after = attend(q, k, v, mask, bias)
    np.testing.assert_array_equal(after[:, :, :3], out[:, :, :3])
    assert (after[:, :, 3:] != out[:, :, 3:]).any()


def test_bfloat16_attention_keeps_a_float32_softmax():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 1, 64, 8)) for i in range(3))
    mask = np.ones((64, 64), bool)
    low = attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)), mask)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), attend(q, k, v, mask), atol=0.03)
