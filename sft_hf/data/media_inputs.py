"""What a user gives `predict` for images or recordings: files, folders, globs, tables with a column of paths."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_hf.data.file_paths import FilePaths
from sft_hf.data.files import TABLE_SUFFIXES, iter_rows, table_options
from sft_hf.data.media import FILE_NAME
from sft_hf.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from sft_hf.recipe import DataSection


CHUNK = 256  # files that are answered together


def input_chunks(
    inputs: Sequence[str], data: DataSection, column: str, find: Callable[[Path], Sequence[Path]]
) -> Iterator[list[dict[str, Any]]]:
    """Yield rows {column: path} of what `input_paths` finds, `CHUNK` at a time. Raises DataError as it does."""
    paths = input_paths(inputs, data, column, find)
    while chunk := [{column: path} for path in islice(paths, CHUNK)]:
        yield chunk


def input_paths(
    inputs: Sequence[str], data: DataSection, column: str, find: Callable[[Path], Sequence[Path]]
) -> Iterator[str]:
    """Yield the path of every file that the inputs mean, in their order.

    Args:
        data: how tables are read.
        column: of a table, with paths relative to the table's folder; `file_name` is taken in its place.
        find: returns the files to take from a folder, or raises DataError for none.

    Raises DataError for what is not there, and for URLs: nothing is fetched.
    """
    for value in inputs:
        path = Path(value).expanduser()
        if "://" in value or value.startswith("data:"):
            raise DataError(f"{value[:200]}: is a URL, and none is fetched; download the file and give its path")
        if path.is_dir():
            yield from map(str, find(path))
        elif path.suffix.lower() in TABLE_SUFFIXES:
            yield from _table_paths(path, data, column)
        elif path.exists():
            yield str(path)
        else:
            yield from map(str, _glob(path))


def _table_paths(path: Path, data: DataSection, column: str) -> Iterator[str]:
    number = 0  # of the row, counted from 0
    paths = FilePaths(path, data.file_prefix, data.file_suffix)
    rows = iter_rows(path, **{**table_options(data), "on_bad_row": "stop"})
    for batch in rows:
        name = next((name for name in (column, FILE_NAME) if name in batch), None)
        if name is None:
            raise DataError(f"{path}: no column {column!r}; {did_you_mean(column, list(batch))}")
        for value in batch[name]:
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{path} row {number}: column {name!r} holds no path of a file")
            yield paths.path(value, number)
            number += 1


def _glob(pattern: Path) -> list[Path]:
    """Return the files that a pattern means. Raises DataError for none, as for a file that is not there."""
    if any(character in str(pattern) for character in "*?["):
        found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
        files = [path for path in found if path.is_file()]
        if files:
            return files
        raise DataError(f"{pattern}: no file matches")
    folder = pattern.parent
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    hint = did_you_mean(pattern.name, names) if names else "nor is there such a folder"
    raise DataError(f"{pattern}: there is no such file; {hint}")
