"""SUAN over two billion items: what a pod has to hold. Shapes only; nothing of this size is trained here.

    python -m launch.plan --config=experiments/suan_planet.py --topology=v5p:4x4x8

2.0e9 x 64 float32 rows with row-wise Adagrad, global batch 32,768, history 100; two blocks of width 128 in bfloat16,
recomputed in the backward pass, over sixteen microbatches (the activations of a whole batch would take more memory than
the update of the rows). Plans: launch/plans/. `--config=experiments/suan_planet.py:runlocal` with
`python -m recjax.train` trains the same model, small, on a planted log.
"""

from ml_collections import ConfigDict

from experiments import suan_logs
from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    c = suan_logs.get_config(arg)
    c.model.table = dict(dim=64, optimizer="rowwise_adagrad", lr=0.05)
    c.model.update(blocks=2, heads=2, width=128, gate_pool="causal", remat=True, max_history=0)
    c.model.update(
        head=(512, 256), head_norm="rms", head_activation="silu", compute_dtype="bfloat16"
    )
    if "runlocal" in configs.arguments(arg, "runlocal"):
        c.model.update(blocks=1, width=32, head=(64, 32))
        c.model.table.dim = 16
        return c
    c.data.name = "launch.abstract_data"
    c.data.prepare = dict(item=2_000_000_000, category=20_000, profile=(12, 4, 400, 200))
    c.data.history = 100
    c.train.batch = 32_768
    c.train.microbatches = 16
    return c
