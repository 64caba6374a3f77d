"""The Transformer block: what a token sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.layers.transformer import TransformerBlock
from tests.models.worlds import close, far, perturbed

X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)


def block(mask, x=X, **options):
    b = TransformerBlock(2, 16, **options)
    shapes = jax.eval_shape(lambda: b.init(jax.random.key(0), X, jnp.asarray(mask), train=False))
    return b.apply(perturbed(shapes, 1), jnp.asarray(x), jnp.asarray(mask), train=False)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_a_token_sees_what_its_mask_says(pre_norm):
    causal = np.broadcast_to(np.tri(5, dtype=bool), (2, 5, 5))
    changed = X.copy()
    changed[:, 3, 0] += 1.0
    (a, _), (b, _) = (block(causal, x, pre_norm=pre_norm) for x in (X, changed))
    close(a[:, :3], b[:, :3], 1e-6)
    assert far(a[:, 3], b[:, 3]) and far(a[:, 4], b[:, 4])
    (a, _), (b, _) = (block(np.ones_like(causal), x, pre_norm=pre_norm) for x in (X, changed))
    assert far(a[:, 0], b[:, 0]), "control: without the mask the first token sees it"


def test_the_probe_is_the_last_tokens_attention():
    causal = np.broadcast_to(np.tri(5, dtype=bool), (2, 5, 5))
    changed = X.copy()
    changed[:, 4, 0] += 1.0
    (_, a), (_, b) = (block(causal, x) for x in (X, changed))
    assert far(a.logits, b.logits)
    close(a.strength[:, :4], b.strength[:, :4], 1e-6)
    other = X.copy()
    other[:, 1, 0] += 1.0
    _, c = block(causal, other)
    close(c.logits[:, [0, 2, 3, 4]], a.logits[:, [0, 2, 3, 4]], 1e-6)
    assert far(c.logits[:, 1], a.logits[:, 1])


def by_hand(p, x, pre_norm):
    """One example [T, 8] of causal tokens through two heads, in NumPy."""

    def norm(p, x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p[
            "scale"
        ] + p["bias"]

    y = norm(p["norm_0"], x) if pre_norm else x
    q, k, v = (y @ p[n]["kernel"] for n in ("query", "key", "value"))
    heads, logits = [], []
    for h in (slice(0, 4), slice(4, 8)):
        z = q[:, h] @ k[:, h].T / 2.0
        logits.append(z[-1])
        w = np.where(np.tri(len(x), dtype=bool), np.exp(z), 0)
        heads.append(w / w.sum(1, keepdims=True) @ v[:, h])
    x = x + np.concatenate(heads, 1) @ p["out"]["kernel"] + p["out"]["bias"]
    x = x if pre_norm else norm(p["norm_0"], x)
    y = norm(p["norm_1"], x) if pre_norm else x
    y = np.maximum(y @ p["ffn_0"]["kernel"] + p["ffn_0"]["bias"], 0)
    x = x + y @ p["ffn_1"]["kernel"] + p["ffn_1"]["bias"]
    return x if pre_norm else norm(p["norm_1"], x), np.mean(logits, 0)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_a_block_by_hand(pre_norm):
    b = TransformerBlock(2, 16, pre_norm=pre_norm)
    causal = jnp.asarray(np.broadcast_to(np.tri(5, dtype=bool), (2, 5, 5)))
    shapes = jax.eval_shape(lambda: b.init(jax.random.key(0), X, causal, train=False))
    params = perturbed(shapes, 1)
    out, probe = b.apply(params, jnp.asarray(X), causal, train=False)
    for i in range(2):
        want, logits = by_hand(params["params"], X[i].astype(np.float64), pre_norm)
        np.testing.assert_allclose(out[i], want, atol=1e-4)
        np.testing.assert_allclose(probe.logits[i], logits, atol=1e-4)


def test_dropout_is_off_in_evaluation_and_on_in_training():
    mask = jnp.ones((2, 5, 5), bool)
    plain, dropping = TransformerBlock(2, 16), TransformerBlock(2, 16, dropout=0.5)
    shapes = jax.eval_shape(lambda: plain.init(jax.random.key(0), X, mask, train=False))
    params = perturbed(shapes, 1)
    whole = plain.apply(params, jnp.asarray(X), mask, train=False)[0]
    close(dropping.apply(params, jnp.asarray(X), mask, train=False)[0], whole, 1e-6)
    some = [
        dropping.apply(
            params, jnp.asarray(X), mask, train=True, rngs={"dropout": jax.random.key(i)}
        )[0]
        for i in range(2)
    ]
    assert far(some[0], whole) and far(some[0], some[1])
