"""LightSUAN: masks, the sparse kernel, SUAN's weights in it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import models
from recjax.layers.attention import Pairs
from recjax.models.lightsuan import LocalDilated
from recjax.models.parts.suan_block import FullPattern
from tests.messages import raises
from tests.models.worlds import SCHEMA, close, far, finite, jit, make, world

FIGURE = """
1.....
11....
.11...
1.11..
.1.11.
1.1.11
"""
FIGURE_3 = FIGURE.rstrip("\n").replace("\n", "..\n")[2:] + "..\n1.1.1.1.\n1.1.1..1\n"


def matrix(figure):
    return np.array([[x == "1" for x in row] for row in figure.split()])


def test_masks_of_the_figure():
    pattern = LocalDilated(2, 2)
    np.testing.assert_array_equal(pattern.mask(5, 1), matrix(FIGURE))
    np.testing.assert_array_equal(pattern.mask(5, 3), matrix(FIGURE_3))


@pytest.mark.parametrize("k, r", [(1, 1), (2, 3), (5, 4), (9, 2)])
def test_keys_per_row(k, r):
    i = np.arange(30)
    want = np.minimum(i + 1, k) + np.maximum(i - k + 1, 0) // r
    np.testing.assert_array_equal(LocalDilated(k, r).mask(29, 1).sum(1), want)


def test_a_wide_window_or_no_gaps_is_full_attention():
    full = np.tril(np.ones((12, 12), bool))
    for k, r in ((12, 5), (40, 3), (1, 1), (3, 1)):
        np.testing.assert_array_equal(LocalDilated(k, r).mask(11, 1), full)
    assert not LocalDilated(3, 2).mask(11, 1).all(where=full)


def test_pairs_of_the_paper_file():
    assert LocalDilated(50, 10).pairs(1000) == 93_665
    assert FullPattern().layouts(1001)[0].allowed.sum() == 501_501


def test_another_anchor_moves_the_dilated_keys():
    row = LocalDilated(3, 4, anchor=1).allowed(np.arange(14))
    np.testing.assert_array_equal(np.flatnonzero(row), [0, 1, 2, 5, 9, 13])
    row = LocalDilated(3, 4).allowed(np.arange(14))
    np.testing.assert_array_equal(np.flatnonzero(row), [0, 1, 2, 6, 10])
    with raises(ValueError, "local", "dilation", "anchor"):
        LocalDilated(0, 4)


def attention(pattern, valid, q, k, v, bias):
    """Output and gradients of sum(sin(out)), bias [B or 1, H or 1, n, n]."""

    def pairs(bias):
        for keys, allowed in pattern.layouts(q.shape[2]):
            mask = ((valid[:, None] if keys is None else valid[:, keys]) & allowed)[:, None]
            own = bias if keys is None else jnp.take_along_axis(bias, keys[None, None], -1)
            yield Pairs(mask, own)

    def value(q, k, v, bias):
        out = pattern.attend(q, k, v, tuple(pairs(bias)))
        return jnp.sin(out).sum(), out

    return jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v, bias)


@pytest.mark.parametrize(
    "n, k, r, anchor, batch, heads",
    [
        (11, 2, 2, None, 3, 1),
        (13, 3, 4, None, 1, 2),
        (16, 5, 3, 1, 3, 1),
        (9, 8, 3, 0, 3, 2),
        (7, 1, 1, None, 3, 1),
    ],
)
def test_sparse_equals_masked_dense(n, k, r, anchor, batch, heads):
    """Values and gradients (the biases' too), with padding up to a whole history."""
    rng = np.random.default_rng(0)
    q, key, v = (rng.normal(size=(3, 2, n, 4)).astype(np.float32) for _ in range(3))
    bias = rng.normal(size=(batch, heads, n, n)).astype(np.float32)
    valid = np.arange(n) >= np.array([0, 3, n])[:, None]
    runs = [attention(LocalDilated(k, r, anchor, s), valid, q, key, v, bias) for s in (True, False)]
    assert len(LocalDilated(k, r, anchor, True).layouts(n)) == 2  # it did take the sparse path
    close(*runs)
    assert finite(runs[0]) and not np.asarray(runs[0][0][1][2]).any()  # no key: zeros
    other = attention(LocalDilated(k, r + 1, anchor, True), valid, q, key, v, bias)
    assert far(other, runs[1])  # the control


W = world(b=4, c=3, n=9)
SMALL = dict(blocks=1, head=(8,), head_activation="silu", head_norm="none")


@functools.cache
def build(name="lightsuan", **options):
    return models.build(SCHEMA, {"name": name, **SMALL, **options})


def test_the_model_is_the_same_with_the_sparse_kernel():
    m = make(build(local=2, dilation=3), W)
    dense = m.replace(system=build(local=2, dilation=3, sparse=False))
    (loss, _, _), grads = m.loss_and_grads(W)
    (other, _, _), other_grads = dense.loss_and_grads(W)
    close((loss, grads, m.logits(W)), (other, other_grads, dense.logits(W)))


def test_suan_s_weights_in_lightsuan():
    """Sparsity is a mask, not parameters: a window over everything, or r = 1, is SUAN."""
    m = make(build("suan", gate_pool="causal"), W)
    want = m.logits(W)
    for same in (dict(local=9), dict(local=3, dilation=1)):
        close(m.replace(system=build(**same)).logits(W), want)
    assert far(m.replace(system=build(local=2, dilation=4)).logits(W), want)


def test_candidates_see_the_pattern_s_keys_at_position_n():
    pattern, w = LocalDilated(2, 3), world(b=4, c=3, n=9, lengths=9)
    np.testing.assert_array_equal(pattern.keys(9), [2, 5, 8])  # 9 - 1, then 9 - 1 - 3 m
    # One block without a gate: behaviours reach a candidate as its keys alone.
    m = make(build(local=2, dilation=3, alignment=False), w)
    before = m.logits(w)
    for j in range(9):
        items = w.raw["past_item"].copy()
        items[:, j] = items[:, j] % 50 + 3
        assert far(m.logits(w.replace(past_item=items)), before, 1e-6) == (j in (2, 5, 8))


def test_parallel_equals_one_by_one_and_cached():
    m = make(build(local=2, dilation=3, blocks=2), W)
    want = m.logits(W)
    for c in range(3):
        close(m.logits(W.of_candidates([c])), want[:, [c]])
    batch = W.batch()

    def call(name, batch):
        return jit(lambda b: m.system.exports[name].fn(m.params(b), b))(batch)

    cache = call("prefix", batch)
    assert cache["block_0/key"].shape[2] == 3  # only what a candidate sees
    close(call("candidates", {**batch, "cache": cache})["logits"], want)


def test_unknown_options_list_both_models():
    with raises(ValueError, "'lightsuan'", "'window'", "blocks", "dilation", "local"):
        build(window=3)
