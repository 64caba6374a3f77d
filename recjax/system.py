"""Everything the training loop knows of a paper: one frozen record of plain functions.

A model file ends in `build(schema, **options) -> System`. The loop, the evaluator, the exporter and the
distiller use these names and nothing else. The numbers lie in `recjax.trees.Trees`; what a model reads of them is a
`recjax.trees.Params`.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from recjax.batch import Batch
from recjax.inputs import Inputs, embed
from recjax.schema import Schema, Table
from recjax.trees import Params, Rows, Tree, Trees

COUNTED = ("blocks", "head", "other")
CountsAs = tuple[tuple[str, str], ...]
Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (numerator, denominator)


@dataclasses.dataclass(frozen=True)
class Objective:
    """One thing to measure: an output against a label.

    Attributes:
      output: Key of `System.outputs`, logits [B, C].
      label: Schema label, [B, C].
      name: Prefix of its metrics ("" for the main one).
    """

    output: str = "logits"
    label: str = ""
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Select:
    """Which checkpoint is best, and when to give up (`patience` evaluations without a better one; 0: never)."""

    metric: str = "auc"
    mode: str = "max"
    patience: int = 0


@dataclasses.dataclass(frozen=True)
class Export:
    """A named function of an artifact.

    Attributes:
      fn: (params, batch) -> {output: array}, evaluation mode.
      cadence: How often serving calls it: item, request, event or candidate.
      reads: Key of the batch -> export whose outputs lie there, such as {"cache": "prefix"}.
    """

    fn: Callable[[Params, Batch], dict[str, jax.Array]]
    cadence: str = "request"
    reads: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class System:
    """A trainable system.

    Attributes:
      schema: Of the batches it eats.
      tables: Embedding tables it owns.
      init: (rng, rows, batch) -> (dense, state), shapes from one batch.
      loss: (params, batch, rng) -> (scalar, (state, sums)). `params.rows` are the gathered unique rows, so the
        gradient with respect to them costs O(batch) whatever the vocabulary.
      outputs: (params, batch) -> {name: array}, evaluation mode.
      objectives: What evaluation measures.
      select: Best-checkpoint rule.
      groups: (regex over "dense/..." and "tables/..." paths, group name): optimizers and clipping are per group.
        The first match wins and every path must match one.
      counts_as: (regex that the beginning of a dense path such as "layers_0/query/kernel" matches, one of COUNTED):
        what its parameters count as in reports and scaling laws. The first match wins and every path must match one.
        "blocks" combine inputs (attention, experts, interactions, convolutions), the "head" makes logits of them, and
        "other" is the rest. Empty: nobody has said, and a summary's n_blocks and n_head are null.
      exports: Functions of the artifact.
      setup: (trees, batches) -> trees; once, before the first step (k-means on real vectors).
      after_step: (trees, rng) -> trees; inside the compiled step (dead-code reset).
      on_eval: (control, metrics) -> control; a dict of numbers (learning-rate scale, stop); checkpointed.
      forward: (params, batch, rng) -> ({name: array}, state), training mode: what a distiller needs of a system whose loss is the cross-entropy of its objectives.
      measure: columns -> {metric: number}; further figures of a split, on the host. Columns are those of the first
        objective's rows (logit, label, weight, row, group/<key>), "<name>/logit" and "<name>/label" of the others',
        and `kept`.
      kept: Outputs [B, C, ...] that `measure` also sees.
      stages_apart: Whether data with stages (`recjax.data.loading.stages`) must have them in windows of time of their
        own: an earlier stage of this model would otherwise have seen the labels that this one is judged by.
      earlier: (rows, batch) -> frozen parameters of the shapes that an earlier stage leaves, to count what scoring costs before
        that stage has run; None: there is no earlier stage.
      export_view: trees -> (system, trees) to export in this system's place: of a pair, the student alone.
    """

    schema: Schema
    tables: tuple[Table, ...]
    init: Callable[[jax.Array, Rows, Batch], tuple[Tree, Tree]]
    loss: Callable[[Params, Batch, jax.Array], tuple[jax.Array, tuple[Tree, Sums]]]
    outputs: Callable[[Params, Batch], dict[str, jax.Array]]
    objectives: tuple[Objective, ...]
    select: Select = Select()
    groups: tuple[tuple[str, str], ...] = ((".*", "all"),)
    counts_as: CountsAs = ()
    exports: Mapping[str, Export] = dataclasses.field(default_factory=dict)
    setup: Callable[[Trees, Iterator[Batch]], Trees] | None = None
    after_step: Callable[[Trees, jax.Array], Trees] | None = None
    on_eval: Callable[..., dict] | None = None
    forward: Callable[[Params, Batch, jax.Array], tuple[dict[str, jax.Array], Tree]] | None = None
    measure: Callable[[dict[str, Any]], dict[str, float]] | None = None
    kept: tuple[str, ...] = ()
    stages_apart: bool = False
    earlier: Callable[[Rows, Batch], Tree] | None = None
    export_view: Callable[[Trees], tuple["System", Trees]] | None = None


def parameter_counts(system: System, dense: Tree) -> dict[str, int | None]:
    """n_dense, n_blocks and n_head: dense parameters, and those that `System.counts_as` gives to blocks and head.

    Raises:
      ValueError: A path that no rule covers, or a rule that names nothing of COUNTED.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(dense)
    sizes = {jax.tree_util.keystr(p, simple=True, separator="/"): int(x.size) for p, x in leaves}
    if not system.counts_as:
        return dict(n_dense=sum(sizes.values()), n_blocks=None, n_head=None)
    found = dict.fromkeys(COUNTED, 0)
    for path, size in sizes.items():
        found[_counts_as(system, path)] += size
    return dict(n_dense=sum(sizes.values()), n_blocks=found["blocks"], n_head=found["head"])


