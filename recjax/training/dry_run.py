"""What a run would be: python -m recjax.train --dry_run. One step is compiled and done; nothing is kept.

Everything that can stop a run at its start stops this: the config, the data (prepared if they are not), the model, the
placement of its tables, memory for a step.
"""

import copy
import tempfile
import time

from absl import logging
import jax
from ml_collections import ConfigDict
import numpy as np

from recjax import configs
from recjax.runtime import mesh as meshes
from recjax.runtime.run import Run, Stop
from recjax.training.loop import Trainer
from recjax.training.progress import duration

STEPS = 5  # timed, after a first one that finds the caches cold


def dry_run(config: ConfigDict) -> dict[str, float]:
    """Compiles and does a few steps of a run on its own batches, in a directory that is removed.

    Args:
      config: As `recjax.training.loop.train` takes it. Earlier runs that it builds on (`needs`, `init_from`,
        `continue_from`) are left out: shapes do not depend on them.

    Returns:
      steps, batch, n_dense, n_embedding (parameters), compile_s, step_s (median), arguments_bytes and
      temporary_bytes of the compiled step on one device, train_s (steps x step_s, evaluation not counted).

    Raises:
      What `train` raises at its start.
    """
    configs.check(config)
    config = copy.deepcopy(config)
    config.needs, config.init_from, config.continue_from = (), (), ""
    config.train.log_to = ()
    with tempfile.TemporaryDirectory(prefix="recjax-dry-run-") as folder:
        with Stop() as stop, Run(folder, config) as run:
            trainer = Trainer(config, run, stop)
            with trainer.checkpoints:
                out = _measured(trainer)
    logging.info("%s", table(out))
    return out


def _measured(trainer: Trainer) -> dict[str, float]:
    """The figures of `dry_run`."""
    step, scale = (meshes.everywhere(trainer.mesh, x) for x in (np.int32(0), np.float32(1.0)))
    rest = trainer.example, trainer.settings, step, scale
    counts = trainer.costs(trainer.trees)
    began = time.monotonic()
    program = trainer.step_fn.lower(trainer.trees, trainer.window, *rest).compile()
    compile_s = time.monotonic() - began
    memory, took = program.memory_analysis(), []
    for _ in range(STEPS + 1):
        began = time.monotonic()
        trainer.trees, trainer.window = program(trainer.trees, trainer.window, *rest)
        jax.block_until_ready(trainer.trees)
        took.append(time.monotonic() - began)
    step_s = float(np.median(took[1:]))
    return counts | dict(
        steps=trainer.total,
        batch=trainer.config.train.batch,
        compile_s=compile_s,
        step_s=step_s,
        arguments_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        train_s=step_s * trainer.total,
    )


def table(out: dict[str, float]) -> str:
    """`dry_run`'s figures as lines to read."""
    mib = lambda name: f"{out[name] / 2**20:,.1f} MiB"  # noqa: E731
    rows = {
        "steps": f"{out['steps']:,} of {out['batch']:,} examples",
        "parameters": ", ".join(f"{k} {out[k]:,.0f}" for k in out if k.startswith("n_") and out[k]),
        "memory of a step": f"{mib('arguments_bytes')} kept, {mib('temporary_bytes')} temporary, on each device",
        "compiling": f"{out['compile_s']:.1f} s, once; later runs take it from the cache",
        "a step": f"{out['step_s'] * 1e3:.1f} ms",
        "training": f"about {duration(out['train_s'])}, without reading data and evaluation",
    }
    width = max(map(len, rows))
    return "dry run: nothing was written\n" + "\n".join(
        f"  {k:<{width}}  {v}" for k, v in rows.items()
    )
