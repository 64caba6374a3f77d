"""What the `build` functions of the model files share: options checked, tables and heads made of a schema."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import inspect
import typing
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from recjax import configs
from recjax.batch import Batch
from recjax.inputs import Inputs, embed
from recjax.layers import fields
from recjax.layers.mlp import ACTIVATIONS, NORMS
from recjax.schema import Schema, SchemaError, Table
from recjax.system import CountsAs, System, pointwise, with_correlation
from recjax.trees import Rows

LookUp = Callable[[Rows, Batch], Inputs]


def plain(value: Any) -> Any:
    """Configs hold mappings and lists; modules want dicts and hashable tuples."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {k: plain(v) for k, v in value.items()}
    return tuple(plain(v) for v in value) if isinstance(value, list | tuple) else value


def check_options(
    name: str, given: Mapping[str, Any], accepted: Mapping[str, Any], more: Iterable[str] = ()
) -> None:
    """Checks the options of a model against what it declares.

    Args:
      name: Of the model, for messages.
      given: Option -> value.
      accepted: Option -> a value of its type (`like`); None: any.
      more: Options that others check.

    Raises:
      ValueError: An option that the model does not take, or one of another type: the text "False" is not False.
    """
    for option, value in given.items():
        if option not in accepted and option not in more:
            known = ", ".join(sorted({*accepted, *more}))
            raise ValueError(f"model {name!r} has no option {option!r}; it takes {known}")
        want = accepted.get(option)
        if want is not None and value is not None and not configs.same_type(value, want):
            raise ValueError(
                f"model {name!r}: {option}={value!r} must be {configs.TYPE_WORDS[type(want)]}"
            )


LIKE = {bool: False, int: 0, float: 0.0, str: "", tuple: ()}


def like(annotation: Any, default: Any) -> Any:
    """A value of an option's declared type: of its annotation, else its default; None where neither says."""
    kind = typing.get_origin(annotation) or annotation
    if kind in LIKE:
        return LIKE[kind]
    return default if type(default) in (*LIKE, dict) and annotation in _SILENT else None


_SILENT = (inspect.Parameter.empty, None)


def check_choice(name: str, option: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises ValueError when `value` is none of `choices`."""
    if value not in choices:
        raise ValueError(
            f"model {name!r}: {option}={value!r} is not one of {', '.join(map(repr, choices))}"
        )


def module_options(module: type, internal: Iterable[str]) -> dict[str, Any]:
    """Fields of a Flax module (or dataclass) that a config may set -> `like`: all but Flax's own and `internal` ones."""
    hidden = {"parent", "name", *internal}
    found = {f.name: f for f in dataclasses.fields(module) if f.name not in hidden}
    return {n: like(f.type, f.default) for n, f in found.items()}


def width_of(schema: Schema, tables: Sequence[Table]) -> int:
    """Width of the tables whose rows begin at random: vectors of the data have their own."""
    own = (t.dim for t in tables if not t.frozen and not schema.space(t.id_space).vectors)
    return next(own, tables[0].dim)


def make_tables(schema: Schema, table: Mapping[str, Any], *, dim: int = 8) -> tuple[Table, ...]:
    """`schema.tables` with a model's default width."""
    try:
        return schema.tables(**{"dim": dim, **table})
    except TypeError as e:
        accepted = [f.name for f in dataclasses.fields(Table) if f.name != "id_space"]
        raise SchemaError(f"model.table: {e}; it takes {', '.join(accepted)}") from None


def make_heads(schema: Schema, labels: Iterable[str] | None) -> dict[str, str]:
    """Output -> label: "logits" for the first (default: the schema's first), else its own name."""
    labels = tuple(labels or schema.labels[:1])
    if not labels:
        raise SchemaError("the schema has no label to predict; give a feature the role label")
    for label in labels:
        if schema.feature(label).role != "label":
            raise SchemaError(f"{label!r} is no label; the labels are {', '.join(schema.labels)}")
    return {"logits": labels[0], **{name: name for name in labels[1:]}}


def counting(blocks: str, head: str = r"(MLP|Logits)_0/") -> CountsAs:
    """`System.counts_as` of a model whose parameters are these blocks, this head, and inputs.

    Args:
      blocks, head: Regexes that the beginning of a path matches; "": there are none.
    """
    named = ((blocks, "blocks"), (head, "head"))
    return (*(rule for rule in named if rule[0]), (".*", "other"))


def ranker(
    name: str,
    module_type: type[nn.Module],
    schema: Schema,
    counts_as: CountsAs,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    labels: Iterable[str] | None = None,
    auxiliary: Iterable[str] = (),
    more_tables: Sequence[Table] = (),
    around: Callable[[LookUp, Any], LookUp] | None = None,
    **options,
) -> System:
    """The system of a module that ranks candidates; one with a `correlation` says how much each event counts, too.

    Args:
      name: Of the model, for messages.
      module_type: Has the fields schema, outputs, head_norm, head_activation, dense_norm, dtype, param_dtype; perhaps
        `history`, the list that it compares candidates with, and a method `correlation`.
      schema: Needs a label; for a module with `history`, a history list with an id space that a candidate feature shares.
      counts_as: See `System`.
      table: To `Schema.tables`.
      compute_dtype: Of activations.
      param_dtype: Of dense parameters.
      labels: One output each, "logits" for the first; default: the schema's first.
      auxiliary: Further outputs of the module, trained and measured on the first label.
      more_tables: Of other owners than the model's, for `around`.
      around: (look_up, module) -> look_up, where the module wants more than `embed` gives.
      **options: The module's other fields.
    """
    accepted = module_options(module_type, ("schema", "outputs", "dtype", "param_dtype"))
    check_options(name, options, accepted, ("table", "compute_dtype", "param_dtype", "labels"))
    heads = make_heads(schema, labels)
    tables = make_tables(schema, table)
    dtypes: dict[str, Any] = dict(
        dtype=jnp.dtype(compute_dtype), param_dtype=jnp.dtype(param_dtype)
    )
    if "history" in accepted:
        options["history"] = fields.history_list(schema, options.get("history", ""))
    module = module_type(schema=schema, outputs=tuple(heads), **dtypes, **options)
    check_choice(name, "head_norm", module.head_norm, NORMS)
    check_choice(name, "head_activation", module.head_activation, ACTIVATIONS)
    check_choice(name, "dense_norm", module.dense_norm, ("batchnorm", "identity"))
    if "history" in accepted:
        fields.check_shared_fields(name, schema, module.history)
    look_up: LookUp = functools.partial(embed, schema, owner=tables[0].owner, dtype=module.dtype)
    if around is not None:
        look_up = around(look_up, module)
    system = pointwise(
        schema,
        module,
        (*tables, *more_tables),
        heads=heads | dict.fromkeys(auxiliary, heads["logits"]),
        look_up=look_up,
        counts_as=counts_as,
    )
    if not hasattr(module, "correlation"):
        return system
    return with_correlation(system, module, look_up=look_up)
