"""QIN: sparse attention without a softmax, then a network that multiplies its input by linear maps of itself.

"Quadratic Interest Network for Multimodal Click-Through Rate Prediction" (arXiv 2504.17699; 2nd place in the MM-CTR challenge of
WWW 2025), after the authors' code (salmon1802/QIN, master) [code] and logs [log]; the paper's ablations were not available
to us. An item (event j or candidate t) is the concatenation of its id's embedding, the mean of its tags' and a bias-free
linear map of its frozen vector: X [S, I], x_t [I]. With A = 2 I, D = 2 I + the context's width:

    ASTA  q = x_t W_q,  K = X W_k,  V = X W_v;  a = relu(q K^T / sqrt(A)), 0 where masked         [code]
          o = (sum_j a_j V_j) W_o + x_t;  no softmax, no division by the length, no bias           [code]
    x     = concat(context, x_t, o)                                                                [code]
    QNN   h = dropout(x W + b) as M rows of D;  y = sum_m x * h_m;
          x' = dropout(prelu(batchnorm(y))) + x, four times, one slope a layer                     [code]
    logit = x w + c;  loss = mean BCE + (penalty / 2) |embeddings and projections|^2               [code]

Without dropout M rows say what their sum says (y = x * (x sum_m W_m + sum_m b_m)), which is what evaluation and serving
compute; in training they differ in scale, in noise and in the size of a step. M = 3 is the default, 4 the authors' best and, they
say, at times unstable. `mid_activation="relu"` is the block of QNN-alpha (arXiv 2505.17999): h = dropout(relu(batchnorm(x W
+ b))), x' = dropout(sum_m x * h_m + x), where rows do matter; `heads` splits x and h alike (in its template the two
orders differ), which only permutes the columns of W. `self_ensemble` is that paper's loss over two dropout passes.

What a number belongs to [code: two branches]: master, the default, reads neither the user's id nor the levels of past items (valid
AUC .970 in the logs); branch main reads both (.984): user=True, context_fields and output_bias, with levels in the history.

Ours: logits for probabilities; M collapsed outside training; batch statistics over valid rows; attention="softmax" | "none" and
layers=0 as ablations. embedding="rows" (default) keeps the penalty off rows that a step does not touch, as everything here costs O(batch);
embedding="dense" is the paper's: tables are dense parameters, and every row is pulled at every step. The schedule:
after each evaluation without a gain of 1e-6 AUC the rate halves, not below `lr_floor` times the first; a fall of more than
`abort_drop` below the best ends the run (eval.use_best reports the best).
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax.inputs import Inputs, embed
from recjax.layers import fields
from recjax.layers.quadratic import ASTA, QuadraticLayer, glorot
from recjax.models.parts import building
from recjax.schema import PAD, Schema, Table
from recjax.system import System, bce, mean, pointwise, under, weights_of, with_correlation

CHOICES = {
    "attention": ("relu", "softmax", "none"),
    "norm": ("none", "length"),
    "mid_activation": ("none", "relu"),
    "dense_norm": ("batchnorm", "identity"),
}
VECTORS = ("own", "shuffled", "none")
EMBEDDING = ("rows", "dense")
PROJECTION = "project_"  # prefix of the linear maps of frozen vectors


# ---- the model ------------------------------------------------------------------------------------------------


class QIN(nn.Module):
    """The model; fields up to `dense_norm` are options of `build`.

    Attributes:
      history: The list attended to; "" for the schema's first.
      max_len: S, events kept, the most recent.
      attention: "relu", "softmax", or "none" (without ASTA).
      norm: "none" or "length".
      output_bias: Of W_o (branch main has one).
      layers: L; 0 is a linear model of x.
      rows: M, of each layer.
      heads: Of mid_activation="relu".
      mid_activation: "none" or "relu".
      dropout: In the quadratic layers.
      projection: Width a frozen vector is mapped to; 0: the tables'.
      item_fields: Candidate ids of the item vector; (): all that events have too.
      context_fields: Of those, the ones that stand in the context as well.
      user: Whether profile ids are in the context.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    history: str = ""
    max_len: int = 64
    attention: str = "relu"
    norm: str = "none"
    output_bias: bool = False
    layers: int = 4
    rows: int = 3
    heads: int = 1
    mid_activation: str = "none"
    dropout: float = 0.1
    projection: int = 0
    item_fields: tuple[str, ...] = ()
    context_fields: tuple[str, ...] = ()
    user: bool = False
    dense_norm: str = "batchnorm"
    dim: int = 128
    outputs: tuple[str, ...] = ("logits",)
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @property
    def types(self) -> dict[str, Any]:
        return dict(dtype=self.dtype, param_dtype=self.param_dtype)

    @property
    def pairs(self) -> tuple:
        """(history field, candidate field) of the item vector."""
        both = fields.shared_fields(self.schema, self.history)
        return tuple((h, c) for h, c in both if not self.item_fields or c.name in self.item_fields)

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool = False) -> dict[str, jax.Array]:
        """Logits {output: float32 [B, C]}."""
        events, target, mask = self.items(inputs)
        parts = [target, self.attend(target.shape[-1])(events, target, mask)]  # [B, C, I] each
        item = {c.name for _, c in self.pairs} - set(self.context_fields)
        roles = ("candidate", "context", *(["profile"] if self.user else []))
        other = fields.OtherFeatures(
            self.schema.without(item), self.dense_norm, roles, name="context", **self.types
        )(inputs, train=train)
        x = jnp.concatenate(parts if other is None else [other, *parts], axis=-1)
        valid = fields.valid_of(inputs)
        for i in range(self.layers):
            x = QuadraticLayer(
                self.rows,
                self.heads,
                self.mid_activation,
                self.dropout,
                name=f"layers_{i}",
                **self.types,
            )(x, train=train, valid=valid)
        out = {}
        for name in self.outputs:
            head = nn.Dense(1, kernel_init=glorot, name=name, **self.types)
            out[name] = head(x).astype(jnp.float32)[..., 0]
        return out

    def items(self, inputs: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
        """X [B, S, I], x_t [B, C, I] and the mask [B, S], of the last `max_len` events."""
        mask = inputs.mask[self.history]
        cut = max(mask.shape[1] - self.max_len, 0)
        past, target = [], []
        for h, c in self.pairs:
            x, y = inputs.emb[h.name][:, cut:], inputs.emb[c.name]
            if self.schema.space(c.id_space).vectors:
                width = self.projection or self.dim
                name = f"{PROJECTION}{c.name}"
                dense = nn.Dense(width, use_bias=False, kernel_init=glorot, name=name, **self.types)
                x, y = dense(x), dense(y)
            past.append(x)
            target.append(y)
        return jnp.concatenate(past, -1), jnp.concatenate(target, -1), mask[:, cut:]

    def attend(self, features: int) -> ASTA:
        options = self.attention, self.norm, self.output_bias
        return ASTA(features, *options, name="asta", **self.types)

    @nn.compact
    def correlation(self, inputs: Inputs) -> jax.Array:
        """Size of what each event adds to the interest of each candidate, float32 [B, C, S]; 0 where masked."""
        events, target, mask = self.items(inputs)
        return self.attend(target.shape[-1]).correlation(events, target, mask)


INTERNAL = ("schema", "dim", "outputs", "dtype", "param_dtype")
OWN = (
    *("table", "vectors", "embedding", "penalty", "self_ensemble", "lr_factor", "lr_floor"),
    *("lr_threshold", "abort_drop", "patience", "compute_dtype", "param_dtype", "labels"),
)


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    vectors: str = "own",
    embedding: str = "rows",
    penalty: float = 2e-4,
    self_ensemble: bool = False,
    lr_factor: float = 0.5,
    lr_floor: float = 5e-4,
    lr_threshold: float = 1e-6,
    abort_drop: float = 0.02,
    patience: int = 8,
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    labels: Iterable[str] | None = None,
    **options,
) -> System:
    """QIN as a system.

    Args:
      schema: Needs a history list with an id space that a candidate feature shares, and a label.
      table: To `Schema.tables`; dim 128, N(0, 1e-4^2), lazy Adam with 2e-3 unless it says otherwise (small data
        wants init_scale 1e-2: until the rows grow, attention sees the vectors only).
      vectors: "own"; "none" (ids only); "shuffled": the ids' vectors permuted, the control.
      embedding: "rows", or "dense": the tables among the dense parameters (O(vocabulary) a step).
      penalty: Lambda, of embeddings and projections.
      self_ensemble: Two dropout passes taught by their mean.
      lr_factor, lr_floor, lr_threshold: See `halving`; a factor of 1 is no schedule.
      abort_drop: The run ends when the metric falls so far below its best; 0: never.
      patience: Evaluations without a gain after which the run ends; 0: never.
      compute_dtype: Of activations.
      param_dtype: Of dense parameters.
      labels: One output each, "logits" for the first; default: the schema's first.
      **options: Fields of `QIN`.
    """
    accepted = building.module_options(QIN, INTERNAL)
    building.check_options("qin", options, accepted, OWN)
    building.check_choice("qin", "vectors", vectors, VECTORS)
    building.check_choice("qin", "embedding", embedding, EMBEDDING)
    if vectors != "none" and not any(space.vectors for space in schema.id_spaces):
        raise ValueError(
            f"qin: vectors={vectors!r}, and no id space of the data has vectors; prepare it with them (data.prepare.text of "
            "The Complete Journey), or set model.vectors=none"
        )
    heads = building.make_heads(schema, labels)
    table = dict(init_scale=1e-4, optimizer="lazy_adam", lr=2e-3, l2=penalty) | dict(table)
    seen = schema if vectors != "none" else without_vectors(schema)
    tables = building.make_tables(seen, table, dim=128)
    dtypes: dict[str, Any] = dict(
        dtype=jnp.dtype(compute_dtype), param_dtype=jnp.dtype(param_dtype)
    )
    options["history"] = fields.history_list(seen, options.get("history", ""))
    dim = next((t.dim for t in tables if not t.frozen), 128)
    module = QIN(schema=seen, dim=dim, outputs=tuple(heads), **dtypes, **options)
    check(module)
    look_up = functools.partial(embed, seen, owner=str(table.get("owner", "")), dtype=module.dtype)
    system = pointwise(
        schema,
        module,
        tables,
        heads=heads,
        compute_dtype=module.dtype,
        look_up=look_up,
        counts_as=building.counting(r"asta/|layers_\d+/", f"({'|'.join(heads)})/"),
    )
    system = with_correlation(system, module, look_up=look_up)
    if self_ensemble:
        system = with_self_ensemble(system, heads)
    if embedding == "dense":
        system = with_dense_tables(system)
    return dataclasses.replace(
        system,
        loss=penalised(system.loss, penalty),
        forward=None,  # the loss is more than the cross-entropy
        select=dataclasses.replace(system.select, patience=patience),
        on_eval=halving(system.select.metric, lr_factor, lr_floor, lr_threshold, abort_drop),
        setup=shuffle_vectors(system) if vectors == "shuffled" else None,
    )


