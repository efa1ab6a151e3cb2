"""Bytes of a table: from a plain file, a compressed file (.gz, .bz2, .xz, .zst), or a member of a zip archive.

A member of an archive has its own path, `reviews.zip/train.csv`, which all readers support. Nothing is unpacked to
disk.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sft_hf.core.errors import DataError, did_you_mean

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Extensions that follow a table's own extension, as in train.csv.gz."""

ARCHIVE = ".zip"
MAX_UNPACKED = 2**30  # bytes of a file that must be unpacked in memory: a workbook, a Parquet file in an archive


def split_member(path: Path) -> tuple[Path, str] | None:
    """Return the archive and the member that a path refers to; None for other paths."""
    for parent in path.parents:
        if parent.suffix.lower() == ARCHIVE and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def archive_members(path: Path) -> list[str]:
    """Return the names of the files in a zip archive, without hidden and macOS metadata files. Raises DataError."""
    with _opened_archive(path) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
    return [name for name in names if not any(part[:1] in (".", "") or part == "__MACOSX" for part in name.split("/"))]


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open the unpacked bytes of a file, or of a member of an archive.

    Raises DataError if the archive lacks the member, OSError or EOFError for corrupt files.
    """
    member = split_member(path)
    if member is None:
        with open(path, "rb") as file:
            yield _unpacked(file, path.suffix.lower())
        return
    with _opened_archive(member[0]) as archive:
        try:
            packed: Any = archive.open(member[1])
        except KeyError:
            hint = did_you_mean(member[1], archive.namelist())
            raise DataError(f"{member[0]}: has no member {member[1]!r}; {hint}") from None
        except (RuntimeError, NotImplementedError) as error:  # a password, or an unsupported compression
            raise DataError(f"{member[0]}: {member[1]} cannot be unpacked: {error}") from None
        with packed:
            yield _unpacked(packed, path.suffix.lower())


def whole_bytes(path: Path) -> io.BytesIO:
    """Return an unpacked file in memory. Raises DataError for more than `MAX_UNPACKED` bytes, and as `open_bytes`."""
    with open_bytes(path) as file:
        content = file.read(MAX_UNPACKED + 1)
    if len(content) > MAX_UNPACKED:
        raise DataError(f"{path}: holds more than {MAX_UNPACKED >> 20} MB once unpacked; unpack it yourself")
    return io.BytesIO(content)


@contextmanager
def _opened_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: is damaged or not a zip archive: {error}") from None


def _unpacked(file: Any, suffix: str) -> Any:
    if suffix == ".gz":
        import gzip

        return gzip.GzipFile(fileobj=file)
    if suffix == ".bz2":
        import bz2

        return bz2.BZ2File(file)
    if suffix == ".xz":
        import lzma

        return lzma.LZMAFile(file)
    if suffix == ".zst":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    return file
