"""Online distillation: a large teacher and a light student trained at once, on the same batches.

Same paper, sources and tags as `recjax.models.suan`; any two systems trained by cross-entropy will
do. With t the temperature [form of the loss: SUM; t and lambda were not found]

    loss = BCE(z_s, y) + BCE(z_t, y) + weight t^2 BCE(z_s / t, stop_gradient(sigmoid(z_t / t)))

The gradient of the third term with respect to z_s is (sigmoid(z_s / t) - sigmoid(z_t / t)) / t,
about (z_s - z_t) / (4 t^2), hence the t^2. The stop_gradient and separate tables are ours
[proposal]: with them the teacher trains exactly as it would alone, and the student's serving cost
is its own. Dense parameters are {"teacher": ..., "student": ...}, tables are owned by "teacher" and
"student", and so are the groups of optimizers and clipping. With `share_embeddings` both read the
student's tables, and train them together.

What is served is the student as a system of its own (`System.export_view`): it needs
dense["student"], state["student"] and the tables "student/...", nothing else. `exports` of the pair
are the student's, on the pair's trees.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from recjax import models
from recjax.batch import Batch
from recjax.models.parts import building
from recjax.schema import Schema, SchemaError, Table
from recjax.system import CountsAs, Export, Objective, System, bce, mean, under, weights_of
from recjax.trees import Params, Trees

SIDES = ("teacher", "student")
SCHEDULES = ("constant", "decay", "warmup")
# Checkpoints of saved runs hold these two by the spelling they began with.
PROGRESS = "distil"  # in the state: examples seen
SOFT_LOSS = "loss/distil"  # metric: the soft term


@dataclasses.dataclass(frozen=True)
class Softening:
    """How much the soft term counts, and when.

    Attributes:
      temperature: t, the larger the softer.
      weight: Of the term, on top of t^2 ("lambda0").
      schedule: "constant", "decay" (linearly to 0) or "warmup" (linearly from 0).
      examples: Over so many training examples.
    """

    temperature: float
    weight: float
    schedule: str = "constant"
    examples: int = 0

    def __post_init__(self):
        if self.temperature <= 0 or self.weight < 0:
            raise ValueError(
                "distillation wants temperature > 0 and weight >= 0, "
                f"got {self.temperature} and {self.weight}"
            )
        building.check_choice("distillation", "schedule", self.schedule, SCHEDULES)
        if self.schedule != "constant" and self.examples < 1:
            raise ValueError(
                f"distillation: schedule={self.schedule!r} needs schedule_examples > 0"
            )

    def progress(self) -> dict[str, jax.Array]:
        """What the state must hold: the examples seen, if the schedule asks."""
        return {} if self.schedule == "constant" else {PROGRESS: jnp.zeros((), jnp.float32)}

    def split(self, state: Mapping[str, Any]) -> tuple[dict, dict]:
        """(progress, the rest) of a state."""
        return {k: state[k] for k in self.progress()}, {
            k: v for k, v in state.items() if k not in self.progress()
        }

    def advance(self, progress: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        seen = batch["valid"].sum(dtype=jnp.float32)
        return {k: jnp.minimum(x + seen, self.examples) for k, x in progress.items()}

    def factor(self, progress: Mapping[str, jax.Array]) -> jax.Array | float:
        """weight t^2, scheduled."""
        whole = self.weight * self.temperature**2
        if self.schedule == "constant":
            return whole
        done = progress[PROGRESS] / self.examples
        return whole * (done if self.schedule == "warmup" else 1 - done)


def build(
    schema: Schema,
    *,
    teacher: Mapping[str, Any],
    student: Mapping[str, Any],
    temperature: float = 2.0,
    weight: float = 1.0,
    schedule: str = "constant",
    schedule_examples: int = 0,
    share_embeddings: bool = False,
    student_history: int | None = None,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
) -> System:
    """Teacher and student as one system.

    Args:
      schema: Of the batches both eat.
      teacher: Model config, `name` and options.
      student: The same; may be the teacher's.
      temperature, weight, schedule, schedule_examples: See `Softening`; weight 0 trains two models
        side by side.
      share_embeddings: One set of tables, the student's.
      student_history: The student sees only the last so many events; None: as many as the teacher.
      table: Default for both sides' `table`.
      compute_dtype: Default for both sides.

    Returns:
      A system with outputs "logits" (the student's; further labels by name) and "teacher"
      ("teacher/<label>").
    """
    soften = Softening(temperature, weight, schedule, schedule_examples)
    owners = {"teacher": "student" if share_embeddings else "teacher", "student": "student"}
    systems = {
        side: _side(schema, side, config, owners[side], table, compute_dtype)
        for side, config in (("teacher", teacher), ("student", student))
    }
    systems["student"] = last_events_only(systems["student"], student_history)
    return Pair(systems["teacher"], systems["student"], soften).system()


def _side(schema, side, config, owner, table, compute_dtype) -> System:
    config = {"compute_dtype": compute_dtype, **config}
    config["table"] = {**table, **config.get("table", {}), "owner": owner}
    system = models.build(schema, config)
    if system.forward is None or system.setup or system.after_step or system.on_eval:
        raise ValueError(
            f"distillation: model {config['name']!r} cannot be the {side}: it is not trained by "
            "cross-entropy alone (System.forward, no hooks)"
        )
    return system


@dataclasses.dataclass(frozen=True)
class Pair:
    """The functions of the joint system."""

    teacher: System
    student: System
    soften: Softening

    @property
    def sides(self) -> dict[str, System]:
        return {"teacher": self.teacher, "student": self.student}

    def system(self) -> System:
        return System(
            schema=self.student.schema,
            tables=self._tables(),
            init=self.init,
            loss=self.loss,
            outputs=self.outputs,
            objectives=(*self.student.objectives, *map(_of_teacher, self.teacher.objectives)),
            select=self.student.select,
            groups=tuple((rf"(dense|tables)/{side}/.*", side) for side in SIDES),
            counts_as=self.counts_as(),
            exports={name: _on_pair(e) for name, e in self.student.exports.items()},
            export_view=self.student_alone,
        )

    def counts_as(self) -> CountsAs:
        """Of both; of none where one has not said."""
        own = {side: s.counts_as for side, s in self.sides.items()}
        return sum((under(side, x) for side, x in own.items()), ()) if all(own.values()) else ()

    def student_alone(self, trees: Trees) -> tuple[System, Trees]:
        """The student and its own numbers: serving costs what the student costs."""
        own = of_side(trees.params({}), "student")
        tables = {t.path: trees.tables[t.path] for t in self.student.tables}
        return self.student, Trees(own.dense, tables, own.state, own.frozen)

    def init(self, rng, rows, batch):
        keys = dict(zip(SIDES, jax.random.split(rng), strict=True))
        both = {side: s.init(keys[side], rows, batch) for side, s in self.sides.items()}
        state = {k: s for k, (_, s) in both.items()} | self.soften.progress()
        return {k: d for k, (d, _) in both.items()}, state

    def loss(self, params: Params, batch: Batch, rng: jax.Array):
        keys = dict(zip(SIDES, jax.random.split(rng), strict=True))
        progress, _ = self.soften.split(params.state)
        outs, changed, sums = {}, self.soften.advance(progress, batch), {}
        total: Any = 0.0
        for side, s in self.sides.items():
            outs[side], changed[side] = s.forward(of_side(params, side), batch, keys[side])
            for o in s.objectives:
                term = bce(outs[side][o.output], batch["label"][o.label], weights_of(batch))
                total = total + mean(*term)
                sums[_loss_name(side, o)] = term
        for o in self.student.objectives:
            if o.output in outs["teacher"]:
                term = self.soft(
                    outs["student"][o.output], outs["teacher"][o.output], weights_of(batch)
                )
                total = total + self.soften.factor(progress) * mean(*term)
                sums["/".join(filter(None, (SOFT_LOSS, o.name)))] = term
        return total, (changed, sums)

    def soft(self, z_s, z_t, weights):
        """Cross-entropy of the student with the softened teacher: sum, and sum of weights."""
        t = self.soften.temperature
        target = jax.lax.stop_gradient(jax.nn.sigmoid(z_t.astype(jnp.float32) / t))
        return bce(z_s / t, target, weights)

    def outputs(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        outs = {side: s.outputs(of_side(params, side), batch) for side, s in self.sides.items()}
        return outs["student"] | {_teacher_output(k): x for k, x in outs["teacher"].items()}

    def _tables(self) -> tuple[Table, ...]:
        tables: dict[str, Table] = {}
        for t in (*self.teacher.tables, *self.student.tables):
            if tables.setdefault(t.path, t) != t:
                raise SchemaError(
                    f"share_embeddings: teacher and student want different tables {t.path!r} "
                    f"({tables[t.path]} and {t}); give both the same table options"
                )
        return tuple(tables.values())


def of_side(params: Params, side: str) -> Params:
    """What the teacher or the student reads of the pair's."""
    frozen = params.frozen.get(side, {})
    return Params(params.dense[side], params.rows, params.state[side], frozen)


def _teacher_output(output: str) -> str:
    return "teacher" if output == "logits" else f"teacher/{output}"


def _of_teacher(o: Objective) -> Objective:
    name = f"teacher/{o.name}" if o.name else "teacher"
    return dataclasses.replace(o, output=_teacher_output(o.output), name=name)


def _loss_name(side: str, o: Objective) -> str:
    """The student's cross-entropy against the main label is "loss": runs are compared by it."""
    return "/".join(filter(None, ("loss", "" if side == "student" else side, o.name)))


def _on_pair(export: Export) -> Export:
    """An export of the student, as a function of the pair's trees."""

    return dataclasses.replace(export, fn=lambda p, batch: export.fn(of_side(p, "student"), batch))


def last_events_only(system: System, n: int | None) -> System:
    """The system on batches whose lists are cut to their last `n` events (None: as they are)."""
    if n is None:
        return system

    def cut(fn, position):
        """`fn` with its batch, the argument at `position`, cut."""

        def call(*given):
            args = list(given)
            args[position] = last_events(system.schema, args[position], n)
            return fn(*args)

        return call

    exports = {k: dataclasses.replace(e, fn=cut(e.fn, 1)) for k, e in system.exports.items()}
    return dataclasses.replace(
        system,
        init=cut(system.init, 2),
        loss=cut(system.loss, 1),
        outputs=cut(system.outputs, 1),
        forward=cut(system.forward, 1),
        exports=exports,
    )


def last_events(schema: Schema, batch: Batch, n: int) -> Batch:
    """A batch whose lists keep their last `n` slots (they are left-padded, oldest first)."""
    wide = {f.name for f in schema.features if f.axes == "BL"}

    def cut(features):
        return {k: x[:, -n:] if k in wide else x for k, x in features.items()}

    mask, age = ({k: x[:, -n:] for k, x in part.items()} for part in (batch["mask"], batch["age"]))
    return {
        **batch,
        "mask": mask,
        "age": age,
        "pos": cut(batch["pos"]),
        "dense": cut(batch["dense"]),
    }
