"""Files of scores that `recjax.score` writes, one of each host that scores its part: their form, and their metrics.

Every host scores its own blocks with its own copy of the model and writes one part, so nothing is exchanged and a part
that failed is simply done again; whoever reads all parts gets the figures one host would have got.
"""

from collections.abc import Iterator, Mapping, Sequence
import glob
import json
import pathlib
import re
from typing import Any

from absl import logging
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recjax.data.loading.batches import Part
from recjax.data.loading.layout import BatchError
from recjax.data.loading.slices import Slice, default_slices, make_slices
from recjax.data.store.prepared import DataError, Prepared
from recjax.data.store.translate import Translated
from recjax.evaluation.collector import Collector, SliceCollector
from recjax.evaluation.probability import probability_names
from recjax.runtime.run import plain

KEY = b"recjax"
BLOCK = 65_536  # scored rows measured at a time


class ScoredError(ValueError):
    """Scored files do not belong together; the message says which and what to do."""


def score_columns(logits: Sequence[str]) -> dict[str, str]:
    """Logit output -> its column: "logits" -> "logit", another "buy" -> "buy/logit"."""
    return {n: p.replace("probability", "logit") for n, p in probability_names(logits).items()}


def describe(scorer, prepared: Prepared, split: str, shard: tuple[int, int], **facts) -> bytes:
    """What a scored file says about itself; of `facts`, "model" keeps parts of different models apart."""
    columns = score_columns(scorer.logits)
    objectives = [o | {"column": columns.get(o["output"], "")} for o in facts["objectives"]]
    return json.dumps(
        {
            **facts,
            "objectives": [o for o in objectives if o["column"]],
            "groups": list(prepared.schema.groups),
            "data": prepared.identity["hash"],
            "rows": prepared.splits.get(split, 0),
            "split": split,
            "translated": isinstance(prepared, Translated),
            "shard": list(shard),
        }
    ).encode()


def parts(
    scorer, prepared: Prepared, split: str, chunk: int, shard: tuple[int, int]
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """(columns, outputs) of every `count`-th block, `index` first, a chunk of impressions at a time."""
    index, count = shard
    partitions = prepared.block_partitions(split)
    for i in range(index, prepared.blocks(split), count):
        block = prepared.block(split, i)
        timelines = {n: prepared.timeline(n, int(partitions[i])) for n in scorer.schema.lists}
        for at in range(0, len(block["time"]), chunk):
            columns = {n: x[at : at + chunk] for n, x in block.items() if np.ndim(x)}
            yield columns, scorer.score_part(Part(columns, timelines))


def part_name(out: str, shard: tuple[int, int]) -> str:
    """ "scores.parquet" -> "scores-00001-of-00004.parquet"; as it is for one host."""
    index, count = shard
    path = pathlib.Path(out)
    return str(path.with_stem(f"{path.stem}-{index:05d}-of-{count:05d}")) if count > 1 else out


def parse_shard(text: str) -> tuple[int, int]:
    """ "1/4": the second of four hosts."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ScoredError(
            f"--shard={text!r}: write it as 0/4 ... 3/4, this host's number and how many"
        )
    return int(found[1]), int(found[2])


# ---- measuring


def read_about(files: Sequence[str]) -> dict[str, Any]:
    """What the parts say about themselves; raises ScoredError unless they are one whole."""
    if not files:
        raise ScoredError("no scored file matches --scores")
    about = [_about(f) for f in files]
    first = about[0]
    for file, a in zip(files, about, strict=True):
        if any(a[k] != first[k] for k in a if k not in ("shard", "model")):
            raise ScoredError(
                f"{file} and {files[0]} were not scored by the same model on the same split"
            )
    _check_model(files, about)
    count = first["shard"][1]
    missing = sorted(set(range(count)) - {a["shard"][0] for a in about})
    if missing or len(about) != count:
        raise ScoredError(
            f"{len(about)} files of {count} parts: parts {missing or 'are given twice'} "
            f"{'are missing; score them with --shard=' + f'{missing[0]}/{count}' if missing else ''}"
        )
    return first


def _check_model(files: Sequence[str], about: Sequence[Mapping[str, Any]]) -> None:
    """Raises ScoredError where parts name different models; those of earlier versions name none."""
    said = {a["model"]: file for file, a in zip(files, about, strict=True) if "model" in a}
    if len(said) > 1:
        (one, file), (other, another) = list(said.items())[:2]
        raise ScoredError(
            f"{another} and {file} were not scored by the same model ({other}; {one}); "
            "score all parts again with one checkpoint, or with one artifact"
        )


def _about(file: str) -> dict[str, Any]:
    metadata = pq.read_schema(file).metadata or {}
    if KEY not in metadata:
        raise ScoredError(
            f"{file} holds no scores of prepared data; write it with recjax.score --split"
        )
    return json.loads(metadata[KEY])


def measure(files: Sequence[str], slices: Sequence[Slice] = ()) -> dict[str, Any]:
    """Exact metrics of scored files, as `recjax.evaluation.evaluator.Evaluator` gives them.

    Raises:
      ScoredError: The files are not all parts of one scored split.
    """
    about = read_about(files)
    out: dict[str, Any] = {}
    for o in about["objectives"]:
        whole, by_slice = Collector(), SliceCollector(slices)
        names = [o["column"], o["label"], "weight", "row", *about["groups"]]
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(BLOCK, columns=names):
                x = {n: batch.column(n).to_numpy() for n in names}
                groups = {k: x[k] for k in about["groups"]}
                for collector in (whole, by_slice):
                    collector.add(x[o["column"]], x[o["label"]], x["weight"], x["row"], groups)
        measured = whole.compute()
        measured["evaluated"] = measured.pop("examples")
        measured |= {"slices": by_slice.compute()} if slices else {}
        out |= {(f"{o['name']}/" if o["name"] else "") + k: v for k, v in measured.items()}
    return out


def check_data(about: Mapping[str, Any], prepared: Prepared) -> None:
    """Raises DataError unless the scored rows are this data's."""
    if about["data"] != prepared.identity["hash"]:
        raise DataError(
            f"the scores are of data {about['data']}, {prepared.path} holds {prepared.identity['hash']}; "
            "give --data the directory that was scored"
        )


def with_metadata(table: pa.Table, about: bytes) -> pa.Table:
    return table.replace_schema_metadata({KEY: about})


def evaluate(pattern: str, data_dir: str, wanted: Sequence[str]) -> dict:
    """split -> metrics of the files that `recjax.score` wrote, of the wanted slices too (of the data in `data_dir`)."""
    files = sorted(glob.glob(pattern))
    about = read_about(files)
    slices: list[Slice] = []
    if wanted:
        if not data_dir:
            raise BatchError("slices are made from the scored data; give --data, or --slices=")
        prepared = Prepared(data_dir)
        check_data(about, prepared)
        if about["translated"]:  # what the model knew, this data's ids do not tell
            wanted = default_slices(prepared.schema) if list(wanted) == ["default"] else wanted
            wanted = [w for w in wanted if not w.startswith("new:")]
            logging.warning("scored with a model of other data: new: slices are left out")
        trained = dict(about["trained"], prepared=prepared)
        known = trained["split"] in prepared.splits
        slices = make_slices(prepared, about["split"], wanted, trained if known else None)
    return {about["split"]: plain(measure(files, slices))}
