"""Columns of a split checked against their schema, put into the order they are stored in, and cut into blocks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from recjax.data.store.prepared import PARTITION, DataError, column_dtypes
from recjax.schema import Schema

Columns = Mapping[str, np.ndarray]

# ------------------------------------------------------------------------------------------- checks


def check_timelines(schema: Schema, timelines: Mapping[str, Sequence[Columns]]) -> None:
    """Raises DataError unless each list has a timeline with its columns, in every partition."""
    for name in schema.lists:
        if name not in timelines:
            raise DataError(f"list {name!r} has no timeline; pass timelines[{name!r}]")
        for p, part in enumerate(timelines[name]):
            for column in ("time", *(f.name for f in schema.features if f.list == name)):
                if column not in part:
                    raise DataError(
                        f"timeline {name!r}, partition {p}: column {column!r} is missing"
                    )
                if len(part[column]) != len(part["time"]):
                    raise DataError(
                        f"timeline {name!r}, partition {p}: {column!r} and 'time' differ in length"
                    )


def check_vectors(schema: Schema, vectors: Columns) -> None:
    """Raises DataError unless each id space that has vectors is given finite ones, [rows, width]."""
    for s in schema.id_spaces:
        shape = np.shape(vectors[s.name]) if s.name in vectors else None
        if s.vectors and shape != (s.rows, s.vectors):
            raise DataError(
                f"id space {s.name!r}: vectors of shape {(s.rows, s.vectors)} are needed, {shape or 'none'} given"
            )
        if s.vectors and not np.isfinite(vectors[s.name]).all():
            raise DataError(f"id space {s.name!r}: a vector is not finite; correct or leave it out")


def _checked(
    schema: Schema, split: str, columns: Columns, timelines: Mapping
) -> dict[str, np.ndarray]:
    """Columns of a split with defaults filled in, types settled and bounds checked."""
    n = len(columns["time"])
    if not n:
        raise DataError(f"split {split!r} has no rows; leave it out")
    full = {
        "weight": np.ones(n, np.float32),
        "request": np.arange(n, dtype=np.int32),
        PARTITION: np.zeros(n, np.int32),
    }
    full |= columns
    out = {PARTITION: np.asarray(full[PARTITION])}
    for name, (dtype, shape) in column_dtypes(schema).items():
        if name == "row":
            continue
        if name not in full:
            raise DataError(f"split {split!r}: column {name!r} is missing; the schema asks for it")
        column = np.asarray(full[name])
        if column.shape != (n, *shape):
            raise DataError(
                f"split {split!r}: column {name!r} has shape {column.shape}, expected {(n, *shape)}"
            )
        if not np.can_cast(column.dtype, dtype, "same_kind"):
            raise DataError(
                f"split {split!r}: column {name!r} is {column.dtype}, expected {np.dtype(dtype)}"
            )
        out[name] = column
    for f in schema.features:
        if f.name in out and f.kind == "id" and n:
            _check_range(
                f"split {split!r}: ids of {f.name!r}", out[f.name], schema.space(f.id_space).rows
            )
    for name in schema.lists:
        for p, part in enumerate(timelines[name]):
            _check_history(
                schema,
                f"split {split!r}, list {name!r}",
                name,
                part["time"],
                out,
                out[PARTITION] == p,
            )
    return out


def _check_history(
    schema: Schema, what: str, name: str, event: np.ndarray, columns: Columns, mine: np.ndarray
) -> None:
    """Every history lies inside its timeline and, unless it holds targets, strictly before its request."""
    end, count = columns[f"{name}/end"][mine], columns[f"{name}/count"][mine]
    _check_range(f"{what}: ends", end, len(event) + 1)
    _check_range(f"{what}: starts", end - count, len(event) + 1)
    if schema.select("target", list=name):
        return
    last = event[(end - 1)[count > 0]]
    late = int((last >= columns["time"][mine][count > 0]).sum())
    if late:
        raise DataError(
            f"{what}: {late} histories reach their request or pass it; cut them strictly before its time"
        )


def _check_range(what: str, x: np.ndarray, stop: int) -> None:
    if len(x) and (x.min() < 0 or x.max() >= stop):
        raise DataError(
            f"{what} go from {x.min()} to {x.max()}, outside [0, {stop}); prepare the columns again"
        )


# ------------------------------------------------------------------------------------------- blocks


def split_blocks(
    schema, timelines, split, columns, *, block_size, unit, seed
) -> Iterator[dict[str, Any]]:
    """The records of one split, in order: checked columns, permuted if it is a training split."""
    columns = _checked(schema, split, columns() if callable(columns) else columns, timelines)
    dtypes = column_dtypes(schema)
    row = 0
    for partition, rows in _layout(split, columns, block_size, unit, seed):
        block = {
            name: columns[name][rows].astype(dtypes[name][0], copy=False)
            for name in dtypes
            if name != "row"
        }
        block["row"] = np.arange(row, row + len(rows), dtype=np.int32)
        block[PARTITION] = np.int32(partition)
        row += len(rows)
        yield block


def _layout(
    split: str, columns: Columns, block_size: int, unit: str, seed: int
) -> list[tuple[int, np.ndarray]]:
    """(partition, row numbers [R]) of each block, in the order they are written."""
    n = len(columns["time"])
    request = np.asarray(columns["request"])
    permuted = split.startswith("train")
    if permuted and unit == "impression":
        order = np.random.default_rng(seed).permutation(n)
    else:
        _, key = np.unique(request, return_inverse=True)
        if permuted:
            key = np.random.default_rng(seed).permutation(n and key.max() + 1)[key]
        order = np.argsort(key, kind="stable")
    whole = None if permuted and unit == "impression" else request
    partition = columns[PARTITION][order]
    blocks = []
    for p in np.unique(partition):
        at = np.flatnonzero(partition == p)  # positions in the order
        rows = order[at]
        cuts = _cuts(len(rows), block_size, None if whole is None else whole[rows])
        blocks += [
            (int(at[a]), int(p), rows[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)
        ]
    return [(p, rows) for _, p, rows in sorted(blocks, key=lambda b: b[0])]


def _cuts(n: int, block_size: int, request: np.ndarray | None) -> list[int]:
    """Block edges; with `request` [n], a request never straddles two blocks (a larger one is its own block)."""
    edges = (
        np.arange(n + 1)
        if request is None
        else np.flatnonzero(np.r_[True, request[1:] != request[:-1], True])
    )
    cuts = [0]
    while cuts[-1] < n:
        cut = edges[np.searchsorted(edges, cuts[-1] + block_size, side="right") - 1]
        cuts.append(
            int(cut if cut > cuts[-1] else edges[np.searchsorted(edges, cuts[-1], side="right")])
        )
    return cuts
