"""Read one column of a data set without loading the other columns, or all rows at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

TARGET_KEYS = ("data.label_column", "data.transcription_column", "data.group_column")
"""Recipe keys of columns that hold labels, transcripts or groups; the other columns are model inputs."""

READ_BATCH = 10_000  # rows
FEW = 500  # rows per batch if a row may hold an image


def column_values(split: Dataset, name: str) -> Iterator[Any]:
    """Yield the values of a column in row order; files in cells are not opened."""
    view = split.with_format(None).select_columns([name])
    for start in range(0, len(view), READ_BATCH):
        yield from view[start : start + READ_BATCH][name]


def read_row_ids(split: Dataset) -> NDArray[np.int64]:
    """Return the position of every row in the file or table it was read from, int64 [rows]."""
    return np.fromiter(column_values(split, "row_id"), np.int64, len(split))


def texts_or_paths(split: Dataset, name: str) -> Iterator[str | None]:
    """Yield a printable value for each row of a column: its text, the path of its file, or None.

    The bytes of images and recordings are not read.
    """
    import pyarrow as pa  # already imported by `datasets`
    import pyarrow.compute as pc

    view = split.with_format("arrow").select_columns([name])
    for start in range(0, len(view), FEW):
        column = view[start : start + FEW][name]
        if pa.types.is_struct(column.type):
            fields = [column.type.field(index).name for index in range(column.type.num_fields)]
            column = pc.struct_field(column, "path") if "path" in fields else pa.nulls(len(column))
        held = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        yield from column.to_pylist() if held else [None] * len(column)


class Column(Sequence[Any]):
    """A column that is read row by row: images and recordings of a Hub data set stay on disk until needed."""

    def __init__(self, split: Dataset, name: str) -> None:
        self.table, self.name = split.with_format(None).select_columns([name]), name

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        return self.table[int(index)][self.name]
