"""NIF's first stage on dense targets: target lists read from a batch, loss, outputs and measures. Equations: recjax/models/nif.py."""

from collections.abc import Mapping
import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from recjax.batch import Batch
from recjax.inputs import Inputs, embed, embed_targets, raw_ids
from recjax.layers.flow import (
    DIVERSITY,
    VELOCITY,
    Pool,
    Sampled,
    affinity,
    aligned,
    flow_nce,
    rank,
    regularisers,
    shared_negatives,
)
from recjax.layers.moveline import Fields
from recjax.models.parts import building
from recjax.models.parts.nif_generator import COUNTS_AS, OWNER, Generator
from recjax.schema import NUM_RESERVED, Feature, Schema, SchemaError, Table
from recjax.system import Export, Objective, Select, System, mean
from recjax.trees import Params, Rows

CHOICES = {
    "decoder": ("parallel", "ar"),
    "diversity": DIVERSITY,
    "velocity": VELOCITY,
    "target": ("dense", "codes"),
}
LISTS = ("next", "uniform", "rejected")  # of role target: positives, and the two drawn negatives

# ---- the batch ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reader:
    """The target lists of a batch as pools.

    Attributes:
      schema: With the lists of `LISTS`, each with the item's id fields and a number <list>_share.
      fields: Of the schema.
      owner: Of the tables.
    """

    schema: Schema
    fields: Fields
    owner: str = OWNER

    def __post_init__(self):
        for name in LISTS:
            self.ids_of(name)
            self.schema.feature(f"{name}_share")

    def ids_of(self, name: str) -> tuple[Feature, ...]:
        """A list's id features in the order of the item's fields."""
        own = {f.id_space: f for f in self.schema.select("target", kind="id", list=name)}
        missing = [h.id_space for h, _ in self.fields.items if h.id_space not in own]
        if missing:
            raise SchemaError(
                f"nif reads a list {name!r} of role target with a field in every id space of an item; "
                f"there is none in {missing[0]!r}: prepare the data with recjax.data.store.movelines"
            )
        return tuple(own[h.id_space] for h, _ in self.fields.items)

    def rows(self, rows: Rows, batch: Batch, name: str) -> jax.Array:
        """Summed id embeddings of a list's items [B, n, dim]."""
        found = embed_targets(self.schema, rows, batch, owner=self.owner)
        return cast(jax.Array, sum(found[f.name] for f in self.ids_of(name)))

    def pool(self, points: jax.Array, batch: Batch, name: str) -> Pool:
        """A list's items, given their T."""
        ids = raw_ids(self.schema, batch, self.ids_of(name)[0].name)
        share = batch["dense"][f"{name}_share"]
        valid = batch["valid"].any(1, keepdims=True)
        return Pool(points, ids, share, batch["mask"][name] & valid)

    def ordered(self, pool: Pool, slots: int) -> Pool:
        """Targets in the slots they belong to."""
        length = pool.ids.shape[1]
        if length < slots:
            raise SchemaError(
                f"the flow has {slots} slots and the batch {length} targets; set data.history.next={slots}"
            )
        mask = pool.real
        real = jnp.arange(slots) < mask.sum(1, keepdims=True)
        points, ids, share = (aligned(x, mask, slots) for x in pool[:3])
        return Pool(points, ids, share, real)


# ---- the system -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Objectives:
    """What stage 1 minimises.

    Attributes:
      tau: Temperature.
      diversity, velocity: Modes, see `CHOICES`.
      div_weight, vel_weight: lambda_div, lambda_vel.
    """

    tau: float = 0.1
    diversity: str = "tangent"
    velocity: str = "accel_matched"
    div_weight: float = 0.1
    vel_weight: float = 0.1

    def __post_init__(self):
        for option in ("diversity", "velocity"):
            building.check_choice("nif", option, getattr(self, option), CHOICES[option])
        if self.tau <= 0 or self.div_weight < 0 or self.vel_weight < 0:
            raise ValueError("nif wants tau > 0 and weights >= 0")


