"""Start, switch of the artifact under load, and the end."""

import concurrent.futures
import contextlib
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
from recjax.serving import artifact, live, serve
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


def test_swap_under_load_fails_and_mixes_nothing(versions, tmp_path):
    paths, asked, answers = versions
    link, seen, stop = tmp_path / "current", [], threading.Event()
    switch(link, paths[0])
    with serving(link) as (client, _):

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
                    done = client.post("/v1/artifact/reload").json()
                    assert done["changed"] and done["stamp"] == list(answers)[i]
                    assert len(seen) > before  # it answered meanwhile
                    time.sleep(0.1)
                assert not client.post("/v1/artifact/reload").json()["changed"]
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
    with serving(link) as (client, _):
        for target, reason in (
            (damaged, "no manifest.json"),
            (tmp_path / "gone", "does not exist"),
        ):
            if target == damaged:
                damaged.mkdir()
            switch(link, target)
            answer = client.post("/v1/artifact/reload")
            assert answer.status_code == 409 and reason in answer.json()["detail"]
            assert "served still" in answer.json()["detail"]
            assert agrees(client.post("/v1/score", json=asked[0]), next(iter(answers.values()))[0])


def test_a_directory_replaced_while_it_is_read_is_read_again(versions, tmp_path, monkeypatch):
    """Rows of one export with the vocabulary of another would answer nonsense under one stamp."""
    paths, _, answers = versions
    link, load, loads = tmp_path / "current", live._load, []
    switch(link, paths[0])

    def replaced(path, *args):
        model = load(path, *args)
        loads.append(path)
        if len(loads) == 1:  # between the rows and the vocabulary, say
            monkeypatch.setattr(live, "_stamp", lambda p: "another")
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
