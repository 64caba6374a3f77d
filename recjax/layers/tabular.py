"""One vector per field of a row: what models of people and coupons start from."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs
from recjax.layers.mlp import MaskedBatchNorm
from recjax.schema import Schema

ROLES = ("profile", "context", "candidate")


class FieldVectors(nn.Module):
    """Fields [N, F, d] of every candidate of a batch, N = B C.

    An id field is its row; a number x_i becomes x_i V_i + c_i, so that a row of the result is one field; a history
    is the mean of its events, one field for each id field it has.

    Attributes:
      width: d, of the rows too.
      norm: "batchnorm" (no affine) or "identity", of the numbers.
    """

    schema: Schema
    width: int
    norm: str = "batchnorm"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool) -> jax.Array:
        c = inputs.candidates
        parts = [
            each_candidate(inputs.emb[f.name], c, f.axes)
            for f in self.schema.select(*ROLES, kind="id")
        ]
        for f in self.schema.select("history", kind="id"):
            mask = inputs.mask[f.list][..., None]
            pooled = (inputs.emb[f.name] * mask).sum(1) / jnp.maximum(mask.sum(1), 1)
            parts.append(each_candidate(pooled, c, "B"))
        fields = [jnp.stack(parts, axis=1)] if parts else []  # [N, F_id, d]
        numbers = numbers_of(self.schema, inputs)
        if numbers is not None:
            if self.norm == "batchnorm":
                valid = None if inputs.valid is None else inputs.valid.reshape(-1)
                numbers = MaskedBatchNorm(affine=False, name="numbers")(
                    numbers.astype(jnp.float32), train=train, valid=valid
                )
            shape = numbers.shape[1], self.width
            v = self.param("v", nn.initializers.normal(0.1), shape, self.param_dtype)
            bias = self.param("c", nn.initializers.normal(0.1), shape, self.param_dtype)
            fields.append((numbers[..., None] * v + bias).astype(self.dtype))
        return jnp.concatenate(fields, axis=1)


def numbers_of(schema: Schema, inputs: Inputs) -> jax.Array | None:
    """Dense and vector features of every candidate, [B C, K], or None when there are none."""
    parts = []
    for f in schema.select(*ROLES):
        if f.kind != "id":
            x = inputs.dense[f.name]
            x = x if f.kind == "vector" else x[..., None]
            parts.append(each_candidate(x, inputs.candidates, f.axes))
    return jnp.concatenate(parts, axis=-1) if parts else None


def each_candidate(x: jax.Array, candidates: int, axes: str) -> jax.Array:
    """[B, k] or [B, C, k] -> [B C, k]."""
    if axes == "BC":
        return x.reshape(-1, x.shape[-1])
    return jnp.repeat(x, candidates, axis=0) if candidates != 1 else x
