"""THE loop of `python -m recjax.train`.

Reads top to bottom: the pieces of a run, then the loop; the compiled step is in recjax.training.step. It knows `System`,
batches and trees; nothing of papers. The same call resumes an interrupted run and leaves a finished one alone.
"""

from collections.abc import Callable, Iterable
import functools
import math
import time
from typing import Any

from absl import logging
import jax
from ml_collections import ConfigDict
import numpy as np

from recjax import configs
from recjax.embedding import huge_pages
from recjax.evaluation.popularity import Popularity
from recjax.runtime import mesh as meshes
from recjax.runtime.provenance import provenance
from recjax.runtime.run import Run, Stop, compiled
from recjax.system import System
from recjax.training import progress, transfer
from recjax.training.core import Core
from recjax.training.step import settings
from recjax.training.window import Window
from recjax.trees import Trees

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


class Trainer(Core):
    """One run; `run_to_end` is the loop."""

    def __init__(self, config: ConfigDict, run: Run, stop: Stop, scored: Scored | None = None):
        self.scored = scored
        super().__init__(config, run, stop)
        self.at = eval_steps(self.config, self.total)
        self.periods = {p.step: p for p in self.train_batches(0).periods}
        self.popularity: dict[str, float | None] = {}

    def begin(self) -> None:
        """Fresh or restored trees, window, step and control."""
        c = self.config
        self.settings = meshes.everywhere(self.mesh, settings(self.system, c))
        self.control = dict(lr_scale=1.0, stop=False, best=None, bad=0, evaluated=0)
        trees, window = transfer.start(
            self.system, c, self.data, self.run.dir, self.example, self.plan
        )
        self.zeros = meshes.zeros(self.mesh, window)
        meta = self.restored(trees, window)
        if meta is not None:
            self.control = meta["control"]
        else:
            self.trees, self.window = self.begun(trees, window), window
        huge_pages.use(self.trees.tables)

    def begun(self, trees: Trees, window: Window) -> Trees:
        """What training begins with, of fresh trees."""
        if self.config.continue_from:
            return transfer.go_on(trees, window, self.system, self.config, self.data, self.plan)
        if self.system.setup is not None:
            return self.system.setup(trees, map(self.put, self.in_step(self.train_batches(0))))
        return trees

    def meta(self) -> dict:
        return dict(control=self.control)

    def evaluate(self, splits: Iterable[str], kind: str) -> dict[str, dict]:
        """Metrics of each split, logged."""
        out = {}
        for split in splits:
            batches, take = self.split_batches(split), None
            if kind == "final":
                if self.scored is not None and jax.process_index() == 0:
                    take = functools.partial(self.scored, self.data, split)
                popular = Popularity(self.data, self.system.objectives[0].label)
                out[split] = self.measure(self.trees, popular.watch(batches), take)
                # a process sees its own share of the rows only
                self.popularity[split] = popular.auc() if jax.process_count() == 1 else None
            else:
                out[split] = self.measure(self.trees, batches)
            self.log_evaluation(
                kind, split, out[split], examples=self.step * self.config.train.batch
            )
        return out

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
        period = self.periods[self.step]
        batches = self.split_batches(self.config.data.train, period=(period.begin, period.end))
        metrics = self.measure(self.trees, batches)
        self.control["online"] = self.step
        examples = self.step * self.config.train.batch
        self.log_evaluation("online", str(period), metrics, examples=examples)

    def run_to_end(self) -> dict:
        c, started = self.config, False
        batches = iter(self.in_step(self.train_batches(self.step)))
        with progress.bar(self.step, self.total) as self.bar, self.profile:
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
                self.profile.before(self.step, self.trees)
                began = time.monotonic()
                batch = self.put(next(batches))
                waited = time.monotonic() - began
                now = np.int32(self.step), np.float32(self.control["lr_scale"])
                now = meshes.everywhere(self.mesh, now)
                self.trees, self.window = self.step_fn(
                    self.trees, self.window, batch, self.settings, *now
                )
                self.step += 1
                self.bar.update()
                if started:  # the first step of a process compiles, and is not counted
                    self.clock.add(time.monotonic() - began, waited)
                started = True
                if self.step % c.train.log_every == 0 or self.step == self.total:
                    self.close_window()
            self.profile.before(self.step, self.trees)
        return self.finish()

    def finish(self) -> dict:
        """Final evaluation of the last (or best) trees, and the summary."""
        self.save()
        if self.config.eval.use_best and self.checkpoints.best_step is not None:
            target = dict(trees=self.trees, sums=self.window)
            self.step, saved, _ = self.checkpoints.restore(target, best=True)
            self.trees = saved["trees"]
        splits = self.evaluate(self.config.eval.final, "final")
        self.checkpoints.wait()
        facts = self.facts()
        logging.info(
            "%s is finished\n%s",
            self.run.dir,
            progress.table(facts, splits, self.config.train.batch),
        )
        return self.run.finish({**splits, **facts})

    def facts(self) -> dict:
        c, speed = self.config, self.clock.speed(self.config.train.batch)
        return dict(
            **self.costs(self.trees),
            examples=min(self.step * c.train.batch, self.train_batches(0).examples),
            examples_per_s=speed.get("examples_per_s", 0.0),
            loader_wait=speed.get("waited", 0.0),
            wall_s=self.clock.wall,
            compiled=compiled() - self.compiled,
            step=self.step,
            batch=c.train.batch,
            epochs=c.train.epochs,
            seed=c.seed,
            popularity=self.popularity,
            **provenance(),
        )
