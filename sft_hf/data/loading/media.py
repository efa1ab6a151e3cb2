"""Tables with a column of paths to images or recordings.

No files are opened here: a row contains a path, or the bytes of a file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sft_hf.core.filesystem import sha256_of
from sft_hf.data.columns import column_values
from sft_hf.data.loading.image_folders import subfolders
from sft_hf.data.tables.files import table_stem

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

MEDIA_KEYS = ("data.image_column", "data.audio_column")
"""Recipe keys of file columns; text in such a column is a path, relative to the table's folder."""

METADATA, FILE_NAME = "metadata", "file_name"
"""The table in a folder of files, and its path column, as in the image and audio folders of `datasets`."""

AnyDataset = TypeVar("AnyDataset", "Dataset", "IterableDataset")


def find_files(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Return the files below a folder, at any depth, with and without these extensions; both sorted by path.

    Hidden files and folders are skipped; links to folders are followed, but not in cycles.
    """
    chosen: list[Path] = []
    others: list[Path] = []
    seen: set[str] = set()
    for top, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        for name in files:
            if not name.startswith("."):
                kind = chosen if name.lower().endswith(suffixes) else others
                kind.append(Path(top, name))
    return sorted(chosen), sorted(others)


def file_name(value: Any) -> str:
    """Return the name of the file in a cell of images or recordings, "" for bytes without a name."""
    if isinstance(value, dict):
        value = value.get("path")
    return os.path.basename(value) if isinstance(value, (str, os.PathLike)) else ""


def metadata_tables(folder: Path, train_split: str) -> dict[str, Path]:
    """Return {split: table} of a folder that has a metadata.csv (.tsv, .jsonl, ...) in the folder of each split.

    A single table in `folder` itself is the train split.
    """
    found: dict[str, Path] = {}
    for place, name in [*((path, path.name) for path in subfolders(folder)), (folder, train_split)]:
        tables = sorted(path for path in place.iterdir() if is_metadata(path) and path.is_file())
        if tables and not (found and place == folder):
            found[name] = tables[0]
    return found


def is_metadata(path: Path) -> bool:
    """Whether the name of a table is metadata.csv (.tsv, .jsonl, ...)."""
    return table_stem(path.name) == METADATA


def rows_by_folder(rows: Dataset, column: str, folder: Path) -> dict[str, list[int]]:
    """Return {subfolder of `folder`: rows whose file is in it, at any depth}; "." for files elsewhere."""
    found: dict[str, list[int]] = {}
    for row, cell in enumerate(column_values(rows, column)):
        path = cell.get("path") if isinstance(cell, dict) else cell
        parts = os.path.relpath(path, folder).split(os.sep) if isinstance(path, (str, os.PathLike)) else []
        found.setdefault(parts[0] if len(parts) > 1 and parts[0] != ".." else ".", []).append(row)
    return found


def file_column(names: Iterable[str], columns: Sequence[str]) -> dict[str, str]:
    """Return {current name: expected name} of the path column of a table; {} if nothing changes.

    In a metadata.csv, the column is called `file_name`.
    """
    names = set(names)
    other = len(columns) == 1 and columns[0] not in names and FILE_NAME in names
    return {FILE_NAME: columns[0]} if other else {}


def content_digest(cell: Any) -> str | None:
    """Return the SHA-256 of the file in a cell; None if it is missing or cannot be read."""
    if isinstance(cell, dict):
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return hashlib.sha256(cell).hexdigest()
    if not isinstance(cell, (str, os.PathLike)) or not os.path.isfile(cell):
        return None
    try:
        return sha256_of(Path(cell))
    except OSError:
        return None


def undecoded(data: AnyDataset) -> AnyDataset:
    """Return the data without decoding of images and recordings: `datasets` would open the files without checks."""
    from datasets import Audio, Image  # as in `read_image_folder`

    for name, feature in (data.features or {}).items():
        for kind in (Audio, Image):
            if isinstance(feature, kind) and feature.decode:
                data = data.cast_column(name, kind(decode=False))
    return data
