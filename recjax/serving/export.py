"""From a finished run to an artifact.

    python -m recjax.serving.export --run=runs/lightsuan --out=artifacts/lightsuan

The newest checkpoint, rows as int8. Of a distilled pair only the student goes in. Where the data set has an event log
(`recjax.data.store.event_log`), so do its causal counters and histories as of `--until` (default: its end), and the service
keeps them up to date.
"""

import json
import os
import sys
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from recjax import command
from recjax.data import module_of
from recjax.data.loading.layout import BatchError
from recjax.data.logs import served
from recjax.data.store.event_log import EventLog
from recjax.data.store.sampling import keep_probability
from recjax.runtime.run import set_up
from recjax.schema import Schema
from recjax.serving import artifact, catalogue
from recjax.serving.quantize import FORMATS
from recjax.training.opening import open_run


def export_run(
    run: str | os.PathLike,
    out: str | os.PathLike,
    *,
    rows_format: str = "int8",
    until: int | None = None,
    snapshot: bool = True,
    data_dir: str = "",
    best: bool = False,
) -> dict[str, Any]:
    """Exports a run, replacing what lies at `out`; returns the manifest.

    Args:
      run: Its workdir.
      out: Local directory.
      rows_format: float32, float16 or int8.
      until: Seconds; counters and histories as of then. None: as of the end of the log.
      snapshot: False leaves counters and histories out: clients send them.
      data_dir: A prepared directory in place of the run's own.
      best: The best checkpoint rather than the newest.

    Raises:
      ArtifactError, FileNotFoundError: Saying what is missing.
    """
    config, data, system, trees, _ = open_run(run, data_dir, best=best)
    if system.export_view is not None:
        system, trees = system.export_view(trees)
    log = _event_log(config, data) if snapshot else None
    if snapshot and log is None:
        logging.warning("%s", _no_snapshot(system.schema))
    batch = next(iter(data.batches(config.data.train, 64)))
    stored = catalogue.derive(system, data.prepared, batch) if hasattr(data, "prepared") else None
    return artifact.export_artifact(
        out,
        system,
        trees,
        batch=batch,
        config=json.loads(config.to_json()),
        vocab=data.vocabulary,
        metadata={"keep_prob": keep_probability(data.identity, config.data.train)},
        rows_format=rows_format,
        derive=stored,
        log=log,
        until=until,
        overwrite=True,
    )


def _event_log(config: ConfigDict, data) -> EventLog | None:
    """Of the data set, if its module has one."""
    try:
        make = getattr(module_of(config.data.name), "event_log", None)
    except BatchError:  # the module of an own data set that this machine does not have
        make = None
    if make:
        return make(data.prepared, config.data.source)
    prepared = getattr(data, "prepared", None)
    return served.event_log(prepared) if prepared and served.is_served(prepared) else None


def _no_snapshot(schema: Schema) -> str:
    counters = [f.name for f in schema.select("candidate", kind="dense")]
    what = ", ".join([*(f"history {n!r}" for n in schema.lists), *map(repr, counters)])
    return (
        f"the data bring no event log, so the artifact has no snapshot: clients send {what or 'all features'} with every "
        "request; own logs that an earlier version prepared have one once they are prepared again"
    )


def main(_) -> None:
    set_up()
    try:
        manifest = export_run(
            _RUN.value,
            _OUT.value,
            rows_format=_ROWS.value,
            until=_UNTIL.value,
            snapshot=_SNAPSHOT.value,
            data_dir=_DATA.value,
            best=_BEST.value,
        )
    except (artifact.ArtifactError, FileNotFoundError) as e:
        sys.exit(f"error: {e}")
    size = sum(f["bytes"] for f in manifest["files"].values())
    print(f"{_OUT.value}: {manifest['stamp'][:12]}, {size / 2**20:.1f} MiB")
    if own := manifest.get("snapshot", {}).get("own"):
        print(f"a request needs {', '.join(own['needs'])}; the rest follows, or is kept up to date")


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "workdir of the run", required=True)
    _OUT = flags.DEFINE_string("out", None, "directory of the artifact", required=True)
    _ROWS = flags.DEFINE_enum("rows", "int8", FORMATS, "storage of the tables")
    _UNTIL = flags.DEFINE_integer("until", None, "seconds; snapshot of counters and histories")
    _SNAPSHOT = flags.DEFINE_bool("snapshot", True, "counters and histories go in")
    _DATA = flags.DEFINE_string("data_dir", "", "a prepared directory in place of the run's own")
    _BEST = flags.DEFINE_bool("best", False, "the best checkpoint rather than the newest")
    command.run(main)
