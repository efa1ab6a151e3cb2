"""Groups of rows that splits must not share: speakers of recordings, patients in images, authors of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_hf.core.errors import DataError, first_few
from sft_hf.data.columns import column_values
from sft_hf.data.findings import Finding

if TYPE_CHECKING:
    from datasets import Dataset

SPEAKER_COLUMNS = (
    "speaker",
    "speaker_id",
    "speakerid",
    "spk",
    "spk_id",
    "client_id",
    "reader",
    "reader_id",
    "participant",
)
"""Common names of speaker columns; case-insensitive."""

NAMED = 5  # values listed in a message


def split_by_groups(
    values: Sequence[Any], labels: Sequence[Hashable] | None, count: int, seed: int | Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into kept rows and about `count` held-out rows; rows with the same value stay together.

    Groups are visited in random order and held out if that brings the number of rows closer to `count`, except for the
    last rows of a label. Rows without a value (None, blank) are groups of one row.

    Args:
        values: [N], the values to group by.
        labels: [N], or None.
        count: rows to hold out.
        seed: non-negative integer, or a sequence of such integers.

    Returns:
        Two sorted int64 arrays that together contain every row once. The second is empty if there is only one group.
    """
    numbers: dict[Hashable, int] = {}
    groups = np.array(
        [
            numbers.setdefault(_key(value) if _given(value) else ("row", row), len(numbers))
            for row, value in enumerate(values)
        ]
    )
    sizes = np.bincount(groups)
    left = Counter(labels or ())
    of_group: dict[int, Counter[Hashable]] = {}
    for group, label in zip(groups.tolist(), labels or (), strict=False):
        of_group.setdefault(group, Counter())[label] += 1

    def may_go(group: int, taken: int) -> bool:
        lost = of_group.get(group, Counter())
        return taken + 1 < len(sizes) and all(left[label] > number for label, number in lost.items())

    # The raw output of PCG64 is guaranteed to stay the same across NumPy versions.
    order = np.argsort(np.random.PCG64(np.random.SeedSequence(seed)).random_raw(len(sizes)), kind="stable").tolist()
    held: list[int] = []
    rows = 0
    for group in order:
        if abs(rows + sizes[group] - count) < count - rows and may_go(group, len(held)):
            held.append(group)
            rows += int(sizes[group])
            left -= of_group.get(group, Counter())
    if not held:  # every group has more rows than requested
        held = [group for group in sorted(order, key=lambda group: sizes[group]) if may_go(group, 0)][:1]
    chosen = np.isin(groups, held)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def refuse_crossing(splits: Mapping[str, Dataset], column: str) -> None:
    """Raise DataError if two of these splits, by role, share a value of data.split_by."""
    for first, second, shared, rows in _crossings(splits, column):
        named = first_few([repr(value) for value in shared], NAMED)
        raise DataError(
            f"data.split_by: {len(shared)} values of {column!r} are in {first} and in {second} ({rows} rows of "
            f"{second}): {named}; remove those rows from one of them, or set data.{second}_split: null to hold "
            f"{second} out of train"
        )


def speaker_findings(splits: Mapping[str, Dataset], split_by: str | None) -> list[Finding]:
    """Return a warning for each pair of splits, by role, that share values of a column that looks like a speaker."""
    names = {name for split in splits.values() for name in split.column_names if name.lower() in SPEAKER_COLUMNS}
    found = []
    for column in sorted(names - {split_by}):
        holding = {role: split for role, split in splits.items() if column in split.column_names}
        for first, second, shared, rows in _crossings(holding, column):
            share = rows / len(holding[second])
            found.append(
                Finding(
                    "warning",
                    f"{len(shared)} values of {column!r} are in {first} and in {second} ({rows} rows, {share:.0%} of "
                    f"{second}): the score on {second} says little about new speakers; data.split_by: {column} keeps "
                    "them apart in splits that are held out of train",
                )
            )
    return found


def _crossings(splits: Mapping[str, Dataset], column: str) -> list[tuple[str, str, list[Any], int]]:
    """Return (role, role, shared values, affected rows of the second) for pairs of splits that share values."""
    values = {
        role: Counter(_key(value) for value in column_values(split, column) if _given(value))
        for role, split in splits.items()
    }
    found = []
    for first, second in combinations(values, 2):
        shared = [value for value in values[first] if value in values[second]]
        if shared:
            found.append((first, second, shared, sum(values[second][value] for value in shared)))
    return found


def _given(value: Any) -> bool:
    return value is not None and str(value).strip() != ""


def _key(value: Any) -> Hashable:
    return value if isinstance(value, Hashable) else repr(value)
