"""What a run tells while it trains: its clock, a line for each window and evaluation, a profile, and a table at the end."""

from collections.abc import Mapping
import dataclasses
import re
import resource
import sys
from typing import Any

from absl import logging
from etils import epath
import jax
import tqdm

from recjax.runtime.run import RunError

# Adam moves a weight by at most its rate a step: so many steps at 1e-3 come to the size that weights begin with,
# 1 / sqrt(fan-in) or about 0.1. A model that stops before has hardly left its start.
FEW_STEPS = 200
SHOWN = ("auc", "logloss", "ece")  # of each split, beside its grouped AUC


@dataclasses.dataclass
class Clock:
    """Seconds of training, those of them that it waited for batches, and its steps; steps that compile do not count."""

    wall: float = 0.0
    waited: float = 0.0
    steps: int = 0

    def add(self, wall: float, waited: float) -> None:
        """One more step."""
        self.wall += wall
        self.waited += waited
        self.steps += 1

    def since(self, before: "Clock") -> "Clock":
        return Clock(
            self.wall - before.wall, self.waited - before.waited, self.steps - before.steps
        )

    def speed(self, batch: int) -> dict[str, float]:
        """Examples a second and the share of the time waited; nothing where no step was counted."""
        if not self.steps or not self.wall:
            return {}
        return dict(examples_per_s=self.steps * batch / self.wall, waited=self.waited / self.wall)


def bar(step: int, total: int) -> tqdm.tqdm:
    """Of one process, where there is a terminal."""
    off = True if jax.process_index() else None  # None: unless this is no terminal
    return tqdm.tqdm(total=total, initial=step, unit="step", mininterval=1.0, disable=off)


def peak_memory() -> int:
    """Bytes that the first device, or on CPU this process, has held at most."""
    stats = jax.local_devices()[0].memory_stats() or {}
    kilobyte = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte
    return int(stats.get("peak_bytes_in_use", own))


def window_line(
    step: int, total: int, values: Mapping[str, float], clock: Clock, batch: int
) -> str:
    """One line on a window: `values` are its means, `clock` is what it took."""
    speed = clock.speed(batch)
    told = {k: f"{k} {v:.4f}" for k, v in values.items() if "/" not in k or k.startswith("loss/")}
    parts = [f"step {step:,} of {total:,}", *told.values()]
    if speed:
        parts.append(f"{speed['examples_per_s']:,.0f} examples/s")
        parts.append(f"{speed['waited']:.0%} of the time waiting for batches")
        parts.append(f"{duration((total - step) * clock.wall / clock.steps)} left")
    return ", ".join([*parts, f"peak memory {peak_memory() / 2**30:.1f} GiB"])


def status(
    step: int, total: int, values: Mapping[str, float], clock: Clock, batch: int
) -> dict[str, Any]:
    """The same as numbers, for whoever watches the run from outside (status.json)."""
    speed = clock.speed(batch)
    left = (total - step) * clock.wall / clock.steps if speed else None
    return dict(
        step=step,
        total=total,
        loss=values.get("loss"),
        left_s=left,
        peak_memory=peak_memory(),
        **speed,
    )


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def shown(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The few figures of a split that a reader looks at first."""
    grouped = next((k for k in metrics if k.startswith("gauc_") and k.count("_") == 1), "")
    names = ("auc", grouped, *SHOWN[1:])
    return {k: metrics[k] for k in names if isinstance(metrics.get(k), (int, float))}


def evaluation_line(step: int, split: str, metrics: Mapping[str, Any]) -> str:
    """One line on an evaluation."""
    told = ", ".join(f"{k} {v:.4f}" for k, v in shown(metrics).items())
    return f"step {step:,}, {split}: {told}, {metrics.get('evaluated', 0):,} examples"


def table(summary: Mapping[str, Any], splits: Mapping[str, Mapping], batch: int) -> str:
    """The end of a run: the figures of its final splits, and what they cost."""
    rows = {name: shown(metrics) for name, metrics in splits.items()}
    popular = summary.get("popularity", {})
    columns = list(dict.fromkeys(k for row in rows.values() for k in row))
    lines = [["split", *columns, "auc of popularity"]]
    for name, row in rows.items():
        cells = [f"{row[k]:.4f}" if k in row else "" for k in columns]
        of_items = popular.get(name)
        lines.append([name, *cells, "not known" if of_items is None else f"{of_items:.4f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines)
    text = ["  ".join(line).rstrip() for line in padded]
    text.append(
        f"{summary['step']:,} steps of {batch:,}, {summary['examples']:,} examples in "
        f"{duration(summary['wall_s'])}, {summary['examples_per_s']:,.0f} examples/s"
    )
    return "\n".join(text)


def warn_of_few_steps(steps: int, batch: int) -> None:
    if steps < FEW_STEPS:
        logging.warning(
            "%d steps are too few to judge the model by: at usual rates its parameters have hardly left their start. "
            "Lower train.batch (%d now) or raise train.epochs until there are %d or more",
            steps, batch, FEW_STEPS,
        )  # fmt: skip


class Profile:
    """A profiler trace of the steps [begin, end) that `train.profile` names as "begin:end"; "" names none.

    Args:
      steps: `train.profile`.
      total: Steps of the run.
      folder: Gets the trace: `tensorboard --logdir` of it, or Perfetto, shows it.

    Raises:
      RunError: It names no such steps.
    """

    def __init__(self, steps: str, total: int, folder: epath.PathLike):
        self.folder, self.on = str(folder), False
        found = re.fullmatch(r"(\d+):(\d+)", steps)
        self.begin, self.end = (int(found[1]), int(found[2])) if found else (-1, -1)
        if steps and not 0 <= self.begin < self.end <= total:
            raise RunError(
                f"train.profile={steps!r} is not begin:end with 0 <= begin < end <= {total}, the steps of this run; "
                "10:20 traces ten"
            )

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exc):
        self.stop()

    def before(self, step: int, trees: Any) -> None:
        """Call before each step (numbered from 0) and after the last one, with what the last one made."""
        if step == self.begin or self.on and step == self.end:
            jax.block_until_ready(trees)  # whole steps, and only those
        if step == self.begin:
            jax.profiler.start_trace(self.folder)
            self.on = True
        elif self.on and step == self.end:
            self.stop()

    def stop(self) -> None:
        if self.on:
            jax.profiler.stop_trace()
            self.on = False
            logging.info("steps %d to %d are profiled in %s", self.begin, self.end, self.folder)
