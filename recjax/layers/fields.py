"""From a batch's features to the tensors several models start from."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs
from recjax.layers.mlp import MaskedBatchNorm
from recjax.schema import Feature, Schema, SchemaError


def history_list(schema: Schema, name: str = "") -> str:
    """`name`, or the schema's first history list; it must have an id feature."""
    with_ids = list(dict.fromkeys(f.list for f in schema.select("history", kind="id")))
    if not with_ids or (name and name not in with_ids):
        wanted = f"history list {name!r}" if name else "history list"
        raise SchemaError(
            f"the model needs a {wanted} with an id feature; the schema has {with_ids or 'none'}"
        )
    return name or with_ids[0]


def matched_fields(schema: Schema, events: str) -> tuple[Feature | None, ...]:
    """For each id field of the list `events`, the candidate field of the same id space, or None.

    A candidate field is used once, in schema order.
    """
    free = list(schema.select("candidate", kind="id"))
    matches = []
    for f in schema.select("history", kind="id", list=events):
        match = next((c for c in free if c.id_space == f.id_space), None)
        if match is not None:
            free.remove(match)
        matches.append(match)
    return tuple(matches)


def candidate_as_event(schema: Schema, inputs: Inputs, events: str) -> jax.Array:
    """Candidates in the fields of a list, [B, C, n1 * d]; zeros where only events have one."""
    own = schema.select("history", kind="id", list=events)
    pairs = list(zip(own, matched_fields(schema, events), strict=True))
    present = [inputs.emb[c.name] for _, c in pairs if c is not None]
    if not present:
        raise SchemaError(
            f"no candidate field shares an id space with the history list {events!r}, so it cannot "
            "be written as an event; use a projected target or add the field"
        )

    def nothing(event: Feature) -> jax.Array:
        width = inputs.emb.get(event.name, present[0]).shape[-1]
        return jnp.zeros((*present[0].shape[:-1], width), present[0].dtype)

    parts = [nothing(h) if c is None else inputs.emb[c.name] for h, c in pairs]
    return jnp.concatenate(parts, axis=-1)


def shared_fields(schema: Schema, events: str) -> tuple[tuple[Feature, Feature], ...]:
    """(history field, candidate field) of the same id space, for the fields that both have."""
    own = schema.select("history", kind="id", list=events)
    both = zip(own, matched_fields(schema, events), strict=True)
    return tuple((h, c) for h, c in both if c is not None)


def event_and_candidate(schema: Schema, inputs: Inputs, events: str) -> tuple[jax.Array, jax.Array]:
    """Events [B, L, n * d] and candidates [B, C, n * d] in the n fields that both have."""
    pairs = shared_fields(schema, events)
    past = jnp.concatenate([inputs.emb[h.name] for h, _ in pairs], axis=-1)
    return past, jnp.concatenate([inputs.emb[c.name] for _, c in pairs], axis=-1)


def events_alone(schema: Schema, inputs: Inputs, events: str) -> list[jax.Array]:
    """The id fields of a list that no candidate has, [B, L, d] each: the hour or the kind of an event."""
    shared = {h.name for h, _ in shared_fields(schema, events)}
    own = schema.select("history", kind="id", list=events)
    return [inputs.emb[f.name] for f in own if f.name not in shared]


def check_shared_fields(model: str, schema: Schema, events: str) -> None:
    """Raises SchemaError unless events and candidates have a field in common."""
    if not shared_fields(schema, events):
        raise SchemaError(
            f"{model} needs a candidate field in an id space of the history list {events!r}; "
            "there is none"
        )


def beside_event(schema: Schema, events: str) -> Schema:
    """The schema without the candidate fields that `event_and_candidate` gives: what else there is."""
    return schema.without(c.name for _, c in shared_fields(schema, events))


def per_candidate(x: jax.Array, candidates: int) -> jax.Array:
    """[B, D] -> [B, C, D] (a broadcast)."""
    return jnp.broadcast_to(x[:, None], (x.shape[0], candidates, x.shape[1]))


