"""The HTTP service: an ASGI application around `Batcher`, `Model` and `Events`.

    POST /v1/score            a request (see bodies.py) -> {"stamp", "outputs": {name: [value a candidate]}}
    POST /v1/events           {"user", "events": {list: [...]}} -> {"stamp", "stored": {list: events held}};
                              histories, causal counters and the prefix cache follow them
    POST /v1/artifact/reload  loads the artifact's directory again and switches when it is warm; only with a token of its own
    /v2/...                   the open inference protocol (KServe v2); see kserve.py
    GET  /healthz /readyz /metrics /docs /openapi.json

Faults are problem documents (RFC 9457) whose `detail` says what to change. A request is checked, completed and scored
with the model that was served when it came, whatever is loaded meanwhile; its stamp is in the answer, and every answer
has a recjax-stamp header.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import hmac
import logging
import os
import re
import time
from typing import Any

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recjax.serving import kserve, live, logs, openapi, prefix
from recjax.serving.artifact import ArtifactError, version_of
from recjax.serving.batching import Batcher, DeadlinePassed, Overloaded
from recjax.serving.bodies import BodyError, EventsRequest, ScoreRequest
from recjax.serving.counters import Counters
from recjax.serving.events import Answered, Events, KeyReused
from recjax.serving.protocol import Guard
from recjax.serving.requests import RequestError
from recjax.serving.telemetry import Telemetry

LARGE = 1 << 16  # bytes of a body whose parsing takes turns
BODIES = 64  # of the largest size, that may be on their way at a time
RELOAD = "/v1/artifact/reload"
INFER = "/v2/models/{model}/infer"
SCORING = ("/v1/score", INFER)  # paths that are refused at once when too many requests wait
OPEN = (
    "/healthz",
    "/readyz",
    "/v2/health/live",
    "/v2/health/ready",
)  # without the token: probes have none
_MODEL = re.compile(r"^/v2/models/[^/]+")
_log = logging.getLogger("recjax.serving")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the service takes on.

    Attributes:
      requests: Batch sizes to compile for; the largest bounds a batch.
      candidates: Numbers of candidates to compile for; the largest is the most a request may have.
      queue: Requests that may wait; more get 429.
      wait_ms: How long an idle scorer waits for more requests to batch; see `Batcher`.
      deadline_ms: Of a request that names none, and the most it may name.
      body_bytes: Of a request.
      connections: At a time; see `protocol` for this and the next three.
      head_bytes: Of what is not body.
      head_s: For the headers to arrive.
      faults: Refusals a second that go out at once.
      events_mib: For stored events.
      events_per_list: Stored of one user in one list, and the most that a request may hold.
      event_skew_s: How far in the future an event may lie: its sender's clock may be fast.
      prefix_mib: Of the prefix cache; 0 scores every request whole.
    """

    requests: tuple[int, ...] = (1, 4, 16)
    candidates: tuple[int, ...] = (16, 128, 512)
    queue: int = 256
    wait_ms: float = 0.0
    deadline_ms: int = 1000
    body_bytes: int = 1 << 20
    connections: int = 512
    head_bytes: int = 1 << 14
    head_s: float = 5.0
    faults: int = 20
    events_mib: int = 256
    events_per_list: int = 1000
    event_skew_s: int = 60
    prefix_mib: int = 256


