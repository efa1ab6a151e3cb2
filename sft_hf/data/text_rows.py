"""Rows of texts that cannot be used: an empty text, a value that is no text, a label that is missing."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sft_hf.data.bad_rows import BadRows
from sft_hf.data.columns import column_values

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

log = logging.getLogger("sft_hf")


def text_problem(value: Any) -> str | None:
    """Return what is wrong with a value that should be a text, None for nothing."""
    if isinstance(value, str) and value.strip():
        return None
    if value is None or isinstance(value, str):
        return "is empty; remove the row or fill it in"
    return (
        f"holds {str(value)[:40]!r} ({type(value).__name__}), which is no text; choose another column, or write the "
        "values as text"
    )


def is_missing(value: Any) -> bool:
    """Whether a label is absent: None, not a number, or an empty text."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def check_texts(dataset: Dataset, columns: Sequence[str], where: str) -> None:
    """Check that every row holds text in these columns.

    Raises DataError naming the first row that does not, and how many there are.
    """
    bad, _ = _bad_rows(dataset, columns, None, where, skip=False)
    bad.finish([])


def leave_out_bad_rows(
    dataset: Dataset, columns: Sequence[str], label: str | None, where: str, notes: list[str]
) -> Dataset:
    """Return the rows that hold text in all of `columns` and, where some rows have one, a label.

    Args:
        dataset: rows of one split.
        columns: of texts.
        label: the column of labels; None: it is not looked at.
        where: what messages call the split.
        notes: receives a line that counts and lists the rows left out.
    """
    if label is not None and (label not in dataset.column_names or all(map(is_missing, column_values(dataset, label)))):
        label = None
    bad, rows = _bad_rows(dataset, columns, label, where, skip=True)
    bad.finish(notes)
    return dataset.select(rows) if bad else dataset


def leave_out_of_stream(stream: IterableDataset, columns: Sequence[str], label: str, where: str) -> IterableDataset:
    """Do the same for a stream; how many rows were left out is logged while it is read, ever more rarely."""
    count = 0

    def usable(row: dict[str, Any]) -> bool:
        nonlocal count
        if not any(text_problem(row.get(name)) for name in columns) and not is_missing(row.get(label)):
            return True
        count += 1
        if count in (1, 10, 100) or count % 1000 == 0:
            log.warning("%s: %d rows skipped so far (data.on_bad_row), without a text or a label", where, count)
        return False

    return stream.filter(usable)


def _bad_rows(
    dataset: Dataset, columns: Sequence[str], label: str | None, where: str, skip: bool
) -> tuple[BadRows, list[int]]:
    """Return what is wrong with rows, which are numbered as in their source, and the positions of the others."""
    bad = BadRows(where, skip, between=" ")
    numbered = "row_id" in dataset.column_names
    numbers = column_values(dataset, "row_id") if numbered else iter(range(len(dataset)))
    texts = zip(*(column_values(dataset, name) for name in columns), strict=True)
    labels = column_values(dataset, label) if label is not None else iter([0] * len(dataset))
    good = []
    for position, (number, values, target) in enumerate(zip(numbers, texts, labels, strict=True)):
        problems = ((name, text_problem(value)) for name, value in zip(columns, values, strict=True))
        problem = next((f"column {name!r} {problem}" for name, problem in problems if problem), None)
        if problem is None and label is not None and is_missing(target):
            problem = f"column {label!r} is empty, so the row has no label"
        if problem is None:
            good.append(position)
        else:
            bad.add(f"row {number}: {problem}")
    bad.total = len(good)
    return bad, good