def pooled_lists(schema: Schema, inputs: Inputs) -> list[jax.Array]:
    """Each history id field averaged over its events, [B, d] each; zeros without events."""
    out = []
    for f in schema.select("history", kind="id"):
        seen = inputs.mask[f.list][..., None]
        total = jnp.where(seen, inputs.emb[f.name], 0).sum(1)
        out.append(total / jnp.maximum(seen.sum(1), 1).astype(total.dtype))
    return out


def stack_ids(schema: Schema, inputs: Inputs, *roles: str) -> jax.Array | None:
    """Id features of per-request roles as tokens, [B, n, d], or None when there are none."""
    parts = [inputs.emb[f.name] for f in schema.select(*roles, kind="id")]
    return jnp.stack(parts, axis=1) if parts else None


def fold_candidates(schema: Schema, inputs: Inputs) -> Inputs:
    """[B, C] requests as [B * C, 1]: each candidate with its own copy of everything else."""
    c = inputs.candidates
    if c == 1:
        return inputs
    own = {f.name for f in schema.features if f.axes == "BC"}

    def fold(name: str, x: jax.Array) -> jax.Array:
        return x.reshape(-1, 1, *x.shape[2:]) if name in own else jnp.repeat(x, c, axis=0)

    def fold_all(tree):
        return {k: fold(k, x) for k, x in tree.items()}

    valid = valid_of(inputs)
    return inputs.replace(
        **({} if valid is None else {"valid": valid.reshape(-1, 1)}),
        emb=fold_all(inputs.emb),
        dense=fold_all(inputs.dense),
        mask=fold_all(inputs.mask),
        age=fold_all(inputs.age),
    )


def valid_of(inputs: Inputs) -> jax.Array | None:
    """bool [B, C] of slots that are no filling, or None (all) where `Inputs` does not carry it."""
    return getattr(inputs, "valid", None)


class OtherFeatures(nn.Module):
    """Everything a head sees beside the encoder's output, [B, C, *], or None when there is nothing.

    Candidate and context ids, flattened, and the numbers of candidate, context, profile and trigger.

    Attributes:
      schema: Of the inputs.
      norm: `batchnorm` or `identity`, of the numbers.
      ids: Roles whose ids are included.
    """

    schema: Schema
    norm: str = "batchnorm"
    ids: tuple[str, ...] = ("candidate", "context")
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @classmethod
    def beside(cls, schema: Schema, events: str, norm: str, **types: Any) -> "OtherFeatures":
        """What there is beside an event and the candidate as one (`event_and_candidate`), profile ids included."""
        return cls(beside_event(schema, events), norm, ("candidate", "context", "profile"), **types)

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool) -> jax.Array | None:
        c = inputs.candidates
        numbers, parts = [], []
        for f in self.schema.select("candidate", "context", "profile", "trigger"):
            x = inputs.emb[f.name] if f.kind == "id" else inputs.dense[f.name]
            if f.kind == "dense":
                x = x[..., None]
            if f.axes == "B":
                x = per_candidate(x, c)
            if f.kind != "id":
                numbers.append(x)
            elif f.role in self.ids:
                parts.append(x)
        if numbers:
            parts.append(
                self._normalise(jnp.concatenate(numbers, axis=-1), train, valid_of(inputs))
            )
        return jnp.concatenate(parts, axis=-1) if parts else None

    def _normalise(self, x, train, valid):
        if self.norm == "identity":
            return x.astype(self.dtype)
        if self.norm != "batchnorm":
            raise ValueError(
                f"norm of dense features {self.norm!r} is unknown; use batchnorm or identity"
            )
        norm = MaskedBatchNorm(dtype=self.dtype, param_dtype=self.param_dtype, name="numbers")
        return norm(x.astype(jnp.float32), train=train, valid=valid)


class Flat(nn.Module):
    """Everything a model without attention reads, [B, C, *]: what DIN reads, each history field averaged."""

    schema: Schema
    norm: str = "batchnorm"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool) -> jax.Array:
        roles = ("candidate", "context", "profile", "trigger")
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        other = OtherFeatures(self.schema, self.norm, roles, name="other", **types)(
            inputs, train=train
        )
        parts = [] if other is None else [other]
        parts += [per_candidate(x, inputs.candidates) for x in pooled_lists(self.schema, inputs)]
        return jnp.concatenate(parts, axis=-1)
