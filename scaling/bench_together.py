"""Trials per hour of a grade: a plain jitted step loop, trials in one program, and a process on each core.

    python -m scaling.bench_together --config=scaling/configs/complete_journey.py --grades=-1,0 --members=3

Prints milliseconds a step and trial, batches included, by the clock and in CPU time of the process; on a machine that does
other work too, the second is the one to compare.
"""

from collections.abc import Callable, Sequence
import json
import multiprocessing
import tempfile
import time

from absl import flags
import jax
from ml_collections import ConfigDict, config_flags
import numpy as np

from recjax import command
from recjax.runtime.run import Run, Stop, set_up
from recjax.training.loop import Trainer
from scaling.plan import processes, together
from scaling.plan.grades import named


def timed(
    advance: Callable[[], None], calls: int, ready: Callable[[], object] = lambda: None
) -> np.ndarray:
    """(clock, CPU) seconds of each call after the first, which compiles, and after `ready`: [calls, 2]."""
    advance()
    ready()
    marks = []
    for _ in range(calls):
        began = time.monotonic(), time.process_time()
        advance()
        marks.append((time.monotonic() - began[0], time.process_time() - began[1]))
    return np.array(marks)


def plain_step(
    config: ConfigDict, steps: int, ready: Callable[[], object] = lambda: None
) -> np.ndarray:
    """Seconds a step of `recjax.train`'s loop."""
    with Stop() as stop, tempfile.TemporaryDirectory() as folder, Run(folder, config) as run:
        t = Trainer(config, run, stop)
        batches = iter(t.train_batches(0))

        def advance():
            for _ in range(together.CHUNK):
                args = t.put(next(batches)), t.settings, np.int32(t.step), np.float32(1)
                t.trees, t.window = t.step_fn(t.trees, t.window, *args)
                t.step += 1
            jax.block_until_ready(t.trees)

        return timed(advance, steps // together.CHUNK, ready) / together.CHUNK


def apart_step(config: ConfigDict, members: int, steps: int, n: int) -> np.ndarray:
    """Seconds a step and trial where n processes train at once, each so many together on its part of the cores."""
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(n), spawn.Queue()
    args = (config, members, steps, barrier, answers)
    workers = [spawn.Process(target=_apart, args=args) for _ in range(n)]
    for worker, cores in zip(workers, processes.parts(processes.available(), n), strict=True):
        processes.start_on(worker, cores)
    found = np.concatenate([answers.get(timeout=600) for _ in workers])
    for worker in workers:
        worker.join()
    return found * [1 / n, 1]  # the clock runs for n trials at once, the processor for one


def _apart(config: ConfigDict, members: int, steps: int, barrier, answers) -> None:
    set_up()
    if members == 1:
        return answers.put(plain_step(config, steps, barrier.wait))
    answers.put(together_step(config, members, steps, barrier.wait))


def together_step(
    config: ConfigDict, members: int, steps: int, ready: Callable[[], object] = lambda: None
) -> np.ndarray:
    """Seconds a step and member of a program of so many."""
    configs = [ConfigDict(config.to_dict()) for _ in range(members)]
    for seed, c in enumerate(configs):
        c.seed = seed
    with Stop() as stop, tempfile.TemporaryDirectory() as folder, Run(folder, config) as run:
        t = together.Together(configs, run, stop, 0.0)
        stream = iter(t.train_batches(0))

        def advance():
            t.trees, t.window = t.advance(
                t.trees, t.window, stream, t.step, np.ones(together.CHUNK)
            )
            t.step += together.CHUNK

        return timed(advance, steps // together.CHUNK, ready) / together.CHUNK / members


def summary(seconds: np.ndarray) -> dict:
    """Median and quartiles in ms."""
    low, middle, high = 1e3 * np.quantile(seconds, (0.25, 0.5, 0.75), axis=0)
    names = ("clock_ms", "cpu_ms")
    return {n: [round(float(q[i]), 2) for q in (middle, low, high)] for i, n in enumerate(names)}


def loops(config: ConfigDict, microbatches: Sequence[int], members: int, n: int, steps: int):
    """(name, seconds [calls, 2]) of every way to train, the plain loop first."""
    config.train.microbatches = 1
    yield "plain", plain_step(config, steps)
    for size in microbatches:
        config.train.microbatches = max(config.train.batch // size, 1) if size else 1
        of = f"microbatches of {size or config.train.batch}"
        if members > 1:
            yield f"{members} together, {of}", together_step(config, members, steps)
        if n > 1:
            yield f"{n} processes, {of}", apart_step(config, 1, steps, n)
        if n > 1 and members > 1:
            yield f"{n} processes, {members} together, {of}", apart_step(config, members, steps, n)


def main(_) -> None:
    set_up()
    sizes = tuple(map(int, _MICROBATCHES.value))
    for grade in _GRADES.value:
        config = ConfigDict(_CONFIG.value.experiment.to_dict())
        config.model.update(named(grade).options())
        config.train.examples = 400_000
        plain: dict = {}
        for name, seconds in loops(config, sizes, _MEMBERS.value, _PROCESSES.value, _STEPS.value):
            row = summary(seconds)
            plain = plain or row
            faster = {
                f"faster_by_{k.removesuffix('_ms')}": round(plain[k][0] / row[k][0], 2) for k in row
            }
            print(json.dumps({"grade": grade, "loop": name, **row, **faster}), flush=True)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "scaling/configs/<name>.py")
    _GRADES = flags.DEFINE_list("grades", ["-1", "0"], "of scaling.plan.grades")
    _MEMBERS = flags.DEFINE_integer("members", 3, "trials in one program; 1: not measured")
    _PROCESSES = flags.DEFINE_integer("processes", 2, "each on its cores; 1: not measured")
    _MICROBATCHES = flags.DEFINE_list("microbatches", ["0", "64"], "examples of one; 0: the batch")
    _STEPS = flags.DEFINE_integer("steps", 160, "timed")
    flags.mark_flags_as_required(["config"])
    command.run(main)
