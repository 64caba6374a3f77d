"""From raw logs to a served student: python -m scaling.run --config=scaling/configs/quickstart.py --workdir=DIR

Prepares the data, trains the sweep, fits the law, trains teacher and student, exports the student, scores through it
and writes report.html. Every stage leaves its file in the workdir; the same command goes on from the last one.
"""

import sys

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from recjax import command, configs
from recjax.data import open_data
from recjax.evaluation import score_files
from recjax.runtime.run import set_up
from recjax.training import transfer
from scaling import distillation, report, stages
from scaling.plan import processes, study, sweep


def run(
    config: ConfigDict,
    workdir: str,
    shard: tuple[int, int] = (0, 1),
    only_report: bool = False,
    workers: int = 1,
) -> str:
    """All stages; returns the path of report.html.

    A shard of several trains its part of the sweep and stops there unless that was the last of it. With `only_report`
    nothing is trained: the report is of what has finished so far. Several `workers` share out the cores of a CPU.
    """
    root, about, plan = epath.Path(workdir), stages.About.of(config), study.Plan.of(config.sweep)
    root.mkdir(parents=True, exist_ok=True)
    configs.check(config.experiment)
    logging.info("=== 1/5 data")
    data = open_data(config.experiment.data)
    transfer.check_splits(config.experiment, data)
    logging.info("=== 2/5 sweep")
    trials = study.trials(plan, config.experiment, data.schema, data.identity["hash"])
    if only_report:
        rows = sweep.collect(trials, root)
    else:
        rows = processes.run_sweep(trials, root, shard, plan.members, workers)
    study.save(config, root)
    waiting = len(trials) - len({r["trial"] for r in rows})
    if only_report and not rows:
        raise ValueError(
            f"no trial in {workdir} has finished yet, so there is nothing to report; of a study that kept its trials.jsonl "
            "only, python -m scaling.refit writes the report"
        )
    if waiting and not only_report:
        logging.info(
            "%d of %d trials are left to other shards or processes; the last of them writes the report",
            waiting,
            len(trials),
        )
        return ""
    logging.info("=== 3/5 law")
    stages.law_stage(rows, root, about.metrics, about.directions)
    logging.info("=== 4/5 teacher, student, artifact")
    section = distillation.section(config)
    if section is not None and not only_report:
        student = stages.distillation_stage(section, config.experiment, root)
        stages.serving_stage(root, student, config.candidates)
    logging.info("=== 5/5 report")
    path = stages.report_stage(about, root, stages.data_report(data))
    logging.info("report: %s", path)
    return path


def main(_) -> None:
    report.require()
    set_up()
    config = _CONFIG.value
    with config.unlocked():
        config.path = next((a.partition("=")[2] for a in sys.argv if a.startswith("--config=")), "")
    shard = score_files.parse_shard(_SHARD.value)
    run(config, _WORKDIR.value, shard, _REPORT.value, _PROCESSES.value)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "scaling/configs/<name>.py[:arg]", lock_config=True
    )
    _WORKDIR = flags.DEFINE_string("workdir", None, "sweep directory, local or bucket")
    _REPORT = flags.DEFINE_bool("only_report", False, "report what has finished, train nothing")
    _PROCESSES = flags.DEFINE_integer(
        "processes", 1, "share the sweep out among the cores of this CPU", lower_bound=1
    )
    _SHARD = flags.DEFINE_string("shard", "0/1", "i/n: this process's part of the sweep")
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
