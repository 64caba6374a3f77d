"""The open inference protocol asks the same model."""

import numpy as np
import pytest

from tests.serving.client import request, serving

MODEL = "/v2/models/batch_norm"


@pytest.fixture(scope="module")
def client(exported):
    with serving(exported.path) as (client, _):
        yield client


def tensor(name, values, datatype, shape=None):
    shape = shape or list(np.shape(values))
    return {"name": name, "shape": shape, "datatype": datatype, "data": values}


def inputs(**changes):
    made = {
        "time": tensor("time", [1000], "INT64"),
        "user": tensor("user", [1003], "INT64"),
        "arm": tensor("arm", [1004], "INT64"),
        "item": tensor("item", ["a3", "a5"], "BYTES"),
        "price": tensor("price", [0.0, 0.5], "FP32"),
        "history/time": tensor("history/time", [10], "INT64"),
        "hist_item": tensor("hist_item", ["a4"], "BYTES"),
    }
    return [x for x in {**made, **changes}.values() if x]


def infer(client, tensors, **more):
    return client.post(f"{MODEL}/infer", json={"inputs": tensors, **more})


def test_the_answer_is_that_of_v1(client):
    want = client.post("/v1/score", json=request()).json()
    answer = infer(client, inputs(), id="42")
    assert answer.status_code == 200, answer.text
    got = answer.json()
    assert got["model_name"] == "batch_norm" and got["id"] == "42"
    assert got["model_version"] == want["stamp"]
    assert {x["name"] for x in got["outputs"]} == want["outputs"].keys()
    for x in got["outputs"]:
        assert x["shape"] == [2] and x["datatype"] == "FP32"
        np.testing.assert_allclose(x["data"], want["outputs"][x["name"]], atol=1e-5)


def test_stored_events_and_deadlines_are_parameters(client):
    sent = {"history": {"time": [10], "hist_item": ["a4"]}}
    client.post("/v1/events", json={"user": "k", "events": sent})
    named = inputs(**{"history/time": None, "hist_item": None})
    got = infer(client, named, parameters={"user": "k", "deadline_ms": 20000}).json()
    want = infer(client, inputs()).json()
    for x, y in zip(got["outputs"], want["outputs"], strict=True):
        np.testing.assert_allclose(x["data"], y["data"], atol=1e-5)


def test_what_it_says_of_itself(client):
    assert client.get("/v2").json()["name"] == "recjax"
    for path in ("/v2/health/live", "/v2/health/ready", f"{MODEL}/ready"):
        assert client.get(path).status_code == 200
    about = client.get(MODEL).json()
    shapes = {x["name"]: (x["datatype"], x["shape"]) for x in about["inputs"]}
    assert {x["name"] for x in inputs()} <= shapes.keys()
    assert shapes["item"] == ("BYTES", [-1]) and shapes["user"] == ("INT64", [1])
    assert {x["name"] for x in about["outputs"]} >= {"logits"}


@pytest.mark.parametrize(
    ("tensors", "detail"),
    [
        (inputs(colour=tensor("colour", [1], "INT64")), "the input 'colour' is unknown"),
        (inputs(user=tensor("user", [1, 2], "INT64")), "one value a request, send [1]"),
        (inputs(item=tensor("item", ["a3"], "BYTES", [2])), "has 1 values and shape [2]"),
        (inputs(item=tensor("item", ["a3"], "BYTES")), "candidates.price has 2 entries"),
        (inputs(price=tensor("price", ["x", 1], "FP32")), "candidates.price[0] should be"),
        (inputs(price=None), "'price' is missing"),
        ([{"name": "user"}], "are missing"),
    ],
)
def test_what_is_refused_says_why(client, tensors, detail):
    answer = infer(client, tensors)
    assert answer.status_code == 422 and detail in answer.json()["error"], answer.text
    assert ";" in answer.json()["detail"]


def test_another_model_is_not_here(client):
    answer = client.post("/v2/models/other/infer", json={"inputs": inputs()})
    assert answer.status_code == 404 and "ask for 'batch_norm'" in answer.json()["detail"]
    assert client.get("/v2/models/batch_norm/nothing").status_code == 404
    assert client.get(f"{MODEL}/infer").status_code == 405
