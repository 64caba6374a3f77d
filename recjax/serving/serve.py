"""Serves an artifact over HTTP.

    python -m recjax.serving.serve --artifact=DIR

listens on http://127.0.0.1:8000; /docs describes the calls. SIGTERM answers what has arrived and exits. To switch to
another artifact, publish it at DIR (`export_artifact(..., overwrite=True)`, or point a link elsewhere) and POST {} to
/v1/artifact/reload, which is off unless it has a token.

A token, if clients shall need one, comes from the environment variable RECJAX_TOKEN or from --token_file, that for
reloading from RECJAX_RELOAD_TOKEN or --reload_token_file; never from the command line, which every user of the machine
can read. TLS, rate limits per client and several processes are the work of the proxy in front; events live in the
memory of one process.
"""

import logging
import os
import pathlib
import signal
import socket
import sys
import time
import types
from typing import Any, cast

from absl import flags

from recjax import command

try:
    import uvicorn

    from recjax.serving import logs
    from recjax.serving.service import Limits, Service
except ModuleNotFoundError as e:
    package = e.name.partition(".")[0]
    if package == "recjax":
        raise
    sys.exit(f"error: serving needs the package {package}; pip install 'recjax[serve]'")

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_DEFAULT = Limits()
# Seconds a thread may hold the interpreter that another one wants. At Python's 5 ms every short step of the scorer waits for the loop
# that refuses requests: at twice the sustainable rate 184 requests a second were answered, at 1 ms 252, at 0.2 ms
# 314, which costs a sixth of the rate of a service that is only busy.
SWITCH_SECONDS = 1e-3
_BACKLOG = 128  # asyncio accepts as many before it does anything else


def read_token(file: str, kind: str = "token") -> str:
    """From a file, else from RECJAX_<KIND>, which is removed from the environment; "" for none."""
    from_environment = os.environ.pop(f"RECJAX_{kind.upper()}", "")
    try:
        token = pathlib.Path(file).read_text().strip() if file else from_environment.strip()
    except (OSError, UnicodeDecodeError) as e:
        sys.exit(f"error: --{kind}_file={file} cannot be read ({e}); give a readable text file")
    if (file and not token) or any(c.isspace() or not c.isascii() for c in token):
        sys.exit(f"error: the {kind} is empty or not one word of ASCII characters; make another")
    return token


def server_of(
    service: Service,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    grace_s: int = 30,
    drain_s: float = 0.0,
) -> "Server":
    """The server of a service; a failed first load ends it."""
    config = uvicorn.Config(
        service.app,
        host=host,
        port=port,
        http=cast(Any, service.guard.protocol),  # a factory, which uvicorn calls as it does a class
        ws="none",
        access_log=False,
        log_config=None,
        log_level="error",  # what clients do wrong is counted, not logged: they could fill the disk
        backlog=_BACKLOG,
        timeout_keep_alive=75,  # longer than the usual 60 s of proxies, so that they close first
        timeout_graceful_shutdown=grace_s,
        server_header=False,
    )
    server = Server(config, service, drain_s)
    service.on_failure = lambda: setattr(server, "should_exit", True)
    return server


