"""Lists of 0 and 1: indicators (one value per label) or class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sft_hf.core.errors import DataError
from sft_hf.data.labels.values import flag, is_fraction, is_number, parse_list, parse_vector

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection
    from sft_hf.data.labels.cells import Cells


def as_vector(value: Any) -> list[Any] | None:
    """Return the items of a list, of a list as text, or of a text such as "1 0 1"; None for anything else."""
    if isinstance(value, str):
        return parse_vector(value) if (found := parse_list(value)) is None else found
    return value if isinstance(value, list) else None


def vector_flags(value: Any, length: int) -> list[bool]:
    """Return a row's 0 and 1 as bools. Raises DataError (without the row) unless there are `length` of them."""
    items = as_vector(value)
    flags = None if items is None else [flag(item) for item in items]
    if flags is None or len(flags) != length or None in flags:
        raise DataError(f"{value!r:.80} is not a list of {length} numbers 0 and 1, as the first row's is")
    return [bool(item) for item in flags]


def are_vectors(texts: Sequence[tuple[str, int]], data: DataSection) -> bool:
    """Whether all texts are of the form "1 0 1"; for two numbers, only if the recipe has two names or sets it."""
    found = [parse_vector(value) for value, _ in texts]
    lengths = {len(vector) for vector in found if vector is not None}
    if None in found or len(lengths) != 1 or data.label_lists == "labels":
        return False
    return min(lengths) > 2 or min(lengths) == len(data.label_names or ()) or data.label_lists == "indicators"


def indicator_length(train: Cells, data: DataSection) -> int | None:
    """Return the number of labels if the lists are indicators; None if they are lists of labels. See `forms`."""
    if data.label_lists == "labels" or train.declared is not None:
        return None
    rows = [(items, index) for value, index, _ in train.distinct if (items := as_vector(value)) is not None]
    for items, index in rows:
        _refuse_fractions(items, train.place(index))
    flags = [flag(item) for items, _ in rows for item in items]
    lengths = {len(items) for items, _ in rows}
    if flags and None not in flags and len(lengths) == 1 and min(lengths) > 1:
        return min(lengths)
    if (
        len(lengths) == 1
        and min(lengths) > 1
        and all(flag(item) is not None or item == -1 for row in rows for item in row[0])
    ):
        index = next(index for items, index in rows if -1 in items)
        raise DataError(
            f"{train.place(index)}: the list has a -1 among 0 and 1; write 0 or 1 for each label, or leave it out; "
            "if the lists hold class numbers, set data.label_lists: labels"
        )
    if data.label_lists == "indicators":
        for items, index in rows:
            if None in map(flag, items) or len(items) != len(rows[0][0]) or len(items) < 2:
                raise DataError(
                    f"{train.place(index)}: {items!r:.80} is not a list of 0 and 1 as long as the first "
                    "row's; correct it, or set data.label_lists: labels"
                )
        return None
    if flags and None not in flags and any(len(set(map(flag, items))) < len(items) for items, _ in rows):
        first, other = rows[0], next(row for row in rows if len(row[0]) != len(rows[0][0]))
        raise DataError(
            f"{train.place(first[1])}: the list has {len(first[0])} numbers 0 or 1, and that of row "
            f"{train.rows[other[1]]} {len(other[0])}; with one for each label, all need the same length; if "
            "they list class numbers, set data.label_lists: labels"
        )
    return None


def _refuse_fractions(items: Sequence[Any], place: str) -> None:
    if len(items) > 1 and any(map(is_fraction, items)) and all(map(is_number, items)):
        raise DataError(
            f"{place}: {items!r:.80} holds fractions, and labels are 0 or 1; round them, or to predict these numbers, "
            "set task.problem_type: regression"
        )