class Service:
    """State and handlers; `app` is the ASGI application.

    Args:
      path: Directory of the artifact.
      limits: See `Limits`.
      function: See `Scorer`.
      token: That clients send; "" asks for none.
      reload_token: For reloading, which is off without one.
      log_requests: A line for each.
      on_failure: Called when the first load failed.

    Attributes:
      model: What is served; None until the first load is done.
      failure: Why the first load failed, after `on_failure` was called.
      leaving: The process will end soon: it answers, and says that it is not ready for more.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        limits: Limits = Limits(),
        *,
        function: str = "",
        token: str = "",
        reload_token: str = "",
        log_requests: bool = False,
        on_failure: Callable[[], None] = lambda: None,
    ):
        self.limits, self.telemetry = limits, Telemetry()
        self.guard = Guard(
            limits.connections,
            limits.head_bytes,
            limits.head_s,
            limits.faults,
            lambda reason: self.telemetry.refused.labels(reason).inc(),
        )
        self.model: live.Model | None = None
        self.failure = ""
        self.leaving, self.log_requests = False, log_requests
        self._path, self._function = path, function
        self._token, self._reload_token = token, reload_token
        self.on_failure = on_failure
        self._loading, self._large = asyncio.Lock(), asyncio.Lock()
        self._held = 0  # bytes of bodies that are being read
        self._joining: Counters | None = None  # of an artifact that is about to be served
        self._behind: set[str] = set()  # users whose events it has not counted yet
        self._events = Events(limits.events_mib << 20, limits.events_per_list)
        self._answered = Answered()
        self._documented: tuple[Any, Any] = None, None
        self._batcher = Batcher(
            self._score_batch,
            sizes=limits.requests,
            queue=limits.queue,
            wait_s=limits.wait_ms / 1e3,
        )
        gauge = self.telemetry.gauge
        gauge("recjax_waiting_requests", "In the queue.", lambda: self._batcher.waiting)
        gauge("recjax_event_users", "Users with stored events.", lambda: len(self._events))
        gauge("recjax_events", "Events stored.", lambda: self._events.count)
        gauge("recjax_event_bytes", "That they take.", lambda: self._events.bytes)
        gauge("recjax_event_users_evicted", "To make room.", lambda: self._events.evicted)
        for name in ("hits", "misses", "bytes"):
            figure = functools.partial(self._prefix, name)
            gauge(f"recjax_prefix_{name}", "Of the prefix cache.", figure)
        self.app = self._app()

    def _app(self) -> ASGIApp:
        routes = [
            Route("/v1/score", self._score, methods=["POST"]),
            Route("/v1/events", self._append, methods=["POST"]),
            Route(RELOAD, self._reload, methods=["POST"]),
            Route("/v2", _server),
            Route("/v2/health/live", _healthy),
            Route("/v2/health/ready", self._readiness),
            Route("/v2/models/{model}", self._model),
            Route("/v2/models/{model}/ready", self._model_readiness),
            Route(INFER, self._infer, methods=["POST"]),
            Route("/healthz", _healthy),
            Route("/readyz", self._readiness),
            Route("/metrics", self._metrics),
            Route("/openapi.json", self._openapi),
            Route("/docs", self._docs),
        ]
        handlers: dict[Any, Any] = {
            HTTPException: _http_problem,
            BodyError: lambda _, e: problem(e.status, str(e)),
            RequestError: lambda _, e: problem(422, str(e)),
            KeyReused: lambda _, e: problem(409, str(e)),
            Overloaded: lambda _, e: _overloaded(e),
            DeadlinePassed: lambda _, e: problem(
                504, "the deadline passed; allow more time or send less"
            ),
            ClientDisconnect: lambda _, e: problem(400, "the body ended early; send all of it"),
            Exception: lambda _, e: problem(500, "this is a fault of the service; see its log"),
        }
        app = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)
        return Frame(app, self, {r.path for r in routes})

    # --- life

    @contextlib.asynccontextmanager
    async def _lifespan(self, _):
        async with self._batcher.running():
            loading = asyncio.create_task(self._first_load())
            yield
            loading.cancel()

    async def _first_load(self) -> None:
        try:
            await self.load()
        except Exception as e:
            if not isinstance(e, ArtifactError):
                _log.exception("loading failed")
            self.failure = str(e) or type(e).__name__
            self.on_failure()

    async def load(self) -> bool:
        """Loads and warms the artifact beside the one served, then switches; False when it is the same one.

        Raises:
          ArtifactError: It cannot be served; nothing changed.
        """
        async with self._loading:
            if self.model and await asyncio.to_thread(live.stamp, self._path) == self.model.stamp:
                return False
            make: dict[str, Any] = dict(
                requests=self.limits.requests, candidates=self.limits.candidates
            )
            make |= dict(function=self._function, prefix_bytes=self.limits.prefix_mib << 20)
            make |= dict(max_events=self.limits.events_per_list)
            loaded = await asyncio.to_thread(live.load, self._path, **make)
            await self._catch_up(loaded.counters)
            self.model = loaded  # one assignment: requests hold the model they came for
            self._joining = None
            self.telemetry.serving(loaded.stamp)
            _log.info("serving artifact %s from %s", loaded.stamp[:12], self._path)
            return True

    async def _catch_up(self, counters: Counters | None) -> None:
        """Counts the stored events that the snapshot of a new artifact lacks; events go on arriving meanwhile."""
        if counters is None:
            return
        self._joining, self._behind = counters, set(self._events.users)
        while self._behind:
            user = self._behind.pop()
            counters.add(
                user, self._events.since(user, counters.list, counters.fields, counters.until)
            )
            await asyncio.sleep(0)

    def _prefix(self, what: str) -> int:
        return getattr(self.model.prefix, what) if self.model and self.model.prefix else 0

    # --- scoring

    async def _score(self, request: Request) -> Response:
        arrived = asyncio.get_running_loop().time()
        model = self._ready()
        asked = await self._parsed(request, model.bodies.score)
        outputs = await self._outputs(model, asked, arrived)
        return _json({"stamp": model.stamp, "outputs": outputs}, model.stamp)

    async def _infer(self, request: Request) -> Response:
        arrived = asyncio.get_running_loop().time()
        model = self._named(request)
        read = functools.partial(kserve.read, model.bodies)
        asked, name = await self._parsed(request, read)
        outputs = await self._outputs(model, asked, arrived)
        return _json(kserve.answer(model.name, model.stamp, outputs, name), model.stamp)

    async def _outputs(
        self, model: live.Model, asked: ScoreRequest, arrived: float
    ) -> dict[str, list]:
        allowed = min(asked.deadline_ms or self.limits.deadline_ms, self.limits.deadline_ms)
        values = self._complete(model, asked)
        group = model, model.bucket(asked.candidates), prefix.KEY in values
        outputs = await self._batcher.submit(group, values, arrived + allowed / 1e3)
        self.telemetry.candidates.inc(asked.candidates)
        return outputs

    def _complete(self, model: live.Model, asked: ScoreRequest) -> dict[str, Any]:
        """With the time, and what was left out: the user's stored events, or none, and the counters as of now."""
        values = {"time": int(time.time()), **asked.values}
        if model.own:
            values = model.own.complete(values, asked.user, asked.candidates)
        stored = []
        for name, columns in model.bodies.lists.items():
            if f"{name}/time" not in values:
                got = self._events.read(
                    asked.user,
                    name,
                    columns,
                    values["time"],
                    model.scorer.history[name],
                    model.scorer.artifact.past.get(name),
                )
                if model.own:
                    got = model.own.in_session(name, got, values["time"])
                values |= {f"{name}/time" if n == "time" else n: v for n, v in got.items()}
                stored.append((name, len(got["time"]), got["time"][-1:]))
                continue
            latest = max(values[f"{name}/time"], default=-1)
            if latest >= values["time"]:
                raise BodyError(
                    f"history.{name} has an event at {latest}, not before the request at {values['time']}; "
                    "leave out what had not happened yet"
                )
        if model.prefix and asked.user and len(stored) == len(model.bodies.lists):
            # A version's events before some time are known by their number and the last one's time.
            profile = [values[f.name] for f in model.scorer.schema.select("profile")]
            version = self._events.version(asked.user)
            values[prefix.KEY] = repr((asked.user, version, stored, profile))
        if model.counters:
            values |= model.counters.fill(values, asked.candidates)
        return values

    def _score_batch(self, group: tuple[live.Model, int, bool], requests: list) -> list:
        """In the scorer's thread."""
        model = group[0]
        seen, unknown = model.looked_up()
        start = time.perf_counter()
        answers = model.score(requests)
        self.telemetry.batch_seconds.observe(time.perf_counter() - start)
        self.telemetry.batch.observe(len(requests))
        now_seen, now_unknown = model.looked_up()
        self.telemetry.looked_up(now_seen - seen, now_unknown - unknown)
        return answers

    # --- the rest

    async def _append(self, request: Request) -> Response:
        model = self._ready()
        asked = await self._parsed(request, model.bodies.events)
        self._check_times(asked)
        sent = request.headers.get("idempotency-key", "")
        if len(sent) > 255 or any(not "!" <= c <= "~" for c in sent):
            raise BodyError(
                "the idempotency key is no word of at most 255 visible ASCII characters; send one"
            )
        answer = self._answered.before(sent, asked)
        if answer is None:
            answer = {n: self._events.append(asked.user, n, c) for n, c in asked.lists.items()}
            self._answered.keep(sent, asked, answer)
            for counters in (self.model.counters, self._joining):
                behind = counters is self._joining and asked.user in self._behind
                if counters and not behind:
                    self._count(counters, asked)
        return _json({"stamp": model.stamp, "stored": answer}, model.stamp)

    def _check_times(self, asked: EventsRequest) -> None:
        """Events that have not happened would push out those that have, and never be read."""
        latest = int(time.time()) + self.limits.event_skew_s
        for name, columns in asked.lists.items():
            if max(columns["time"], default=0) > latest:
                raise BodyError(
                    f"events.{name} has an event at {max(columns['time'])}, after now ({latest - self.limits.event_skew_s}) "
                    "in seconds since 1970; send events when they have happened"
                )

    def _count(self, counters: Counters, asked: EventsRequest) -> None:
        columns = asked.lists.get(counters.list, {})
        # The body may lack the list, or have been checked for another artifact.
        if {"time", *counters.fields} <= columns.keys():
            counters.add(asked.user, columns)

    async def _reload(self, request: Request) -> Response:
        if (await self._body(request)).strip() != b"{}":
            raise BodyError("the body has something to say and reloading nothing to ask; send {}")
        if self._loading.locked():
            return problem(409, "a load is in progress; wait for it, then reload if need be")
        try:
            changed = await self.load()
        except ArtifactError as e:
            self.telemetry.reloads.labels("refused").inc()
            return problem(409, f"{e} (what was served before is served still)")
        self.telemetry.reloads.labels("switched" if changed else "unchanged").inc()
        return _json({"stamp": self.model.stamp, "changed": changed}, self.model.stamp)

    async def _readiness(self, _: Request) -> Response:
        model = self._ready()
        if self.leaving:
            raise HTTPException(503, "this process is about to end; ask another one")
        return _json({"stamp": model.stamp}, model.stamp)

    def _named(self, request: Request) -> live.Model:
        model = self._ready()
        name = request.path_params["model"]
        if name != model.name:
            raise HTTPException(404, f"there is no model {name!r}; ask for {model.name!r}")
        return model

    async def _model(self, request: Request) -> Response:
        model = self._named(request)
        scorer = model.scorer
        about = kserve.describe(
            model.name, model.stamp, scorer.schema, model.bodies, scorer.outputs
        )
        return _json(about, model.stamp)

    async def _model_readiness(self, request: Request) -> Response:
        self._named(request)
        return await self._readiness(request)

    async def _metrics(self, _: Request) -> Response:
        text, kind = self.telemetry.render()
        return Response(text, headers={"content-type": kind})

    async def _openapi(self, _: Request) -> Response:
        return Response(self._pages()[0], media_type="application/json")

    async def _docs(self, _: Request) -> Response:
        return HTMLResponse(self._pages()[1])

    def _pages(self) -> tuple[bytes, str]:
        """openapi.json and /docs, made once for each model: they take longer than scoring."""
        model = self._ready()
        if self._documented[0] is not model:
            doc = openapi.document(
                model.bodies,
                model.scorer.outputs,
                version=model.stamp,
                token=bool(self._token),
                reload=bool(self._reload_token),
            )
            self._documented = model, (to_json(doc), openapi.page(doc))
        return self._documented[1]

    def _ready(self) -> live.Model:
        if self.model is None:
            raise HTTPException(
                503, "the artifact is still being loaded; ask again soon", {"retry-after": "1"}
            )
        return self.model

    async def _parsed(self, request: Request, parse: Callable[[bytes], Any]) -> Any:
        """Large bodies take turns, and at most half of the loop's time: they may not delay small ones for long."""
        body = await self._body(request)
        if len(body) <= LARGE:
            return parse(body)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.limits.deadline_ms / 1e3):
                await self._large.acquire()
        except TimeoutError:
            raise DeadlinePassed from None
        start = loop.time()
        try:
            return parse(body)
        finally:
            loop.call_later(loop.time() - start, self._large.release)

    async def _body(self, request: Request) -> bytes:
        _must_be_json(request)
        limit = self.limits.body_bytes
        too_large = BodyError(
            f"the body has more than {limit} bytes; send fewer candidates, or columns instead of rows",
            413,
        )
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.deadline_ms / 1e3):
                async for chunk in request.stream():
                    body += chunk
                    self._held += len(chunk)
                    if len(body) > limit:
                        raise too_large
                    if self._held > BODIES * limit:
                        raise Overloaded(1)
        except TimeoutError:
            raise BodyError("the body did not arrive in time; send it at once", 408) from None
        finally:
            self._held -= len(body)
        return bytes(body)

    def overloaded(self) -> Overloaded | None:
        """Why a request that comes now would not be answered in time."""
        try:
            deadline = asyncio.get_running_loop().time() + self.limits.deadline_ms / 1e3
            self._batcher.admit(deadline)
        except Overloaded as e:
            return e
        return None

    def denied(self, scope: Scope) -> Response | None:
        """Why the request may not be made; None where it carries the token, or needs none."""
        token = self._token
        if scope["path"] == RELOAD:
            token = self._reload_token
            if not token:
                detail = "reloading is off; start the service with --reload_token_file to allow it"
                return problem(403, detail)
        if not token or scope["path"] in OPEN:
            return None
        sent = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, rest = sent.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(rest.strip(), token.encode()):
            return None
        detail = "the bearer token is missing or wrong; send 'Authorization: Bearer <token>'"
        return problem(401, detail, {"www-authenticate": "Bearer"})


