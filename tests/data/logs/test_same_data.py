"""The same log in any format, of any type, in one file or three, is the same prepared data, bit by bit.

pytest tests/data/logs/test_same_data.py                   25 random logs
pytest tests/data/logs/test_same_data.py -m slow           500
"""

import pathlib

import numpy as np
import polars as pl
import pytest

from recjax.data.logs import prepare as logs
from recjax.data.store.prepared import Prepared

MAPPING = """user, item, time = "user", "item", "at"
item_columns, context_columns = ["kind", "price"], ["place"]
dense = {"price": "log1p"}
min_count = 1
split = {"validation": 0.2, "test": 0.2}
"""
LABELS = 'labels = ["click"]\n'
ACTIONS = (
    'action = "event"\nlabels = {"took": [2, "3.0"]}\nhistory = {"all": [1, 2, 3], "taken": ["2", 3.0]}\n'
    "negatives_per_positive = 2\n"
)
RATINGS = 'labels = {"liked": "event >= 2"}\n'


def random_log(rng: np.random.Generator) -> pl.DataFrame:
    """A log of whole numbers, so that every type can hold it; some cells are missing."""
    n = int(rng.integers(40, 90))
    users = rng.choice(np.append(rng.integers(0, 10**6, 6), 2**53 - 1), 6, replace=False)

    def some(x: np.ndarray) -> pl.Series:
        return pl.Series([None if rng.random() < 0.15 else v for v in x.tolist()], dtype=pl.Int64)

    return pl.DataFrame(
        {
            "user": rng.choice(users, n),
            "item": rng.integers(0, 12, n),
            "at": 1_700_000_000 + np.sort(rng.choice(10**6, n, replace=False)),
            "click": np.append([0, 1], rng.integers(0, 2, n - 2)),
            "event": np.append([1, 2, 3], rng.integers(1, 4, n - 3)),
            "kind": some(rng.integers(-4, 9, n)),
            "price": np.round(rng.random(n) * 40, 2),
            "place": some(rng.integers(0, 4, n)),
        }
    )


IDS = ("user", "item", "event", "kind", "place")


def csv(frame: pl.DataFrame, file: pathlib.Path) -> None:
    frame.write_csv(file.with_suffix(".csv"))


def csv_with_nulls(frame: pl.DataFrame, file: pathlib.Path) -> None:
    """As a database and a spreadsheet write it: named nulls, points and blanks."""
    frame = frame.with_columns(pl.col(IDS).cast(pl.String))
    padded = pl.when(pl.int_range(pl.len()) % 3 == 0)
    frame = frame.with_columns(
        padded.then(pl.col("user") + " ").otherwise("user").alias("user"),
        (pl.col("kind") + ".0").fill_null("\\N"),
        pl.col("place").fill_null("N/A"),
    )
    frame.write_csv(file.with_suffix(".csv"), separator=";")


def typed(dtype, extension=".parquet"):
    def write(frame: pl.DataFrame, file: pathlib.Path) -> None:
        columns = [c for c in IDS if dtype != pl.UInt64 or (frame[c] >= 0).all()]
        frame = frame.with_columns(pl.col(columns).cast(dtype))
        file = file.with_suffix(extension)
        frame.write_parquet(file) if extension == ".parquet" else frame.write_ndjson(file)

    return write


WRITERS = {
    "csv": csv,
    "csv with nulls": csv_with_nulls,
    "int": typed(pl.Int64),
    "float": typed(pl.Float64),
    "uint64": typed(pl.UInt64),
    "string": typed(pl.String),
    "jsonl": typed(pl.Int64, ".jsonl"),
    "jsonl of floats": typed(pl.Float64, ".jsonl"),
    "jsonl of strings": typed(pl.String, ".jsonl"),
}


def prepare(folder: pathlib.Path, frame, names, files: int, meaning: str) -> Prepared:
    """Writes the log in `files` files, each in its own format, and prepares it."""
    folder.mkdir(parents=True)
    for i, part in enumerate(np.array_split(np.arange(len(frame)), files)):
        WRITERS[names[i % len(names)]](frame[part], folder / f"part{i}")
    separator = 'separator = ";"\n' if "csv with nulls" in names else ""
    (folder / "mapping.py").write_text(MAPPING + meaning + separator)
    source, mapping = str(folder / "part*"), str(folder / "mapping.py")
    return Prepared(logs.prepare(folder / "out", source=source, mapping=mapping))


def content(data: Prepared) -> dict[str, bytes]:
    """Everything a run reads."""
    out = {"schema": data.schema.to_json().encode()}
    for split in data.splits:
        for i in range(data.blocks(split)):
            out |= {
                f"{split} {i} {c}": np.asarray(x).tobytes() for c, x in data.block(split, i).items()
            }
    for name in data.schema.lists:
        out |= {f"{name} {c}": np.asarray(x).tobytes() for c, x in data.timeline(name).items()}
    for space in data.schema.id_spaces:
        rows = data.vocabulary(space.name).select("value", "id", "count").rows()
        out[f"vocabulary {space.name}"] = str(rows).encode()
    return out


def check(tmp_path, seed: int, variants: int) -> None:
    rng = np.random.default_rng(seed)
    frame, meaning = random_log(rng), [LABELS, ACTIONS, RATINGS][seed % 3]
    want = content(prepare(tmp_path / "first", frame, ["csv"], 1, meaning))
    for i in range(variants):
        mixed = rng.random() < 0.3  # files of several formats
        names = rng.choice([n for n in WRITERS if n != "csv with nulls"] if mixed else list(WRITERS), 3 if mixed else 1)  # fmt: skip
        files = int(rng.choice([1, 3]))
        got = content(prepare(tmp_path / f"other{i}", frame, names.tolist(), files, meaning))
        assert got.keys() == want.keys()
        wrong = [k for k in want if got[k] != want[k]]
        assert not wrong, f"seed {seed}, {names} in {files} files: {wrong}"


@pytest.mark.parametrize("seed", range(25))
def test_a_log_is_the_same_data_in_every_format(tmp_path, seed):
    check(tmp_path, seed, variants=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(500))
def test_five_hundred_logs_are_the_same_data_in_every_format(tmp_path, seed):
    check(tmp_path, seed, variants=len(WRITERS))
