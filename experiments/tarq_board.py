"""What TARQ's runs keep of exact target attention's top items, and what its codes are worth.

    python -m experiments.tarq_board --workdir=runs/compare/tarq_planted

Reads a folder of `experiments.compare` with runs of TARQ, two towers and exact target attention. Each is exported (int8
rows) and ranks the whole catalogue for requests of a split; HR@k is the share of the top k of the target-attention run of the
same seed that a run keeps. "other codes" is the control: every item with the codes of another. Prints a table: AUC of the
run and of its own teacher, codes in use, ||c - c^||^2 / ||c||^2 and ||h_rq - h_tar||^2 / ||h_tar||^2 from its summary, and HR@k,
mean and standard deviation over seeds.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import pathlib
from typing import Any

from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict
import numpy as np

from recjax import command
from recjax.batch import Batch
from recjax.data import open_data
from recjax.runtime.run import Stop, read_json, set_up, write_json
from recjax.serving import artifact as artifacts
from recjax.serving.export import export_run
from recjax.serving.prerank import Preranker

EXACT = "target_attention"


def ranker(run: epath.Path) -> Preranker:
    """Of a finished run, exported once."""
    path = run / "artifact"
    if not path.exists():
        export_run(run, path, snapshot=False)
    return Preranker(artifacts.load(path))


def other_codes(preranker: Preranker, seed: int = 0) -> Preranker:
    """The same with every item's codes another's."""
    derived = dict(preranker.artifact.derived)
    order = np.random.default_rng(seed).permutation(derived["item/codes"].shape[1])
    derived["item/codes"] = derived["item/codes"][:, order]
    return Preranker(dataclasses.replace(preranker.artifact, derived=derived))


def tops(preranker: Preranker, batches: Iterable[Batch], k: int) -> list[np.ndarray]:
    """Ids of the best k items of the catalogue for each request."""
    found = (preranker.top(preranker.request.score(b), k)[0] for b in batches)
    return [preranker.keys[at] for at in found]


def hit_rate(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Mean share of each of `theirs` in `ours`."""
    return float(np.mean([np.isin(b, a).mean() for a, b in zip(ours, theirs, strict=True)]))


def requests(run: epath.Path, split: str, count: int) -> list[Batch]:
    """The first requests of a split, one a batch."""
    config = ConfigDict(read_json(run / "config.json"))
    batches = open_data(config.data).batches(split, 1, examples=count)
    return list(batches)


def seeds_of(workdir: epath.PathLike) -> dict[str, dict[str, epath.Path]]:
    """seed folder -> name of the competitor -> finished run."""
    out: dict[str, dict[str, epath.Path]] = {}
    # pathlib: a pattern of epath would take brackets of the folder itself for one
    for file in sorted(map(epath.Path, pathlib.Path(workdir).glob("*/seed-*/summary.json"))):
        out.setdefault(file.parent.name, {})[file.parent.parent.name] = file.parent
    return out


def model_of(run: epath.Path) -> dict[str, Any]:
    """The model section of its config."""
    return read_json(run / "config.json")["model"]


def board(
    workdir: epath.PathLike, split: str, count: int, k: int, poll: Callable[[], None] = lambda: None
) -> dict[str, dict[str, list]]:
    """name -> figure -> one value a seed."""
    found: dict[str, dict[str, list]] = {}
    for seed, runs in seeds_of(workdir).items():
        exact = next((r for r in runs.values() if model_of(r).get("variant") == EXACT), None)
        if exact is None:
            raise ValueError(
                f"{workdir} has no finished run of {seed} with model.variant={EXACT}: HR@k is a share of its top k"
            )
        asked = requests(exact, split, count)
        reference = tops(ranker(exact), asked, k)
        for name, run in runs.items():
            logging.info("%s, %s", seed, name)
            poll()
            mine = ranker(run)
            row = figures(read_json(run / "summary.json"), split)
            row["hr"] = hit_rate(tops(mine, asked, k), reference)
            if "item/codes" in mine.artifact.derived:
                row["hr, other codes"] = hit_rate(tops(other_codes(mine), asked, k), reference)
            for key, value in row.items():
                found.setdefault(name, {}).setdefault(key, []).append(value)
    if not found:
        raise ValueError(f"{workdir} has no finished run; run experiments.compare there first")
    return found


def figures(summary: Mapping[str, Any], split: str) -> dict[str, float]:
    """What the summary says of a split."""
    s = summary[split]
    out = {name: s[key] for name, key in (("auc", "auc"), ("teacher", "teacher/auc")) if key in s}
    out |= {name: s[name] for name in ("quantisation", "imitation") if name in s}
    levels = sum(key.startswith("codes/utilisation/") for key in s)
    for level in range(levels):
        out[f"used {level}"] = s[f"codes/utilisation/{level}"]
    return out


def table(found: Mapping[str, Mapping[str, list]]) -> str:
    """Markdown, mean ± standard deviation."""
    columns = list(dict.fromkeys(c for row in found.values() for c in row))
    lines = ["| run | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in found.items():
        cells = [_cell(row[c]) if c in row else "" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def main(_) -> None:
    set_up()
    try:
        with Stop() as stop:
            poll = stop.raise_if_requested
            found = board(_WORKDIR.value, _SPLIT.value, _REQUESTS.value, _K.value, poll)
    except ValueError as e:
        raise app.UsageError(str(e)) from e
    write_json(epath.Path(_WORKDIR.value) / "board.json", found)
    print(table(found))


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "folder of experiments.compare", required=True)
    _SPLIT = flags.DEFINE_string("split", "test", "whose requests")
    _REQUESTS = flags.DEFINE_integer("requests", 200, "of the split", 1)
    _K = flags.DEFINE_integer("k", 100, "of HR@k", 1)
    command.run(main)
