"""Your own logs, described by a mapping (`recjax.data.logs.mapping`), as a prepared data set.

    python -m recjax.data.prepare --logs='path/*.parquet' --mapping=mapping.py --out=DIR
    python -m recjax.train --config=experiments/suan_logs.py --config.data.dir=DIR --workdir=runs/mine

Protocol. A *request* is a page, basket or request id of one user, or a user's rows of one time; its time is that of its
first row, and everything it sees happened strictly before. Training, validation and test follow each other in time.

Negatives are the rows whose label is 0, or are drawn from the items that the training period's positives took
(`recjax.data.logs.negatives`). Where they are drawn, an item's columns in the log (its price, its category) are those of the
item's last row before the request, for positives and negatives alike: the row's own would tell which is which. For the
same reason evaluation rows of items that no training request took are left out, and counted: no negative could be one.
The log-probability of a draw is the label `log_q`, which no model reads.

History: the user's earlier events (positives; with an `action` column, all of them or per-action lists). Causal counters:
count and recency of item, user, their pair, user x item ids, scene x item, over positives and over all rows.
Vocabularies and the catalogue know the training period only.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import tempfile
from typing import Any

from absl import logging
import numpy as np
import polars as pl

from recjax.data.logs import report, served, sharded
from recjax.data.logs.events import Events, Places, catalogue_of, impressions
from recjax.data.logs.features import Encoded, columns, encode, fields, make_schema
from recjax.data.logs.mapping import LogMapping, load_mapping
from recjax.data.logs.notes import added
from recjax.data.logs.progress import phase
from recjax.data.logs.rows import RawLog, describe, read_log
from recjax.data.logs.sources import fingerprint, list_files
from recjax.data.store.growth import NEW, Growth
from recjax.data.store.prepared import DataError, Prepared, is_prepared, prepared_path, say_prepared
from recjax.data.store.vocabulary import frames
from recjax.data.store.writing import BLOCK_SIZE, BlockBuilder, write_blocks, write_prepared
from recjax.schema import MISSING, OOV, Schema

RESERVED_IDS = {OOV: "(unknown)", MISSING: "(missing)"}
NAME, VERSION = "logs", "2.0.0"  # 2: a value has one spelling in every format


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    mapping: str = "",
    strict: bool = False,
    unit: str = "impression",
    block_size: int = BLOCK_SIZE,
    partitions: int = 1,
    shards: int = 0,
    runner: sharded.Runner | None = None,
    work: str = "",
    exact_dir: bool = False,
    head_room: float = 0.0,
    extends: str = "",
    reclaim_days: float | None = None,
) -> pathlib.Path:
    """Prepares logs and returns the directory; does nothing when the same logs were prepared with the same mapping.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Log files: a pattern, or several after commas.
      mapping: File that says what their columns mean (trusted code).
      strict: Refuse bad rows; else they go to quarantine.parquet and are counted.
      unit: What the training order permutes, "impression" or "request" (rows of a request stay together).
      block_size: Impressions per record.
      partitions: Of the users.
      shards: Prepare so many shards of users one after the other (`recjax.data.logs.sharded`), each a partition; 0: the
        whole log at once. The rows are the same; their numbering, training order and drawn negatives are not.
      runner: Of the shards' stages; None: this process.
      work: Folder for the stages' files, which all workers see; "": a temporary one beside `out_dir`.
      exact_dir: `out_dir` itself becomes the prepared directory.
      head_room, extends, reclaim_days: How vocabularies go on from day to day (`recjax.data.store.growth`).

    Raises:
      DataError: Files, columns or (with `strict`) rows are not as the mapping says.
      SchemaError: `extends` has no row left for the new values of an id space.
    """
    if not source or not mapping:
        raise DataError(
            "logs need data.source (their files) and data.prepare.mapping; or prepare them with "
            "python -m recjax.data.prepare and give data.dir"
        )
    m, files = load_mapping(mapping), list_files(source)
    growth = Growth(head_room, extends, reclaim_days)
    tables = [t for t in (m.user_table, m.item_table) if t]
    tables += m.joins
    tables += [f for pattern in m.event_files.values() for f in list_files(pattern)]
    options = {
        "mapping": m.as_json()
        | {
            "user_table": os.path.basename(m.user_table),
            "item_table": os.path.basename(m.item_table),
            **({"event_files": sorted(m.event_files)} if m.event_files else {}),
            **({"joins": list(m.joins.values())} if m.joins else {}),
        },
        "source": fingerprint(files),
        "tables": fingerprint(tables),
        "partitions": partitions,
        **growth.options(),
    }
    if shards:
        if partitions > 1:
            raise DataError("give shards or partitions: every shard becomes a partition")
        options["shards"] = shards
    layout = {"block_size": block_size, "unit": unit, "seed": m.seed}
    named = prepared_path(out_dir, NAME, options | layout, VERSION)
    path = pathlib.Path(out_dir) if exact_dir else named
    if _already(path, named.parent.name):
        say_prepared(source, path)
        return path
    if shards:
        with staging(path) as folder:
            where = work or str(folder / "work")
            job = sharded.run(
                where, files, m, shards, runner or sharded.LocalRunner(),
                unit=unit, block_size=block_size, strict=strict, growth=growth,
            )  # fmt: skip
            made = _write_shards(folder, job, options | layout)
            job.bad().write_parquet(made / "quarantine.parquet")
            publish(made, path)
        return path
    log = read_log(files, m, strict)
    if log.bad.height:
        logging.warning("%d bad rows are set aside in quarantine.parquet", log.bad.height)
    with staging(path) as folder:
        made = write_log(folder, log, m, options, layout, partitions, growth=growth)
        log.bad.write_parquet(made / "quarantine.parquet")
        publish(made, path)
    return path


def dry_run(source: str, mapping: str, rows: int = 1_000) -> tuple[dict[str, Any], Schema, Any]:
    """What preparation would make of each file's first rows; nothing is left behind.

    Splits are fractions here: the dates of the mapping may lie beyond these rows.

    Returns:
      The report, the schema, and the first training rows' features as a frame of log values.

    Raises:
      DataError: As `prepare`.
    """
    m, files = load_mapping(mapping), list_files(source)
    fractions = {name: 0.1 for name in m.split}
    m = dataclasses.replace(m, split=fractions, gap="")
    log = read_log(files, m, first=rows)
    with tempfile.TemporaryDirectory() as folder:
        layout = {"block_size": BLOCK_SIZE, "unit": "impression", "seed": m.seed}
        data = Prepared(write_log(pathlib.Path(folder), log, m, {}, layout, 1, lenient=True))
        return data.report, data.schema, _first_rows(data)


def _first_rows(data: Prepared, n: int = 5) -> pl.DataFrame:
    """Features of the first training rows, ids as the values they stand for."""
    block, out = data.block("train", 0), {}
    for f in data.schema.features:
        if f.list or f.vector or f.multi:
            continue
        x = block[f.name][:n]
        if f.kind == "id":
            known = dict(data.vocabulary(f.id_space).select("id", "value").iter_rows())
            x = [str(known.get(i, RESERVED_IDS.get(i, "?"))) for i in x.tolist()]
        out[f.name] = x
    return pl.DataFrame(out)


def _already(path: pathlib.Path, wanted: str) -> bool:
    if not is_prepared(path):
        if path.exists() and any(path.iterdir()):
            raise DataError(f"{path} is not empty and holds no prepared data; choose another --out")
        return False
    held = Prepared(path).identity["hash"]
    if held != wanted:
        raise DataError(
            f"{path} holds other prepared data ({held}); delete it or choose another --out"
        )
    return True


@contextlib.contextmanager
def staging(path: pathlib.Path):
    """A folder beside `path` that vanishes whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=".preparing-", dir=path.parent)
    try:
        yield pathlib.Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(made: pathlib.Path, path: pathlib.Path) -> None:
    """One rename; an empty folder may lie there, and another process may have been first."""
    try:
        os.replace(made, path)
    except OSError:
        if not is_prepared(path):
            raise


