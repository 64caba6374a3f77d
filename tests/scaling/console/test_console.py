"""The console's pages, numbers, downloads and guards, through its ASGI callable."""

import csv
import fcntl
import io
import json
import time

import httpx
import numpy as np
import pytest

from recjax.metrics import comparison
from scaling.console import figures, pages
from scaling.console.app import Console, amount, number
from scaling.console.index import Index
from scaling.law import decisions, laws
from tests.messages import names
from tests.scaling.console import fixture
from tests.serving.conftest import export


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fixture.write_all(tmp_path_factory.mktemp("console"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return str(export(tmp_path_factory.mktemp("artifacts") / "student").path)


@pytest.fixture
def ask(root, artifact):
    """Calls the console: (method, path, ...) -> response."""
    console = Console([str(root)], [artifact])

    def call(path, method="GET", base="http://127.0.0.1:8100", console=console, **more):
        import anyio

        async def one():
            transport = httpx.ASGITransport(app=console)
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, path, **more)

        return anyio.run(one)

    return call


def test_runs_are_listed_with_their_state_and_what_is_damaged(ask):
    rows = {r["id"]: r for r in ask("/api/runs").json()}
    assert set(rows) == {"runs/a", "runs/b", "runs/live", "runs/cut"}
    assert [rows[f"runs/{n}"]["state"] for n in ("a", "live", "cut")] == [
        "finished",
        "stopped",
        "damaged",
    ]
    assert rows["runs/live"]["left_s"] == 75 and rows["runs/a"]["left_s"] is None
    names(rows["runs/cut"]["trouble"], "summary.json")
    page = ask("/").text
    names(page, "runs/a", "0.7000", "1,235", "25 %", "1 min 15 s", "summary.json")
    assert [r["id"] for r in ask("/api/runs?sort=auc&down=1&state=finished").json()] == [
        "runs/b",
        "runs/a",
    ]
    assert [r["id"] for r in ask("/api/runs?q=LIVE").json()] == ["runs/live"]
    refused = ask("/?sort=colour")
    assert refused.status_code == 400
    names(refused.text, "sort=colour", "state")


def test_a_run_whose_lock_is_held_runs(ask, root):
    with open(root / "live" / ".lock", "a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert ask("/api/run?id=runs/live").json()["row"]["state"] == "running"
    assert ask("/api/run?id=runs/live").json()["row"]["state"] == "stopped"


def test_curves_and_downloads_hold_what_the_run_logged(ask, root):
    logged = [json.loads(line) for line in (root / "a" / "metrics.jsonl").read_text().splitlines()]
    curve = ask("/api/run?id=runs/a").json()["curves"]["loss"]
    assert curve["x"] == [r["step"] for r in logged if r["kind"] == "train"]
    assert curve["y"] == [r["loss"] for r in logged if r["kind"] == "train"]
    answer = ask("/run.csv?id=runs/a")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [float(r["y"]) for r in rows if r["line"] == "loss"] == curve["y"]
    assert "attachment" in answer.headers["content-disposition"]
    assert ask("/run.svg?id=runs/a&line=loss").text.lstrip().startswith("<?xml")
    assert ask("/run.svg?id=runs/a&line=none").status_code == 404
    names(ask("/run?id=runs/a").text, "0.7000", "0.6100", "opt.lr", "19.7 k")


def test_comparisons_are_those_of_the_library(ask, root):
    found = pages.compare(Index([root]), ["runs/a", "runs/b"])
    one, two = (np.load(root / n / "predictions-test.npz") for n in "ab")
    p = lambda x: 1 / (1 + np.exp(-x["logit"].astype(np.float64)))  # noqa: E731
    want = comparison.paired_bootstrap(
        p(one), p(two), one["label"], one["group/visit"], "auc", weights=one["weight"]
    )
    got = next(x for x in found["paired"] if x["metric"] == "auc")
    assert (got["difference"], got["low"], got["high"]) == (want.difference, want.low, want.high)
    page = ask("/compare?run=runs/a&run=runs/b").text
    names(page, "opt.lr", f"{want.low:.4f} to {want.high:.4f}", "0.7200")
    assert "train.batch" not in page.split('id="differs"')[1]
    names(ask("/compare?run=runs/a&run=runs/live").text, "no scores were kept")
    assert ask("/compare?run=runs/a&run=runs/none").status_code == 404


def rows_of(root):
    return [
        json.loads(line) for line in (root / "study" / "trials.jsonl").read_text().splitlines()[:-1]
    ]


def decisions_law(root):
    return laws.joint_law(rows_of(root), "auc", draws=pages.DRAWS)


def test_a_law_is_fitted_in_the_background_and_answers(ask, root):
    """The page says so while it waits, and then what `scaling.decide` says."""
    first = ask("/sweep?id=runs/study")
    assert first.status_code == 200
    names(
        first.text,
        "lr=9 diverged",
        "trials.jsonl" if "cannot be read" in first.text else "measured points",
    )
    end = time.monotonic() + 300
    while (found := ask("/api/sweep?id=runs/study").json())["fitting"]:
        assert time.monotonic() < end
        time.sleep(0.5)
    assert (
        "examples" in found["law"]["formula"]
        and found["notes"]
        and found["best"].startswith("Best of what was measured")
    )
    page = ask("/sweep?id=runs/study&target=0.75&grade=0").text
    names(page, "a measured cell", "doubling")
    law = decisions_law(root)
    for option in decisions.options(rows_of(root)):
        want = decisions.expected(law, option, 3e6)
        shown = ask("/sweep?id=runs/study&examples=3000000").text
        names(shown, f"{want['value']:.4f}", f"{want['low']:.4f}", "extrapolated")
    refused = ask("/sweep?id=runs/study&examples=many")
    assert refused.status_code == 400
    names(refused.text, "examples=many")
    names(ask("/sweep?id=runs/study&grade=9").text, "grade", "9", "not measured")


def test_a_sweep_without_a_law_says_why(root):
    fits, index = pages.Laws(), Index([root])
    while (found := pages.sweep(index, fits, "runs/small"))["fitting"]:
        time.sleep(0.1)
    assert found["law"] is None and found["why"] and len(found["rows"]) == 10
    assert found["failed"] == [{"run": "x1", "error": "lr=9 diverged"}]


def test_candidates_are_ranked_as_the_artifact_scores_them(ask, artifact):
    import recjax

    page = ask("/play")
    assert page.status_code == 200
    request = Console([], [artifact]).playground.example("student")
    served = recjax.load(artifact).score(request)
    answer = ask("/api/rank", "POST", json={"artifacts": ["student"], "request": request})
    rows = answer.json()["rows"]
    scored = {r["place"]: r["student: probability"] for r in rows}
    np.testing.assert_allclose(
        [scored[i] for i in range(len(rows))], served["probability"], rtol=1e-6
    )
    assert [r["student: rank"] for r in rows] == list(range(1, len(rows) + 1))
    for bad, word in (
        ({"artifacts": ["student"], "request": {**request, "candidates": []}}, "candidates"),
        ({"artifacts": ["none"], "request": request}, "'none'"),
        ({"artifacts": [], "request": request}, "artifact"),
        ({"request": 3}, "request"),
    ):
        refused = ask("/api/rank", "POST", json=bad)
        assert refused.status_code == 400, bad
        names(refused.json()["error"], word)
    assert (
        ask(
            "/api/rank", "POST", content=b"{", headers={"content-type": "application/json"}
        ).status_code
        == 400
    )


def test_guards(ask, root):
    assert ask("/", base="http://evil.example").status_code == 421
    assert (
        ask("/api/rank", "POST", json={}, headers={"origin": "http://evil.example"}).status_code
        == 403
    )
    assert (
        ask("/api/rank", "POST", content=b"{}", headers={"content-type": "text/plain"}).status_code
        == 415
    )
    assert ask("/", "POST", json={}).status_code == 405
    for path in (
        "/run?id=../../etc",
        "/run?id=runs/a/../../..",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
    ):
        assert ask(path).status_code == 404, path
    headers = ask("/").headers
    assert (
        "default-src 'none'" in headers["content-security-policy"]
        and headers["x-content-type-options"] == "nosniff"
    )
    for path in ("/", "/compare", "/sweeps", "/data", "/words", "/play", "/run?id=runs/a"):
        text = ask(path).text
        assert (
            "http://" not in text.replace("http://127.0.0.1", "")
            and "https://" not in text
            and "<script>" not in text
        )
    locked = Console([str(root)], token="secret")
    assert ask("/", console=locked).status_code == 401
    assert ask("/", console=locked, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert ask("/", console=locked, headers={"authorization": "Bearer secret"}).status_code == 200
    entered = ask("/?token=secret&q=a", console=locked)
    assert entered.status_code == 303 and "secret" not in entered.headers["location"]
    assert "httponly" in entered.headers["set-cookie"].lower()


def test_text_of_files_is_text_on_the_page(tmp_path, ask):
    run = tmp_path / "runs" / "x"
    fixture.write_run(run, 0)
    config = json.loads((run / "config.json").read_text())
    config["model"]["name"] = "<img src=x onerror=alert(1)>"
    (run / "config.json").write_text(json.dumps(config))
    page = ask("/run?id=runs/x", console=Console([str(tmp_path / "runs")])).text
    assert "<img" not in page and "&lt;img" in page


def test_a_thousand_runs_are_listed_within_a_second(tmp_path):
    for i in range(1000):
        folder = tmp_path / "runs" / f"r{i}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model": {"name": "din"}}')
        (folder / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": 0.5}\n')
    index = Index([tmp_path / "runs"])
    assert len(pages.runs(index)) == 1000
    began = time.process_time()
    pages.runs(index)  # nothing is parsed a second time
    assert time.process_time() - began < 1


def test_numbers_as_they_are_shown():
    assert [number(x) for x in (0.70125, 1450054, None, 12345.678)] == [
        "0.7013",
        "1,450,054",
        "–",
        "12,345.6780",
    ]
    assert [amount(x) for x in (1_450_000, 532352, 41.0, None)] == ["1.45 M", "532 k", "41", "–"]
    assert figures.as_csv([{"a": 1, "b": 'x, "y"'}, {"a": None}]) == 'a,b\n1,"x, ""y"""\n,\n'


def test_empty_folders_say_what_to_do(tmp_path, ask):
    console = Console([str(tmp_path)])
    for path, word in (
        ("/", "recjax.train"),
        ("/sweeps", "scaling.run"),
        ("/data", "recjax.data.prepare"),
        ("/play", "--artifact"),
    ):
        names(ask(path, console=console).text, word)
