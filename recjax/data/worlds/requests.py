"""Requests that each bring a history of their own, written as prepared data: what most planted worlds of papers are.

Nothing links two requests: each is a user seen once, so what a model finds is in the history, the candidate and the
context, and nowhere else.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from recjax.data.store.writing import write_prepared
from recjax.schema import NUM_RESERVED, IdSpace, Schema

LIST = "history"
EPOCH = 1_600_000_000  # seconds; times look like a log's


@dataclasses.dataclass(frozen=True)
class Requests:
    """N independent requests, one candidate each.

    Attributes:
      columns: Features that are no history's, labels and groups: name -> [N].
      events: History features: name -> [N, L], oldest first, left-padded.
      age: Request minus event, seconds, int [N, L].
      length: Events of each request, int [N], at most L.
    """

    columns: Mapping[str, np.ndarray]
    events: Mapping[str, np.ndarray]
    age: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.length)

    @property
    def mask(self) -> np.ndarray:
        """bool [N, L]."""
        width = self.age.shape[1]
        return np.arange(width) >= width - self.length[:, None]

    def replace(self, **changes) -> "Requests":
        """Replaces columns by name."""
        return dataclasses.replace(self, columns={**self.columns, **changes})


def space(name: str, values: int) -> IdSpace:
    """An id space of `values` ids after the reserved ones."""
    return IdSpace(name, NUM_RESERVED + values)


def write_requests(
    out_dir: str | os.PathLike,
    name: str,
    schema: Schema,
    splits: Mapping[str, Requests],
    options: Mapping[str, Any],
    *,
    facts: Mapping[str, Any] | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
    version: str = "1.0.0",
) -> pathlib.Path:
    """Writes the splits as prepared data and returns the directory (see `write_prepared`).

    Args:
      out_dir: Folder that holds prepared data sets.
      name: Of the world.
      schema: One history list, `LIST`.
      splits: split -> requests.
      options: Everything the content depends on.
      facts: Goes to report.json.
      vectors: id space -> float32 [rows, width], of those whose ids stand for vectors.
      version: Of the world's code.
    """
    timelines, columns, before = [], {}, 0
    for split, part in splits.items():
        mask = part.mask
        time = EPOCH + np.arange(len(part), dtype=np.int64)
        timelines.append(
            {"time": (time[:, None] - part.age)[mask]}
            | {k: np.asarray(v, np.int32)[mask] for k, v in part.events.items()}
        )
        end = before + np.cumsum(part.length)
        columns[split] = dict(part.columns) | {
            "time": time,
            f"{LIST}/end": end.astype(np.int64),
            f"{LIST}/count": part.length.astype(np.int32),
        }
        before = int(end[-1])
    merged = {k: np.concatenate([t[k] for t in timelines]) for k in timelines[0]}
    return write_prepared(
        out_dir,
        name,
        schema,
        {LIST: [merged]},
        columns,
        vectors=vectors,
        report=facts,
        options=options,
        version=version,
    )
