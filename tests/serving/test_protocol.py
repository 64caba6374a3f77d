"""What a connection may cost: each bound is met, said, and costs nobody else."""

import contextlib
import json
import socket
import time

import pytest

from recjax.serving.protocol import HEADER_LINES, PIPELINED
from recjax.serving.service import Limits
from tests.serving.client import request, serving

LIMITS = Limits((1,), (4,), deadline_ms=20_000, connections=8, head_s=1.0, faults=10**6)
HEAD = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def client(exported):
    with serving(exported.path, LIMITS) as (client, _):
        yield client


@contextlib.contextmanager
def connected(client):
    with socket.create_connection((client.base_url.host, client.base_url.port), 10) as s:
        yield s


def received(s):
    """All there is until the end of the connection."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := s.recv(1 << 16):
            got += data
    return got


def ended(client, *parts):
    with connected(client) as s:
        with contextlib.suppress(OSError):
            for part in parts:
                s.sendall(part)
        return received(s)


@pytest.mark.parametrize(
    ("sent", "status", "detail"),
    [
        (HEAD + b"x: " + b"a" * 200_000, 431, "more than 16384 bytes"),
        (HEAD + b"x: 1\r\n" * HEADER_LINES + b"\r\n", 431, f"or {HEADER_LINES} lines"),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 431, "send fewer"),
        (CHUNKED + b"1\r\n \r\n" * 20_000, 431, "more than 16384 bytes"),
        (CHUNKED + b"1;" + b"a" * 100_000, 431, "more than 16384 bytes"),
        (CHUNKED + b"1\r\n{\r\n0\r\n" + b"x: 1\r\n" * 30_000, 431, "send fewer"),
        (CHUNKED + b"zz\r\n", 400, "no HTTP/1.1; send it as RFC 9112 says"),
        (b"nonsense\r\n\r\n", 400, "no HTTP/1.1"),
        (b"GET nonsense HTTP/1.1\r\n\r\n", 400, "send"),
        (HEAD, 408, "did not arrive in time; send them at once"),
    ],
)
def test_a_refusal_is_one_sentence_and_the_end(client, sent, status, detail):
    start = time.monotonic()
    head, _, body = ended(client, sent).partition(b"\r\n\r\n")
    assert time.monotonic() - start < 10
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["status"] == status and detail in json.loads(body)["detail"]
    assert client.get("/healthz").status_code == 200


def test_a_silent_connection_and_a_dripping_header_end(client):
    assert ended(client) == b""
    with connected(client) as s:
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - start < 20:
                s.sendall(b"G" if time.monotonic() - start < 0.1 else b"E")
                time.sleep(0.1)
    assert time.monotonic() - start < 10


def test_a_flood_of_connections_closes_its_own(client):
    assert client.get("/healthz").status_code == 200  # a connection that has asked for something
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(connected(client))
        with connected(client) as s:
            s.sendall(GET)
            assert s.recv(1 << 16).startswith(b"HTTP/1.1 200")
        before = client.get("/metrics").text
        assert client.get("/healthz").status_code == 200
    closed = [x for x in before.splitlines() if 'connections_total{reason="connections"}' in x]
    assert float(closed[0].split()[-1]) >= 30


def test_requests_sent_ahead_are_answered_in_order_up_to_a_bound(client):
    last = GET.replace(b"/healthz", b"/nowhere")
    answers = ended(client, GET * 9 + last, b"?\r\n\r\n")
    assert answers.count(b"HTTP/1.1 200") == 9 and answers.count(b"HTTP/1.1 404") == 1
    assert answers.index(b"404") > answers.rindex(b" 200 ")
    many = ended(client, GET * 500)
    assert 1 <= many.count(b"HTTP/1.1 200") <= PIPELINED + 2
    assert many.count(b"HTTP/1.1") == many.count(b" 200 ")


def test_a_fault_is_not_taken_for_the_answer_to_an_earlier_request(client):
    body = json.dumps(request()).encode()
    good = HEAD + b"content-length: %d\r\n\r\n%b" % (len(body), body)
    answers = ended(client, good + b"nonsense\r\n\r\n")
    assert answers.count(b"HTTP/1.1") == 1 and answers.startswith(b"HTTP/1.1 200")


def test_an_answer_before_the_body_keeps_the_connection_if_the_rest_is_short(client):
    head = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    with connected(client) as s:
        s.sendall(head % 100)
        assert s.recv(1 << 16).startswith(b"HTTP/1.1 404")
        s.sendall(b" " * 100 + GET)
        assert s.recv(1 << 16).startswith(b"HTTP/1.1 200")
    for size in (100, 10**9):  # the rest never comes, or would take long
        assert ended(client, head % size).count(b"HTTP/1.1") == 1


def test_refusals_of_a_flood_wait_and_good_requests_do_not(exported):
    with serving(exported.path, Limits((1,), (4,), deadline_ms=20_000, faults=2)) as (client, _):

        def seconds(method, path, **sent):
            start = time.monotonic()
            client.request(method, path, **sent)
            return time.monotonic() - start

        time.sleep(1.0 - time.monotonic() % 1.0)
        faults = [seconds("GET", "/nowhere") for _ in range(3)]
        assert max(faults[2:]) >= 0.25
        time.sleep(1.0 - time.monotonic() % 1.0)
        for _ in range(3):
            seconds("GET", "/nowhere")
        assert min(seconds("POST", "/v1/score", json=request()) for _ in range(3)) < 0.25
