"""Hostile clients, for `serving_attacks`; in a file of its own so that the process that plays them starts at once."""

from collections.abc import Callable
import contextlib
import os
import random
import select
import socket
import threading
import time
from typing import Any

_HEAD = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
_CHUNK = 1 << 16


def _post(body: bytes, path: bytes = b"/v1/score") -> bytes:
    head = _HEAD.replace(b"/v1/score", path)
    return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)


def _answered(s: socket.socket, request: bytes) -> None:
    """Sends a request and reads what comes back once, so that the service and not the socket buffers set the pace."""
    s.sendall(request)
    if not s.recv(_CHUNK):
        raise ConnectionError


def endless_header(s: socket.socket) -> None:
    s.sendall(_HEAD + b"x-padding: ")
    while True:
        s.sendall(b"a" * _CHUNK)


def slow_header(s: socket.socket) -> None:
    s.sendall(_HEAD)
    while True:
        time.sleep(0.2)
        s.sendall(b"x-%d: y\r\n" % random.randrange(1000))


def slow_body(s: socket.socket) -> None:
    s.sendall(_HEAD + b"content-length: 1000000\r\n\r\n")
    while True:
        time.sleep(0.2)
        s.sendall(b" ")


def huge_body(s: socket.socket) -> None:
    s.sendall(_HEAD + b"transfer-encoding: chunked\r\n\r\n")
    while True:
        s.sendall(b"%x\r\n%b\r\n" % (_CHUNK, b" " * _CHUNK))


def largest_body(s: socket.socket) -> None:
    """As large as is read at all, and its only fault at its end."""
    _answered(s, _LARGEST)


def many_keys(s: socket.socket) -> None:
    _answered(s, _KEYS)


def many_faults(s: socket.socket) -> None:
    """Values of the wrong type in every place that takes many."""
    _answered(s, _FAULTS)


def deep_nesting(s: socket.socket) -> None:
    _answered(s, _NESTED)


def tiny_chunks(s: socket.socket) -> None:
    s.sendall(_HEAD + b"transfer-encoding: chunked\r\n\r\n")
    while True:
        s.sendall(b"1\r\n \r\n" * 8192)


def invalid_chunks(s: socket.socket) -> None:
    _answered(s, _HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n" + b"a" * 4096)


def pipelining(s: socket.socket) -> None:
    while True:
        s.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 2000)


def unread_answers(s: socket.socket) -> None:
    """Asks for long answers and never reads one."""
    while True:
        s.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(0.01)


def unknown_paths(s: socket.socket) -> None:
    _answered(s, b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % random.getrandbits(64))


def huge_query(s: socket.socket) -> None:
    _answered(s, b"GET /v1/score?%b HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a=%41&" * 10_000))


def many_connections(s: socket.socket) -> None:
    """Five hundred, opened again when they are closed."""
    address, poll, mine = s.getpeername(), select.poll(), {s.fileno(): s}
    poll.register(s, select.POLLIN)
    while True:
        for fd, _ in poll.poll(50):  # ours never ask, so this one was closed
            poll.unregister(fd)
            mine.pop(fd).close()
        for _ in range(min(50, 500 - len(mine))):
            new = socket.create_connection(address, timeout=10)
            mine[new.fileno()] = new
            poll.register(new, select.POLLIN)
        time.sleep(0.01)


_LARGEST = _post(b'{"time":' + b" " * ((1 << 20) - 20) + b"x}")
_KEYS = _post(b"{" + b",".join(b'"k%d":1' % i for i in range(90_000)) + b"}")
_FAULTS = _post(
    b'{"history":{"history":{"time":[' + b",".join([b'"a"'] * 240_000) + b"]}}}"
)  # fmt: skip
_NESTED = _post(b'{"time":' + b"[" * 190 + b"],[".join([b"[]"] * 100_000) + b"]" * 190 + b"}")
ATTACKS: dict[str, Callable[[socket.socket], None]] = {
    f.__name__: f
    for f in (
        endless_header, slow_header, slow_body, huge_body, largest_body, many_keys, many_faults,
        deep_nesting, tiny_chunks, invalid_chunks, pipelining, unread_answers, unknown_paths, huge_query,
        many_connections,
    )
}  # fmt: skip

CONNECTIONS = {"slow_header": 200, "slow_body": 200}


def attack(port: int, name: str, connections: int, stop: Any, begun: Any) -> None:
    """Until `stop` is set: every connection that the service closes is opened again."""

    def one() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
                    begun.set()
                    while not stop.is_set():
                        ATTACKS[name](s)
            time.sleep(0.001)

    os.nice(10)  # on a machine of their own they would take none of the service's cores
    threading.stack_size(1 << 18)
    for _ in range(connections):
        threading.Thread(target=one, daemon=True).start()
    stop.wait()
