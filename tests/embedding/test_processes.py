"""Two processes x 4 devices and one process x 8: the same bits read, the same rows written."""

from concurrent.futures import ThreadPoolExecutor
import json
import socket

import pytest


@pytest.mark.slow  # three processes, a minute of compilation
def test_two_processes_equal_one(run_python, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])

    def run(process, port, devices):
        out = tmp_path / f"{port}-{process}.json"
        run_python("tests.embedding.on_processes", str(process), port, str(out), devices=devices)
        return json.loads(out.read_text())

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, (0, 1), (port, port), (4, 4))
    whole = run(0, "0", 8)
    assert first.keys() | second.keys() == whole.keys()
    differ = {k for part in (first, second) for k in part if part[k] != whole[k]}
    # row-wise Adagrad over columns sums partial squares over devices, in the order of the transport
    assert all(k.startswith("column") and ("rowwise" in k or "['user']" in k) for k in differ), (
        differ
    )
    assert not any(k.startswith("read") for k in differ)
