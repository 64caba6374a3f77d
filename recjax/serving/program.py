"""From a system's named function to a serialised program of symbolic sizes that says what it reads.

A program is called as `program(parameters, rows, inputs) -> outputs`, four flat dicts of arrays:

    parameters  {"dense/Dense_0/kernel": ...}  the dense, state and frozen trees
    rows        {table path: float32 [1, u, d]}  rows of the unique ids of a batch (one shard at serving)
    inputs      {"pos/item": [b, c], "age/purchases": [b, L], ...}  leaves of the batch (recjax/inputs.py)

Only what the function reads is among them, so no label, weight or teacher parameter travels. Sizes that vary are
symbols: b requests, c candidates, and one u per id space; the length of a history is fixed.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import re
from typing import Any

import jax
from jax import export
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from recjax.schema import Schema, Table
from recjax.trees import Params

Flat = dict[str, Any]
_BY_REQUEST = ("mask", "age")
_BY_CANDIDATE = ("label", "weight", "valid", "row")


@dataclasses.dataclass(frozen=True)
class Program:
    """A function, exported.

    Attributes:
      serialized: StableHLO, as `jax.export` writes it.
      parameters, rows, inputs: Shape and dtype of each argument.
      outputs: And of each result.
      version: Calling convention of the serialisation.
    """

    serialized: bytes
    parameters: dict[str, jax.ShapeDtypeStruct]
    rows: dict[str, jax.ShapeDtypeStruct]
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: dict[str, jax.ShapeDtypeStruct]
    version: int


def flatten(tree: Any) -> Flat:
    """{"a": {"b": x}} -> {"a/b": x}; raises ValueError when two leaves get one name."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    if len(flat) != len(pairs):
        raise ValueError(
            "two leaves of a tree get the same name; rename one ('/' separates levels)"
        )
    return flat


def unflatten(like: Any, flat: Flat) -> Any:
    """The tree of the same structure as `like` with the leaves of `flat`."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in flatten(like)])


def symbols(schema: Schema) -> dict[str, Any]:
    """The varying sizes: "b", "c", and for each id space its name."""
    names = ["b", "c", *(f"u{i}" for i in range(len(schema.id_spaces)))]
    dims = export.symbolic_shape(",".join(names))
    return dict(zip(["b", "c", *(f"ids/{s.name}" for s in schema.id_spaces)], dims, strict=True))


def input_shape(schema: Schema, dims: Mapping[str, Any], leaf: str, example: tuple) -> tuple:
    """Shape of a batch leaf with the varying sizes as symbols.

    Leaves that `recjax.inputs` does not lay out (a subgraph, pairs) keep the example's shape.
    """
    kind, _, name = leaf.partition("/")
    if kind == "ids":
        return (1, dims[f"ids/{name}"])
    if kind in ("pos", "dense"):
        f = schema.feature(name)
        sizes = {"B": dims["b"], "C": dims["c"], "L": example[1] if len(example) > 1 else 0}
        width = f.multi or f.vector
        return (*(sizes[a] for a in f.axes), *([width] if width else []))
    if kind in _BY_REQUEST:
        return (dims["b"], example[1])
    if kind in _BY_CANDIDATE:
        return (dims["b"], dims["c"])
    if kind == "group":  # a key a request, or one a candidate
        return (dims["b"], dims["c"])[: len(example)]
    return tuple(example)


def input_specs(schema: Schema, dims: Mapping[str, Any], batch: Any) -> dict[str, Any]:
    """Abstract leaves of a batch like `batch`, by name."""
    specs = {}
    by_symbol = {str(d): d for d in dims.values()}
    for name, leaf in flatten(batch).items():
        example = np.shape(leaf)
        if not all(isinstance(s, int) for s in example):  # another program's output
            shape = tuple(s if isinstance(s, int) else by_symbol[str(s)] for s in example)
        else:
            shape = input_shape(schema, dims, name, example)
        if len(shape) != np.ndim(leaf):
            raise ValueError(
                f"batch leaf {name!r} has shape {np.shape(leaf)}, the schema says {shape}"
            )
        specs[name] = _spec(shape, leaf)
    return specs


def _spec(shape: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(jnp.result_type(leaf)))


def row_specs(
    tables: tuple[Table, ...], dims: Mapping[str, Any]
) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        t.path: jax.ShapeDtypeStruct((1, dims[f"ids/{t.id_space}"], t.dim), jnp.float32)
        for t in tables
    }


def flat_function(fn: Callable, params: Params, batch: Any) -> Callable:
    """`fn(params, batch)` as (parameters, rows, inputs) -> outputs over flat dicts."""

    def flat(parameters: Flat, rows: Flat, inputs: Flat) -> Flat:
        return fn(unflatten(params, parameters).replace(rows=rows), unflatten(batch, inputs))

    return flat


def _live(jaxpr: jex.Jaxpr) -> tuple[list, list[int]]:
    """Equations the results depend on, and which arguments."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, jex.Literal)}
    eqns = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            eqns.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, jex.Literal))
    return eqns[::-1], [i for i, v in enumerate(jaxpr.invars) if v in needed]


