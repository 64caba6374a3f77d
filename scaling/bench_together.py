"""Trials per hour of a grade: a plain jitted step loop against trials trained together.

python -m scaling.bench_together --config=scaling/configs/complete_journey.py --grades=-1,0 --members=3
"""

from collections.abc import Iterator
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
from scaling.grades import LADDER


def seconds(advance, steps: int) -> Iterator[float]:
    """Wall time of each call after the first, which compiles."""
    advance()
    for _ in range(steps):
        began = time.monotonic()
        advance()
        yield time.monotonic() - began


def plain_step(config: ConfigDict, steps: int) -> list[float]:
    """Seconds a step of `recjax.train`'s loop, batches included."""
    with Stop() as stop, tempfile.TemporaryDirectory() as folder, Run(folder, config) as run:
        t = Trainer(config, run, stop)
        batches, key = iter(t.train_batches(0)), jax.random.key(0)

        def advance():
            args = t.put(next(batches)), key, np.int32(t.step), np.float32(1)
            t.trees, t.sums = t.step_fn(t.trees, t.sums, *args)
            t.step += 1
            jax.block_until_ready(t.trees)

        return list(seconds(advance, steps))


def together_step(config: ConfigDict, members: int, steps: int) -> list[float]:
    """Seconds a step of one member of a program of so many, batches included."""
    configs = [ConfigDict(config.to_dict()) for _ in range(members)]
    for seed, c in enumerate(configs):
        c.seed = seed
    with Stop() as stop, tempfile.TemporaryDirectory() as folder, Run(folder, config) as run:
        t = together.Together(configs, run, stop, 0.0)
        stream = iter(t.batches(0))

        def advance():
            t.trees = t.advance(t.trees, stream, t.step, np.ones(together.CHUNK))
            t.step += together.CHUNK

        chunks = list(seconds(advance, max(steps // together.CHUNK, 3)))
        return [s / together.CHUNK / members for s in chunks]


def compare(config: ConfigDict, members: int, microbatch: int, steps: int) -> dict:
    """Medians and quartiles, in ms a step and trial."""
    plain, joint = ConfigDict(config.to_dict()), ConfigDict(config.to_dict())
    plain.train.microbatches = 1
    joint.train.microbatches = max(config.train.batch // microbatch, 1)
    times = {"plain": plain_step(plain, steps), "together": together_step(joint, members, steps)}
    out = {
        k: [round(1e3 * float(q), 2) for q in np.quantile(v, (0.25, 0.5, 0.75))]
        for k, v in times.items()
    }
    return {**out, "faster": round(out["plain"][1] / out["together"][1], 2)}


def main(_) -> None:
    set_up()
    for grade in _GRADES.value:
        config = ConfigDict(_CONFIG.value.experiment.to_dict())
        config.model.update(LADDER[grade].options())
        config.train.examples = 400_000
        row = compare(config, _MEMBERS.value, _MICROBATCH.value, _STEPS.value)
        print(json.dumps({"grade": grade, "members": _MEMBERS.value, **row}), flush=True)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "scaling/configs/<name>.py")
    _GRADES = flags.DEFINE_list("grades", ["-1", "0"], "of scaling.grades")
    _MEMBERS = flags.DEFINE_integer("members", 3, "trials in one program")
    _MICROBATCH = flags.DEFINE_integer("microbatch", 64, "examples of a microbatch")
    _STEPS = flags.DEFINE_integer("steps", 100, "timed")
    flags.mark_flags_as_required(["config"])
    app.run(main)
