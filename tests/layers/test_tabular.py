"""Fields of a row, and the candidates they are repeated for."""

import jax
import numpy as np

from recjax.inputs import Inputs
from recjax.layers.tabular import FieldVectors
from tests.models.worlds import SCHEMA


def inputs(b=3, c=2, n=4, d=5, seed=0):
    r = np.random.default_rng(seed)
    shapes = {"B": (b,), "BC": (b, c), "BL": (b, n)}
    known = [f for f in SCHEMA.features if f.role != "label"]
    mask = np.arange(n) >= r.integers(0, n + 1, (b, 1))
    mask[0] = False
    return Inputs(
        emb={
            f.name: r.normal(size=(*shapes[f.axes], d)).astype(np.float32)
            for f in known
            if f.kind == "id"
        },
        dense={
            f.name: r.normal(size=shapes[f.axes]).astype(np.float32)
            for f in known
            if f.kind == "dense"
        },
        mask={"views": mask},
        age={"views": np.zeros((b, n), np.int32)},
        schema=SCHEMA,
    )


def test_one_row_is_one_field():
    x = inputs()
    module = FieldVectors(SCHEMA, 5, "identity")
    params = jax.jit(lambda x: module.init(jax.random.key(0), x, train=False))(x)
    out = np.asarray(module.apply(params, x, train=False)).reshape(3, 2, -1, 5)
    ids = ["user", "age_group", "hour", "item", "category"]
    for i, name in enumerate(ids):
        want = x.emb[name] if x.emb[name].ndim == 3 else x.emb[name][:, None]
        np.testing.assert_allclose(out[:, :, i], np.broadcast_to(want, (3, 2, 5)), atol=1e-6)
    for i, name in enumerate(["past_item", "past_category", "past_hour"], len(ids)):
        mask = x.mask["views"][..., None]
        mean = (x.emb[name] * mask).sum(1) / np.maximum(mask.sum(1), 1)
        np.testing.assert_allclose(out[:, 0, i], mean, atol=1e-5)
    v, c = (np.asarray(params["params"][k]) for k in ("v", "c"))
    for i, name in enumerate(["income", "count", "recency"]):
        number = x.dense[name] if x.dense[name].ndim == 2 else x.dense[name][:, None]
        want = np.broadcast_to(number, (3, 2))[..., None] * v[i] + c[i]
        np.testing.assert_allclose(out[:, :, 8 + i], want, atol=1e-5)
    assert out.shape[2] == 11


def test_numbers_are_normalised_over_valid_slots_alone():
    valid = np.array([[1, 1], [1, 0], [0, 0]], bool)
    module = FieldVectors(SCHEMA, 5)
    x = inputs().replace(valid=valid)
    variables = module.init(jax.random.key(0), x, train=False)
    params = dict(variables["params"], v=np.ones((3, 5)), c=np.zeros((3, 5)))
    out, _ = module.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
    numbers = np.asarray(out).reshape(3, 2, -1, 5)[:, :, 8:, 0]
    np.testing.assert_allclose(numbers[valid].mean(0), 0, atol=1e-5)
    assert np.abs(numbers.reshape(6, 3).mean(0)).max() > 1e-3, "control: all slots together"
