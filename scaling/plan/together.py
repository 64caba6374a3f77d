"""Trials of equal shape in one program: seeds and learning rates side by side, and cooldowns forked from their pass.

Members read the same batches, so these are built and moved once. The program takes a chunk of steps: on CPU it is a
`map` over members of a loop over steps (a member's parameters stay in cache, one call a chunk), on accelerators a
`vmap` over members, where dispatch dominates. Set `train.microbatches` to parts of about 64 examples on CPU:
activations then stay in cache too (`python -m scaling.bench_together`).

A pass at a constant rate is evaluated at `eval.at_examples`. With a cooldown share f, the state after (1 - f) n
examples is also trained on the next f n with a rate that falls linearly to zero, evaluated, and dropped: what a run
planned for n examples would have reached, at f of its cost (Hägele et al. 2024, arXiv 2405.18392).

Every member is trained by `recjax.training.step`, so it ends where `recjax.train` ends with the same config. One device, one
process; what has earlier stages trains by itself (`suits`), a model with hooks must (`sweep.members`). A model's `patience` is not
applied: members end where they were planned to. A point is measured at the end of the batch that reaches it.
"""

from collections.abc import Iterator, Sequence
import itertools
import math
import time
from typing import NamedTuple

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from recjax import models
from recjax.batch import Batch
from recjax.runtime import checkpoint
from recjax.runtime import mesh as meshes
from recjax.runtime.identity import Use, keys, without
from recjax.runtime.provenance import provenance
from recjax.runtime.run import Run, Stop, flat, plain, read_jsonl
from recjax.schema import Table
from recjax.training import progress, transfer
from recjax.training.core import Core, NonFinite
from recjax.training.step import Settings, init_trees, settings, zero_window
from recjax.training.window import Window
from recjax.trees import Tree, Trees

CHUNK = 16  # steps a call


class Event(NamedTuple):
    """Something to do after `step` steps: evaluate the pass, or cool down to `examples` and evaluate."""

    step: int
    kind: str  # "cooldown" | "pass"; at one step the fork comes first
    examples: int


def shape(config: ConfigDict) -> tuple:
    """Trials with equal shapes can share a program: the config without what members may differ in."""
    own = without(flat(plain(config)), Use.MEMBER)
    return tuple(sorted((k, repr(v)) for k, v in own.items()))


def suits(config: ConfigDict) -> bool:
    """Whether a config is a plain pass or several: no earlier stages, no choice of the best, no periodic evaluation."""
    special = [config.needs, config.init_from, config.continue_from, config.train.online]
    special += [config.eval.use_best, config.eval.every, config.data.length_buckets]
    return not any(special) and jax.device_count() == 1


def events(config: ConfigDict, cooldown: float, examples: int) -> list[Event]:
    """All events of a pass over so many examples, in order; its end is a point even where it is not named."""
    points = {min(n, examples) for n in config.eval.at_examples} | {examples}
    out = []
    for n in points:
        end = steps_to(n, config)
        out.append(Event(end, "pass", n))
        if cooldown and end > 1:
            out.append(Event(end - math.ceil(cooldown * end), "cooldown", n))
    return sorted(out)


def steps_to(examples: int, config: ConfigDict) -> int:
    return math.ceil(examples / config.train.batch)


def train_together(
    configs: Sequence[ConfigDict], workdir: epath.PathLike, cooldown: float = 0.0
) -> tuple[list[dict], dict]:
    """Trains the members; returns their measurements (member, kind, examples, split, metrics) and facts.

    The same call resumes after a kill and returns at once when the run is finished. A member with a step that is not
    finite is measured no more, and `diverged` of the facts says why ({member: reason}); with
    `train.on_non_finite=skip` it goes on without that step.

    Args:
      configs: Of one `shape`.
      workdir: The run directory (see recjax.runtime.run).
      cooldown: Share f of each point's examples in its fork; 0 for none.

    Raises:
      recjax.runtime.run.Interrupted: SIGTERM or Ctrl-C, after a save.
      recjax.training.core.NonFinite: No member is left.
    """
    whole = ConfigDict(dict(members=[_lasting(c) for c in configs], cooldown=cooldown))
    with Stop() as stop, Run(workdir, whole) as run:
        if run.summary is None:
            together = Together(configs, run, stop, cooldown)
            with together.checkpoints:
                together.run_to_end()
        return list(read_rows(run.dir).values()), run.summary


def _lasting(config: ConfigDict) -> dict:
    """A member's config without what may change before it is resumed."""
    out = plain(config)
    for key in keys(Use.FREE):
        section, name = key.split(".")
        out.get(section, {}).pop(name, None)
    return out


def read_rows(workdir: epath.Path) -> dict[tuple, dict]:
    """(member, kind, examples, split) -> row; the last of each counts."""
    path = workdir / "metrics.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    points = (r for r in rows if "split" in r)
    return {(r["member"], r["kind"], r["examples"], r["split"]): r for r in points}


