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
import dataclasses
import itertools
import math
import time
from typing import NamedTuple

from etils import epath
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import tqdm

from recjax import embedding, models
from recjax.batch import Batch
from recjax.data import open_data
from recjax.data.loading.protocol import Batches
from recjax.evaluation.evaluator import Evaluator
from recjax.runtime import checkpoint
from recjax.runtime import mesh as meshes
from recjax.runtime.identity import Use, keys, without
from recjax.runtime.run import Run, Stop, flat, plain, read_jsonl
from recjax.system import System
from recjax.training import transfer
from recjax.training.loop import count
from recjax.training.step import forward_flops, init_trees, make_step, zero_sums
from recjax.trees import Trees

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

    The same call resumes after a kill and returns at once when the run is finished.

    Args:
      configs: Of one `shape`.
      workdir: The run directory (see recjax.runtime.run).
      cooldown: Share f of each point's examples in its fork; 0 for none.

    Raises:
      recjax.runtime.run.Interrupted: SIGTERM or Ctrl-C, after a save.
    """
    whole = ConfigDict(dict(members=[_lasting(c) for c in configs], cooldown=cooldown))
    with Stop() as stop, Run(workdir, whole) as run:
        if run.summary is None:
            Together(configs, run, stop, cooldown).run_to_end()
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
    return {(r["member"], r["kind"], r["examples"], r["split"]): r for r in rows}


class Together:
    """The members' objects, built in order; `run_to_end` is the loop."""

    def __init__(self, configs: Sequence[ConfigDict], run: Run, stop: Stop, cooldown: float):
        self.configs, self.run, self.stop = list(configs), run, stop
        self.config = c = configs[0]
        self.data = open_data(c.data)
        self.system = models.build(self.data.schema, c.model)
        if self.system.setup or self.system.on_eval:
            raise ValueError(
                f"model {c.model.name!r} has hooks; set sweep.members to 1 and cooldown to 0"
            )
        if any(t.frozen for t in self.system.tables):
            raise ValueError(
                "frozen tables are not filled here; set sweep.members to 1 and cooldown to 0"
            )
        first = self.batches(0)
        self.total = len(first)
        self.events = events(c, cooldown, first.examples)
        self.mesh = meshes.make()
        self.example = meshes.put(self.mesh, next(iter(first)))
        self.plan = embedding.plan(self.system.tables, self.data.schema, self.mesh)
        self.evaluator = Evaluator(self.system, self.mesh, self.plan)
        self.rates = stack([_rates(models.build(self.data.schema, k.model), k) for k in configs])
        self.keys = jnp.stack([jax.random.key(k.seed) for k in configs])
        self.program = jax.jit(self._chunk, donate_argnums=0)
        self.checkpoints = checkpoint.Checkpoints(run.dir / "checkpoints", c.train.keep)
        self.wall = 0.0
        self.start()

    def batches(self, start: int) -> Batches:
        c = self.config
        return self.data.batches(
            c.data.train,
            c.train.batch,
            start=start,
            examples=c.train.examples,
            recent=c.train.recent,
            recent_days=c.train.recent_days,
            epochs=c.train.epochs,
            workers=c.data.workers,
            shuffle_seed=c.data.shuffle_seed,
        )

    def start(self) -> None:
        """Fresh or restored trees, stacked over members."""
        trees = [init_trees(self.system, c, self.example) for c in self.configs]
        self.zeros = zero_sums(self.system, trees[0], self.example)
        self.trees, self.step = stack(trees), 0
        restored = self.checkpoints.restore(self.trees)
        if restored is not None:
            self.step, self.trees, meta = restored
            self.wall = meta["wall"]
        self.run.begin(self.step)

    def save(self) -> None:
        self.checkpoints.save(self.step, self.trees, dict(wall=self.wall))

    def _chunk(
        self, trees: Trees, batches: dict, step: jax.Array, count: jax.Array, scale: jax.Array
    ):
        """`count` steps of every member: trees [S, ...], batches [K, ...], scale [K] on all rates."""

        def member(trees, rates, key):
            system = _with_rates(self.system, rates)
            step_fn = make_step(system, _with_rate(self.config, rates["dense"]), self.total)

            def body(i, carry):
                batch = jax.tree.map(lambda x: x[i], batches)
                return step_fn(*carry, batch, key, step + i, scale[i])

            return jax.lax.fori_loop(0, count, body, (trees, self.zeros))

        if self.sequential:
            return jax.lax.map(lambda m: member(*m), (trees, self.rates, self.keys))
        return jax.vmap(member)(trees, self.rates, self.keys)

    @property
    def sequential(self) -> bool:
        """Whether members go one after the other: on CPU, where one's parameters and activations stay in cache.

        `vmap` rounds differently, which Adam at its usual eps makes visible where a gradient is exactly zero but for
        rounding (a bias before a BatchNorm): such a parameter moves by the rate, with the sign of the noise.
        """
        return jax.default_backend() == "cpu"

    def advance(self, trees: Trees, stream: Iterator[Batch], step: int, scale: np.ndarray) -> Trees:
        """Up to CHUNK steps from `step`, one for each scale; donates `trees`."""
        began = time.monotonic()
        batches = list(itertools.islice(stream, len(scale)))
        stacked = meshes.put(self.mesh, stack_batches(batches, self.data.schema, CHUNK))
        padded = np.zeros(CHUNK, np.float32)
        padded[: len(scale)] = scale
        trees, _ = self.program(trees, stacked, np.int32(step), np.int32(len(scale)), padded)
        jax.block_until_ready(trees)
        self.wall += time.monotonic() - began
        return trees

    def run_to_end(self) -> None:
        stream, saved = iter(self.batches(self.step)), self.step
        bar = tqdm.tqdm(
            total=self.total, initial=self.step, unit="step", mininterval=1.0, disable=None
        )
        for event in self.events:
            while self.step < event.step:
                self.stop.raise_if_requested(self.interrupted)
                if self.step - saved >= self.config.train.checkpoint_every:
                    self.save()
                    saved = self.step
                count = min(CHUNK, event.step - self.step)
                self.trees = self.advance(self.trees, stream, self.step, np.ones(count))
                self.step += count
                bar.update(count)
            if event.step == self.step and not self.measured(event):
                self.save()  # the fork starts from this checkpoint
                saved = self.step
                trees = self.trees if event.kind == "pass" else self.cool_down(event)
                self.evaluate(event, trees)
        stream.close()
        bar.close()
        self.checkpoints.close()
        for member in range(len(self.configs)):
            self.publish(member)
        self.run.finish(self.facts())

    def publish(self, member: int) -> None:
        """The member's end as a run directory of its own, to evaluate, distill from or export."""
        config = self.configs[member]
        trees = jax.tree.map(lambda x: x[member], self.trees)
        control = dict(lr_scale=1.0, stop=False, best=None, bad=0, evaluated=self.step)
        clock = dict(wall=self.wall, waited=0.0, steps=self.step)
        meta = dict(control=control, clock=clock, **transfer.describe(self.data, config))
        folder = self.run.dir / "members" / str(member)
        with Run(folder, config) as run:
            run.begin(self.step)
            checkpoints = checkpoint.Checkpoints(run.dir / "checkpoints", 1)
            checkpoints.save(self.step, dict(trees=trees, sums=jax.device_put(self.zeros)), meta)
            checkpoints.close()

    def facts(self) -> dict:
        """Of each member, and of the run."""
        one = jax.tree.map(lambda x: x[0], self.trees)
        examples = len(self.configs) * self.events[-1].examples
        return dict(
            n_dense=count(one.dense),
            n_blocks=count(one.dense, "layers_"),
            n_embedding=embedding.num_parameters(one.tables),
            flops_per_example=forward_flops(self.system, one, self.example),
            members=len(self.configs),
            examples_per_s=examples / max(self.wall, 1e-9),
            wall_s=self.wall,
        )

    def cool_down(self, event: Event) -> Trees:
        """The state after the fork's last step; the pass keeps its own."""
        steps = steps_to(event.examples, self.config) - self.step
        fall = 1 - np.arange(steps) / steps
        trees = jax.tree.map(jnp.copy, self.trees)
        stream = iter(self.batches(self.step))
        for at in range(0, steps, CHUNK):
            self.stop.raise_if_requested(self.interrupted)
            trees = self.advance(trees, stream, self.step + at, fall[at : at + CHUNK])
        stream.close()
        return trees

    def splits(self, event: Event) -> tuple[str, ...]:
        c = self.config
        last = event.examples == self.events[-1].examples
        return tuple(dict.fromkeys((*c.eval.splits, *(c.eval.final if last else ()))))

    def measured(self, event: Event) -> bool:
        found = read_rows(self.run.dir)
        wanted = itertools.product(range(len(self.configs)), self.splits(event))
        return all((m, event.kind, event.examples, s) in found for m, s in wanted)

    def evaluate(self, event: Event, trees: Trees) -> None:
        c = self.config
        for split in self.splits(event):
            for m in range(len(self.configs)):
                batches = self.data.batches(split, c.eval.batch, examples=c.eval.examples)
                poll = lambda: self.stop.raise_if_requested(self.interrupted)  # noqa: E731
                one = jax.tree.map(lambda x, m=m: x[m], trees)
                metrics = self.evaluator(one, batches, poll)
                names = dict(member=m, examples=event.examples, split=split)
                self.run.log(self.step, event.kind, metrics, **names)

    def interrupted(self) -> None:
        self.save()
        self.checkpoints.close()


def stack(trees: Sequence[Trees]) -> Trees:
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


def _rates(system: System, config: ConfigDict) -> dict:
    """A member's learning rates: dense, and of each table."""
    tables = {t.path: jnp.float32(t.lr) for t in system.tables}
    return dict(dense=jnp.float32(config.opt.lr), tables=tables)


def _with_rates(system: System, rates: dict) -> System:
    tables = (dataclasses.replace(t, lr=rates["tables"][t.path]) for t in system.tables)
    return dataclasses.replace(system, tables=tuple(tables))


def _with_rate(config: ConfigDict, rate: jax.Array) -> ConfigDict:
    """The config with a traced dense rate."""
    options = {k: v for k, v in config.opt.items() if k != "lr"}
    return ConfigDict(
        dict(train=config.train, embedding=config.embedding, opt={**options, "lr": rate})
    )
