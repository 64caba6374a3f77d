"""Log files and side tables of any of the usual formats as frames: CSV and JSON cells as text, Parquet cells as stored.

Text files may be packed (gzip), begin with a byte order mark, be UTF-16 or an 8-bit encoding, use a separator of several
characters or have no header. A file that a fast parser refuses as a whole is read line by line, so that a bad line costs
only itself.
"""

import codecs
import collections
from collections.abc import Iterator, Sequence
import csv
import dataclasses
import glob
import gzip
import io
import itertools
import json
import os
import re
from typing import Any
import zlib

from absl import logging
from etils import epath
import polars as pl

from recjax.data.logs.notes import Note
from recjax.data.store.prepared import DataError

TEXT = (".csv", ".tsv", ".txt", ".dat", ".data")
JSON = (".jsonl", ".ndjson", ".json")
FORMATS = (".parquet", *(f + packed for f in TEXT + JSON for packed in ("", ".gz")))
ROW = "__row"  # number of a row in its file, from 1
DAMAGED = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, EOFError, zlib.error)
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # UTF-32's begins as UTF-16's does, so it is asked first
PACKERS = {
    "ZIP (as spreadsheets are)": b"PK\x03\x04",
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ",
    "Zstandard": b"\x28\xb5\x2f\xfd",
}
UNUSED = "\x1f"  # stands for a separator of several characters
SNIFFED = 1 << 16
BAD_LINES = {"file": pl.String, "row": pl.UInt32, "column": pl.String, "reason": pl.String, "record": pl.String}  # fmt: skip
DATA = r"[+-]?\d[\d.,:eE/T +-]*|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*|[0-9a-f]{16,}|[0-9a-f-]{36}|"


@dataclasses.dataclass(frozen=True)
class TextForm:
    """How a log's text files are written.

    Attributes:
      separator: Between the cells of CSV; .tsv has tabs.
      encoding: A name Python knows; "": what the bytes tell.
      columns: Names of the columns where the files have no header.
    """

    separator: str = ","
    encoding: str = ""
    columns: tuple[str, ...] = ()

    def of_table(self) -> "TextForm":
        """That of a side table, which has a header."""
        return dataclasses.replace(self, columns=())


def kind_of(file: str) -> str:
    """ "parquet", "text" or "json", by the name."""
    name = file.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        return "parquet"
    return "text" if name.endswith(TEXT) else "json"


# ------------------------------------------------------------------------------------------- files


def list_files(logs: str) -> list[str]:
    """The files of a pattern, or of several after commas; a bucket's are listed through etils.epath.

    A file without a line, such as the log of an hour in which nothing happened, is left out with a warning.

    Raises:
      DataError: No file matches, one has an unknown format, or all are empty.
    """
    files = [f for pattern in logs.split(",") for f in _matches(pattern.strip())]
    if not files:
        raise DataError(f"no file matches {logs!r}; correct --logs")
    for f in files:
        if not f.lower().endswith(FORMATS):
            raise DataError(f"{f}: unknown format; logs are {', '.join(FORMATS)}")
    empty = [f for f in files if _is_empty(f)]
    for f in empty:
        logging.warning("%s is empty and left out", f)
    if len(empty) == len(files):
        raise DataError(f"every file of {logs!r} is empty ({len(files)}); correct --logs")
    return [f for f in files if f not in empty]


def _is_empty(file: str) -> bool:
    """Whether a text file has no line but blank ones."""
    if kind_of(file) == "parquet":
        return False
    try:
        with _open(file) as stream:
            return not any(line.removeprefix(codecs.BOM_UTF8).strip() for line in stream)
    except (OSError, EOFError, zlib.error):
        return False  # it is absent or damaged: whoever reads it says so


def _matches(pattern: str) -> list[str]:
    if "://" not in pattern:
        exact = os.path.expanduser(pattern)
        if os.path.isfile(exact):  # its name may hold what a pattern would mean otherwise
            return [exact]
        return sorted(f for f in glob.glob(exact) if os.path.isfile(f))
    root, _, rest = pattern.partition("*")
    if not rest and "*" not in pattern:
        return [pattern]
    folder, _, first = root.rpartition("/")
    found = epath.Path(folder).glob(f"{first}*{rest}")
    if "/" in rest:
        return sorted(map(str, found))
    return sorted(f"{folder}/{f.name}" for f in found)  # however the file system spells the folder


