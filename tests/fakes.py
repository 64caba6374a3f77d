"""Six fake systems of about 30 lines each and an in-memory data set: what the contracts must carry.

Each is a module-like namespace with `build(schema, ...)`; tests/test_contracts.py takes each through train ->
resume -> export -> score.
"""

import dataclasses
import types

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from recjax.data.loading import protocol
from recjax.inputs import embed
from recjax.schema import Feature, IdSpace, Schema
from recjax.system import Export, Objective, Select, System, bce, mean, pointwise, weights_of

ITEMS, USERS, LENGTH = 40, 24, 6

SCHEMA = Schema(
    id_spaces=(IdSpace("item", ITEMS), IdSpace("user", USERS)),
    features=(
        Feature("user", "profile", "user"),
        Feature("item", "candidate", "item"),
        Feature("price", "candidate"),
        Feature("arm", "treatment", "user"),
        Feature("hist_item", "history", "item", list="history"),
        Feature("click", "label"),
        Feature("buy", "label"),
    ),
    groups=("page",),
)


def batch_at(index: int, batch: int, candidates: int) -> dict:
    """A pure function of the index, so that resuming by position is exact."""
    r = np.random.default_rng(index)
    raw = {
        "user": r.integers(3, USERS, batch),
        "arm": r.integers(3, 5, batch),
        "item": r.integers(3, ITEMS, (batch, candidates)),
        "hist_item": r.integers(3, ITEMS, (batch, LENGTH)),
    }
    mask = np.arange(LENGTH)[None] >= r.integers(0, LENGTH, batch)[:, None]
    raw["hist_item"] *= mask
    click = (raw["item"] % 2).astype(np.float32)
    out = {
        "ids": {},
        "pos": {},
        "dense": {"price": r.random((batch, candidates), np.float32)},
        "mask": {"history": mask},
        "age": {"history": np.where(mask, 60, 0).astype(np.int32)},
        "label": {"click": click, "buy": click * (r.random(click.shape) < 0.5).astype(np.float32)},
        "weight": np.ones((batch, candidates), np.float32),
        "valid": np.ones((batch, candidates), bool),
        "group": {"page": np.arange(batch, dtype=np.int32)},
        "row": np.arange(batch * candidates, dtype=np.int32).reshape(batch, candidates),
    }
    for space in SCHEMA.id_spaces:
        names = [f.name for f in SCHEMA.features if f.id_space == space.name]
        ids, pos = np.unique(np.concatenate([raw[n].ravel() for n in names]), return_inverse=True)
        unique = space.rows + np.arange(space.rows)
        unique[: len(ids)] = ids
        out["ids"][space.name] = unique[None].astype(np.int32)
        for n in names:
            k, pos = np.split(pos, [raw[n].size])
            out["pos"][n] = k.reshape(raw[n].shape).astype(np.int32)
    return out


def graph_at(index: int, batch: int, candidates: int) -> dict:
    """A subgraph: no ids, no tables; node features, edges and node labels."""
    r = np.random.default_rng(index)
    x = r.normal(size=(16, 4)).astype(np.float32)
    return {
        "x": x,
        "edges": r.integers(0, 16, (2, 32)).astype(np.int32),
        "label": {"click": (x[:, :1] > 0).astype(np.float32)},
        "weight": np.ones((16, 1), np.float32),
        "valid": np.ones((16, 1), bool),
        "group": {"page": np.zeros(16, np.int32)},
        "row": np.arange(16, dtype=np.int32)[:, None],
    }


@dataclasses.dataclass
class Batches:
    make: types.FunctionType
    batch: int
    candidates: int
    start: int
    stop: int
    examples: int
    levels = ()
    periods = ()

    def __len__(self):
        return self.stop

    def __iter__(self):
        return (self.make(i, self.batch, self.candidates) for i in range(self.start, self.stop))


