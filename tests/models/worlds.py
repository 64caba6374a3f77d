"""Small batches in the shape of `recjax.inputs`, made from raw ids with NumPy."""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from recjax import embedding
from recjax.schema import Feature, IdSpace, Schema
from recjax.system import System
from recjax.trees import Params, Trees
from tests import compiling

SPACES = {"user": 40, "item": 60, "category": 12, "age_group": 9, "hour": 27}

SCHEMA = Schema(
    id_spaces=tuple(IdSpace(n, s) for n, s in SPACES.items()),
    features=(
        Feature("user", "profile", "user"),
        Feature("age_group", "profile", "age_group"),
        Feature("income", "profile"),
        Feature("hour", "context", "hour"),
        Feature("item", "candidate", "item"),
        Feature("category", "candidate", "category"),
        Feature("count", "candidate", transform="log1p"),
        Feature("recency", "candidate"),
        Feature("past_item", "history", "item", list="views"),
        Feature("past_category", "history", "category", list="views"),
        Feature("past_hour", "history", "hour", list="views"),
        Feature("click", "label"),
        Feature("like", "label"),
    ),
    groups=("user_key",),
)


@dataclasses.dataclass(frozen=True)
class World:
    """Raw arrays by feature name, with masks and ages; change one, then `batch()`."""

    schema: Schema
    raw: dict[str, np.ndarray]
    mask: np.ndarray  # [B, L]
    age: np.ndarray  # [B, L]
    valid: np.ndarray  # [B, C]

    def replace(self, **changes) -> "World":
        """Replaces features by name, or mask, age and valid."""
        own = {k: changes.pop(k) for k in ("mask", "age", "valid") if k in changes}
        return dataclasses.replace(self, raw={**self.raw, **changes}, **own)

    def select(self, index) -> "World":
        """Some requests."""
        raw = {k: v[index] for k, v in self.raw.items()}
        return dataclasses.replace(
            self, raw=raw, mask=self.mask[index], age=self.age[index], valid=self.valid[index]
        )

    def of_candidates(self, index) -> "World":
        """The same requests with some of their candidates, in any order."""
        own = {f.name for f in self.schema.features if f.axes == "BC"}
        raw = {k: v[:, index] if k in own else v for k, v in self.raw.items()}
        return dataclasses.replace(self, raw=raw, valid=self.valid[:, index])

    def padded(self, more: int) -> "World":
        """The same histories with `more` extra padding slots on the left."""
        wide = {f.name for f in self.schema.features if f.axes == "BL"}

        def pad(x):
            return np.pad(x, ((0, 0), (more, 0)))

        raw = {k: pad(v) if k in wide else v for k, v in self.raw.items()}
        return dataclasses.replace(self, raw=raw, mask=pad(self.mask), age=pad(self.age))

    def batch(self, shards: int = 1) -> dict:
        ids, pos = {}, {}
        for space in self.schema.id_spaces:
            fields = [f.name for f in self.schema.features if f.id_space == space.name]
            if fields:
                ids[space.name], found = _unique(space.rows, [self.raw[f] for f in fields], shards)
                pos.update(zip(fields, found, strict=True))
        b, c = self.valid.shape
        return dict(
            ids=ids,
            pos=pos,
            dense={f.name: self.raw[f.name] for f in self._inputs() if f.kind != "id"},
            mask={name: self.mask for name in self.schema.lists},
            age={name: self.age for name in self.schema.lists},
            label={name: self.raw[name] for name in self.schema.labels},
            weight=np.ones((b, c), np.float32),
            valid=self.valid,
            group={"user_key": np.arange(b, dtype=np.int32)},
            row=np.arange(b * c, dtype=np.int32).reshape(b, c),
        )

    def fixed_batch(self) -> dict:
        """`batch()` whose unique ids are all of each space's: rows may then be drawn from it."""
        batch = self.batch()
        for space in self.schema.id_spaces:
            batch["ids"][space.name] = np.arange(space.rows, dtype=np.int32)[None]
        fields = [f.name for f in self.schema.features if f.kind == "id"]
        batch["pos"] = {name: self.raw[name] for name in fields}
        return batch

    def _inputs(self):
        return [f for f in self.schema.features if f.role not in ("label", "target")]


