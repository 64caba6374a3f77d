"""Preparation of logs that do not fit into memory: the same steps, a shard of users at a time, in one process or on Beam.

    python -m recjax.data.prepare --logs=... --mapping=... --out=DIR --shards=64
    python -m recjax.data.prepare --logs=... --mapping=... --out=DIR --shards=64 --runner=DirectRunner \
        --beam_args=--direct_num_workers=8,--direct_running_mode=multi_processing

Users are dealt to shards by a checksum of their id, and a shard becomes a partition of the prepared data. The stages

    read    every piece of a log file: usable rows, dealt to shards
    sort    every shard: by time, without repeats; its values and request times
    count   every shard: values of its training rows, for vocabularies and the catalogue of negatives
    index   every shard: what others ask it (`recjax.data.logs.whole`)
    make    every shard: timelines and blocks

are maps over pieces or shards that read and write files of a work folder, and nothing else. So a runner only has to map:
a loop does, and so does any Beam runner whose workers see the folder (a bucket, a shared disk). Between the stages this
process adds up what does not grow with the log: vocabularies, distinct request seconds, the report. It then copies the
blocks, one at a time, into the prepared directory.

Memory: a stage holds one shard, or one piece of a file, and of another shard one index; never less than the largest user.
Vocabularies and the list of items are held whole. Time: shards ask each other, so counters across users and drawn items cost
(shards)^2 look-ups; take no more shards than memory asks for. CSV and JSONL files are read whole by one worker: split
big ones; Parquet is read in pieces of `PIECE` rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import io
import json
from typing import Any, Protocol
import zlib

from absl import logging
from etils import epath
import numpy as np
import polars as pl

from recjax.data.loading.mixed import side_by_side
from recjax.data.logs import features as log_features
from recjax.data.logs import served, shard_report
from recjax.data.logs.events import (
    Events,
    catalogue_of,
    check_splits,
    check_weights,
    codes,
    events_at,
    impressions,
    in_catalogue,
    requests_of,
    split_begins,
    weights_of,
)
from recjax.data.logs.mapping import LogMapping
from recjax.data.logs.notes import Note
from recjax.data.logs.notes import added as added_notes
from recjax.data.logs.progress import phase
from recjax.data.logs.report import actions_of, never
from recjax.data.logs.rows import (
    MOMENT,
    PLACE,
    RawLog,
    describe,
    in_time_order,
    nothing_left,
    read_part,
    settled,
    wanted_columns,
)
from recjax.data.logs.sources import ROW, kind_of, scan_rows
from recjax.data.logs.whole import Arrays, Whole, added, index_arrays, last_row_arrays, union
from recjax.data.store.blocks import split_blocks
from recjax.data.store.growth import NEW, Growth
from recjax.data.store.prepared import PARTITION, DataError
from recjax.data.store.vocabulary import Vocabulary, frames, occurrences

PIECE = 5_000_000


class Runner(Protocol):
    """Calls `do` for every item, in any order and anywhere; returns when all are done."""

    def map(self, do: Callable[[Any], None], items: Iterable[Any]) -> None: ...


class LocalRunner:
    """A loop in this process."""

    def map(self, do: Callable[[Any], None], items: Iterable[Any]) -> None:
        for item in items:
            do(item)


@dataclasses.dataclass(frozen=True)
class BeamRunner:
    """Any Apache Beam runner.

    Attributes:
      name: "DirectRunner", "DataflowRunner", "FlinkRunner", ...
      args: Its options, as on Beam's command line.
    """

    name: str = "DirectRunner"
    args: tuple[str, ...] = ()

    def map(self, do: Callable[[Any], None], items: Iterable[Any]) -> None:
        try:
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as e:
            raise DataError(
                "apache-beam is not installed; make an environment of its own with pip install 'recjax[beam]', or "
                "leave out --runner"
            ) from e
        options = PipelineOptions([f"--runner={self.name}", *self.args])
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "Items" >> beam.Create(list(items))
                | "Spread" >> beam.Reshuffle()
                | "Do" >> beam.Map(do)
            )


# -------------------------------------------------------------------------------------------- files


@dataclasses.dataclass(frozen=True)
class Folder:
    """Frames, arrays and JSON in a work folder, local or a bucket."""

    path: str

    def _open(self, name: str, mode: str):
        file = epath.Path(self.path) / name
        if mode == "wb":
            file.parent.mkdir(parents=True, exist_ok=True)
        return file.open(mode)

    def save_frame(self, name: str, frame: pl.DataFrame) -> None:
        with self._open(name, "wb") as f:
            frame.write_parquet(f)

    def frame(self, name: str) -> pl.DataFrame:
        with self._open(name, "rb") as f:
            return pl.read_parquet(io.BytesIO(f.read()))

    def save_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        with self._open(name, "wb") as f:
            np.savez(f, **{k.replace("/", "|"): x for k, x in arrays.items()})

    def arrays(self, name: str) -> Arrays:
        with self._open(name, "rb") as f, np.load(io.BytesIO(f.read())) as stored:
            return {k.replace("|", "/"): stored[k] for k in stored.files}

    def save_json(self, name: str, value: Any) -> None:
        with self._open(name, "wb") as f:
            f.write(json.dumps(value).encode())

    def json(self, name: str) -> Any:
        with self._open(name, "rb") as f:
            return json.loads(f.read())


# ------------------------------------------------------------------------------------------- stages


@dataclasses.dataclass(frozen=True)
class Job:
    """The stages of one preparation; each takes the number of a piece or a shard, and returns nothing.

    Attributes:
      mapping: What the columns mean.
      folder: Where the stages leave their files.
      pieces: (file, first row, rows) of the log, in its order; rows 0: the whole file.
      wanted: Columns to read.
      shards: Of users.
      parts: Shards that have rows, known after "sort": a shard's place here is its partition.
      unit, block_size: Of the blocks.
      growth: How the vocabularies begin.
      settled: What was noticed before anything was read.
    """

    mapping: LogMapping
    folder: Folder
    pieces: tuple[tuple[str, int, int], ...]
    wanted: tuple[str, ...]
    shards: int
    unit: str
    block_size: int
    growth: Growth = NEW
    settled: tuple[Note, ...] = ()
    parts: tuple[int, ...] = ()

    def read(self, i: int) -> None:
        file, first, rows = self.pieces[i]
        piece = (first, rows) if rows else None
        log = read_part(file, self.wanted, self.mapping, piece)
        # Its place in the whole log: piece << 32 | row.
        place = (pl.lit(i, pl.Int64) * (1 << 32) + pl.col(ROW).cast(pl.Int64)).alias(PLACE)
        log_rows = log.rows.with_columns(place)
        shard = shard_of(log_rows[self.mapping.user], self.shards)
        for s in range(self.shards):
            self.folder.save_frame(f"read/{s}-{i}", log_rows.filter(pl.Series(shard == s)))
        self.folder.save_frame(f"bad/read-{i}", log.bad)
        notes = [n.plain() for n in log.notes]
        self.folder.save_json(f"read/{i}.json", [log.read, log.out_of_order, notes])

    def sort(self, s: int) -> None:
        read = [self.folder.frame(f"read/{s}-{i}") for i in range(len(self.pieces))]
        log, repeated, notes = in_time_order(read, self.mapping)
        self.folder.save_frame(f"log/{s}", log)
        self.folder.save_frame(f"bad/sort-{s}", repeated)
        self.folder.save_json(f"sort/{s}.json", [log.height, [n.plain() for n in notes]])
        m, time = self.mapping, log[MOMENT].to_numpy() // 1_000_000
        _, asked = requests_of(log, m.request, codes(log[m.user])[1], time)
        times, counts = np.unique(asked, return_counts=True)
        self.folder.save_arrays(f"sort/{s}-times", {"times": times, "counts": counts})
        for name in self.shared:
            values = log[m.item if name == "item" else name].drop_nulls().unique()
            self.folder.save_frame(f"sort/{s}-{name}", pl.DataFrame({"value": values}))

    def count(self, p: int) -> None:
        e = self.events(p)
        trained, times = events_at(e, np.flatnonzero(e.trained)), e.time[e.trained]
        known: dict[str, int] = {}
        notes: list[Note] = []
        features = log_features.fields(e, known, notes)
        for f in {f.name: f for f in [*features, *log_features.remembered(e, features)]}.values():
            if f.kind in log_features.IDS:
                values, when = log_features.occurring(f, trained.of(f.where, e), times)
                seen = occurrences(values, None, when)
                self.folder.save_frame(f"count/{p}-{f.space}", seen.sort("value"))
        spaces = {
            f.space: log_features.min_count(f, e) for f in features if f.kind in log_features.IDS
        }
        recorded = log_features.remembered(e, features)
        spaces |= {f.space: log_features.min_count(f, e) for f in recorded}
        widths = {f.name: log_features.widths(f) for f in features if f.kind == "vector"}
        counted = {"spaces": spaces, "positive": bool(e.positive.all()), "actions": actions_of(e)}
        counted["weight"] = float(weights_of(e.rows, self.mapping)[e.trained].sum())
        counted["notes"] = [n.plain() for n in notes]
        self.folder.save_json(f"count/{p}.json", counted | {"known": known, "widths": widths})
        offered, n = np.unique(e.item[in_catalogue(e)], return_counts=True)
        arrays = {"offered": offered, "n": n, "trained": np.unique(e.item[e.trained])}
        arrays["positives"] = np.sum(e.trained & e.positive)
        present, rows = np.unique(e.split, return_counts=True)
        self.folder.save_arrays(f"count/{p}-items", arrays | {"splits": present, "rows": rows})

    def index(self, p: int) -> None:
        e = self.events(p)
        everything = events_at(e, np.arange(len(e.item)))
        x = log_features.encode(e, log_features.fields(e), 1)
        for c, build in log_features.counter_builders(e, x.keys, everything):
            if log_features.across_users(c):
                self.folder.save_arrays(f"index/{p}-{c.name}", index_arrays(build()))
        source = log_features.source_columns(x)
        if self.mapping.sampled and source:
            moment, place = e.rows[MOMENT].to_numpy(), e.rows[PLACE].to_numpy()
            columns = {name: values[:-1] for name, values in source.items()}
            arrays = last_row_arrays(e.item, moment, place, columns)
            self.folder.save_arrays(f"index/{p}-{log_features.LAST_ROWS}", arrays)

    def make(self, p: int) -> None:
        e, found = self.events(p), {}
        places = impressions(e, found)
        features = log_features.fields(e)
        x = log_features.encode(e, features, 1)
        if self.mapping.ids == "text":
            self.folder.save_frame(f"made/{p}-served", served.rows_of(e, features))
        schema = log_features.make_schema(e, x)
        timelines = {name: [t[0].columns] for name, t in x.timelines.items()}
        for name, parts in timelines.items():
            self.folder.save_arrays(f"made/{p}-timeline-{name}", parts[0])
        if p == 0:
            counters = [c for index in x.indexes for c in index.counter.columns]
            self.folder.save_json("made/schema.json", [schema.to_json(), counters])
        blocks = {}
        for split, at in places.items():
            blocks[split] = 0
            if not len(at.row):
                continue
            log_q = catalogue_of(e).log_q(at.item) if self.mapping.sampled else None
            columns = log_features.columns(e, x, at, log_q)
            options = dict(block_size=self.block_size, unit=self.unit, seed=self._seed(p))
            for i, block in enumerate(split_blocks(schema, timelines, split, columns, **options)):
                self.folder.save_arrays(f"made/{p}-{split}-{i}", block | {PARTITION: np.int32(p)})
                blocks[split] += 1
        self.folder.save_json(f"made/{p}-blocks.json", blocks)
        counted = shard_report.count_shard(e, x, places, found)
        self.folder.save_json(f"made/{p}-report.json", counted)

    # ---- what they share

    @property
    def shared(self) -> tuple[str, ...]:
        """Columns whose values in all shards are needed: "item", and the log's columns that counters cross."""
        m = self.mapping
        ids = [
            c
            for c in m.item_columns
            if c not in m.dense and c not in m.vectors and c not in m.multi
        ]
        log = [c for c in (*ids, m.scene) if c and c in self.wanted]
        return ("item", *dict.fromkeys(log)) if m.counters else ("item",)

    def _seed(self, p: int) -> Any:
        """Of a shard's training order: of the only one, that of a log prepared at once."""
        return self.mapping.seed if len(self.parts) == 1 else [self.mapping.seed, p]

    def whole(self, p: int) -> Whole:
        """What shard `p` knows of the others, as far as the stages have come."""
        known = self.folder.json("whole.json")
        vocabularies = {}
        for space, rows in known.get("spaces", {}).items():
            frame = self.folder.frame(f"vocab/{space}")
            vocabularies[space] = Vocabulary.load(space, frame, rows)
        arrays = self.folder.arrays("items") if vocabularies else {}
        none = np.zeros(0, np.int64)
        return Whole(
            partition=p,
            partitions=len(self.parts),
            begins=tuple(known["begins"]),
            values={name: self.folder.frame(f"values/{name}")["value"] for name in self.shared},
            positive=known.get("positive", True),
            vocabularies=vocabularies,
            widths=known.get("widths", {}),
            items=(arrays.get("offered", none), arrays.get("n", none)),
            trained=arrays.get("trained", none),
            load=functools.partial(self._indexes),
        )

    def _indexes(self, name: str) -> Iterator[Arrays]:
        for p in range(len(self.parts)):
            yield self.folder.arrays(f"index/{p}-{name}")

    def events(self, p: int) -> Events:
        rows = self.folder.frame(f"log/{self.parts[p]}")
        return Events.of(RawLog(rows, rows.clear(), rows.height, 0), self.mapping, self.whole(p))

    # ---- between the stages

    def after_sort(self) -> "Job":
        """Adds up values and request times; names the shards that have rows."""
        sizes = [self.folder.json(f"sort/{s}.json")[0] for s in range(self.shards)]
        parts = tuple(s for s, n in enumerate(sizes) if n)
        if not parts:
            raise nothing_left(self.mapping, len({file for file, _, _ in self.pieces}), self.bad())
        times = [self.folder.arrays(f"sort/{s}-times") for s in parts]
        begins = split_begins(self.mapping, *added([(t["times"], t["counts"]) for t in times]))
        self.folder.save_json("whole.json", {"begins": begins})
        for name in self.shared:
            values = union([self.folder.frame(f"sort/{s}-{name}")["value"] for s in parts])
            self.folder.save_frame(f"values/{name}", pl.DataFrame({"value": values}))
        logging.info("%d rows in %d shards, at most %d in one", sum(sizes), len(parts), max(sizes))
        return dataclasses.replace(self, parts=parts)

    def after_count(self) -> None:
        """Vocabularies, widths of vectors, catalogue and which items training knows."""
        n = range(len(self.parts))
        counted = [self.folder.json(f"count/{p}.json") for p in n]
        check_weights(self.mapping, sum(c["weight"] for c in counted))
        for side in counted[0]["known"]:
            of_all = sum(c["known"][side] for c in counted)
            log_features.check_known(self.mapping, {side: of_all})
        notes = [Note(*n) for n in counted[0]["notes"]]  # side tables are the same in all shards
        widths = {
            name: log_features.one_width(name, [c["widths"][name] for c in counted], notes)
            for name in counted[0]["widths"]
        }
        actions: dict[str, int] = {}
        for c in counted:
            for action, rows_of in c["actions"].items():
                actions[action] = actions.get(action, 0) + rows_of
        notes += never(self.mapping, actions)
        known, rows = self.folder.json("whole.json"), {}
        for space, least in counted[0]["spaces"].items():
            seen = [self.folder.frame(f"count/{p}-{space}") for p in n]
            if len({c["value"].dtype for c in seen}) > 1:
                seen = [c.with_columns(pl.col("value").cast(pl.String)) for c in seen]
            every = pl.concat(seen)
            times = every["last"].to_numpy()
            v = self.growth.vocabulary(space, every["value"], least, times, every["count"])
            rows[space] = v.rows
            self.folder.save_frame(f"vocab/{space}", v.frame())
        known |= {"positive": all(c["positive"] for c in counted), "widths": widths}
        known["notes"] = [n.plain() for n in notes]
        self.folder.save_json("whole.json", known | {"spaces": rows})
        arrays = [self.folder.arrays(f"count/{p}-items") for p in n]
        offered, counts = added([(a["offered"], a["n"]) for a in arrays])
        trained = np.zeros(len(self.folder.frame("values/item")), bool)
        for a in arrays:
            trained[a["trained"]] = True
        self.folder.save_arrays("items", {"offered": offered, "n": counts, "trained": trained})
        present = np.unique(np.concatenate([a["splits"] for a in arrays]))
        names = ("train", *(s for s in ("validation", "test") if s in self.mapping.split))
        asked = np.concatenate([self.folder.arrays(f"sort/{s}-times")["times"] for s in self.parts])
        check_splits(self.mapping, present, names, asked)
        if self.mapping.sampled and not sum(a["positives"] for a in arrays):
            raise DataError("no positive row in the training period; correct labels or split")

    def after_make(self) -> None:
        """Refuses a split of which no shard has an impression."""
        blocks = [self.folder.json(f"made/{p}-blocks.json") for p in range(len(self.parts))]
        for name in blocks[0]:
            if not any(b[name] for b in blocks):
                raise DataError(f"no positive of split {name!r} is of an item that training knows")

    def bad(self) -> pl.DataFrame:
        """Rows that were set aside."""
        names = [f"bad/read-{i}" for i in range(len(self.pieces))]
        names += [f"bad/sort-{s}" for s in range(self.shards)]
        return pl.concat([self.folder.frame(n) for n in names])

    def read_counts(self) -> tuple[int, int]:
        """Rows read and rows out of order."""
        counts = [self.folder.json(f"read/{i}.json") for i in range(len(self.pieces))]
        return sum(c[0] for c in counts), sum(c[1] for c in counts)

    def read_notes(self) -> list[Note]:
        """What was noticed while reading and sorting."""
        read = [self.folder.json(f"read/{i}.json")[2] for i in range(len(self.pieces))]
        read += [self.folder.json(f"sort/{s}.json")[1] for s in range(self.shards)]
        return added_notes([*self.settled, *(Note(*n) for notes in read for n in notes)])

    def report(self) -> dict[str, Any]:
        n = range(len(self.parts))
        counted = [self.folder.json(f"made/{p}-report.json") for p in n]
        vocabularies = {s: len(v.values) for s, v in self.whole(0).vocabularies.items()}
        items = len(self.folder.frame("values/item"))
        known = self.folder.json("whole.json")
        notes = [*self.read_notes(), *(Note(*x) for x in known["notes"])]
        about = items, vocabularies, notes, str(self.mapping.as_of)
        return shard_report.merge(counted, self.bad(), *self.read_counts(), *about)

    def blocks(self, split: str) -> Iterator[dict[str, Any]]:
        """Blocks of all shards, taken from them evenly, numbered through."""
        n = range(len(self.parts))
        sizes = [self.folder.json(f"made/{p}-blocks.json")[split] for p in n]
        row = 0
        for p, i in side_by_side(sizes, epochs=1).tolist():
            block = self.folder.arrays(f"made/{p}-{split}-{i}")
            block["row"] = np.arange(row, row + len(block["time"]), dtype=np.int32)
            row += len(block["time"])
            yield block | {PARTITION: np.int32(p)}

    def served(self) -> list[Callable[[], pl.DataFrame]]:
        """The rows of each shard, as serving wants them."""
        n = range(len(self.parts))
        return [functools.partial(self.folder.frame, f"made/{p}-served") for p in n]

    def timelines(self, lists: Sequence[str]) -> dict[str, list["TimelineFile"]]:
        n = range(len(self.parts))
        return {
            name: [TimelineFile(self.folder, f"made/{p}-timeline-{name}") for p in n]
            for name in lists
        }


