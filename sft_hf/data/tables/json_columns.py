"""Convert JSON values to typed columns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from sft_hf.core.errors import DataError
from sft_hf.data.tables.table import Batch, Table, one_line


def json_table(table: Table, batches: Iterable[Batch]) -> pa.Table:
    """Return batches as one table. Raises DataError for a required column with values of different types."""
    # All values of a column at once: the first batch may contain only integers, or only nulls.
    values: Batch = {}
    count = 0
    for batch in batches:
        size = len(next(iter(batch.values()), []))
        for name, column in batch.items():
            values.setdefault(name, [None] * count).extend(column)  # the key may be new in this batch
        count += size
        for name, held in values.items():
            if name not in batch:
                held.extend([None] * size)
    arrays = {}
    for name in list(values):
        column = values.pop(name)  # frees the Python values of each column
        try:
            arrays[name] = typed_array(column)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            if table.keep is not None and name not in table.keep:
                table.notes.append(f"{table.path.name}: column {name!r} is left out, because it mixes kinds of values")
                continue
            raise DataError(
                f"{table.path}: column {name!r} mixes kinds of values ({odd_rows(column) or one_line(error)}); write "
                "them all the same way"
            ) from error
    return pa.table(arrays)


def typed_array(column: list[Any]) -> pa.Array:
    """Return values of one type as an array; NaN among other values is a missing value. Raises as `pa.array`."""
    try:
        return pa.array(column)
    except (pa.ArrowException, TypeError):
        # Python also writes missing texts as NaN.
        if not any(isinstance(value, float) and math.isnan(value) for value in column):
            raise
        return pa.array([None if isinstance(value, float) and math.isnan(value) else value for value in column])


def odd_rows(column: list[Any]) -> str:
    """Return the first row, and the first row of another type; "" if all have the same type."""
    kinds = {"str": "text", "bool": "true or false", "int": "a number", "float": "a number", "list": "a list"}
    seen: dict[str, int] = {}
    for row, value in enumerate(column):
        if value is not None:
            seen.setdefault(kinds.get(type(value).__name__, "an object"), row)
    return ", ".join(f"row {row} holds {kind}" for kind, row in list(seen.items())[:2]) if len(seen) > 1 else ""
