"""Latency and overload of the service, over real sockets, against the scorer in this process.

    python -m experiments.bench.serving_http --artifact=DIR --candidates=100 --seconds=10

Phases on one service, in a thread of its own process:
  alone     one client, one request at a time, in turns with the same request scored in this process without HTTP
  busy      as many clients as keep it saturated: its sustainable rate
  crowd     the same with 64 and with 256 clients, which ask again at once when they are refused: what is answered in time
  overload  requests arrive at twice that rate, whether earlier ones are answered or not
  soak      with --soak_minutes=10: half that rate, every tenth call an event of one of 1,000 users, which fill the service's store of
            events, here of 1 MiB: a full store evicts; resident memory
Clients and service share the machine's cores, so on a small machine the rates are low estimates.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import re
import socket
import threading
import time
from typing import Any

from absl import flags
import numpy as np

from recjax import command
from recjax.serving import artifact as artifacts
from recjax.serving import bench
from recjax.serving.scorer import Scorer
from recjax.serving.service import Limits

_CLIENTS = 32


def serve(path: str, limits: Limits, pipe: Any) -> None:
    from recjax.serving.serve import listen, server_of
    from recjax.serving.service import Service

    server = server_of(Service(path, limits))
    sock = listen(server)
    pipe.send(sock.getsockname()[1])
    server.run(sockets=[sock])


def bodies(scorer: Scorer, n: int, candidates: int, rng: np.random.Generator) -> list[dict]:
    """Made-up requests (see `bench.columns`) in the columnar form of the service."""
    loaded = scorer.artifact
    values = {s: loaded.vocabulary(s)["value"].to_numpy() for s in loaded.manifest["vocab"]}
    made = (bench.columns(scorer, values, candidates, rng) for _ in range(n))
    return [_body(scorer, {k: v[0].as_py() for k, v in c.items()}) for c in made]


def _body(scorer: Scorer, row: dict[str, Any]) -> dict[str, Any]:
    schema = scorer.schema
    body: dict[str, Any] = {"time": row["time"]}
    for f in schema.features:
        if f.axes == "B":
            body.setdefault(f.role, {})[f.name] = row[f.name]
    body["history"] = {
        name: {"time": row[f"{name}/time"]}
        | {f.name: row[f.name] for f in schema.features if f.list == name}
        for name in schema.lists
    }
    body["candidates"] = {f.name: row[f.name] for f in schema.select("candidate")}
    return body


class Client:
    """One connection that stays open, and no more HTTP than this service needs: the clients share its cores."""

    def __init__(self, port: int):
        self.port = port
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def score(self, body: bytes) -> tuple[int, float]:
        """(status, seconds)."""
        start = time.perf_counter()
        status = self.ask(b"POST /v1/score", body)
        return status, time.perf_counter() - start

    def ask(self, call: bytes, body: bytes = b"") -> int:
        """The status of the answer, all of which is read."""
        kind = b"content-type: application/json\r\ncontent-length: %d" % len(body)
        self._socket.sendall(b"%b HTTP/1.1\r\nhost: localhost\r\n%b\r\n\r\n%b" % (call, kind, body))
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._receive()
        head, _, rest = got.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])
        while length > len(rest):
            rest += self._receive()
        return int(head.split(b" ", 2)[1])

    def _receive(self) -> bytes:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the service closed the connection")
        return data


def measure(
    path: str, candidates: int, seconds: float, limits: Limits, soak_minutes: float = 0
) -> dict[str, Any]:
    """p50_ms and p99_ms over HTTP and in process, rates, what overload does, and memory over time."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(path, limits, theirs), daemon=True)
    process.start()
    try:
        client = Client(ours.recv())
        scorer = Scorer(artifacts.load(path), requests=(1,), candidates=limits.candidates)
        scorer.warm()
        made = bodies(scorer, 64, candidates, np.random.default_rng(0))
        while client.ask(b"GET /readyz") != 200:
            time.sleep(0.2)
        alone = _alone(client, process.pid, scorer, made, seconds)
        sent = [json.dumps(m).encode() for m in made]
        busy = _busy(client.port, sent, seconds)
        crowd = [_busy(client.port, sent, seconds, n) for n in (64, 256)]
        before = _resident(process.pid)
        over = _overload(client.port, sent, seconds, 2 * busy["requests_per_s"])
        over["memory_growth_mib"] = round(_resident(process.pid) - before, 1)
        out = {
            "body_bytes": len(sent[0]),
            "alone": alone,
            "busy": busy,
            "crowd": crowd,
            "overload": over,
        }
        if soak_minutes:
            rate = busy["requests_per_s"] / 2
            out["soak"] = _soak(client.port, process.pid, made, 60 * soak_minutes, rate)
        return out
    finally:
        process.kill()


def _alone(
    client: Client, pid: int, scorer: Scorer, made: list[dict], seconds: float
) -> dict[str, Any]:
    requests = [json.dumps(m).encode() for m in made]
    over_http, here, cpu = [], [], []
    end, i = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        k, i = i % len(made), i + 1
        before = cpu_seconds(pid)
        over_http.append(client.score(requests[k])[1])
        middle, start, mine = cpu_seconds(pid), time.perf_counter(), time.process_time()
        scorer.score_requests([made[k]])
        here.append(time.perf_counter() - start)
        cpu.append((middle - before, time.process_time() - mine))
    http_ms, here_ms = (1e3 * np.array(x[10:]) for x in (over_http, here))
    return {
        "requests": len(http_ms),
        "http_p50_ms": bench.percentile(http_ms, 50),
        "http_p99_ms": bench.percentile(http_ms, 99),
        "in_process_p50_ms": bench.percentile(here_ms, 50),
        "in_process_p99_ms": bench.percentile(here_ms, 99),
        "http_cpu_ms": round(1e3 * float(np.mean(cpu[10:], axis=0)[0]), 3),
        "in_process_cpu_ms": round(1e3 * float(np.mean(cpu[10:], axis=0)[1]), 3),
        "overhead_p50_ms": round(float(np.median(http_ms) - np.median(here_ms)), 3),
    }


