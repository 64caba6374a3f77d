"""Teacher logits as one more column of the training impressions, for offline distillation.

A teacher answers once for each impression (`python -m recjax.teach`); its file is keyed by the data's identity and read
by the impression's row, so any number of students, seeds and epochs train from it:

    <teacher's run>/logits/<data hash>/<split>.npy    float32 [rows of the split], NaN where it was not asked
    <teacher's run>/logits/<data hash>/<split>.json   {"output", "best", "step"}: what was asked, and of which checkpoint

Batches of the training split get `teacher`: {"0": float32 [B, C], "1": ...}, one of each teacher. NumPy only.
"""

from collections.abc import Iterator, Sequence
import json
import os
import pathlib
from typing import Any

import numpy as np

from recjax.batch import Batch
from recjax.data.store.prepared import DataError

EARLIER = {"output": "logits", "best": False}  # answers without a question beside them


def logits_file(run: str | os.PathLike, data_hash: str, split: str) -> pathlib.Path:
    """Where a teacher's answers for a split of a data set lie."""
    return pathlib.Path(run) / "logits" / data_hash / f"{split}.npy"


def question_file(file: pathlib.Path) -> pathlib.Path:
    """Where it is said what the answers in a `logits_file` are to."""
    return file.with_name(f"{file.stem}.json")


def question_of(file: pathlib.Path) -> dict[str, Any]:
    """What the answers in a `logits_file` are to; those of earlier versions do not say the step."""
    beside = question_file(file)
    return json.loads(beside.read_text()) if beside.exists() else EARLIER


class Taught:
    """A data set (see `recjax.data.open_data`) whose split `split` carries what teachers answered."""

    def __init__(self, data: Any, teachers: Sequence[str | os.PathLike], split: str):
        """`teachers`: run directories."""
        self._data, self._teachers, self._split = data, tuple(teachers), split

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._data, name)

    def batches(self, split: str, batch_size: int, **options) -> Any:
        """As the data's own; raises DataError when a teacher was not asked about the split."""
        batches = self._data.batches(split, batch_size, **options)
        if split != self._split:
            return batches
        return _TaughtBatches(batches, [self._column(t) for t in self._teachers])

    def _column(self, run: str | os.PathLike) -> tuple[np.ndarray, str]:
        file = logits_file(run, self._data.identity["hash"], self._split)
        ask = f"run python -m recjax.teach --run={run} --split={self._split}"
        if not file.exists():
            raise DataError(f"{file} is missing: the teacher was not asked about this data; {ask}")
        column = np.load(file, mmap_mode="r")
        rows = self._data.splits[self._split]
        if column.shape != (rows,):
            raise DataError(
                f"{file} has shape {column.shape}, the split {rows} rows; delete it, {ask}"
            )
        return column, ask


class _TaughtBatches:
    def __init__(self, batches: Any, columns: Sequence[tuple[np.ndarray, str]]):
        self._batches, self._columns = batches, columns

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            yield {**batch, "teacher": self._answers(batch)}

    def _answers(self, batch: Batch) -> dict[str, np.ndarray]:
        out = {}
        for i, (column, ask) in enumerate(self._columns):
            x = np.where(batch["valid"], column[np.maximum(batch["row"], 0)], 0).astype(np.float32)
            if not np.isfinite(x).all():
                raise DataError(f"a teacher was not asked about all impressions trained on; {ask}")
            out[str(i)] = x
        return out