def _unique(rows: int, arrays: list[np.ndarray], shards: int):
    """Unique ids per shard [S, U], padded by out-of-range ids, and each array's positions."""
    parts = [np.split(a, shards) for a in arrays]
    unique = [np.unique(np.concatenate([p[s].ravel() for p in parts])) for s in range(shards)]
    width = (
        sum(p[0].size for p in parts) + 3
    )  # by shapes alone, so that changed ids compile nothing anew
    ids = np.stack([np.concatenate([u, rows + np.arange(len(u), width)]) for u in unique])
    pos = [np.concatenate([np.searchsorted(u, p[s]) for s, u in enumerate(unique)]) for p in parts]
    return ids.astype(np.int32), [p.astype(np.int32) for p in pos]


def world(
    b: int = 4, c: int = 3, n: int = 8, *, seed: int = 0, schema: Schema = SCHEMA, lengths=None
) -> World:
    """Random requests. `lengths` [B]: events of each (default: 1 .. n)."""
    rng = np.random.default_rng(seed)
    shapes = {"B": (b,), "BC": (b, c), "BL": (b, n)}
    lengths = rng.integers(1, n + 1, b) if lengths is None else np.broadcast_to(lengths, b)
    mask = np.arange(n) >= n - lengths[:, None]
    raw = {}
    for f in schema.features:
        shape = shapes[f.axes]
        if f.kind == "id":
            x = rng.integers(1, schema.space(f.id_space).size, shape).astype(np.int32)
            raw[f.name] = np.where(mask, x, 0).astype(np.int32) if f.axes == "BL" else x
        elif f.role == "label":
            raw[f.name] = rng.integers(0, 2, shape).astype(np.float32)
        else:
            raw[f.name] = rng.exponential(size=shape).astype(np.float32)
    steps = np.exp(rng.uniform(0, 12, (b, n))).astype(np.int64)
    age = np.where(mask, np.cumsum(steps[:, ::-1], 1)[:, ::-1], 0).astype(np.int32)
    return World(schema, raw, mask, age, np.ones((b, c), bool))


@dataclasses.dataclass(frozen=True)
class Model:
    """A system with values, for tests: eager-looking calls, compiled inside."""

    system: System
    dense: Mapping
    state: Mapping
    tables: Mapping
    frozen: Mapping = dataclasses.field(default_factory=dict)

    @property
    def trees(self) -> Trees:
        return Trees(self.dense, self.tables, self.state, self.frozen)

    def params(self, batch) -> Params:
        return self.trees.params(self.rows(batch))

    def rows(self, batch):
        rows = {path: np.asarray(t["rows"]) for path, t in self.tables.items()}
        spaces = {t.path: t.id_space for t in self.system.tables}
        return {
            p: jnp.take(x, batch["ids"][spaces[p]], axis=0, mode="clip") for p, x in rows.items()
        }

    def outputs(self, w: World) -> dict[str, np.ndarray]:
        return _outputs(self.system, self.trees, w.batch())

    def logits(self, w: World) -> np.ndarray:
        return np.asarray(self.outputs(w)["logits"])

    def loss_and_grads(self, w: World, seed: int = 0):
        """(loss, state, sums), (dense gradients, row gradients)."""
        batch = w.batch()
        args = self.params(batch), batch, key(seed)
        (loss, (state, sums)), grads = _loss_and_grads(self.system, *args)
        return (loss, state, sums), grads

    def replace(self, **changes) -> "Model":
        return dataclasses.replace(self, **changes)


def jit(fn, **kw):
    """`jax.jit`, compiled quickly."""
    return jax.jit(fn, compiler_options=compiling.OPTIONS, **kw)


def key(seed: int) -> jax.Array:
    """A random key whose draws compile quickly."""
    return jax.random.key(seed, impl="unsafe_rbg")


def _static(fn):
    """jit by the system's identity: systems hold functions, which hash by identity."""
    cache = {}

    def call(system, *args):
        if id(system) not in cache:
            cache[id(system)] = (system, jit(lambda *a: fn(system, *a)))
        return cache[id(system)][1](*args)

    return call


@_static
def _outputs(system, trees, batch):
    rows = embedding.gather(system.tables, trees.tables, batch)
    return system.outputs(trees.params(rows), batch)