def fingerprint(files: Sequence[str]) -> list[list[Any]]:
    """Name, size and checksum of each file: an edited log is another data set."""
    out: list[list[Any]] = []
    for f in files:
        crc, path = 0, epath.Path(f)
        if not path.exists():
            raise DataError(f"there is no file {f}; correct the mapping or --logs")
        with path.open("rb") as stream:
            while piece := stream.read(1 << 24):
                crc = zlib.crc32(piece, crc)
        out.append([path.name, path.stat().length, crc])
    return out


def _open(file: str) -> Any:
    """The bytes of a file, local or in a bucket, unpacked if they are packed, whatever it is called."""
    stream = epath.Path(file).open("rb")
    head = stream.read(6)
    if packer := next((n for n, mark in PACKERS.items() if head.startswith(mark)), ""):
        raise DataError(
            f"{file} is packed with {packer}, which is not read; unpack it, or pack it with gzip"
        )
    packed = head.startswith(b"\x1f\x8b")
    stream.seek(0)
    return gzip.GzipFile(fileobj=stream) if packed else stream


def _bytes(file: str) -> bytes:
    """All bytes of a file, unpacked; raises DataError where the packing ends too early."""
    try:
        with _open(file) as stream:
            return stream.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DataError(f"{file} is cut off or damaged ({e}); write or fetch it again") from e


# -------------------------------------------------------------------------------------------- text


def _encoding(data: bytes, form: TextForm) -> str:
    """The encoding of some bytes: as given, by their mark, by zeros between, UTF-8, or a Western 8-bit one."""
    if form.encoding:
        return form.encoding
    for mark, name in sorted(MARKS.items(), key=lambda kv: -len(kv[0])):
        if data.startswith(mark):
            return name
    zeros = [data[i:SNIFFED:2].count(0) for i in (0, 1)]
    if max(zeros) > len(data[:SNIFFED]) / 5:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    for name in ("utf-8", "cp1252", "latin-1"):
        try:
            codecs.decode(data, name)
            return name
        except UnicodeDecodeError:
            continue
    raise AssertionError("latin-1 decodes everything")


def _text(file: str, form: TextForm) -> tuple[str, str]:
    """All text of a file, and its encoding."""
    data = _bytes(file)
    name = _encoding(data, form)
    try:
        return codecs.decode(data, name).removeprefix("\ufeff"), name
    except (UnicodeDecodeError, LookupError) as e:
        raise DataError(f"{file} cannot be read as {name} ({e}); correct encoding") from None


def _separator(file: str, form: TextForm) -> str:
    if kind_of(file) == "json":
        return "\n"
    return "\t" if file.lower().removesuffix(".gz").endswith(".tsv") else form.separator


def _needs_rewriting(file: str, form: TextForm) -> bool:
    """Whether polars cannot read the file's own bytes."""
    with epath.Path(file).open("rb") as stream:
        head = stream.read(SNIFFED)
    if head.startswith(b"\x1f\x8b") or form.encoding or len(_separator(file, form)) > 1:
        return True
    if any(head.startswith(mark) for mark in MARKS if mark != codecs.BOM_UTF8) or b"\0" in head:
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a character may go on after it
    except UnicodeDecodeError:
        return True
    return b"\r" in head and b"\n" not in head


@dataclasses.dataclass(frozen=True)
class Plain:
    """A text file as polars reads it.

    Attributes:
      source: The file, or its text as UTF-8.
      separator: Of one character.
      notes: What was done to it.
    """

    source: str | bytes
    separator: str
    notes: tuple[Note, ...] = ()

    @property
    def readable(self) -> str | io.BytesIO:
        return self.source if isinstance(self.source, str) else io.BytesIO(self.source)


