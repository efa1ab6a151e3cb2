"""Convert the values of a column to an Arrow array of one type, as the file readers return it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sft_hf.core.errors import DataError
from sft_hf.data.tables.json_columns import odd_rows, typed_array
from sft_hf.data.tables.table import one_line

NOTHING = ("NAType", "NaTType")  # type names of pandas.NA and pandas.NaT


def column_array(values: Any, where: str, name: str) -> pa.Array | pa.ChunkedArray:
    """Return a column as an Arrow array of plain types.

    Args:
        values: an Arrow array, or a list of Python and NumPy objects; None, NaN and pandas.NA are missing values.
        where, name: the table and the column, for messages.

    Raises DataError naming two rows of different types, or the first row that cannot be stored.
    """
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return _plain_type(values)
    cells = [value if isinstance(value, str) else plain(value) for value in values]
    try:
        return typed_array(cells)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        present = [None if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells]
        if odd := odd_rows(present):
            problem = f"column {name!r} mixes kinds of values ({odd}); write them all the same way"
            raise DataError(f"{where}: {problem}") from error
        row = next((row for row, cell in enumerate(cells) if not _fits(cell)), None)
        place = where if row is None else f"{where} row {row}"
        raise DataError(f"{place}: column {name!r} cannot be stored: {one_line(error)}") from error


def ordered_names(values: Any) -> list[str] | None:
    """Return the categories in use of an ordered categorical text column, in their order; None for other columns."""
    if not isinstance(values, (pa.Array, pa.ChunkedArray)) or not pa.types.is_dictionary(values.type):
        return None
    if not values.type.ordered or not _is_text(values.type.value_type):
        return None
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(array, pa.ChunkedArray):  # no rows
        return None
    used = set(array.indices.drop_null().unique().to_pylist())
    return [name for number, name in enumerate(array.dictionary.to_pylist()) if number in used]


def plain(value: Any) -> Any:
    """Convert a cell to plain Python numbers, texts and lists; None if it is missing."""
    if value is None:
        return None
    if isinstance(value, (str, bool, int, float, bytes)):  # includes some NumPy types
        return value.item() if hasattr(value, "item") else value
    if type(value).__name__ in NOTHING:
        return None
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=repr)
    elif hasattr(value, "tolist"):  # a NumPy number or array, a tensor, a Series
        value = value.tolist()
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain_type(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    wanted = _without_dictionary(array.type)
    return array if wanted == array.type else array.cast(wanted)


def _without_dictionary(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _without_dictionary(kind.value_type)
    if kind == pa.string_view():
        return pa.large_string()
    if pa.types.is_list(kind):
        return pa.list_(_without_dictionary(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_without_dictionary(kind.value_type))
    return kind


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()


def _fits(cell: Any) -> bool:
    try:
        pa.array([cell])
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
    return True


def files_array(cells: Sequence[dict[str, Any] | None]) -> pa.ChunkedArray:
    """Return cells {"bytes": ..., "path": ...} as an array, in chunks below Arrow's limit (2 GB)."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    chunks: list[pa.Array] = []
    chunk: list[dict[str, Any] | None] = []
    size = 0
    for cell in cells:
        held = len(cell["bytes"] or b"") if cell else 0
        if chunk and size + held > CHUNK_BYTES:
            chunks.append(pa.array(chunk, kind))
            chunk, size = [], 0
        chunk.append(cell)
        size += held
    return pa.chunked_array([*chunks, pa.array(chunk, kind)], kind)


CHUNK_BYTES = 1 << 28  # of files in one chunk of an Arrow array
