"""THE loop of `python -m recjax.train`.

Reads top to bottom: the pieces of a run, then the loop; the compiled step is in recjax.training.step. It knows `System`,
batches and trees; nothing of papers. The same call resumes an interrupted run and leaves a finished one alone.
"""

from collections.abc import Callable, Iterable
import functools
import importlib.metadata
import itertools
import math
import time
from typing import Any

from absl import logging
import jax
from ml_collections import ConfigDict
import numpy as np
import tqdm

from recjax import configs, embedding, models
from recjax.batch import Batch
from recjax.data import open_data
from recjax.data.loading.protocol import Batches
from recjax.embedding import huge_pages
from recjax.evaluation.evaluator import Evaluator
from recjax.runtime import checkpoint, hosts
from recjax.runtime import mesh as meshes
from recjax.runtime.run import Run, RunError, Stop, compiled
from recjax.system import System
from recjax.training import optim, transfer
from recjax.training.step import forward_flops, make_step
from recjax.trees import Tree

Scored = Callable[[Any, str, dict[str, np.ndarray]], None]

# ---- the pieces of a run --------------------------------------------------------------------------------------


def eval_steps(config: ConfigDict, total_steps: int) -> set[int]:
    """Steps after which to evaluate; the end is evaluated by itself."""
    at = {math.ceil(n / config.train.batch) for n in config.eval.at_examples}
    if config.eval.every:
        at |= set(range(config.eval.every, total_steps + 1, config.eval.every))
    return {s for s in at if s <= total_steps}


def select_best(system: System, control: dict, metrics: dict) -> tuple[dict, bool]:
    """Updates best value, patience and stop; says whether this evaluation is the best so far."""
    rule = system.select
    if rule.metric not in metrics:
        raise KeyError(
            f"System.select.metric={rule.metric!r} is not among the metrics {sorted(metrics)}"
            + (f" ({metrics['undefined']})" if metrics.get("undefined") else "")
        )
    value, best = metrics[rule.metric], control["best"]
    sign = 1 if rule.mode == "max" else -1
    better = (
        value is not None and not math.isnan(value) and (best is None or sign * value > sign * best)
    )
    if better:
        return dict(control, best=value, bad=0), True
    bad = control["bad"] + 1
    return dict(
        control, bad=bad, stop=control["stop"] or bool(rule.patience and bad >= rule.patience)
    ), False


