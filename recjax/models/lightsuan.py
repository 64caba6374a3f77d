"""LightSUAN: SUAN with sparse self-attention and many candidates per pass.

Same paper, sources and tags as `recjax.models.suan`. Parameters are SUAN's: only the allowed pairs
change. With delta = i - j >= 0 [FIG-M; the rule reproduces the figure cell by cell]

    local    delta <= k - 1                               the window of k includes the token itself
    dilated  delta = anchor + m r, m = 1, 2, ...          beyond the window; anchor = k - 1

as one union under one softmax. The figure (k = 2) cannot tell the anchor k - 1 from 1; with k - 1
the gap to the first dilated key is r for any k, so that is the default [proposal], and `anchor`
sets another. k and r of the paper were not found; 16 and 4 (n = 100), 50 and 10 (n = 1000) are
ours. We take the mask to hold in all blocks and in training [proposal]. `gate_pool="causal"` by
default, for SUAN's reasons: "full" would let candidates see each other, and is folded to one
candidate per row.

`sparse=True` computes allowed pairs only (`recjax.layers.local_dilated`); `sparse=False` masks the dense
form instead: the same numbers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from recjax.layers.local_dilated import LocalDilated
from recjax.models import suan
from recjax.models.parts import building
from recjax.schema import Schema
from recjax.system import System


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    labels: Iterable[str] | None = None,
    local: int = 16,
    dilation: int = 4,
    anchor: int | None = None,
    sparse: bool = True,
    gate_pool: str = "causal",
    **options,
) -> System:
    """LightSUAN as a system.

    Args:
      schema: As SUAN's.
      table: To `Schema.tables`; its dim is d.
      compute_dtype: Of activations.
      param_dtype: Of dense parameters.
      labels: One output each.
      local: k, the window, the token itself included.
      dilation: r.
      anchor: Of the dilated keys; None is k - 1.
      sparse: The sparse kernel, or the masked dense form.
      gate_pool: "causal", "behaviour", or "full" (folds the candidates).
      **options: Fields of `suan.SUAN`.
    """
    own = (
        "local",
        "dilation",
        "anchor",
        "sparse",
        "table",
        "compute_dtype",
        "param_dtype",
        "labels",
    )
    accepted = building.module_options(suan.SUAN, suan.INTERNAL)
    del accepted["causal"]
    building.check_options("lightsuan", options, accepted, own)
    pattern = LocalDilated(local, dilation, anchor, sparse)
    options = {**options, "gate_pool": gate_pool}
    return suan.make_system(schema, table, compute_dtype, param_dtype, labels, pattern, options)
