"""Whatever is sent: no 5xx, no NaN, and every refusal says what to fix."""

from collections import Counter
import copy
import json

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
import pytest

from tests.serving.client import request, serving

JSON = {"content-type": "application/json"}
_WORDS = st.sampled_from(
    ["time", "user", "item", "price", "history", "hist_item", "candidates", ""]
)
_NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(-5, 1100),
    st.floats(),
    st.sampled_from([1e38, -1e38, 3e38, 1e39, -0.0, 2**31, 2**63]),
)
_LEAVES = st.one_of(st.none(), st.booleans(), _NUMBERS, st.text(max_size=8), _WORDS)
VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(_WORDS, inner, max_size=4)
    ),
    max_leaves=8,
)
# Of the same type as what they replace.
LIKE = {
    int: st.integers(0, 1100),
    float: st.one_of(st.integers(-5, 5), st.floats(width=32)),
    str: st.text(max_size=8),
    dict: st.just({}),
    list: st.just([]),
}
EVENTS = {"user": "u", "events": {"history": {"time": [5, 6], "hist_item": ["a3", "a4"]}}}
COLUMNS = request(candidates={"item": ["a3", "?"], "price": [0.5, 2]}, user="u")


def places(value, path=()):
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from places(inner, (*path, key))


@st.composite
def bodies(draw):
    """(path, body): a good request with a few places replaced, removed, doubled or added to."""
    path, good = draw(
        st.sampled_from([("score", request()), ("score", COLUMNS), ("events", EVENTS)])
    )
    body = copy.deepcopy(good)
    for _ in range(draw(st.integers(0, 2))):
        if not isinstance(body, dict | list):
            break
        *parents, last = draw(st.sampled_from(list(places(body))[1:] or [("x",)]))
        inner = body
        for key in parents:
            inner = inner[key]
        change = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if change == "remove" and (isinstance(inner, list) or last in inner):
            del inner[last]
        elif change == "add" and isinstance(inner, dict):
            inner[draw(_WORDS)] = draw(VALUES)
        else:
            old = inner[last] if isinstance(inner, list) or last in inner else None
            inner[last] = draw(st.one_of(LIKE.get(type(old), VALUES), VALUES))
    return path, json.dumps(body).encode()


RAW = st.tuples(st.sampled_from(["score", "events"]), st.binary(max_size=40))


def not_a_constant(name):
    raise AssertionError(f"{name} in an answer")


def fuzz(client, examples):
    statuses = Counter()

    @seed(0)
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        st.one_of(bodies(), st.tuples(st.sampled_from(["score", "events"]), st.binary(max_size=40)))
    )
    def ask(made):
        path, body = made
        answer = client.post(f"/v1/{path}", content=body, headers=JSON)
        content = json.loads(answer.content, parse_constant=not_a_constant)
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (body, content)
        assert "recjax-stamp" in answer.headers
        if answer.status_code != 200:
            assert ";" in content["detail"] and len(content["detail"]) < 1000, content

    ask()
    return statuses


@pytest.fixture(scope="module")
def client(exported):
    with serving(exported.path) as (client, _):
        yield client


def test_no_body_is_answered_by_a_fault_of_the_server(client):
    statuses = fuzz(client, 200)
    assert sum(statuses.values()) >= 200
    assert min(statuses[s] for s in (200, 400, 422)) >= 10, statuses  # all kinds were met


@pytest.mark.slow
def test_two_thousand_bodies(client):
    assert sum(fuzz(client, 2000).values()) >= 2000
