"""Inputs of `predict` for texts: texts, text files, tables, standard input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_hf.core.errors import DataError
from sft_hf.core.filesystem import no_such_file
from sft_hf.data.new_inputs.inputs import Input, table_rows, until_error
from sft_hf.data.tables.archives import ARCHIVE, archive_members
from sft_hf.data.tables.files import TABLE_SUFFIXES, text_lines
from sft_hf.data.tables.table import plain_name

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection

FILE_SUFFIXES = (*TABLE_SUFFIXES, ".txt")
"""Extensions by which an argument is a file, even if it does not exist."""

LITERAL = "--text takes every argument as a text (in Python: literal=True)"


def text_inputs(inputs: Sequence[Any], data: DataSection, columns: Sequence[str], literal: bool) -> Iterator[Input]:
    """Yield every text that the inputs refer to, in order.

    An argument is a file if it exists; otherwise it is a text, unless it looks like a path.

    Args:
        inputs: texts, paths, and open text files, which are read line by line.
        data: options for reading tables.
        columns: the text column, and the second one for pairs.
        literal: whether all arguments are texts, even if files of these names exist.
    """
    for index, value in enumerate(inputs):
        if hasattr(value, "read"):
            yield from until_error(_lines(_decoded(value), "-", columns), "-")
            continue
        text = os.fspath(value)
        there = os.path.exists(text) or any(os.path.isfile(path) for path in _parents(text))  # may be in an archive
        if literal or not (there or _looks_like_a_path(text)):
            yield _literal(text, index, columns)
        elif not there:
            yield Input({columns[0]: text}, text, error=_missing(text))
        elif os.path.exists(text) and not os.path.isfile(text):
            yield Input(
                {columns[0]: text},
                text,
                error=f"{text}: is not a file; name the files in a folder, or give - for standard input. {LITERAL}",
            )
        else:
            hint = "" if text.lower().endswith(FILE_SUFFIXES) else f". {LITERAL}"
            yield from until_error(_file_inputs(Path(text), data, columns), text, hint)


def texts_in_memory(values: Iterable[Any], columns: Sequence[str]) -> Iterator[Input]:
    """Yield one input per value, never interpreted as a path, with an error if it is not a text.

    A value is a text, a sequence of two texts (for pairs), or a row {column: text}.
    """
    for index, value in enumerate(values):
        cells = _cells(value, columns)
        if cells is None:
            wanted = f"a pair of texts ({' and '.join(columns)})" if len(columns) > 1 else "a text"
            error = f"input {index}: {type(value).__name__} {value!r:.40} is not {wanted}"
            yield Input(dict.fromkeys(columns, value if isinstance(value, str) else None), error=error)
            continue
        yield Input(cells, error=_problem(f"input {index}", cells))


def _cells(value: Any, columns: Sequence[str]) -> dict[str, Any] | None:
    if isinstance(value, Mapping):
        return {column: value.get(column) for column in columns}
    if len(columns) == 1:
        return {columns[0]: str(value)} if isinstance(value, str) else None
    if isinstance(value, (list, tuple)) and len(value) == len(columns):
        return dict(zip(columns, value, strict=True))
    return None


def _parents(text: str) -> list[str]:
    """Return the parent folders if the text looks like a path; none for other texts, which may be long."""
    return [str(path) for path in Path(text).parents] if _looks_like_a_path(text) else []


def _literal(text: str, index: int, columns: Sequence[str]) -> Input:
    if len(columns) > 1:
        return Input({columns[0]: text}, error=_wants_pairs(columns))
    if text.strip():
        return Input({columns[0]: text}, error=_not_unicode(f"input {index}", text))
    return Input({columns[0]: text}, error=f"input {index}: is an empty text")


def _not_unicode(where: str, text: str) -> str | None:
    """Return the problem of a text that is not valid Unicode: lone surrogates, or undecodable bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{where}: holds characters that are not valid Unicode (surrogates)"
    return None


def _wants_pairs(columns: Sequence[str]) -> str:
    return f"this model takes pairs of texts: give a CSV or JSONL file with columns {' and '.join(columns)}"


def _looks_like_a_path(text: str) -> bool:
    """Whether a text is more likely the path of a missing file.

    It has the extension of a table; or it has a separator, and contains no blanks or its folder exists.
    """
    if text.lower().endswith((*FILE_SUFFIXES, ARCHIVE)):
        return True
    folder, name = os.path.split(text)
    separated = bool(folder and name) or "\\" in text
    return separated and (not any(map(str.isspace, text)) or os.path.isdir(folder))


def _missing(text: str) -> str:
    return f"{text[:300]}: {no_such_file(text)}. If it is a text: {LITERAL}"


def _file_inputs(path: Path, data: DataSection, columns: Sequence[str]) -> Iterator[Input]:
    name = str(path)
    if path.suffix.lower() == ARCHIVE:
        for member in archive_members(path):
            yield from until_error(_file_inputs(path / member, data, columns), f"{name}/{member}")
        return
    if plain_name(path).suffix.lower() == ".txt":
        yield from _lines(text_lines(path, data.encoding), name, columns)
        return
    for row, cells, own, problem in table_rows(path, data, lambda _: columns):
        yield Input(cells, name, row, id=own, error=problem or _problem(f"{name} row {row}", cells))


def _problem(where: str, cells: dict[str, Any]) -> str | None:
    for column, value in cells.items():
        if not isinstance(value, str) or not value.strip():
            return f"{where}: column {column!r} holds no text"
        if problem := _not_unicode(f"{where}: column {column!r}", value):
            return problem
    return None


def _lines(lines: Iterable[str], name: str, columns: Sequence[str]) -> Iterator[Input]:
    """Yield one text per line; blank lines are reported."""
    if len(columns) > 1:
        raise DataError(_wants_pairs(columns))
    row = -1
    for row, line in enumerate(lines):
        problem = _not_unicode(f"{name} row {row}", line) if line.strip() else f"{name} row {row}: is a blank line"
        yield Input({columns[0]: line}, name, row, error=problem)
    if row < 0:
        raise DataError(f"{'standard input' if name == '-' else name}: is empty")


def _decoded(stream: Any) -> Iterator[str]:
    """Yield the lines of an open file, without line ends."""
    for number, line in enumerate(getattr(stream, "buffer", stream)):
        if isinstance(line, bytes):
            try:
                line = line.decode("utf-8" if number else "utf-8-sig")
            except UnicodeDecodeError:
                raise DataError(f"standard input, line {number + 1}: is not UTF-8 text") from None
        yield line.rstrip("\r\n")
