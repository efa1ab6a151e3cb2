"""Rows that mean a part of a recording: columns with its start and end become part of the recording's cell.

Such a cell is {"path": ..., "start": seconds, "end": seconds or None}; whatever reads recordings knows it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sft_hf.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset, Features

    from sft_hf.recipe import DataSection

_DURATIONS = (("offset", "duration"),)
_PAIRS = (("start", "end"), ("start_time", "end_time"), ("begin", "end"), ("begin_time", "end_time"))
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)")


def cell_features() -> Features:
    """Return the features of a cell that means a part of a recording."""
    from datasets import Value  # half a second, which `predict` need not wait for

    return {"path": Value("string"), "start": Value("float64"), "end": Value("float64")}


def segment_names(columns: Sequence[str], section: DataSection, where: str) -> tuple[str, str | None, bool] | None:
    """Return the column of starts, that of ends or durations, and whether it holds durations; None for neither.

    Raises DataError if data.segment_columns names a column that is not there.
    """
    wanted = section.segment_columns
    if wanted == "none":
        return None
    if wanted != "auto":
        for name in wanted:
            if name not in columns:
                raise DataError(f"{where}: no column {name!r} (data.segment_columns); {did_you_mean(name, columns)}")
        return wanted[0], wanted[1], False
    for start, duration in _DURATIONS:
        if start in columns:
            return start, duration if duration in columns else None, True
    return next(((start, end, False) for start, end in _PAIRS if start in columns and end in columns), None)


def segment_cell(path: Any, start: Any, end: Any, durations: bool, names: str, where: str) -> dict[str, Any]:
    """Return the cell of a row; one without times means the whole recording.

    `durations`: whether `end` is a duration. `names`: of the columns, for messages. Raises DataError for a time that
    cannot be read.
    """
    first, last = _seconds(start, names, where), _seconds(end, names, where)
    if last is not None and durations:
        last += first or 0.0
    return {"path": path, "start": first, "end": last}


def with_segments(table: Dataset, column: str, section: DataSection, where: str) -> tuple[Dataset, list[str]]:
    """Return the table with its column of paths turned into cells where it has columns of times, and a note on it."""
    from datasets import Value

    feature = table.features.get(column)
    if not isinstance(feature, Value) or feature.dtype not in ("string", "large_string"):
        return table, []
    found = segment_names([name for name in table.column_names if name != column], section, where)
    if found is None:
        return table, []
    start, end, durations = found
    names = f"{start!r} and {end!r}" if end else repr(start)
    view = table.with_format(None)
    rows = zip(view[column][:], view[start][:], view[end][:] if end else [None] * len(view), strict=True)
    cells = [segment_cell(*cells, durations, names, f"{where} row {row}") for row, cells in enumerate(rows)]
    if not any(cell["start"] or cell["end"] is not None for cell in cells):
        return table, []
    parts = table.remove_columns(column).add_column(column, cells, feature=cell_features())
    return parts, [f"{where}: each row is the part of its recording that the columns {names} say, in seconds"]


def _seconds(value: Any, names: str, where: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str) and (clock := _CLOCK.fullmatch(value.strip())):
        hours, minutes, seconds = clock.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise DataError(
            f"{where}: {value!r} (columns {names}) is not a time in seconds; correct it, or set "
            "data.segment_columns: none if these are no parts of recordings"
        )
    return number
