"""Gradient accumulation where parts of a batch are unlike each other."""

import jax
import numpy as np
import pytest

from recjax import models
from recjax.training.step import gradients
from tests.models.worlds import SCHEMA, jit, key, make, world

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
