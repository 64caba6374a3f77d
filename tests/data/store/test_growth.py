"""A second day's data goes on with the first day's ids, and a run with its rows."""

import jax
import numpy as np
import polars as pl
import pytest

from recjax import configs
from recjax.data.logs import prepare as logs
from recjax.data.store.growth import Growth
from recjax.data.store.prepared import DataError, Prepared
from recjax.data.store.vocabulary import DAY
from recjax.runtime import checkpoint
from recjax.runtime.run import Run, RunError, Stop
from recjax.schema import SchemaError
from recjax.training.loop import Trainer, train
from tests.messages import raises

FIRST = 1_700_000_000 // DAY * DAY
MAPPING = """
user, item, time, labels = "user", "item", "at", ["click"]
counters, min_count = False, 1
context_columns, dense = ["price"], ["price"]
split = {"validation": 0.1, "test": 0.1}
"""


def log(tmp_path, name, day, items, rows=160):
    """A day of impressions of some items; `at` in seconds."""
    rng = np.random.default_rng(day)
    at = np.sort(FIRST + day * DAY + rng.integers(0, DAY, rows))
    frame = {
        "user": [f"u{x}" for x in rng.integers(5, size=rows)],
        "item": rng.choice(items, rows),
        "at": at,
        "price": rng.random(rows),
        "click": rng.integers(0, 2, rows),
    }
    file = tmp_path / f"{name}.parquet"
    pl.DataFrame(frame).write_parquet(file)
    (tmp_path / "mapping.py").write_text(MAPPING)
    return lambda **keys: logs.prepare(
        tmp_path / "data" / name, source=str(file), mapping=str(tmp_path / "mapping.py"),
        exact_dir=True, block_size=64, **keys,
    )  # fmt: skip


def config(data, **keys):
    c = configs.base()
    c.data.name, c.data.dir, c.data.history = "logs", str(data), 4
    c.model.name = "logistic"
    c.train.batch = c.eval.batch = 32
    c.train.log_every = 4
    c.eval.final = ()
    for key, value in keys.items():
        c.update_from_flattened_dict({key.replace("__", "."): value})
    return c


def begin(c, workdir):
    """Trees a run begins with."""
    with Stop() as stop, Run(workdir, c) as run:
        return jax.device_get(Trainer(c, run, stop).trees)


def last(workdir):
    return checkpoint.read(workdir / "checkpoints")[0]["trees"]


def ids_of(path):
    return dict(Prepared(path).vocabulary("item").select("value", "id").iter_rows())


OLD = [f"i{k}" for k in range(12)]  # 3 + 12 ids: 16 rows, one of them spare


@pytest.fixture
def monday(tmp_path):
    """The first day, prepared, and a run on it."""
    data = log(tmp_path, "monday", 0, OLD)()
    train(config(data), tmp_path / "a")
    return tmp_path, data


def test_a_run_goes_on_with_old_rows_and_reclaimed_ones_begin_anew(monday):
    tmp_path, first = monday
    wednesday = log(tmp_path, "wednesday", 2, [*OLD[:9], "n0", "n1", "n2"])
    with raises(SchemaError, "'item'", "3 new", "1 of", "16 rows"):
        wednesday(extends=str(first))
    second = wednesday(extends=str(first), reclaim_days=1.0)
    before, after = ids_of(first), ids_of(second)
    gone, unseen = set(OLD) - set(after), set(OLD[9:]) & set(after)
    assert len(gone) == 2 and len(unseen) == 1 and sorted(after.values()) == list(range(3, 16))
    assert {v: after[v] for v in OLD if v not in gone} == {
        v: before[v] for v in OLD if v not in gone
    }

    c = config(second, continue_from=str(tmp_path / "a"))
    old, new = last(tmp_path / "a"), begin(config(second), tmp_path / "fresh")
    went_on = begin(c, tmp_path / "look")
    kept = [0, 1, 2, *(before[v] for v in OLD if v not in gone)]
    begun = [after[v] for v in ("n0", "n1", "n2")]
    trained = [before[v] for v in gone]
    for leaf, x in went_on.tables["item"].items():  # rows and optimizer state
        y, z = (np.asarray(t.tables["item"][leaf]) for t in (old, new))
        np.testing.assert_array_equal(x[kept], y[kept])
        np.testing.assert_array_equal(x[begun], z[begun])
        assert not np.array_equal(
            y[trained], z[trained]
        )  # the control: there was something to reset
    for part in ("dense", "opt", "state"):
        for x, y in zip(*(jax.tree.leaves(getattr(t, part)) for t in (went_on, old)), strict=True):
            np.testing.assert_array_equal(x, y)

    train(c, tmp_path / "b")  # what the second day does not speak of stays to the bit
    still = [before[v] for v in unseen]
    for leaf, x in last(tmp_path / "b").tables["item"].items():
        np.testing.assert_array_equal(np.asarray(x)[still], went_on.tables["item"][leaf][still])
        assert not np.array_equal(np.asarray(x)[kept], went_on.tables["item"][leaf][kept])


def test_data_that_does_not_extend_the_run_s_is_refused(monday):
    tmp_path, first = monday
    other = log(tmp_path, "other", 2, [*OLD[:9], "n0", "n1", "n2"])()
    c = config(other, continue_from=str(tmp_path / "a"))
    with raises(RunError, "'user'", "prepare"):
        train(c, tmp_path / "b")
    wide = log(tmp_path, "wide", 2, OLD)(head_room=2.0)
    c = config(wide, continue_from=str(tmp_path / "a"))
    with raises(RunError, "'user'", "24", "8", "prepare"):
        train(c, tmp_path / "c")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(head_room=-1.0), "head_room"),
        (dict(head_room=1.0, extends="x"), "head_room.*extends"),
        (dict(reclaim_days=1.0), "reclaim_days.*extends"),
    ],
)
def test_growth_that_makes_no_sense_is_named(keys, message):
    with pytest.raises(DataError, match=message):
        Growth(**keys)
