"""The console as an application under acceptance: a fixture of runs behind it, oracles on those files, and planted defects.

A defect is planted between the console and the browser, by changing what is asked or answered: the console itself knows of none.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import pathlib
import re
import socket
import tempfile
import threading
import time
from typing import Any

from tests.acceptance.running import Application

DEFECTS: Mapping[str, tuple[str, ...]] = {
    "dead_button": ("console.runs",),
    "filter_ignored": ("console.runs",),
    "wrong_sort": ("console.runs",),
    "last_row_hidden": ("console.runs",),
    "metric_rounded": ("console.run", "console.runs", "console.compare"),
    "state_stale": ("console.runs", "console.run"),
    "stale_chart": ("console.run",),
    "axis_swapped": ("console.run",),
    "nan_shown": ("console.run",),
    "broken_image": ("console.run",),
    "run_500": ("console.run",),
    "download_short": ("console.download",),
    "difference_sign": ("console.compare",),
    "law_interval": ("console.law",),
    "probability_wrong": ("console.play",),
    "keyboard_dead": ("console.words",),
    "console_exception": ("console.words", "console.run", "console.play"),
    "narrow_overflow": ("console.narrow",),
    "slow_answer": ("console.compare",),
}
PAUSE_S = 3.0


class Planted:
    """An ASGI application with a defect in front of it."""

    def __init__(self, app, defect: str):
        self.app, self.defect = app, defect

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http" or not self.defect:
            return await self.app(scope, receive, send)
        path, d = scope["path"], self.defect
        if d == "filter_ignored":
            scope = scope | {
                "query_string": re.sub(rb"(^|&)(q|state)=[^&]*", b"", scope["query_string"])
            }
        if d == "wrong_sort":
            scope = scope | {
                "query_string": scope["query_string"].replace(b"sort=auc", b"sort=logloss")
            }
        if d == "slow_answer" and path == "/compare":
            await asyncio.sleep(PAUSE_S)
        if d == "run_500" and path == "/run" and b"live" in scope["query_string"]:
            await send({"type": "http.response.start", "status": 500, "headers": []})
            return await send({"type": "http.response.body", "body": b"Internal Server Error"})
        start: dict[str, Any] = {}
        body = b""

        async def changed(message):
            nonlocal body
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                done = spoilt(d, path, body.decode("utf-8", "surrogateescape")).encode(
                    "utf-8", "surrogateescape"
                )
                headers = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
                await send(
                    {**start, "headers": [*headers, (b"content-length", str(len(done)).encode())]}
                )
                await send({"type": "http.response.body", "body": done})

        await self.app(scope, receive, changed)


def spoilt(defect: str, path: str, text: str) -> str:
    """An answer with the defect in it."""
    page = not path.startswith(("/static", "/api")) and "." not in path
    if defect == "dead_button" and path == "/":
        return text.replace("<button>Show</button>", '<button type="button">Show</button>')
    if defect == "last_row_hidden" and path == "/":
        head, _, tail = text.rpartition("<tr data-id=")
        return head + tail[tail.index("</tr>") + 5 :] if head else text
    if defect == "metric_rounded" and page:
        return text.replace("0.7200", "0.7300")
    if defect == "metric_rounded" and path.startswith("/api"):
        return text.replace("0.72,", "0.73,")
    if defect == "state_stale":
        return (
            text.replace(">stopped<", ">running<")
            .replace('"stopped"', '"running"')
            .replace("state stopped", "state running")
            if page or "/api" in path
            else text
        )
    if defect == "stale_chart" and path == "/api/run":
        found = json.loads(text)
        for line in found["curves"].values():
            line["x"], line["y"] = line["x"][:5], line["y"][:5]
        return json.dumps(found)
    if defect == "axis_swapped" and path == "/run":
        return text.replace('data-x="step"', 'data-x="loss"')
    if defect == "nan_shown" and path == "/run":
        return text.replace("0.6100", "NaN")
    if defect == "broken_image" and path == "/run":
        return text.replace(
            "<h2>Curves</h2>",
            '<h2>Curves</h2><img src="/static/none.png" alt="curves" width="40" height="40">',
        )
    if defect == "download_short" and path.endswith(".csv"):
        return "\n".join(text.splitlines()[:-1]) + "\n"
    if defect == "difference_sign" and path == "/compare":
        return re.sub(
            r"<td>(-?)(0\.\d{4})</td><td>(?=-?0)",
            lambda m: f"<td>{'' if m[1] else '-'}{m[2]}</td><td>",
            text,
        )
    if defect == "law_interval" and path == "/sweep":
        return re.sub(r"(<td>\d+</td><td>0\.\d{4}</td><td>)0\.\d{4}", r"\g<1>0.6000", text)
    if defect == "probability_wrong" and path == "/api/rank":
        return re.sub(r'(: probability": ?)(0\.\d+)', lambda m: f"{m[1]}{float(m[2]) / 2}", text)
    if defect == "keyboard_dead" and path.endswith(".css"):
        return text.replace(", .word:focus .tip", "")
    if defect == "console_exception" and path.endswith("console.js"):
        return text + "\nthrow new Error('planted');\n"
    if defect == "narrow_overflow" and path.endswith("console.css"):
        return text + "\nh1 { min-width: 60rem; }\n"
    return text


# ---- what is true, from the files


class Truth:
    """Oracles on a fixture's files."""

    def __init__(self, root: pathlib.Path, artifact: str):
        self.root, self.artifact = root, artifact
        self.law = None

    def logged(self, run: str, name: str = "loss") -> list[float]:
        rows = [
            json.loads(line)
            for line in (self.root / run / "metrics.jsonl").read_text().splitlines()
        ]
        return [r[name] for r in rows if r["kind"] == "train"]

    def summary(self, run: str, key: str, split: str = "test") -> float:
        found = json.loads((self.root / run / "summary.json").read_text())
        return (
            found["popularity"][split]
            if key == "popularity"
            else found[split].get(key, found.get(key))
        )

    def paired(self, key: str, metric: str = "auc", a: str = "a", b: str = "b") -> float:
        import numpy as np

        from recjax.metrics import comparison

        one, two = (np.load(self.root / r / "predictions-test.npz") for r in (a, b))
        p = [1 / (1 + np.exp(-x["logit"].astype(np.float64))) for x in (one, two)]
        found = comparison.paired_bootstrap(
            p[0], p[1], one["label"], one["group/visit"], metric, weights=one["weight"]
        )
        return getattr(found, key)

    def trials(self) -> list[dict]:
        return [
            json.loads(line)
            for line in (self.root / "study" / "trials.jsonl").read_text().splitlines()[:-1]
        ]

    def expected(self, key: str, examples: float) -> list[float]:
        from scaling.console.pages import DRAWS
        from scaling.law import decisions, laws

        self.law = self.law or laws.joint_law(self.trials(), "auc", draws=DRAWS)
        return [
            decisions.expected(self.law, o, examples)[key] for o in decisions.options(self.trials())
        ]

    def probabilities(self) -> list[float]:
        from recjax.serving import artifact
        from recjax.serving.scorer import Scorer
        from scaling.console.playground import Playground

        scorer = Scorer(artifact.load(self.artifact))
        (answer,) = scorer.score_requests([Playground([self.artifact]).example("student")])
        return sorted(answer["probability"].tolist(), reverse=True)

    def curve_csv(self, run: str) -> list[list]:
        rows = [
            json.loads(line)
            for line in (self.root / run / "metrics.jsonl").read_text().splitlines()
        ]
        losses = [["loss", r["step"], r["loss"]] for r in rows if r["kind"] == "train"]
        judged = [[f"{r['split']} auc", r["step"], r["auc"]] for r in rows if r["kind"] != "train"]
        return [["line", "x", "y"], *losses, *judged]

    def all(self) -> dict[str, Callable[..., Any]]:
        return {
            "logged.last": lambda run: self.logged(run)[-1],
            "logged.caption": lambda run: [len(v := self.logged(run)), min(v), max(v), v[-1]],
            "run.summary": self.summary, "run.csv": self.curve_csv, "paired": self.paired, "law.expected": self.expected,
            "trials.count": lambda: len(self.trials()), "play.probabilities": self.probabilities,
            "config.value": lambda run, key: json.loads((self.root / run / "config.json").read_text())[key],
        }  # fmt: skip