def check(module: QIN) -> None:
    """Raises ValueError (SchemaError) on options that contradict each other or the schema."""
    for option, choices in CHOICES.items():
        building.check_choice("qin", option, getattr(module, option), choices)
    fields.check_shared_fields("qin", module.schema, module.history)
    shared = {c.name for _, c in fields.shared_fields(module.schema, module.history)}
    for name in (*module.item_fields, *module.context_fields):
        if name not in shared:
            raise ValueError(
                f"qin: {name!r} is no candidate id that events have too; those are {', '.join(sorted(shared))}"
            )
    if module.rows < 1 or module.max_len < 1 or module.layers < 0:
        raise ValueError("qin: rows and max_len are at least 1, layers at least 0")
    if module.heads > 1 and module.mid_activation == "none":
        raise ValueError("qin: heads split the block of mid_activation='relu' only")


def without_vectors(schema: Schema) -> Schema:
    """The schema without the features that frozen vectors stand for."""
    return schema.without(
        f.name for f in schema.features if f.id_space and schema.space(f.id_space).vectors
    )


# ---- loss and hooks -------------------------------------------------------------------------------------------


def penalised(loss, weight: float):
    """`loss` plus weight / 2 times the squared norm of projections and of dense tables."""

    def counts(path) -> bool:
        return any(k.key == "tables" or str(k.key).startswith(PROJECTION) for k in path)

    def total(params, *args):
        value, (state, sums) = loss(params, *args)
        leaves = [x for p, x in jax.tree_util.tree_leaves_with_path(params.dense) if counts(p)]
        pull = weight / 2 * sum((jnp.square(x).sum() for x in leaves), jnp.zeros(()))
        return value + pull, (state, {**sums, "penalty": (pull, jnp.ones(()))})

    return total


