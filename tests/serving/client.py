"""A service on a real socket, in a thread of this process, and requests for the fake artifact."""

import contextlib
import threading
import time

import httpx
import numpy as np

from recjax.serving.serve import server_of
from recjax.serving.service import Limits, Service

LIMITS = Limits(requests=(1, 4), candidates=(4, 16), deadline_ms=20_000, faults=10**6)


@contextlib.contextmanager
def serving(path, limits=LIMITS, **options):
    """(httpx client, service), ready."""
    service = Service(path, limits, **options)
    server = server_of(service)
    sock = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=60, limits=httpx.Limits(max_connections=64)) as c:
            wait_until_ready(c, service)
            yield c, service
    finally:
        server.should_exit = True
        thread.join(30)
        sock.close()
    assert not thread.is_alive()


def wait_until_ready(client, service=None, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert not (service and service.failure), service.failure
        with contextlib.suppress(httpx.ConnectError):
            if client.get("/readyz").status_code == 200:
                return
        time.sleep(0.02)
    raise AssertionError("never ready")


def request(who=1003, items=("a3", "a5"), events=((10, "a4"),), **changes):
    """A request of the fake schema; a change to None leaves the field out."""
    made = {
        "time": 1000,
        "profile": {"user": who},
        "treatment": {"arm": 1004},
        "history": {"history": [{"time": t, "hist_item": i} for t, i in events]},
        "candidates": [{"item": item, "price": 0.5 * i} for i, item in enumerate(items)],
    }
    return {k: v for k, v in {**made, **changes}.items() if v is not None}


def requests(n, most=16, seed=0):
    """Requests of different sizes, some values of which no vocabulary knows."""
    r = np.random.default_rng(seed)
    item = lambda: f"a{r.integers(3, 45)}"  # noqa: E731
    return [
        request(
            int(r.integers(1003, 1030)),
            [item() for _ in range(r.integers(1, most + 1))],
            [(int(t), item()) for t in r.integers(0, 1000, r.integers(0, 9))],
        )
        for _ in range(n)
    ]
