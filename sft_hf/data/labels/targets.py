"""Regression targets: one or several numbers per row, in the notations used in files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_hf.core.errors import DataError
from sft_hf.data.columns import READ_BATCH
from sft_hf.data.labels.values import parse_list
from sft_hf.data.tables.bad_rows import skipped_rows

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

LARGEST = 1e30  # its square, and sums of many squares, fit into float64; the number itself into float32
FINEST = 1e-6  # of the largest number; a smaller spread is lost in float32

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-"})
_INFINITE = re.compile(r"[+-]?inf(?:inity)?")


class Missing(DataError):
    """Raised for a missing number, as opposed to an invalid one."""


def parse_number(value: Any) -> float:
    """Return one target as a float.

    Text may be a number as in JSON and Python: digits, a decimal point, an exponent; surrounding blanks are ignored.

    Raises Missing for None, NaN and empty text, DataError for anything else that is not a finite number below 1e30.
    """
    if isinstance(value, str):
        value = _from_text(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise Missing("the target is missing")
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        kind = "a list" if isinstance(value, (list, tuple)) else f"{str(value)[:40]!r} ({type(value).__name__})"
        raise DataError(f"the target is {kind}, not a number")
    if not -LARGEST <= value <= LARGEST:  # before conversion to float: Python integers are unbounded
        raise DataError(f"the target {str(value)[:40]} is too large; numbers up to {LARGEST:g} can be learned")
    return float(value)


def _from_text(text: str) -> float | None:
    plain = text.strip()
    if plain.lower() in _MISSING:
        return None
    if _NUMBER.fullmatch(plain):
        return float(plain)
    if _INFINITE.fullmatch(plain.lower()):
        return math.inf
    if "," in plain and _NUMBER.fullmatch(plain.replace(",", "")):
        raise DataError(
            f"the target {plain[:40]!r} has a comma; write numbers as 1234.5, with a point and no separators"
        )
    raise DataError(f"the target {plain[:40]!r} is not a number")


def parse_numbers(value: Any) -> list[float]:
    """Return the targets of a row: from a list, a list as text (see `parse_list`), or a single number.

    Raises Missing if one of them, or all, are missing, and DataError as `parse_number`.
    """
    if isinstance(value, str) and (found := parse_list(value)) is not None:
        value = found
    elif isinstance(value, str) and value.strip().startswith("["):
        value = _list_from_text(value.strip())
    if not isinstance(value, (list, tuple)):
        return [parse_number(value)]
    if not value:
        raise Missing("the list of targets is empty")
    return [parse_number(item) for item in value]


def _list_from_text(text: str) -> list[Any]:
    if not text.endswith("]"):
        raise DataError(f"the target {text[:40]!r} is a list that does not end")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = re.split(r"[\s,]+", text[1:-1].strip().rstrip(","))  # as printed by NumPy
    return values if isinstance(values, list) else [values]


@dataclass(frozen=True)
class Targets:
    """The targets of a split.

    `rows` are the indices of the rows that have targets, `values` float64 [rows, targets]. `problems` are the other
    rows: (position in the source, message, whether the number is missing).
    """

    rows: list[int]
    values: np.ndarray
    problems: list[tuple[int, str, bool]]

    @property
    def all_missing(self) -> bool:
        """Whether no row has a target, and all of them are missing rather than invalid."""
        return not self.rows and all(missing for _, _, missing in self.problems)


def read_targets(split: Dataset | IterableDataset, column: str, width: int | None = None) -> Targets:
    """Read the targets of all rows; a missing or invalid target does not raise.

    Args:
        split: a stream is read to the end.
        column: the column with a number, or a list of numbers, in each row.
        width: number of targets per row; None: as in the first row that has any.
    """
    rows: list[int] = []
    values: list[list[float]] = []
    problems: list[tuple[int, str, bool]] = []
    for place, (row, value) in enumerate(_numbered(split, column)):
        try:
            numbers = parse_numbers(value)
            width = width or len(numbers)
            if len(numbers) != width:
                raise DataError(f"the row has {len(numbers)} targets, and others have {width}")
        except DataError as error:
            problems.append((row, str(error), isinstance(error, Missing)))
            continue
        rows.append(place)
        values.append(numbers)
    return Targets(rows, np.array(values, dtype=np.float64).reshape(len(values), width or 1), problems)


def check_targets(targets: Targets, column: str, where: str, *, skip: bool) -> list[str]:
    """Return the note about skipped rows.

    Raises DataError naming the first row without a usable target and the number of such rows, unless they may be
    skipped; and if no row is left.
    """
    problems, total = targets.problems, len(targets.rows) + len(targets.problems)
    if not problems:
        return []
    row, message, _ = problems[0]
    place = f"{where} row {row} (target column {column!r}): {message}"
    if not targets.rows:
        raise DataError(f"{place}; none of the {total} rows has a target that can be used; check data.label_column")
    if not skip:
        number = f"{len(problems)} of {total} rows" if len(problems) > 1 else "this row"
        raise DataError(f"{place}; correct {number}, or set data.on_bad_row: skip to leave such rows out")
    return skipped_rows(where, [f"row {row}: {message}" for row, message, _ in problems], total)


def check_spread(values: np.ndarray, names: Sequence[str], where: str) -> None:
    """Check that each target in float64 [rows, targets] varies enough to be learned. Raises DataError."""
    for name, column in zip(names, values.T, strict=True):
        low, high = float(column.min()), float(column.max())
        if low == high:
            raise DataError(
                f"{where}: the target {name!r} is {low:g} in every row, so there is nothing to learn; "
                "check data.label_column"
            )
        if high - low < FINEST * max(abs(low), abs(high)):
            raise DataError(
                f"{where}: the target {name!r} varies between {low!r} and {high!r}, which is too fine for the float32 "
                f"of a model; subtract {low:.6g} from all of its values"
            )


def target_names(label_column: str | list[str], label_names: Sequence[str] | None, width: int) -> list[str]:
    """Return the names of the targets: data.label_names, the columns, or the column name with numbers.

    Raises DataError if the number of names differs from the number of targets.
    """
    given = label_names if label_names is not None else label_column if isinstance(label_column, list) else None
    if given is not None:
        if len(given) != width:
            key = "label_names" if label_names is not None else "label_column"
            raise DataError(f"data.{key} has {len(given)} names, and the rows have {width} targets each")
        if len(set(given)) != width:
            raise DataError("data.label_names has a name twice; each target needs its own")
        return [str(name) for name in given]
    return [str(label_column)] if width == 1 else [f"{label_column}_{number}" for number in range(width)]


def quintiles(values: np.ndarray) -> list[int]:
    """Return the quintile, 0 to 4, of each of the values, float64 [rows]."""
    borders = np.quantile(values, [0.2, 0.4, 0.6, 0.8])
    found: list[int] = np.searchsorted(borders, values, side="right").tolist()
    return found


def _numbered(split: Dataset | IterableDataset, column: str) -> Iterator[tuple[int, Any]]:
    """Yield (position in the source, value); other columns of a data set are not read."""
    from datasets import IterableDataset  # takes half a second to import; not needed by `predict`

    if isinstance(split, IterableDataset):
        for number, row in enumerate(split):
            yield row.get("row_id", number), row.get(column)
        return
    numbered, names = "row_id" in split.column_names, _class_names(split, column)
    view = split.with_format(None).select_columns([column, "row_id"] if numbered else [column])
    for start in range(0, len(view), READ_BATCH):
        batch = view[start : start + READ_BATCH]
        rows = batch["row_id"] if numbered else range(start, start + len(batch[column]))
        values = batch[column] if names is None else [_named(value, names) for value in batch[column]]
        yield from zip(rows, values, strict=True)


def _class_names(split: Dataset, column: str) -> list[str] | None:
    """Return the names of a ClassLabel; its numbers are indices into this list and have no meaning as numbers."""
    from datasets import ClassLabel

    feature = split.features.get(column)
    return list(feature.names) if isinstance(feature, ClassLabel) and feature.names else None


def _named(value: Any, names: Sequence[str]) -> Any:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
