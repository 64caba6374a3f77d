"""Two processes x 4 devices and one process x 8: the same bits read, the same rows written, checkpoints both ways."""

from concurrent.futures import ThreadPoolExecutor
import json
import socket

import pytest


@pytest.fixture
def run(run_python, tmp_path):
    """run(processes, *args) -> what each of them found."""

    def one(process, port, devices, args):
        out = tmp_path / f"{port}-{process}.json"
        args = str(process), port, str(out), *map(str, args)
        run_python("tests.embedding.on_processes", *args, devices=devices)
        return json.loads(out.read_text())

    def run(processes, *args):
        if processes == 1:
            return [one(0, "0", 8, args)]
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = str(s.getsockname()[1])
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, (0, 1), (port, port), (4, 4), (args, args)))

    return run


def test_checkpoints_of_two_processes_and_of_one_restore_in_each_other_bit_for_bit(run, tmp_path):
    by_one, by_two = tmp_path / "one", tmp_path / "two"
    [written] = run(1, by_one)
    first, second = run(2, by_two, by_one)
    assert len(first) == len(second) and not first.keys() & second.keys()
    [read] = run(1, tmp_path / "again", by_two)
    for found in (first | second, read):
        assert len(found) == 2 * len(written) > 100  # every shard of every array, written and read
        for key, digest in written.items():
            assert found[key] == found[key.replace("['written']", "['read']")] == digest, key


@pytest.mark.slow  # three processes, a minute of compilation
def test_two_processes_equal_one(run):
    first, second = run(2)
    [whole] = run(1)
    assert first.keys() | second.keys() == whole.keys()
    differ = {k for part in (first, second) for k in part if part[k] != whole[k]}
    # row-wise Adagrad over columns sums partial squares over devices, in the order of the transport
    assert all(k.startswith("column") and ("rowwise" in k or "['user']" in k) for k in differ), (
        differ
    )
    assert not any(k.startswith("read") for k in differ)