def _wait_for_law(behind) -> None:
    """Until the law is fitted: what the page says meanwhile is a test of its own."""
    from scaling.console.pages import Fitting

    place = behind.index.place("runs/study", "sweep")
    while True:
        try:
            behind.fits.get(place, "auc")
            return
        except Fitting:
            time.sleep(0.1)


@contextlib.contextmanager
def console(defect: str = "") -> Iterator[Application]:
    """The console over a fixture, on a free port of loopback.

    Raises:
      KeyError: No such defect.
    """
    import uvicorn

    from scaling.console.app import Console
    from tests.scaling.console import fixture
    from tests.serving.conftest import export

    if defect and defect not in DEFECTS:
        raise KeyError(f"the console has no defect {defect!r}; it has {', '.join(DEFECTS)}")
    with tempfile.TemporaryDirectory(prefix="recjax-acceptance-") as folder:
        root = pathlib.Path(folder)
        runs = fixture.write_all(root)
        artifact = str(export(root / "student").path)
        behind = Console([str(runs)], [artifact])
        _wait_for_law(behind)
        app = Planted(behind, defect)
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", interface="asgi3", ws="none", lifespan="off")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            yield Application("console", url, Truth(runs, artifact).all())
        finally:
            server.should_exit = True
            thread.join(10)
