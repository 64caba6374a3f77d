"""Published figures of accelerators, per chip: what a compiled program is held against.

Sources, read 2026: docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e (tables "key specifications"). ICI is given there in
both directions together; half of it leaves a chip. H100: NVIDIA H100 data sheet (SXM: dense bf16, HBM3, NVLink).
What the compiler grants of the HBM is a little less than published.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      hbm_bytes: Capacity.
      flops: Dense bfloat16, a second.
      hbm: Bytes a second.
      link: Bytes a second that leave a chip for its neighbours.
    """

    hbm_bytes: float
    flops: float
    hbm: float
    link: float


GIB = 2**30
CHIPS = {
    "v5e": Chip(16 * GIB, 197e12, 819e9, 400e9 / 2),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 1200e9 / 2),
    "v6e": Chip(32 * GIB, 918e12, 1600e9, 800e9 / 2),
    "NVIDIA H100 80GB HBM3": Chip(80e9, 989e12, 3350e9, 900e9 / 2),
}