class Data:
    """In-memory `Data`; every split has `cfg.examples` requests."""

    def __init__(self, cfg):
        self.schema, self.identity, self.cfg = SCHEMA, {"name": "fake", "config": {}}, cfg
        self.splits = {"train": 320, "validation": 96, "test": 96}

    def batches(
        self,
        split,
        batch_size,
        *,
        start=0,
        examples=0,
        recent=0,
        recent_days=0.0,
        period=None,
        online="",
        buckets=(),
        epochs=1,
        shards=1,
        workers=0,
        shuffle_seed=None,
        levels=(),
    ):
        no_times = dict(recent=recent, recent_days=recent_days, period=period, online=online)
        protocol.refuse("tests.fakes", **no_times, buckets=buckets)
        make = graph_at if self.cfg.source == "graph" else batch_at
        n = examples or self.splits[split]
        return Batches(make, batch_size, self.cfg.candidates, start, epochs * n // batch_size, n)

    def vocabulary(self, space):
        ids = np.arange(3, self.schema.space(space).size)
        return pl.DataFrame(
            {"value": [f"{self.cfg.source}{i}" for i in ids], "id": ids, "count": ids}
        )

    def vocabulary_hash(self, space):
        return f"{space}-{self.cfg.source}"


def open_data(cfg) -> Data:
    """What `cfg.data.name = "tests.fakes"` opens."""
    return Data(cfg)


class Pooled(nn.Module):
    """Mean history, user, candidate and price -> logits for each output; optionally batch-normalised."""

    outputs: tuple[str, ...] = ("logits",)
    norm: bool = False
    width: int = 8

    @nn.compact
    def __call__(self, x, *, train: bool):
        keep = x.mask["history"][..., None]
        pooled = (x.emb["hist_item"] * keep).sum(1) / jnp.maximum(keep.sum(1), 1)
        request = jnp.concatenate([pooled, x.emb["user"], x.emb["arm"]], -1)[:, None]
        candidate = jnp.concatenate([x.emb["item"], x.dense["price"][..., None]], -1)
        request = jnp.broadcast_to(request, (*candidate.shape[:2], request.shape[-1]))
        h = nn.Dense(self.width, name="block")(jnp.concatenate([request, candidate], -1))
        h = nn.BatchNorm(use_running_average=not train)(h) if self.norm else h
        return {o: nn.Dense(1, name=o)(nn.relu(h))[..., 0] for o in self.outputs}


def batch_norm(schema, *, table):
    """1. Batch-norm state, two labels, patience."""
    heads = {"logits": "click", "buy": "buy"}
    module = Pooled(tuple(heads), norm=True)
    return pointwise(
        schema, module, schema.tables(4, **table), heads=heads, select=Select("auc", "max", 3)
    )


def teacher_student(schema, *, table):
    """2. A teacher and a student on one batch: two owners, two parameter groups, one export."""
    parts = {o: Pooled(width=w) for o, w in (("teacher", 16), ("student", 4))}
    tables = sum((schema.tables(4, owner=o, **table) for o in parts), ())

    def init(rng, rows, batch):
        keys = dict(zip(parts, jax.random.split(rng), strict=True))
        return {
            o: m.init(keys[o], embed(schema, rows, batch, owner=o), train=False)["params"]
            for o, m in parts.items()
        }, {}

    def logits(params, batch, owner, train=False):
        inputs = embed(schema, params.rows, batch, owner=owner)
        return parts[owner].apply({"params": params.dense[owner]}, inputs, train=train)["logits"]

    def loss(params, batch, rng):
        t, s = (logits(params, batch, o, True) for o in parts)
        soft = jax.nn.sigmoid(jax.lax.stop_gradient(t))
        w, y = weights_of(batch), batch["label"]["click"]
        terms = {"teacher": bce(t, y, w), "student": bce(s, y, w), "soft": bce(s, soft, w)}
        return sum(mean(*v) for v in terms.values()), (params.state, terms)

    def student(params, batch):
        return {"logits": logits(params, batch, "student")}

    def outputs(params, batch):
        return student(params, batch) | {"teacher": logits(params, batch, "teacher")}

    return System(
        schema, tables, init, loss, outputs,
        objectives=(Objective("logits", "click"), Objective("teacher", "click", "teacher")),
        groups=(("(^|/)teacher/", "teacher"), ("(^|/)student/", "student")),
        exports={"score": Export(student)},
    )  # fmt: skip


def stage_two(schema, *, table):
    """3. A frozen generator initialised from another run (dense and rows), and a trained head."""
    tables = schema.tables(4, owner="generator", optimizer="frozen")
    module, head = Pooled(), nn.Dense(1)

    def features(params, batch):
        inputs = embed(schema, params.rows, batch, owner="generator")
        z = module.apply({"params": params.frozen["generator"]}, inputs, train=False)["logits"]
        return jnp.stack([z, inputs.dense["price"]], -1)

    def init(rng, rows, batch):
        return {"head": head.init(rng, jnp.zeros((1, 1, 2)))["params"]}, {}

    def outputs(params, batch):
        z = head.apply({"params": params.dense["head"]}, features(params, batch))
        return {"logits": z[..., 0]}

    def loss(params, batch, rng):
        z = outputs(params, batch)["logits"]
        total = bce(z, batch["label"]["click"], weights_of(batch))
        return mean(*total), (params.state, {"loss": total})

    objectives = (Objective("logits", "click"),)
    return System(
        schema, tables, init, loss, outputs, objectives, exports={"score": Export(outputs)}
    )


def pages(schema, *, table):
    """4. Pages with pairs: the loss compares the candidates of one page; scores stay candidate-independent."""
    base = pointwise(schema, Pooled(), schema.tables(4, **table))

    def loss(params, batch, rng):
        z = base.outputs(params, batch)["logits"]
        y, w = batch["label"]["click"], weights_of(batch)
        pair = (y[:, :, None] > y[:, None, :]) * w[:, :, None] * w[:, None, :]
        total = (jax.nn.softplus(z[:, None, :] - z[:, :, None]) * pair).sum(), pair.sum()
        return mean(*total), (params.state, {"pair": total})

    return dataclasses.replace(base, loss=loss, select=Select("gauc_page"))


def arms(schema, *, table):
    """5. Treatment arms: every arm's outcome by vmap over the treatment embedding; the factual one is trained."""
    module = Pooled(("logits",))
    tables = schema.tables(4, **table)

    def init(rng, rows, batch):
        params = module.init(rng, embed(schema, rows, batch), train=False)["params"]
        return {"model": params, "arm": jnp.zeros((2, 4))}, {}

    def outputs(params, batch):
        dense, inputs = params.dense, embed(schema, params.rows, batch)

        def one(arm):
            emb = {**inputs.emb, "arm": jnp.broadcast_to(arm, inputs.emb["arm"].shape)}
            return module.apply({"params": dense["model"]}, inputs.replace(emb=emb), train=False)[
                "logits"
            ]

        by_arm = jnp.moveaxis(jax.vmap(one)(dense["arm"]), 0, -1)  # [B, C, arms]
        return {
            "arms": by_arm,
            "uplift": by_arm[..., 1] - by_arm[..., 0],
            "logits": by_arm.mean(-1),
        }

    def loss(params, batch, rng):
        by_arm = outputs(params, batch)["arms"]
        arm = batch["pos"]["arm"][:, None, None] % 2
        z = jnp.take_along_axis(by_arm, jnp.broadcast_to(arm, (*by_arm.shape[:2], 1)), -1)[..., 0]
        total = bce(z, batch["label"]["click"], weights_of(batch))
        return mean(*total), (params.state, {"loss": total})

    def on_eval(control, metrics):
        return dict(control, lr_scale=control["lr_scale"] * 0.5)

    return System(
        schema, tables, init, loss, outputs,
        objectives=(Objective("logits", "click"),), on_eval=on_eval, exports={"score": Export(outputs)},
    )  # fmt: skip


def graph(schema, *, table):
    """6. A graph without tables; code usage in `state`, `setup` and `after_step` hooks."""
    layer = nn.Dense(1)

    def init(rng, rows, batch):
        return {"layer": layer.init(rng, batch["x"])["params"]}, {
            "steps": jnp.zeros(()),
            "mean": jnp.zeros(4),
        }

    def outputs(params, batch):
        source, target = batch["edges"]
        x = batch["x"] - params.state["mean"]
        near = jax.ops.segment_sum(x[source], target, x.shape[0])
        return {"logits": layer.apply({"params": params.dense["layer"]}, x + 0.1 * near)}

    def loss(params, batch, rng):
        z = outputs(params, batch)["logits"]
        total = bce(z, batch["label"]["click"], weights_of(batch))
        return mean(*total), (params.state, {"loss": total})

    def setup(trees, batches):
        return trees.replace(state=trees.state | {"mean": next(batches)["x"].mean(0)})

    def after_step(trees, rng):
        return trees.replace(state=trees.state | {"steps": trees.state["steps"] + 1})

    return System(
        schema, (), init, loss, outputs, (Objective("logits", "click"),),
        setup=setup, after_step=after_step, exports={"score": Export(outputs)},
    )  # fmt: skip


SYSTEMS = {f.__name__: f for f in (batch_norm, teacher_student, stage_two, pages, arms, graph)}


def build(schema, *, kind: str, table=None) -> System:
    """`cfg.model.name = "tests.fakes"`, `cfg.model.kind` one of SYSTEMS."""
    return SYSTEMS[kind](schema, table=dict(table or {}))
