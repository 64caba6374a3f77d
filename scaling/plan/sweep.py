"""Sweeps: trials as configs, run once each, and collected into one trials.jsonl.

A trial is a training run evaluated at log-spaced points of a single pass; each point is a row, and so is the end of
each cooldown forked before a point. Trials of equal shape train together (`scaling.plan.together`). Trials are keyed by the
hash of their config, so a sweep that was killed and started again ends with the same rows, and `--shard=i/n` processes
may share a directory: the rows of each run are a file of their own until they are collected.

    runs/<run>/            run directory of one or several members
    runs/<run>/failed.json the last attempt's error; gone once an attempt succeeds
    trials/<run>.json      {trial: rows} of a finished run's members
    trials.jsonl           the rows of all finished trials, in the sweep's order
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import hashlib
import json
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from recjax import configs
from recjax.runtime.identity import Use, without
from recjax.runtime.run import (
    Busy,
    Interrupted,
    RunError,
    flat,
    plain,
    read_json,
    read_jsonl,
    write_json,
    write_text,
)
from recjax.training.loop import train
from scaling.plan import together
from scaling.plan.counts import SIZES
from scaling.plan.rows import FILE, Row, TrialRow


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      config: What is trained.
      columns: What names it in trials.jsonl: of a `TrialRow`, or a search's keys; `data` is the hash of the data it reads.
      cooldown: Share of each point's examples in a fork whose rate falls to zero; 0 is none.
    """

    config: ConfigDict
    columns: Mapping[str, Any]
    cooldown: float = 0.0

    @functools.cached_property
    def run(self) -> str:
        """Hash of everything that can change the result: the config, and which data, not where it lies.

        Keys at their defaults are left out, so that a key added later does not disown finished trials.
        """
        usual, keys = defaults(), without(flat(plain(self.config)), Use.PLACE)
        keys = {k: v for k, v in keys.items() if k not in usual or usual[k] != v}
        keys["data"] = self.columns.get("data")
        if keys.get("data.name", "").startswith(
            "worlds."
        ):  # hashed by the name that they had first
            keys["data.name"] = keys["data.name"].replace("worlds.", "synthetic.", 1)
        if self.cooldown:
            keys["cooldown"] = self.cooldown
        return _digest(keys)

    @property
    def shape(self) -> tuple:
        """Trials of one shape can share a program."""
        return together.shape(self.config), self.cooldown, self.columns.get("data")


def defaults() -> dict[str, Any]:
    """The flat config that says nothing: a key that has its value here is as good as absent."""
    return flat(plain(configs.base()))


def _digest(keys: Any) -> str:
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:12]


# ---- running


