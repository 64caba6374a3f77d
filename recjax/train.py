"""Trains an experiment: python -m recjax.train --config=experiments/suan_complete_journey.py --workdir=runs/suan

The same command resumes an interrupted run and leaves a finished one alone. The loop is `recjax.training.loop`.

--print_config prints the config as it would be run, and --dry_run what the run would cost; neither needs a --workdir.
"""

import json

from absl import flags

from recjax import command, configs
from recjax.runtime import hosts
from recjax.runtime.run import plain, set_up
from recjax.training.loop import train


def main(_) -> None:
    if _PRINT_CONFIG.value:
        print(json.dumps(plain(configs.check(_CONFIG.value)), indent=1))
        return
    with hosts.joined():
        set_up()
        if _DRY_RUN.value:
            from recjax.training.dry_run import dry_run

            dry_run(_CONFIG.value)
        else:
            train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    _CONFIG = configs.define_flag()
    _WORKDIR = flags.DEFINE_string("workdir", None, "run directory, local or bucket")
    _PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "print the config as JSON and end")
    _DRY_RUN = flags.DEFINE_bool(
        "dry_run", False, "compile one step, print its memory and time, and end"
    )
    flags.mark_flag_as_required("config")
    flags.register_multi_flags_validator(
        ["workdir", "print_config", "dry_run"],
        lambda given: bool(given["workdir"] or given["print_config"] or given["dry_run"]),
        message="--workdir is missing: where the run is written (--dry_run and --print_config need none)",
    )
    command.run(main)
