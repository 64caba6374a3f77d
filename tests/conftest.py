"""What every test relies on: CPU only, no network, caches in a temporary folder, and child processes for meshes.

The environment is set here, before anything imports JAX or TFDS, and child processes inherit it.
"""

import os
from pathlib import Path
import socket
import subprocess
import sys
import tempfile

from tests import compiling

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A user's own flags come last, and win.
os.environ["XLA_FLAGS"] = f"{compiling.FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
_CACHE = tempfile.TemporaryDirectory(prefix="recjax-tests-")
os.environ["RECJAX_CACHE"] = os.environ["XDG_CACHE_HOME"] = _CACHE.name
# Tests compile the same programs over and over (a run, its resumption, its evaluation).
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(_CACHE.name, "compiled")))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ["TFDS_DATA_DIR"] = str(Path(_CACHE.name, "tfds"))

from absl import flags  # noqa: E402
import pytest  # noqa: E402

REPO = Path(__file__).resolve().parent.parent
FLAGS_PARSED = "from absl import flags; flags.FLAGS.mark_as_parsed()\n"

# Grain's worker processes read absl flags, which nobody parses under pytest.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """The folder that stands in for ~/.cache during the whole run."""
    return Path(_CACHE.name)


@pytest.fixture(scope="session")
def real_data():
    """`real_data("kuairand-pure")` -> its folder under RECJAX_DATA, or a skip that says what is missing."""

    def folder(name: str) -> Path:
        root = os.environ.get("RECJAX_DATA")
        if not root:
            pytest.skip(f"needs {name}: set RECJAX_DATA to the folder that holds it")
        if not Path(root, name).is_dir():
            pytest.skip(f"needs {name}: there is no {name} in RECJAX_DATA={root}")
        return Path(root, name)

    return folder


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_end_with_their_file():
    """Each loaded program holds a few memory maps, of which Linux allows a process 65,530.

    Without this, XLA dies in a segmentation fault after some 1,200 tests in one process.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that reaches past this machine fails at once instead of hanging where there is no network."""
    connect = socket.socket.connect

    def local_only(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise ConnectionRefusedError(
                f"tests are network-free, but something connects to {address}"
            )
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session")
def run_python():
    """Runs code or a module in a child process with its own (fake) devices; see `_run_python`."""
    return _run_python


def _run_python(
    code_or_module: str,
    *args: str,
    devices: int = 8,
    env: dict[str, str] | None = None,
    timeout: float = 300,
    cwd: str | Path = REPO,
) -> subprocess.CompletedProcess:
    """Runs Python on `devices` fake CPU devices and asserts that it exits 0.

    Args:
      code_or_module: A dotted module name (run with -m), or any other text: Python source.
      *args: Its command line.
      devices: Fake CPU devices the child sees. JAX fixes them at start-up, hence the process.
      env: Added to the environment.
      timeout: Seconds.
      cwd: Where it runs; the checkout is importable from anywhere.

    Returns:
      The finished process, with text stdout and stderr. A failure shows both.
    """
    module = code_or_module.replace(".", "").isidentifier() and "." in code_or_module
    what = ["-m", code_or_module] if module else ["-c", FLAGS_PARSED + code_or_module]
    path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))
    xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    child = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": xla, **(env or {})}
    done = subprocess.run(
        [sys.executable, *what, *args],
        env=child,
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        text=True,
    )
    shown = f"exit {done.returncode}\n--- stdout\n{done.stdout[-8000:]}\n--- stderr\n{done.stderr[-8000:]}"
    assert done.returncode == 0, shown
    return done
