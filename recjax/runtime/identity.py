"""What identifies a run, said once: the config keys that do not, and what each of them may do.

A key that `USES` does not name is part of what a run is: another value of it is another run. Resuming, sweeps, programs
of several members, distillation and reports all read it here.
"""

from collections.abc import Mapping
import enum
from typing import Any


class Use(enum.Flag):
    """What a key may do beside the rest of its config."""

    NONE = 0
    FREE = (
        enum.auto()
    )  # differ whenever a run goes on, finished or not: the result does not depend on it
    LATE = enum.auto()  # differ until the run is finished: what is judged at its end
    PLACE = enum.auto()  # differ between trials that are the same one: data are known by their hash, not by where they lie
    MEMBER = enum.auto()  # differ among runs that train together in one program
    RECIPE = (
        enum.auto()
    )  # differ without making a variant of the model: how it was trained or judged, not what it is


# A key, or with a dot at its end all keys of a section.
USES: Mapping[str, Use] = {
    "data.workers": Use.FREE | Use.PLACE,
    "data.dir": Use.FREE | Use.PLACE,
    "data.source": Use.FREE | Use.PLACE,
    "train.log_every": Use.FREE,
    "train.checkpoint_every": Use.FREE,
    "train.keep": Use.FREE,
    "train.log_to": Use.FREE | Use.PLACE,
    "train.profile": Use.FREE | Use.PLACE,
    "train.on_non_finite": Use.FREE | Use.PLACE,
    # Not FREE, for those are left out of the config.json of runs of several members that are there already.
    "eval.final": Use.LATE,
    "seed": Use.MEMBER,
    "opt.lr": Use.MEMBER,
    "opt.clip": Use.MEMBER,
    "model.table.lr": Use.MEMBER,
    "opt.": Use.RECIPE,
    "eval.": Use.RECIPE,
    "needs": Use.RECIPE,
}


def may(key: str, use: Use) -> bool:
    """Whether a dotted key has one of these uses."""
    section = f"{key.partition('.')[0]}."
    return bool((USES.get(key, Use.NONE) | USES.get(section, Use.NONE)) & use)


def keys(use: Use) -> tuple[str, ...]:
    """The keys that have one of these uses; sections are left out."""
    return tuple(k for k, own in USES.items() if own & use and not k.endswith("."))


def without(config: Mapping[str, Any], use: Use) -> dict[str, Any]:
    """A flat config ({"opt.lr": 1e-3}) less the keys that have one of these uses."""
    return {k: v for k, v in config.items() if not may(k, use)}
