"""Trains several experiments over several seeds on the same rows and says, paired, which differences are more than luck.

    python -m experiments.compare --config=experiments/din_complete_journey.py:decisive \\
        --config=experiments/tin_complete_journey.py:decisive --seeds=3 --workdir=runs/compare/tin

The first config is the baseline. `--config` is FILE[:ARG] and, after spaces, overrides of its own, so that an ablation
is one more config: `--config="experiments/tin_complete_journey.py:decisive model.tte=none"`; `--set=data.dir=DIR` holds for
all. A folder in place of a file is a scorer without seeds that was judged elsewhere (`experiments.baselines`, `--keep`). Each run is an ordinary run directory, `<workdir>/<name>/seed-<s>`: finished ones are skipped, an interrupted one
goes on, and results.json is rewritten after every seed, so the same command resumes and more `--seeds` add to it.

For every split of `--split` (default: `eval.final` of the first config), metric and config:

    value            mean and standard deviation over seeds
    difference       mean over seeds of (config - baseline), the two trained with the same seed
    over seeds       Student's t interval of that mean: would other seeds agree? (needs two seeds)
    over groups      bootstrap interval, whole groups (visits) resampled, one draw for all runs: would other rows?

`--long_tail=3,20%` says the same once more of the rows with at most three past events, and of the fifth with the fewest.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict
import numpy as np
from scipy.special import expit

from recjax import command, configs
from recjax.evaluation import kept_scores
from recjax.evaluation.kept_scores import Rows
from recjax.metrics import classification, comparison
from recjax.runtime.run import Interrupted, plain, read_json, set_up, write_json
from recjax.training.inference import train_and_keep

METRICS = ("auc", "gauc", "logloss")
FACTS = ("n_dense", "n_embedding", "flops_per_example", "examples", "examples_per_s", "wall_s")


# ---- what is compared -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """One competitor: its name in folders and tables, and its config, or the folder of its finished scores."""

    name: str
    config: ConfigDict | None
    scores: epath.Path | None = None

    def of_seed(self, seed: int) -> ConfigDict:
        config = ConfigDict(self.config)
        config.seed = seed
        return config


def entry(text: str, common: Sequence[str] = ()) -> Entry:
    """The competitor that "FILE[:ARG] key=value ..." describes; `common` overrides come first.

    Raises:
      ValueError: An override names no key of the config, or is no assignment.
    """
    place, *own = text.split()
    if epath.Path(place).is_dir():
        return Entry(epath.Path(place).name, None, epath.Path(place))
    file, _, arg = place.partition(":")
    config = configs.load(file, arg)
    for assignment in (*common, *own):
        configs.assign_text(config, assignment)
    parts = [epath.Path(file).stem, *([arg] if arg not in ("", "decisive") else []), *own]
    return Entry(re.sub(r"[^\w.=+-]+", "-", "+".join(parts)), configs.check(config))


def entries(texts: Sequence[str], common: Sequence[str] = ()) -> list[Entry]:
    """All competitors; ValueError when two would share a folder or there are none to compare."""
    out = [entry(t, common) for t in texts]
    names = [e.name for e in out]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"--config {twice[0]!r} is given twice; let an override differ")
    if len(out) < 2:
        raise ValueError("give at least two --config: the baseline and what is compared with it")
    return out


# ---- differences ----------------------------------------------------------------------------------------------


def over_seeds(values: Sequence[float] | np.ndarray, level: float = 0.95) -> list[float] | None:
    """Student's t interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = comparison.half_width(np.asarray(values), level)
    return [float(np.mean(values) - half), float(np.mean(values) + half)]


