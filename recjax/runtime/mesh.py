"""One mesh helper: a single "data" axis over all devices.

Batches are split along it; dense parameters are replicated. How tables are placed is recjax.embedding's business.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from recjax.batch import Batch
from recjax.schema import SchemaError


def make(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A 1-D mesh. Auto axes: since JAX 0.9 `make_mesh` gives Explicit ones, under which table[ids] raises."""
    devices = devices if devices is not None else jax.devices()
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def zeros(mesh: Mesh, like: Any) -> Callable[[], Any]:
    """Makes replicated zeros in the shapes of a tree; device_put of NumPy zeros would wait for the other processes."""
    shapes = jax.eval_shape(lambda tree: tree, like)
    make = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)  # noqa: E731
    return jax.jit(make, out_shardings=replicated(mesh))


def everywhere(mesh: Mesh, tree: Any) -> Any:
    """Numbers that every process has, explicitly onto all devices; nothing waits for the other processes."""
    if mesh.size == 1:
        return jax.device_put(tree, mesh.devices.item())
    put = functools.partial(jax.make_array_from_process_local_data, replicated(mesh))
    return jax.tree.map(lambda x: put(np.asarray(x)), tree)


def check_batch_size(mesh: Mesh, batch_size: int, microbatches: int = 1) -> None:
    """Raises when the devices (and microbatches) do not divide the batch."""
    n = mesh.size * microbatches
    if batch_size % n:
        raise SchemaError(
            f"batch size {batch_size} is not divisible by {mesh.size} devices x {microbatches} microbatches; "
            f"use a multiple of {n}"
        )


def put(mesh: Mesh, batch: Batch) -> Batch:
    """A host batch (this process's part) onto the devices, split along its leading axis."""
    if mesh.size == 1:
        return jax.device_put(batch, mesh.devices.item())
    sharding = NamedSharding(mesh, P("data"))
    if "ids" not in batch:  # a source of another kind (one graph): every device sees all of it
        sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
