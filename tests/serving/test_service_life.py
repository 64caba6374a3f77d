"""Start, switch of the artifact under load, and the end."""

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import jax
import numpy as np
import pytest

from experiments.bench import serving_http as bench_http
from recjax.serving import artifact, files, live, serve
from recjax.serving.scorer import Scorer
from recjax.serving.service import Limits, Service
from tests.conftest import REPO
from tests.serving.client import request, requests, serving, wait_until_ready
from tests.serving.conftest import vocabularies


@pytest.fixture(scope="module")
def versions(exported, tmp_path_factory):
    """Two artifacts with other parameters, and what each answers to the same requests."""
    asked, paths, answers = requests(6, most=4), [], {}
    for i in range(2):
        dense = jax.tree.map(lambda x, i=i: np.asarray(x) * (1 + i), exported.trees.dense)
        path = tmp_path_factory.mktemp("versions") / str(i)
        made = artifact.export_artifact(
            path,
            exported.system,
            exported.trees.replace(dense=dense),
            batch=exported.batch,
            config={"name": str(i)},
            vocab=vocabularies(),
            rows_format="float32",
            platforms=("cpu",),
        )
        scorer = Scorer(artifact.load(path), requests=(1,), candidates=(4,))
        paths.append(path)
        answers[made["stamp"]] = scorer.score_requests(asked)
    return paths, asked, answers


def agrees(answer, want):
    got = answer.json()["outputs"]
    return all(np.allclose(got[n], want[n], atol=1e-5) for n in want)


def switch(link, target):
    """Points a link elsewhere in one step."""
    new = link.with_suffix(".new")
    new.symlink_to(target)
    new.replace(link)


def reload(client, **sent):
    header = {"authorization": "Bearer r3load"}
    return client.post("/v1/artifact/reload", **{"json": {}, "headers": header, **sent})


def test_swap_under_load_fails_and_mixes_nothing(versions, tmp_path):
    paths, asked, answers = versions
    link, seen, stop = tmp_path / "current", [], threading.Event()
    switch(link, paths[0])
    with serving(link, reload_token="r3load") as (client, _):

        def load(worker):
            k = worker
            while not stop.is_set():
                k = (k + 1) % len(asked)
                seen.append((k, client.post("/v1/score", json=asked[k])))

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(load, i) for i in range(4)]
            try:
                for i in (1, 0, 1):
                    switch(link, paths[i])
                    before = len(seen)
                    done = reload(client).json()
                    assert done["changed"] and done["stamp"] == list(answers)[i]
                    assert len(seen) > before  # it answered meanwhile
                    time.sleep(0.1)
                assert not reload(client).json()["changed"]
            finally:
                stop.set()
        for future in futures:
            future.result()
    assert {a.status_code for _, a in seen} == {200}
    stamps = [a.json()["stamp"] for _, a in seen]
    assert set(stamps) == set(answers) and all(
        a.headers["recjax-stamp"] in answers for _, a in seen
    )
    other = dict(zip(answers, reversed(answers), strict=True))
    for (k, answer), stamp in zip(seen, stamps, strict=True):
        assert agrees(answer, answers[stamp][k])
        assert not agrees(answer, answers[other[stamp]][k])  # control: the two differ


def test_a_damaged_artifact_is_refused_and_the_old_one_stays(versions, tmp_path):
    paths, asked, answers = versions
    link, damaged = tmp_path / "current", tmp_path / "damaged"
    switch(link, paths[0])
    with serving(link, reload_token="r3load") as (client, _):
        for target, reason in (
            (damaged, "no manifest.json"),
            (tmp_path / "gone", "does not exist"),
        ):
            if target == damaged:
                damaged.mkdir()
            switch(link, target)
            answer = reload(client)
            assert answer.status_code == 409 and reason in answer.json()["detail"]
            assert "served still" in answer.json()["detail"]
            assert agrees(client.post("/v1/score", json=asked[0]), next(iter(answers.values()))[0])


