import dataclasses

import jax
import numpy as np
import pytest

from recjax.inputs import embed
from recjax.layers import fields
from recjax.schema import Feature, Schema, SchemaError
from tests.messages import raises
from tests.models.worlds import SCHEMA, world

W = world(b=2, c=3, n=4)


def inputs_of(w, d=2, seed=0):
    """Inputs whose row of id i in every space is random but fixed."""
    rng = np.random.default_rng(seed)
    tables = {
        s.name: rng.normal(size=(s.rows + 99, d)).astype(np.float32) for s in w.schema.id_spaces
    }
    batch = w.batch()
    return embed(w.schema, {k: tables[k][ids] for k, ids in batch["ids"].items()}, batch)


def test_history_list_is_the_first_with_ids_or_the_named_one():
    assert fields.history_list(SCHEMA) == fields.history_list(SCHEMA, "views") == "views"
    with pytest.raises(SchemaError, match="views"):
        fields.history_list(SCHEMA, "buys")
    with raises(SchemaError, "history list"):
        fields.history_list(SCHEMA.without(["past_item", "past_category", "past_hour"]))


def test_candidates_meet_event_fields_of_their_own_id_space():
    names = [f and f.name for f in fields.matched_fields(SCHEMA, "views")]
    assert names == ["item", "category", None]
    twice = dataclasses.replace(
        SCHEMA, features=(*SCHEMA.features, Feature("past_item_2", "history", "item", list="views"))
    )
    assert fields.matched_fields(twice, "views")[-1] is None  # a candidate field is used once
    x = inputs_of(W)
    event = fields.candidate_as_event(SCHEMA, x, "views")
    np.testing.assert_array_equal(event[..., :2], x.emb["item"])
    np.testing.assert_array_equal(event[..., 2:4], x.emb["category"])
    assert not event[..., 4:].any()


def test_folding_gives_each_candidate_its_own_copy_of_the_request():
    x = inputs_of(W)
    folded = fields.fold_candidates(SCHEMA, x)
    assert folded.candidates == 1 and folded.mask["views"].shape == (6, 4)
    np.testing.assert_array_equal(folded.emb["item"].reshape(x.emb["item"].shape), x.emb["item"])
    for c in range(3):
        np.testing.assert_array_equal(folded.emb["past_item"][c::3], x.emb["past_item"])
        np.testing.assert_array_equal(folded.age["views"][c::3], x.age["views"])
        np.testing.assert_array_equal(folded.dense["income"][c::3], x.dense["income"])
    assert fields.fold_candidates(SCHEMA, folded) is folded


def test_other_features_hold_every_number_once():
    x = inputs_of(W)
    module = fields.OtherFeatures(SCHEMA, "identity")
    out = module.apply(
        {}, x, train=False
    )  # context and candidate ids, then numbers in schema order
    want = np.concatenate(
        [
            np.repeat(x.emb["hour"][:, None], 3, 1),
            x.emb["item"],
            x.emb["category"],
            np.repeat(x.dense["income"][:, None, None], 3, 1),
            np.log1p(W.raw["count"])[..., None],
            W.raw["recency"][..., None],
        ],
        axis=-1,
    )
    np.testing.assert_allclose(out, want, atol=1e-6)


def test_other_features_of_a_schema_without_any():
    schema = Schema(SCHEMA.id_spaces, SCHEMA.select("history", "label"))
    x = inputs_of(W).replace(schema=SCHEMA)
    assert fields.OtherFeatures(schema).apply({}, x, train=False) is None


VALID = np.array([[1, 1, 0], [1, 0, 0]], bool)


def test_folding_keeps_which_slots_are_filled():
    folded = fields.fold_candidates(SCHEMA, inputs_of(W).replace(valid=VALID))
    np.testing.assert_array_equal(folded.valid, VALID.reshape(-1, 1))


def test_numbers_are_normalised_over_valid_slots_alone():
    x = inputs_of(W).replace(valid=VALID)
    module = fields.OtherFeatures(SCHEMA, ids=())
    variables = module.init(jax.random.key(0), x, train=False)
    out = module.apply(variables, x, train=True, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(out[VALID].mean(0), 0, atol=1e-5)
    assert np.abs(out.reshape(6, -1).mean(0)).max() > 1e-3, "control: all slots together"