def trace(
    fn: Callable,
    schema: Schema,
    tables: tuple[Table, ...],
    params: Params,
    batch: Any,
    platforms: tuple[str, ...],
) -> Program:
    """Exports `fn` for all `platforms`, with symbolic sizes and without what it does not read.

    Args:
      fn: `Export.fn`.
      schema: Of the batch.
      tables: Whose rows it may be given.
      params: Without rows; only shapes and dtypes matter.
      batch: An example, for dtypes and fixed sizes.
      platforms: Names as in `jax.export`: cpu, cuda, tpu.

    Raises:
      ValueError: The function needs fixed sizes, or an output's size is not a symbol or a number.
    """
    dims = symbols(schema)
    args = (
        {name: _spec(np.shape(x), x) for name, x in flatten(params).items()},
        row_specs(tables, dims),
        input_specs(schema, dims, batch),
    )
    closed, outputs = jax.make_jaxpr(flat_function(fn, params, batch), return_shape=True)(*args)
    _check_outputs(outputs, set(dims.values()))
    # The lowering of jax.export keeps dead code, whose symbols may then be unsolvable: cut it out first.
    eqns, kept = _live(closed.jaxpr)
    invars = [closed.jaxpr.invars[i] for i in kept]
    debug = closed.jaxpr.debug_info._replace(arg_names=None)
    live = closed.jaxpr.replace(eqns=eqns, invars=invars, debug_info=debug)
    call = jex.jaxpr_as_fun(jex.ClosedJaxpr(live, closed.consts))
    parameters, rows, inputs = _keep(args, set(kept))

    def program(parameters, rows, inputs):
        return jax.tree.unflatten(
            jax.tree.structure(outputs), call(*jax.tree.leaves((parameters, rows, inputs)))
        )

    with _no_locations():
        exported = export.export(jax.jit(program), platforms=platforms)(parameters, rows, inputs)
    version = exported.calling_convention_version
    return Program(bytes(exported.serialize()), parameters, rows, inputs, outputs, version)


@contextlib.contextmanager
def _no_locations():
    """Without the names of source files: they differ from machine to machine and are nobody's business."""
    before = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def _keep(args: tuple[Flat, ...], kept: set[int]) -> tuple[Flat, ...]:
    """The flat dicts with only the leaves numbered in `kept`, in the order jax.tree.leaves counts."""
    order = [(i, name) for i, arg in enumerate(args) for name in sorted(arg)]
    names = {order[n] for n in kept}
    return tuple({n: arg[n] for n in sorted(arg) if (i, n) in names} for i, arg in enumerate(args))


def _check_outputs(outputs: Any, known: set) -> None:
    if not isinstance(outputs, dict) or not all(hasattr(o, "shape") for o in outputs.values()):
        raise ValueError("an exported function returns one flat dict {name: array}")
    for name, out in outputs.items():
        for size in out.shape:
            if not isinstance(size, int) and size not in known:
                raise ValueError(
                    f"output {name!r} has size {size}; return axes [b], [b, c] or fixed ones"
                )


def sample_inputs(specs: Mapping[str, Any], sizes: Mapping[str, int], seed: int = 0) -> Flat:
    """Made-up inputs of concrete `sizes` that any program accepts: what its check is computed on.

    No row of anybody's data is in them. Positions stay below the smallest number of unique ids.
    """
    rng = np.random.default_rng(seed)
    few = min([n for s, n in sizes.items() if s.startswith("u")], default=1)
    out = {}
    for name, spec in specs.items():
        shape = concrete(spec.shape, sizes)
        kind = name.partition("/")[0]
        x: np.ndarray
        if kind == "ids":
            x = np.arange(shape[1])[None]
        elif kind == "pos":
            x = rng.integers(0, few, shape)
        elif kind == "mask":  # left-padded, the last slot always filled
            x = np.arange(shape[1]) >= rng.integers(0, shape[1], (shape[0], 1))
        elif kind == "age":
            x = rng.integers(1, 1_000_000, shape)
        elif kind == "valid":
            x = np.ones(shape)
        else:
            x = (
                np.abs(rng.normal(size=shape))
                if np.issubdtype(spec.dtype, np.floating)
                else np.zeros(shape)
            )
        out[name] = x.astype(spec.dtype)
    return out


def concrete(shape: tuple, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """("b", "c", 8) -> (2, 3, 8)."""
    return tuple(sizes[str(s)] if not isinstance(s, int) else s for s in shape)


# Calls out of a program into the process that runs it, which StableHLO names and XLA looks up: what export puts there
# for symbolic sizes, sharding, top-k and random bits. Any other may do anything, or end the process.
CALLS = frozenset(
    {
        "shape_assertion",
        "Sharding",
        "SPMDFullToShardShape",
        "SPMDShardToFullShape",
        "ApproxTopK",
        "mhlo.topk",
        "stablehlo.dynamic_approx_top_k",
        "stablehlo.dynamic_reduce_window",
        "stablehlo.dynamic_rng_bit_generator",
        "stablehlo.dynamic_top_k",
    }
)
_CALL = re.compile(r'custom_call\s*@(?:"([^"]*)"|([\w.$-]+))')


def read(serialized: bytes) -> export.Exported:
    """A program, unless it is damaged or calls what it must not; runs nothing of it.

    Raises:
      ValueError: Saying why.
    """
    try:
        exported = export.deserialize(bytearray(serialized))
        text = exported.mlir_module()
    except Exception as e:  # flatbuffers and MLIR raise whatever a damaged byte leads them to
        raise ValueError(f"it is no program that jax {jax.__version__} can read") from e
    called = {quoted or plain for quoted, plain in _CALL.findall(text)}
    if strange := sorted(called - CALLS):
        raise ValueError(f"it calls {strange[0]!r}, which may run any code in this process")
    return exported