def _busy(port: int, sent: list[bytes], seconds: float, clients: int = _CLIENTS) -> dict[str, Any]:
    end = time.monotonic() + seconds

    def ask(worker: int) -> list[tuple[int, float]]:
        client, out = Client(port), []
        while time.monotonic() < end:
            out.append(client.score(sent[(worker + len(out)) % len(sent)]))
        return out

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        got = [x for out in pool.map(ask, range(clients)) for x in out]
    ok = 1e3 * np.array([s for status, s in got if status == 200])
    return {
        "clients": clients,
        "refused": len(got) - len(ok),
        "requests_per_s": round(len(ok) / seconds, 1),
        "p50_ms": bench.percentile(ok, 50),
        "p99_ms": bench.percentile(ok, 99),
    }


def _overload(port: int, sent: list[bytes], seconds: float, rate: float) -> dict[str, Any]:
    """Requests at fixed times. Latency counts from sending; `late_p50_ms` tells how far the clients fell behind."""
    start, lock, due = time.monotonic() + 0.2, threading.Lock(), iter(range(int(rate * seconds)))

    def ask(_: int) -> list[tuple[int, float, float]]:
        client, out = Client(port), []
        while True:
            with lock:
                k = next(due, None)
            if k is None:
                return out
            at = start + k / rate
            time.sleep(max(0.0, at - time.monotonic()))
            late = time.monotonic() - at
            out.append((*client.score(sent[k % len(sent)]), late))

    clients = 8 * _CLIENTS
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        got = [x for out in pool.map(ask, range(clients)) for x in out]
    elapsed = time.monotonic() - start
    statuses = [status for status, _, _ in got]
    ok = 1e3 * np.array([s for status, s, _ in got if status == 200])
    return {
        "asked_per_s": round(rate, 1),
        "offered_per_s": round(len(got) / elapsed, 1),
        "late_p50_ms": bench.percentile(1e3 * np.array([late for _, _, late in got]), 50),
        "answers": {str(s): statuses.count(s) for s in sorted(set(statuses))},
        "accepted_p50_ms": bench.percentile(ok, 50),
        "accepted_p99_ms": bench.percentile(ok, 99),
    }


def _soak(port: int, pid: int, made: list[dict], seconds: float, rate: float) -> dict[str, Any]:
    """Resident memory while scores and events arrive: medians of the second and of the last tenth of the time."""
    score = [(b"POST /v1/score", json.dumps(m).encode()) for m in made]
    event = [
        (
            b"POST /v1/events",
            json.dumps({"user": f"u{k}", "events": _events(made[k % len(made)])}).encode(),
        )
        for k in range(1000)
    ]
    end, lock, sent = time.monotonic() + seconds, threading.Lock(), iter(range(10**9))
    start, statuses, resident = time.monotonic(), [], []

    def ask(_: int) -> None:
        client = Client(port)
        while True:
            with lock:
                k = next(sent)
            time.sleep(max(0.0, start + k / rate - time.monotonic()))
            if time.monotonic() > end:
                return
            calls, i = (event, k // 10) if k % 10 == 0 else (score, k)
            statuses.append(client.ask(*calls[i % len(calls)]))

    with concurrent.futures.ThreadPoolExecutor(_CLIENTS) as pool:
        asking = [pool.submit(ask, i) for i in range(_CLIENTS)]
        while time.monotonic() < end:
            resident.append(_resident(pid))
            time.sleep(min(1.0, seconds / 100))
        for future in asking:
            future.result()
    tenth = max(1, len(resident) // 10)
    early, late = np.median(resident[tenth : 2 * tenth]), np.median(resident[-tenth:])
    return {
        "minutes": round(seconds / 60, 2),
        "requests_per_s": round(len(statuses) / seconds, 1),
        "answers": {str(s): statuses.count(s) for s in sorted(set(statuses))},
        "resident_mib": [round(float(early), 1), round(float(late), 1)],
        "growth_mib": round(float(late - early), 1),
    }


def _events(body: dict[str, Any]) -> dict[str, Any]:
    """The last event of each of a request's histories, as a new one."""
    return {
        name: {n: x[-1:] for n, x in columns.items()}
        for name, columns in body.get("history", {}).items()
    }


def cpu_seconds(pid: int) -> float:
    """Time the process has computed, on all cores; 0 where /proc is not there. Busy neighbours do not add to it."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            user, system = f.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0


def _resident(pid: int) -> float:
    """MiB; 0 where /proc is not there."""
    try:
        with open(f"/proc/{pid}/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


def main(_) -> None:
    limits = Limits(candidates=(_CANDIDATES.value,), queue=_QUEUE.value)
    if _SOAK.value:
        limits = dataclasses.replace(limits, events_mib=1)
    result = measure(_ARTIFACT.value, _CANDIDATES.value, _SECONDS.value, limits, _SOAK.value)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    _ARTIFACT = flags.DEFINE_string("artifact", None, "directory of the artifact", required=True)
    _CANDIDATES = flags.DEFINE_integer("candidates", 100, "candidates a request", lower_bound=1)
    _SECONDS = flags.DEFINE_float("seconds", 10, "of each phase", lower_bound=0.1)
    _QUEUE = flags.DEFINE_integer("queue", Limits.queue, "requests that may wait", lower_bound=1)
    _SOAK = flags.DEFINE_float("soak_minutes", 0, "of a further phase; 0: none", lower_bound=0)
    command.run(main)
