"""The ladder for NIF and AMEN: the rungs of `scaling.plan.grades`, and what each costs, counted without building a model.

A rung's blocks, width and heads are the layers, width and heads of generator and CTR model alike; tables keep their width. The
generator's n_blocks are the layers of its moveline and of its decoder, AMEN's those of its own moveline (the frozen
generator is not trained, and is counted in its FLOPs alone).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from recjax.layers import fields
from recjax.layers.moveline import BUCKETS, Fields
from recjax.models.parts import building
from recjax.schema import Schema

MODELS = ("nif", "amen")
# Operations of a logit and head: scale, bias, mask, maximum, difference, exponential, sum, quotient.
SOFTMAX = 8


def count(schema: Schema, model: Mapping[str, Any], lengths: Mapping[str, int]) -> dict[str, int]:
    """n_blocks, n_head, n_dense, n_embedding and flops_per_example, as `scaling.plan.grades.count` has them.

    Args:
      schema: Of the batches.
      model: `name` and options.
      lengths: list -> events read.
    """
    o = {**DEFAULTS, **{k: building.plain(v) for k, v in model.items()}}
    found = Fields.of(schema, o["moveline_with_item"])
    dim = building.make_tables(schema, o["table"], dim=16)[0].dim
    return (_Nif if o["name"] == "nif" else _Amen)(schema, found, o, dim, lengths).count()


DEFAULTS = dict(
    width=64, heads=4, layers=2, slots=8, decoder="parallel", table={}, moveline_with_item=False,
    head=(256, 128, 64), flow="nif", sam=True, dense_norm="batchnorm",
)  # fmt: skip


class _Nif:
    """Stage 1. FLOPs are those of the score of one candidate: two for a multiply-add."""

    def __init__(self, schema, found, options, dim, lengths):
        self.schema, self.found, self.o, self.dim = schema, found, options, dim
        self.d, self.layers, self.slots = options["width"], options["layers"], options["slots"]
        self.events, self.past = lengths[found.line], lengths[found.history]

    def count(self) -> dict[str, int]:
        d = self.d
        dense = self.encoders() + (self.slots + 2) * d + 4 * d + self.decoder_blocks() + d * d
        dense += d * d if self.o["decoder"] == "ar" else 0
        return dict(
            n_blocks=self.moveline_blocks() + self.decoder_blocks(),
            n_head=0,
            n_dense=dense,
            n_embedding=self.rows(self.found.spaces),
            flops_per_example=self.flow_flops() + self.point_flops() + 2 * self.slots * d,
        )

    def rows(self, spaces: Iterable[str]) -> int:
        return self.dim * sum(self.schema.space(s).rows for s in spaces)

    def moveline_blocks(self) -> int:
        return self.layers * (12 * self.d**2 + 9 * self.d)

    def decoder_blocks(self) -> int:
        return self.layers * (16 * self.d**2 + 11 * self.d)

    def encoders(self) -> int:
        """Widening of items and scenes, tower, ages and gaps, norms, moveline."""
        d = self.d
        own = 2 * self.dim * d + 2 * (d * d + d) + 2 * BUCKETS * d + 4 * d
        return own + self.moveline_blocks()

    def attention_flops(self, queries: int, keys: int, own_keys: bool = True) -> int:
        """Projections of queries and output, of keys and values, and the pairs."""
        projected = 4 * queries * self.d**2 + (4 * keys * self.d**2 if own_keys else 0)
        return projected + queries * keys * (4 * self.d + SOFTMAX * self.o["heads"])

    def encoder_flops(self) -> int:
        d, n = self.d, self.events
        block = self.attention_flops(n, n) + 16 * n * d * d + 40 * n * d
        return 2 * (n + self.past) * self.dim * d + self.layers * block

    def flow_flops(self) -> int:
        d, k = self.d, self.slots
        memory = self.events + self.past
        block = self.attention_flops(k, k) + self.attention_flops(k, memory) + 16 * k * d * d
        return self.encoder_flops() + self.layers * (block + 40 * k * d) + 2 * k * d * d

    def point_flops(self) -> int:
        return 2 * self.dim * self.d + 4 * self.d**2


class _Amen(_Nif):
    """Stage 2."""

    def count(self) -> dict[str, int]:
        d, e = self.d, self.dim
        dense = (
            self.encoders() + 3 * 4 * d * d + (d + self.scene_ids() * e) * d + d + 3 * (d * d + d)
        )
        flops = self.encoder_flops() + self.looks_flops()
        if self.o["flow"] == "none":  # no cosines, so no tower
            dense -= 2 * (d * d + d)
            flops -= self.point_flops() - 2 * self.dim * d
        else:
            dense += 4 * d * d + (7 * d * d + 5 * d if self.o["sam"] else 0)
            flops += self.flow_flops() + self.adapter_flops()
        spaces = {f.id_space for f in self.schema.features if f.kind == "id" and f.role != "target"}
        frozen = self.rows(self.found.spaces) if self.o["flow"] != "none" else 0
        normed = 2 * self.numbers() if self.o["dense_norm"] == "batchnorm" else 0
        return dict(
            n_blocks=self.moveline_blocks(),
            n_head=self.head(),
            n_dense=dense + self.head() + normed,
            n_embedding=self.rows(spaces) + frozen,
            flops_per_example=flops + 2 * self.head(),
        )

    def scene_ids(self) -> int:
        return len(self.found.scene)

    def other(self):
        beside = fields.beside_event(self.schema, self.found.history)
        return beside.select("candidate", "context", "profile")

    def numbers(self) -> int:
        return sum(f.vector or 1 for f in self.other() if f.kind != "id")

    def head(self) -> int:
        ids = sum(f.kind == "id" for f in self.other())
        wide = 6 * self.d + (2 * self.d + 3 if self.o["flow"] != "none" else 0)
        widths = (wide + ids * self.dim + self.numbers(), *self.o["head"])
        dense = sum((a + 1) * b for a, b in zip(widths, widths[1:], strict=False))
        return dense + sum(self.o["head"]) + widths[-1] + 1

    def looks_flops(self) -> int:
        """Items, scenes, and scenes as items, which are mapped first."""
        d = self.d
        looks = self.attention_flops(1, self.past) + 2 * self.attention_flops(1, self.events)
        query = 2 * (d + self.scene_ids() * self.dim) * d + 2 * d * d
        return looks + query + 4 * self.events * d * d + self.point_flops()

    def adapter_flops(self) -> int:
        d, k = self.d, self.slots
        adapter = 2 * 5 * d * d + 4 * k * d * d + 30 * k * d if self.o["sam"] else 0
        return adapter + self.attention_flops(1, k) + 2 * k * d


def rung(grade: Any) -> dict[str, int]:
    """Model options of a rung."""
    return dict(layers=grade.blocks, width=grade.width, heads=grade.heads)
