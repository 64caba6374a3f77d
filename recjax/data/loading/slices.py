"""Slices of a split: which impressions are of new users, of cold items, of which scene, with how long a history.

A slice is asked for in a word:

    new:FEATURE     "new" where the id is outside the vocabulary, or none of the rows trained on has it; else "known"
    by:FEATURE      its most frequent values, the rest as "other"
    length:LIST     events of the list before the request, all of them and not only those a model reads: 0, 1-4, ...

Vocabularies admit values from a few occurrences on (`min_count`), so "new" can mean "rare"; with min_count = 1 it means
absent. Everything is computed from the stored rows, without the model.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from recjax.data.store.prepared import DataError, Prepared
from recjax.schema import MISSING, NUM_RESERVED, OOV, PAD, Feature, Schema

EDGES = (1, 5, 20, 100)  # of history lengths
SHOWN = 20  # values of a by: slice
SCENES = ("scene", "tab", "channel", "store")  # context features that say where it was shown


@dataclasses.dataclass(frozen=True, eq=False)
class Slice:
    """A partition of the rows of a split.

    Attributes:
      name: What was asked for, as "new:item".
      values: Names of its parts.
      code: Part of each row, by its place in the split; int16 [rows].
    """

    name: str
    values: tuple[str, ...]
    code: np.ndarray


def default_slices(schema: Schema) -> tuple[str, ...]:
    """New users and items (the first profile and candidate ids), the scene, the length of every history."""
    out = []
    for role in ("profile", "candidate"):
        ids = [f.name for f in schema.select(role, kind="id") if not f.multi]
        out += [f"new:{ids[0]}"] if ids else []
    context = [f.name for f in schema.select("context", kind="id") if not f.multi]
    scenes = [name for name in SCENES if name in context]
    out += [f"by:{scenes[0]}"] if scenes else []
    inputs = [n for n in schema.lists if not schema.select("target", list=n)]
    return (*out, *(f"length:{name}" for name in inputs))


def make_slices(
    prepared: Prepared, split: str, wanted: Sequence[str], trained: Mapping[str, Any] | None = None
) -> list[Slice]:
    """The slices of a split.

    Args:
      prepared: The data.
      split: Of it.
      wanted: As in the module docstring; ("default",) for `default_slices`.
      trained: Rows that were trained on: {"prepared": Prepared with the same ids, "split", "examples" (its
        first so many; 0: all)}. None: only ids outside the vocabulary are new.

    Raises:
      DataError: A slice is not understood, or names no feature or list of its kind.
    """
    schema = prepared.schema
    wanted = default_slices(schema) if tuple(wanted) == ("default",) else tuple(wanted)
    parsed = [_parse(schema, w) for w in wanted]
    columns = read_columns(prepared, split, [column for _, _, column in parsed])
    out = []
    for name, (kind, feature, column) in zip(wanted, parsed, strict=True):
        if kind == "length":
            out.append(_by_length(name, columns[column]))
        elif kind == "by":
            out.append(_by_value(name, prepared, feature, columns[column]))
        else:
            rows = schema.space(feature.id_space).rows
            known = _known_ids(feature.name, rows, trained)
            out.append(Slice(name, ("known", "new"), (~known[columns[column]]).astype(np.int16)))
    return out


def _parse(schema: Schema, text: str) -> tuple[str, Feature | None, str]:
    """(kind, feature, column) of a slice."""
    kind, _, name = text.partition(":")
    if kind == "length":
        if name not in schema.lists:
            raise DataError(
                f"slice {text!r}: the data has no list {name!r}; it has {', '.join(schema.lists) or 'none'}"
            )
        return kind, None, f"{name}/count"
    if kind not in ("new", "by"):
        raise DataError(f"slice {text!r}: write new:FEATURE, by:FEATURE or length:LIST")
    ids = {f.name: f for f in schema.features if f.kind == "id" and not f.list and not f.multi}
    if name not in ids:
        raise DataError(f"slice {text!r}: {name!r} is no id feature of an impression; those are {', '.join(ids)}")  # fmt: skip
    return kind, ids[name], name


def read_columns(
    prepared: Prepared, split: str, names: Sequence[str], examples: int = 0
) -> dict[str, np.ndarray]:
    """Columns [rows] of a split, or of its first `examples` rows (0: all)."""
    sizes = prepared.block_rows(split)
    wanted = min(examples or int(sizes.sum()), int(sizes.sum()))
    last = int(np.searchsorted(np.cumsum(sizes), wanted)) + 1 if wanted else 0
    read: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for i in range(last):  # one block's other columns at a time in memory
        block = prepared.block(split, i)
        for name in read:
            read[name].append(block[name])
    return {
        name: np.concatenate(x)[:wanted] if x else np.zeros(0, np.int32) for name, x in read.items()
    }


def _known_ids(feature: str, rows: int, trained: Mapping[str, Any] | None) -> np.ndarray:
    """Which ids were trained on, bool [rows]."""
    known = np.ones(rows, bool)
    if trained is not None:
        known = np.zeros(rows, bool)
        source = trained["prepared"], trained["split"], [feature], trained.get("examples", 0)
        known[read_columns(*source)[feature]] = True
    known[[PAD, OOV]] = False
    return known


def _by_length(name: str, count: np.ndarray) -> Slice:
    edges = (0, *EDGES)
    spans = [
        f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in zip(edges, edges[1:], strict=False)
    ]
    code = np.searchsorted(EDGES, count, side="right").astype(np.int16)
    return Slice(name, (*spans, f"{EDGES[-1]}+"), code)


def _by_value(name: str, prepared: Prepared, feature: Feature, ids: np.ndarray) -> Slice:
    found, counts = np.unique(ids, return_counts=True)
    shown = np.sort(found[np.argsort(-counts, kind="stable")[:SHOWN]])
    names = _value_names(prepared, feature.id_space, shown)
    more = len(found) > len(shown)
    place = np.minimum(np.searchsorted(shown, ids), max(len(shown) - 1, 0))
    code = np.where(shown[place] == ids, place, len(shown)) if len(shown) else place
    return Slice(name, (*names, *(["other"] if more else [])), code.astype(np.int16))


def _value_names(prepared: Prepared, space: str, ids: np.ndarray) -> list[str]:
    """Log values of ids, or the ids themselves where no vocabulary is stored."""
    named = {PAD: "none", OOV: "unknown", MISSING: "missing"}
    try:
        frame = prepared.vocabulary(space)
        named |= {i: str(v) for v, i in frame.select("value", "id").iter_rows()}
    except DataError:
        assert NUM_RESERVED == len(named)
    return [named.get(i, str(i)) for i in ids.tolist()]