def count(tree: Tree, part: str = "") -> int:
    """Parameters in a tree, or in those of its leaves whose path contains `part`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return int(sum(x.size for p, x in leaves if part in optim.path_name(p)))


def run_needs(config: ConfigDict, run: Run) -> None:
    """Trains the earlier stages this experiment builds on, into <workdir>/needs/<i>: with its seed, on its data."""
    for i, need in enumerate(config.needs):
        name, _, arg = str(need).partition(":")
        stage = configs.load(name, arg)
        stage.seed = config.seed
        if stage.data.name == config.data.name:
            for key in ("dir", "source", "prepare"):
                stage.data[key] = config.data[key]
        logging.info("stage %d of %d: %s", i + 1, len(config.needs), need)
        train(stage, run.dir / "needs" / str(i))


# ---- the loop -------------------------------------------------------------------------------------------------


def train(config: ConfigDict, workdir: str, scored: Scored | None = None) -> dict:
    """Trains, evaluates and writes the run directory (see recjax.runtime.run); returns summary.json's content.

    Args:
      config: As from an experiment file's `get_config` (keys: recjax.configs).
      workdir: Where; resumes what is there.
      scored: Gets the data, the split's name and its rows (`Evaluator.predictions`) at each final evaluation.

    Raises:
      KeyError, ValueError: A config or data error, with the remedy.
      recjax.runtime.run.Interrupted: SIGTERM or Ctrl-C, after a save.
    """
    configs.check(config)
    with Stop() as stop, Run(workdir, config) as run:
        if run.summary is not None:
            logging.info("%s is finished; nothing to do", workdir)
            return run.summary
        run_needs(config, run)
        trainer = Trainer(config, run, stop, scored)
        with trainer.checkpoints:
            return trainer.run_to_end()


class Trainer:
    """One run's objects, built in order; `run_to_end` is the loop."""

    def __init__(self, config: ConfigDict, run: Run, stop: Stop, scored: Scored | None = None):
        self.config, self.run, self.stop, self.scored = config, run, stop, scored
        self.compiled = compiled()
        self.mesh = meshes.make()
        meshes.check_batch_size(self.mesh, config.train.batch, config.train.microbatches)
        share = dict(process_index=jax.process_index(), process_count=jax.process_count())
        self.data = open_data(config.data, **share)
        transfer.check_splits(config, self.data)
        self.system = models.build(self.data.schema, config.model)
        self.total = len(self.train_batches(0))
        if not self.total:
            raise RunError(
                f"split {config.data.train!r} has no batch; lower train.batch or train.examples"
            )
        first = itertools.islice(self.train_batches(0), 4 if self.mesh.size > 1 else 0)
        self.plan = embedding.plan(
            self.system.tables,
            self.data.schema,
            self.mesh,
            embedding.measure(first, self.data.schema, self.mesh.size),
            config.embedding.placement,
        )
        if self.mesh.size > 1:
            logging.info("placement of the tables\n%s", self.plan)
        self.example = self.put(next(iter(self.in_step(self.train_batches(0)))))
        self.checkpoints = checkpoint.Checkpoints(run.dir / "checkpoints", config.train.keep)
        step = make_step(self.system, config, self.total, self.plan)
        self.step_fn = jax.jit(step, donate_argnums=(0, 1))
        self.evaluator = Evaluator(self.system, self.mesh, self.plan)
        self.at = eval_steps(config, self.total)
        self.periods = {p.step: p for p in self.train_batches(0).periods}
        self.clock = dict(wall=0.0, waited=0.0, steps=0)
        self.eval_levels: tuple = ()
        self.pending: tuple | None = None
        try:
            self.start()
        except BaseException:
            self.checkpoints.close()  # nothing was begun: it waits for nobody
            raise

    def put(self, batch: Batch) -> Batch:
        return meshes.put(self.mesh, self.plan.route(batch))

    def train_batches(self, start: int) -> Batches:
        c = self.config
        return self.data.batches(
            c.data.train,
            c.train.batch,
            start=start,
            examples=c.train.examples,
            recent=c.train.recent,
            recent_days=c.train.recent_days,
            online=c.train.online,
            buckets=tuple(c.data.length_buckets),
            epochs=c.train.epochs,
            shards=self.mesh.size,
            workers=c.data.workers,
            shuffle_seed=c.data.shuffle_seed,
        )

    def in_step(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        return hosts.in_step(batches, self.plan, self.stop)

    def start(self) -> None:
        """Fresh or restored trees, metric sums, step and control."""
        both = transfer.start(
            self.system, self.config, self.data, self.run.dir, self.example, self.plan
        )
        self.zeros = meshes.zeros(self.mesh, both[1])
        self.step, self.control = 0, dict(lr_scale=1.0, stop=False, best=None, bad=0, evaluated=0)
        check = functools.partial(transfer.check_resumed, data=self.data, where=self.run.dir)
        restored = self.checkpoints.restore(dict(trees=both[0], sums=both[1]), check=check)
        if restored is None and self.config.continue_from:
            both = transfer.go_on(*both, self.system, self.config, self.data, self.plan), both[1]
        elif restored is None and self.system.setup is not None:
            batches = map(self.put, self.in_step(self.train_batches(0)))
            both = self.system.setup(both[0], batches), both[1]
        if restored is not None:
            self.step, saved, meta = restored
            both, self.control = (saved["trees"], saved["sums"]), meta["control"]
            self.clock = meta["clock"]
            logging.info("resuming at step %d of %d", self.step, self.total)
        self.run.begin(self.step)
        self.trees, self.sums = both
        huge_pages.use(self.trees.tables)

    def save(self, *, best: bool = False) -> None:
        self.drain()
        self.flush()  # a row before the saved step would not be written again
        meta = dict(
            control=self.control, clock=self.clock, **transfer.describe(self.data, self.config)
        )
        self.checkpoints.save(self.step, dict(trees=self.trees, sums=self.sums), meta, best=best)

    def evaluate(self, splits: Iterable[str], kind: str) -> dict[str, dict]:
        """Metrics of each split, logged. SIGTERM during it saves and ends; resuming evaluates again."""
        c, out = self.config, {}
        for split in splits:
            # Every split in the first one's shapes: one program serves them all.
            batches = self.data.batches(
                split,
                c.eval.batch,
                examples=c.eval.examples,
                shards=self.mesh.size,
                levels=self.eval_levels,
            )
            self.eval_levels = self.eval_levels or batches.levels
            final = kind == "final" and self.scored is not None and jax.process_index() == 0
            take = functools.partial(self.scored, self.data, split) if final else None
            out[split] = self.measure(batches, take)
            examples = self.step * c.train.batch
            self.run.log(self.step, kind, out[split], split=split, examples=examples)
        return out

    def measure(self, batches: Iterable[Batch], take: Callable | None = None) -> dict:
        poll = lambda: self.stop.raise_if_requested(self.interrupted)  # noqa: E731
        return self.evaluator(self.trees, self.in_step(batches), poll=poll, take=take)

    def interrupted(self) -> None:
        self.save()
        self.checkpoints.wait()
        logging.warning(
            "saved step %d to %s; run the same command to go on", self.step, self.run.dir
        )

    def drain(self) -> None:
        """Waits, on the clock, for the steps that were begun; what comes next would wait for them off it."""
        began = time.monotonic()
        jax.block_until_ready(self.trees)
        self.clock["wall"] += time.monotonic() - began

    def evaluate_and_select(self) -> None:
        self.drain()
        metrics = self.evaluate(self.config.eval.splits, "eval")[self.config.eval.splits[0]]
        self.control["evaluated"] = self.step
        self.control, best = select_best(self.system, self.control, metrics)
        if self.system.on_eval is not None:
            self.control = self.system.on_eval(self.control, metrics)
        if best:
            self.save(best=True)

    def evaluate_next_period(self) -> None:
        """`train.online`: what the model says of the period it is about to train on."""
        self.drain()
        c, period = self.config, self.periods[self.step]
        batches = self.data.batches(
            c.data.train,
            c.eval.batch,
            examples=c.eval.examples,
            period=(period.begin, period.end),
            shards=self.mesh.size,
            levels=self.eval_levels,
        )
        self.eval_levels = self.eval_levels or batches.levels
        metrics = self.measure(batches)
        self.control["online"] = self.step
        examples = self.step * c.train.batch
        self.run.log(self.step, "online", metrics, split=str(period), examples=examples)

    def run_to_end(self) -> dict:
        c = self.config
        batches = iter(self.in_step(self.train_batches(self.step)))
        bar = tqdm.tqdm(
            total=self.total,
            initial=self.step,
            unit="step",
            mininterval=1.0,
            disable=True if jax.process_index() else None,  # None: unless this is no terminal
        )
        key, started = jax.random.key(c.seed), False
        while True:
            if self.step in self.at and self.control["evaluated"] < self.step:
                self.evaluate_and_select()
            if self.step in self.periods and self.control.get("online", 0) < self.step:
                self.evaluate_next_period()
            if self.step == self.total or self.control["stop"]:
                break
            if self.step and self.step % c.train.checkpoint_every == 0:
                self.save()
            self.stop.raise_if_requested(self.interrupted)
            began = time.monotonic()
            batch = self.put(next(batches))
            waited = time.monotonic() - began
            scalars = key, np.int32(self.step), np.float32(self.control["lr_scale"])
            self.trees, self.sums = self.step_fn(self.trees, self.sums, batch, *scalars)
            self.step += 1
            bar.update()
            if started:  # the first step of a process compiles, and is not counted
                self.clock["wall"] += time.monotonic() - began
                self.clock["waited"] += waited
                self.clock["steps"] += 1
            started = True
            if self.step % c.train.log_every == 0 or self.step == self.total:
                # Read the window before this one: its numbers are there already, so nothing waits.
                self.flush()
                self.pending = self.step, self.sums
                self.sums = self.zeros()
        bar.close()
        return self.finish()

    def flush(self) -> None:
        """Logs the finished window of metric sums, if one waits."""
        if self.pending is not None:
            step, sums = self.pending
            ratio = {
                k: float(n) / max(float(d), 1e-9) for k, (n, d) in jax.device_get(sums).items()
            }
            self.run.log(step, "train", ratio)
            self.pending = None

    def finish(self) -> dict:
        """Final evaluation of the last (or best) trees, and the summary."""
        self.save()
        if self.config.eval.use_best and self.checkpoints.best_step is not None:
            target = dict(trees=self.trees, sums=self.sums)
            self.step, saved, _ = self.checkpoints.restore(target, best=True)
            self.trees = saved["trees"]
        splits = self.evaluate(self.config.eval.final, "final")
        self.checkpoints.wait()
        return self.run.finish({**splits, **self.facts()})

    def facts(self) -> dict:
        c, trees = self.config, self.trees
        examples = self.step * c.train.batch
        return dict(
            n_dense=count(trees.dense),
            n_blocks=count(trees.dense, "layers_"),
            n_embedding=embedding.num_parameters(trees.tables),
            flops_per_example=forward_flops(self.system, trees, self.example, self.plan),
            examples=min(examples, self.train_batches(0).examples),
            examples_per_s=self.clock["steps"] * c.train.batch / max(self.clock["wall"], 1e-9),
            loader_wait=self.clock["waited"] / max(self.clock["wall"], 1e-9),
            wall_s=self.clock["wall"],
            compiled=compiled() - self.compiled,
            step=self.step,
            seed=c.seed,
            versions={p: importlib.metadata.version(p) for p in ("jax", "flax", "optax")},
        )
