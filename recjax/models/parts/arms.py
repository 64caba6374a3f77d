"""A system around a model of treatment arms: trained on the arm that was given, evaluated on all of them in one `vmap`.

ECUP and the meta-learners it is compared with are such models (recjax.models.ecup, recjax.models.meta_learners). Arm 0
is the control; effects are differences to it. See `Arms`.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.batch import Batch
from recjax.inputs import Inputs, embed, raw_ids
from recjax.layers.tabular import each_candidate, numbers_of
from recjax.metrics import uplift
from recjax.models.parts import building
from recjax.schema import NUM_RESERVED, Schema, SchemaError, spread
from recjax.system import CountsAs, Export, Objective, Select, System, bce, mean, under, weights_of
from recjax.trees import Params

SEEN = "seen"  # state: rows of each arm so far, which make P(t)
LARGEST_ONE_HOT = 64  # id spaces larger than this are no covariates of the balance check


class Propensity(nn.Module):
    """e(arm | x) by two networks, each trained on one half of the rows and used on the other."""

    arms: int
    hidden: int = 32

    @nn.compact
    def __call__(self, fields: jax.Array) -> jax.Array:
        """[N, F, d] -> logits [2, N, arms]."""
        x = jax.lax.stop_gradient(fields)
        x = x.reshape(x.shape[0], -1)
        parts = []
        for fold in range(2):
            h = nn.relu(nn.Dense(self.hidden, name=f"hidden_{fold}")(x))
            parts.append(nn.Dense(self.arms, name=f"out_{fold}")(h).astype(jnp.float32))
        return jnp.stack(parts)


@dataclasses.dataclass(frozen=True)
class Arms:
    """A system around a module with `prepare` and `arm` (see `ECUP`).

    A module may also have `effects(ready) -> {"ctr", "ctcvr"}: [N, R]`, effects of its own, and
    `extra(ready, arm, click, conversion) -> [N]`, a further loss a row.

    Attributes:
      schema: Of the batches, with one id feature of the role treatment and two labels, click first.
      module: The model.
      tables: Its tables; the treatment has none.
      ids: Treatment ids of the arms, the control's first.
      weight: w of the conversion loss.
      propensity: None, or a model of the arm that was given.
      counts_as: As in `System`, of the module's parameters.
    """

    schema: Schema
    module: nn.Module
    tables: tuple
    ids: tuple[int, ...]
    weight: float = 1.0
    propensity: Propensity | None = None
    counts_as: CountsAs = ((".*", "other"),)

    @property
    def treatment(self) -> str:
        return self.schema.select("treatment", kind="id")[0].name

    def inputs(self, rows, batch) -> Inputs:
        owner = self.tables[0].owner if self.tables else ""
        known = self.schema.without([self.treatment])
        return embed(known, rows, batch, owner=owner, dtype=self.module.dtype)

    def observed(self, batch, candidates: int) -> tuple[jax.Array, jax.Array]:
        """(arm int [N], whether it is one of ours bool [N])."""
        given = raw_ids(self.schema, batch, self.treatment)
        same = given[:, None] == jnp.asarray(self.ids)
        arm, known = jnp.argmax(same, -1), same.any(-1)
        arm, known = (each_candidate(x[:, None], candidates, "B")[:, 0] for x in (arm, known))
        return arm, known

    def init(self, rng, rows, batch):
        inputs = self.inputs(rows, batch)
        keys = jax.random.split(rng)
        arm = self.observed(batch, inputs.candidates)[0]
        variables = dict(self.module.init(keys[0], inputs, arm, train=False))
        dense, state = {"model": variables.pop("params")}, variables
        if self.propensity is not None:
            ready = self.apply(dense, state, inputs, method="prepare")
            dense["propensity"] = self.propensity.init(keys[1], ready["fields"])["params"]
            state = {**state, SEEN: {"arms": jnp.zeros(len(self.ids))}}
        return dense, state

    def apply(self, dense, state, *args, **kw):
        return self.module.apply({"params": dense["model"], **state}, *args, **kw)

    def loss(self, params: Params, batch: Batch, rng: jax.Array):
        dense, state = params.dense, params.state
        inputs = self.inputs(params.rows, batch)
        arm, known = self.observed(batch, inputs.candidates)
        own = [k for k in state if k != SEEN]
        ready, changed = self.apply(dense, state, inputs, train=True, method="prepare", mutable=own)
        rngs = {"dropout": rng}
        z = self.apply(dense, state, ready, arm, train=True, method="arm", rngs=rngs)
        y = [batch["label"][name].reshape(-1) for name in self.labels]
        w = weights_of(batch).reshape(-1) * known
        extras = {}
        if self.propensity is not None:
            logits = self.propensity.apply({"params": dense["propensity"]}, ready["fields"])
            extras["propensity"] = self._propensity_loss(logits, arm, batch, w)
            counted = jnp.bincount(arm, (w > 0).astype(jnp.float32), length=len(self.ids))
            seen = state[SEEN]["arms"] + counted
            changed = {**changed, SEEN: {"arms": seen}}
            share = seen / jnp.maximum(seen.sum(), 1)
            w = w * uplift.inverse(
                share[arm], jax.lax.stop_gradient(self.given(logits, arm, batch))
            )
        terms = {"ctr": bce(z["ctr"], y[0], w), "ctcvr": bce(z["ctcvr"], y[1], w)}
        total = mean(*terms["ctr"]) + self.weight * mean(*terms["ctcvr"])
        if hasattr(self.module, "extra"):
            more = self.apply(dense, state, ready, arm, *y, method="extra")
            extras["extra"] = (more * w).sum(), w.sum()
        total = total + sum(mean(*t) for t in extras.values())
        sums = {f"loss/{k}": t for k, t in (terms | extras).items()}
        sums["loss"] = total * terms["ctr"][1], terms["ctr"][1]
        return total, ({**state, **changed}, sums)

    @property
    def labels(self) -> tuple[str, str]:
        click, conversion, *_ = self.schema.labels
        return click, conversion

    def _fold(self, batch) -> jax.Array:
        return jnp.maximum(batch["row"].reshape(-1), 0) % 2

    def _propensity_loss(self, logits, arm, batch, w):
        other = 1 - self._fold(batch)  # network k learns from the rows it is not used on
        log_p = jnp.take_along_axis(nn.log_softmax(logits), arm[None, :, None], -1)[..., 0]
        return -(jnp.take_along_axis(log_p, other[None], 0)[0] * w).sum(), w.sum()

    def given(self, logits, arm, batch) -> jax.Array:
        """e(arm | x) of the row's own arm, by the network that did not learn from the row, [N]."""
        e = jnp.take_along_axis(nn.softmax(logits), self._fold(batch)[None, :, None], 0)[0]
        return jnp.take_along_axis(e, arm[:, None], 1)[:, 0]

    def every_arm(self, params: Params, batch: Batch):
        """(what no arm changes, logits {task: [R + 1, N]} of every arm, by one vmap)."""
        apply = functools.partial(self.apply, params.dense, params.state)
        ready = apply(self.inputs(params.rows, batch), method="prepare")
        n = ready["fields"].shape[0]

        def one(t):
            return apply(ready, jnp.full(n, t), method="arm")

        return ready, jax.vmap(one)(jnp.arange(len(self.ids)))

    def effects(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """ctr_arms, ctcvr_arms: probabilities [N, R + 1]; uplift_ctr, uplift_ctcvr [N, R]; logits by arm."""
        ready, z = self.every_arm(params, batch)
        out: dict[str, jax.Array] = {}
        for task in ("ctr", "ctcvr"):
            p = nn.sigmoid(z[task]).T
            out[f"{task}_arms"] = p
            out[f"uplift_{task}"] = p[:, 1:] - p[:, :1]
        if hasattr(self.module, "effects"):
            own = self.apply(params.dense, params.state, ready, method="effects")
            out |= {f"uplift_{task}": x for task, x in own.items()}
        return out | {"ready": ready, "z": z}

    def outputs(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        found = self.effects(params, batch)
        arm, known = self.observed(batch, self._shape(batch)[1])
        ready, z = found.pop("ready"), found.pop("z")
        out = dict(found)
        for name, task in (("logits", "ctr"), ("ctcvr", "ctcvr")):
            out[name] = jnp.take_along_axis(z[task], arm[None], 0)[0]
        e = jnp.ones(arm.shape)
        if self.propensity is not None:
            own = {"params": params.dense["propensity"]}
            logits = self.propensity.apply(own, ready["fields"])
            e = self.given(logits, arm, batch)
        out |= {"arm": jnp.where(known, arm, -1), "propensity": e}
        out["covariates"] = self.covariates(params.rows, batch)
        return {k: self.of_candidates(x, batch) for k, x in out.items()}

    def covariates(self, rows, batch) -> jax.Array:
        """Numbers, and levels of small id spaces, that arms should not differ in, [N, K]."""
        inputs = self.inputs(rows, batch)
        c, parts = inputs.candidates, []
        numbers = numbers_of(self.schema, inputs)
        if numbers is not None:
            parts.append(numbers)
        for f in self.schema.select("profile", "context", kind="id"):
            size = self.schema.space(f.id_space).rows  # ids are spread over all rows
            if size <= LARGEST_ONE_HOT and not f.multi:
                levels = jax.nn.one_hot(raw_ids(self.schema, batch, f.name), size)
                parts.append(each_candidate(levels, c, "B"))
        return jnp.concatenate(parts, -1) if parts else jnp.zeros((batch["valid"].size, 1))

    def score(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """The given arm's logits: what evaluation compares with labels."""
        out = self.outputs(params, batch)
        return {k: out[k] for k in ("logits", "ctcvr")}

    def serve(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """Every arm of every candidate, [B, C] each: nothing of the batch's treatment is read."""
        found = self.effects(params, batch)
        out = {}
        for task in ("ctr", "ctcvr"):
            for t in range(len(self.ids)):
                out[f"{task}/{t}"] = found[f"{task}_arms"][:, t]
                if t:
                    out[f"uplift_{task}/{t}"] = found[f"uplift_{task}"][:, t - 1]
        return {k: self.of_candidates(x, batch) for k, x in out.items()}

    def of_candidates(self, x: jax.Array, batch) -> jax.Array:
        """[N, ...] -> [B, C, ...]; a trial's rows have no candidates, then every slot gets the row's value."""
        x = x.reshape(*self._shape(batch), *x.shape[1:])
        if any(f.axes == "BC" for f in self.schema.select("candidate")):
            return x
        valid = batch["valid"].reshape(*batch["valid"].shape, *[1] * (x.ndim - 2))
        return jnp.where(valid, x, jnp.zeros_like(x))

    def _shape(self, batch) -> tuple[int, int]:
        """(B, C) from leaves a server has."""
        own = self.schema.select("candidate", "profile", "context")
        f = next(iter([f for f in own if f.axes == "BC"] or own))
        x = batch["pos" if f.kind == "id" else "dense"][f.name]
        return (x.shape[0], x.shape[1]) if f.axes == "BC" else (x.shape[0], 1)

    def measure(self, columns) -> dict[str, float]:
        tasks = {"ctr": "label", "ctcvr": "ctcvr/label"}
        return uplift.report(columns, tasks, self.propensity is not None)

    def system(self) -> System:
        click, conversion = self.labels
        effects = ("uplift_ctr", "uplift_ctcvr", "ctr_arms", "ctcvr_arms")
        kept = ("arm", "propensity", "covariates", *effects)
        return System(
            schema=self.schema,
            tables=self.tables,
            init=self.init,
            loss=self.loss,
            outputs=self.outputs,
            objectives=(Objective("logits", click), Objective("ctcvr", conversion, "ctcvr")),
            select=Select("qini_ctcvr"),
            counts_as=(*under("model", self.counts_as), ("propensity/", "other")),
            exports={"score": Export(self.score), "arms": Export(self.serve)},
            measure=self.measure,
            kept=kept,
        )


def arms_of(name: str, schema: Schema, control: int) -> tuple[int, ...]:
    """Ids of the treatment's values, the control's first.

    `control` is its place in the vocabulary; a trial (recjax.data.sets.trials) puts it first.

    Raises:
      SchemaError: The schema has no treatment, no second label, or no such control.
    """
    given = schema.select("treatment", kind="id")
    if len(given) != 1:
        raise SchemaError(
            f"{name} needs one id feature of the role treatment; the schema has {len(given)}"
        )
    if len(schema.labels) < 2:
        raise SchemaError(
            f"{name} needs two labels, click and conversion; there is {schema.labels}"
        )
    space = schema.space(given[0].id_space)
    ranks = range(space.size - NUM_RESERVED)
    if control not in ranks:
        raise SchemaError(
            f"model.control={control} is no treatment: there are {len(ranks)}, counted from 0"
        )
    ids = [spread(rank, space.rows) for rank in ranks]
    return (ids.pop(control), *ids)


def tables_of(schema: Schema, table: Mapping[str, Any], width: int) -> tuple:
    """Tables of all id spaces but the treatment's, which is a dense parameter."""
    known = schema.without([f.name for f in schema.select("treatment")])
    tables = building.make_tables(known, table, dim=width)
    if any(t.dim != width for t in tables):
        raise SchemaError(f"model.table.dim must be the model's width, {width}")
    return tables
