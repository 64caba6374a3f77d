"""Data that is only shapes: what `launch.plan` compiles for where no data set of that size is at hand.

A config names it as `data.name = "launch.abstract_data"` and the sizes of the vocabularies as `data.prepare`:

    item      items; the candidate is one, the history holds them
    category  categories of items
    profile   sizes of the fields that describe a user

It has no examples, so it cannot be trained on.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from recjax.data.loading.layout import BatchError, Layout
from recjax.schema import NUM_RESERVED, Feature, IdSpace, Schema


@dataclasses.dataclass(frozen=True)
class AbstractData:
    """A schema, and how much of it a batch holds.

    Attributes:
      schema: Of the batches.
      history: L.
      candidates: C.
    """

    schema: Schema
    history: int
    candidates: int

    def layout(self, batch_size: int, shards: int) -> Layout:
        return Layout(
            self.schema,
            batch_size,
            {s: self.history for s in self.schema.lists},
            self.candidates,
            shards,
        )

    def batches(self, *args, **keys):
        raise BatchError(
            "launch.abstract_data is shapes without examples: python -m launch.plan compiles for it; "
            "to train, set data.name to a data set"
        )


def open_data(config: Mapping[str, Any], *_) -> AbstractData:
    """As `recjax.data.open_data` calls it."""
    sizes = dict(config["prepare"])
    spaces = {"item": sizes["item"], "category": sizes["category"]}
    profile = {f"profile_{i}": n for i, n in enumerate(sizes["profile"])}
    features = [Feature(f"user_{name}", "profile", name) for name in profile]
    features += [Feature(name, "candidate", name) for name in spaces]
    features += [Feature(f"history_{name}", "history", name, list="history") for name in spaces]
    schema = Schema(
        tuple(IdSpace(n, int(size) + NUM_RESERVED) for n, size in (spaces | profile).items()),
        (*features, Feature("click", "label")),
    )
    return AbstractData(schema, config["history"], config["candidates"])
