"""Columns of a data set, read without its other columns, and without all of its rows at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

READ_BATCH = 10_000  # rows


def column_values(split: Dataset, name: str) -> Iterator[Any]:
    """Yield the values of a column in the order of the rows; files stay what the table says of them."""
    view = split.with_format(None).select_columns([name])
    for start in range(0, len(view), READ_BATCH):
        yield from view[start : start + READ_BATCH][name]


class Column(Sequence[Any]):
    """A column, read row by row: images and recordings of a Hub set stay on the disk until they are needed."""

    def __init__(self, split: Dataset, name: str) -> None:
        self.table, self.name = split.with_format(None).select_columns([name]), name

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        return self.table[int(index)][self.name]
