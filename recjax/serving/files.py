"""A directory of files that is whole or absent: written beside its place, checksummed, renamed, checked when read."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import ctypes
import hashlib
import os
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
import polars as pl


class ArtifactError(ValueError):
    """An artifact cannot be written or loaded; the message says why and what to do."""


@contextlib.contextmanager
def published(path: pathlib.Path) -> Iterator["Writer"]:
    """A writer whose folder becomes `path` when the block ends, replacing what lay there, or vanishes when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield Writer(temporary)
        _rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _rename(temporary: pathlib.Path, path: pathlib.Path) -> None:
    temporary.chmod(0o755)  # mkdtemp makes it private
    if not path.exists():
        temporary.rename(path)
        return
    # A directory cannot be renamed over a full one. Exchanged with it in one step, there is always one at `path`.
    if _exchange(temporary, path):
        old = temporary
    else:  # not Linux, or a file system that cannot: readers may find nothing for a moment, and look again
        old = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)) / path.name
        path.rename(old)
        temporary.rename(path)
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old)
    if old != temporary:
        old.parent.rmdir()


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchanges what lies at two paths in one step; False where that is not known."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(one.absolute()), os.fsencode(other.absolute())
    at, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE (renameat2(2))
    return rename is not None and rename(at, names[0], at, names[1], exchange) == 0


class Writer:
    """Writes files under a folder and notes their checksums."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}

    def bytes(self, name: str, data: bytes) -> str:
        file = self._file(name)
        file.write_bytes(data)
        return self._note(name)

    def text(self, name: str, text: str) -> str:
        return self.bytes(name, text.encode())

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> str:
        """An npz without pickles; NumPy dates its members 1980, so equal arrays give equal bytes."""
        np.savez(
            self._file(name), allow_pickle=False, **{k: storable(v) for k, v in arrays.items()}
        )
        return self._note(name)

    def frame(self, name: str, frame: pl.DataFrame) -> str:
        frame.write_parquet(self._file(name))
        return self._note(name)

    def _file(self, name: str) -> pathlib.Path:
        file = self.folder / name
        if not file.resolve().is_relative_to(self.folder.resolve()):
            raise ArtifactError(
                f"{name!r} cannot name a file; use letters, digits, '_', '-' and '.'"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def _note(self, name: str) -> str:
        file = self.folder / name
        with open(file, "rb+") as f:
            os.fsync(f.fileno())
        self.files[name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        return name


def storable(x: Any) -> np.ndarray:
    """NumPy files know no bfloat16: its bits travel as unsigned integers, its name in the manifest."""
    x = np.asarray(x)
    return x.view(f"u{x.dtype.itemsize}") if x.dtype.kind == "V" else x


def sha256(file: pathlib.Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check(path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()) or not file.is_file():
            raise ArtifactError(f"{file} is missing; copy or export the artifact again")
        if file.stat().st_size != expected["bytes"]:
            raise ArtifactError(
                f"{file} holds {file.stat().st_size} bytes where {expected['bytes']} were written; "
                "copy or export the artifact again"
            )
        if sha256(file) != expected["sha256"]:
            raise ArtifactError(
                f"{file} does not match its checksum; copy or export the artifact again"
            )


def read_arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Raises ArtifactError naming the file."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as e:  # zipfile, zlib and NumPy raise whatever a damaged byte leads them to
        raise _damaged(file, e) from e


def read_frame(file: pathlib.Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """All columns of a Parquet file, or some; raises ArtifactError naming it."""
    try:
        return pl.read_parquet(file, columns=None if columns is None else list(columns))
    except (Exception, pl.exceptions.PanicException) as e:
        raise _damaged(file, e) from e


def _damaged(file: pathlib.Path, e: BaseException) -> ArtifactError:
    reason = str(e).strip().splitlines()[0][:200] if str(e).strip() else type(e).__name__
    return ArtifactError(f"{file} cannot be read ({reason}); copy or export the artifact again")
