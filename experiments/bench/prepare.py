"""Time, peak memory and bytes on disk of preparing The Complete Journey, against histories written out row by row.

    python -m experiments.bench.prepare --out=DIR --rate=1:20

Prepares into an empty --out in this process and prints one line of each. Written-out histories are counted, not
written: every impression with its last --history events, each event's fields (4 bytes) and time (8 bytes).
"""

import pathlib
import resource
import time

from absl import app, flags, logging

from recjax import command
from recjax.data.sets import complete_journey
from recjax.data.store.prepared import Prepared, feature_dtype


def event_bytes(prepared: Prepared) -> int:
    """Bytes of one event of every list, time included."""
    total = 0
    for name in prepared.schema.lists:
        total += 8
        for f in prepared.schema.features:
            if f.list == name:
                dtype, shape = feature_dtype(f)
                total += dtype().itemsize * (shape[0] if shape else 1)
    return total


def sizes(prepared: Prepared) -> tuple[int, int]:
    """Bytes of the whole directory, and of its timelines."""
    files = [f for f in prepared.path.rglob("*") if f.is_file()]
    timelines = sum(f.stat().st_size for f in (prepared.path / "timelines").rglob("*.npy"))
    return sum(f.stat().st_size for f in files), timelines


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.ERROR)
    f = flags.FLAGS
    out = pathlib.Path(f.out)
    if out.exists() and any(out.iterdir()):
        raise app.UsageError(f"{out} is not empty; a prepared set would only be found there")
    began = time.perf_counter()
    path = complete_journey.prepare(out, rate=f.rate, limit_households=f.limit_households)
    wall = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # Linux: KiB
    prepared = Prepared(path)
    rows = sum(prepared.splits.values())
    total, timelines = sizes(prepared)
    written_out = total - timelines + rows * f.history * event_bytes(prepared)
    print(f"{rows:,} opportunities in {len(prepared.splits)} splits: {prepared.splits}")
    print(f"prepared in {wall:.1f} s, {peak:.2f} GiB at most")
    print(
        f"{total / rows:.1f} bytes an opportunity on disk, {timelines / rows:.1f} of them histories"
    )
    print(
        f"with histories of {f.history} written out {written_out / rows:,.1f}: "
        f"{written_out / total:.1f} times as many"
    )


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "An empty folder.", required=True)
    flags.DEFINE_string("rate", "1:20", "Negatives kept per purchase.")
    flags.DEFINE_integer("history", 200, "Events of a written-out history.")
    flags.DEFINE_integer("limit_households", 0, "Only the first n households; 0: all.")
    command.run(main)
