"""Several processes of one run on this machine: what a cluster does, before there is one.

    python -m launch.local --processes=2 --devices=4 -- --config=FILE --workdir=DIR
    python -m launch.local --processes=2 --platform=cuda -- --config=FILE --workdir=DIR    # two GPUs, one each

Each process is `python -m recjax.train` with everything after `--`, told by the environment who the others are
(JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID). On the CPU each has its own fake devices; on GPUs each
sees `--devices` of them. Lines of output begin with the process's number. When one fails the others are ended, and its
exit code is the command's; SIGTERM and Ctrl-C go to all, which save and end.
"""

from collections.abc import Sequence
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

from absl import flags

from recjax import command as commands

Child = subprocess.Popen
GRACE = 10.0  # seconds between asking the others of a dead process to end and ending them
SAVE = 300.0  # seconds to save in after SIGTERM


def environment(
    index: int, processes: int, devices: int, platform: str, port: int
) -> dict[str, str]:
    """What one process's environment gets on top of this one's."""
    out = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
    }
    if platform == "cpu":
        fake = f"--xla_force_host_platform_device_count={devices}"
        flags_ = f"{os.environ.get('XLA_FLAGS', '')} {fake}".strip()
        return out | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags_}
    mine = range(index * devices, (index + 1) * devices)
    return out | {
        "JAX_PLATFORMS": f"{platform},cpu",
        "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, mine)),
    }


def command(module: str, args: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", module, *args]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(args: Sequence[str], environments: Sequence[dict[str, str]], module: str) -> int:
    """Runs one process for each environment; returns 0, or the exit code of the first that failed."""
    children = [
        Child(command(module, args), env={**os.environ, **e}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for e in environments
    ]  # fmt: skip
    printers = [threading.Thread(target=_print, args=(i, c)) for i, c in enumerate(children)]
    for p in printers:
        p.start()
    asked: list[int] = []
    old = {
        s: signal.signal(s, lambda n, _: asked.append(n)) for s in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        code = _wait(children, asked)
    finally:
        for c in children:
            if c.poll() is None:
                c.kill()
        for p in printers:
            p.join()
        for s, handler in old.items():
            signal.signal(s, handler)
    return code


def _print(index: int, child: Child) -> None:
    for line in child.stdout:
        sys.stdout.write(f"[{index}] {line.decode(errors='replace')}")
        sys.stdout.flush()


def _wait(children: Sequence[Child], asked: list[int]) -> int:
    """Until all have ended; a failure or a signal to this process ends the others in time."""
    code, deadline, passed_on = 0, None, 0
    while any(c.poll() is None for c in children):
        if len(asked) > passed_on:
            passed_on = len(asked)
            _ask(children, "asked to stop: every process saves and ends")
            deadline = deadline or time.monotonic() + SAVE
        failed = next((i for i, c in enumerate(children) if c.poll()), None)
        if failed is not None and not code:
            code = _exit_code(children[failed])
            if not asked:
                _ask(children, f"process {failed} ended with {code}; ending the others")
                deadline = time.monotonic() + GRACE
        if deadline and time.monotonic() > deadline:
            _say("they did not end; killed")
            return code or 1
        time.sleep(0.1)
    return code or next((_exit_code(c) for c in children if c.returncode), 0)


def _ask(children: Sequence[Child], why: str) -> None:
    _say(why)
    for c in children:
        if c.poll() is None:
            c.terminate()


def _say(text: str) -> None:
    sys.stderr.write(f"launch.local: {text}\n")
    sys.stderr.flush()


def _exit_code(child: Child) -> int:
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def main(argv: Sequence[str]) -> None:
    n, devices = _PROCESSES.value, _DEVICES.value
    port = _PORT.value or free_port()
    environments = [environment(i, n, devices, _PLATFORM.value, port) for i in range(n)]
    if _DRY_RUN.value:
        for e in environments:
            assigned = " ".join(f"{k}={shlex.quote(v)}" for k, v in e.items())
            print(assigned, shlex.join(["python", *command("recjax.train", argv[1:])[1:]]))
        return
    sys.exit(launch(argv[1:], environments, "recjax.train"))


if __name__ == "__main__":
    _PROCESSES = flags.DEFINE_integer("processes", 2, "processes", lower_bound=1)
    _DEVICES = flags.DEFINE_integer("devices", 1, "devices of each process", lower_bound=1)
    _PLATFORM = flags.DEFINE_enum("platform", "cpu", ["cpu", "cuda"], "where they run")
    _PORT = flags.DEFINE_integer("port", 0, "of the coordinator; 0: a free one")
    _DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the commands and start nothing")
    commands.run(main, passes_on=True)