def measure(
    metric: str, scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> float:
    """One of `METRICS` of one run."""
    if metric == "gauc":
        return classification.gauc(scores, labels, groups, weights).value
    return {"auc": classification.auc, "logloss": classification.logloss}[metric](
        scores, labels, weights
    )


def compare(a: list[Rows], b: list[Rows], metric: str, group: str = "", n: int = 200) -> dict:
    """b - a, seed by seed, with both intervals (see the module docstring).

    Args:
      a, b: Predictions of the baseline and of the other, one of each seed, rows in the same order.
      metric: "auc", "gauc" (within `group`) or "logloss".
      group: Key of the rows to resample whole; "": each row by itself.
      n: Resamples.
    """
    both = [np.stack([r["logit"] for r in side]).astype(np.float64) for side in (a, b)]
    ours, theirs = [expit(x) for x in both] if metric == "logloss" else both
    label, weight = a[0]["label"], a[0]["weight"]
    groups = a[0][group] if group else np.arange(len(label))
    values = [[measure(metric, x, label, groups, weight) for x in side] for side in (ours, theirs)]
    each = [y - x for x, y in zip(*values, strict=True)]
    paired = comparison.paired_bootstrap(ours, theirs, label, groups, metric, n, weights=weight)
    return dict(
        values=[paired.a, paired.b],
        difference=paired.difference,
        by_seed=each,
        interval_over_seeds=over_seeds(each),
        interval_over_groups=[paired.low, paired.high],
    )


def long_tail(rows: Rows, limit: str) -> tuple[str, np.ndarray]:
    """What `limit` ("3": at most so many past events; "20%": the share with the fewest) selects: a name, bool [N]."""
    if "past" not in rows:
        raise ValueError(
            "--long_tail wants data that counts past events (recjax.data.store.prepared)"
        )
    share = limit.endswith("%")
    most = np.quantile(rows["past"], float(limit[:-1]) / 100) if share else float(limit)
    return f"at most {most:g} past events ({limit})", rows["past"] <= most


def results(
    runs: Mapping[str, list[epath.Path]],
    splits: Sequence[str],
    group: str = "",
    n: int = 200,
    tails: Sequence[str] = (),
) -> dict:
    """Everything results.json says of finished runs: {name: [run of each seed]}, baseline first."""
    summaries = {k: [_summary(r) for r in v] for k, v in runs.items()}
    baseline = next(iter(runs))
    seeds = max(([s.get("seed") for s in each] for each in summaries.values()), key=_known)
    out: dict[str, Any] = dict(baseline=baseline, seeds=seeds)
    out["models"] = {
        name: {
            "facts": {f: float(np.mean([s[f] for s in each])) for f in FACTS if f in each[0]},
            **{split: _values([s[split] for s in each if split in s]) for split in splits},
        }
        for name, each in summaries.items()
    }
    out["differences"] = {name: {} for name in list(runs)[1:]}
    for split in splits:
        rows = {name: [kept_scores.load(r, split) for r in each] for name, each in runs.items()}
        kept_scores.check(rows, split)
        first = rows[baseline][0]
        parts = {split: np.ones(len(first["row"]), bool)}
        counted = next((r for v in rows.values() for r in v if "past" in r), first)
        for limit in tails:
            name, chosen = long_tail(counted, limit)
            parts[f"{split}, {name}"] = chosen
        for part, chosen in parts.items():
            _add_differences(
                out["differences"], part, rows, chosen, kept_scores.group_key(first, group), n
            )
    return plain(out)


def _add_differences(
    out: dict, part: str, rows: dict[str, list[Rows]], chosen: np.ndarray, key: str, n: int
) -> None:
    """Differences on some rows of a split, to the first model; a part with one class only says how many rows it has."""
    kept = {k: [{c: x[chosen] for c, x in r.items()} for r in v] for k, v in rows.items()}
    baseline = next(iter(kept.values()))
    facts: dict[str, Any] = {
        "group": key,
        "rows": int(chosen.sum()),
        "positives": float(baseline[0]["label"].sum()),
    }
    defined = 0 < facts["positives"] < facts["rows"]
    for name in out:
        found = {
            m: compare(baseline, kept[name], m, key, n)
            for m in METRICS
            if defined and (key or m != "gauc")
        }
        out[name][part] = facts | found


def _known(seeds: Sequence[int | None]) -> int:
    return sum(s is not None for s in seeds)


def _summary(run: epath.Path) -> dict:
    return read_json(run / "summary.json")


def _values(each: Sequence[Mapping[str, Any]]) -> dict[str, dict]:
    """{metric: {mean, std, by_seed}} of the numbers that all seeds have."""
    out = {}
    for k in each[0] if each else ():
        values = [m.get(k) for m in each]
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            std = float(np.std(values, ddof=1)) if len(values) > 1 else None
            out[k] = dict(mean=float(np.mean(values)), std=std, by_seed=values)
    return out


# ---- the table ------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> str:
    """Markdown: a row per model and split, differences to the baseline in points (x 100)."""
    lines = [
        f"Seeds {found['seeds']}; differences to {found['baseline']} in points (x 100), 95 % intervals.",
        "",
        "| model | split | AUC | std | difference | over seeds | over groups | logloss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, model in found["models"].items():
        for split in (k for k in model if k != "facts"):
            auc = model[split].get("auc", dict(mean=float("nan"), std=None))
            loss = model[split].get("logloss", dict(mean=float("nan")))
            d = found["differences"].get(name, {}).get(split, {}).get("auc")
            cells = [name, split, f"{auc['mean']:.4f}"]
            cells.append("" if auc["std"] is None else f"{auc['std']:.4f}")
            cells += ["", "", ""] if d is None else _difference(d)
            lines.append("| " + " | ".join([*cells, f"{loss['mean']:.4f}"]) + " |")
        for part, d in found["differences"].get(name, {}).items():
            if part in model:
                continue
            label = f"{part}: {d['rows']} rows, {d['positives']:.0f} positive"
            values = d.get("auc", {}).get("values", [float("nan")] * 2)
            cells = [name, label, f"{values[1]:.4f}", ""]
            cells += _difference(d["auc"]) if "auc" in d else ["undefined", "", ""]
            lines.append("| " + " | ".join([*cells, ""]) + " |")
    return "\n".join(lines)


def _difference(d: Mapping[str, Any]) -> list[str]:
    intervals = d["interval_over_seeds"], d["interval_over_groups"]
    text = [f"{100 * i[0]:+.2f} .. {100 * i[1]:+.2f}" if i else "" for i in intervals]
    return [f"{100 * d['difference']:+.2f}", *text]


# ---- the command ----------------------------------------------------------------------------------------------


def run(
    competitors: Sequence[Entry],
    workdir: epath.PathLike,
    seeds: int,
    *,
    splits: Sequence[str] = (),
    group: str = "",
    resamples: int = 200,
    tails: Sequence[str] = (),
) -> dict:
    """Trains what is not trained yet, seed by seed; writes and returns results.json's content."""
    root = epath.Path(workdir)
    root.mkdir(parents=True, exist_ok=True)
    trained = [e for e in competitors if e.config is not None]
    if not trained and not splits:
        raise ValueError("only folders of scores are compared: name the splits with --split")
    splits = tuple(splits) or tuple(trained[0].config.eval.final)
    runs: dict[str, list[epath.Path]] = {e.name: [] for e in competitors}
    found: dict = {}
    for seed in range(seeds):
        for e in competitors:
            place = e.scores or root / e.name / f"seed-{seed}"
            if e.config is not None:
                logging.info("seed %d of %d: %s", seed + 1, seeds, e.name)
                train_and_keep(e.of_seed(seed), place, splits)
            runs[e.name].append(place)
        found = results(runs, splits, group, resamples, tails)
        write_json(root / "results.json", found)
    return found


def main(_) -> None:
    set_up()
    try:
        competitors = entries(_CONFIG.value, _SET.value)
    except ValueError as e:
        raise app.UsageError(str(e)) from e
    try:
        found = run(
            competitors,
            _WORKDIR.value,
            _SEEDS.value,
            splits=_SPLIT.value,
            group=_GROUP.value,
            resamples=_RESAMPLES.value,
            tails=_LONG_TAIL.value,
        )
    except Interrupted:
        logging.warning("stopped; the same command goes on")
        raise
    print(table(found))


if __name__ == "__main__":
    _CONFIG = flags.DEFINE_multi_string("config", None, "FILE[:ARG] key=value ...; baseline first")
    _SET = flags.DEFINE_multi_string("set", [], "key=value for every config")
    _WORKDIR = flags.DEFINE_string("workdir", None, "directory of the comparison")
    _SEEDS = flags.DEFINE_integer("seeds", 3, "seeds 0 .. n - 1", lower_bound=1)
    _SPLIT = flags.DEFINE_list("split", [], "splits to compare on; default: eval.final")
    _GROUP = flags.DEFINE_string("group", "", "group key to resample; default: the data's first")
    _LONG_TAIL = flags.DEFINE_list(
        "long_tail", [], "limits, as 3 (past events) or 20% (of the rows)"
    )
    _RESAMPLES = flags.DEFINE_integer("resamples", 200, "of the bootstrap", lower_bound=2)
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
