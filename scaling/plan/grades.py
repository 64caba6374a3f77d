"""Grades: a ladder of model sizes, defined once for SUAN and LightSUAN, and what each costs, counted analytically.

The paper's grade table was not found; this ladder is ours [proposal]. Embedding width stays fixed along it, so a
grade changes the blocks and the head and nothing else, and the head grows with the width (4D-2D-1): the released
1024-512-256 head has about 0.88 M parameters and would drown the small grades.

"N" is never a bare number here. A trial has

    n_blocks            parameters of the attention blocks
    n_head              of the MLP and the logit after them
    n_dense             both, and biases, positions and projections: everything that optax updates
    n_embedding         rows times width of the tables
    flops_per_example   forward, of one example with one candidate; a training step costs about three times that
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, TypedDict, cast

from recjax.layers import fields
from recjax.models import lightsuan, suan
from recjax.models.parts import building
from recjax.schema import Schema
from scaling.plan import flow_grades
from scaling.plan.flow_grades import SOFTMAX

TRAIN_FACTOR = 3  # forward, and twice as much backward


class Size(TypedDict):
    """What a model is, in numbers (see the module docstring)."""

    n_blocks: int
    n_head: int
    n_dense: int
    n_embedding: int
    flops_per_example: int


SIZES = tuple(Size.__annotations__)


@dataclasses.dataclass(frozen=True)
class Grade:
    """One rung.

    Attributes:
      blocks: l.
      width: D, divisible by 4 and by `heads`.
      heads: H.
      history: The history length that goes with it where length grows along the ladder; a sweep may fix another.
    """

    blocks: int
    width: int
    heads: int = 2
    history: int = 20

    def options(self) -> dict:
        """Model options of this grade, for `suan` and `lightsuan` alike."""
        return dict(
            blocks=self.blocks,
            width=self.width,
            heads=self.heads,
            head=(4 * self.width, 2 * self.width),
            head_norm="rms",
            head_activation="silu",
        )


# Block parameters at d = 8. Grade 0 is the quickstart's smallest; two lie below it.
LADDER = {
    "-2": Grade(1, 8),  # 1.2 k
    "-1": Grade(1, 12),  # 2.6 k
    "0": Grade(1, 16),  # 4.4 k
    "1": Grade(2, 24),  # 19 k
    "2": Grade(2, 40, 2, 50),  # 52 k
    "3": Grade(2, 56, 4, 50),  # 102 k
    "4": Grade(3, 80, 4, 100),  # 309 k
    "5": Grade(4, 112, 4, 200),  # 0.8 M
    "6": Grade(6, 160, 4, 500),  # 2.5 M
    "7": Grade(8, 320, 8, 1000),  # 13 M
    "8": Grade(12, 640, 8, 1000),  # 78 M
}


def options(grade: Grade, model: str) -> dict:
    """A rung's options of a model."""
    return flow_grades.rung(grade) if model in flow_grades.MODELS else grade.options()


REFERENCE_WIDTH = 16  # where a study's dense rate is tuned


def named(name: str) -> Grade:
    """The rung of the ladder with this name; KeyError lists them."""
    if name not in LADDER:
        raise KeyError(f"grade {name!r} is unknown; there are {', '.join(LADDER)}")
    return LADDER[name]


def learning_rate(grade: Grade, base: float, exponent: float) -> float:
    """The dense rate of a grade: base (16 / D)^exponent, tuned at small grades and checked at larger ones."""
    return float(f"{base * (REFERENCE_WIDTH / grade.width) ** exponent:.3g}")