@dataclasses.dataclass(frozen=True)
class Stage:
    """The functions of stage 1; methods are what `System` holds."""

    schema: Schema
    module: Generator
    goal: Objectives
    reader: Reader
    user_key: str

    def look_up(self, rows: Rows, batch: Batch) -> Inputs:
        part = self.reader.fields.part_of(self.schema)
        return embed(part, rows, batch, owner=OWNER, dtype=self.module.dtype)

    def init(self, rng, rows, batch):
        inputs = self.look_up(rows, batch)
        candidates = self.reader.fields.candidates(inputs)
        args = rng, inputs, candidates
        return self.module.init(*args, method=Generator.everything)["params"], {}

    def flow(self, params: Params, batch: Batch, teacher=None) -> jax.Array:
        args = self.look_up(params.rows, batch), teacher
        flow: Any = self.module.apply({"params": params.dense}, *args, method=Generator.flow)
        return flow

    def points(self, params: Params, summed: jax.Array) -> jax.Array:
        summed = summed.astype(self.module.dtype)
        points: Any = self.module.apply({"params": params.dense}, summed, method=Generator.points)
        return points

    def pools(self, params: Params, batch: Batch) -> tuple[Pool, Pool, Pool]:
        """Targets in their slots, uniform and rejected items."""
        out = []
        for name in LISTS:
            points = self.points(params, self.reader.rows(params.rows, batch, name))
            out.append(self.reader.pool(points, batch, name))
        return self.reader.ordered(out[0], self.module.slots), out[1], out[2]

    def last_item(self, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """P_0 [B, d] and where it is; histories are left-padded, so the last slot is the latest."""
        inputs = self.look_up(params.rows, batch)
        points = self.points(params, self.reader.fields.past(inputs)[:, -1])
        return points, inputs.mask[self.reader.fields.history][:, -1]

    def sampled(self, flow, pools, batch) -> Sampled:
        items = self.schema.space(self.reader.ids_of("next")[0].id_space).size - NUM_RESERVED
        targets, uniform, rejected = pools
        user = batch["group"][self.user_key]
        return flow_nce(flow, targets, uniform, rejected, user, items, self.goal.tau)

    def loss(self, params: Params, batch: Batch, rng: jax.Array):
        pools = self.pools(params, batch)
        targets, goal = pools[0], self.goal
        flow = self.flow(params, batch, targets.points)
        nce = self.sampled(flow, pools, batch).nce
        start, started = self.last_item(params, batch)
        terms = regularisers(
            flow, targets.points, start, targets.real, started, goal.diversity, goal.velocity
        )
        real = targets.real.astype(jnp.float32)
        sums = {"loss": ((nce * real).sum(), real.sum()), **terms}
        total = mean(*sums["loss"]) + goal.div_weight * mean(*terms["diversity"])
        return total + goal.vel_weight * mean(*terms["velocity"]), (params.state, sums)

    def score(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """Affinity of flow and candidate / tau, [B, C]: a ranking, no probability."""
        flow = self.flow(params, batch)
        points = self.candidates(params, batch)
        return {"logits": affinity(flow, points) / self.goal.tau}

    def candidates(self, params: Params, batch: Batch) -> jax.Array:
        inputs = self.look_up(params.rows, batch)
        return self.points(params, self.reader.fields.candidates(inputs))

    def outputs(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """logits [B, C]; of each slot [B, C, K]: nce, rank and real."""
        pools = self.pools(params, batch)
        flow = self.flow(params, batch)
        measured = dict(zip(("nce", "rank"), self.sampled(flow, pools, batch), strict=True))
        measured |= self.rivals(params, batch, pools)
        logits = affinity(flow, self.candidates(params, batch)) / self.goal.tau
        return {"logits": logits, **by_candidate(logits, measured | {"real": pools[0].real})}

    def rivals(self, params: Params, batch: Batch, pools) -> dict[str, jax.Array]:
        """Ranks [B, K] by popularity, and by nearness to the last clicked item."""
        targets, user = pools[0], batch["group"][self.user_key]
        shared, allowed = shared_negatives(targets, pools[1], user)
        near = self.last_item(params, batch)[0][:, None]  # [B, 1, d]
        score = jnp.einsum("bkd,nd->bkn", near, shared.points)
        last = rank(score, (near * targets.points).sum(-1), shared, allowed)
        popular = rank(shared.share[None, None], targets.share + 1e-6, shared, allowed)
        return {"rank_last": last, "rank_popular": popular}

    def exports(self) -> dict[str, Export]:
        """The flow once a request, the point of an item once and for all, and their affinity."""
        return {
            "score": Export(self.score, "request"),
            "flow": Export(lambda *a: {"flow": self.flow(*a)}, "request"),
            "item": Export(lambda *a: {"point": self.candidates(*a)}, "item"),
        }


def by_candidate(logits: jax.Array, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """[B, K] values of a request beside each of its candidates, float32 [B, C, K]."""
    shape = logits.shape
    wide = lambda x: jnp.broadcast_to(x[:, None], (*shape, x.shape[1]))  # noqa: E731
    return {k: wide(x.astype(jnp.float32)) for k, x in values.items()}


def hit_rates(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """nce_loss, hr10, hr50 over all slots, hr10 of each and of rivals; from columns nce, real and rank* [N, K]."""
    real = columns["real"] > 0
    total = max(int(real.sum()), 1)
    out = {"nce_loss": float(columns["nce"][real].sum() / total), "targets": int(real.sum())}
    for k in (10, 50):
        out[f"hr{k}"] = float((columns["rank"][real] < k).sum() / total)
    for name in (c for c in columns if c.startswith("rank_")):
        out[name.replace("rank", "hr10")] = float((columns[name][real] < 10).sum() / total)
    for slot in range(real.shape[1]):
        own = columns["rank"][:, slot][real[:, slot]]
        out[f"hr10/slot_{slot + 1}"] = float((own < 10).mean()) if len(own) else float("nan")
    return out


def make_system(stage: Stage, tables: tuple[Table, ...], patience: int) -> System:
    """The dense system."""
    return System(
        schema=stage.schema,
        tables=tables,
        init=stage.init,
        loss=stage.loss,
        outputs=stage.outputs,
        objectives=(Objective("logits", stage.schema.labels[0]),),
        select=Select("nce_loss", "min", patience),
        counts_as=COUNTS_AS,
        exports=stage.exports(),
        measure=hit_rates,
        kept=("nce", "rank", "rank_last", "rank_popular", "real"),
        stages_apart=True,
    )
