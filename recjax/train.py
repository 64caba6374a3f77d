"""Trains an experiment: python -m recjax.train --config=experiments/suan_complete_journey.py --workdir=runs/suan

The same command resumes an interrupted run and leaves a finished one alone. The loop is `recjax.training.loop`.
"""

from absl import flags

from recjax import command, configs
from recjax.runtime import hosts
from recjax.runtime.run import set_up
from recjax.training.loop import train


def main(_) -> None:
    with hosts.joined():
        set_up()
        train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    _CONFIG = configs.define_flag()
    _WORKDIR = flags.DEFINE_string("workdir", None, "run directory, local or bucket")
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
