"""Conversion of label columns to the target column, in the same way for every split.

`read_labels` looks at all splits before any rows are held out or removed, decides how to interpret a cell
(`sft_hf.data.labels.forms`), and rewrites the label column if necessary: one name per row, a list of names
(multi-label) or None. Every non-obvious decision is reported as a finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sft_hf.core.errors import DataError, did_you_mean
from sft_hf.data.columns import column_values
from sft_hf.data.findings import EXAMPLES, Finding
from sft_hf.data.labels.cells import LOOK_AT, Cells
from sft_hf.data.labels.forms import LabelReading, decide
from sft_hf.data.labels.values import exact_name, is_hidden, is_missing, missing_word, name_of, yes_or_no
from sft_hf.data.loading.roles import ROW_ID, Splits

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from sft_hf.core.recipe.recipe import DataSection


def read_labels(splits: Splits, data: DataSection, kind: str) -> tuple[Splits, LabelReading]:
    """Decide how to interpret the labels; return the splits with their labels read, and the decision.

    A row without a label (None, NaN, empty text, or -1 if train has no -1) is an error, or is removed and counted with
    `data.on_bad_row: skip`. A test split without any labels, or without the column, is kept: its labels are None, and
    it is predicted but not scored. The rows of a stream are read by `read_rows` as they arrive.

    Raises DataError naming the row for labels that cannot be read, and naming the key to set for labels that have two
    possible interpretations. `kind` is `task.problem_type`.
    """
    from datasets import Dataset  # takes half a second to import; not needed by `predict`

    by_role, findings = dict(splits.by_role), list(splits.findings)
    cells: dict[str, Cells] = {}
    for role, split in splits.by_role.items():
        if role == "test" and isinstance(split, Dataset) and not _has_labels(split, data):
            findings.append(_without_column(split, data, splits.where[role]))
            by_role[role] = _with_labels(split, data, [None] * len(split), several=False)
        else:
            cells[role] = _cells(split, data, splits.where[role])
    reading, found = decide(cells, data, kind)
    findings += found
    for role, held in cells.items():
        split = by_role[role]
        if isinstance(split, Dataset):
            by_role[role], found = _read_split(split, held, reading, data, role)
            findings += found
    return replace(splits, by_role=by_role, findings=findings), reading


def read_rows(rows: Dataset, where: str, data: DataSection, reading: LabelReading) -> Dataset:
    """Return rows of a stream with their labels read. Raises DataError naming the row."""
    return _read_split(rows, _cells(rows, data, where), reading, data, "train")[0]


def is_unlabelled(split: Dataset, column: str) -> bool:
    """Whether no row of a split has a label, as in an unlabeled test split returned by `read_labels`."""
    return len(split) > 0 and all(value is None for value in column_values(split, column))


# --- the cells of a split ----------------------------------------------------------------------------------------


def _has_labels(split: Dataset, data: DataSection) -> bool:
    return any(name in split.column_names for name in [data.target_column, *data.label_columns.values()])


def _cells(split: Dataset | IterableDataset, data: DataSection, where: str) -> Cells:
    """Return the values of the label column; for several columns, the list of each row's values."""
    from datasets import ClassLabel, Dataset, LargeList, List  # as in `read_labels`

    column, sources = data.target_column, list(data.label_columns.values())
    feature = (split.features or {}).get(column) if len(sources) == 1 else None
    is_list = isinstance(feature, (List, LargeList))
    item: Any = feature.feature if isinstance(feature, (List, LargeList)) else feature
    declared = list(item.names) if isinstance(item, ClassLabel) and item.names else None
    if isinstance(split, Dataset):
        columns = [list(column_values(split, name)) for name in sources]
        rows: Sequence[int] = split.with_format(None)[ROW_ID][:] if ROW_ID in split.column_names else range(len(split))
    else:
        first = list(split.take(LOOK_AT))
        columns, rows = [[row.get(name) for row in first] for name in sources], range(len(first))
    values = columns[0] if len(columns) == 1 else [list(row) for row in zip(*columns, strict=True)]
    return Cells(where, column, tuple(sources), values, rows, declared, is_list, isinstance(split, Dataset))


def _without_column(split: Dataset, data: DataSection, where: str) -> Finding:
    known = [name for name in split.column_names if name != ROW_ID]
    wanted = next(iter(data.label_columns.values()))
    hint = did_you_mean(wanted, known)
    likely = hint.startswith("did you mean")
    return Finding(
        "warning" if likely else "note",
        f"{where} has no column {data.target_column!r} (data.label_column): {_UNSCORED}{f'; {hint}' if likely else ''}",
    )


_UNSCORED = "its rows have no labels, so predictions are written for it and no score"


# --- reading -----------------------------------------------------------------------------------------------------


@dataclass
class _Read:
    """The labels of a split's rows, which of them are missing, and whether any differs from the value in the column."""

    labels: list[Any]
    missing: list[int]
    changed: bool


