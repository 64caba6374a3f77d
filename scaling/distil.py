"""Teacher, undistilled student and distilled student: trained side by side, and the student exported.

The undistilled student is the control: the same pair with the soft term's weight at zero, same seed, same batches.
"""

from collections.abc import Mapping
import json
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict
import numpy as np

from recjax import evaluate, models
from recjax.models import distil
from recjax.serving import artifact
from recjax.train import train

METRICS = ("auc", "gauc_visit", "logloss", "ece")


def pair_config(
    base: ConfigDict, options: Mapping[str, Any], weight: float, seed: int
) -> ConfigDict:
    """`base` with the model replaced by a teacher-student pair."""
    config = ConfigDict(base.to_dict())
    config.seed = seed
    config.model = ConfigDict(dict(name="distil", **{**options, "weight": weight}))
    return config


def run(
    base: ConfigDict, options: Mapping[str, Any], seeds: tuple[int, ...], workdir: epath.Path
) -> dict:
    """Trains both pairs for every seed; returns {role: {split: {metric: [value per seed]}}}."""
    out: dict[str, dict] = {}
    split_names = base.eval.final
    for seed in seeds:
        for role, weight in (("undistilled", 0.0), ("distilled", options["weight"])):
            logging.info("distillation: %s student, seed %d", role, seed)
            summary = train(pair_config(base, options, weight, seed), workdir / f"{role}-{seed}")
            for split in split_names:
                _add(out, role, split, summary[split], "")
                if role == "distilled":
                    _add(out, "teacher", split, summary[split], "teacher/")
    return out


def _add(out: dict, role: str, split: str, metrics: Mapping[str, Any], prefix: str) -> None:
    columns = out.setdefault(role, {}).setdefault(split, {})
    for m in METRICS:
        columns.setdefault(m, []).append(metrics.get(prefix + m))


def export_student(run_dir: epath.PathLike, out: epath.PathLike, rows_format: str = "int8") -> dict:
    """Exports the student of a pair's run as an artifact; returns its manifest.

    Only the student's functions, parameters and tables go in: serving costs what the student costs.
    """
    config, data, _, trees = evaluate.open_run(run_dir)
    options = {k: v for k, v in models.plain(config.model).items() if k != "name"}
    system = distil.student_only(data.schema, **options)
    student = dict(
        dense=trees["dense"]["student"],
        state=trees["state"].get("student", {}),
        tables={t.path: trees["tables"][t.path] for t in system.tables},
        frozen={},
    )
    batch = next(iter(data.batches(config.data.train, 64)))
    used = {t.id_space for t in system.tables}
    return artifact.export_artifact(
        epath.Path(out),
        system,
        student,
        batch=batch,
        config=json.loads(config.to_json()),
        vocab={s: data.vocabulary(s) for s in used},
        metadata={"keep_prob": keep_probability(data.identity, config.data.train)},
        rows_format=rows_format,
        overwrite=True,
    )


def keep_probability(identity: Mapping[str, Any], split: str) -> float:
    """The one probability with which a split's negatives were kept, by which served probabilities are corrected.

    Matched negatives have none (their number multiplies each product's popularity), so a model trained on them serves
    uncorrected probabilities.
    """
    return 1.0 if split.endswith("_matched") else identity.get("keep", {}).get(split, 1.0)


def report_rows(results: Mapping[str, Any], split: str) -> list[dict]:
    """The report's table of one split: a row per role with one value per seed."""
    roles = [r for r in ("teacher", "undistilled", "distilled") if r in results]
    return [{"model": f"{role} ({split})", "role": role, **results[role][split]} for role in roles]


def paired(results: Mapping[str, Any], split: str, metric: str = "auc") -> dict:
    """Mean and spread over seeds of distilled minus undistilled."""
    a, b = (np.asarray(results[r][split][metric], float) for r in ("undistilled", "distilled"))
    d = b - a
    return {
        "mean": float(d.mean()),
        "sd": float(d.std(ddof=1)) if len(d) > 1 else None,
        "seeds": len(d),
    }
