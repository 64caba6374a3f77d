"""Which grades of a finished sweep become teacher and student: by the sweep's own metric, within a latency on this machine."""

from collections.abc import Mapping, Sequence
import tempfile
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from recjax import configs, models
from recjax.serving import artifact, bench
from recjax.training.step import init_trees
from scaling.plan import study
from scaling.plan.grades import LADDER
from scaling.plan.rows import Row, base_rows, on_ladder, read
from scaling.plan.sweep import run_dir


def latency(data: Any, model: Mapping[str, Any], candidates: int) -> dict[str, Any]:
    """`bench.measure` of an untrained model on this machine: what it learns does not change its time."""
    system = models.build(data.schema, model)
    batch = next(iter(data.batches(next(iter(data.splits)), 8)))
    with tempfile.TemporaryDirectory() as folder:
        artifact.export_artifact(
            epath.Path(folder) / "a",
            system,
            init_trees(system, configs.base(), batch),
            batch=batch,
            config={},
            vocab=data.vocabulary,
            platforms=(jax.default_backend().replace("gpu", "cuda"),),
            functions=("score",),
        )
        return bench.measure(epath.Path(folder) / "a", candidates)


def quality(rows: Sequence[Row], metric: str = "auc") -> dict[str, float]:
    """Grade -> mean metric over seeds at the largest data size all grades reached."""
    sizes = [{r["examples"] for r in rows if r["grade"] == g} for g in {r["grade"] for r in rows}]
    most = max(set.intersection(*sizes), default=None)
    if most is None:
        raise ValueError("the sweep's grades share no data size; finish the sweep first")
    at: dict[str, list] = {}
    for r in rows:
        if r["examples"] == most and r[metric] is not None:
            at.setdefault(r["grade"], []).append(r[metric])
    return {grade: float(np.mean(values)) for grade, values in at.items()}


def pick(quality_of: Mapping[str, float], ms_of: Mapping[str, float], budget_ms: float) -> dict:
    """Student: the best grade whose p99 fits the budget. Teacher: the best larger one, or itself.

    Raises:
      ValueError: No grade fits.
    """
    inside = [g for g in quality_of if ms_of[g] <= budget_ms]
    if not inside:
        fastest = min(ms_of, key=ms_of.get)
        raise ValueError(
            f"no grade answers within {budget_ms:g} ms at p99 here; the fastest, grade {fastest}, takes "
            f"{ms_of[fastest]:.1f} ms: raise --budget_ms or lower --candidates"
        )
    student = max(inside, key=quality_of.get)
    order = list(LADDER)
    larger = [g for g in quality_of if order.index(g) > order.index(student)]
    return {"student": student, "teacher": max(larger, key=quality_of.get, default=student)}


def finished(root: epath.Path, grade: str) -> tuple[str, ...]:
    """Workdirs of the sweep's runs of a grade: the model itself, on the most examples."""
    rows = [r for r in sweep_of(root)[1] if r["grade"] == grade]
    most = max((r["examples"] for r in rows), default=0)
    return tuple(sorted({str(run_dir(root, r)) for r in rows if r["examples"] == most}))


def sweep_of(root: epath.Path) -> tuple[ConfigDict, list[Row]]:
    """(config, rows) of a finished sweep: the ladder's passes at the experiment's history, no checks, no variants.

    Raises:
      FileNotFoundError: No sweep has finished there.
    """
    config = study.saved(root)
    history = config.experiment.data.history
    passes = base_rows(read(root), kind="pass")
    return config, [r for r in passes if on_ladder(r) and r.get("history", history) == history]
