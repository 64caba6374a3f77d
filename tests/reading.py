"""How tests look into prepared data and train a few steps on it."""

import json
import pathlib

import numpy as np

from recjax.data.store.prepared import Prepared


def columns_of(data: Prepared, split: str) -> dict[str, np.ndarray]:
    """All columns of a split, in stored order."""
    blocks = [data.block(split, i) for i in range(data.blocks(split))]
    return {c: np.concatenate([b[c] for b in blocks]) for c in blocks[0] if c != "partition"}


def decoded(data: Prepared, space: str, ids: np.ndarray) -> list:
    """Log values of ids; None for reserved ones."""
    known = dict(data.vocabulary(space).select("id", "value").iter_rows())
    return [known.get(i) for i in np.asarray(ids).tolist()]


def info_of(data: Prepared) -> dict:
    """TFDS's dataset_info.json."""
    return json.loads((data.path / "dataset_info.json").read_text())


def train_on(
    name: str, source: pathlib.Path, workdir: pathlib.Path, model: dict, **prepare
) -> dict:
    """Four steps on a data set named as in a config, by the training command's own function; its summary."""
    from recjax import configs
    from recjax.training.loop import train

    c = configs.base()
    c.data.name, c.data.source, c.data.history = name, str(source), 8
    c.data.prepare.update(prepare)
    c.model.update(model)
    c.train.batch, c.train.examples = 32, 128
    c.eval.batch, c.eval.examples = 64, 64
    return train(c, str(workdir))
