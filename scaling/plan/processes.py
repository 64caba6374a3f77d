"""A sweep on the cores of one machine: a process on each part of them, all going through the same list.

The operations of a small model are too short for two cores to share: one process on both trains hardly faster than on
one (README.md has the figures), so the cores take a trial each. A process takes the next trial that is neither finished
nor locked by another (`recjax.runtime.run.Busy`); nothing is assigned beforehand.
"""

import multiprocessing
from multiprocessing.process import BaseProcess
import os
import time

from absl import flags, logging
from etils import epath
import jax
import tqdm

from recjax.runtime.run import Interrupted, Stop, set_up
from scaling.plan import sweep
from scaling.plan.rows import Row


def parts(cores: set[int], n: int) -> list[set[int]]:
    """The cores in n parts, as equal as can be: parts({0, 1, 2}, 2) -> [{0, 2}, {1}].

    Raises:
      ValueError: There are fewer cores than parts.
    """
    if n > len(cores):
        raise ValueError(f"--processes={n} but this process may use {len(cores)} cores")
    return [set(sorted(cores)[i::n]) for i in range(n)]


def run_sweep(
    trials: list[sweep.Trial],
    workdir: epath.PathLike,
    shard: tuple[int, int] = (0, 1),
    members: int = 1,
    processes: int = 1,
) -> list[Row]:
    """`sweep.run_sweep` by so many processes; returns the rows of all finished trials.

    SIGTERM and Ctrl-C go to all of them: each saves its run and ends. Each writes its log to <workdir>/worker-<i>.log.

    Raises:
      ValueError: More processes than cores; or there is an accelerator, or the workdir is a bucket, which has no locks:
        give each process a shard instead.
      RuntimeError: Some runs failed; the message names them.
    """
    if processes == 1:
        return sweep.run_sweep(trials, workdir, shard, members)
    if jax.default_backend() != "cpu" or "://" in str(workdir):
        raise ValueError(
            f"--processes={processes} shares out the cores of a CPU and needs the locks of a local --workdir; on "
            "accelerators and buckets run a command for each device, with --shard=i/n and one visible device"
        )
    root = epath.Path(workdir)
    root.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")  # JAX has threads: a fork could lock up
    workers: list[BaseProcess] = [
        spawn.Process(target=_work, args=(root / f"worker-{i}.log", trials, root, shard, members))
        for i in range(processes)
    ]
    shares = parts(available(), processes)
    with Stop() as stop:
        try:
            for worker, cores in zip(workers, shares, strict=True):
                start_on(worker, cores)
            _watch(workers, stop, trials, root)
        finally:
            for worker in workers:
                if worker.pid is not None:
                    worker.kill()
    rows = sweep.collect(trials, root)
    if any(worker.exitcode for worker in workers):
        names = sorted({f["trial"] for f in sweep.failures(root)})
        raise RuntimeError(
            f"a process ended with an error ({root}/worker-*.log); failed trials: {', '.join(names) or 'none'}. "
            "Run the same command to try them again"
        )
    return rows


def available() -> set[int]:
    """The cores that this process may use; all of the machine's where the system cannot say."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def start_on(worker: BaseProcess, cores: set[int]) -> None:
    """Starts a process on these cores: it inherits them, so XLA sees no others when it makes its threads."""
    if not hasattr(os, "sched_setaffinity"):
        return worker.start()
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        worker.start()
    finally:
        os.sched_setaffinity(0, own)


def _watch(
    workers: list[BaseProcess], stop: Stop, trials: list[sweep.Trial], root: epath.Path
) -> None:
    """Waits for all, with a progress bar over the trials; passes a signal on."""
    asked = False
    with tqdm.tqdm(total=len(trials), unit="trial", desc=f"{len(workers)} processes") as bar:
        while any(worker.is_alive() for worker in workers):
            if stop.signum and not asked:
                asked = True
                for worker in workers:
                    worker.terminate()
            done = sweep.finished(root)
            bar.update(sum(t.run in done for t in trials) - bar.n)
            time.sleep(1.0)
    if stop.signum:
        raise Interrupted(128 + stop.signum)


def _work(
    log: epath.Path,
    trials: list[sweep.Trial],
    workdir: epath.Path,
    shard: tuple[int, int],
    members: int,
) -> None:
    """What a process does; its output goes to a file, where progress bars of its own are off."""
    with open(log, "a") as f:
        os.dup2(f.fileno(), 2)
    flags.FLAGS.mark_as_parsed()  # there are none; absl warns otherwise
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    set_up()
    sweep.run_sweep(trials, workdir, shard, members)
