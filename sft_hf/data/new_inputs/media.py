"""Inputs of `predict` for images and recordings: files, folders, globs, tables with a path column."""

from __future__ import annotations

import glob
import logging
import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_hf.core.errors import DataError, UserError, first_few
from sft_hf.core.filesystem import no_such_file
from sft_hf.data.findings import counted
from sft_hf.data.in_memory.cells import CELLS, MakeCell
from sft_hf.data.loading.file_paths import URL, FilePaths
from sft_hf.data.loading.media import FILE_NAME, find_files
from sft_hf.data.loading.segments import Times, segment_names
from sft_hf.data.loading.speech_layouts.nemo import manifest_names
from sft_hf.data.new_inputs.inputs import Input, chunked, table_rows, until_error
from sft_hf.data.tables.files import TABLE_SUFFIXES

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection

log = logging.getLogger("sft_hf")

CHUNK = 256  # files per batch of answers
LISTED = 50  # skipped files that a message lists

Find = Callable[[Path], Sequence[Path]]
"""Returns the files to use from a folder, or raises DataError if there are none."""


def refuse_literal(literal: bool, kind: str) -> None:
    """Raise UserError if inputs of an image or speech model are declared to be texts."""
    if literal:
        raise UserError(f"--text (literal=True) is for models of texts; this one takes {kind}")


def input_chunks(
    inputs: Sequence[Any], data: DataSection, column: str, find: Find, media: tuple[str, ...]
) -> Iterator[list[Input]]:
    """Yield the results of `media_inputs` in lists of `CHUNK`."""
    return chunked(media_inputs(inputs, data, column, find, media), CHUNK, 2**40)


def files_in_memory(values: Iterable[Any], columns: Mapping[str, str]) -> Iterator[list[Input]]:
    """Yield one input per value, in lists of `CHUNK`; strings are paths of single files.

    Args:
        values: paths, types supported by `sft_hf.data.in_memory.cells`, or rows {column: one of these}.
        columns: {recipe key: column} of the columns that the task reads, including one of images or recordings.
    """
    column, cell = next((column, CELLS[key]) for key, column in columns.items() if key in CELLS)
    found = (_in_memory(value, f"input {index}", column, cell) for index, value in enumerate(values))
    return chunked(found, CHUNK, 2**40)


def _in_memory(value: Any, where: str, column: str, cell: MakeCell) -> Input:
    if isinstance(value, Mapping) and column in value:
        value = value[column]
    if isinstance(value, (str, os.PathLike)):
        path = os.path.expanduser(os.fspath(value))
        error = None
        if not path.strip():
            error = f"{where}: is an empty path"
        elif os.path.isdir(path):
            error = f"{path}: is a folder; `predict_files` takes folders, patterns and tables"
        elif not os.path.exists(path) and not URL.match(path):
            error = f"{path}: {no_such_file(path)}"
        return Input({column: path}, path, error=error)
    try:
        held = cell(value, where)
    except DataError as problem:
        return Input({column: None}, error=str(problem))
    name = held.get("path") if held else None
    return Input({column: held}, name, error=None if held else f"{where}: is empty")


def media_inputs(
    inputs: Sequence[Any], data: DataSection, column: str, find: Find, media: tuple[str, ...]
) -> Iterator[Input]:
    """Yield every file that the inputs refer to, in order; URLs are not downloaded.

    Args:
        inputs: paths.
        data: options for reading tables.
        column: path column of a table, relative to the table's folder; `file_name`, or the `audio_filepath` of a
            manifest, is accepted as well.
        find: see `Find`.
        media: MIME types ("image"): files of a folder with an extension of such a type are inputs, readable or not;
            other files are listed in one warning and skipped.
    """
    for given in inputs:
        if hasattr(given, "read"):
            yield Input({column: "-"}, "-", error="standard input is for texts; give files, folders or a table")
            continue
        value = os.fspath(given)
        path = Path(value).expanduser()
        if "://" in value or value.startswith("data:"):
            error = f"{value[:200]}: is a URL; URLs are not downloaded; download the file and give its path"
            yield Input({column: value}, value, error=error)
        elif os.path.isdir(path):
            yield from _folder_inputs(path, column, find, media)
        elif path.suffix.lower() in TABLE_SUFFIXES:
            yield from until_error(_table_inputs(path, data, column, "audio" in media), str(path))
        elif os.path.exists(path):
            yield Input({column: str(path)}, str(path))
        else:
            yield from _matching(path, column)


