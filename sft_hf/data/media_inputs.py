"""What a user gives `predict` for images or recordings: files, folders, globs, tables with a column of paths."""

from __future__ import annotations

import glob
import logging
import mimetypes
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_hf.data.file_paths import FilePaths
from sft_hf.data.files import TABLE_SUFFIXES
from sft_hf.data.media import FILE_NAME, find_files
from sft_hf.data.new_inputs import Input, chunked, table_rows, until_error
from sft_hf.errors import DataError, UserError, did_you_mean, first_few

if TYPE_CHECKING:
    from sft_hf.recipe import DataSection

log = logging.getLogger("sft_hf")

CHUNK = 256  # files that are answered together
LISTED = 50  # files left out that a line names

Find = Callable[[Path], Sequence[Path]]
"""Returns the files to take from a folder, or raises DataError for none."""


def refuse_literal(literal: bool, kind: str) -> None:
    """Raise UserError where all inputs of a model for pictures or recordings are said to be texts."""
    if literal:
        raise UserError(f"--text (literal=True) is for models of texts; this one takes {kind}")


def input_chunks(
    inputs: Sequence[Any], data: DataSection, column: str, find: Find, media: tuple[str, ...]
) -> Iterator[list[Input]]:
    """Yield what `media_inputs` finds, `CHUNK` at a time."""
    return chunked(media_inputs(inputs, data, column, find, media), CHUNK, 2**40)


def media_inputs(
    inputs: Sequence[Any], data: DataSection, column: str, find: Find, media: tuple[str, ...]
) -> Iterator[Input]:
    """Yield every file that the inputs mean, in their order; nothing is fetched from a URL.

    Args:
        inputs: paths.
        data: how tables are read.
        column: of a table, with paths relative to the table's folder; `file_name` is taken in its place.
        find: see `Find`.
        media: MIME types ("image"): files of a folder whose ending is of such a type are inputs too, readable or not;
            files of other kinds are named in one line, and left out.
    """
    for given in inputs:
        if hasattr(given, "read"):
            yield Input({column: "-"}, "-", error="standard input is for texts; give files, folders or a table")
            continue
        value = os.fspath(given)
        path = Path(value).expanduser()
        if "://" in value or value.startswith("data:"):
            error = f"{value[:200]}: is a URL, and none is fetched; download the file and give its path"
            yield Input({column: value}, value, error=error)
        elif os.path.isdir(path):
            yield from _folder_inputs(path, column, find, media)
        elif path.suffix.lower() in TABLE_SUFFIXES:
            yield from until_error(_table_inputs(path, data, column), str(path))
        elif os.path.exists(path):
            yield Input({column: str(path)}, str(path))
        else:
            yield from _matching(path, column)


def _folder_inputs(folder: Path, column: str, find: Find, media: tuple[str, ...]) -> Iterator[Input]:
    _, files = find_files(folder, ())  # no ending is one of none: all files
    try:
        chosen = set(find(folder))
    except DataError as error:
        yield Input({column: str(folder)}, str(folder), error=str(error))
        chosen = set()
    others: list[str] = []
    for path in sorted({*files, *chosen}):
        kind = (mimetypes.guess_type(path.name, strict=False)[0] or "").partition("/")[0]
        if path in chosen or kind in media:  # what the reader cannot open, it gives the reason for
            yield Input({column: str(path)}, str(path))
        else:
            others.append(str(path.relative_to(folder)))
    if others:
        kinds = " or ".join(media)
        log.warning("%s: %d file(s) left out, not %s: %s", folder, len(others), kinds, first_few(others, LISTED))


def _table_inputs(path: Path, data: DataSection, column: str) -> Iterator[Input]:
    def choose(names: Sequence[str]) -> list[str]:
        return [FILE_NAME] if column not in names and FILE_NAME in names else [column]

    paths = FilePaths(path, data.file_prefix, data.file_suffix)
    for row, cells, own, problem in table_rows(path, data, choose):
        if problem is not None:
            yield Input({column: None}, None, row, table=str(path), error=problem)
            continue
        ((name, value),) = cells.items()
        if (isinstance(value, str) and value.strip()) or (isinstance(value, int) and not isinstance(value, bool)):
            try:
                found, error = paths.path(value, row), None
            except DataError as several:  # several files fit
                found, error = str(value), str(several)
            yield Input({column: found}, found, row, table=str(path), id=own, error=error)
        elif isinstance(value, bytes) or (isinstance(value, dict) and value.get("bytes")):  # the file itself
            yield Input({column: value}, None, row, table=str(path), id=own)
        else:
            error = f"{path} row {row}: column {name!r} does not hold a path or a file"
            yield Input({column: None}, None, row, table=str(path), id=own, error=error)


def _matching(pattern: Path, column: str) -> Iterator[Input]:
    """The files that a pattern means; for none, as for a file that is not there, a bad input."""
    name = str(pattern)
    if any(character in name for character in "*?["):
        found = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
        yield from (Input({column: path}, path) for path in found)
        if not found:
            yield Input({column: name}, name, error=f"{name}: no file matches")
        return
    folder = pattern.parent
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    hint = did_you_mean(pattern.name, names) if names else "nor is there such a folder"
    yield Input({column: name}, name, error=f"{name}: there is no such file; {hint}")
