import json

import numpy as np

from recjax.serving import bench


def test_latency_is_measured_for_raw_and_encoded_requests(loaded):
    out = bench.measure(loaded, candidates=5, requests=20)
    assert 0 < out["p50_ms"] <= out["p99_ms"]
    assert 0 < out["encoded_p50_ms"] < out["p50_ms"]  # encoding costs something
    assert out["requests"] == 20 and out["candidates"] == 5 and out["history"] == {"history": 6}


def test_warm_up_calls_are_not_counted():
    calls = []
    assert len(bench.times(calls.append, list(range(15)), warm=10)) == 5
    assert calls == list(range(15))
    assert bench.percentile(np.array([1.0, 2.0, 9.0]), 50) == 2.0


def test_the_command(exported, run_python):
    flags = [f"--artifact={exported.path}", "--candidates=4", "--requests=5"]
    done = run_python("recjax.serving.bench", *flags, devices=1)
    assert json.loads(done.stdout)["candidates"] == 4