class Server(uvicorn.Server):
    """Ends in two steps: a balancer is told to send no more while all is answered still, then uvicorn closes."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_s: float):
        super().__init__(config)
        self._service, self._drain_s = service, drain_s
        self._leave: tuple[float, int] | None = None  # when, and the signal that asked for it

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        if self._leave or not self._drain_s:  # also whoever asks twice
            return super().handle_exit(sig, frame)
        self._service.leaving = True
        self._leave = time.monotonic() + self._drain_s, sig

    async def on_tick(self, counter: int) -> bool:
        if self._leave and not self.should_exit and time.monotonic() >= self._leave[0]:
            super().handle_exit(self._leave[1], None)
        return await super().on_tick(counter)


def listen(server: uvicorn.Server) -> socket.socket:
    """Prepares this process and binds: who connects from now on waits for the start instead of being refused."""
    sys.setswitchinterval(SWITCH_SECONDS)
    sock = server.config.bind_socket()
    sock.listen(_BACKLOG)
    return sock


def run(service: Service, server: uvicorn.Server) -> None:
    """Serves until SIGTERM or SIGINT; exits non-zero when there is nothing to serve."""
    sock = listen(server)
    host, port = sock.getsockname()[:2]
    print(f"recjax serves on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    # uvicorn drains, then raises the signal again for the caller: by now that means a clean exit.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.run(sockets=[sock])
    if service.failure:
        sys.exit(f"error: {service.failure}")


def main(_) -> None:
    logs.set_up(_LOG.value)
    limits = Limits(
        requests=tuple(map(int, _REQUESTS.value)),
        candidates=tuple(map(int, _CANDIDATES.value)),
        queue=_QUEUE.value,
        wait_ms=_WAIT.value,
        deadline_ms=_DEADLINE.value,
        body_bytes=_BODY.value,
        connections=_CONNECTIONS.value,
        head_bytes=_HEAD.value,
        head_s=_HEAD_S.value,
        faults=_FAULTS.value,
        events_mib=_EVENTS.value,
        events_per_list=_PER_LIST.value,
        event_skew_s=_SKEW.value,
        prefix_mib=_PREFIX.value,
    )
    token, reload_token = read_token(_TOKEN.value), read_token(_RELOAD.value, "reload_token")
    if _HOST.value not in _LOOPBACK and not token:
        logging.warning("--host=%s without a token: everybody who reaches it may ask", _HOST.value)
    service = Service(
        _ARTIFACT.value,
        limits,
        function=_FUNCTION.value,
        token=token,
        reload_token=reload_token,
        log_requests=_LOG_REQUESTS.value,
    )
    ends: dict[str, Any] = dict(grace_s=_GRACE.value, drain_s=_DRAIN.value)
    run(service, server_of(service, _HOST.value, _PORT.value, **ends))


def _sizes(values: list[str]) -> bool:
    return bool(values) and all(v.isdecimal() and int(v) > 0 for v in values)


if __name__ == "__main__":
    _ARTIFACT = flags.DEFINE_string("artifact", None, "directory of the artifact", required=True)
    _FUNCTION = flags.DEFINE_string(
        "function", "", "function of the artifact; default: score, or the only one"
    )
    _HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen on")
    _PORT = flags.DEFINE_integer("port", 8000, "0: any free one", 0, 65535)
    _TOKEN = flags.DEFINE_string("token_file", "", "file with the bearer token; see RECJAX_TOKEN")
    _RELOAD = flags.DEFINE_string(
        "reload_token_file",
        "",
        "the same for reloading, which is off without; see RECJAX_RELOAD_TOKEN",
    )
    _REQUESTS = flags.DEFINE_list(
        "batch_sizes", list(map(str, _DEFAULT.requests)), "to compile for"
    )
    _CANDIDATES = flags.DEFINE_list(
        "candidate_sizes",
        list(map(str, _DEFAULT.candidates)),
        "to compile for; the largest is the most a request may have",
    )
    _QUEUE = flags.DEFINE_integer("queue", _DEFAULT.queue, "requests that may wait", 1)
    _WAIT = flags.DEFINE_float(
        "wait_ms", _DEFAULT.wait_ms, "how long an idle scorer waits to fill a batch", 0
    )
    _DEADLINE = flags.DEFINE_integer("deadline_ms", _DEFAULT.deadline_ms, "of a request", 1)
    _BODY = flags.DEFINE_integer("body_bytes", _DEFAULT.body_bytes, "of a request", 1)
    _CONNECTIONS = flags.DEFINE_integer(
        "connections", _DEFAULT.connections, "at a time; one more closes the longest idle", 1
    )
    _HEAD = flags.DEFINE_integer("head_bytes", _DEFAULT.head_bytes, "of a request's headers", 256)
    _HEAD_S = flags.DEFINE_float("head_s", _DEFAULT.head_s, "for a request's headers", 0.1)
    _FAULTS = flags.DEFINE_integer(
        "faults",
        _DEFAULT.faults,
        "refusals a second that go out at once; the rest wait a little",
        0,
    )
    _EVENTS = flags.DEFINE_integer("events_mib", _DEFAULT.events_mib, "for stored events", 1)
    _SKEW = flags.DEFINE_integer(
        "event_skew_s", _DEFAULT.event_skew_s, "how far in the future an event may lie", 0
    )
    _PER_LIST = flags.DEFINE_integer(
        "events_per_list", _DEFAULT.events_per_list, "stored of one user in one list", 1
    )
    _PREFIX = flags.DEFINE_integer(
        "prefix_mib", _DEFAULT.prefix_mib, "of the prefix cache; 0: none", 0
    )
    _GRACE = flags.DEFINE_integer("grace_s", 30, "for requests in flight at SIGTERM", 1)
    _DRAIN = flags.DEFINE_float(
        "drain_s", 0, "after SIGTERM, during which /readyz says no and all is answered still", 0
    )
    _LOG = flags.DEFINE_enum("log", "text", ("text", "json"), "form of the log")
    _LOG_REQUESTS = flags.DEFINE_bool("log_requests", False, "a line for each request")
    for name in ("batch_sizes", "candidate_sizes"):
        flags.register_validator(name, _sizes, "give positive integers, comma-separated")
    command.run(main)
