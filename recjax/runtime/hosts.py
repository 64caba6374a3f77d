"""What the processes of one run do together: start, keep in step, and stop when one of them dies.

    with hosts.joined():                                  # first thing in main
        ...
        for batch in hosts.in_step(batches, plan, stop):

Who the other processes are is JAX's own discovery (SLURM, GKE, TPU pods, Open MPI), or JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID. Where nothing says so there is one process, and all of this is free.
JAX_NUM_PROCESSES=1 runs alone inside a cluster job.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
import traceback
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from recjax import embedding
from recjax.batch import Batch
from recjax.data.loading.batches import widen
from recjax.runtime import mesh as meshes
from recjax.runtime.run import Stop

START_SECONDS = 1800  # a cluster may start the last process long after the first
HEARTBEAT_SECONDS = 60  # silence after which JAX ends the others; $RECJAX_HEARTBEAT_SECONDS

# ---- one run of several processes ---------------------------------------------------------------------------------


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The processes of this run, joined, if the environment speaks of any; call it before anything uses JAX.

    A process that fails inside leaves at once instead of waiting for the others at the exit, and says how to go on;
    so do those that JAX ends because another one died (its heartbeat missing for HEARTBEAT_SECONDS).
    """
    seconds = int(os.environ.get("RECJAX_HEARTBEAT_SECONDS", HEARTBEAT_SECONDS))
    if not _join(seconds):
        yield
        return
    goodbye = _last_words(
        f"recjax: process {jax.process_index()} of {jax.process_count()} has stopped. Where a line above tells of a "
        "fatal error of the JAX distributed service or of a closed connection, another process of this run died, or "
        f"was silent for {seconds} s: its own log says why. Start all processes again with the same command; the run "
        "goes on from its last checkpoint.\n"
    )
    try:
        yield
    except SystemExit:  # all leave together, after a save
        goodbye()
        raise
    except BaseException as e:
        traceback.print_exc()
        if not isinstance(e, jax.errors.JaxRuntimeError):  # its own fault, and it has been told
            goodbye()
        # At a regular exit JAX would wait for processes that wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    goodbye()


def _join(heartbeat: int) -> bool:
    """Whether this process is one of several; blocks until all of them are there."""
    count, index = (os.environ.get(f"JAX_{x}") for x in ("NUM_PROCESSES", "PROCESS_ID"))
    if count == "1":
        return False
    # Its SIGTERM handler would take ours away; `in_step` carries the signal instead.
    jax.config.update("jax_enable_preemption_service", False)
    text = (
        "waiting up to %d s for the other processes of this run; JAX_NUM_PROCESSES=1 runs it alone"
    )
    patience = threading.Timer(10, logging.warning, (text, START_SECONDS))
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            num_processes=int(count) if count else None,
            process_id=int(index) if index else None,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=heartbeat,
        )
    except ValueError as e:
        if count is None and "coordinator_address should be defined" in str(e):
            return False  # nothing speaks of other processes
        raise
    finally:
        patience.cancel()
    logging.info("process %d of %d", jax.process_index(), jax.process_count())
    return jax.process_count() > 1


def _last_words(text: str) -> Callable[[], None]:
    """A child that writes `text` to stderr when this process ends, however it does, unless the result is called.

    JAX ends a process that lost another one by abort(), where no Python runs any more.
    """
    code = (
        "import signal, sys\n"
        "for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)\n"
        "if not sys.stdin.buffer.read(): sys.stderr.write(sys.argv[1])\n"
    )
    child = subprocess.Popen([sys.executable, "-S", "-c", code, text], stdin=subprocess.PIPE)

    def goodbye() -> None:
        with contextlib.suppress(BrokenPipeError):
            child.communicate(b"0")

    return goodbye


# ---- in step ------------------------------------------------------------------------------------------------------


def in_step(
    batches: Iterable[Batch], plan: embedding.Plan, stop: Stop | None = None
) -> Iterator[Batch]:
    """This process's share of the batches, in shapes that fit the shares of all.

    Each process builds its share at the smallest capacity that fits (`recjax.data.loading.batches`), and so it would choose
    its exchange buckets (`Plan.route`); a global array needs one shape. So the processes take the maximum of a few
    numbers a batch, asked for one batch ahead: the answer is read while the devices work on the batch before. The same
    numbers carry a SIGTERM that any of them received, so that all of them stop at the same step (`stop.agreed`).

    Args:
      batches: Of this process.
      plan: Of the tables that the batches are looked up in.
      stop: Told the signal.
    """
    if jax.process_count() == 1:
        yield from batches
        return
    ahead = None
    for batch in batches:
        widths = {s: x.shape[1] for s, x in batch.get("ids", {}).items()}
        word = dict(signum=stop.signum if stop else 0, widths=widths, need=plan.need(batch))
        numbers, form = jax.tree.flatten(word)
        asked = _maximum(plan.mesh, numbers)
        if ahead is not None:
            yield _agree(*ahead, plan, stop)
        ahead = batch, form, asked
    if ahead is not None:
        yield _agree(*ahead, plan, stop)


def _agree(batch: Batch, form, asked: jax.Array, plan: embedding.Plan, stop: Stop | None) -> Batch:
    word = form.unflatten(np.asarray(asked).tolist())
    if stop is not None:
        stop.agreed = word["signum"]
    ids = {s: widen(batch["ids"][s], u, plan.rows[s]) for s, u in word["widths"].items()}
    return plan.agreed({**batch, "ids": ids} if ids else batch, word["need"])


def _maximum(mesh: Mesh, numbers: list[int]) -> jax.Array:
    """Elementwise maximum over the processes; not waited for."""
    mine = np.tile(np.asarray(numbers, np.int32), (len(mesh.local_devices), 1))
    sharding = NamedSharding(mesh, P("data"))
    return _largest(mesh)(jax.make_array_from_process_local_data(sharding, mine))


@functools.cache
def _largest(mesh: Mesh) -> Callable:
    return jax.jit(lambda x: x.max(0), out_shardings=meshes.replicated(mesh))


def from_first(value: Any) -> Any:
    """A JSON value of process 0, everywhere."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value, default=lambda x: x.item()).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = text if jax.process_index() == 0 else np.zeros(length, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())
