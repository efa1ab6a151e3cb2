"""The splits of a run with data in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetInfo, Features, IterableDataset, LargeList, List, concatenate_datasets

from sft_hf.core.errors import DataError
from sft_hf.data.columns import column_values
from sft_hf.data.in_memory.arrays import column_array, files_array, ordered_names
from sft_hf.data.in_memory.cells import CELLS, MakeCell
from sft_hf.data.in_memory.frames import Frame, frame_of, is_table
from sft_hf.data.labels.values import is_missing
from sft_hf.data.loading.file_paths import URL
from sft_hf.data.loading.roles import ROW_ID, choose, unused
from sft_hf.data.loading.segments import segment_names
from sft_hf.data.loading.split_names import ROLES, SPLIT_COLUMNS

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection


def as_splits(
    given: Mapping[str, Any], section: DataSection, columns: Mapping[str, str]
) -> tuple[dict[str, Dataset], list[str]]:
    """Return the splits by role as data sets, and notes on the choices made.

    Args:
        given: data for train, validation and test; see `as_dataset`. Instead of rows, "train" may hold several splits
            by name (a DatasetDict, or a dict of tables), from which the section chooses.
        section: the recipe's data section.
        columns: {recipe key: column} of the columns that the task reads.

    Raises DataError naming the split, and the row and column if applicable.
    """
    notes: list[str] = []
    tables = {role: data for role, data in given.items() if data is not None}
    train = tables.get("train")
    if isinstance(train, Mapping) and train and all(is_table(table) for table in train.values()):
        names = {str(name): table for name, table in train.items()}
        chosen, notes = choose(section, list(names), "train")
        notes += unused(chosen, list(names))
        tables = {**{role: names[name] for role, name in chosen.items()}, **tables, "train": names[chosen["train"]]}
    return {role: as_dataset(tables[role], role, section, columns) for role in ROLES if role in tables}, notes


def as_dataset(data: Any, where: str, section: DataSection, columns: Mapping[str, str]) -> Dataset:
    """Return rows in memory as a data set with the required columns, in their order.

    Args:
        data: a pandas or polars DataFrame, a datasets.Dataset, an Arrow table, a list of dicts, or a dict of lists.
        where: the name of the data in messages.
        section, columns: see `as_splits`. Missing columns are reported by later checks.

    Images and recordings may be paths (relative to the working directory), arrays, Pillow images or the bytes of files;
    see `sft_hf.data.in_memory.cells`. Raises DataError.
    """
    if isinstance(data, IterableDataset):
        raise DataError(
            f"{where}: is an IterableDataset; give a Dataset, or stream by the name of the data: train='org/name', "
            "data={'streaming': True}, max_steps=1000"
        )
    if isinstance(data, Dataset):
        return _from_dataset(data, where, section, columns)
    return _from_frame(frame_of(data, where), section, columns)


def _from_dataset(data: Dataset, where: str, section: DataSection, columns: Mapping[str, str]) -> Dataset:
    table = data.with_format(None)
    if ROW_ID in table.column_names and ROW_ID not in columns.values():  # numbered by position in the given data
        table = table.remove_columns(ROW_ID)
    for key, column in columns.items():
        feature = table.features.get(column)
        arrays = isinstance(feature, (List, LargeList)) or (isinstance(feature, dict) and "array" in feature)
        if key in CELLS and arrays:
            array = _file_cells(column_values(table, column), where, column, section, CELLS[key])
            files, rest = Dataset(pa.table({column: array})), table.remove_columns(column)
            table = concatenate_datasets([rest, files], axis=1) if rest.column_names else files
    return table


def _from_frame(frame: Frame, section: DataSection, columns: Mapping[str, str]) -> Dataset:
    """Return the required columns; if one is missing, the names of all columns are kept for the error message."""
    names, where = frame.column_names, frame.where
    cells = {column: CELLS[key] for key, column in columns.items() if key in CELLS}
    needed = {*columns.values(), section.group_column, section.split_by, *SPLIT_COLUMNS}
    if "data.audio_column" in columns and (times := segment_names(names, section, where)):
        needed |= {times.start, times.end}
    complete = set(columns.values()) <= set(names)
    arrays: dict[str, Any] = {}
    classes: dict[str, ClassLabel] = {}
    for name in dict.fromkeys(names):
        if name in cells:
            values = frame.values(name)
            values = values.to_pylist() if hasattr(values, "to_pylist") else values
            arrays[name] = _file_cells(values, where, name, section, cells[name])
        elif name in needed:
            values = frame.values(name)
            arrays[name] = column_array(values, where, name)
            if name == section.label_column and (order := ordered_names(values)):
                number = {label: index for index, label in enumerate(order)}
                arrays[name] = pa.array([number.get(label) for label in arrays[name].to_pylist()], pa.int64())
                classes[name] = ClassLabel(names=order)
        elif not complete:
            arrays[name] = pa.nulls(frame.num_rows)
    held = pa.table(arrays)
    return Dataset(held, DatasetInfo(features=Features({**Features.from_arrow_schema(held.schema), **classes})))


def _file_cells(
    values: Iterable[Any],
    where: str,
    column: str,
    section: DataSection,
    make: MakeCell,
) -> pa.Array | pa.ChunkedArray:
    """Return a column of files: the paths if all values are paths, else cells {"bytes": ..., "path": ...}."""
    given = [os.fspath(value) if isinstance(value, os.PathLike) else value for value in values]
    if all(isinstance(value, str) or is_missing(value) for value in given):
        return pa.array([value if isinstance(value, str) else None for value in given], pa.string())
    cells = []
    for row, value in enumerate(given):
        if isinstance(value, str) and value.strip() and not URL.match(value):
            value = f"{section.file_prefix}{value}{section.file_suffix}"
        cells.append(make(value, f"{where} row {row}: column {column!r}"))
    return files_array(cells)
