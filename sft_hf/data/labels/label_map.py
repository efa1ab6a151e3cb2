"""The label map: names of the labels, their order, and their indices.

Splits are matched by label names, never by numbers: two splits of a data set may number the same classes
differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from sft_hf.core.errors import DataError, did_you_mean
from sft_hf.data.columns import READ_BATCH
from sft_hf.data.labels.values import INTEGER, NUMBER, list_of, name_of, normal, parse_list, similar_key

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

LOOK_AT = 100  # rows from which it is decided whether text labels are lists


@dataclass(frozen=True)
class LabelMap:
    """The labels of a task in the order of the model's outputs.

    `origin` is the source of the names: the values in train, the recipe's `label_names`, or the class names declared by
    the data set. Names from the last two may be referred to by plain numbers (0 is the first name).
    """

    names: tuple[str, ...]
    origin: Literal["train", "label_names", "features"] = "train"

    @property
    def id2label(self) -> dict[int, str]:
        """{index: name}."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """{name: index}."""
        return {name: index for index, name in enumerate(self.names)}

    def encode(self, value: Any) -> int:
        """Return the index of a label. Raises DataError for an unknown label."""
        return self._number_of(name_of(value, None))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        by_number = self.origin != "train" and not any(map(INTEGER.fullmatch, self.names))
        composed = {normal(name): index for index, name in enumerate(self.names)}
        positions = {str(index): index for index in range(len(self.names))} if by_number else {}
        return {**positions, **composed, **self.label2id}

    def _number_of(self, name: str) -> int:
        if name in self._numbers:
            return self._numbers[name]
        why = {
            "train": "was never seen in train",
            "label_names": "is not one of data.label_names",
            "features": "is not one of the data set's class names",
        }[self.origin]
        known = [_shown(known) for known in self.names]
        similar = next((known for known in self.names if similar_key(known) == similar_key(name)), None)
        if similar is not None:
            why += (
                f", and differs from {similar!r:.80} only in letter case, blanks, hyphens or trailing punctuation; "
                "data.merge_similar_labels: true treats them as the same"
            )
        raise DataError(f"label {name!r:.80} {why}; {did_you_mean(_shown(name), known)}")


def build_label_map(
    train: Dataset | IterableDataset,
    column: str,
    label_names: Sequence[str] | None,
    where: str,
    multi_label: bool | None = None,
) -> LabelMap:
    """Determine the labels: the recipe's `label_names`, else the feature's class names, else the values in train.

    Integer values are sorted numerically ("2" before "10"), true comes after false, others are in order of first
    appearance. Pass the whole train split, before rows are held out or removed. `multi_label` None: see
    `is_multi_label`.

    Raises DataError for fewer than two labels, a duplicate label, or a row without a usable label.
    """
    from datasets import IterableDataset  # takes half a second to import; not needed by `predict`

    declared = _class_names(train, column)
    if label_names is not None:
        label_map = LabelMap(tuple(map(normal, label_names)), "label_names")
    elif declared is not None:
        label_map = LabelMap(tuple(map(normal, declared)), "features")
    elif isinstance(train, IterableDataset):
        raise DataError(f"{where}: the labels of a stream are not known in advance; list them in data.label_names")
    else:
        several = is_multi_label(train, column) if multi_label is None else multi_label
        seen: dict[str, None] = {}
        for _, names in _rows_of_names(train, column, where, several):
            seen.update(dict.fromkeys(names))
        label_map = LabelMap(tuple(_in_order(list(seen))))
    source = "data.label_names" if label_map.origin == "label_names" else f"{where}: column {column!r}"
    if any(not name.strip() for name in label_map.names):
        raise DataError(f"{source} has a label without a name")
    if len(label_map.names) != len(label_map.label2id):
        raise DataError(f"{source} has a label twice: {', '.join(map(_shown, label_map.names))[:300]}")
    if len(label_map.names) < 2:
        held = f"only the label {label_map.names[0]!r:.80}" if label_map.names else "no label"
        raise DataError(f"{source} has {held}; classification needs at least 2")
    return label_map


def encode_labels(
    dataset: Dataset, column: str, label_map: LabelMap, where: str, multi_label: bool
) -> list[int] | list[list[int]]:
    """Return each row's label index; for multi-label, the sorted list of indices.

    Raises DataError naming the row for a label that is missing, hidden (-1) or unknown.
    """
    encoded: list[Any] = []
    for row, names in _rows_of_names(dataset, column, where, multi_label):
        try:
            found = [label_map._number_of(name) for name in names]
        except DataError as error:
            raise DataError(f"{where} row {row} (label column {column!r}): {error}") from None
        encoded.append(sorted(set(found)) if multi_label else found[0])
    return encoded


def is_multi_label(dataset: Dataset | IterableDataset, column: str) -> bool:
    """Whether the column contains lists: by its type, or because its first values are lists written as text."""
    from datasets import IterableDataset, LargeList, List  # as in `build_label_map`

    features = dataset.features
    if features is not None and isinstance(features.get(column), (List, LargeList)):
        return True
    if isinstance(dataset, IterableDataset):
        values = [row.get(column) for row in islice(dataset, LOOK_AT)]
    else:
        values = dataset.with_format(None)[column][:LOOK_AT]
    if values and all(isinstance(value, list) for value in values):
        return True
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    return bool(texts) and all(parse_list(text) is not None for text in texts)


# --- values to names -----------------------------------------------------------------------------------------


def _numbered(dataset: Dataset, column: str) -> Iterator[tuple[int, Any]]:
    """Yield (0-based row in the source, value); no other column is read or decoded."""
    numbered = "row_id" in dataset.column_names
    view = dataset.with_format(None).select_columns([column, "row_id"] if numbered else [column])
    for start in range(0, len(view), READ_BATCH):
        batch = view[start : start + READ_BATCH]
        rows = batch["row_id"] if numbered else range(start, start + READ_BATCH)
        yield from zip(rows, batch[column], strict=False)


def _rows_of_names(dataset: Dataset, column: str, where: str, multi_label: bool) -> Iterator[tuple[int, list[str]]]:
    declared = _class_names(dataset, column)
    for row, value in _numbered(dataset, column):
        try:
            values = list_of(value) if multi_label else [value]
            names = [name_of(item, declared) for item in values]
        except DataError as error:
            raise DataError(f"{where} row {row} (label column {column!r}): {error}") from None
        yield row, names


def _shown(name: str) -> str:
    """Shorten a label for messages: a column of long texts may have been chosen by mistake."""
    return " ".join(name.split())[:80]


def _in_order(names: list[str]) -> list[str]:
    if all(map(INTEGER.fullmatch, names)):
        return sorted(names, key=lambda name: (int(name), name))
    if all(map(NUMBER.fullmatch, names)):
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names) if set(names) == {"false", "true"} else names


def _class_names(dataset: Dataset | IterableDataset, column: str) -> list[str] | None:
    """Return the names of a ClassLabel, which may be the type of the column or of the items of its lists."""
    from datasets import ClassLabel, LargeList, List  # as in `build_label_map`

    feature = dataset.features.get(column) if dataset.features is not None else None
    if isinstance(feature, (List, LargeList)):
        feature = feature.feature
    return list(feature.names) if isinstance(feature, ClassLabel) and feature.names else None
