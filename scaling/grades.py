"""Grades: a ladder of model sizes, defined once for SUAN and LightSUAN.

The paper's grade table was not found; this ladder is ours [proposal]. Embedding width stays fixed along it, so a
grade changes the blocks and the head and nothing else, and the head grows with the width (4D-2D-1): the released
1024-512-256 head has about 0.88 M parameters and would drown the small grades.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Grade:
    """One rung.

    Attributes:
      blocks: l.
      width: D, divisible by 4 and by `heads`.
      heads: H.
    """

    blocks: int
    width: int
    heads: int = 2

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


# Block parameters at d = 8: about 4.5 k, 20 k, 53 k, 0.2 M, 0.8 M, 2.5 M, 13 M.
LADDER = {
    "0": Grade(1, 16),
    "1": Grade(2, 24),
    "2": Grade(2, 40),
    "3": Grade(4, 56, 4),
    "4": Grade(4, 112, 4),
    "5": Grade(6, 160, 4),
    "6": Grade(8, 320, 8),
}
