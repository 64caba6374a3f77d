"""NIF's control with discrete targets: the same generator, trained by cross-entropy to name residual-quantised codes [OUR].

The blame of the paper's abstract is that discretisation loses what a dense target keeps. Here z*_k = T(i_k) is quantised
(recjax.layers.residual_quantizer, codebooks as moving averages) and slot k names its codes from F: the head reads f_k, so stage 2
takes F from this generator as from the dense one. T and its rows are those of a finished dense run, frozen: with T in motion,
one code for everything would cost nothing.

    c: experiments/nif_complete_journey.py:codes;  init_from: dense run's encoders -> frozen/target, rows -> tables/target

`nce_loss` is the cross-entropy of all levels, in nats a target; hr10 ranks items by the sum of their codes' log-probabilities, an
item with the same codes as the target counting against it.
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp

from recjax.batch import Batch
from recjax.inputs import embed_targets, take
from recjax.layers import residual_quantizer as rq
from recjax.layers.flow import Pool, rank, shared_negatives
from recjax.models.parts import nif_stage
from recjax.models.parts.nif_generator import COUNTS_AS, Generator
from recjax.schema import Table
from recjax.system import Objective, Select, System, mean
from recjax.trees import Params

TARGET = "target"  # owner of the frozen rows, and key of the frozen encoders
BANK = 4096  # points from which the codebooks begin


@dataclasses.dataclass(frozen=True)
class Stage(nif_stage.Stage):
    """Stage 1 with codes."""

    @property
    def quantizer(self) -> rq.ResidualQuantizer:
        levels, size = self.module.codes
        return rq.ResidualQuantizer(
            self.module.width, levels, size, update="ema", kmeans=True, bank=BANK
        )

    def init(self, rng, rows, batch):
        keys = jax.random.split(rng)
        dense, _ = super().init(keys[0], rows, batch)
        points = jnp.zeros((1, self.module.width))
        return dense, dict(self.quantizer.init(keys[1], points))

    def true_points(self, frozen, rows, batch, name: str) -> jax.Array:
        """T of a list's items by the frozen encoders, [B, n, d]."""
        found = embed_targets(self.schema, rows, batch, owner=TARGET)
        summed = sum(found[f.name] for f in self.reader.ids_of(name))
        return self.frozen_points(frozen, cast(jax.Array, summed))

    def frozen_points(self, frozen, summed: jax.Array) -> jax.Array:
        if TARGET not in frozen:
            raise ValueError(
                "nif with target='codes' quantises the points of a finished dense run and there is none: name it in "
                "init_from, as experiments/nif_complete_journey.py:codes does"
            )
        e = self.module.clone(codes=())
        points: Any = e.apply({"params": frozen[TARGET]}, summed, method=Generator.points)
        return jax.lax.stop_gradient(points)

    def named(self, params: Params, batch: Batch) -> jax.Array:
        """Log-probabilities of codes, float32 [B, K, levels, size]."""
        inputs, own = self.look_up(params.rows, batch), {"params": params.dense}
        logits: Any = self.module.apply(own, inputs, method=Generator.name_codes)
        return jax.nn.log_softmax(logits, axis=-1)

    def code_pools(self, params: Params, batch: Batch, train: bool = False):
        """Targets in their slots and uniform items, their points being codes [B, n, levels]; and the state."""
        pools, quantizer, state = [], self.quantizer, params.state
        for name in ("next", "uniform"):
            points = self.true_points(params.frozen, params.rows, batch, name)
            pool = self.reader.pool(points, batch, name)
            found, changed = quantizer.apply(
                state,
                pool.points,
                train=train and name == "next",
                valid=pool.real,
                mutable=[rq.STATE],
            )
            state = {**state, **changed}
            pools.append(pool._replace(points=found.codes))
        return self.reader.ordered(pools[0], self.module.slots), pools[1], state

    def loss(self, params: Params, batch: Batch, rng: jax.Array):
        targets, _, state = self.code_pools(params, batch, train=True)
        each = -picked(self.named(params, batch), targets.points).sum(-1)
        real = targets.real.astype(jnp.float32)
        total = (each * real).sum(), real.sum()
        return mean(*total), (state, {"loss": total})

    def outputs(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """As of the dense stage; nce is the cross-entropy of all levels."""
        targets, uniform, _ = self.code_pools(params, batch)
        names = self.named(params, batch)
        best = picked(names, targets.points).sum(-1)
        ranks = rank_by_codes(names, best, targets, uniform, batch["group"][self.user_key])
        logits = self.by_codes(params, batch, names)
        measured = {"nce": -best, "rank": ranks, "real": targets.real}
        return {"logits": logits, **nif_stage.by_candidate(logits, measured)}

    def candidate_rows(self, rows, batch) -> jax.Array:
        """Summed frozen id embeddings of the candidates, [B, C, dim]."""
        total: Any = 0.0
        for _, c in self.reader.fields.items:
            total += take(rows[f"{TARGET}/{c.id_space}"], batch["pos"][c.name])
        return total

    def score(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        return {"logits": self.by_codes(params, batch, self.named(params, batch))}

    def by_codes(self, params: Params, batch: Batch, names: jax.Array) -> jax.Array:
        """Logits [B, C] of the candidates by the log-probabilities of their codes."""
        points = self.frozen_points(params.frozen, self.candidate_rows(params.rows, batch))
        codes = rq.quantize(points, params.state[rq.STATE]["codebooks"]).codes  # [B, C, levels]
        onehot = jax.nn.one_hot(codes, names.shape[-1])
        return jax.nn.logsumexp(jnp.einsum("bkls,bcls->bkc", names, onehot), axis=1)


def picked(names: jax.Array, codes: jax.Array) -> jax.Array:
    """Log-probability of each level's code: [B, K, levels, size], int [B, K, levels] -> [B, K, levels]."""
    return jnp.take_along_axis(names, codes[..., None], axis=-1)[..., 0]


def rank_by_codes(names, best, targets: Pool, uniform: Pool, user) -> jax.Array:
    """How many distinct negatives' codes score at least as high as each target's, [B, K]."""
    shared, allowed = shared_negatives(targets, uniform, user)
    score = jnp.einsum("bkls,nls->bkn", names, jax.nn.one_hot(shared.points, names.shape[-1]))
    return rank(score, best - 1e-5, shared, allowed)


def make_system(stage: nif_stage.Stage, tables: tuple[Table, ...], patience: int) -> System:
    """The control, with frozen tables target/<id space> beside the generator's own."""
    own = Stage(**{f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)})
    spaces = {h.id_space for h, _ in stage.reader.fields.items}
    frozen = tuple(
        dataclasses.replace(t, owner=TARGET, optimizer="frozen")
        for t in tables
        if t.id_space in spaces
    )
    return System(
        schema=stage.schema,
        tables=tables + frozen,
        init=own.init,
        loss=own.loss,
        outputs=own.outputs,
        objectives=(Objective("logits", stage.schema.labels[0]),),
        select=Select("nce_loss", "min", patience),
        counts_as=COUNTS_AS,
        exports={k: v for k, v in own.exports().items() if k != "item"},
        after_step=rq.after_step(own.quantizer, ()),
        measure=nif_stage.hit_rates,
        kept=("nce", "rank", "real"),
        stages_apart=True,
    )