def _read_split(
    split: Dataset, cells: Cells, reading: LabelReading, data: DataSection, role: str
) -> tuple[Dataset, list[Finding]]:
    read = _read(cells, reading, role)
    if role == "test" and reading.several and not any(read.labels):  # lists without a label, or without a 1
        read = _Read([None] * len(read.labels), list(range(len(read.labels))), read.changed)
    findings: list[Finding] = []
    if read.missing and role == "test" and len(read.missing) == len(split):
        hidden = f"all are {_shown(cells.values[0])}"
        findings.append(
            Finding("note", f"{cells.where}: column {cells.column!r} holds no label ({hidden}): {_UNSCORED}")
        )
        return _with_labels(split, data, read.labels, reading.several), findings
    if read.missing:
        findings.append(_skipped(cells, read.missing, data, role, reading))
    if read.changed:
        declared = None if cells.declared is None else [reading.name(name) for name in cells.declared]
        split = _with_labels(split, data, read.labels, reading.several, reading.form == "numbers", declared)
    if read.missing:
        gone = set(read.missing)
        split = split.select([index for index in range(len(split)) if index not in gone])
    return split, findings


def _read(cells: Cells, reading: LabelReading, role: str) -> _Read:
    """Read the cells of a split, each distinct value once. Raises DataError naming the row."""
    known: dict[Any, Any] = {}
    changed = bool(reading.columns)
    for key, index in cells.first.items():
        value = cells.values[index]
        try:
            label = None if reading.hides(value, role) else reading.read(value, cells.declared)
        except DataError as error:
            raise DataError(f"{cells.place(index)}: {error}") from None
        known[key] = label
        changed |= reading.form != "numbers" and not _same(value, label, cells.declared)
    labels = [known[key] for key in cells.keys]
    return _Read(labels, [index for index, label in enumerate(labels) if label is None], changed)


def _same(value: Any, label: Any, declared: Sequence[str] | None) -> bool:
    """Whether a cell is already its label, independent of the rest of its column."""
    if label is None:
        return value is None
    if isinstance(value, list) != isinstance(label, list):
        return False
    if not isinstance(value, list):
        value, label = [value], [label]
    return len(value) == len(label) and all(map(lambda a, b: _plain_name(a, declared) == b, value, label))


def _plain_name(value: Any, declared: Sequence[str] | None) -> str:
    if isinstance(value, str):
        return value
    if declared is not None and isinstance(value, int) and 0 <= value < len(declared):
        return declared[value]
    try:
        return name_of(value, declared)
    except DataError:
        return exact_name(value) + " "  # differs from any name: fractions are read only by `LabelReading`


def _shown(value: Any) -> str:
    """Format a cell without a label for messages."""
    if is_hidden(value):
        return "-1"
    if isinstance(value, list) and value and not any(map(yes_or_no, value)) and not all(map(is_missing, value)):
        return "0"
    return f"{value!r:.40}" if missing_word(value) or value == [] else "empty"


def _skipped(cells: Cells, missing: Sequence[int], data: DataSection, role: str, reading: LabelReading) -> Finding:
    """Report the rows that are removed. Raises DataError if they may not be removed, or none is left."""
    count, total = len(missing), len(cells.values)
    named = ", ".join(str(cells.rows[index]) for index in missing[:EXAMPLES]) + ", ..." * (count > EXAMPLES)
    first = _shown(cells.values[missing[0]])
    hidden = "" if first == "empty" else f" ({first})"
    what = f"{count} of {total} rows have no label in column {cells.column!r}{hidden}: row{'s' * (count > 1)} {named}"
    if count == total:
        remedy = "choose another data.label_column"
        if role == "validation":
            remedy += ", or set data.validation_split: null to hold rows out of train"
        raise DataError(f"{cells.where}: none of the {total} rows has a label in column {cells.column!r}; {remedy}")
    if data.on_bad_row != "skip":
        none = "; for a row with none of the labels, write []" if reading.form == "joined" else ""
        raise DataError(
            f"{cells.where}: {what}; fill them in, or leave these rows out with data.on_bad_row: skip{none}"
        )
    return Finding("warning", f"{cells.where}: {what}; they are left out (data.on_bad_row: skip)")


def _with_labels(
    split: Dataset,
    data: DataSection,
    labels: list[Any],
    several: bool,
    numbers: bool = False,
    declared: Sequence[str] | None = None,
) -> Dataset:
    """Return the split with `labels` in the target column, replacing the source columns."""
    from datasets import ClassLabel, Dataset, Features, List, Value, concatenate_datasets  # as in `read_labels`

    feature: Any = Value("float64") if numbers else Value("string")
    if declared is not None and not numbers and any(label is not None for label in labels):
        flat = [
            name for label in labels if label is not None for name in ([label] if isinstance(label, str) else label)
        ]
        names = list(dict.fromkeys([*declared, *flat]))
        feature = ClassLabel(names=names)
        number = {name: index for index, name in enumerate(names)}
        labels = [
            None if label is None else number[label] if isinstance(label, str) else [number[name] for name in label]
            for label in labels
        ]
    column = data.target_column
    gone = [name for name in {column, *data.label_columns.values()} if name in split.column_names]
    read = Dataset.from_dict({column: labels}, Features({column: List(feature) if several else feature}))
    rest = split.remove_columns(gone)
    return concatenate_datasets([rest, read], axis=1) if rest.column_names else read
