"""The label column of a split as raw values with their positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sft_hf.data.labels.values import is_missing

LOOK_AT = 100  # rows of a stream from which the form of the labels is decided


def _key(value: Any) -> Any:
    """Return a key that identifies a value and its type: 1, 1.0 and true differ."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        try:
            key = tuple(value), tuple(map(type, value))
            hash(key)
        except TypeError:  # nested lists or mappings
            return list, repr(value)
        return key
    return (dict, repr(value)) if isinstance(value, dict) else (type(value), value)


@dataclass(frozen=True)
class Cells:
    """The label column of a split, or of the first rows of a stream.

    Attributes:
        where: the source of the rows, for messages.
        column: the name of the column in messages.
        sources: the columns that the values come from: one, or one for each label.
        values: one cell per row; for several columns, the list of the row's cells.
        rows: 0-based position of each row in its source.
        declared: the class names that the data set declares for its numbers.
        is_list: whether the column has a list type.
        whole: whether these are all rows.
    """

    where: str
    column: str
    sources: tuple[str, ...]
    values: list[Any]
    rows: Sequence[int]
    declared: list[str] | None
    is_list: bool
    whole: bool

    def place(self, index: int) -> str:
        """Return the position of a cell for messages."""
        return f"{self.where} row {self.rows[index]} (label column {self.column!r})"

    def name_declared(self, value: Any) -> Any:
        """Return the class name that the data set declares for a number; other values unchanged."""
        number = isinstance(value, int) and self.declared is not None and 0 <= value < len(self.declared)
        return self.declared[value] if number and self.declared is not None else value

    @cached_property
    def keys(self) -> list[Any]:
        """Return a key for each row; rows with the same value have the same key."""
        return [_key(value) for value in self.values]

    @cached_property
    def first(self) -> dict[Any, int]:
        """The first row with each key, in this order."""
        last_to_first = dict(zip(reversed(self.keys), range(len(self.keys) - 1, -1, -1), strict=True))
        return dict(sorted(last_to_first.items(), key=lambda item: item[1]))

    @cached_property
    def distinct(self) -> list[tuple[Any, int, int]]:
        """The values that are not missing, in order of first appearance: (value, first index, count)."""
        counts = Counter(self.keys)
        found = [(self.values[index], index, counts[key]) for key, index in self.first.items()]
        return [entry for entry in found if not is_missing(entry[0])]
