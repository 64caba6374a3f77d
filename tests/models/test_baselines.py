"""DIN and logistic regression."""

import functools

import numpy as np
import pytest

from recjax import models
from recjax.schema import SchemaError
from tests.messages import raises
from tests.models.worlds import SCHEMA, close, far, finite, make, world

W = world(b=4, c=3, n=6)


@functools.cache
def model(**options):
    return make(models.build(SCHEMA, options), W)


def test_logistic_is_a_sum_of_weights():
    m = model(name="logistic", dense_norm="identity")
    weight = {k: np.asarray(v["rows"])[:, 0] for k, v in m.tables.items()}
    p, raw = m.dense, W.raw
    numbers = np.stack(
        [np.repeat(raw["income"][:, None], 3, 1), np.log1p(raw["count"]), raw["recency"]], axis=-1
    )
    fields = [
        np.repeat(weight[s][raw[f]][:, None], 3, 1)
        for f, s in (("user", "user"), ("age_group", "age_group"), ("hour", "hour"))
    ]
    fields += [weight[f][raw[f]] for f in ("item", "category")]
    for f in ("item", "category", "hour"):
        events = (weight[f][raw[f"past_{f}"]] * W.mask).sum(1) / W.mask.sum(1)
        fields.append(np.repeat(events[:, None], 3, 1))
    want = numbers @ p["logits_numbers"] + np.stack(fields, -1) @ p["logits_ids"] + p["logits_bias"]
    close(m.logits(W), want)


def test_logistic_without_numbers_has_no_slopes():
    """A parameter of size zero cannot be saved."""
    schema = SCHEMA.without(["income", "count", "recency"])
    m = make(models.build(schema, dict(name="logistic")), world(b=4, c=3, n=6, schema=schema))
    assert set(m.dense) == {"logits_ids", "logits_bias"}


def test_logistic_tables_have_one_column():
    assert {
        t.dim for t in models.build(SCHEMA, dict(name="logistic", table=dict(dim=16))).tables
    } == {1}
    with raises(ValueError, "'blocks'", "compute_dtype", "dense_norm"):
        models.build(SCHEMA, dict(name="logistic", blocks=2))


@pytest.mark.parametrize("softmax", [False, True])
def test_din_ignores_order_times_and_padding(softmax):
    m = model(name="din", softmax=softmax, head=(8,), attention=(4,))
    want = m.logits(W)
    close(m.logits(W.padded(2)), want)
    close(m.logits(W.replace(age=W.age * 0)), want)
    order = {f.name: W.raw[f.name][:, ::-1] for f in SCHEMA.select("history")}
    close(m.logits(W.replace(**order, mask=W.mask[:, ::-1])), want)
    assert far(m.logits(W.replace(past_item=W.raw["past_item"][:, ::-1])), want)


def test_din_interest_depends_on_the_candidate():
    """What the history adds to a linear head differs between candidates."""
    m = model(name="din", head=(), attention=(4,))
    empty = W.replace(mask=np.zeros_like(W.mask))
    with_history = m.logits(W) - m.logits(empty)  # a linear head: what the history adds
    assert np.ptp(with_history, axis=1).min() > 1e-4


@pytest.mark.parametrize(
    "options",
    [dict(head_norm="batch", attention_activation="dice"), dict(head_activation="prelu")],
    ids=str,
)
def test_din_options_train(options):
    m = model(name="din", head=(8,), attention=(4,), **options)
    (loss, state, _), grads = m.loss_and_grads(W)
    assert np.isfinite(loss) and finite((state, grads))


def test_din_bfloat16():
    m = model(name="din", head=(8,), attention=(4,))
    low = m.replace(
        system=models.build(
            SCHEMA, dict(name="din", head=(8,), attention=(4,), compute_dtype="bfloat16")
        )
    )
    np.testing.assert_allclose(low.logits(W), m.logits(W), atol=0.1)


def test_din_names_what_it_lacks():
    with raises(SchemaError, "'views'"):
        models.build(SCHEMA.without(["item", "category"]), dict(name="din"))
    with pytest.raises(ValueError, match="head_activation='swish'"):
        models.build(SCHEMA, dict(name="din", head_activation="swish"))


def test_registry_names_models_and_takes_dotted_paths():
    with raises(ValueError, "model.name='dinn'", "din,", "suan"):
        models.build(SCHEMA, dict(name="dinn"))
    assert models.build(SCHEMA, dict(name="recjax.models.logistic")).tables
    with raises(SchemaError, "'item'", "click, like"):
        models.build(SCHEMA, dict(name="logistic", labels=["item"]))
    with raises(SchemaError, "model.table", "dim, owner, optimizer"):
        models.build(SCHEMA, dict(name="din", table=dict(rate=1)))