def _plain(file: str, form: TextForm, rewrite: bool = False) -> Plain:
    separator = _separator(file, form)
    if not rewrite and not _needs_rewriting(file, form):
        return Plain(file, separator)
    text, encoding = _text(file, form)
    if len(separator) > 1:
        if UNUSED in text:
            raise DataError(f"{file}: separator {separator!r} cannot be replaced, the file holds {UNUSED!r}; use one character")  # fmt: skip
        text, separator = text.replace(separator, UNUSED), UNUSED
    if "\n" not in text:
        text = text.replace("\r", "\n")
    note = (Note("encoding", file, 1, encoding),) if encoding in ("cp1252", "latin-1") and not form.encoding else ()  # fmt: skip
    return Plain(text.encode(), separator, note)


def _lines(plain: Plain) -> Iterator[str]:
    """Lines of a text file, ends included."""
    stream = _open(plain.source) if isinstance(plain.source, str) else io.BytesIO(plain.source)
    with io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="") as lines:
        yield from lines


def _header(file: str, plain: Plain, form: TextForm) -> list[str]:
    """Names of the columns, one each; raises DataError for a file without a line, or whose first line is data."""
    csv.field_size_limit(1 << 30)
    try:
        cells = next(csv.reader(_lines(plain), delimiter=plain.separator), None)
    except csv.Error as e:
        raise DataError(f"{file}: its first line is no line of CSV ({e}); write it again") from e
    if not cells and not any(line.strip() for line in _lines(plain)):
        raise DataError(f"{file} is empty; write it again")
    cells = [c.strip() for c in cells or ()]
    if form.columns:
        _check_columns(file, cells, form)
        cells = list(form.columns)
    elif _is_data(cells):
        raise DataError(
            f"{file} seems to have no header, its first line is {plain.separator.join(cells)[:200]!r}; name its columns "
            "in the mapping, columns = [...]"
        )
    seen: dict[str, int] = {}
    for i, c in enumerate(cells):
        n = seen[c] = seen.get(c, -1) + 1
        cells[i] = f"{c}{AGAIN}{n}" if n else c
    return cells


AGAIN = "__again_"  # second and later columns of one name, which nobody may ask for


def _check_columns(file: str, cells: list[str], form: TextForm) -> None:
    if len(cells) != len(form.columns):
        raise DataError(
            f"{file}: its first line has {len(cells)} fields, columns names {len(form.columns)}; correct columns (or separator)"
        )
    if cells == list(form.columns):
        raise DataError(f"{file} has a header already; leave out columns")


def _is_data(cells: list[str]) -> bool:
    """Whether no cell looks like a name: numbers, dates, hashes (but not 0, 1, 2, ..., which pandas writes)."""
    if len(cells) < 2 or _is_counted(cells):
        return False
    return all(re.fullmatch(DATA, c) for c in cells) and any(cells)


def _is_counted(cells: list[str]) -> bool:
    """Whether they are 0, 1, 2, ..., which pandas writes over columns without a name."""
    counted = [str(i) for i in range(len(cells) + 1)]
    return cells in (counted[:-1], counted[1:], ["", *counted[:-2]])


def _is_row(cells: list[str]) -> bool:
    """Whether a cell is a number of several digits or a date, which names hardly are."""
    return len(cells) > 1 and any(len(c) > 3 and re.fullmatch(DATA, c) for c in cells)


def _scan_text(file: str, plain: Plain, form: TextForm) -> pl.LazyFrame:
    return pl.scan_csv(
        plain.readable,
        separator=plain.separator,
        infer_schema=False,
        has_header=not form.columns,
        new_columns=_header(file, plain, form),
        glob=False,
    )


# --------------------------------------------------------------------------------------------- JSON


def _check_json(file: str) -> None:
    """Raises DataError for a file that is one array rather than an object a line."""
    for line in _lines(Plain(file, "")):
        if line.strip():
            break
    else:
        return
    if not line.lstrip().startswith("["):
        return
    try:
        is_rows = all(isinstance(x, dict) for x in json.loads(line))
    except ValueError:
        is_rows = True  # an array over several lines
    if is_rows:
        raise DataError(
            f"{file} is one JSON array; write one object a line, as jq -c '.[]' {os.path.basename(file)} does"
        )


