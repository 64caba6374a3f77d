"""What every loop over a run's batches stands on, be it of one run (recjax.training.loop) or of several together.

One definition of what is opened, of a save, of an evaluation, of a window of steps and of what is told of it.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import itertools
import time

from absl import logging
import jax
from ml_collections import ConfigDict
import numpy as np
import tqdm

from recjax import embedding, models
from recjax.batch import Batch
from recjax.data import open_data
from recjax.data.loading.layout import Capacity
from recjax.data.loading.protocol import Batches
from recjax.evaluation.evaluator import Evaluator
from recjax.runtime import checkpoint, hosts
from recjax.runtime import mesh as meshes
from recjax.runtime.run import Run, RunError, Stop, compiled
from recjax.system import parameter_counts
from recjax.training import progress, sizing, transfer
from recjax.training.progress import Clock
from recjax.training.step import forward_flops, make_step
from recjax.training.window import Window
from recjax.trees import Trees

HOPELESS = 100  # steps in a row that are left out before `train.on_non_finite=skip` gives up


class NonFinite(RunError):
    """A loss, gradient or state is not finite."""


class Core:
    """The objects of a loop, built in order; what a subclass does with them is its `begin` and `run_to_end`.

    Args:
      config: Of the run; of several, what they share.
      run, stop: Entered.

    Attributes:
      trees, window: On the devices.
      zeros: Makes an empty window; `begin` sets it.
      step: Steps done.
      clock: Of the steps done.
    """

    trees: Trees
    window: Window
    zeros: Callable[[], Window]

    def __init__(self, config: ConfigDict, run: Run, stop: Stop):
        self.run, self.stop = run, stop
        self.compiled = compiled()
        self.mesh = meshes.make()
        meshes.check_batch_size(self.mesh, config.train.batch, config.train.microbatches)
        share = dict(process_index=jax.process_index(), process_count=jax.process_count())
        self.data = open_data(config.data, **share)
        self.config = config = sizing.sized(config, self.data, self.mesh.size)
        transfer.check_splits(config, self.data)
        self.system = models.build(self.data.schema, config.model)
        transfer.check_stages(config, self.data, self.system)
        self.total = len(self.train_batches(0))
        if not self.total:
            raise RunError(
                f"split {config.data.train!r} has no batch; lower train.batch or train.examples"
            )
        self.profile = progress.Profile(config.train.profile, self.total, run.dir / "profile")
        self.plan = self.placement()
        self.example = self.put(next(iter(self.in_step(self.train_batches(0)))))
        step = make_step(self.system, config, self.total, self.plan)
        self.step_fn = jax.jit(step, donate_argnums=(0, 1))
        self.evaluator = Evaluator(self.system, self.mesh, self.plan)
        self.eval_levels: Sequence[Capacity] = ()
        self.step, self.clock, self.told = 0, Clock(), Clock()
        self.pending: tuple[int, Window, Clock] | None = None
        self.left_out: dict[int, int] = {}  # steps in a row, by run
        self.bar: tqdm.tqdm | None = None
        self.checkpoints = checkpoint.Checkpoints(run.dir / "checkpoints", config.train.keep)
        try:
            self.begin()
        except BaseException:
            self.checkpoints.close()  # nothing was begun: it waits for nobody
            raise
        self.told = dataclasses.replace(self.clock)
        self.run.begin(self.step)
        progress.warn_of_few_steps(self.total, config.train.batch)

    # ---- for a subclass

    def begin(self) -> None:
        """Sets the trees, the window and `zeros`, which makes an empty one, restored where there is a checkpoint."""
        raise NotImplementedError

    def meta(self) -> dict:
        """What a checkpoint says beside its trees (JSON)."""
        raise NotImplementedError

    def windows(self, window: Window) -> list[tuple[dict, Window]]:
        """A window by run that it tells of: what names the run in a row of metrics, and its part."""
        return [({}, window)]

    # ---- batches

    def placement(self) -> embedding.Plan:
        first = itertools.islice(self.train_batches(0), 4 if self.mesh.size > 1 else 0)
        plan = embedding.plan(
            self.system.tables,
            self.data.schema,
            self.mesh,
            embedding.measure(first, self.data.schema, self.mesh.size),
            self.config.embedding.placement,
        )
        if self.mesh.size > 1:
            logging.info("placement of the tables\n%s", plan)
        return plan

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

    # ---- saving

    def restored(self, trees: Trees, window: Window) -> dict | None:
        """Meta of the newest checkpoint, whose step, trees, window and clock are taken; None when there is none.

        Args:
          trees, window: Arrays to restore into.
        """
        check = functools.partial(transfer.check_resumed, data=self.data, where=self.run.dir)
        found = self.checkpoints.restore(dict(trees=trees, sums=window), check=check)
        if found is None:
            return None
        self.step, saved, meta = found
        self.trees, self.window = saved["trees"], saved["sums"]
        self.clock = Clock(**meta["clock"])
        logging.info("resuming at step %d of %d", self.step, self.total)
        return meta

    def save(self, *, best: bool = False) -> None:
        self.drain()
        self.flush()  # a row before the saved step would not be written again
        self.check(self.window)
        clock = dataclasses.asdict(self.clock)
        meta = dict(self.meta(), clock=clock, **transfer.describe(self.data, self.config))
        self.checkpoints.save(self.step, dict(trees=self.trees, sums=self.window), meta, best=best)

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
        self.clock.wall += time.monotonic() - began

    # ---- evaluating

    def split_batches(self, split: str, **part) -> Batches:
        """Batches to evaluate, every split in the first one's shapes: one program serves them all."""
        c = self.config
        batches = self.data.batches(
            split, c.eval.batch, examples=c.eval.examples, shards=self.mesh.size,
            levels=self.eval_levels, **part,
        )  # fmt: skip
        self.eval_levels = self.eval_levels or batches.levels
        return batches

    def measure(self, trees: Trees, batches: Iterable[Batch], take: Callable | None = None) -> dict:
        """Metrics. SIGTERM during it saves and ends; resuming evaluates again."""
        poll = lambda: self.stop.raise_if_requested(self.interrupted)  # noqa: E731
        return self.evaluator(trees, self.in_step(batches), poll=poll, take=take)

    def log_evaluation(self, kind: str, split: str, metrics: dict, **names) -> None:
        self.run.log(self.step, kind, metrics, split=split, **names)
        of = "".join(f", {k} {names[k]}" for k in ("member",) if k in names)
        logging.info("%s", progress.evaluation_line(self.step, f"{split}{of}", metrics))

    # ---- windows of steps

    def close_window(self) -> None:
        """Tells of the window before this one: its numbers are there already, so nothing waits."""
        self.flush()
        self.pending = self.step, self.window, self.clock.since(self.told)
        self.told, self.window = dataclasses.replace(self.clock), self.zeros()

    def flush(self) -> None:
        """Tells of the closed window, if one waits."""
        if self.pending is None:
            return
        (step, window, clock), self.pending = self.pending, None
        window = jax.device_get(window)
        rows = []
        for names, own in self.windows(window):
            rows.append(own.ratios())
            self.run.log(step, "train", rows[-1] | {"non_finite": int(own.bad)}, **names)
        if jax.process_index() == 0:
            costs = clock.speed(self.config.train.batch) | {"peak_memory": progress.peak_memory()}
            self.run.scalars(
                step, "train", costs
            )  # not in metrics.jsonl, which is the same for every run of it
            values = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
            batch = self.config.train.batch
            self.run.tell_status(progress.status(step, self.total, values, clock, batch))
            self.tell(progress.window_line(step, self.total, values, clock, batch))
        self.check(window, closed=True)

    def tell(self, line: str) -> None:
        """A line in the log, or beside the bar of a terminal."""
        if self.bar is None or self.bar.disable:
            logging.info("%s", line)
        else:
            self.bar.set_postfix_str(line.partition(", ")[2])

    def check(self, window: Window, *, closed: bool = False) -> None:
        """Raises NonFinite where the run cannot go on."""
        for _, fault in self.ended(window, closed):
            raise NonFinite(f"{fault}; {self.last_good()}")

    def ended(self, window: Window, closed: bool) -> list[tuple[dict, str]]:
        """What names a run that cannot go on, and why: a step was not finite, or with "skip" `HOPELESS` in a row."""
        out = []
        for i, (names, own) in enumerate(self.windows(jax.device_get(window))):
            fault = own.fault()
            if closed:
                in_a_row = self.left_out.get(i, 0) + int(own.bad)
                self.left_out[i] = in_a_row if own.steps == own.bad else 0
            hopeless = self.left_out.get(i, 0) >= HOPELESS
            if fault and (hopeless or self.config.train.on_non_finite == "stop"):
                out.append((names, fault))
        return out

    def last_good(self) -> str:
        saved = self.checkpoints.latest_step
        have = (
            "no checkpoint was saved yet"
            if saved is None
            else f"step {saved} is the last good checkpoint"
        )
        return (
            f"{have} in {self.run.dir}. Lower opt.lr or a table's lr, or set opt.clip; with "
            "train.on_non_finite=skip such a step changes nothing and training goes on"
        )

    # ---- the end

    def costs(self, trees: Trees) -> dict:
        """Sizes of one run's trees, and what scoring costs."""
        return dict(
            **parameter_counts(self.system, trees.dense),
            n_embedding=embedding.num_parameters(trees.tables),
            flops_per_example=forward_flops(self.system, trees, self.example, self.plan),
        )
