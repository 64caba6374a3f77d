"""The open inference protocol (KServe v2) beside the service's own calls: the same request as named tensors.

    GET  /v2  /v2/health/live  /v2/health/ready  /v2/models/<name>  /v2/models/<name>/ready
    POST /v2/models/<name>/infer   {"inputs": [{"name", "shape", "datatype", "data"}], "parameters": {"user", "deadline_ms"}}

One call is one request with C candidates. An input is a feature by its name: [1] where it has one value a request, [C]
of candidates, [L] of a list's events, whose times are "<list>/time"; "time" is [1]. A value of several parts adds an axis.
What is left out is completed as in /v1/score; a null is JSON's. (github.com/kserve/open-inference-protocol)
"""

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic_core import to_json
from typing_extensions import TypedDict

from recjax.schema import Schema
from recjax.serving.bodies import Bodies, BodyError, ScoreRequest

_TYPES = {"integer": "INT64", "string": "BYTES"}
_KINDS = {"b": "BOOL", "f": "FP32", "i": "INT64", "u": "UINT64"}


class _Tensor(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=3)]
    datatype: str
    data: list[Any]


class _Parameters(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
    user: NotRequired[str]
    deadline_ms: NotRequired[int]


class _Infer(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
    inputs: Annotated[list[_Tensor], Field(max_length=1000, fail_fast=True)]
    id: NotRequired[str]
    parameters: NotRequired[_Parameters]


_INFER = TypeAdapter(_Infer)


def read(bodies: Bodies, body: bytes) -> tuple[ScoreRequest, str]:
    """A request as `Bodies.score` reads it, and its id; raises BodyError."""
    got = bodies.read(_INFER, body)
    out: dict[str, Any] = dict(got.get("parameters", {}))
    for tensor in got["inputs"]:
        where, key = _place(bodies, tensor["name"])
        inner = out
        for name in where:
            inner = inner.setdefault(name, {})
        inner[key] = _values(tensor, scalar=where[:1] not in (("candidates",), ("history",)))
    return bodies.score(to_json(out)), got.get("id", "")


def _place(bodies: Bodies, name: str) -> tuple[tuple[str, ...], str]:
    """Where a request of the service's own has the values of an input."""
    if name == "time":
        return (), name
    if name in bodies.candidates:
        return ("candidates",), name
    for role, features in bodies.sections.items():
        if name in features:
            return (role,), name
    for listed, columns in bodies.lists.items():
        if name == f"{listed}/time" or (name in columns and name != "time"):
            return ("history", listed), name.removeprefix(f"{listed}/")
    raise BodyError(f"the input {name!r} is unknown; /v2/models/<name> lists what the model reads")


def _values(tensor: Mapping[str, Any], scalar: bool) -> Any:
    name, shape, data = tensor["name"], tensor["shape"], tensor["data"]
    if len(shape) > 1 and not any(isinstance(x, list) for x in data):  # flat, row by row
        width = int(np.prod(shape[1:]))
        if len(data) != shape[0] * width:
            raise _uneven(name, shape, len(data))
        data = [data[i * width : (i + 1) * width] for i in range(shape[0])]
    if not shape or len(data) != shape[0]:
        raise _uneven(name, shape, len(data))
    if not scalar:
        return data
    if len(data) != 1:
        raise BodyError(
            f"the input {name!r} has shape {shape}; it has one value a request, send [1]"
        )
    return data[0]


def _uneven(name: str, shape: list[int], n: int) -> BodyError:
    return BodyError(
        f"the input {name!r} has {n} values and shape {shape}; send as many as the shape says"
    )


def describe(
    name: str, stamp: str, schema: Schema, bodies: Bodies, outputs: Mapping[str, Any]
) -> dict[str, Any]:
    """The answer of /v2/models/<name>; -1 for sizes that vary."""
    inputs = [{"name": "time", "datatype": "INT64", "shape": [1]}]
    inputs += [{"name": f"{n}/time", "datatype": "INT64", "shape": [-1]} for n in bodies.lists]
    taken = {*bodies.candidates, *(n for x in (*bodies.sections.values(), *bodies.lists.values()) for n in x)}  # fmt: skip
    more = (
        taken - {f.name for f in schema.features} - {"time"}
    )  # columns that an own log's crosses read
    inputs += [{"name": n, "datatype": "BYTES", "shape": [1]} for n in sorted(more)]
    for f in schema.features:
        if f.name not in taken:
            continue
        kind = _TYPES[bodies.kinds[f.id_space]] if f.kind == "id" else "FP32"
        shape = [1] if f.axes == "B" else [-1]
        shape += [f.vector] if f.vector else [-1] * bool(f.multi)
        inputs.append({"name": f.name, "datatype": kind, "shape": shape})
    made = [
        {"name": n, "datatype": _KINDS.get(np.dtype(o["dtype"]).kind, "FP32"), "shape": _shape(o)}
        for n, o in outputs.items()
    ]
    return {
        "name": name,
        "versions": [stamp],
        "platform": "recjax",
        "inputs": inputs,
        "outputs": made,
    }


def _shape(output: Mapping[str, Any]) -> list[int]:
    return [s if isinstance(s, int) else -1 for s in output["shape"][1:]]


def answer(name: str, stamp: str, outputs: Mapping[str, list], asked: str) -> dict[str, Any]:
    made = []
    for output, values in outputs.items():
        x = np.asarray(values)
        kind = _KINDS.get(x.dtype.kind, "FP32")
        made.append(
            {"name": output, "datatype": kind, "shape": list(x.shape), "data": x.ravel().tolist()}
        )
    out = {"model_name": name, "model_version": stamp, "outputs": made}
    return out | ({"id": asked} if asked else {})