def test_reloading_takes_its_own_token_and_json_and_is_off_without(versions):
    paths, _, _ = versions
    with serving(paths[0], token="s3cret") as (client, _):
        for token in ("s3cret", "x"):
            answer = reload(client, headers={"authorization": f"Bearer {token}"})
            assert answer.status_code == 403
            assert "start the service with --reload_token_file" in answer.json()["detail"]
        doc = client.get("/openapi.json", headers={"authorization": "Bearer s3cret"}).json()
        assert "/v1/artifact/reload" not in doc["paths"]
    with serving(paths[0], token="s3cret", reload_token="r3load") as (client, _):
        for header in ({}, {"authorization": "Bearer s3cret"}):
            assert reload(client, headers=header).status_code == 401
        right = {"authorization": "Bearer r3load"}
        plain = right | {"content-type": "text/plain"}  # what a form of another site can send
        for sent in ({"headers": plain, "content": b"{}"}, {"json": None}):
            answer = reload(client, **{"headers": right, "json": None, **sent})
            assert answer.status_code == 415 and "send it so" in answer.json()["detail"]
        answer = reload(client, json={"path": "elsewhere"})
        assert answer.status_code == 422 and "send {}" in answer.json()["detail"]
        assert reload(client).json()["changed"] is False
        assert client.get("/metrics", headers=right).status_code == 401


def test_reloading_what_is_served_already_loads_nothing(versions, monkeypatch):
    paths, _, _ = versions
    with serving(paths[0], reload_token="r3load") as (client, _):
        monkeypatch.setattr(live, "load", None)
        answer = reload(client)
        assert answer.status_code == 200 and answer.json()["changed"] is False


def test_an_artifact_is_replaced_in_one_step(tmp_path):
    """Who reads it while it is replaced finds the old one or the new one, never nothing."""
    path, stop, seen = tmp_path / "artifact", threading.Event(), set()

    def publish(i):
        with files.published(path) as out:
            out.text("manifest.json", str(i))

    def read():
        while not stop.is_set():
            try:
                (path / "manifest.json").read_bytes()
                seen.add("there")
            except (
                FileNotFoundError
            ):  # of a folder that was exchanged between two of its parts' look-ups
                seen.add("there" if path.is_dir() else "absent")

    publish(0)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(read) for _ in range(2)]
        try:
            for i in range(200):
                publish(i)
        finally:
            stop.set()
        for future in reading:
            future.result()
    assert seen == {"there"} and [p.name for p in tmp_path.iterdir()] == ["artifact"]


