"""Scores a file, or a split of prepared data, with an artifact or a run.

    python -m recjax.score --artifact=DIR --in=requests.parquet --out=scores.parquet
    python -m recjax.score --artifact=DIR --in=PREPARED --split=test --out=scores.parquet
    python -m recjax.score --run=RUN --in=PREPARED --split=test --out=scores.parquet --shard=0/4

A parquet file holds one request a row, in raw values (`recjax.serving.requests` says which columns). The output has
its rows in its order: all its columns but the histories, then for every logit `logit` and `probability` (or
`<output>/logit` and `<output>/probability`), and the other outputs of [B, C] under their names. For prepared data
the rows are impressions, and time, request, groups, labels and weight stand before the scores. Data prepared with
other vocabularies is scored too: its values are translated (`recjax.data.store.translate`). With --shard=i/n each of n hosts
scores its own blocks and writes scores-0000i-of-0000n.parquet; `python -m recjax.evaluate --scores=...` reads them all.
"""

import sys

from absl import flags

from recjax import command
from recjax.evaluation import score_files
from recjax.runtime.run import set_up
from recjax.serving import batch_scoring


def main(_) -> None:
    set_up()
    try:
        shard = score_files.parse_shard(_SHARD.value)
        rows = batch_scoring.score(
            _ARTIFACT.value,
            flags.FLAGS["in"].value,
            _OUT.value,
            run=_RUN.value,
            best=_BEST.value,
            shard=shard,
            split=_SPLIT.value,
            function=_FUNCTION.value,
            chunk=_CHUNK.value,
            corrected=_CORRECTED.value,
        )
    except batch_scoring.ERRORS as e:
        sys.exit(f"error: {e}")
    print(f"{rows} rows scored into {score_files.part_name(_OUT.value, shard)}")


if __name__ == "__main__":
    _ARTIFACT = flags.DEFINE_string("artifact", "", "directory of the artifact")
    _RUN = flags.DEFINE_string("run", "", "workdir of a recjax.train run, in place of an artifact")
    _BEST = flags.DEFINE_bool("best", False, "the run's best checkpoint rather than the newest")
    _SHARD = flags.DEFINE_string("shard", "0/1", "this host and how many score together, as 0/4")
    flags.DEFINE_string("in", None, "parquet file of raw requests, or a prepared directory")
    _OUT = flags.DEFINE_string("out", None, "parquet file to write")
    _SPLIT = flags.DEFINE_string("split", "test", "split of a prepared directory")
    _FUNCTION = flags.DEFINE_string(
        "function", "", "function of the artifact; default: score, or the only one"
    )
    _CHUNK = flags.DEFINE_integer("chunk", 512, "requests scored at a time", lower_bound=1)
    _CORRECTED = flags.DEFINE_bool(
        "corrected", True, "correct for negatives the training data left out"
    )
    flags.mark_flags_as_required(["in", "out"])
    command.run(main)
