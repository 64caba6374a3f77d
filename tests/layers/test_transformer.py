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
