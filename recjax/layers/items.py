"""Items seen from several sides: as a candidate, as an event of a list, as the trigger that opened the page.

An *item field* is a candidate feature (an id or a vector) that at least one of the other sides has too: the same id space,
or a vector of the same width. What only a candidate has (its place on the page, its promotion) describes the exposure, not
the item.
"""

import jax
import jax.numpy as jnp

from recjax.inputs import Inputs
from recjax.schema import Feature, Schema, SchemaError

CANDIDATE, TRIGGER = "candidate", "trigger"  # sides; every other side is a list's name


def side_features(schema: Schema, side: str) -> list[Feature]:
    """Ids and vectors of a side: "candidate", "trigger" or a history list."""
    chosen = (
        schema.select(side) if side in (CANDIDATE, TRIGGER) else schema.select("history", list=side)
    )
    return [f for f in chosen if f.kind != "dense"]


def counterparts(
    schema: Schema, fields: tuple[Feature, ...], side: str
) -> tuple[Feature | None, ...]:
    """For each candidate field the feature of `side` that says the same, or None; each is used once."""
    free, found = side_features(schema, side), []
    for f in fields:
        same = (x for x in free if (x.id_space, x.vector) == (f.id_space, f.vector))
        match = next(same, None)
        if match is not None:
            free.remove(match)
        found.append(match)
    return tuple(found)


def item_fields(model: str, schema: Schema, *sides: str) -> tuple[Feature, ...]:
    """Candidate features that at least one of `sides` has too; SchemaError naming the model without any."""
    own = tuple(side_features(schema, CANDIDATE))
    found = [counterparts(schema, own, side) for side in sides]
    both = tuple(
        f for f, *match in zip(own, *found, strict=True) if any(m is not None for m in match)
    )
    if not both:
        raise SchemaError(
            f"{model} needs a candidate id or vector that a history list or the trigger has too; there is none"
        )
    return both


def value(inputs: Inputs, feature: Feature) -> jax.Array:
    """An embedded id, or a vector: [..., width]."""
    return (inputs.emb if feature.kind == "id" else inputs.dense)[feature.name]


def read_items(inputs: Inputs, fields: tuple[Feature, ...], side: str) -> jax.Array | None:
    """Item fields of a side on the last axis, zeros where it lacks one: [B, C, D], [B, L, D] or, of the trigger, [B, D].

    None where the side has none of them.
    """
    if side == CANDIDATE:
        return jnp.concatenate([value(inputs, f) for f in fields], axis=-1)
    found = counterparts(inputs.schema, fields, side)
    first = next((f for f in found if f is not None), None)
    if first is None:
        return None
    lead = value(inputs, first).shape[:-1]
    parts = [
        jnp.zeros((*lead, value(inputs, f).shape[-1]), value(inputs, f).dtype)
        if match is None
        else value(inputs, match)
        for f, match in zip(fields, found, strict=True)
    ]
    return jnp.concatenate(parts, axis=-1)
