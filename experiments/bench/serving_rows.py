"""What quantised rows cost in quality and save in bytes, on a finished run.

    python -m experiments.bench.serving_rows --run=runs/lightsuan --split=test

Evaluates the run with its rows as trained, and as an artifact would store them; "artifact_mib" is everything beside.
"""

import json
import os
import pathlib
import tempfile
from typing import Any

from absl import flags
import numpy as np

from recjax import command
from recjax.embedding import lanes
from recjax.runtime.run import set_up
from recjax.serving.export import export_run
from recjax.serving.quantize import FORMATS, quantize
from recjax.training.opening import evaluator_for, open_run


def measure(run: str | os.PathLike, split: str, data_dir: str = "") -> dict[str, Any]:
    """{format: AUC, logloss, difference from float32, bytes of the tables, MiB of the artifact}."""
    config, data, system, trees, _ = open_run(run, data_dir)
    evaluator = evaluator_for(system, config)
    out: dict[str, Any] = {"split": split, "dims": sorted({t.dim for t in system.tables})}
    dims = {t.path: t.dim for t in system.tables}
    held = {p: np.asarray(t["rows"]) for p, t in trees.tables.items()}  # packed or not
    for fmt in FORMATS:
        stored = {p: quantize(np.asarray(lanes.logical(x, dims[p])), fmt) for p, x in held.items()}
        tables = {
            p: {**trees.tables[p], "rows": q.dequantized().reshape(held[p].shape)}
            for p, q in stored.items()
        }
        batches = data.batches(split, config.eval.batch, shards=evaluator.mesh.size)
        got = evaluator(trees.replace(tables=evaluator.plan.place(tables)), batches)
        with tempfile.TemporaryDirectory() as folder:
            manifest = export_run(
                run, pathlib.Path(folder) / "a", rows_format=fmt, data_dir=data_dir
            )
        out[fmt] = {
            "auc": got["auc"],
            "auc_minus_float32": got["auc"] - out["float32"]["auc"] if "float32" in out else 0.0,
            "logloss": got["logloss"],
            "table_bytes": sum(q.nbytes for q in stored.values()),
            "artifact_mib": round(sum(f["bytes"] for f in manifest["files"].values()) / 2**20, 2),
        }
        out[fmt]["share_of_float32"] = out[fmt]["table_bytes"] / out["float32"]["table_bytes"]
    return out


def main(_) -> None:
    set_up()
    print(json.dumps(measure(_RUN.value, _SPLIT.value, _DATA.value), indent=1))


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "workdir of the run", required=True)
    _SPLIT = flags.DEFINE_string("split", "test", "to evaluate")
    _DATA = flags.DEFINE_string("data", "", "prepared directory in place of the run's own")
    command.run(main)
