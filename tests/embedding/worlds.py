"""Tables and batches of random ids for the embedding tests: any width, any number of shards."""

import types

import jax.numpy as jnp
import numpy as np

from recjax.schema import Feature, IdSpace, Schema, Table


class Mesh:
    """Only its size and platform matter to planning."""

    axis_names = ("data",)

    def __init__(self, size: int, platform: str = "cpu"):
        self.size = size
        self.devices = np.array([types.SimpleNamespace(platform=platform)])


def schema(*spaces: tuple[str, int]) -> Schema:
    features = tuple(Feature(name, "profile", name) for name, _ in spaces)
    return Schema(tuple(IdSpace(*s) for s in spaces), (*features, Feature("click", "label")))


def unique_ids(ids: np.ndarray, rows: int, slots: int) -> np.ndarray:
    """Raw ids -> ascending unique ones, filled up with rows + slot."""
    unique = np.unique(ids)
    return np.concatenate([unique, rows + np.arange(len(unique), slots)]).astype(np.int32)


def batch(schema: Schema, shards: int, slots: int, seed: int, ids=None) -> dict:
    """A host batch with only `ids` [S, U]: skewed draws, some slots unused, PAD among them."""
    r = np.random.default_rng(seed)
    out = {}
    for s in schema.id_spaces:
        draw = lambda rows=s.rows: np.append(r.integers(0, rows, slots - 1) ** 2 // rows, 0)  # noqa: E731
        raw = [draw() if ids is None else ids[s.name] for _ in range(shards)]
        out[s.name] = np.stack([unique_ids(x, s.rows, slots) for x in raw])
    return {"ids": out}


def row_gradients(schema: Schema, tables: tuple[Table, ...], batch: dict, seed: int) -> dict:
    """{path: [S, U, d]}, zero on unused slots as a real loss gives them."""
    r = np.random.default_rng(seed)
    out = {}
    for t in tables:
        ids = np.asarray(batch["ids"][t.id_space])
        g = r.normal(size=(*ids.shape, t.dim)).astype(np.float32)
        out[t.path] = g * (ids < schema.space(t.id_space).rows)[..., None]
    return out


def dense_gradient(t: Table, batch: dict, grads: np.ndarray, rows: int) -> jnp.ndarray:
    """[V, d]: the gradient that a dense optimizer would see, PAD's dropped."""
    out = np.zeros((rows + grads.size, t.dim), np.float32)
    np.add.at(out, np.asarray(batch["ids"][t.id_space]).ravel(), grads.reshape(-1, t.dim))
    out[0] = 0
    return jnp.asarray(out[:rows])