def write_log(
    folder: pathlib.Path,
    log: RawLog,
    m: LogMapping,
    options: Mapping[str, Any],
    layout: Mapping[str, Any],
    partitions: int,
    *,
    name: str = NAME,
    version: str = VERSION,
    builder: type[BlockBuilder] | None = None,
    found: Mapping[str, Any] | None = None,
    described: Mapping[str, pl.DataFrame] | None = None,
    growth: Growth = NEW,
    lenient: bool = False,
) -> pathlib.Path:
    """Writes a log that is read, with all that its mapping asks for, below `folder`; returns the prepared directory.

    Args:
      folder: Where to; it should not exist afterwards if this fails (`staging`).
      log: From `read_log`.
      m: Its meaning.
      options: What the content depends on, for `write_prepared`.
      layout: block_size, unit and seed, for `write_prepared`.
      partitions: Of the users.
      name: Of the data set.
      version: Of the code that read it.
      builder: Documents the data.
      found: Goes into the report as it is.
      described: Texts of an id space's values, kept in its vocabulary.
      growth: How the vocabularies begin, or go on from earlier ones.
      lenient: Take a training split with one label only.
    """
    try:
        e = Events.of(log, m)
    except DataError as error:
        if 2 * log.bad.height < log.read:
            raise
        raise DataError(
            f"{error}\n{log.bad.height:,} of {log.read:,} rows were set aside:\n{describe(log.bad)}"
        ) from None
    notes = report.never(m, report.actions_of(e))
    drawn: dict[str, Any] = {}
    with phase("draw negatives" if m.sampled else "find impressions"):
        places = impressions(e, drawn)
    with phase("vocabularies, histories and counters"):
        found_fields = fields(e, notes=notes)
        x = encode(e, found_fields, partitions, growth, notes)
    log = dataclasses.replace(log, notes=tuple(added([*log.notes, *notes])))
    make = {name: functools.partial(_columns_of, e, x, at) for name, at in places.items()}
    with phase("report"):
        what = report.make_report(log, e, x, places, drawn) | dict(found or {})
    if not lenient:
        report.refuse(what, m)
    logging.info("%s", report.report_text(what))
    with phase("write blocks"):
        return write_prepared(
            folder,
            name,
            make_schema(e, x),
            {name: [t.columns for t in parts] for name, parts in x.timelines.items()},
            make,
            vocab=frames(x.vocabularies, described),
            report=what,
            facts={
                "counters": [c for index in x.indexes for c in index.counter.columns],
                "negatives": m.negatives,
                **growth.facts(x.vocabularies),
            },
            options=options,
            version=version,
            builder=builder,
            more=served.writer(m, [lambda: served.rows_of(e, found_fields)]),
            **layout,
        )


def _write_shards(folder: pathlib.Path, job: sharded.Job, options) -> pathlib.Path:
    """The prepared directory of a finished job, inside `folder`."""
    text, counters = job.folder.json("made/schema.json")
    schema = Schema.from_json(text)
    what = job.report()
    report.refuse(what, job.mapping)
    logging.info("%s", report.report_text(what))
    return write_blocks(
        folder,
        NAME,
        schema,
        job.timelines(schema.lists),
        {split: functools.partial(job.blocks, split) for split in what["splits"]},
        vocab=sharded.vocabularies(job),
        report=what,
        facts={
            "counters": counters,
            "negatives": job.mapping.negatives,
            **job.growth.facts(job.whole(0).vocabularies),
        },
        options=options,
        version=VERSION,
        more=served.writer(job.mapping, job.served()),
    )


def _columns_of(e: Events, x: Encoded, at: Places) -> dict[str, np.ndarray]:
    if not e.mapping.sampled:
        return columns(e, x, at, None)
    return columns(e, x, at, catalogue_of(e).log_q(at.item))
