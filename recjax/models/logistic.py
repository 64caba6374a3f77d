"""Logistic regression: a weight per id, a linear term in the numbers. The one to beat.

    logit = b + sum over ids of w[id] + mean over history events of w'[id] + v . numbers

Histories share the weights of their id spaces' tables up to a learned factor per field (w' = a_f
w), so a table per id space suffices. No interaction is possible; what a model gains over this is
interactions.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs
from recjax.layers.fields import OtherFeatures
from recjax.models.parts import building
from recjax.schema import Schema
from recjax.system import System, pointwise


class Logistic(nn.Module):
    """The module.

    Attributes:
      schema: Of the inputs.
      outputs: Names of the logits; each has its own slopes, factors and bias, all share the id
        weights.
      dense_norm: "batchnorm" or "identity", of dense features.
    """

    schema: Schema
    outputs: tuple[str, ...] = ("logits",)
    dense_norm: str = "batchnorm"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool = False) -> dict[str, jax.Array]:
        """Logits {output: float32 [B, C]}."""
        numbers = OtherFeatures(self.schema, self.dense_norm, ids=(), dtype=self.dtype)(
            inputs, train=train
        )
        parts = [("ids", 1.0, self._id_weights(inputs)), ("numbers", 0.0, numbers)]
        parts = [(name, start, x) for name, start, x in parts if x is not None]
        init = nn.initializers.constant
        out = {}
        for name in self.outputs:
            logit = self.param(f"{name}_bias", init(0.0), ())
            for part, start, x in parts:
                slopes = self.param(f"{name}_{part}", init(start), (x.shape[-1],))
                logit = logit + (x @ slopes.astype(x.dtype)).astype(jnp.float32)
            out[name] = logit
        return out

    def _id_weights(self, inputs: Inputs) -> jax.Array | None:
        """One number per id field, [B, C, fields], None without any; a history's is the mean over its events."""
        parts = []
        for f in self.schema.select("profile", "context", "candidate", "history", kind="id"):
            if self.schema.space(f.id_space).vectors:
                continue  # a vector that stands for the id: no weight
            w = inputs.emb[f.name][..., 0]
            if f.role == "history":
                events = inputs.mask[f.list]
                w = (w * events).sum(1) / jnp.maximum(events.sum(1), 1).astype(w.dtype)
            if w.ndim == 1:
                w = jnp.broadcast_to(w[:, None], (w.shape[0], inputs.candidates))
            parts.append(w)
        return jnp.stack(parts, axis=-1) if parts else None


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    labels: Iterable[str] | None = None,
    dense_norm: str = "batchnorm",
) -> System:
    """Logistic regression as a system; `table` may set anything but dim, which is 1."""
    building.check_choice("logistic", "dense_norm", dense_norm, ("batchnorm", "identity"))
    heads = building.make_heads(schema, labels)
    tables = building.make_tables(schema, {**table, "dim": 1})
    module = Logistic(schema, tuple(heads), dense_norm, jnp.dtype(compute_dtype))
    return pointwise(
        schema,
        module,
        tables,
        heads=heads,
        compute_dtype=module.dtype,
        owner=table.get("owner", ""),
        counts_as=building.counting("", f"({'|'.join(heads)})_"),
    )