def count(
    schema: Schema, model: Mapping[str, Any], history: int | Mapping[str, int]
) -> dict[str, int]:
    """Parameters and forward FLOPs of a `suan`, `lightsuan`, `nif` or `amen` config, without building it.

    Args:
      schema: Of the batches.
      model: `name` and options, as in a config's `model`.
      history: L, or the length of each list.

    Returns:
      n_blocks, n_head, n_dense, n_embedding, flops_per_example (see the module docstring).

    Raises:
      KeyError: A model that is not counted here.
    """
    if model["name"] in flow_grades.MODELS:
        return flow_grades.count(schema, model, cast(Mapping[str, int], history))
    s = _Shape.of(schema, model, cast(int, history))
    rows = {f.id_space for f in schema.features if f.kind == "id"}
    return dict(
        n_blocks=s.module.blocks * s.block_parameters(),
        n_head=s.head_parameters(),
        n_dense=s.module.blocks * s.block_parameters() + s.head_parameters() + s.other_parameters(),
        n_embedding=s.dim * sum(schema.space(r).rows for r in rows),
        flops_per_example=s.blocks_flops() + s.head_flops() + s.other_flops(),
    )


@dataclasses.dataclass(frozen=True)
class _Shape:
    """The numbers that the counts are made of.

    Attributes:
      module: The model's options, as its Flax module.
      sparse: LightSUAN's pattern where it is computed sparsely, else None.
      dim: d.
      profile: n2, profile tokens.
      fields: n1, ids of an event.
      candidate: Ids of a candidate.
      other: Width of what bypasses the blocks.
      numbers: Dense features among it, which are normalised.
      tokens: T.
    """

    module: suan.SUAN
    sparse: lightsuan.LocalDilated | None
    dim: int
    profile: int
    fields: int
    candidate: int
    other: int
    numbers: int
    tokens: int

    @classmethod
    def of(cls, schema: Schema, model: Mapping[str, Any], history: int) -> "_Shape":
        options = {k: building.plain(v) for k, v in model.items()}
        name, table = options.pop("name"), options.pop("table", {})
        if name not in ("suan", "lightsuan"):
            raise KeyError(f"model {name!r} is not counted; suan, lightsuan, nif and amen are")
        pattern = None
        if name == "lightsuan":
            own = {f.name for f in dataclasses.fields(lightsuan.LocalDilated)}
            pattern = lightsuan.LocalDilated(**{k: options.pop(k) for k in own & options.keys()})
            options.setdefault("gate_pool", "causal")
        known = building.module_options(suan.SUAN, suan.INTERNAL)
        dim = building.make_tables(schema, table)[0].dim
        module = suan.SUAN(schema, dim=dim, **{k: options[k] for k in known if k in options})
        ids = lambda *roles: len(schema.select(*roles, kind="id"))  # noqa: E731
        events = fields.history_list(schema, module.history)
        numbers = [f for f in schema.select("candidate", "context", "profile") if f.kind != "id"]
        wide = sum(f.vector or 1 for f in numbers)
        return cls(
            module, pattern if pattern and pattern.is_sparse(history) else None, dim, ids("profile"),
            len(schema.select("history", kind="id", list=events)), ids("candidate"),
            dim * ids("candidate", "context") + wide, wide, history + 1,
        )  # fmt: skip

    @property
    def width(self) -> int:
        return self.module.model_width

    @property
    def hidden(self) -> int:
        return int((3 if self.module.ffn == "swiglu" else 4.5) * self.width)

    # ---- parameters

    def block_parameters(self) -> int:
        """4 D^2 self-attention, 2 D^2 + 2 d D cross-attention, 0.75 D^2 gate, the FFN, three norms."""
        d, m = self.width, self.module
        out = 4 * d * d + 3 * d * (2 if m.norm == "layer" else 1)
        if m.af_net:
            out += 2 * d * d + 2 * self.dim * d + (3 * (d // 4) * d if m.alignment else 0)
        matrices = 3 if m.ffn == "swiglu" else 2
        return out + matrices * d * self.hidden + (matrices - 1) * self.hidden + d

    def head_input(self) -> int:
        return self.width + self.profile * self.dim + self.other

    def head_parameters(self) -> int:
        widths = (self.head_input(), *self.module.head)
        dense = sum((a + 1) * b for a, b in zip(widths, widths[1:], strict=False))
        norm = {"rms": 1, "layer": 2, "batch": 2, "none": 0}[self.module.head_norm]
        slopes = self.module.head_activation in ("dice", "prelu")
        logit = len(self.module.outputs) * (widths[-1] + 1 + (2 if self.module.logit_bn else 0))
        return dense + (norm + slopes) * sum(self.module.head) + logit

    def other_parameters(self) -> int:
        m, d = self.module, self.width
        length = (m.max_history or self.tokens - 1) + 1
        out = length * d if m.abs_pos else 0
        if m.model_width != m.concat_width:
            out += (self.fields * self.dim + 1) * d
        if m.target == "projected" and m.target_aware:
            out += (self.candidate * self.dim + 1) * d
        if m.attention_bias:
            tables = (m.heads if m.per_head_bias else 1) * (m.blocks if m.per_block_bias else 1)
            out += tables * (2 * length - 1 + (m.time_buckets + 1 if m.time_bias else 0))
        out += (self.dim + 1) * d if m.time_emb else 0
        return out + (2 * self.numbers if m.dense_norm == "batchnorm" else 0)

    # ---- FLOPs: two for a multiply-add, one for any other operation on an element, none for a move

    def pairs(self, behaviours: bool = True) -> int:
        """(query, key) pairs of a block that are computed: the candidate's, and those of the behaviours."""
        n = self.tokens - 1
        own = len((self.sparse or suan.FullPattern(self.module.causal)).keys(n)) + 1
        if not behaviours:
            return own
        return own + n * sum(x.allowed.shape[1] for x in self.layouts(n))

    def layouts(self, n: int):
        return (self.sparse or suan.FullPattern(self.module.causal)).layouts(n)

    def blocks_flops(self) -> int:
        """All blocks. Only the candidate's row leaves the last one: what it does not need is not computed."""
        m, t = self.module, self.tokens
        gated = (
            m.af_net and m.alignment
        )  # the candidate's gate needs the behaviours' attention, not their FFN
        last = self.block_flops(t if gated else 1, 1)
        return (m.blocks - 1) * self.block_flops(t, t) + last

    def block_flops(self, rows: int, out_rows: int) -> int:
        """One block: `rows` go through the attentions (keys and values of all), `out_rows` through gate and FFN."""
        d, t, m = self.width, self.tokens, self.module
        norm = 6 if m.norm == "rms" else 9
        out: float = 4 * (rows + t) * d * d + self.pairs(rows > 1) * (4 * d + SOFTMAX * m.heads)
        out += norm * (t + rows + out_rows) * d + 2 * (rows + out_rows) * d
        if m.af_net:
            out += 4 * rows * d * d + 4 * self.profile * self.dim * d
            out += rows * self.profile * (4 * d + 6 * m.heads)
            if m.alignment:
                pooled = out_rows if m.gate_pool == "causal" else 1
                out += pooled * (1.5 * d * d + 6 * d) + 3 * rows * d + 4 * out_rows * d
        matrices, acts = (3, 6) if m.ffn == "swiglu" else (2, 2)
        return int(out + out_rows * (2 * matrices * d * self.hidden + acts * self.hidden + d))

    def head_flops(self) -> int:
        widths = (self.head_input(), *self.module.head)
        products = sum(2 * a * b for a, b in zip(widths, widths[1:], strict=False))
        return products + 12 * sum(self.module.head) + 2 * widths[-1] * len(self.module.outputs)

    def other_flops(self) -> int:
        """Projections, and the biases, which all blocks share unless they have their own."""
        m, d, n = self.module, self.width, self.tokens - 1
        out = 2 * self.tokens * d
        if m.model_width != m.concat_width:
            out += 2 * n * self.fields * self.dim * d
        if m.target == "projected" and m.target_aware:
            out += 2 * self.candidate * self.dim * d
        if m.attention_bias:
            out += BIAS * self.pairs() * (m.blocks if m.per_block_bias else 1)
        return int(out + (2 * self.tokens * self.dim * d if m.time_emb else 0))


BIAS = 9  # of a pair: the gap's bucket (six), two look-ups' sum, the mask
