"""Trials per hour of a grade: a plain jitted step loop against trials trained together.

    python -m scaling.bench_together --config=scaling/configs/complete_journey.py --grades=-1,0 --members=3

Prints milliseconds a step and trial, batches included, by the clock and in CPU time of the process; on a machine that does
other work too, the second is the one to compare.
"""

from collections.abc import Callable
import json
import tempfile
import time

from absl import app, flags
import jax
from ml_collections import ConfigDict, config_flags
import numpy as np

from recjax.run import Run, Stop, set_up
from recjax.train import Trainer
from scaling import together
from scaling.grades import named


def timed(advance: Callable[[], None], calls: int) -> np.ndarray:
    """(clock, CPU) seconds of each call after the first, which compiles: [calls, 2]."""
    advance()
    marks = []
    for _ in range(calls):
        began = time.monotonic(), time.process_time()
        advance()
        marks.append((time.monotonic() - began[0], time.process_time() - began[1]))
    return np.array(marks)


def plain_step(config: ConfigDict, steps: int) -> np.ndarray:
    """Seconds a step of `recjax.train`'s loop."""
    with Stop() as stop, tempfile.TemporaryDirectory() as folder, Run(folder, config) as run:
        t = Trainer(config, run, stop)
        batches, key = iter(t.train_batches(0)), jax.random.key(0)

        def advance():
            for _ in range(together.CHUNK):
                args = t.put(next(batches)), key, np.int32(t.step), np.float32(1)
                t.trees, t.sums = t.step_fn(t.trees, t.sums, *args)
                t.step += 1
            jax.block_until_ready(t.trees)

        return timed(advance, steps // together.CHUNK) / together.CHUNK


def together_step(config: ConfigDict, members: int, steps: int) -> np.ndarray:
    """Seconds a step and member of a program of so many."""
    configs = [ConfigDict(config.to_dict()) for _ in range(members)]
    for seed, c in enumerate(configs):
        c.seed = seed
    with Stop() as stop, tempfile.TemporaryDirectory() as folder, Run(folder, config) as run:
        t = together.Together(configs, run, stop, 0.0)
        stream = iter(t.batches(0))

        def advance():
            t.trees = t.advance(t.trees, stream, t.step, np.ones(together.CHUNK))
            t.step += together.CHUNK

        return timed(advance, steps // together.CHUNK) / together.CHUNK / members


def summary(seconds: np.ndarray) -> dict:
    """Median and quartiles in ms."""
    low, middle, high = 1e3 * np.quantile(seconds, (0.25, 0.5, 0.75), axis=0)
    names = ("clock_ms", "cpu_ms")
    return {n: [round(float(q[i]), 2) for q in (middle, low, high)] for i, n in enumerate(names)}


def main(_) -> None:
    set_up()
    for grade in _GRADES.value:
        config = ConfigDict(_CONFIG.value.experiment.to_dict())
        config.model.update(named(grade).options())
        config.train.examples, config.train.microbatches = 400_000, 1
        rows = {"plain": summary(plain_step(config, _STEPS.value))}
        for size in map(int, _MICROBATCHES.value):
            config.train.microbatches = max(config.train.batch // size, 1) if size else 1
            found = summary(together_step(config, _MEMBERS.value, _STEPS.value))
            for name, base in rows["plain"].items():
                found[f"faster_by_{name.removesuffix('_ms')}"] = round(base[0] / found[name][0], 2)
            rows[f"together, microbatches of {size or config.train.batch}"] = found
        for name, row in rows.items():
            print(
                json.dumps({"grade": grade, "loop": name, "members": _MEMBERS.value, **row}),
                flush=True,
            )


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "scaling/configs/<name>.py")
    _GRADES = flags.DEFINE_list("grades", ["-1", "0"], "of scaling.grades")
    _MEMBERS = flags.DEFINE_integer("members", 3, "trials in one program")
    _MICROBATCHES = flags.DEFINE_list("microbatches", ["0", "64"], "examples of one; 0: the batch")
    _STEPS = flags.DEFINE_integer("steps", 160, "timed")
    flags.mark_flags_as_required(["config"])
    app.run(main)