def _scan_json(plain: Plain, wanted: Sequence[str] | None = None) -> pl.LazyFrame:
    """Wanted columns as text, nested values as JSON; None: all, typed."""
    schema = dict.fromkeys(wanted, pl.String) if wanted else None
    return pl.scan_ndjson(plain.readable, schema=schema, infer_schema_length=None)


# ------------------------------------------------------------------------------------------- frames


def columns_of(file: str, form: TextForm) -> list[str]:
    """Column names of a file; raises DataError for one that is empty or damaged as a whole."""
    kind = kind_of(file)
    if kind == "text":
        return _header(file, _plain(file, form), form)
    try:
        if kind == "parquet":
            return pl.scan_parquet(file, glob=False).collect_schema().names()
        _check_json(file)
        names = _scan_json(_plain(file, form)).collect_schema().names()
    except DAMAGED as e:
        if kind == "parquet":
            raise _no_parquet(file, e) from e
        names = _salvage(file, form)[0].drop(ROW).columns
    if not names:
        raise DataError(f"{file} is empty or holds no JSON object; write it again")
    return names


def check_column(file: str, column: str, names: Sequence[str], form: TextForm) -> None:
    """Raises DataError for a column that is not there, or is there twice."""
    if f"{column}{AGAIN}1" in names:
        raise DataError(f"{file} has two columns called {column!r}; rename one of them")
    if column in names or _top(column) in names:
        return
    hint = ""
    if len(names) == 1:
        found = [s for s in (";", "\t", "|", ",", "::") if s in names[0]]
        hint = f"; is the separator {found[0]!r}? set separator" if found else ""
    elif any(re.fullmatch(DATA, n) for n in names):
        hint = "; if its first line is data, name the columns with columns = [...]"
    shown = ", ".join(n for n in names if AGAIN not in n)
    raise DataError(f"{file} has no column {column!r}; it has {shown}: correct the mapping{hint}")


def _top(column: str) -> str:
    """The column a path like "device.category" begins in."""
    return column.partition(".")[0]


def _picked(wanted: Sequence[str], names: Sequence[str], kind: str) -> list[pl.Expr]:
    """The wanted columns; a path goes into structs, and into the JSON text of a cell."""
    out = []
    for column in wanted:
        top, _, path = column.partition(".")
        if (column in names and kind != "json") or not path:
            out.append(pl.col(column))
        elif kind == "parquet":
            x = pl.col(top)
            for part in path.split("."):
                x = x.struct.field(part)
            out.append(x.alias(column))
        else:
            out.append(pl.col(top).str.json_path_match(f"$.{path}").alias(column))
    return out


def scan_rows(file: str) -> int:
    """Rows of a Parquet file, from its footer."""
    try:
        return pl.scan_parquet(file, glob=False).select(pl.len()).collect().item()
    except DAMAGED as e:
        raise _no_parquet(file, e) from e


def _no_parquet(file: str, e: Exception) -> DataError:
    if not epath.Path(file).exists():
        return DataError(f"there is no file {file}; correct the mapping or --logs")
    return DataError(f"{file} is no readable Parquet file ({e}); write it again")


@dataclasses.dataclass(frozen=True)
class Read:
    """Attributes:
    rows: The wanted columns of a file, and ROW.
    bad: Lines no parser takes: file, row, column, reason, record.
    notes: What was noticed.
    """

    rows: pl.DataFrame
    bad: pl.DataFrame
    notes: tuple[Note, ...] = ()