@pytest.mark.parametrize("exchange", [True, False])
def test_what_is_replaced_may_be_a_link(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    old = tmp_path / "old"
    for path in (old, tmp_path / "link", tmp_path / "link"):
        if path.name == "link" and not path.exists():
            path.symlink_to(old)
        with files.published(path) as out:
            out.text("manifest.json", "1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "old"]
    assert (old / "manifest.json").exists() and not (tmp_path / "link").is_symlink()


def test_a_directory_replaced_while_it_is_read_is_read_again(versions, tmp_path, monkeypatch):
    """Rows of one export with the vocabulary of another would answer nonsense under one stamp."""
    paths, _, answers = versions
    link, load, loads = tmp_path / "current", live._load, []
    switch(link, paths[0])

    def replaced(path, *args):
        model = load(path, *args)
        loads.append(path)
        if len(loads) == 1:  # between the rows and the vocabulary, say
            monkeypatch.setattr(live, "stamp", lambda p: "another")
            return model
        monkeypatch.undo()
        return model

    monkeypatch.setattr(live, "_load", replaced)
    model = live.load(link, requests=(1,), candidates=(4,))
    assert len(loads) == 2 and model.stamp == next(iter(answers))


@contextlib.contextmanager
def started(*args):
    """(process, client) of the command; killed at the end if it still runs."""
    env = os.environ | {"PYTHONPATH": str(REPO), "RECJAX_TOKEN": "t"}
    command = [sys.executable, "-m", "recjax.serving.serve", "--port=0", *args]
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_sigterm_answers_what_has_arrived_and_exits_cleanly(exported):
    sizes = ("--batch_sizes=1,8", "--candidate_sizes=4", "--wait_ms=700", "--deadline_ms=30000")
    with started(f"--artifact={exported.path}", *sizes) as process:
        url = process.stdout.readline().split()[-1]
        assert url.startswith("http://127.0.0.1:")
        with httpx.Client(
            base_url=url, timeout=60, headers={"authorization": "Bearer t"}
        ) as client:
            wait_until_ready(client)
            assert httpx.get(url + "/metrics").status_code == 401  # the token came by environment
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                asked = [pool.submit(client.post, "/v1/score", json=request()) for _ in range(4)]
                while client.get("/metrics").text.count("recjax_waiting_requests 4.0") == 0:
                    assert not any(f.done() for f in asked)
                process.send_signal(signal.SIGTERM)
                answers = [f.result() for f in asked]
        assert [a.status_code for a in answers] == [200] * 4
        assert process.wait(30) == 0, process.stderr.read()
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + "/healthz")


def test_sigterm_is_announced_and_every_line_of_the_log_is_an_object(exported):
    sizes = ("--batch_sizes=1", "--candidate_sizes=4", "--drain_s=3", "--log=json")
    with started(f"--artifact={exported.path}", *sizes, "--log_requests") as process:
        url = process.stdout.readline().split()[-1]
        token = {"authorization": "Bearer t"}
        with httpx.Client(base_url=url, timeout=60, headers=token) as client:
            wait_until_ready(client)
            process.send_signal(signal.SIGTERM)
            end = time.monotonic() + 3
            while (answer := client.get("/readyz")).status_code == 200:
                assert time.monotonic() < end
            assert answer.status_code == 503 and "ask another one" in answer.json()["detail"]
            answer = client.post("/v1/score", json=request(), headers={"x-request-id": "r1"})
            assert answer.status_code == 200 and answer.headers["connection"] == "close"
        assert process.wait(30) == 0
        lines = [json.loads(x) for x in process.stderr.read().splitlines()]
    served = [x for x in lines if x["message"].startswith("serving artifact")]
    assert served and served[0]["level"] == "info" and served[0]["time"].endswith("+00:00")
    scored = next(x for x in lines if x.get("request_id") == "r1")
    assert scored["path"] == "/v1/score" and scored["status"] == 200 and scored["ms"] > 0


def test_nothing_to_serve_is_said_and_exits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process's handlers stay
    service = Service(tmp_path / "none")
    server = serve.server_of(service)
    with pytest.raises(SystemExit, match="error: .*none does not exist"):
        serve.run(service, server)
    assert "serves on http://127.0.0.1:" in capsys.readouterr().out


def test_where_the_token_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv("RECJAX_TOKEN", "a")
    assert serve.read_token("") == "a" and "RECJAX_TOKEN" not in os.environ
    file = tmp_path / "token"
    file.write_text("b\n")
    assert serve.read_token(str(file)) == "b" and serve.read_token("") == ""
    for text in ("", "two words"):
        file.write_text(text)
        with pytest.raises(SystemExit, match="not one word"):
            serve.read_token(str(file))
    with pytest.raises(SystemExit, match="cannot be read"):
        serve.read_token(str(tmp_path / "none"))


@pytest.mark.slow
def test_the_load_generator_measures_all_phases(exported):
    limits = Limits(requests=(1, 4), candidates=(4,), queue=8)
    got = bench_http.measure(str(exported.path), 4, 1.0, limits, soak_minutes=0.05)
    assert set(got["soak"]["answers"]) == {"200"} and got["soak"]["resident_mib"][0] > 0
    assert 0 < got["alone"]["in_process_p50_ms"] < got["alone"]["http_p50_ms"]
    assert got["busy"]["requests_per_s"] > 0
    assert set(got["overload"]["answers"]) <= {"200", "429", "504"}


def test_without_its_packages_the_command_says_what_to_install(tmp_path):
    for missing in ("uvicorn", "starlette"):
        (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{missing!r}] = None")
        env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPO}"}
        command = [sys.executable, "-m", "recjax.serving.serve", "--artifact=x"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert f"{missing}; pip install 'recjax[serve]'" in done.stderr
