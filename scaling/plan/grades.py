"""Ladders of model sizes: the one that comes with SUAN, LightSUAN, NIF and AMEN, and those that a study's config brings.

The paper's grade table was not found; the ladder here is ours [proposal]. Embedding width stays fixed along it, so a grade
changes the blocks and the head and nothing else, and the head grows with the width (4D-2D-1): the released
1024-512-256 head has about 0.88 M parameters and would drown the small grades.

A study of any other model says its own: `sweep.ladder = {"small": {"width": 16}, "large": {"width": 64}}`, the options of the
model that a grade sets. What each grade costs is counted by `scaling.plan.counts`.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from ml_collections import ConfigDict

from recjax import configs


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

    def flow_options(self) -> dict:
        """Model options of this grade for `nif` and `amen`: layers, width and heads of generator and CTR model alike."""
        return dict(layers=self.blocks, width=self.width, heads=self.heads)


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
OPTIONS = {
    "suan": Grade.options,
    "lightsuan": Grade.options,
    "nif": Grade.flow_options,
    "amen": Grade.flow_options,
}
REFERENCE_WIDTH = 16  # where a study's dense rate is tuned
Ladder = Mapping[str, Mapping[str, Any]]  # grade -> what it sets


def named(name: str) -> Grade:
    """The rung of the ladder with this name; KeyError lists them."""
    if name not in LADDER:
        raise KeyError(f"grade {name!r} is unknown; there are {', '.join(LADDER)}")
    return LADDER[name]


def options(grade: Grade, model: str) -> dict:
    """A rung's options of a model; KeyError where the ladder is not of this model."""
    if model not in OPTIONS:
        raise KeyError(
            f"model {model!r} has no ladder of its own: set sweep.ladder = {{'small': {{...model options...}}, ...}}, or "
            "leave grade out of the rows"
        )
    return OPTIONS[model](grade)


def climb(config: ConfigDict, row: Mapping[str, Any], ladder: Ladder | None) -> dict[str, Any]:
    """Sets what a plan's row says of its grade, blocks and width; returns those columns of its trials.

    Args:
      config: The trial's.
      row: Of the plan. Without a grade the model is the experiment's own.
      ladder: The study's own: grade -> options of the model, and dotted keys of any other part of the config. None: `LADDER`.

    Raises:
      KeyError: A grade that the ladder lacks, or a model that has none.
    """
    shape = {k: row[k] for k in ("blocks", "width") if k in row}
    if ladder is None and "grade" in row:
        rung = dataclasses.replace(named(row["grade"]), **shape)
        config.model.update(options(rung, row.get("model.name", config.model.name)))
        return dict(grade=row["grade"], blocks=rung.blocks, width=rung.width)
    if "grade" in row and row["grade"] not in (ladder or {}):
        raise KeyError(
            f"grade {row['grade']!r} is not in sweep.ladder; there are {', '.join(ladder or {})}"
        )
    for key, value in {**((ladder or {}).get(row.get("grade", "")) or {}), **shape}.items():
        configs.assign(config, key if "." in key else f"model.{key}", value)
    return dict(grade=row.get("grade", config.model.name.rpartition(".")[2]), **shape)


def learning_rate(width: int, base: float, exponent: float) -> float:
    """The dense rate at a width: base (16 / D)^exponent, tuned at small grades and checked at larger ones."""
    return float(f"{base * (REFERENCE_WIDTH / width) ** exponent:.3g}")
