"""One exported fake system for most of the tests here, and a way to export others."""

import types

import jax
import numpy as np
import polars as pl
import pytest

from recjax import embedding
from recjax.inputs import embed
from recjax.serving import artifact
from recjax.trees import Trees
from tests import fakes


def system_and_trees(kind: str):
    """A fake system with values: rows of standard deviation 1, so that every table matters."""
    system = fakes.build(fakes.SCHEMA, kind=kind, table={"init_scale": 1.0})
    batch = (fakes.graph_at if kind == "graph" else fakes.batch_at)(0, 4, 3)
    tables = embedding.init(jax.random.key(0), system.tables, fakes.SCHEMA)
    rows = embedding.gather(system.tables, tables, batch) if tables else {}
    dense, state = jax.jit(system.init)(jax.random.key(1), rows, batch)
    frozen = {}
    if kind == "stage_two":
        inputs = embed(fakes.SCHEMA, rows, batch, owner="generator")
        frozen["generator"] = fakes.Pooled().init(jax.random.key(2), inputs, train=False)["params"]
    return system, Trees(dense, tables, state, frozen), batch


def vocabularies() -> dict[str, pl.DataFrame]:
    """Items are strings "a3", "a4", ...; users are integers 1003, 1004, ..., with the ids in another order."""
    items, users = np.arange(3, fakes.ITEMS - 2), np.arange(3, fakes.USERS)[::-1]
    return {
        "item": pl.DataFrame({"value": [f"a{i}" for i in items], "id": items}),
        "user": pl.DataFrame({"value": users + 1000, "id": users}),
    }


def eager(exported, batch) -> dict[str, np.ndarray]:
    """What the model itself answers, compiled for speed but never exported."""
    trees = exported.trees
    rows = embedding.gather(exported.system.tables, trees.tables, batch) if trees.tables else {}
    out = exported.answer(trees.params(rows), batch)
    return jax.tree.map(np.asarray, out)


def export(path, kind="batch_norm", **options):
    system, trees, batch = system_and_trees(kind)
    options = {"platforms": ("cpu",), "rows_format": "float32", "vocab": vocabularies(), **options}
    config = {"name": kind, "seed": 0}
    manifest = artifact.export_artifact(path, system, trees, batch=batch, config=config, **options)
    answer = jax.jit(system.exports["score"].fn)
    return types.SimpleNamespace(
        path=path, system=system, trees=trees, batch=batch, manifest=manifest, answer=answer
    )


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """`batch_norm` with float32 rows and vocabularies; tests do not change it."""
    metadata = {"keep_prob": 0.25}
    return export(tmp_path_factory.mktemp("serving") / "artifact", metadata=metadata)


@pytest.fixture(scope="session")
def loaded(exported):
    return artifact.load(exported.path)
