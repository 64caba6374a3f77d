"""What hostile clients cost a polite one: its latency alone and under each of a dozen attacks.

    python -m experiments.bench.serving_attacks --artifact=DIR --seconds=5

The service runs in a process of its own, the attackers in another. The polite client asks for scores at a fixed pace over one
connection and opens another when it is closed; its quiet and its attacked seconds take turns, so that what else the machine does
meets both. All of them share the machine's cores.
"""

import contextlib
import json
import multiprocessing
import time
from typing import Any

from absl import app, flags
import numpy as np

from experiments.bench.attackers import ATTACKS, CONNECTIONS, attack
from experiments.bench.serving_http import Client, bodies, cpu_seconds, serve
from recjax.serving import artifact as artifacts
from recjax.serving.bench import percentile
from recjax.serving.scorer import Scorer
from recjax.serving.service import Limits


class Polite:
    """A client at a fixed pace; `seconds` has each answer's time, a failed request an infinite one."""

    def __init__(self, port: int, sent: list[bytes], pace_s: float = 0.01):
        self.port, self.sent, self.pace_s = port, sent, pace_s
        self.client = Client(port)
        self.statuses: list[int] = []

    def ask(self, until: float) -> list[float]:
        seconds = []
        while (start := time.monotonic()) < until:
            seconds.append(self._once(self.sent[len(seconds) % len(self.sent)]))
            time.sleep(max(0.0, start + self.pace_s - time.monotonic()))
        return seconds

    def _once(self, body: bytes) -> float:
        start = time.perf_counter()
        for _ in range(2):  # a connection that was idle may have been closed to make room
            try:
                self.statuses.append(self.client.score(body)[0])
                return time.perf_counter() - start if self.statuses[-1] == 200 else float("inf")
            except OSError:
                with contextlib.suppress(OSError):
                    self.client = Client(self.port)
        self.statuses.append(0)
        return float("inf")


def under(
    port: int, pid: int, name: str, polite: Polite, seconds: float, rounds: int = 3
) -> dict[str, Any]:
    """p50 and p99 in ms of the polite client and cores that the service is busy with, quiet and attacked in turns."""
    context = multiprocessing.get_context("spawn")
    quiet, attacked, cpu = [], [], {"quiet": 0.0, "attacked": 0.0}

    def ask(key: str) -> list[float]:
        before, start = cpu_seconds(pid), time.monotonic()
        out = polite.ask(start + seconds / rounds)
        cpu[key] += (cpu_seconds(pid) - before) / (time.monotonic() - start) / rounds
        return out

    for _ in range(rounds):
        stop, begun = context.Event(), context.Event()
        args = port, name, CONNECTIONS.get(name, 4), stop, begun
        attacker = context.Process(target=attack, args=args, daemon=True)
        attacker.start()
        try:
            assert begun.wait(60), "the attack never began"
            time.sleep(0.2)
            attacked += ask("attacked")
        finally:
            stop.set()
            attacker.join(20)
            attacker.kill()
        time.sleep(0.5)
        quiet += ask("quiet")
    ms = {"quiet": 1e3 * np.array(quiet), "attacked": 1e3 * np.array(attacked)}
    out = {f"{k}_p{p}_ms": percentile(x, p) for k, x in ms.items() for p in (50, 99)}
    return out | {
        "p99_ratio": round(out["attacked_p99_ms"] / out["quiet_p99_ms"], 2),
        "cores": {k: round(x, 2) for k, x in cpu.items()},
        "requests": len(attacked),
        "failed": int(np.isinf(ms["attacked"]).sum()),
    }


@contextlib.contextmanager
def attacked_service(path: str, candidates: int, limits: Limits):
    """(port, process id, polite client) of a service in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(path, limits, theirs), daemon=True)
    process.start()
    try:
        port = ours.recv()
        scorer = Scorer(artifacts.load(path), requests=(1,), candidates=limits.candidates)
        made = bodies(scorer, 16, candidates, np.random.default_rng(0))
        client = Client(port)
        while client.ask(b"GET /readyz") != 200:
            time.sleep(0.2)
        yield port, process.pid, Polite(port, [json.dumps(m).encode() for m in made])
    finally:
        process.kill()
        process.join()


def main(_) -> None:
    limits = Limits(candidates=(_CANDIDATES.value,))
    with attacked_service(_ARTIFACT.value, _CANDIDATES.value, limits) as (port, pid, polite):
        polite.ask(time.monotonic() + 1)
        for name in _ATTACKS.value or ATTACKS:
            print(name, json.dumps(under(port, pid, name, polite, _SECONDS.value)), flush=True)


if __name__ == "__main__":
    _ARTIFACT = flags.DEFINE_string("artifact", None, "directory of the artifact", required=True)
    _CANDIDATES = flags.DEFINE_integer("candidates", 100, "candidates a request", lower_bound=1)
    _SECONDS = flags.DEFINE_float(
        "seconds", 6, "quiet and attacked, of each attack", lower_bound=0.1
    )
    _ATTACKS = flags.DEFINE_multi_enum("attack", [], sorted(ATTACKS), "default: all of them")
    app.run(main)