def read_columns(
    file: str, wanted: Sequence[str], form: TextForm, piece: tuple[int, int] | None = None
) -> Read:
    """Columns of a file, or of a piece of it (first row, rows).

    Raises:
      DataError: A column is missing, or the file is damaged as a whole.
    """
    kind = kind_of(file)
    if kind == "parquet":
        return _read_parquet(file, wanted, form, piece)
    plain = _plain(file, form)
    for _ in range(2):
        try:
            if kind == "text":
                frame = _scan_text(file, plain, form)
                names = frame.collect_schema().names()
                for column in wanted:
                    check_column(file, column, names, form)
            else:
                _check_json(file)
                frame = _scan_json(plain, list(dict.fromkeys(map(_top, wanted))))
                names = list(wanted)
            picked = frame.with_row_index(ROW, 1).select(ROW, *_picked(wanted, names, kind))
            rows = (picked.slice(*piece) if piece else picked).collect()
            for column in wanted if kind == "json" else ():
                if rows.height and rows[column].null_count() == rows.height:
                    check_column(file, column, columns_of(file, form), form)
            return Read(rows, bad_lines(file, []), plain.notes)
        except DAMAGED as e:
            if isinstance(plain.source, bytes) or "utf" not in str(e).lower():
                logging.warning("%s is damaged (%s): reading it line by line", file, e)
                break
            plain = _plain(file, form, rewrite=True)
    frame, bad = _salvage(file, form, plain)
    names = frame.drop(ROW).columns
    for column in wanted:
        check_column(file, column, names, form)
    return Read(frame.select(ROW, *_picked(wanted, names, kind)), bad, plain.notes)


def _read_parquet(file: str, wanted, form: TextForm, piece) -> Read:
    try:
        frame = pl.scan_parquet(file, glob=False)
        names = frame.collect_schema().names()
        for column in wanted:
            check_column(file, column, names, form)
        rows = frame.with_row_index(ROW, 1).select(ROW, *_picked(wanted, names, "parquet"))
        return Read((rows.slice(*piece) if piece else rows).collect(), bad_lines(file, []))
    except DAMAGED as e:
        raise _no_parquet(file, e) from e


def read_table(file: str, key: str, columns: Sequence[str], form: TextForm) -> pl.DataFrame:
    """Some columns of a side table, by key; of rows with the same key the first counts.

    Raises:
      DataError: It is empty or damaged, or lacks a column.
    """
    form = form.of_table()
    for column in (key, *columns):
        check_column(file, column, columns_of(file, form), form)
    read = read_columns(file, (key, *columns), form)
    if read.bad.height:
        raise DataError(f"{file} is no readable table: row {read.bad['row'][0]}, {read.bad['reason'][0]}; write it again")  # fmt: skip
    return read.rows.drop(ROW)


def head(file: str, rows: int, form: TextForm) -> pl.DataFrame:
    """The first rows of a file, columns of text files with the types their cells suggest; of a damaged one as text."""
    try:
        if kind_of(file) == "parquet":
            return pl.scan_parquet(file, glob=False).head(rows).collect()
        if kind_of(file) == "json":
            _check_json(file)
            lines = itertools.islice(_lines(_plain(file, form)), rows)
            good = "".join(line for line in lines if _is_object(line))
            return pl.read_ndjson(io.BytesIO(good.encode()), infer_schema_length=None)
        plain = _plain(file, form)
        if plain.source == file and "\ufffd" in "".join(itertools.islice(_lines(plain), rows)):
            plain = _plain(file, form, rewrite=True)
        return pl.read_csv(
            plain.readable,
            n_rows=rows,
            separator=plain.separator,
            has_header=not form.columns,
            new_columns=_header(file, plain, form),
            infer_schema_length=rows,
            try_parse_dates=False,
            truncate_ragged_lines=True,
        )
    except DAMAGED as e:
        if kind_of(file) == "parquet":
            raise _no_parquet(file, e) from e
        return _salvage(file, form)[0].drop(ROW).head(rows)


