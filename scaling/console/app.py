"""The console's HTTP: pages, their data as JSON and CSV, charts as SVG. GET only, but for the playground's question.

Guards: the Host header must be one that the console listens as (a page elsewhere cannot be rebound to it), a token beyond loopback, a
policy that lets nothing in from outside, and POST from its own pages only.
"""

from collections.abc import Callable, Sequence
import functools
import hmac
import json
import pathlib
import re
from typing import Any
import urllib.parse

from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from scaling.console import figures, pages
from scaling.console.index import Index
from scaling.console.playground import Playground
from scaling.law.fit import count
from scaling.report.words import WORDS, explain

HERE = pathlib.Path(__file__).resolve().parent
MOST_BYTES = 1 << 20
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
COOKIE = "recjax-console"


class Wrong(ValueError):
    """What was asked cannot be answered; the sentence is shown, with 400."""


class Console:
    """The application over an index and a playground; itself an ASGI callable.

    Args:
      roots: Folders of runs and sweeps.
      artifacts: Exports for the playground.
      hosts: What the Host header may be, without the port.
      token: What a client must show; "": nothing.
    """

    def __init__(
        self,
        roots: Sequence[str],
        artifacts: Sequence[str] = (),
        hosts: Sequence[str] = ("127.0.0.1", "localhost", "::1"),
        token: str = "",
    ):
        self.index, self.playground, self.fits = Index(roots), Playground(artifacts), pages.Laws()
        self.hosts, self.token = set(hosts), token
        self._pages = Environment(
            loader=PackageLoader("scaling.console"), autoescape=select_autoescape(default=True, default_for_string=True),
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._pages.filters.update(
            number=number, amount=amount, duration=duration, link=urllib.parse.quote_plus
        )
        self._pages.globals.update(explain=explain, words=WORDS)

        def route(path: str, call: Callable[[Request], Response]) -> Route:
            return Route(path, functools.partial(self._answer, call), methods=["GET"])

        self._app = Starlette(
            routes=[
                route("/", self.runs), route("/runs.csv", self.runs_csv), route("/api/runs", self.runs_json),
                route("/run", self.run), route("/run.csv", self.run_csv), route("/run.svg", self.run_svg), route("/api/run", self.run_json),
                route("/compare", self.compare), route("/compare.csv", self.compare_csv),
                route("/sweeps", self.sweeps), route("/sweep", self.sweep), route("/sweep.csv", self.sweep_csv),
                route("/sweep.svg", self.sweep_svg), route("/api/sweep", self.sweep_json),
                route("/play", self.play), route("/data", self.data), route("/words", self.glossary), route("/health", self.health),
                Route("/api/rank", self.rank, methods=["POST"]),
                Mount("/static", StaticFiles(directory=HERE / "static")),
            ],
            exception_handlers={404: self._not_found, 405: self._not_found},
        )  # fmt: skip

    # ---- guards

    async def __call__(self, scope, receive, send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = Request(scope, receive)
        refused = self._refused(request)

        async def guarded(message):
            if message["type"] == "http.response.start":
                own = {k for k, _ in message["headers"]}
                message["headers"] += [
                    (k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in own
                ]
            await send(message)

        await (refused or self._app)(scope, receive, guarded)

    def _refused(self, request: Request) -> Response | None:
        host = re.sub(r":\d+$", "", request.headers.get("host", "")).strip("[]")
        if host not in self.hosts:
            return PlainTextResponse(
                f"Host {host!r} is not this console's; open it under the address that it printed",
                421,
            )
        if request.method == "POST":
            origin = request.headers.get("origin", "")
            if origin and urllib.parse.urlsplit(origin).netloc != request.headers.get("host"):
                return PlainTextResponse("asked from another page", 403)
            if request.headers.get("content-type", "").partition(";")[0] != "application/json":
                return PlainTextResponse("send application/json", 415)
        if not self.token:
            return None
        given = request.query_params.get("token", "")
        shown = request.headers.get("authorization", "")[7:] or request.cookies.get(COOKIE, "")
        if given and hmac.compare_digest(given.encode(), self.token.encode()):
            response = RedirectResponse(request.url.remove_query_params("token"), 303)
            response.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            return response
        if hmac.compare_digest(shown.encode(), self.token.encode()):
            return None
        return PlainTextResponse(
            "this console needs its token: open the address with ?token=...", 401
        )

    async def _answer(self, call: Callable[[Request], Response], request: Request) -> Response:
        """A page by `call`, off the loop; what cannot be answered is a page with a sentence."""
        try:
            return await run_in_threadpool(call, request)
        except LookupError as e:
            return self._sorry(request, str(e.args[0] if e.args else e), 404)
        except (Wrong, ValueError) as e:
            return self._sorry(request, str(e), 400)

    async def _not_found(self, request: Request, e: Exception) -> Response:
        status = getattr(e, "status_code", 404)
        return self._sorry(request, f"{request.method} {request.url.path} is not known", status)

    def _sorry(self, request: Request, sentence: str, status: int) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": sentence}, status)
        return self._page("sorry.html.j2", status, sentence=sentence, title="Not possible")

    def _page(self, name: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(self._pages.get_template(name).render(**values), status)

    # ---- runs

    def runs(self, request: Request) -> Response:
        rows = self._chosen(request, pages.runs(self.index))
        return self._page(
            "runs.html.j2",
            title="Runs",
            rows=rows,
            query=dict(request.query_params),
            columns=RUN_COLUMNS,
        )

    def _chosen(self, request: Request, rows: list[dict]) -> list[dict]:
        """Filtered and sorted as the address says."""
        q = request.query_params
        word, state, key = q.get("q", "").lower(), q.get("state", ""), q.get("sort", "id")
        if key not in ("state", *RUN_COLUMNS):
            raise Wrong(f"sort={key} is no column; use one of {', '.join(RUN_COLUMNS)}")
        rows = [
            r
            for r in rows
            if word in f"{r['id']} {r['model']}".lower() and state in ("", r["state"])
        ]
        there = [r for r in rows if r.get(key) is not None]
        there.sort(key=lambda r: r[key], reverse=q.get("down") == "1")
        return there + [r for r in rows if r.get(key) is None]

    def runs_csv(self, request: Request) -> Response:
        return _csv(
            figures.as_csv(self._chosen(request, pages.runs(self.index)), RUN_COLUMNS), "runs.csv"
        )

    def runs_json(self, request: Request) -> Response:
        return _json(self._chosen(request, pages.runs(self.index)))

    def run(self, request: Request) -> Response:
        found = pages.run(self.index, _asked(request, "id"))
        return self._page("run.html.j2", title=found["row"]["id"], **found)

    def run_json(self, request: Request) -> Response:
        found = pages.run(self.index, _asked(request, "id"))
        return _json({"row": found["row"], "curves": found["curves"]})

    def _curves(self, request: Request) -> dict[str, dict[str, list]]:
        return pages.curves(self.index, self.index.place(_asked(request, "id"), "run"))

    def run_csv(self, request: Request) -> Response:
        return _csv(figures.lines_csv(self._curves(request)), "run.csv")

    def run_svg(self, request: Request) -> Response:
        curves = self._curves(request)
        name = request.query_params.get("line", "loss")
        if name not in curves:
            raise LookupError(f"no curve {name!r}; there are {', '.join(curves) or 'none yet'}")
        return _svg(figures.svg({name: curves[name]}, "step", name), "run.svg")

    # ---- comparisons

    def compare(self, request: Request) -> Response:
        ids = request.query_params.getlist("run")
        known = [p.id for p in self.index.places("run")]
        found = pages.compare(self.index, ids) if len(ids) > 1 else None
        return self._page("compare.html.j2", title="Compare", ids=ids, known=known, found=found)

    def compare_csv(self, request: Request) -> Response:
        ids = request.query_params.getlist("run")
        found = pages.finals(self.index, [self.index.place(i, "run") for i in ids])
        rows = [
            {"split": m["split"], "metric": m["metric"], **dict(zip(ids, m["values"], strict=True))}
            for m in found
        ]
        return _csv(figures.as_csv(rows), "compare.csv")

    # ---- sweeps

    def sweeps(self, request: Request) -> Response:
        return self._page("sweeps.html.j2", title="Sweeps and laws", rows=pages.sweeps(self.index))

    def _sweep(self, request: Request) -> dict[str, Any]:
        return pages.sweep(
            self.index, self.fits, _asked(request, "id"), request.query_params.get("metric", "auc")
        )

    def sweep(self, request: Request) -> Response:
        q = request.query_params
        history, examples, target = (_float(q, n) for n in ("history", "examples", "target"))
        found = self._sweep(request)
        answer, why = None, ""
        if found["law"]:
            try:
                answer = pages.what_if(
                    found["fit"], found["rows"], found["metric"], grade=q.get("grade", ""), history=int(history or 0),
                    examples=examples or 0.0, target=target,
                )  # fmt: skip
            except ValueError as e:
                why = str(e)
        return self._page(
            "sweep.html.j2",
            title=found["id"],
            answer=answer,
            refused=why,
            query=dict(q),
            shown=found["rows"][:200],
            **found,
        )

    def sweep_json(self, request: Request) -> Response:
        found = self._sweep(request)
        return _json(
            {
                k: found[k]
                for k in ("id", "metric", "points", "law", "why", "fitting", "notes", "best")
            }
        )

    def _trials(self, request: Request) -> list[dict]:
        place = self.index.place(_asked(request, "id"), "sweep")
        return self.index.rows(place, "trials.jsonl")[0]

    def sweep_csv(self, request: Request) -> Response:
        return _csv(figures.as_csv(self._trials(request)), "trials.csv")

    def sweep_svg(self, request: Request) -> Response:
        metric = request.query_params.get("metric", "auc")
        lines = pages.points(self._trials(request), metric)
        return _svg(
            figures.svg(lines, "training examples", metric, log_x=True, dots=True), "law.svg"
        )

    # ---- artifacts, data, words

    def play(self, request: Request) -> Response:
        names = request.query_params.getlist("artifact") or list(self.playground.paths)[:1]
        about = [self.playground.about(n) for n in names]
        asked = request.query_params.get("request") or (
            json.dumps(about[0]["example"], indent=1) if about else ""
        )
        return self._page(
            "play.html.j2",
            title="Playground",
            known=list(self.playground.paths),
            names=names,
            about=about,
            asked=asked,
        )

    async def rank(self, request: Request) -> Response:
        """{"artifacts": [..], "request": {..}} -> {"rows": [..]}."""
        try:
            size = int(request.headers.get("content-length", "0"))
            if not 0 < size <= MOST_BYTES:
                raise Wrong(
                    f"the question has {size} bytes; {MOST_BYTES} at most, and a content-length"
                )
            asked = await request.json()
            if not isinstance(asked, dict) or not isinstance(asked.get("request"), dict):
                raise Wrong("send {artifacts: [names], request: {...}}")
            names = [str(n) for n in asked.get("artifacts", [])][:2]
            if not names:
                raise Wrong("choose an artifact")
            rows = await run_in_threadpool(self.playground.rank, names, asked["request"])
        except json.JSONDecodeError as e:
            return JSONResponse({"error": f"the request is no JSON: {e}"}, 400)
        except (ValueError, LookupError) as e:
            return JSONResponse({"error": str(e)}, 400)
        return _json({"rows": rows})

    def data(self, request: Request) -> Response:
        return self._page("data.html.j2", title="Prepared data", rows=pages.data_sets(self.index))

    def glossary(self, request: Request) -> Response:
        return self._page("words.html.j2", title="Words")

    def health(self, request: Request) -> Response:
        return _json({"status": "ok"})


RUN_COLUMNS = (
    "id",
    "state",
    "model",
    "step",
    "total",
    "loss",
    "auc",
    "logloss",
    "ece",
    "split",
    "examples_per_s",
    "waited",
    "left_s",
)


def _asked(request: Request, name: str) -> str:
    if not (value := request.query_params.get(name)):
        raise Wrong(f"the address has no {name}=")
    return value


def _float(query, name: str) -> float | None:
    """A number of the address; None where it is empty."""
    text = query.get(name, "").replace(",", "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise Wrong(f"{name}={text} is no number") from None
    if not 0 < value < 1e18:
        raise Wrong(f"{name}={text} must be above 0")
    return value


def _json(value: Any) -> Response:
    from recjax.runtime.run import plain

    return JSONResponse(plain(value))


def _csv(text: str, name: str) -> Response:
    return Response(
        text,
        media_type="text/csv",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


def _svg(text: str, name: str) -> Response:
    return Response(
        text,
        media_type="image/svg+xml",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


def number(value: Any, digits: int = 4) -> str:
    """0.70123 -> "0.7012", 1450054 -> "1,450,054", None -> "–"."""
    if value is None or isinstance(value, bool):
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}" if isinstance(value, float) else str(value)


def amount(value: Any) -> str:
    """1450000 -> "1.45 M"; what is no number stays."""
    numeric = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    return count(value) if numeric else str(value)


def duration(seconds: Any) -> str:
    from recjax.training.progress import duration as words

    return "–" if seconds is None else words(seconds)
