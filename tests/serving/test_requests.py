"""Raw values to ids, numbers and histories; and what is refused, with its row."""

import datetime

import numpy as np
import pyarrow as pa
import pytest

from recjax.data.loading.batches import Assembler, Layout
from recjax.schema import MISSING, OOV, Feature, IdSpace, Schema
from recjax.serving.requests import Encoder, RequestError, Vocabulary
from tests import messages

SCHEMA = Schema(
    id_spaces=(IdSpace("user", 10), IdSpace("item", 10), IdSpace("tag", 10)),
    features=(
        Feature("user", "profile", "user"),
        Feature("hour", "context"),
        Feature("item", "candidate", "item"),
        Feature("tags", "candidate", "tag", multi=2, combiner="sum"),
        Feature("text", "candidate", vector=2),
        Feature("past", "history", "item", list="views"),
        Feature("paid", "history", list="views"),
        Feature("click", "label"),
    ),
)
ROWS = {
    "time": [100, 200],
    "user": [7, 99],
    "hour": [1, 2.5],
    "item": ["b", None],
    "tags": [["x", "y", "z"], []],
    "text": [[1, 2], [3, 4]],
    "past": [["a", "b", "c"], []],
    "paid": [[1.0, 2.0, 3.0], []],
    "views/time": [[50, 40, 50], []],
}


def encoder(schema=SCHEMA):
    words = {"item": "abc", "tag": "xyz"}
    vocabularies = {s: Vocabulary(pa.array(list(w)), np.array([5, 3, 4])) for s, w in words.items()}
    vocabularies["user"] = Vocabulary(pa.array([9, 7]), np.array([3, 4]))
    return Encoder(schema, vocabularies, {"views": 2})


def columns(**changes):
    rows = {**ROWS, **changes}
    return {
        n: v if isinstance(v, pa.Array) else pa.array(v) for n, v in rows.items() if v is not None
    }


def batch(columns, c=1, **options):
    e = encoder(**options)
    part = e.encode(columns)
    layout = Layout(SCHEMA, part.requests, {"views": 2}, c)
    built = Assembler(layout).build([part])
    ids = {
        f.name: built["ids"][f.id_space][0][built["pos"][f.name]]
        for f in SCHEMA.features
        if f.kind == "id"
    }
    return built, ids, e


def test_values_by_hand():
    good = columns(item=["b", "?"])
    built, ids, e = batch(good)
    np.testing.assert_array_equal(ids["user"], [4, OOV])
    np.testing.assert_array_equal(ids["item"], [[3], [OOV]])
    np.testing.assert_array_equal(ids["tags"], [[[5, 3]], [[0, 0]]])
    # Sorted by time, ties as given (b at 40, then a and c at 50); the last two are kept.
    np.testing.assert_array_equal(ids["past"], [[5, 4], [0, 0]])
    np.testing.assert_array_equal(built["dense"]["paid"], [[1, 3], [0, 0]])
    np.testing.assert_array_equal(built["age"]["views"], [[50, 50], [0, 0]])
    np.testing.assert_array_equal(built["mask"]["views"], [[True, True], [False, False]])
    np.testing.assert_array_equal(built["dense"]["text"], [[[1, 2]], [[3, 4]]])
    np.testing.assert_array_equal(built["dense"]["hour"], [1, 2.5])
    assert e.unknown == {"user": 1, "item": 1, "tags": 0, "past": 0}
    assert e.seen == {"user": 2, "item": 2, "tags": 3, "past": 3}


def test_lists_of_candidates():
    changes = dict(
        item=[["a", "b", "c"], ["c"]],
        text=[[[1, 2]] * 3, [[5, 6]]],
        tags=[[["x"]] * 3, [["y", "z"]]],
    )
    built, ids, _ = batch(columns(**changes), c=3)
    np.testing.assert_array_equal(built["valid"], [[True] * 3, [True, False, False]])
    np.testing.assert_array_equal(ids["item"], [[5, 3, 4], [4, 0, 0]])
    np.testing.assert_array_equal(built["dense"]["text"][1, 0], [5, 6])
    np.testing.assert_array_equal(ids["tags"][1, 0], [3, 4])


def test_null_side_values_are_missing():
    _, ids, e = batch(columns(item=["a", "b"], tags=[[None, "x"], []]))
    np.testing.assert_array_equal(ids["tags"][0, 0], [MISSING, 5])
    assert e.unknown["tags"] == 0


def test_timestamps_and_slices_of_arrow_arrays():
    when = [datetime.datetime(2024, 1, 1, 0, 0, s, 900_000) for s in (10, 20)]
    start = int(datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC).timestamp())
    times = pa.array([[1], [start + 5, start + 6, start + 7], []], pa.list_(pa.int64()))[1:]
    built, _, _ = batch(columns(item=["a", "b"], time=pa.array(when), **{"views/time": times}))
    np.testing.assert_array_equal(built["age"]["views"][0], [4, 3])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"item": ["b", None]}, ["row 11", "'item'", "null"]),
        ({"past": [["a", None, "b"], []]}, ["row 10", "'past'", "null"]),
        ({"user": None}, ["'user'", "user, hour, item"]),
        ({"views/time": [[50, 40, 100], []]}, ["row 10", "'views'", "at 100"]),
        ({"views/time": [[50, 40], []]}, ["'past'", "'views/time'"]),
        ({"past": ["a", "b"]}, ["'past'", "list"]),
        ({"user": ["7", "9"]}, ["'user'", "string", "integer", "cast"]),
        ({"item": [1, 2]}, ["'item'", "int64", "string"]),
        ({"hour": [1, None]}, ["row 11", "'hour'", "null", "finite"]),
        ({"hour": ["1", "2"]}, ["'hour'", "string", "numbers"]),
        ({"hour": [{"a": 1}, None]}, ["'hour'", "struct"]),
        ({"time": [1.5, 2.5]}, ["'time'", "double", "integer seconds"]),
        ({"time": [100, None]}, ["row 11", "'time'", "null"]),
        ({"text": [[1, 2], [3]]}, ["row 11", "'text'", "2"]),
        ({"item": [["a", "b"], ["c"]]}, ["row 10", "'tags'", "'item'"]),
    ],
)
def test_bad_columns_are_named(changes, words):
    good = {"item": ["b", "a"]}
    encoder().encode(columns(**good))  # control
    with messages.raises(RequestError, *words):
        encoder().encode(columns(**{**good, **changes}), first_row=10)


def test_json_like_requests():
    e = encoder()
    request = {
        "time": 100,
        "profile": {"user": 7},
        "context": {"hour": 3},
        "history": {"views": [{"time": 10, "past": "a", "paid": 0}]},
        "candidates": [{"item": i, "tags": ["x"], "text": [0, 1]} for i in "ab"],
    }
    part = e.encode(e.columns([request, {**request, "history": {}}]))
    np.testing.assert_array_equal(part.counts, [2, 2])
    np.testing.assert_array_equal(part.columns["item"], [5, 3, 5, 3])
    np.testing.assert_array_equal(part.columns["views/count"], [1, 1, 0, 0])
    for change, *words in (
        ({"candidates": []}, "row 0", "candidates"),
        ({"candidates": [{"item": "a"}]}, "candidates", "item 0", "'tags'"),
        ({"profile": {}}, "request 0", "'user'"),
        ({"candidates": 3}, "candidates", "list of objects"),
        ({"profile": {"user": "7"}}, "'user'"),
    ):
        with messages.raises(RequestError, *words):
            e.encode(e.columns([{**request, **change}, request]))
