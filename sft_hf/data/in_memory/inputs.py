"""Inputs for predictions from Python, as a list with one value per input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sft_hf.core.errors import DataError, did_you_mean
from sft_hf.data.in_memory.frames import frame_of

FILE_KEYS = frozenset(("array", "sampling_rate", "bytes", "path"))  # of an image or recording as a dict
MOST_DIMENSIONS = 3  # of the array of one input


def as_inputs(inputs: Any, columns: Sequence[str]) -> list[Any]:
    """Return inputs as a list: the rows {column: value} of a table, or a list with the single input.

    Args:
        inputs: a list or another iterable of inputs, a DataFrame or another table, or one input.
        columns: the columns that the model reads, which a table must have.

    Raises DataError for a table that lacks one of them, and for objects that are not inputs.
    """
    if isinstance(inputs, (str, bytes, os.PathLike)) or hasattr(inputs, "getbands"):  # a Pillow image
        return [inputs]
    if isinstance(inputs, Mapping) and (not inputs or set(inputs) & FILE_KEYS - set(columns)):
        return [dict(inputs)]
    if isinstance(inputs, np.ndarray) and 1 < inputs.ndim <= MOST_DIMENSIONS:
        return [inputs]
    if isinstance(inputs, Mapping) or hasattr(inputs, "columns") or hasattr(inputs, "column_names"):
        return _rows(inputs, columns)
    if not isinstance(inputs, Iterable):
        raise DataError(f"inputs: {type(inputs).__name__} is not a list of inputs")
    return list(inputs)


def _rows(table: Any, columns: Sequence[str]) -> list[dict[str, Any]]:
    from datasets import Dataset  # takes half a second to import; not needed for lists

    if isinstance(table, Dataset):
        from sft_hf.data.loading.media import undecoded

        table = undecoded(table.with_format(None))
    else:
        table = frame_of(table, "inputs")
    known = table.column_names
    for column in columns:
        if column not in known:
            raise DataError(f"inputs: no column {column!r}; {did_you_mean(column, known)}")
    if isinstance(table, Dataset):
        return [{column: row[column] for column in columns} for row in table.select_columns(list(columns))]
    held = {column: table.values(column) for column in columns}
    lists = [values.to_pylist() if hasattr(values, "to_pylist") else list(values) for values in held.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
