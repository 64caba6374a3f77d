"""Prepares your own logs: python -m recjax.data.prepare --logs='path/*.parquet' --mapping=mapping.py --out=DIR

Logs are CSV, CSV.gz, TSV, JSONL or Parquet. With --suggest, a first commented mapping is written to --mapping from the
columns found; with --out too, it is used at once. The report is printed before anything trains and kept in DIR/report.json;
bad rows go to DIR/quarantine.parquet, or stop everything with --strict. A log that does not fit into memory is prepared
in --shards, here or on Apache Beam with --runner (`recjax.data.logs.sharded`). docs/your_own_logs.md leads through it.
"""

from collections.abc import Mapping
import json
import os
from typing import Any

from absl import flags, logging
import polars as pl
import tensorflow_datasets as tfds

from recjax import command
from recjax.data.logs import prepare as logs
from recjax.data.logs import progress, sharded
from recjax.data.logs.report import report_text, warnings_of
from recjax.data.logs.sources import list_files
from recjax.data.logs.suggest import suggest
from recjax.data.store.prepared import DataError
from recjax.data.store.writing import BLOCK_SIZE
from recjax.schema import Schema


def main(_) -> None:
    logging.set_verbosity(logging.ERROR)  # what matters is printed
    tfds.disable_progress_bar()
    progress.shown = True
    try:
        run(flags.FLAGS)
    except pl.exceptions.PolarsError as e:  # nobody's fault that has been met before
        raise DataError(
            f"the log cannot be prepared: {str(e).splitlines()[0]} (RECJAX_TRACEBACK=1 shows where)"
        ) from e


def run(f) -> None:
    """What the flags ask for."""
    if f.suggest:
        write_suggestion(f.logs, f.mapping)
        print(f"Wrote {f.mapping}: read it, correct it, then prepare with --out=DIR")
    elif not f.out and not f.dry_run:
        raise DataError("give --out=DIR, the directory to prepare into (or --suggest, --dry_run)")
    if f.dry_run:
        tell(*logs.dry_run(f.logs, f.mapping))
    elif f.out:
        prepare(f)


def prepare(f) -> None:
    """Prepares and says what came of it."""
    names = ("mapping", "strict", "unit", "block_size", "partitions", "shards", "work")
    names += ("head_room", "extends", "reclaim_days")
    options = {name: f[name].value for name in names}
    if f.runner:
        if not f.shards:
            raise DataError(
                "--runner maps over shards; give --shards=N, as many as memory asks for"
            )
        options["runner"] = sharded.BeamRunner(f.runner, tuple(f.beam_args))
    path = logs.prepare(f.out, source=f.logs, exact_dir=True, **options)
    report = json.loads((path / "report.json").read_text())
    print(report_text(report))
    bad = pl.scan_parquet(path / "quarantine.parquet").select(pl.len()).collect().item()
    if bad:
        print(f"{bad:,} bad rows are in {path / 'quarantine.parquet'}")
    wary = "Read the warnings above; then train" if warnings_of(report) else "Train"
    print(f"Prepared {path}. {wary} on it:")
    print(
        f"  python -m recjax.train --config=experiments/suan_logs.py --config.data.dir={path} --workdir=RUN"
    )


def tell(report: Mapping[str, Any], schema: Schema, first: pl.DataFrame) -> None:
    """Prints what a dry run found."""
    print(report_text(report))
    print(f"labels: {', '.join(schema.labels)}; lists: {', '.join(schema.lists)}")
    for role in ("profile", "context", "candidate"):
        names = [f"{f.name} ({f.kind})" for f in schema.select(role)]
        print(f"{role}: {', '.join(names)}")
    print("The first training rows, as the model would see them:")
    for row in first.rows(named=True):
        print("  " + ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))  # fmt: skip
    print("A dry run of the first rows: nothing was written.")


def write_suggestion(pattern: str, file: str) -> None:
    """Writes a first mapping; never over an existing one."""
    if os.path.exists(file):
        raise DataError(f"{file} exists; delete it or name another --mapping for --suggest")
    text = suggest(list_files(pattern))
    with open(f"{file}.tmp", "w") as out:
        out.write(text)
    os.replace(f"{file}.tmp", file)


if __name__ == "__main__":
    flags.DEFINE_string("logs", None, "Log files: a quoted pattern, or several after commas.")
    flags.DEFINE_string("mapping", None, "Python file that says what the columns mean.")
    flags.DEFINE_string("out", "", "The prepared directory to make.")
    flags.DEFINE_bool("suggest", False, "Write a first mapping to --mapping.")
    flags.DEFINE_bool(
        "dry_run", False, "Say what the first 1,000 rows would become; write nothing."
    )
    flags.DEFINE_bool("strict", False, "Refuse bad rows instead of setting them aside.")
    flags.DEFINE_enum(
        "unit", "impression", ["impression", "request"], "What the training order permutes."
    )
    flags.DEFINE_integer("block_size", BLOCK_SIZE, "Impressions per record.")
    flags.DEFINE_integer("partitions", 1, "Of the users.")
    flags.DEFINE_integer("shards", 0, "Shards of users to prepare one at a time; 0: all at once.")
    flags.DEFINE_string("runner", "", "Apache Beam runner of the shards; empty: this process.")
    flags.DEFINE_list("beam_args", [], "Options of the runner, as on Beam's command line.")
    flags.DEFINE_string("work", "", "Folder of the stages' files that all workers see.")
    flags.DEFINE_float("head_room", 0.0, "Spare rows for the values of later days, as a share.")
    flags.DEFINE_string(
        "extends", "", "Prepared directory whose ids go on (recjax.data.store.growth)."
    )
    flags.DEFINE_float("reclaim_days", None, "Give ids unseen for so long to new values.")
    flags.mark_flags_as_required(["logs", "mapping"])
    command.run(main)