def ensemble_terms(a: jax.Array, b: jax.Array, label: jax.Array) -> jax.Array:
    """BCE(p, y) + BCE(p1, sg(p)) + BCE(p2, sg(p)) of two passes' logits, p the mean of their probabilities."""
    log_p = jnp.logaddexp(nn.log_sigmoid(a), nn.log_sigmoid(b)) - math.log(2)
    log_q = jnp.logaddexp(nn.log_sigmoid(-a), nn.log_sigmoid(-b)) - math.log(2)
    p = jax.lax.stop_gradient(jnp.exp(log_p))
    soft = lambda z: -(p * nn.log_sigmoid(z) + (1 - p) * nn.log_sigmoid(-z))  # noqa: E731
    return -(label * log_p + (1 - label) * log_q) + soft(a) + soft(b)


def with_self_ensemble(system: System, heads: Mapping[str, str]) -> System:
    """The system with the loss of two passes; batch statistics are those of the second."""

    def loss(params, batch, rng):
        passes = (system.forward(params, batch, k) for k in jax.random.split(rng))
        (first, _), (second, state) = passes
        weight, sums = weights_of(batch), {}
        total: Any = 0.0
        for output, name in heads.items():
            a, b, y = first[output], second[output], batch["label"][name]
            terms = (ensemble_terms(a, b, y) * weight).sum(), weight.sum()
            total = total + mean(*terms)
            sums["loss" if len(heads) == 1 else f"loss/{output}"] = bce((a + b) / 2, y, weight)
        return total, (state, sums)

    return dataclasses.replace(system, loss=loss)


