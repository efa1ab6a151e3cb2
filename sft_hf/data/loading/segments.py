"""Rows that refer to a part of a recording: start and end columns are merged into the cell of the recording.

Such a cell is {"path": ..., "start": seconds, "end": seconds or None}; all readers of recordings support it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_hf.core.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset, Features

    from sft_hf.core.recipe.recipe import DataSection

_START = re.compile(
    r"(segment_|utterance_|)(start|begin)(_?time)?(_s|_secs?|_seconds|_ms|_millis|_milliseconds)?", re.I
)
_MILLISECONDS = re.compile(r".*_(ms|millis|milliseconds)", re.I)
_LIKE_STARTS = {"start", "begin", "beginning", "onset", "from", "offset"}
_LIKE_ENDS = {"end", "ending", "stop", "finish", "to", "until", "duration", "dur", "length"}
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)")


def cell_features() -> Features:
    """Return the features of a cell that refers to a part of a recording."""
    from datasets import Value  # takes half a second to import; not needed by `predict`

    return {"path": Value("string"), "start": Value("float64"), "end": Value("float64")}


class Times(NamedTuple):
    """The columns of start times, and of end times (optional) or durations. Names ending in _ms are in milliseconds."""

    start: str
    end: str | None
    durations: bool = False

    def __str__(self) -> str:
        return f"{self.start!r} and {self.end!r}" if self.end else repr(self.start)

    def cell(self, path: Any, start: Any, end: Any, where: str) -> dict[str, Any]:
        """Return the cell of a row; without times, it refers to the whole recording.

        Raises DataError for an invalid time.
        """
        first = _seconds(start, self.start, where)
        last = None if self.end is None else _seconds(end, self.end, where)
        if last is not None and self.durations:
            last += first or 0.0
        return {"path": path, "start": first, "end": last}


def segment_names(columns: Sequence[str], section: DataSection, where: str) -> Times | None:
    """Return the time columns of a table; None if there are none.

    Raises DataError if data.segment_columns names a missing column.
    """
    wanted = section.segment_columns
    if wanted == "none":
        return None
    if wanted != "auto":
        for name in wanted:
            if name not in columns:
                raise DataError(f"{where}: no column {name!r} (data.segment_columns); {did_you_mean(name, columns)}")
        return Times(wanted[0], wanted[1])
    if "offset" in columns:
        return Times("offset", "duration" if "duration" in columns else None, durations=True)
    folded = {name.lower(): name for name in columns}
    for name in columns:
        if match := _START.fullmatch(name):
            before, _, *after = match.groups(default="")
            ends = (folded.get(f"{before}{end}{''.join(after)}".lower()) for end in ("end", "stop"))
            if found := next(filter(None, ends), None):
                return Times(name, found)
    return None


def with_segments(table: Dataset, column: str, section: DataSection, where: str) -> tuple[Dataset, list[str]]:
    """Return the table with its path column converted to cells if it has time columns, and a note about it.

    Raises DataError for invalid times, and for rows that seem to be parts of recordings by columns of unknown names.
    """
    from datasets import Value

    feature = table.features.get(column)
    if not isinstance(feature, Value) or feature.dtype not in ("string", "large_string"):
        return table, []
    others = [name for name in table.column_names if name != column]
    times = segment_names(others, section, where)
    view = table.with_format(None)
    if times is None:
        if section.segment_columns == "auto":
            _refuse_unknown_times(view[column][:], others, where)
        return table, []
    rows = zip(view[column][:], view[times.start][:], view[times.end or times.start][:], strict=True)
    cells = [times.cell(*cells, f"{where} row {row}") for row, cells in enumerate(rows)]
    if not any(cell["start"] or cell["end"] is not None for cell in cells):
        return table, []
    parts = table.remove_columns(column).add_column(column, cells, feature=cell_features())
    return parts, [f"{where}: each row is the part of its recording that the columns {times} say, in {_units(times)}"]


def _units(times: Times) -> str:
    return "milliseconds" if _MILLISECONDS.fullmatch(times.start) else "seconds"


def _refuse_unknown_times(paths: Sequence[Any], columns: Sequence[str], where: str) -> None:
    """Rows that share a recording are probably parts of it; as whole recordings, their labels would contradict."""
    words = {name: set(re.split("[^a-z]+", name.lower())) for name in columns}
    start = next((name for name in columns if words[name] & _LIKE_STARTS), None)
    end = next((name for name in columns if words[name] & _LIKE_ENDS), None)
    if start is None or end is None or len(set(paths)) == len(paths):
        return
    raise DataError(
        f"{where}: several rows name the same recording, and the columns {start!r} and {end!r} may say which part each "
        f"is; set data.segment_columns: [{start}, {end}] (start and end in seconds), or none for whole recordings"
    )


def _seconds(value: Any, column: str, where: str) -> float | None:
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
            f"{where}: {value!r} (column {column!r}) is not a time in seconds; correct it, or set "
            "data.segment_columns: none if these are not parts of recordings"
        )
    return number / 1000 if _MILLISECONDS.fullmatch(column) else number
