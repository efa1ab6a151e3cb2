"""Inputs of `predict`: values, origin and problems.

A bad input is an `Input` with an error, not an exception, so that the other inputs are still answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_hf.core.errors import DataError, did_you_mean
from sft_hf.data.tables.files import iter_rows, table_options
from sft_hf.data.tables.table import Batch

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection

ID = "id"  # column of a table, case-insensitive, with ids for its rows
LONGEST = 200  # characters of a cell that is neither text nor a number
FIRST_ROWS = 1000  # of a table, from which its columns are determined


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        columns: model inputs, {column: text or path, or the file itself: bytes or {"bytes": ..., "path": ...}}.
        path: the file that is the input or contains it; "-" for standard input, None for a literal text.
        row: its 0-based row in that file, or in `table`.
        table: the table that refers to an image or recording.
        id: its value in the `id` column of the table.
        error: why it cannot be answered.
    """

    columns: dict[str, Any] = field(default_factory=dict)
    path: str | None = None
    row: int | None = None
    table: str | None = None
    id: Any = None
    error: str | None = None

    def described(self, number: int) -> dict[str, Any]:
        """Return the first fields of an answer: id (default: `number`), path, row, table, columns.

        A part of a recording also has `start` and `end`, in seconds.
        """
        place = {"path": self.path, "row": self.row, "table": self.table}
        found = {"id": number if self.id is None else self.id}
        found |= {name: value for name, value in place.items() if value is not None}
        parts = [value for value in self.columns.values() if isinstance(value, dict)]
        times = {name: part[name] for part in parts for name in ("start", "end") if name in part}
        return {name: _plain(value) for name, value in {**found, **self.columns, **times}.items()}


def chunked(inputs: Iterable[Input], rows: int, characters: int) -> Iterator[list[Input]]:
    """Yield lists of at most `rows` inputs, or fewer once their texts have a total of `characters`."""
    chunk: list[Input] = []
    size = 0
    for one in inputs:
        chunk.append(one)
        size += sum(len(value) for value in one.columns.values() if isinstance(value, str))
        if len(chunk) >= rows or size >= characters:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def table_rows(
    path: Path, data: DataSection, choose: Callable[[Sequence[str]], Sequence[str]]
) -> Iterator[tuple[int, dict[str, Any], Any, str | None]]:
    """Yield (row, {column: value}, id, problem) for each row of a table, rows counted from 0.

    id is None if the table has no such column. An unreadable row has a problem and no values.

    Args:
        data: options for reading tables.
        choose: returns the columns to read, given the available ones.

    Raises DataError for a table that cannot be read, or that cannot be read beyond some row.
    """
    options = {**table_options(data), "on_bad_row": "stop"}
    try:
        names = list(next(iter_rows(path, batch_size=FIRST_ROWS, **{**options, "on_bad_row": "skip"})))
    except DataError:  # may be about a later row
        names = list(next(iter_rows(path, batch_size=1, **options)))
    columns = list(choose(names))
    for column in columns:
        if column not in names:
            # `iter_rows` has a better message for a table whose only column contains whole rows
            next(iter_rows(path, columns=columns, **{**options, "on_bad_row": "skip"}))
            raise DataError(f"{path}: no column {column!r}; {did_you_mean(column, names)}")
    own = next((name for name in names if name.lower() == ID and name not in columns), None)
    row = 0
    for batch in _every_row(path, {"columns": [*columns, *filter(None, [own])], **options}):
        if isinstance(batch, str):
            yield row, {}, None, batch
            row += 1
            continue
        ids = batch[own] if own else [None] * len(batch[columns[0]])
        for values in zip(ids, *(batch[column] for column in columns), strict=True):
            yield row, dict(zip(columns, values[1:], strict=True)), values[0], None
            row += 1


def _plain(value: Any) -> Any:
    """Return a cell as written to the output: types that JSON lacks, such as dates, become text."""
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (bytes, dict)):  # an image or recording in a table: its name, if any
        return value.get("path") if isinstance(value, dict) else None
    return str(value)[:LONGEST]


def _every_row(path: Path, options: dict[str, Any]) -> Iterator[Batch | str]:
    """Yield the batches of `iter_rows`, and a problem in place of each unusable row.

    Raises DataError, after the preceding rows, at the position from which the file cannot be read.
    """
    done = 0
    try:
        for batch in iter_rows(path, **options):
            yield batch
            done += len(next(iter(batch.values())))
        return
    except DataError:
        problems: list[str] = []
    one_by_one = {**options, "batch_size": 1, "on_bad_row": "skip", "heard": problems.append}
    try:
        for number, batch in enumerate(iter_rows(path, **one_by_one)):
            if number >= done:
                yield from problems
                problems.clear()
                yield batch
    except DataError:
        yield from problems
        raise
    yield from problems


def until_error(inputs: Iterator[Input], path: str, hint: str = "") -> Iterator[Input]:
    """Yield the inputs from a file; if reading fails, or there are none, add an input with the error.

    `hint` is added to the message if no input could be read.
    """
    count = 0
    try:
        for one in inputs:
            count += 1
            yield one
    except DataError as error:
        after = f"; its first {count} rows were read, those after them were not" if count else hint
        yield Input(path=path, row=count or None, error=f"{error}{after}")
