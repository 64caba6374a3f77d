"""HTTP/1.1 with bounds: uvicorn's protocol, which lacks time-outs for headers and limits on all but concurrency.

What a client may cost before any handler sees it:

    a message   `head_bytes` of what is not body (request line, headers, the framing of chunks, trailers) and 100
                header lines, all within `head_s` seconds
    a client    16 requests sent ahead of their answers; an answer read within `head_s`
    all         `connections` connections: one more closes the one that has waited longest without asking for anything,
                those that never asked first

A refusal is a problem document where nothing else has been answered, then the connection ends: what is sent on is
read and thrown away for a moment, because closing at once would reset the connection and lose the answer with it.

`faults` refusals a second go out at once, those of the handlers too; the rest wait, so that whoever asks again as soon
as it is refused asks less often. Good requests never wait for them.
"""

from collections import OrderedDict
from collections.abc import Callable
import json
import time
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEADER_LINES = 100
PIPELINED = 16
_SLICE = 1 << 14  # parsed at a time, so that a bound is noticed soon after it is passed
_SHORT = 1 << 16
_LINGER_S = 1.0
_PAUSE_S = 0.25
_IGNORED = 1 << 20


class _Refused(Exception):
    """Raised in the parser's callbacks, which end its work with it."""


class Guard:
    """What the connections of one server share.

    Args:
      connections, head_bytes, head_s, faults: See the module docstring.
      refused: Told the reason of each refusal.
    """

    def __init__(
        self,
        connections: int,
        head_bytes: int,
        head_s: float,
        faults: int,
        refused: Callable[[str], None] = lambda reason: None,
    ):
        self.connections, self.head_bytes, self.head_s = connections, head_bytes, head_s
        self.refused = refused
        self._faults, self._second = faults, (0, 0)  # the current second, refusals in it
        self._new: OrderedDict[Bounded, None] = OrderedDict()  # that never asked for anything
        self._idle: OrderedDict[Bounded, None] = OrderedDict()  # whose requests are answered

    def protocol(self, **options: Any) -> "Bounded":
        """For `uvicorn.Config(http=...)`."""
        return Bounded(self, **options)

    def pause(self) -> float:
        """Seconds that the next refusal waits."""
        now = int(time.monotonic())
        count = self._second[1] if self._second[0] == now else 0
        self._second = now, count + 1
        return 0.0 if count < self._faults else _PAUSE_S

    def enter(self, new: "Bounded") -> None:
        self._new[new] = None
        if len(new.connections) > self.connections:
            self.refused("connections")
            # A flood comes through new connections, so those wait among themselves.
            next(iter(self._new if len(self._new) > 1 else self._idle or self._new)).abort()

    def busy(self, one: "Bounded") -> None:
        self._new.pop(one, None)
        self._idle.pop(one, None)

    def idle(self, one: "Bounded") -> None:
        self._idle[one] = None

    def expendable(self, one: "Bounded") -> None:
        self._idle.pop(one, None)
        self._new[one] = None
        self._new.move_to_end(one, last=False)


class _Transport:
    """What uvicorn writes to and closes: whether the end is at once is for the connection to say."""

    def __init__(self, real: Any, one: "Bounded"):
        self._real, self._one = real, one

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def close(self) -> None:
        self._one.close()

    def is_closing(self) -> bool:
        return self._one.lingering or self._real.is_closing()


