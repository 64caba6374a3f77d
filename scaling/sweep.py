"""Sweeps: trials as configs, run once each, and collected into one trials.jsonl.

A trial is a training run evaluated at log-spaced points of a single pass; each point is a row. Trials are keyed by
the hash of their config, so a sweep that was killed and started again ends with the same rows, and
`--shard=i/n` processes may share a directory: each trial's rows are its own file until they are collected.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import hashlib
import json
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from recjax.run import Interrupted, flat, plain, read_jsonl, write_text
from recjax.train import train

FACTS = ("n_blocks", "n_dense", "n_embedding", "flops_per_example", "seed")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep: its config, and the columns that name it in trials.jsonl."""

    config: ConfigDict
    columns: Mapping[str, Any]

    @property
    def run(self) -> str:
        """Hash of everything that can change the result: the config, and which data, not where it lies."""
        places = ("data.workers", "data.dir", "data.source")
        keys = {k: v for k, v in flat(plain(self.config)).items() if k not in places}
        if not keys.get("data.teachers"):  # a later key; without it trials keep their names
            keys.pop("data.teachers", None)
        keys["data"] = self.columns.get("data")
        return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:12]


def product(**axes: Iterable) -> list[dict]:
    """Every combination: product(seed=(0, 1), lr=(1e-3,)) -> [{"seed": 0, "lr": 1e-3}, ...]."""
    out: list[dict] = [{}]
    for name, values in axes.items():
        out = [{**row, name: v} for row in out for v in list(values)]
    return out


def zipped(**axes: Iterable) -> list[dict]:
    """Value by value: zipped(grade=("0", "1"), lr=(1e-3, 5e-4)); lengths must agree."""
    return [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]


def chain(*parts: list[dict]) -> list[dict]:
    """One after the other, each combination once."""
    return list({json.dumps(row, sort_keys=True): row for part in parts for row in part}.values())


def rows_of(trial: Trial, workdir: epath.PathLike) -> list[dict]:
    """The rows a finished trial contributes: one per evaluated point, metrics of its first split flat."""
    summary = json.loads((epath.Path(workdir) / "summary.json").read_text())
    points: dict[int, dict] = {}
    for r in read_jsonl(epath.Path(workdir) / "metrics.jsonl"):
        if r["kind"] in ("eval", "final"):
            metrics = {k: v for k, v in r.items() if k not in ("step", "kind", "split", "examples")}
            points.setdefault(min(r["examples"], summary["examples"]), {})[r["split"]] = metrics
    first = trial.config.eval.splits[0]
    common = dict(run=trial.run, member=0, parent=None, kind="pass", **trial.columns)
    common.update({k: summary[k] for k in FACTS})
    return [
        {
            **common,
            "examples": n,
            **splits[first],
            **{s: m for s, m in splits.items() if s != first},
        }
        for n, splits in sorted(points.items())
    ]


def run_sweep(
    trials: list[Trial], workdir: epath.PathLike, shard: tuple[int, int] = (0, 1)
) -> list[dict]:
    """Runs this shard's trials and collects all finished ones; returns the rows of trials.jsonl.

    A trial that fails is recorded in its `failed.json` and the sweep goes on; it is tried again next time.

    Raises:
      RuntimeError: Some trials failed; the message names them.
    """
    root, failed = epath.Path(workdir), []
    mine = trials[shard[0] :: shard[1]]
    for i, trial in enumerate(mine):
        rundir, rows = root / "runs" / trial.run, root / "trials" / f"{trial.run}.json"
        if rows.exists():
            continue
        logging.info("trial %d of %d: %s", i + 1, len(mine), dict(trial.columns))
        try:
            train(trial.config, rundir)
        except (Interrupted, KeyboardInterrupt):
            raise
        except Exception as e:
            logging.exception("trial %s failed", trial.run)
            rundir.mkdir(parents=True, exist_ok=True)
            write_text(rundir / "failed.json", json.dumps({**trial.columns, "error": repr(e)}))
            failed.append(trial.run)
            continue
        rows.parent.mkdir(parents=True, exist_ok=True)
        write_text(rows, json.dumps(plain(rows_of(trial, rundir))))
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(mine)} trials failed ({', '.join(failed)}); see runs/*/failed.json"
        )
    return collect(trials, root)


def collect(trials: list[Trial], root: epath.Path) -> list[dict]:
    """trials.jsonl from the finished trials, in the sweep's order."""
    out = []
    for trial in trials:
        path = root / "trials" / f"{trial.run}.json"
        out += json.loads(path.read_text()) if path.exists() else []
    write_text(root / "trials.jsonl", "".join(json.dumps(r) + "\n" for r in out))
    return out
