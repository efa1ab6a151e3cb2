"""Unusable text rows: an empty text, or a value that is not text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sft_hf.core.errors import DataError
from sft_hf.data.columns import column_values
from sft_hf.data.tables.bad_rows import BadRows

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

log = logging.getLogger("sft_hf")


def text_problem(value: Any) -> str | None:
    """Return the problem of a value that should be a text, None if there is none."""
    if isinstance(value, str) and value.strip():
        return None
    if value is None or isinstance(value, str):
        return "is empty; remove the row or fill it in"
    return (
        f"holds {str(value)[:40]!r} ({type(value).__name__}), which is not text; choose another column, or write the "
        "values as text"
    )


def check_texts(dataset: Dataset, columns: Sequence[str], where: str) -> None:
    """Check that every row has a text in these columns.

    Raises DataError naming the first row that does not, and the number of such rows.
    """
    bad, _ = _bad_rows(dataset, columns, where, skip=False)
    if bad.count == 1:
        raise DataError(f"{bad.refusal()} (data.on_bad_row: skip leaves such rows out)")
    bad.finish([])


def leave_out_bad_rows(dataset: Dataset, columns: Sequence[str], where: str, notes: list[str]) -> Dataset:
    """Return the rows that have a text in all of `columns`; `notes` receives a line that lists the others."""
    bad, rows = _bad_rows(dataset, columns, where, skip=True)
    bad.finish(notes)
    return dataset.select(rows) if bad else dataset


def leave_out_of_stream(stream: IterableDataset, columns: Sequence[str], where: str) -> IterableDataset:
    """Like `leave_out_bad_rows` for a stream; the number of skipped rows is logged at increasing intervals."""
    count = 0

    def usable(row: dict[str, Any]) -> bool:
        nonlocal count
        if not any(text_problem(row.get(name)) for name in columns):
            return True
        count += 1
        if count in (1, 10, 100) or count % 1000 == 0:
            log.warning("%s: %d rows without a text skipped so far (data.on_bad_row)", where, count)
        return False

    return stream.filter(usable)


def _bad_rows(dataset: Dataset, columns: Sequence[str], where: str, skip: bool) -> tuple[BadRows, list[int]]:
    """Return the problems of bad rows, numbered as in their source, and the positions of the other rows."""
    bad = BadRows(where, skip, between=" ")
    numbered = "row_id" in dataset.column_names
    numbers = column_values(dataset, "row_id") if numbered else iter(range(len(dataset)))
    texts = zip(*(column_values(dataset, name) for name in columns), strict=True)
    good = []
    for position, (number, values) in enumerate(zip(numbers, texts, strict=True)):
        problems = ((name, text_problem(value)) for name, value in zip(columns, values, strict=True))
        problem = next((f"column {name!r} {problem}" for name, problem in problems if problem), None)
        if problem is None:
            good.append(position)
        else:
            bad.add(f"row {number}: {problem}")
    bad.total = len(good)
    return bad, good
