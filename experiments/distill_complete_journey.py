"""Distillation on The Complete Journey: a SUAN teaches a LightSUAN, on the same batches or beforehand.

    python -m recjax.train --config=experiments/distill_complete_journey.py --workdir=runs/distill

`--config.model.weight=0` trains the same two side by side, undistilled: the control. `:offline` is the student alone, taught
by finished runs that were asked about its training split (`python -m recjax.teach`), named in `data.teachers`.
"""

from ml_collections import ConfigDict

from experiments import suan_complete_journey
from recjax import configs


def get_config(arg: str = "") -> ConfigDict:
    words = configs.arguments(arg, "offline", "decisive", "runlocal")
    c = suan_complete_journey.get_config(",".join(sorted(words - {"offline"})))
    suan = c.model.to_dict()
    student = {
        **suan,
        **dict(name="lightsuan", blocks=1, width=16, gate_pool="causal", local=16, dilation=4),
        **dict(head=(64, 32), head_norm="rms", head_activation="silu"),
    }
    if "offline" in words:
        c.model = ConfigDict(dict(name="distillation_offline", temperature=1.0, weight=0.3))
    else:
        c.model = ConfigDict(dict(name="distillation_online", temperature=2.0, weight=1.0))
        c.model.teacher = {**suan, "blocks": 2}
    c.model.student = student
    return c
