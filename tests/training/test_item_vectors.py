"""Runs whose rows begin from item vectors: frozen ones stay, trained ones move, and a resumed run needs the same."""

import numpy as np
import polars as pl
import pytest

from recjax import configs
from recjax.data import open_data
from recjax.data.logs import prepare as logs
from recjax.data.store import item_vectors
from recjax.data.store.prepared import DataError, Prepared
from recjax.embedding import lanes
from recjax.runtime.run import RunError
from recjax.training.loop import train
from recjax.training.opening import open_run

DIM = 6
MAPPING = """
user, item, time, labels = "user", "item", "at", ["click"]
counters, min_count = False, 1
split = {"validation": 0.1, "test": 0.1}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng, n = tmp_path_factory.mktemp("vectors"), np.random.default_rng(0), 2_000
    frame = {
        "user": rng.integers(20, size=n),
        "item": rng.integers(40, size=n),
        "at": 1_700_000_000 + np.sort(rng.integers(10**6, size=n)),
        "click": rng.integers(2, size=n),
    }
    pl.DataFrame(frame).write_parquet(folder / "log.parquet")
    (folder / "mapping.py").write_text(MAPPING)
    path = logs.prepare(
        folder / "data",
        source=str(folder / "log.parquet"),
        mapping=str(folder / "mapping.py"),
        exact_dir=True,
    )
    keep(Prepared(path), "mine", seed=0)
    return path


def keep(data: Prepared, name: str, seed: int) -> np.ndarray:
    rows = data.schema.space("item").rows
    vectors = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
    vectors[data.schema.space("item").size :] = 0
    item_vectors.save(data, name, vectors, {"space": "item"})
    return item_vectors.load(data, "item", name)


def config(data, *vectors, examples=256):
    c = configs.base()
    c.data.name, c.data.dir, c.data.history, c.data.vectors = "logs", str(data), 4, vectors
    c.model.update(name="din", attention=(8,), head=(8,), table=dict(dim=4, lr=0.5))
    c.train.batch = c.eval.batch = 64
    c.train.examples, c.eval.final = examples, ()
    return c


def rows_of(workdir) -> np.ndarray:
    run = open_run(workdir)
    tables = run.trees.tables
    return lanes.logical(np.asarray(tables["item"]["rows"]), DIM)


@pytest.mark.parametrize("use", ["frozen", "trained"])
def test_rows_begin_as_the_vectors(data, tmp_path, use):
    kept = item_vectors.load(Prepared(data), "item", "mine") * np.float32(0.5)
    train(config(data, ("item", "mine", use, 0.5)), tmp_path)
    moved = np.abs(rows_of(tmp_path) - kept).max(1) > 0
    assert not moved[:3].any()
    assert moved.any() == (use == "trained")
    assert not moved.all()  # rows that no batch touched are the vectors


def test_a_resumed_run_needs_the_vectors_it_began_from(data, tmp_path):
    asked = config(data, ("item", "swapped"))
    keep(Prepared(data), "swapped", seed=1)
    summary = train(asked, tmp_path)
    (tmp_path / "summary.json").unlink()
    assert train(asked, tmp_path)["examples"] == summary["examples"]
    (tmp_path / "summary.json").unlink()
    keep(Prepared(data), "swapped", seed=2)
    with pytest.raises(RunError, match="data.vectors"):
        train(asked, tmp_path)


def test_bad_choices_are_named(data):
    for entry, says in (
        ("item", "id space"),
        (("item",), "id space"),
        (("item", "mine", "fixed"), "'fixed'.*frozen"),
        (("item", "mine", "frozen", -1.0), "scale"),
        (("user", "mine"), "'item'.*'user'"),
        (("nosuch", "mine"), "nosuch"),
        (("item", "absent"), "absent.*recjax.data.vectors"),
    ):
        with pytest.raises(DataError, match=says):
            open_data(config(data, entry).data)
