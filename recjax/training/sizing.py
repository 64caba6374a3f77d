"""Batch and epochs that suit the data: `train.min_steps` is how many steps a model needs, whatever the log's size.

A batch that suits millions of rows leaves a small log a few dozen steps, after which a model is where it began. So where the
rows give fewer than `min_steps` steps, the batch is halved, not below `SMALLEST`, and then the epochs are raised, not above
`MOST_EPOCHS`. What comes of it is told, and stands in summary.json.
"""

import math
from typing import Any

from absl import logging
from ml_collections import ConfigDict

SMALLEST, MOST_EPOCHS = 128, 8


def sized(config: ConfigDict, data: Any, devices: int) -> ConfigDict:
    """The config with the batch, microbatches and epochs that the data ask for; itself without `train.min_steps`.

    Args:
      config: Of a run.
      data: Opened (`recjax.data.loading.protocol.Data`).
      devices: That share a batch.
    """
    c = config.train
    if not c.min_steps or c.online:
        return config
    rows = _rows(config, data)
    batch, micro, epochs = fit(
        rows, c.batch, c.microbatches, c.epochs, c.min_steps, devices * _partitions(config, data)
    )
    out = ConfigDict(config)
    out.train.update(batch=batch, microbatches=micro, epochs=epochs)
    logging.info(
        "%s training rows: batches of %d, %d epochs, %s steps (train.min_steps=%d; 0 takes train.batch and train.epochs as "
        "they are)", f"{rows:,}", batch, epochs, f"{-(-rows * epochs // batch):,}", c.min_steps,
    )  # fmt: skip
    return out


def fit(
    rows: int, batch: int, microbatches: int, epochs: int, steps: int, parts: int = 1
) -> tuple[int, int, int]:
    """(batch, microbatches, epochs) with at least `steps` steps, as far as the bounds let it.

    Args:
      rows: Of the training split.
      batch, microbatches, epochs: The config's: the batch is never larger, the epochs never fewer.
      steps: Wanted.
      parts: That divide every batch: devices times partitions of the data.
    """
    wanted, per_micro = rows * epochs // steps, max(batch // microbatches, 1)
    while batch > wanted and batch // 2 >= SMALLEST and batch % 2 == 0:
        micro = max(batch // 2 // per_micro, 1)
        if batch // 2 % (micro * parts):
            break
        batch, microbatches = batch // 2, micro
    needed = math.ceil(steps * batch / max(rows, 1))
    return batch, microbatches, max(epochs, min(needed, MOST_EPOCHS))


def _rows(config: ConfigDict, data: Any) -> int:
    """Training rows of one epoch."""
    c = config.train
    options = dict(examples=c.examples, recent=c.recent, recent_days=c.recent_days)
    return data.batches(config.data.train, c.batch, **options).examples


def _partitions(config: ConfigDict, data: Any) -> int:
    prepared = getattr(data, "prepared", None)
    return len(set(prepared.block_partitions(config.data.train).tolist())) if prepared else 1