def _is_object(line: str) -> bool:
    """Whether a line is one JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def sniff(file: str) -> tuple[TextForm, list[str]]:
    """How a text file is written, from its first lines, and the lines of a mapping that say so."""
    if kind_of(file) != "text":
        return TextForm(), []
    try:
        with _open(file) as stream:
            data = stream.read(1 << 22)
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DataError(f"{file} is cut off or damaged ({e}); write or fetch it again") from e
    data = data[: data.rfind(b"\n") + 1] or data
    encoding = _encoding(data, TextForm())
    form = TextForm(encoding="" if encoding.startswith("utf") else encoding)
    about = []
    if form.encoding:
        about.append(
            f"encoding = {encoding!r}  # its bytes are not UTF-8; correct it if names look wrong"
        )
    lines = codecs.decode(data[: 1 << 20], encoding, "replace").removeprefix("\ufeff").splitlines()
    lines = [line for line in lines[:-1] or lines if line.strip()][:50]
    best = _separator(file, form)
    if best == ",":
        best = max(SEPARATORS, key=lambda s: _fields(lines, s))
    if best != _separator(file, form):
        form = dataclasses.replace(form, separator=best)
        about.append(f"separator = {best!r}")
    cells = [c.strip().strip('"') for c in lines[0].split(best)] if lines else []
    if _is_data(cells) or (_is_row(cells) and not _is_counted(cells)):
        form = dataclasses.replace(
            form, columns=tuple(f"column_{i}" for i in range(lines[0].count(best) + 1))
        )
    return form, about


SEPARATORS = (",", ";", "\t", "|", "::")


def _fields(lines: Sequence[str], separator: str) -> int:
    """Fields of most lines, if nearly all have as many and the separator occurs; 0 otherwise."""
    if len(separator) > 1:
        counts = collections.Counter(line.count(separator) + 1 for line in lines)
    else:
        counts = collections.Counter(len(c) for c in csv.reader(lines, delimiter=separator))
    fields, often = max(counts.items(), key=lambda kv: kv[1], default=(0, 0))
    return fields if fields > 1 and often >= 0.8 * counts.total() else 0


def _salvage(
    file: str, form: TextForm, plain: Plain | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Reads line by line what can be read, all cells as text."""
    plain = plain or _plain(file, form)
    if kind_of(file) == "json":
        return _salvage_json(file, plain)
    names = _header(file, plain, form)
    good: list[list[Any]] = []
    bad: list[tuple[int, str, str]] = []
    for i, cells in enumerate(_records(file, plain), 0 if not form.columns else 1):
        if not i:
            continue  # the header
        if len(cells) > len(names):
            reason = f"{len(cells)} fields where the header has {len(names)}"
            bad.append((i, reason, plain.separator.join(cells)))
        else:
            good.append([i, *(c or None for c in cells), *[None] * (len(names) - len(cells))])
    schema = {ROW: pl.UInt32, **dict.fromkeys(names, pl.String)}
    return pl.DataFrame(good, schema=schema, orient="row"), bad_lines(file, bad)


def _records(file: str, plain: Plain) -> Iterator[list[str]]:
    """Records of a CSV; raises DataError where a quotation mark is never closed."""
    since: list[str] = []

    def lines() -> Iterator[str]:
        for line in _lines(plain):
            since.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=plain.separator)
    try:
        for cells in reader:
            if len(since) > 1 and sum(line.count('"') for line in since) % 2:
                first = reader.line_num - len(since) + 1
                raise DataError(
                    f"{file}, line {first}: a quotation mark is opened and never closed; correct that line"
                )
            since.clear()
            yield cells
    except csv.Error as e:
        raise DataError(f"{file}, line {reader.line_num}: {e}; correct that line") from e


def _salvage_json(file: str, plain: Plain) -> tuple[pl.DataFrame, pl.DataFrame]:
    good: list[dict[str, Any]] = []
    bad: list[tuple[int, str, str]] = []
    for i, line in enumerate(_lines(plain), 1):
        try:
            row = json.loads(line, parse_float=_short)
            good.append({ROW: i, **{k: _cell(v) for k, v in row.items()}})
        except (ValueError, AttributeError):
            bad.append((i, "not a JSON object", line.strip()[:200]))
    names = dict.fromkeys(k for row in good for k in row)
    schema = {ROW: pl.UInt32, **{n: pl.String for n in names if n != ROW}}
    return pl.DataFrame(good, schema=schema), bad_lines(file, bad)


def _short(text: str) -> float | int:
    number = float(text)
    return int(number) if number.is_integer() else number


def _cell(value: Any) -> str | None:
    """A JSON value as text, as polars writes it."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


def bad_lines(file: str, bad: list[tuple[int, str, str]]) -> pl.DataFrame:
    """(row, reason, record) as rows that are set aside."""
    rows = [(file, row, "", reason, record) for row, reason, record in bad]
    return pl.DataFrame(rows, schema=BAD_LINES, orient="row")
