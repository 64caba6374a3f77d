"""The MM-CTR challenge's files in small, made up at random: their format, and nothing to learn.

For running what reads them (`recjax.data.sets.microlens`) where the challenge's own files are not: its tests and
experiments/qin_mm_ctr.py:runlocal.
"""

import os
import pathlib
import tempfile
from typing import Any

import numpy as np
import polars as pl

from recjax.data.sets import microlens

TAGS, WIDTH, LEVELS = 5, 128, 11  # tags an item, numbers a vector, levels


def write_files(
    folder: pathlib.Path, users: int = 60, items: int = 30, length: int = 8, seed: int = 0
) -> pathlib.Path:
    """Writes the three files: histories of at most `length`, one positive and three negatives a user; returns the folder."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tags = [[0] * TAGS] + [sorted([0, 0, *rng.integers(1, 9, TAGS - 2)]) for _ in range(1, items)]
    info = pl.DataFrame(
        {
            "item_id": np.arange(items),
            "item_tags": tags,
            "item_emb_d128": rng.normal(size=(items, WIDTH)).astype(np.float32).tolist(),
        }
    )
    arrays = {"item_tags": pl.Array(pl.Int64, TAGS), "item_emb_d128": pl.Array(pl.Float32, WIDTH)}
    info.cast(arrays).write_parquet(folder / "item_info.parquet")
    levels = rng.integers(0, LEVELS, (items, 2))
    for name, mine in (("train", range(users)), ("valid", range(0, users, 3))):
        rows = []
        for user in mine:
            n = int(rng.integers(1, length - 1))
            past = [0] * (length - n) + rng.integers(1, items, n).tolist()
            for k in range(4):
                item = int(rng.integers(1, items))
                rows.append((user, past, item, *levels[item].tolist(), int(k == 0)))
        frame = pl.DataFrame(rows, schema=[*microlens.ROWS], orient="row")
        frame.write_parquet(folder / f"{name}.parquet")
    return folder


def prepare(
    out_dir: str | os.PathLike, *, source: str = "", users: int = 300, **options: Any
) -> pathlib.Path:
    """Makes files of `users` and has `microlens.prepare` read them; returns the directory."""
    del source  # nothing is read
    with tempfile.TemporaryDirectory() as folder:
        made = write_files(pathlib.Path(folder) / "MicroLens_1M_x1", users)
        return microlens.prepare(out_dir, source=os.fspath(made), **options)
