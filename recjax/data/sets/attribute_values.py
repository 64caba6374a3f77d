"""Products with attribute values, as their publishers ship them.

    read(folder, "oa-mine" | "ae-110k")   ExtractGPT's files (University of Mannheim), JSON lines of
                                          {input, category, target_scores: {attribute: {value: 1}}}
    read(folder, "mave")                  MAVE's records (Google Research), JSON lines of {id, category,
                                          paragraphs, attributes: [{key, evidences: [{value, pid, begin, end}]}]}

A record of MAVE is one product, of WDC-PAVE's files in that format one attribute of one: records of the same
category and text are one product here. Files may be gzipped. "n/a" means absent.
"""

from collections.abc import Iterator
import dataclasses
import gzip
import json
import os
import pathlib

SETS = ("oa-mine", "ae-110k", "mave")


class SourceError(ValueError):
    """A file is absent or not in its format; the message names it."""


@dataclasses.dataclass(frozen=True)
class Product:
    """A product.

    Attributes:
      text: Title, and description where there is one.
      category: Its name.
      values: (attribute, value) pairs, without repetition.
      test: Whether the publisher put it into the test file.
      key: The publisher's id, or the text.
      also_view, also_buy: Keys of other products (the Amazon metadata that MAVE joins; empty in all sets here).
    """

    text: str
    category: str
    values: tuple[tuple[str, str], ...]
    test: bool = False
    key: str = ""
    also_view: tuple[str, ...] = ()
    also_buy: tuple[str, ...] = ()


def read(folder: str | os.PathLike, name: str) -> tuple[list[Product], dict[str, int]]:
    """Products of a set, and a report: records, products, evidences, and evidences whose span is not their value.

    Args:
      folder: The publisher's files: for oa-mine and ae-110k the repository or its processed_datasets, for mave
        a folder of *positives*.jsonl[.gz].
      name: Of `SETS`.
    """
    if name not in SETS:
        raise SourceError(f"data.prepare.set={name!r} is unknown; use one of {', '.join(SETS)}")
    root = pathlib.Path(folder)
    if not folder or not root.is_dir():
        raise SourceError(
            f"data.source={str(folder)!r} is no folder; give the one that holds the publisher's {name} files"
        )
    return _read_mave(root) if name == "mave" else _read_extractgpt(root, name)


def _lines(path: pathlib.Path) -> Iterator[dict]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as e:
                raise SourceError(f"{path}, line {number} is not JSON ({e.msg})") from e


def _read_extractgpt(root: pathlib.Path, name: str) -> tuple[list[Product], dict[str, int]]:
    places = (root / "data" / "processed_datasets" / name, root / name, root)
    folder = next((p for p in places if (p / "train.jsonl").exists()), None)
    if folder is None:
        raise SourceError(
            f"{root} has no {name}/train.jsonl; data.source is the ExtractGPT repository"
        )
    products = []
    for file in ("train", "test"):
        path = folder / f"{file}.jsonl"
        for number, r in enumerate(_lines(path), 1):
            try:
                pairs = [(a, v) for a, vs in r["target_scores"].items() for v in vs if v != "n/a"]
                products.append(
                    Product(r["input"], r["category"], _once(pairs), file == "test", r["input"])
                )
            except (KeyError, AttributeError, TypeError) as e:
                raise SourceError(f"{path}, line {number} is no record of this format: {e}") from e
    return products, {"records": len(products), "products": len(products)}


def _read_mave(root: pathlib.Path) -> tuple[list[Product], dict[str, int]]:
    files = sorted([*root.rglob("*positives*.jsonl"), *root.rglob("*positives*.jsonl.gz")])
    if not files:
        raise SourceError(f"{root} has no *positives*.jsonl[.gz]; data.source holds MAVE's labels")
    values: dict[tuple[str, str], list] = {}
    test: dict[tuple[str, str], bool] = {}
    report = dict(records=0, products=0, evidences=0, misplaced=0)
    for path in files:
        for number, r in enumerate(_lines(path), 1):
            try:
                pairs, misplaced = _evidences(r)
                text = "\n".join(p["text"] for p in r["paragraphs"])
                key = (r["category"], text)
            except (KeyError, IndexError, TypeError) as e:
                raise SourceError(f"{path}, line {number} is no MAVE record: {e!r}") from e
            values.setdefault(key, []).extend(pairs)
            test[key] = test.get(key, False) or "test" in path.name or "test" in path.parts
            report["records"] += 1
            report["evidences"] += len(pairs)
            report["misplaced"] += misplaced
    products = [Product(t, c, _once(v), test[c, t], t) for (c, t), v in values.items()]
    return products, report | {"products": len(products)}


def _evidences(record: dict) -> tuple[list[tuple[str, str]], int]:
    """(attribute, value) of each evidence, and how many spans (end exclusive) do not hold their value."""
    pairs, misplaced = [], 0
    for attribute in record["attributes"]:
        for e in attribute["evidences"]:
            text = record["paragraphs"][e["pid"]]["text"]
            misplaced += text[e["begin"] : e["end"]] != e["value"]
            pairs.append((attribute["key"], e["value"]))
    return pairs, misplaced


def _once(pairs: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys(pairs))
