"""Online distillation on The Complete Journey: a SUAN teacher and a LightSUAN student on the same batches.

    python -m recjax.train --config=experiments/distil_complete_journey.py --workdir=runs/distil

`--config.model.weight=0` trains the same two side by side, undistilled: the control.
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey


def get_config(arg: str = "") -> ConfigDict:
    c = suan_complete_journey.get_config(arg)
    suan = c.model.to_dict()
    c.model = ConfigDict(dict(name="distil", temperature=2.0, weight=1.0))
    c.model.teacher = {**suan, "blocks": 2}
    c.model.student = {
        **suan,
        **dict(name="lightsuan", blocks=1, width=16, gate_pool="causal", local=16, dilation=4),
        **dict(head=(64, 32), head_norm="rms", head_activation="silu"),
    }
    return c
