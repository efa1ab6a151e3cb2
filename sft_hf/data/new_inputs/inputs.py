"""Inputs of `predict`: their values, origin and problems.

A bad input is an `Input` with an error, never an exception: the others are answered all the same.
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

ID = "id"  # the column of a table, in any letter case, whose values stand for its rows
LONGEST = 200  # characters of a cell that is neither text nor number
FIRST_ROWS = 1000  # of a table, that say which columns it has


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        columns: what the model reads, {column: text or path, or the file itself: bytes or {"bytes": ..., "path": ...}}.
        path: the file that the input is or was read from; "-" for standard input, None for a text as it was given.
        row: its row in that file, or in `table`, counted from 0.
        table: the table that names a picture or recording.
        id: its value in the table's `id` column.
        error: why it cannot be answered.
    """

    columns: dict[str, Any] = field(default_factory=dict)
    path: str | None = None
    row: int | None = None
    table: str | None = None
    id: Any = None
    error: str | None = None

    def described(self, number: int) -> dict[str, Any]:
        """Return the first fields of an answer: id (`number` where the input has none), path, row, table, columns.

        A part of a recording has its `start` and `end` too, in seconds.
        """
        place = {"path": self.path, "row": self.row, "table": self.table}
        found = {"id": number if self.id is None else self.id}
        found |= {name: value for name, value in place.items() if value is not None}
        parts = [value for value in self.columns.values() if isinstance(value, dict)]
        times = {name: part[name] for part in parts for name in ("start", "end") if name in part}
        return {name: _plain(value) for name, value in {**found, **self.columns, **times}.items()}


def chunked(inputs: Iterable[Input], rows: int, characters: int) -> Iterator[list[Input]]:
    """Yield the inputs in lists of at most `rows`, or fewer once their texts have so many characters together."""
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
    """Yield (row, {column: value}, id, problem) of a table, rows counted from 0.

    id is None where the table has no such column. A row that cannot be read has a problem, and no values.

    Args:
        data: how tables are read.
        choose: returns the columns to read, given those that there are.

    Raises DataError for a table that cannot be read, or from some row on cannot.
    """
    options = {**table_options(data), "on_bad_row": "stop"}
    try:
        names = list(next(iter_rows(path, batch_size=FIRST_ROWS, **{**options, "on_bad_row": "skip"})))
    except DataError:  # of a later row, it may be
        names = list(next(iter_rows(path, batch_size=1, **options)))
    columns = list(choose(names))
    for column in columns:
        if column not in names:
            # `iter_rows` says more of a table whose only column is a whole row
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
    """A cell as it can be written into the output: what JSON has no value for, such as a date, as text."""
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (bytes, dict)):  # a picture or recording in a table: its name, if it has one
        return value.get("path") if isinstance(value, dict) else None
    return str(value)[:LONGEST]


def _every_row(path: Path, options: dict[str, Any]) -> Iterator[Batch | str]:
    """Yield what `iter_rows` does, and in its place what is wrong with a row that cannot be used.

    Raises DataError where the file cannot be read on, after all rows before that place.
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
    """Pass on the inputs read from a file; where it cannot be read on, or has none, say so in one more input.

    `hint` ends that sentence, if not one input could be read.
    """
    count = 0
    try:
        for one in inputs:
            count += 1
            yield one
    except DataError as error:
        after = f"; its first {count} rows were read, those after them were not" if count else hint
        yield Input(path=path, row=count or None, error=f"{error}{after}")
