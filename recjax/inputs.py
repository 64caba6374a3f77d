"""What a model sees of a batch: embedded features, dense features, masks and ages.

`embed` turns a batch (`recjax.batch.Batch`) and the gathered rows into `Inputs`. Raw ids need no transfer of their own: they are
`ids[space][pos]` (`raw_ids`).
"""

from typing import TYPE_CHECKING, Any

from flax import struct
import jax
import jax.numpy as jnp

from recjax.batch import Batch
from recjax.schema import Feature, Schema, table_path
from recjax.trees import Rows


@struct.dataclass
class Inputs:
    """Embedded batch.

    Attributes:
      emb: id feature -> [B, d] | [B, C, d] | [B, L, d]; padding ids give zero rows.
      dense: dense feature -> [B] | [B, C] | [B, L], vectors with their width appended.
      mask: list -> bool [B, L].
      age: list -> int32 [B, L], seconds.
      schema: Static; says which feature plays which role.
      valid: bool [B, C], False on filling slots; None: all are real.
    """

    emb: dict[str, jax.Array]
    dense: dict[str, jax.Array]
    mask: dict[str, jax.Array]
    age: dict[str, jax.Array]
    schema: Schema = struct.field(pytree_node=False)
    valid: jax.Array | None = None

    if TYPE_CHECKING:  # struct.dataclass adds it

        def replace(self, **changes: Any) -> "Inputs": ...

    def ids(self, *roles: str, list: str = "") -> list[jax.Array]:  # noqa: A002
        """Embedded id features of some roles, in schema order."""
        return [self.emb[f.name] for f in self.schema.select(*roles, kind="id", list=list)]

    def concat(self, *roles: str, list: str = "") -> jax.Array:  # noqa: A002
        """Embedded id features of some roles on the last axis: [..., n * d]."""
        return jnp.concatenate(self.ids(*roles, list=list), axis=-1)

    def numbers(self, *roles: str, list: str = "") -> jax.Array | None:  # noqa: A002
        """Dense and vector features of some roles on the last axis, or None when there are none."""
        parts = [
            self.dense[f.name] if f.kind == "vector" else self.dense[f.name][..., None]
            for f in self.schema.select(*roles, list=list)
            if f.kind != "id"
        ]
        return jnp.concatenate(parts, axis=-1) if parts else None

    @property
    def candidates(self) -> int:
        """C, the number of candidates of a request; 1 where nothing is chosen (a randomised trial)."""
        f = next(iter(self.schema.select("candidate")), None)
        if f is None:
            return 1
        return (self.emb if f.kind == "id" else self.dense)[f.name].shape[1]


def transform(feature: Feature, x: jax.Array) -> jax.Array:
    """A dense feature's declared transform; counts and ages are never negative."""
    return jnp.log1p(jnp.maximum(x, 0.0)) if feature.transform == "log1p" else x


def take(rows: jax.Array, pos: jax.Array) -> jax.Array:
    """rows [S, U, d], pos [S * b, ...] of shard-local positions -> [S * b, ..., d], shard by shard."""
    shards = rows.shape[0]
    local = pos.reshape(shards, -1, *pos.shape[1:])
    out = jax.vmap(lambda r, p: r.at[p].get(mode="promise_in_bounds"))(rows, local)
    return out.reshape(*pos.shape, rows.shape[-1])


def raw_ids(schema: Schema, batch: Batch, feature: str) -> jax.Array:
    """The ids of one id feature, int32 of the feature's own shape."""
    space = schema.feature(feature).id_space
    return take(batch["ids"][space][..., None], batch["pos"][feature])[..., 0]


def _combine(feature: Feature, rows: jax.Array, present: jax.Array) -> jax.Array:
    total = rows.sum(-2)
    if feature.combiner == "mean":
        total = total / jnp.maximum(present.sum(-1, keepdims=True), 1)
    return total


def embed(
    schema: Schema,
    rows: Rows,
    batch: Batch,
    *,
    owner: str = "",
    dtype: jnp.dtype = jnp.float32,
) -> Inputs:
    """Looks up every input feature among the rows gathered for its owner's tables.

    Args:
      schema: Of the batch.
      rows: table path -> [S, U, d], from `embedding.gather`.
      batch: What was gathered for.
      owner: Whose tables to use (`Table.owner`).
      dtype: Compute type of the result; tables keep their own.

    Returns:
      The model's `Inputs`. Features with the role target or label are not among them.
    """
    emb, dense = {}, {}
    for f in schema.features:
        if f.role in ("label", "target"):
            continue
        if f.kind == "id":
            path = table_path(owner, f.id_space)
            x = take(rows[path], batch["pos"][f.name]).astype(dtype)
            if f.multi:
                x = _combine(f, x, raw_ids(schema, batch, f.name) != 0)
            emb[f.name] = x
        else:
            dense[f.name] = transform(f, batch["dense"][f.name]).astype(dtype)
    return Inputs(
        emb=emb,
        dense=dense,
        mask=batch["mask"],
        age=batch["age"],
        schema=schema,
        valid=batch.get("valid"),
    )


def embed_targets(
    schema: Schema,
    rows: Rows,
    batch: Batch,
    *,
    owner: str = "",
    dtype: jnp.dtype = jnp.float32,
) -> dict[str, jax.Array]:
    """Id features of the role target, [B, L, d] each: for losses. `embed` leaves them out, so no input can be one."""
    out = {}
    for f in schema.select("target", kind="id"):
        path = table_path(owner, f.id_space)
        if path in rows:
            out[f.name] = take(rows[path], batch["pos"][f.name]).astype(dtype)
    return out