@_static
def _loss_and_grads(system, params, batch, key):
    def loss(dense, rows):
        return system.loss(params.replace(dense=dense, rows=rows), batch, key)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params.dense, params.rows)


def make(system: System, w: World, *, seed: int = 0, scale: float = 0.5) -> Model:
    """Random values of the system's shapes; no parameter starts neutral, so no path is idle.

    (Compiling initialisers is a third of such tests' time; `initial` does.)
    """
    rng = np.random.default_rng(seed)
    rows = {
        t.path: scale * rng.normal(size=(system.schema.space(t.id_space).rows, t.dim))
        for t in system.tables
    }
    tables = {path: {"rows": x.astype(np.float32)} for path, x in rows.items()}
    for table in tables.values():
        table["rows"][0] = 0.0
    m = Model(system, {}, {}, tables)
    batch = w.batch()
    dense, state = jax.eval_shape(system.init, key(seed), m.rows(batch), batch)
    state = jax.tree_util.tree_map_with_path(
        lambda p, x: np.full(x.shape, float(p[-1].key == "var"), x.dtype), state
    )
    return m.replace(dense=perturbed(dense, seed), state=state)


def perturbed(tree, seed: int = 0):
    """Random values of the tree's shapes: kernels keep their inputs' scale, scales are near 1,
    others near 0.
    """
    rng = np.random.default_rng(seed)

    def draw(path, x):
        name, noise = path[-1].key, rng.normal(size=x.shape)
        scale = {"kernel": np.sqrt(1 / x.shape[0]) if x.shape else 1.0}.get(name, 0.2)
        return (float(name == "scale") + scale * noise).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, tree)


def initial(system: System, w: World, *, seed: int = 0, scale: float = 0.0) -> Model:
    """The system's own initial values, with rows N(0, scale) (0: the tables' own)."""

    def init(k, batch):
        tables = [dataclasses.replace(t, init_scale=scale or t.init_scale) for t in system.tables]
        tables = embedding.init(k, tables, system.schema)
        rows = embedding.gather(system.tables, tables, batch)
        return tables, *system.init(jax.random.fold_in(k, 1), rows, batch)

    tables, dense, state = jit(init)(key(seed), w.batch())
    return Model(system, dense, state, tables)


def close(a, b, tol: float = 1e-5) -> None:
    """Trees equal within `tol`, relative and absolute."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tol, atol=tol), a, b)


def far(a, b, least: float = 1e-3) -> bool:
    """Whether some leaf differs by more than `least`: the control of `close`."""
    differences = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - np.asarray(y)).max(), a, b)
    return max(jax.tree.leaves(differences)) > least


def finite(tree) -> bool:
    return all(bool(np.isfinite(np.asarray(x)).all()) for x in jax.tree.leaves(tree))


def train(
    system: System, w: World, *, steps: int, batch: int = 64, lr: float = 1e-2, seed: int = 0
) -> Model:
    """Adam on dense parameters and whole tables, batches drawn from the requests of `w`; one
    compiled loop.
    """
    m = initial(system, w.select(slice(batch)), seed=seed, scale=0.1)
    optimizer, data = optax.adam(lr), w.fixed_batch()
    ids = data.pop("ids")

    def loss(params, state, b, k):
        rows = embedding.gather(system.tables, params[1], b)
        return system.loss(Params(params[0], rows, state), b, k)

    @jit
    def run(params, state, data, draws):
        def step(carry, draw):
            params, state, moments = carry
            b = {**jax.tree.map(lambda x: x[draw], data), "ids": ids}
            (value, (state, _)), grads = jax.value_and_grad(loss, has_aux=True)(
                params, state, b, key(0)
            )
            updates, moments = optimizer.update(grads, moments)
            return (optax.apply_updates(params, updates), state, moments), value

        return jax.lax.scan(step, (params, state, optimizer.init(params)), draws)[0][:2]

    draws = np.random.default_rng(seed).integers(0, len(w.mask), (steps, batch))
    params, state = run((m.dense, m.tables), m.state, data, draws)
    return m.replace(dense=params[0], tables=params[1], state=state)


def auc(logits: np.ndarray, labels: np.ndarray) -> float:
    """By the pair count; small arrays."""
    positive, negative = logits[labels > 0.5], logits[labels < 0.5]
    difference = positive[:, None] - negative[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())