def _counts_as(system: System, path: str) -> str:
    name = next((name for pattern, name in system.counts_as if re.match(pattern, path)), None)
    if name not in COUNTED:
        raise ValueError(
            f"System.counts_as gives {name!r} for {path!r}; cover every path with one of {', '.join(COUNTED)}: "
            'end with (".*", "other")'
        )
    return name


def under(prefix: str, counts_as: CountsAs) -> CountsAs:
    """`counts_as` of a system whose dense parameters lie under `prefix` of another's."""
    return tuple((f"{prefix}/(?:{pattern})", name) for pattern, name in counts_as)


def bce(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of the binary cross-entropy, float32, and the sum of weights."""
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels)
    return (losses * weights).sum(), weights.sum()


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """total / count, zero when nothing counts."""
    return total / jnp.maximum(count, 1e-9)


def weights_of(batch: Batch) -> jax.Array:
    """Weights with filling slots at zero, [B, C]."""
    return batch["weight"] * batch["valid"]


def pointwise(
    schema: Schema,
    module: nn.Module,
    tables: tuple[Table, ...],
    *,
    heads: Mapping[str, str] | None = None,
    select: Select = Select(),
    compute_dtype: jnp.dtype = jnp.float32,
    owner: str = "",
    look_up: Callable[[Rows, Batch], Inputs] | None = None,
    counts_as: CountsAs = (),
) -> System:
    """A system around a module that maps `Inputs` to named logits [B, C], trained by cross-entropy.

    Args:
      schema: Of the batches.
      module: Called as `module(inputs, train=bool)`; returns {output: [B, C]}.
      tables: Its tables.
      heads: output -> label; default: "logits" -> the schema's first label. The loss is their sum.
      select: Best-checkpoint rule.
      compute_dtype: Of embedded inputs; parameters keep theirs.
      owner: Of its tables.
      look_up: (rows, batch) -> inputs, where the module wants more than `embed` gives; default: `embed`.
      counts_as: See `System`.
    """
    heads = dict(heads or {"logits": schema.labels[0]})
    for label in heads.values():
        schema.feature(label)

    look_up = look_up or functools.partial(embed, schema, owner=owner, dtype=compute_dtype)

    def init(rng, rows, batch):
        variables = dict(module.init(rng, look_up(rows, batch), train=False))
        return variables.pop("params", {}), variables

    def apply(params, batch, **kw):
        return module.apply(params.variables, look_up(params.rows, batch), **kw)

    def forward(params, batch, rng):
        outs, changed = apply(
            params, batch, train=True, mutable=list(params.state), rngs={"dropout": rng}
        )
        return outs, {**params.state, **changed}

    def loss(params, batch, rng):
        outs, state = forward(params, batch, rng)
        terms = {o: bce(outs[o], batch["label"][y], weights_of(batch)) for o, y in heads.items()}
        sums = {"loss" if len(terms) == 1 else f"loss/{o}": t for o, t in terms.items()}
        return sum(mean(*t) for t in terms.values()), (state, sums)

    def outputs(params, batch):
        return apply(params, batch, train=False)

    main = next(iter(heads))
    return System(
        schema=schema,
        tables=tables,
        init=init,
        loss=loss,
        outputs=outputs,
        objectives=tuple(Objective(o, y, "" if o == main else o) for o, y in heads.items()),
        select=select,
        counts_as=counts_as,
        exports={"score": Export(outputs, "request")},
        forward=forward,
    )


def with_correlation(
    system: System,
    module: nn.Module,
    owner: str = "",
    look_up: Callable[[Rows, Batch], Inputs] | None = None,
) -> System:
    """Adds the function "correlation" [B, C, L]: how much each behaviour counts for each candidate.

    Args:
      system: Of `pointwise`.
      module: Has a method `correlation(inputs)`.
      owner: Of its tables.
      look_up: As in `pointwise`.
    """
    look_up = look_up or functools.partial(embed, system.schema, owner=owner)

    def correlation(params, batch):
        inputs = look_up(params.rows, batch)
        return {"correlation": module.apply(params.variables, inputs, method="correlation")}

    exports = {**system.exports, "correlation": Export(correlation, "request")}
    return dataclasses.replace(system, exports=exports)