def with_dense_tables(system: System) -> System:
    """The system with its trained tables among the dense parameters: {"model": ..., "tables": {path: [rows, d]}}."""
    own = tuple(t for t in system.tables if not t.frozen)

    def look_up(dense, rows, batch):
        out = dict(rows)
        for t in own:
            ids = batch["ids"][t.id_space]
            found = dense["tables"][t.path].at[ids].get(mode="clip")
            out[t.path] = jnp.where((ids != PAD)[..., None], found, 0)
        return out

    def init(rng, rows, batch):
        keys = jax.random.split(rng, len(own) + 1)
        tables = {
            t.path: initial_rows(k, t, system.schema) for k, t in zip(keys[:-1], own, strict=True)
        }
        made = look_up({"tables": tables}, rows, batch)
        dense, state = system.init(keys[-1], made, batch)
        return {"model": dense, "tables": tables}, state

    def adapted(fn):
        def call(params, batch, *rest):
            rows = look_up(params.dense, params.rows, batch)
            return fn(params.replace(dense=params.dense["model"], rows=rows), batch, *rest)

        return call

    exports = {k: dataclasses.replace(e, fn=adapted(e.fn)) for k, e in system.exports.items()}
    return dataclasses.replace(
        system,
        tables=tuple(t for t in system.tables if t.frozen),
        counts_as=(*under("model", system.counts_as), ("tables/", "other")),
        init=init,
        loss=adapted(system.loss),
        outputs=adapted(system.outputs),
        exports=exports,
    )


def initial_rows(key: jax.Array, t: Table, schema: Schema) -> jax.Array:
    rows = t.init_scale * jax.random.normal(key, (schema.space(t.id_space).rows, t.dim))
    return rows.at[PAD].set(0)


def halving(
    metric: str,
    factor: float = 0.5,
    floor: float = 5e-4,
    threshold: float = 1e-6,
    abort_drop: float = 0.02,
):
    """`System.on_eval`: the rate times `factor` after each evaluation without a gain, and the end after a collapse.

    Args:
      metric: Larger is better.
      factor: 1 keeps the rate.
      floor: Least rate, of the first (1e-6 of 2e-3).
      threshold: Least gain.
      abort_drop: See `build`.
    """

    def on_eval(control: dict, metrics: Mapping[str, float]) -> dict:
        value, best = metrics[metric], control.get("plateau_best")
        if value is None:  # one class only: nothing to go by
            return control
        if best is None or value > best + threshold:
            return dict(control, plateau_best=value)
        scale = max(control["lr_scale"] * factor, min(floor, control["lr_scale"]))
        fallen = bool(abort_drop) and value < best - abort_drop
        return dict(control, lr_scale=scale, stop=control["stop"] or fallen)

    return on_eval


def shuffle_vectors(system: System):
    """`System.setup` of the control: the vectors of all ids that have one, permuted (always alike)."""

    def setup(trees, batches):
        del batches
        tables = dict(trees.tables)
        for t in system.tables:
            if t.frozen:
                old = tables[t.path]["rows"]
                rows = np.array(old).reshape(-1, t.dim)  # row by row, however a device packs them
                real = np.flatnonzero(rows.any(1))
                rows[real] = rows[np.random.default_rng(0).permutation(real)]
                new = jnp.asarray(rows, old.dtype).reshape(old.shape)
                tables[t.path] = {"rows": jax.device_put(new, old.sharding)}
        return trees.replace(tables=tables)

    return setup