def _folder_inputs(folder: Path, column: str, find: Find, media: tuple[str, ...]) -> Iterator[Input]:
    _, files = find_files(folder, ())  # () matches no extension: all files
    try:
        chosen = set(find(folder))
    except DataError as error:
        yield Input({column: str(folder)}, str(folder), error=str(error))
        chosen = set()
    others: list[str] = []
    for path in sorted({*files, *chosen}):
        kind = (mimetypes.guess_type(path.name, strict=False)[0] or "").partition("/")[0]
        if path in chosen or kind in media:  # the reader reports why it cannot open a file
            yield Input({column: str(path)}, str(path))
        else:
            others.append(str(path.relative_to(folder)))
    if others:
        kinds = " or ".join({"image": "pictures"}.get(kind, kind) for kind in media)
        log.warning(
            "%s: %s left out (not %s): %s", folder, counted(len(others), "file"), kinds, first_few(others, LISTED)
        )


def _table_inputs(path: Path, data: DataSection, column: str, recordings: bool) -> Iterator[Input]:
    """Yield the files of a table's rows; of recordings, the parts that rows refer to: see `data.segments`."""
    times: list[Times] = []

    def choose(names: Sequence[str]) -> list[str]:
        others = [FILE_NAME, *(manifest_names(names, data) if recordings else ())]
        cell = next((name for name in (column, *others) if name in names), column)
        if recordings and (found := _times(names, cell, data, str(path))):
            times.append(found)
            return list(dict.fromkeys(filter(None, [cell, found.start, found.end])))
        return [cell]

    paths = FilePaths(path, data.file_prefix, data.file_suffix)
    for row, cells, own, fault in table_rows(path, data, choose):
        if fault is not None:
            yield Input({column: None}, None, row, table=str(path), error=fault)
            continue
        name, value = next(iter(cells.items()))
        if (isinstance(value, str) and value.strip()) or (isinstance(value, int) and not isinstance(value, bool)):
            found, error = value, None
            try:
                found = paths.path(value, row)
                part = found
                for one in times:
                    part = one.cell(found, cells[one.start], cells[one.end or one.start], f"{path} row {row}")
            except DataError as problem:  # several files match, or a time is invalid
                part, error = str(value), str(problem)
            yield Input({column: part}, str(found), row, table=str(path), id=own, error=error)
        elif isinstance(value, bytes) or (isinstance(value, dict) and value.get("bytes")):  # the file itself
            yield Input({column: value}, None, row, table=str(path), id=own)
        else:
            error = f"{path} row {row}: column {name!r} does not hold a path or a file"
            yield Input({column: None}, None, row, table=str(path), id=own, error=error)


def _times(names: Sequence[str], cell: str, data: DataSection, where: str) -> Times | None:
    """Return the columns of a table with the start and end of each part of a recording."""
    wanted = data.segment_columns
    if not isinstance(wanted, str) and not set(wanted) & set(names):
        return None  # columns of the training data; this table has whole recordings
    return segment_names([name for name in names if name != cell], data, where)


def _matching(pattern: Path, column: str) -> Iterator[Input]:
    """Yield the files that match a pattern; a bad input if there are none, as for a missing file."""
    name = str(pattern)
    if any(character in name for character in "*?["):
        found = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
        yield from (Input({column: path}, path) for path in found)
        if not found:
            yield Input({column: name}, name, error=f"{name}: no file matches")
        return
    yield Input({column: name}, name, error=f"{name}: {no_such_file(pattern)}")