class Together(Core):
    """Members whose trees and windows are stacked, [S, ...]; `run_to_end` is the loop."""

    def __init__(self, configs: Sequence[ConfigDict], run: Run, stop: Stop, cooldown: float):
        self.configs, self.diverged = list(configs), {}
        super().__init__(configs[0], run, stop)
        self.events = events(configs[0], cooldown, self.train_batches(0).examples)
        self.program = jax.jit(self._chunk, donate_argnums=(0, 1))

    def begin(self) -> None:
        """Fresh or restored trees, stacked over members."""
        name, own = self.config.model.name, []
        if self.system.setup or self.system.on_eval:
            raise ValueError(f"model {name!r} has hooks; set sweep.members to 1 and cooldown to 0")
        if any(t.frozen and not self.vectors(t) for t in self.system.tables):
            raise ValueError(
                "frozen tables are filled from item vectors alone here; set sweep.members to 1 and cooldown to 0"
            )
        for c in self.configs:
            own.append(settings(models.build(self.data.schema, c.model), c))
        self.settings = meshes.everywhere(self.mesh, jax.tree.map(lambda *x: np.stack(x), *own))
        each = [self.fresh(c) for c in self.configs]
        window = zero_window(self.system, self.config, each[0], self.example)
        self.empty = meshes.everywhere(self.mesh, window)
        windows = stack([self.empty for _ in self.configs])
        self.zeros = meshes.zeros(self.mesh, windows)
        trees = stack(each)
        meta = self.restored(trees, windows)
        if meta is None:
            self.trees, self.window = trees, windows
        else:
            self.diverged = meta["diverged"]

    def vectors(self, table: Table) -> int:
        """Width of the vectors that the table's rows begin as; 0: they are random."""
        return self.system.schema.space(table.id_space).vectors

    def fresh(self, config: ConfigDict) -> Trees:
        """Initial trees of a member."""
        trees = init_trees(self.system, config, self.example)
        tables = transfer.with_vectors(trees.tables, self.system, self.data)
        return trees.replace(tables=tables)

    def meta(self) -> dict:
        return dict(diverged=self.diverged)

    def windows(self, window: Window) -> list[tuple[dict, Window]]:
        return [(dict(member=m), part(window, m)) for m in range(len(self.configs))]

    def check(self, window: Window, *, closed: bool = False) -> None:
        """Notes members that have diverged; raises NonFinite where none is left."""
        for names, fault in self.ended(window, closed):
            member = str(names["member"])
            if member not in self.diverged:
                self.diverged[member] = fault
                logging.warning("member %s diverged, and is measured no more: %s", member, fault)
        if not self.members():
            why = next(reversed(self.diverged.values()))
            raise NonFinite(f"all members diverged; the last: {why}; {self.last_good()}")

    def members(self) -> list[int]:
        """Those that have not diverged."""
        return [m for m in range(len(self.configs)) if str(m) not in self.diverged]

    def _chunk(
        self, trees: Trees, windows: Window, own: Settings, batches: Batch,
        step: jax.Array, count: jax.Array, scale: jax.Array,
    ):  # fmt: skip
        """`count` steps of every member: trees [S, ...], batches [K, ...], scale [K] on all rates."""

        def member(trees, window, own):
            def body(i, carry):
                batch = jax.tree.map(lambda x: x[i], batches)
                return self.step_fn(*carry, batch, own, step + i, scale[i])

            return jax.lax.fori_loop(0, count, body, (trees, window))

        if self.sequential:
            return jax.lax.map(lambda m: member(*m), (trees, windows, own))
        return jax.vmap(member)(trees, windows, own)

    @property
    def sequential(self) -> bool:
        """Whether members go one after the other: on CPU, where one's parameters and activations stay in cache.

        `vmap` rounds differently, which Adam at its usual eps makes visible where a gradient is exactly zero but for
        rounding (a bias before a BatchNorm): such a parameter moves by the rate, with the sign of the noise.
        """
        return jax.default_backend() == "cpu"

    def advance(
        self, trees: Trees, windows: Window, stream: Iterator[Batch], step: int, scale: np.ndarray
    ) -> tuple[Trees, Window]:
        """Up to CHUNK steps from `step`, one for each scale; donates `trees` and `windows`."""
        began = time.monotonic()
        batches = list(itertools.islice(stream, len(scale)))
        stacked = meshes.put(self.mesh, stack_batches(batches, self.data.schema, CHUNK))
        waited = time.monotonic() - began
        padded = np.zeros(CHUNK, np.float32)
        padded[: len(scale)] = scale
        now = meshes.everywhere(self.mesh, (np.int32(step), np.int32(len(scale)), padded))
        trees, windows = self.program(trees, windows, self.settings, stacked, *now)
        jax.block_until_ready(trees)
        self.clock.wall += time.monotonic() - began
        self.clock.waited += waited
        return trees, windows

    def run_to_end(self) -> None:
        log_every, every = self.config.train.log_every, self.config.train.checkpoint_every
        stream, saved = iter(self.train_batches(self.step)), self.step
        with progress.bar(self.step, self.total) as self.bar:
            for event in self.events:
                while self.step < event.step:
                    self.stop.raise_if_requested(self.interrupted)
                    if self.step - saved >= every:
                        self.save()
                        saved = self.step
                    count, before = min(CHUNK, event.step - self.step), self.step
                    self.trees, self.window = self.advance(
                        self.trees, self.window, stream, self.step, np.ones(count)
                    )
                    self.step += count
                    self.clock.steps += count
                    self.bar.update(count)
                    if self.step // log_every > before // log_every or self.step == self.total:
                        self.close_window()
                if event.step == self.step and not self.measured(event):
                    self.save()  # the fork starts from this checkpoint
                    saved = self.step
                    trees = self.trees if event.kind == "pass" else self.cool_down(event)
                    self.evaluate(event, trees)
        stream.close()
        self.flush()
        self.checkpoints.wait()
        for member in self.members():
            self.publish(member)
        self.run.finish(self.facts())

    def publish(self, member: int) -> None:
        """The member's end as a run directory of its own, to evaluate, distil from or export."""
        config = self.configs[member]
        saved = dict(trees=part(self.trees, member), sums=self.empty)
        control = dict(lr_scale=1.0, stop=False, best=None, bad=0, evaluated=self.step)
        clock = dict(wall=self.clock.wall, waited=self.clock.waited, steps=self.step)
        meta = dict(control=control, clock=clock, **transfer.describe(self.data, config))
        folder = self.run.dir / "members" / str(member)
        with Run(folder, config) as run:
            run.begin(self.step)
            with checkpoint.Checkpoints(run.dir / "checkpoints", 1) as checkpoints:
                checkpoints.save(self.step, saved, meta)

    def facts(self) -> dict:
        """Of each member, and of the run."""
        examples = len(self.configs) * self.events[-1].examples
        return dict(
            **self.costs(part(self.trees, 0)),
            members=len(self.configs),
            diverged=self.diverged,
            examples_per_s=examples / max(self.clock.wall, 1e-9),
            wall_s=self.clock.wall,
            **provenance(),
        )

    def cool_down(self, event: Event) -> Trees:
        """The state after the fork's last step; the pass keeps its own."""
        steps = steps_to(event.examples, self.config) - self.step
        fall = 1 - np.arange(steps) / steps
        trees, windows = jax.tree.map(jnp.copy, self.trees), self.zeros()
        stream = iter(self.train_batches(self.step))
        for at in range(0, steps, CHUNK):
            self.stop.raise_if_requested(self.interrupted)
            scale = fall[at : at + CHUNK]
            trees, windows = self.advance(trees, windows, stream, self.step + at, scale)
        stream.close()
        self.check(windows)
        return trees

    def splits(self, event: Event) -> tuple[str, ...]:
        c = self.config
        last = event.examples == self.events[-1].examples
        return tuple(dict.fromkeys((*c.eval.splits, *(c.eval.final if last else ()))))

    def measured(self, event: Event) -> bool:
        found = read_rows(self.run.dir)
        wanted = itertools.product(self.members(), self.splits(event))
        return all((m, event.kind, event.examples, s) in found for m, s in wanted)

    def evaluate(self, event: Event, trees: Trees) -> None:
        for split, m in itertools.product(self.splits(event), self.members()):
            metrics = self.measure(part(trees, m), self.split_batches(split))
            self.log_evaluation(event.kind, split, metrics, member=m, examples=event.examples)


def part(tree: Tree, member: int) -> Tree:
    """A member's own of what is stacked."""
    return jax.tree.map(lambda x: x[member], tree)


def stack(trees: Sequence[Tree]) -> Tree:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def stack_batches(batches: Sequence[Batch], schema, count: int) -> Batch:
    """Batches as one tree [count, ...], the last repeated; id lists take the longest one's capacity."""
    longest = {s: max(b["ids"][s].shape[1] for b in batches) for s in batches[0].get("ids", {})}

    def widened(batch: Batch) -> Batch:
        ids = {}
        for space, have in batch.get("ids", {}).items():
            slots = np.arange(have.shape[1], longest[space], dtype=have.dtype)
            fill = np.broadcast_to(schema.space(space).rows + slots, (len(have), len(slots)))
            ids[space] = np.concatenate([have, fill], axis=1)
        return {**batch, "ids": ids}

    padded = [widened(b) for b in batches]
    padded += padded[-1:] * (count - len(padded))
    return jax.tree.map(lambda *x: np.stack(x), *padded)
