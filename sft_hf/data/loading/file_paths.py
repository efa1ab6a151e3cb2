"""Resolution of table cells that name files to paths, relative to the table or in other common forms.

A cell is `data.file_prefix` + its text + `data.file_suffix`, relative to the table's folder. If this file does not
exist and the recipe has neither key, the following are tried in order, and the matches are counted and logged:

    1. the folder with the table's name: 7.jpg in train.csv may be train/7.jpg
    2. a Windows path: train\\7.jpg is train/7.jpg
    3. an absolute path from another machine: its longest trailing part that is a file here
    4. the only file below the table's folder whose path ends with the cell, with or without extension, in any case
        or
       Unicode form: 7 may be images/7.jpg

If several files match a cell, or several cells match a file, this is an error.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_hf.core.errors import DataError, first_few
from sft_hf.data.columns import column_values
from sft_hf.data.tables.files import TABLE_SUFFIXES

if TYPE_CHECKING:
    from datasets import Dataset

MAX_FILES = 500_000
"""File names are not searched in folders with more files than this."""

NEW = "the path of the file"  # temporary name that no column has

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")

_ABSOLUTE = re.compile(r"[\\/]|[A-Za-z]:[\\/]")
_NOT_MEDIA = (*TABLE_SUFFIXES, ".txt", ".lab", ".xml", ".md", ".srt", ".vtt", ".textgrid", ".eaf", ".yaml", ".py")
_MANNERS = {
    "folder": "path(s) found in the folder called like the table",
    "windows": "Windows path(s) read with / for \\",
    "foreign": "absolute path(s) of another machine matched by their last parts",
    "name": "path(s) matched by file name",
}


class FilePaths:
    """Resolves the paths in the cells of a table; see the module. `prefix` and `suffix` are the recipe's."""

    def __init__(self, table: Path, prefix: str = "", suffix: str = "") -> None:
        self.table, self.folder = table, table.parent
        self.prefix, self.suffix = prefix, suffix
        stem = table.name.split(".")[0]
        self.beside = self.folder / stem if (self.folder / stem).is_dir() else None
        self._found: dict[str, list[tuple[str, str]]] = {}  # {method: [(cell, path)]}
        self._cell_of: dict[str, str] = {}

    def path(self, value: Any, row: int | None = None) -> Any:
        """Return the path of a cell; anything else (missing values, URLs, bytes) is returned unchanged.

        A path to a missing file is returned as well; opening it reports the error. `row` is for messages.
        Raises DataError if several files, or several cells, match.
        """
        if isinstance(value, int) and not isinstance(value, bool):  # an id: 7 for 7.jpg
            value = str(value)
        if not isinstance(value, str) or not value.strip() or URL.match(value):
            return value
        text = f"{self.prefix}{value}{self.suffix}"
        if os.path.exists(exact := os.path.join(self.folder, text)):
            return exact
        where = str(self.table) if row is None else f"{self.table} row {row}"
        for manner, found in self._guesses(text, where):
            if self._cell_of.setdefault(found, value) != value:
                raise DataError(
                    f"{where}: {value!r} and {self._cell_of[found]!r} would both be {found}, by their last parts; "
                    "write paths relative to the table's folder"
                )
            self._found.setdefault(manner, []).append((value, found))
            return found
        return exact

    def notes(self) -> list[str]:
        """Return one sentence per method by which cells were resolved."""
        return [
            f"{self.table.name}: {len(found)} {_MANNERS[manner]}, "
            f"such as {found[0][0]} -> {os.path.relpath(found[0][1], self.folder)}"
            for manner, found in self._found.items()
        ]

    def _guesses(self, text: str, where: str) -> Iterator[tuple[str, str]]:
        if self.prefix or self.suffix:
            forward = text.replace("\\", "/")
            yield from (("windows", found) for found in self._present(forward))
            return
        yield from (("folder", found) for found in self._present(text))
        parts = [part for part in re.split(r"[\\/]+", text) if part not in ("", ".")]
        if ".." in parts or not parts:
            return
        absolute = _ABSOLUTE.match(text)
        if "\\" in text and not absolute:
            yield from (("windows", found) for found in self._present("/".join(parts)))
        if absolute:
            for start in range(1 if text[1:2] == ":" else 0, len(parts)):
                yield from (("foreign", found) for found in self._present("/".join(parts[start:])))
            parts = parts[-1:]
        yield from (("name", found) for found in self._named(parts, where))

    def _present(self, relative: str) -> Iterator[str]:
        for folder in (self.folder, self.beside):
            if folder is not None and os.path.exists(path := os.path.join(folder, relative)):
                yield path

    def _named(self, parts: Sequence[str], where: str) -> Iterator[str]:
        """Yield the only file whose path ends with `parts`."""
        names, stems = self._index
        wanted = [_key(part) for part in parts]
        for index in (names, stems):
            paths = [path for path in index.get(wanted[-1], ()) if _folders(path)[-len(wanted) : -1] == wanted[:-1]]
            if len(paths) > 1:
                places = " or ".join(sorted({f"{os.path.dirname(path)}/" for path in paths})[:3])
                raise DataError(
                    f"{where}: {'/'.join(parts)!r} may be {first_few(sorted(paths), 3)}; say which folder by "
                    f"data.file_prefix ({places}), and an ending that is missing by data.file_suffix"
                )
            if paths:
                yield os.path.join(self.folder, paths[0])

    @cached_property
    def _index(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Return relative paths of candidate files, by name and by name without extension."""
        names: dict[str, list[str]] = {}
        stems: dict[str, list[str]] = {}
        count = 0
        for top, folders, files in os.walk(self.beside or self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            count += len(files)
            if count > MAX_FILES:
                return {}, {}
            for name in sorted(files):
                if not name.startswith(".") and not name.lower().endswith(_NOT_MEDIA):
                    path = os.path.relpath(os.path.join(top, name), self.folder)
                    names.setdefault(_key(name), []).append(path)
                    stems.setdefault(_key(os.path.splitext(name)[0]), []).append(path)
        return names, stems


def resolved_paths(table: Dataset, columns: Sequence[str], paths: FilePaths) -> Dataset:
    """Return the table with absolute paths in these columns; other values are unchanged.

    Raises DataError as `FilePaths.path` does.
    """
    from datasets import Value  # takes half a second to import; not needed by `predict`

    for column in columns:
        feature = table.features.get(column)
        if isinstance(feature, Value) and re.fullmatch("(large_)?string|u?int[0-9]+", feature.dtype):
            values = [paths.path(value, row) for row, value in enumerate(column_values(table, column))]
            # Added before removing the old one: a table without columns has no rows.
            table = table.add_column(NEW, values).remove_columns(column).rename_column(NEW, column)
    return table


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _folders(path: str) -> list[str]:
    return [_key(part) for part in path.split(os.sep)]