class Bounded(HttpToolsProtocol):
    """One connection.

    Attributes:
      lingering: It has been answered for the last time, and what is sent on is thrown away.
    """

    def __init__(self, guard: Guard, **options: Any):
        super().__init__(**options)
        self._guard = guard
        self._timer: Any = None
        self._fed = self._head = self._lines = 0
        self._begun = self._headed = False  # a message has, and not ended; its headers have ended
        self._declared: int | None = None  # bytes of its body, if its headers say so
        self._reusable = True  # the connection, once the body has been read
        self._real: Any = None
        self._deaf = self.lingering = False
        self._ignored = 0

    # --- the connection

    def connection_made(self, transport: Any) -> None:
        self._real = transport
        mine: Any = _Transport(transport, self)
        super().connection_made(mine)
        self._guard.enter(self)
        self._limit_time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.busy(self)
        self._stop_timer()
        super().connection_lost(exc)

    def abort(self) -> None:
        self._guard.busy(self)
        self._real.abort()

    def close(self) -> None:
        if self._begun and not self._real.is_closing():
            return self._linger()
        self._real.close()
        self._guard.expendable(self)  # until the client has read its answer
        self._limit_time()

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self.lingering:
            self._limit_time()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.lingering:
            self._stop_timer()

    def _limit_time(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self._guard.head_s, self._too_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        if self._begun and not self._headed and not self._answering():
            self._refuse(408, "time", "the headers did not arrive in time; send them at once")
        else:
            self._guard.refused("time")
            self.abort()

    # --- reading

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._deaf:
            self._ignored += len(data)
            if self._ignored > _IGNORED:  # it costs nothing to leave the rest to the kernel
                self.flow.pause_reading()
            return
        for at in range(0, len(data), _SLICE):
            if self._deaf or self.transport.is_closing():
                return
            self._feed(data if len(data) <= _SLICE else data[at : at + _SLICE])
        if self._begun and self._timer is None and not self._answering():
            self._limit_time()

    def _feed(self, data: bytes) -> None:
        self._fed = len(data)
        self._head += self._fed
        try:
            self.parser.feed_data(data)
            # A message may have begun anywhere in the slice, all of which is counted.
            if self._head > self._guard.head_bytes + _SLICE:
                raise _Refused
        except (
            httptools.HttpParserUpgrade
        ):  # answered as if it had not been asked for, then the end
            self._last()
        except (_Refused, httptools.HttpParserCallbackError) as e:
            if len(self.pipeline) >= PIPELINED:
                self._guard.refused("pipelining")
                self._last()
            elif isinstance(e, _Refused) or isinstance(e.__context__, _Refused):
                limit = (
                    f"more than {self._guard.head_bytes} bytes or {HEADER_LINES} lines of headers"
                )
                self._refuse(431, "headers", f"the request has {limit}; send fewer")
            else:
                self._refuse(400, "malformed", "the request's target is malformed; send a path")
        except httptools.HttpParserError:
            self._refuse(400, "malformed", "the request is no HTTP/1.1; send it as RFC 9112 says")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head, self._lines, self._declared = self._fed, 0, None
        self._begun, self._headed = True, False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines += 1
        if self._lines > HEADER_LINES:
            raise _Refused
        super().on_header(name, value)
        if name.lower() == b"content-length" and value.isdigit():
            self._declared = int(value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= PIPELINED:
            raise _Refused
        super().on_headers_complete()
        self._headed = True
        # Answered before its body came, the connection ends unless the rest is short enough to wait for.
        self._reusable = self.cycle.keep_alive
        if self._declared is None or self._declared > _SHORT:
            self.cycle.keep_alive = False
        self._guard.busy(self)
        self._stop_timer()

    def on_body(self, body: bytes) -> None:
        self._head -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._begun = False
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._reusable
        super().on_message_complete()
        if not self._answering():  # the rest of a message that was answered early
            self._stop_timer()

    # --- answering

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() or self._answering():
            return
        self._guard.idle(self)
        if self._deaf:
            self._linger()
        elif self._begun:
            self._limit_time()

    def _last(self) -> None:
        """Nothing more is read; what was asked before is answered."""
        self._deaf = True
        if not self._answering():
            self._linger()

    def _refuse(self, status: int, reason: str, detail: str) -> None:
        self._guard.refused(reason)
        asked = self._answering()
        if asked and (self.cycle.response_started or self.pipeline or not self.cycle.more_body):
            return self._last()  # an answer now would be taken for another request's
        if asked:
            self.cycle.disconnected = True  # the handler that awaits the body is told so
            self.cycle.message_event.set()
        title = "The request was not served"
        body = json.dumps({"title": title, "status": status, "detail": detail}).encode()
        head = b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close"
        answer = STATUS_LINE[status] + head % len(body) + b"\r\n\r\n" + body
        self._deaf = True
        self.loop.call_later(self._guard.pause(), self._linger, answer)

    def _linger(self, answer: bytes = b"") -> None:
        if self._real.is_closing():
            return
        self._deaf = self.lingering = True
        self._guard.expendable(self)
        self.transport.write(answer)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._stop_timer()
        self._timer = self.loop.call_later(_LINGER_S, self.abort)