def run_sweep(
    trials: list[Trial],
    workdir: epath.PathLike,
    shard: tuple[int, int] = (0, 1),
    members: int | Callable[[Trial], int] = 1,
) -> list[Row]:
    """Runs this shard's trials and collects all finished ones; returns the rows of trials.jsonl.

    A run that fails is recorded in its `failed.json` and the sweep goes on; it is tried again next time. A run that
    another process holds is left to it.

    Args:
      trials: In the order in which they are to run.
      workdir: The sweep's directory.
      shard: (i, n): every n-th group of trials from the i-th on. Shards may run at once.
      members: How many trials of one shape may share a program, a number or one for each trial; 1: each by itself.

    Raises:
      RuntimeError: Some runs failed; the message names them.
    """
    root, failed = epath.Path(workdir), []
    (root / "trials").mkdir(parents=True, exist_ok=True)
    mine = groups(trials, members)[shard[0] :: shard[1]]
    for i, group in enumerate(mine):
        done = finished(root)
        todo = [t for t in group if t.run not in done]
        if not todo:
            continue
        logging.info("run %d of %d: %s", i + 1, len(mine), "; ".join(map(described, todo)))
        name = run_name(todo)
        try:
            found, diverged = run_group(todo, root / "runs" / name)
        except (Interrupted, KeyboardInterrupt):
            raise
        except Busy:
            logging.info("run %s is another process's", name)
            continue
        except Exception as e:
            logging.exception("run %s failed", name)
            record_failures(todo, {t.run: repr(e) for t in todo}, root / "runs" / name)
            failed.append(name)
            continue
        write_json(root / "trials" / f"{name}.json", found, indent=None)
        (root / "runs" / name / "failed.json").unlink(missing_ok=True)
        if diverged:
            record_failures(todo, diverged, root / "runs" / name)
            failed.append(name)
        collect(trials, root)
    rows = collect(trials, root)
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(mine)} runs failed ({', '.join(failed)}); see runs/*/failed.json, "
            "and run the same command to try them again"
        )
    return rows


def groups(trials: list[Trial], members: int | Callable[[Trial], int] = 1) -> list[list[Trial]]:
    """Trials that train together, at most `members` each, in the order of each group's first trial.

    It depends on the whole list alone, not on what is finished, so all shards agree on it.
    """
    out: list[list[Trial]] = []
    open_group: dict[tuple, list[Trial]] = {}
    for trial in trials:
        most = members if isinstance(members, int) else members(trial)
        group = open_group.get(trial.shape)
        if group is None or len(group) >= most or not together.suits(trial.config):
            group = open_group[trial.shape] = []
            out.append(group)
        group.append(trial)
    return out


def described(trial: Trial) -> str:
    """A trial for the log: the columns that a reader tells it by."""
    names = (
        "kind",
        "system",
        "grade",
        "blocks",
        "width",
        "history",
        "lr",
        "data_seed",
        "seed",
        "variant",
    )
    known = {k: trial.columns[k] for k in names if trial.columns.get(k) not in (None, "")}
    return ", ".join(f"{k} {v}" for k, v in (known or trial.columns).items())


def run_name(group: list[Trial]) -> str:
    """Of a run directory: its trial, or a hash of its members."""
    return group[0].run if len(group) == 1 else _digest([t.run for t in group])


def run_group(
    group: list[Trial], rundir: epath.Path
) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """Trains a group; returns {trial: rows}, and {trial: why} of members that diverged."""
    first = group[0]
    if len(group) == 1 and not first.cooldown:
        train(first.config, rundir)
        return {first.run: rows_of(first, rundir)}, {}
    if not together.suits(first.config):
        raise RunError(
            "cooldowns fork from a plain pass on one device: set needs, init_from, eval.every and eval.use_best "
            "to nothing, or cooldown to 0"
        )
    configs_of = [t.config for t in group]
    measured, summary = together.train_together(configs_of, rundir, first.cooldown)
    diverged = {group[int(m)].run: why for m, why in summary.get("diverged", {}).items()}
    rows = {t.run: member_rows(t, i, group, measured, summary) for i, t in enumerate(group)}
    return {run: own for run, own in rows.items() if run not in diverged}, diverged


def record_failures(group: list[Trial], errors: Mapping[str, str], rundir: epath.Path) -> None:
    """Leaves the errors of a group's trials where the report and the next attempt find them."""
    rundir.mkdir(parents=True, exist_ok=True)
    rows = [dict(t.columns, trial=t.run, error=errors[t.run]) for t in group if t.run in errors]
    write_json(rundir / "failed.json", rows, indent=None)


# ---- rows


def finished(root: epath.Path) -> dict[str, list[Row]]:
    """{trial: rows} of everything that has finished."""
    out: dict[str, list[Row]] = {}
    folder = root / "trials"
    # Not by a pattern: one would be looked for in the folder's own path too, which a user gave.
    files = [p for p in folder.iterdir() if p.suffix == ".json"] if folder.exists() else []
    for path in sorted(files):
        out |= read_json(path)
    return out


def failures(root: epath.PathLike) -> list[dict[str, Any]]:
    """The trials whose last attempt failed, with the error."""
    runs = epath.Path(root) / "runs"
    files = [run / "failed.json" for run in sorted(runs.iterdir())] if runs.exists() else []
    failed = [r for f in files if f.exists() for r in read_json(f)]
    done = finished(epath.Path(root))  # perhaps in another group since
    return [r for r in failed if r["trial"] not in done]


def rows_of(trial: Trial, workdir: epath.PathLike) -> list[Row]:
    """The rows a finished trial contributes: one per evaluated point, metrics of its first split flat."""
    summary = read_json(epath.Path(workdir) / "summary.json")
    batch = trial.config.train.batch
    # A point lies at the step that reaches it; its row says the planned size, as a row of several members does.
    planned = {-(-n // batch) * batch: n for n in trial.config.eval.at_examples}
    points: dict[int, dict] = {}
    for r in read_jsonl(epath.Path(workdir) / "metrics.jsonl"):
        if r["kind"] in ("eval", "final"):
            n = planned.get(r["examples"], min(r["examples"], summary["examples"]))
            at = points.setdefault(n, {})
            at[r["split"]] = metrics_of(r)
    names = TrialRow(trial=trial.run, run=trial.run, member=0, parent=None, kind="pass")
    own = {**names, **facts_of(summary), **trial.columns}
    return [{**own, "examples": n, **by_split(trial, m)} for n, m in sorted(points.items())]


def member_rows(
    trial: Trial, member: int, group: list[Trial], measured: list[dict], summary: Mapping[str, Any]
) -> list[Row]:
    """The rows of one member of a run: its pass, and the cooldowns forked from it, each a run with a parent."""
    run = run_name(group)
    points: dict[tuple, dict] = {}
    for r in measured:
        if r["member"] == member:
            points.setdefault((r["examples"], r["kind"]), {})[r["split"]] = metrics_of(r)
    own = {**facts_of(summary), "seed": trial.config.seed, **trial.columns}
    of = own.get("kind", "pass")
    out: list[Row] = []
    for (n, kind), splits in sorted(points.items()):
        names = TrialRow(trial=trial.run, run=run, member=member, parent=None, kind=of)
        if kind == "cooldown":
            names["run"], names["parent"] = _digest([run, n]), run
            names["kind"] = kind if of == "pass" else f"{of} {kind}"
        out.append({**own, **names, "examples": n, **by_split(trial, splits)})
    return out


def facts_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's summary says that a row does too."""
    return {k: summary[k] for k in (*SIZES, "seed") if k in summary}


def run_dir(root: epath.PathLike, row: Row) -> epath.Path:
    """The run directory of one row's trial, to evaluate, export or distill from."""
    shared = epath.Path(root) / "runs" / (row["parent"] or row["run"])
    own = shared / "members" / str(row["member"])
    return own if own.exists() else shared


def metrics_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a row of metrics.jsonl."""
    return {
        k: v for k, v in row.items() if k not in ("step", "kind", "split", "examples", "member")
    }


def by_split(trial: Trial, splits: Mapping[str, dict]) -> dict[str, Any]:
    """The first split's metrics, and those of the others under their names."""
    first = trial.config.eval.splits[0]
    return {**splits[first], **{s: m for s, m in splits.items() if s != first}}


def collect(trials: list[Trial], root: epath.Path) -> list[Row]:
    """trials.jsonl from the finished trials, in the sweep's order; where there are none, the file stays as it is."""
    done = finished(root)
    once: dict[str, Trial] = {}
    for trial in trials:  # two rows of a plan may come to one config
        once.setdefault(trial.run, trial)
    rows: list[Row] = [
        {**row, **{k: v for k, v in trial.columns.items() if k != "kind"}}  # as counted today
        for trial in once.values()
        for row in done.get(trial.run, [])
    ]
    if (
        rows or not (root / FILE).exists()
    ):  # of a study whose runs are gone, the rows are all there is
        write_text(root / FILE, "".join(json.dumps(r) + "\n" for r in rows))
    return rows
