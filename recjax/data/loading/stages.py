"""Refuses data whose stages, a generator's and that of the model it serves, are not apart in time."""

from collections.abc import Mapping
from typing import Any

from absl import logging
import numpy as np

from recjax.data.loading.layout import BatchError
from recjax.data.store.movelines import Window
from recjax.data.store.prepared import Prepared


def check_windows(stages: Mapping[str, Mapping[str, int]], where: Any, overlap: bool) -> None:
    """Raises BatchError where windows of different stages overlap; with `overlap` (the ablation) only says so."""
    windows = {split: Window(**w) for split, w in stages.items()}
    for a, x in windows.items():
        for b, y in windows.items():
            if x.stage < y.stage and max(x.begin, y.begin) < min(x.end, y.end):
                text = (
                    f"{where}: split {a!r} (stage {x.stage}) and {b!r} (stage {y.stage}) overlap in time: the generator "
                    "would have seen the labels it is judged by; prepare the data with disjoint windows"
                )
                if not overlap:
                    raise BatchError(text)
                logging.warning("%s (overlap=True was asked for)", text)


def check_stages(prepared: Prepared, split: str) -> None:
    """Raises BatchError unless a split's rows and targets lie in its stage's window; other data pass.

    Args:
      prepared: With "stages" in its identity, if it has stages.
      split: Read once, before its first batch.
    """
    stages = prepared.identity.get("stages")
    if stages is None:
        return
    check_windows(stages, prepared.path, prepared.identity.get("overlap", False))
    window = Window(**stages[split])
    line = prepared.timeline("next")["time"]
    for i in range(prepared.blocks(split)):
        block = prepared.block(split, i)
        time, end, count = (block[k] for k in ("time", "next/end", "next/count"))
        late = int(((time < window.begin) | (time >= window.end)).sum())
        late += int((line[np.maximum(end - 1, 0)][count > 0] >= window.end).sum())
        if late:
            raise BatchError(
                f"{prepared.path}, split {split!r}, block {i}: {late} rows or targets lie outside the split's window "
                f"[{window.begin}, {window.end}) of stage {window.stage}; prepare the data again"
            )
