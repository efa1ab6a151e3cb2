"""Tables in memory of any supported library: column names, and the values of each column.

pandas and polars are not dependencies: their objects are recognized without importing them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sft_hf.core.errors import DataError

KINDS = "a pandas or polars DataFrame, a datasets.Dataset, an Arrow table, a list of dicts, or a dict of lists"


@dataclass(frozen=True)
class Frame:
    """A table in memory.

    Attributes:
        where: the name of the table in messages.
        column_names: as strings; a name may occur twice.
        num_rows: the number of rows.
        read: returns the values of a column: an Arrow array, or a list of Python objects.
    """

    where: str
    column_names: list[str]
    num_rows: int
    read: Callable[[str], Any]

    def values(self, name: str) -> Any:
        """Return a column as an Arrow array or a list. Raises DataError if two columns have this name."""
        if self.column_names.count(name) > 1:
            raise DataError(f"{self.where}: has {self.column_names.count(name)} columns {name!r}; rename all but one")
        try:
            return self.read(name)
        except (pa.ArrowException, TypeError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{self.where}: column {name!r} cannot be read: {reason}") from error


def frame_of(data: Any, where: str) -> Frame:
    """Return a table in memory as a `Frame`. Raises DataError, with a hint, for anything else."""
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return _pandas_frame(data, where)
    if type(data).__module__.partition(".")[0] == "polars":
        return _polars_frame(data, where)
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if not isinstance(data, (pa.Table, Mapping, list, tuple)):
        data = _foreign_table(data, where)
    if isinstance(data, pa.Table):
        return Frame(where, list(data.column_names), data.num_rows, data.column)
    return _mapping_frame(data, where) if isinstance(data, Mapping) else _rows_frame(data, where)


def is_table(data: Any) -> bool:
    """Whether a value is a table or a list of rows, not a single column."""
    pandas = sys.modules.get("pandas")
    is_frame = pandas is not None and isinstance(data, pandas.DataFrame)
    rows = isinstance(data, (list, tuple)) and bool(data) and all(isinstance(row, Mapping) for row in data)
    return is_frame or rows or isinstance(data, Mapping) or hasattr(data, "column_names") or hasattr(data, "get_column")


def _pandas_frame(data: Any, where: str) -> Frame:
    names = [str(name) for name in data.columns]
    levels = [name for name in data.index.names if name is not None and str(name) not in names]

    def read(name: str) -> Any:
        level = next((level for level in levels if str(level) == name), None)
        series = data.iloc[:, names.index(name)] if level is None else data.index.get_level_values(level)
        return list(series) if series.dtype == object else pa.Array.from_pandas(series)

    return Frame(where, [*names, *map(str, levels)], len(data), read)


def _polars_frame(data: Any, where: str) -> Frame:
    if not hasattr(data, "get_column"):
        hint = "call .collect() first" if hasattr(data, "collect") else f"give {KINDS}"
        raise DataError(f"{where}: is a polars {type(data).__name__}; {hint}")

    def read(name: str) -> Any:
        series = data.get_column(name)
        return series.to_list() if str(series.dtype) == "Object" else series.to_arrow()

    return Frame(where, list(data.columns), len(data), read)


def _foreign_table(data: Any, where: str) -> pa.Table:
    """Convert a table of another library through the Arrow and DataFrame interchange protocols."""
    try:
        if hasattr(data, "__arrow_c_stream__"):
            return pa.table(data)
        if hasattr(data, "__dataframe__"):
            from pyarrow.interchange import from_dataframe

            return from_dataframe(data)
    except (pa.ArrowException, TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: the {type(data).__name__} cannot be read as a table: {reason}") from error
    hint = f"; give list({where})" if isinstance(data, Iterator) else ""
    raise DataError(f"{where}: {type(data).__name__} is not a kind of table; give {KINDS}{hint}")


def _mapping_frame(data: Mapping[Any, Any], where: str) -> Frame:
    columns = {str(name): values for name, values in data.items()}
    for name, values in columns.items():
        if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
            raise DataError(
                f"{where}: {name!r} is a {type(values).__name__}; a dict has to hold a list of values for each column"
            )
    lengths = {name: len(values) for name, values in columns.items()}
    count = next(iter(lengths.values()), 0)
    for name, length in lengths.items():
        if length != count:
            first = next(iter(lengths))
            raise DataError(f"{where}: column {name!r} has {length} values, and {first!r} has {count}")
    return Frame(where, list(columns), count, lambda name: list(columns[name]))


def _rows_frame(rows: Sequence[Any], where: str) -> Frame:
    names: dict[str, None] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{where} row {number}: is a {type(row).__name__}, {row!r:.40}; in a list, every row is a dict "
                "{column: value}"
            )
        names.update(dict.fromkeys(map(str, row)))
    return Frame(where, list(names), len(rows), lambda name: [_cell(row, name) for row in rows])


def _cell(row: Mapping[Any, Any], name: str) -> Any:
    """Return the value of a column whose name may have been a number."""
    return row[name] if name in row else next((value for key, value in row.items() if str(key) == name), None)