class Frame:
    """Around every request: the token, an id, the headers of every answer, counts, times and the log."""

    def __init__(self, app: ASGIApp, service: Service, paths: set[str]):
        self._app, self._service, self._paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        name = logs.id_of(dict(scope["headers"]).get(b"x-request-id", b""))
        logs.request_id.set(name)  # a request is a task of its own

        async def framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if 400 <= status < 500:
                    await asyncio.sleep(self._service.guard.pause())
                message["headers"] = [*message.get("headers", []), *self._headers(message, name)]
            await send(message)

        try:
            await self._chosen(scope)(scope, receive, framed)
        finally:
            seconds = time.perf_counter() - start
            path = self._template(scope["path"]) or "other"
            self._service.telemetry.requests.labels(path, status).inc()
            self._service.telemetry.seconds.labels(path).observe(seconds)
            if self._service.log_requests:
                fields = {"method": scope["method"], "path": path, "status": status}
                fields |= {"ms": round(1e3 * seconds, 3), "client": (scope["client"] or [""])[0]}
                text = " ".join(map(str, (name, *fields.values())))
                _log.info("%s", text, extra={"fields": fields})

    def _chosen(self, scope: Scope) -> ASGIApp:
        """The application, unless the request is refused before its body costs anything."""
        if denied := self._service.denied(scope):
            return denied
        path = self._template(scope["path"])
        if not path:
            return problem(404, "there is no such path; /docs lists what there is")
        if path in SCORING and (busy := self._service.overloaded()):
            return _overloaded(busy)
        return self._app

    def _template(self, path: str) -> str:
        """The path of a route that a path belongs to; "" for none."""
        if path not in self._paths:
            path = _MODEL.sub("/v2/models/{model}", path)
        return path if path in self._paths else ""

    def _headers(self, message: Message, name: str) -> Iterator[tuple[bytes, bytes]]:
        yield b"x-request-id", name.encode()
        model = self._service.model
        if model and not any(k == b"recjax-stamp" for k, _ in message.get("headers", [])):
            yield b"recjax-stamp", model.stamp.encode()
        if self._service.leaving:  # clients that keep connections find another process
            yield b"connection", b"close"


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    body = {"title": "The request was not served", "status": status, "detail": detail}
    body["error"] = detail  # where clients of the open inference protocol look
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def _must_be_json(request: Request) -> None:
    """Also keeps web pages from posting across origins."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BodyError("content-type is not application/json; send it so", 415)


def _overloaded(e: Overloaded) -> Response:
    return problem(429, str(e), {"retry-after": str(e.retry_after)})


async def _http_problem(request: Request, e: HTTPException) -> Response:
    detail = e.detail
    if e.status_code == 405:
        detail = f"{request.method} is not for this path; /docs says what is"
    return problem(e.status_code, detail, e.headers)


async def _server(_: Request) -> Response:
    return JSONResponse({"name": "recjax", "version": version_of("recjax"), "extensions": []})


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("ok")


def _json(value: Any, stamp: str) -> Response:
    headers = {"recjax-stamp": stamp}
    return Response(to_json(value), headers=headers, media_type="application/json")