class TimelineFile(Mapping):
    """Columns of a saved timeline, of which one at a time is in memory."""

    def __init__(self, folder: Folder, name: str):
        self._folder, self._name = folder, name
        self._sizes = {k: len(x) for k, x in folder.arrays(name).items()}

    def __getitem__(self, column: str) -> np.ndarray:
        return self._folder.arrays(self._name)[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)


def shard_of(users: pl.Series, shards: int) -> np.ndarray:
    """The shard of each user: a checksum of its text, which no version changes; int64 [N]."""
    text = users.cast(pl.String)
    unique = text.unique()
    sums = [zlib.crc32(u.encode()) % shards for u in unique]
    return text.replace_strict(unique, pl.Series(sums, dtype=pl.Int64), default=0).to_numpy()


def pieces_of(files: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    """Files, Parquet in pieces of `PIECE` rows."""
    out: list[tuple[str, int, int]] = []
    for file in files:
        rows = scan_rows(file) if kind_of(file) == "parquet" else 0
        out += [(file, at, PIECE) for at in range(0, rows, PIECE)] or [(file, 0, 0)]
    return tuple(out)


def run(
    folder: str,
    files: Sequence[str],
    m: LogMapping,
    shards: int,
    runner: Runner,
    *,
    unit: str,
    block_size: int,
    strict: bool = False,
    growth: Growth = NEW,
) -> Job:
    """All stages; the finished job has the blocks, timelines and report.

    Raises:
      DataError: As `recjax.data.logs.prepare.prepare`.
    """
    m, notes = settled(files, m)
    wanted, pieces = tuple(wanted_columns(files, m)), pieces_of(files)
    options = unit, block_size, growth, tuple(notes)
    job = Job(m, Folder(folder), pieces, wanted, shards, *options)
    with phase(f"read {len(pieces):,} pieces"):
        runner.map(job.read, range(len(pieces)))
    with phase(f"sort {shards:,} shards"):
        runner.map(job.sort, range(shards))
    bad = job.bad()
    if strict and bad.height:
        raise DataError(f"{bad.height} bad rows, refused by --strict:\n{describe(bad)}")
    job = job.after_sort()
    everyone = range(len(job.parts))
    with phase("count values"):
        runner.map(job.count, everyone)
    job.after_count()
    with phase("index histories and counters"):
        runner.map(job.index, everyone)
    with phase("make blocks"):
        runner.map(job.make, everyone)
    job.after_make()
    return job


def vocabularies(job: Job) -> dict[str, pl.DataFrame]:
    """What `write_blocks(vocab=...)` takes."""
    return frames(job.whole(0).vocabularies)
