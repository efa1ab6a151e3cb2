"""What a program gives a model to answer, as a list with one value for each input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sft_hf.core.errors import DataError, did_you_mean
from sft_hf.data.in_memory.frames import frame_of

FILE_KEYS = frozenset(("array", "sampling_rate", "bytes", "path"))  # of a picture or recording in a dict
MOST_DIMENSIONS = 3  # of one input's array


def as_inputs(inputs: Any, columns: Sequence[str]) -> list[Any]:
    """Return inputs as a list: a table as its rows {column: value}, a single input as a list of one.

    Args:
        inputs: a list or another iterable of inputs, a DataFrame or another table, or one input.
        columns: those that a table has to have, which the model reads.

    Raises DataError for a table without one of them, and for what holds no inputs.
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
    from datasets import Dataset  # half a second, which lists of inputs need not wait for

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
