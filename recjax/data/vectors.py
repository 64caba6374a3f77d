"""Item vectors made before training, kept with prepared data: python -m recjax.data.vectors --data=DIR --dim=32

Models may begin from them, trained or frozen: --config.data.vectors="(('product', 'cooccurrence', 'frozen', 0.3),)"
(`recjax.configs`). Only events of the training period are read. Controls are made the same way, under other names:

    python -m recjax.data.vectors --data=DIR --name=shuffled --shuffle          must be worth nothing
    python -m recjax.data.vectors --data=DIR --name=as-many --events=280000     from as many events as are trained on
    python -m recjax.data.vectors --data=DIR --name=earlier --until=1500000000  from an earlier period only

Vectors of texts or of your own come from a Parquet file with a column `value` (the item as the log writes it) and a
column `text` (--of=text --file=F, encoded by --encoder) or `vector` (--of=file --file=F).
"""

import dataclasses
import pathlib
import re
import sys
import time
from typing import Any

from absl import flags
import numpy as np
import polars as pl

from recjax import command
from recjax.data.sets import text
from recjax.data.store import item_vectors
from recjax.data.store.prepared import DataError, Prepared
from recjax.schema import SchemaError

SECONDS = {"h": 3_600, "d": 86_400, "w": 604_800}


def days(window: str) -> float:
    """ "28d" -> 28.0; also hours and weeks.

    Raises:
      DataError: Another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", window)
    if not found:
        raise DataError(f"--window={window!r} is not a number with h, d or w, such as 28d")
    return float(found[1]) * SECONDS[found[2]] / SECONDS["d"]


def make(
    data: Prepared, of: str, recipe: item_vectors.Recipe, file: str, encoder: str
) -> np.ndarray:
    """The vectors that the flags ask for, float32 [rows, dim]."""
    if of == "cooccurrence":
        return item_vectors.cooccurrence(data, recipe)
    if not pathlib.Path(file).is_file():
        raise DataError(f"--of={of} reads --file, but {file or 'none was given'!r} is no file")
    frame = pl.read_parquet(file)
    if of == "text":
        if "text" not in frame.columns:
            raise DataError(f"{file} has no column 'text'; it has {', '.join(frame.columns)}")
        encoded = text.encoder(encoder)(frame["text"].cast(pl.String).fill_null("").to_list())
        frame = frame.with_columns(vector=pl.Series(list(encoded), dtype=pl.List(pl.Float32)))
    return item_vectors.given(data, recipe.space, frame)


def run(f: Any) -> str:
    """Makes and keeps them; returns what there is to say."""
    data = Prepared(f.data)
    space = f.space or item_vectors.item_space(data)
    recipe = item_vectors.Recipe(
        space,
        dim=f.dim,
        window_days=days(f.window),
        until=f.until,
        events=f.events,
        least=f.least,
        least_context=f.least_context,
        shuffle=f.shuffle,
        seed=f.seed,
    )
    began = time.monotonic()
    vectors = make(data, f.of, recipe, f.file, f.encoder)
    name = f.name or f.of
    about = dict(
        dataclasses.asdict(recipe), of=f.of, file=f.file, until=item_vectors.last_time(data, recipe)
    )
    folder = item_vectors.save(data, name, vectors, about)
    share = item_vectors.covered(data, recipe, vectors)
    lines = [
        f"{folder}: {int(vectors.any(1).sum()):,} of {data.schema.space(space).size:,} ids of {space!r} have a vector "
        f"of {vectors.shape[1]} numbers, {share:.1%} of the training period's events ({time.monotonic() - began:.0f} s)"
    ]
    for split in (s for s in data.splits if s.startswith("validation") and data.splits[s]):
        auc = item_vectors.untrained_auc(data, space, vectors, split)
        lines.append(
            f"cosine with the mean of the last 20 events, untrained: AUC {auc:.4f} on {split}"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"error: unexpected {argv[1]!r}")
    try:
        print(run(flags.FLAGS))
    except (DataError, SchemaError, text.TextError) as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    flags.DEFINE_string(
        "data", None, "Prepared directory; the vectors are kept in it.", required=True
    )
    flags.DEFINE_string(
        "name", "", "What the vectors are called there; default: the value of --of."
    )
    flags.DEFINE_enum(
        "of", "cooccurrence", ["cooccurrence", "text", "file"], "What they are made of."
    )
    flags.DEFINE_string("space", "", "Id space that gets vectors; default: the items'.")
    flags.DEFINE_integer("dim", 32, "Numbers in a vector (of co-occurrence).", lower_bound=1)
    flags.DEFINE_string("window", "28d", "Events of a user within so long go together.")
    flags.DEFINE_integer(
        "until", None, "Only events up to this time, seconds; default: all of training."
    )
    flags.DEFINE_integer("events", 0, "Only the earliest so many events; 0: all.", lower_bound=0)
    flags.DEFINE_integer("least", 5, "Events that an item needs for a vector.", lower_bound=1)
    flags.DEFINE_integer(
        "least_context", 100, "Events that an item needs to be a context.", lower_bound=1
    )
    flags.DEFINE_bool("shuffle", False, "A control: vectors change places among the items.")
    flags.DEFINE_integer("seed", 0, "Of the decomposition and the shuffle.")
    flags.DEFINE_string("file", "", "Parquet file of --of=text and --of=file.")
    flags.DEFINE_enum("encoder", "wordllama", list(text.ENCODERS), "Of --of=text.")
    command.run(main)
