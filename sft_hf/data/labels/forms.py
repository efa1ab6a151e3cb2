"""The form of the labels of a data set, decided from the values of all splits.

A row's labels may be written as

    names       one label: text, a number, true or false
    lists       a list of labels, also as text (JSON, Python, NumPy)
    joined      labels in one text, `data.label_separator` between them
    indicators  a 0 or 1 for each label: a list, or such a list as text ("[1, 0, 1]", "1 0 1")
    columns     a 0 or 1 for each label, each in a separate column (`data.label_column: [a, b, c]`)
    numbers     regression: unchanged, but several columns become one list

Lists are indicators if every list of train has the same length of at least 2 and contains only 0, 1, true and false: as
lists of labels, these would repeat a label or give every row the same labels. Lists of 0 and 1 of different lengths
are labels if none repeats a label, such as [0], [1] and [0, 1], and are otherwise an error; `data.label_lists` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from sft_hf.core.errors import DataError, first_few
from sft_hf.data.findings import Finding
from sft_hf.data.labels.cells import Cells
from sft_hf.data.labels.findings import (
    compared_as_numbers,
    composed_names,
    digit_strings,
    joined_labels,
    many_numbers,
    missing_words,
    refuse_numbers,
    similar_names,
    unsplit,
)
from sft_hf.data.labels.values import (
    MISSING_WORDS,
    exact_name,
    in_brackets,
    is_hidden,
    is_missing,
    list_of,
    looks_like_list,
    missing_word,
    name_of,
    normal,
    parse_list,
    similar_key,
    split_labels,
    whole_number,
    yes_or_no,
)
from sft_hf.data.labels.vectors import are_vectors, indicator_length, vector_flags

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection

Form = Literal["names", "lists", "joined", "indicators", "columns", "numbers"]

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
AS_TEXT = f"task.problem_type: {SINGLE} treats each text as one label"


@dataclass(frozen=True)
class LabelReading:
    """How the cells of the label column are interpreted, in all splits.

    Attributes:
        form: see the module.
        several: whether rows have any number of labels.
        names: names of indicators and columns, in their order.
        columns: the columns, one for each label.
        separator: of joined labels, see `split_labels`.
        exact: whether fractional numbers are classes.
        hidden: whether -1 means a hidden label in validation and test.
        words: those of `MISSING_WORDS` that also mean this, because they are not among the labels.
        blank: for columns, whether an empty cell means 0, because no cell contains a 0.
        numbers: the names of integers, if all labels are integers; else None.
        similar: {similar_key: spelling to use}, if similar labels are merged.
    """

    form: Form
    several: bool
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    separator: str = ""
    exact: bool = False
    hidden: bool = False
    words: frozenset[str] = frozenset()
    blank: bool = False
    numbers: Mapping[int, str] | None = None
    similar: Mapping[str, str] = field(default_factory=dict)

    def hides(self, value: Any, role: str) -> bool:
        """Whether a cell is -1 or a word for a missing value that is not one of the labels."""
        return role != "train" and ((self.hidden and is_hidden(value)) or missing_word(value) in self.words)

    def read(self, value: Any, declared: Sequence[str] | None = None) -> Any:
        """Return a cell's label, or list of labels; None if there is none. Raises DataError (without the place)."""
        if is_missing(value) or (self.columns and not self.blank and all(map(is_missing, value))):
            return None
        if self.form == "numbers":
            numbers = [_plain_number(item) for item in value] if self.columns else value
            return None if self.columns and not any(number is not None for number in numbers) else numbers
        if self.form in ("indicators", "columns"):
            return self._marked(value)
        if not self.several:
            return self.name(value, declared)
        items = self._joined(value) if self.form == "joined" else list_of(value)
        return [self.name(item, declared) for item in items]

    def name(self, value: Any, declared: Sequence[str] | None = None) -> str:
        """Return the name of one label. Raises DataError (without the place)."""
        name = exact_name(value) if self.exact else name_of(value, declared)
        if self.numbers is not None and (number := whole_number(name)) is not None:
            name = self.numbers.get(number, str(number))
        return self.similar.get(similar_key(name), name) if self.similar else name

    def _joined(self, value: Any) -> list[str]:
        if not isinstance(value, str):
            return [name_of(value)]
        if value.strip() == "[]":  # a row with an empty list
            return []
        return split_labels(value, self.separator)

    def _marked(self, value: Any) -> Any:
        """Return the names of the labels that are 1."""
        if self.columns:
            flags = [
                not (self.blank and is_missing(item)) and _column_flag(item, name)
                for item, name in zip(value, self.columns, strict=True)
            ]
        else:
            flags = vector_flags(value, len(self.names))
        marked = [name for name, is_set in zip(self.names, flags, strict=True) if is_set]
        if self.several:
            return marked
        if len(marked) != 1:
            raise DataError(f"{len(marked)} labels are 1, and {SINGLE} needs exactly one; or set {MULTI}")
        return marked[0]


def _column_flag(value: Any, column: str) -> bool:
    found = yes_or_no(value)
    if found is None:
        held = "is empty" if is_missing(value) else f"holds {value!r:.40}"
        raise DataError(f"column {column!r} {held}; write 1 where the row has this label, and 0 where not")
    return found


def _plain_number(value: Any) -> float | None:
    if is_missing(value) or missing_word(value):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"{value!r:.40} is not a number; correct it, or remove the row") from None


# --- the form of a column ----------------------------------------------------------------------------------------


def decide(cells: Mapping[str, Cells], data: DataSection, kind: str) -> tuple[LabelReading, list[Finding]]:
    """Decide how to read the labels of these splits (train first); findings report non-obvious choices.

    Raises DataError naming the row for a label that cannot be read, and naming the key to set if there are two possible
    interpretations.
    """
    train = cells["train"]
    columns = train.sources if len(train.sources) > 1 else ()
    if kind == "regression":  # -1 is a valid number, unless test contains nothing else
        test = cells["test"].values if "test" in cells else []
        hidden = len(test) > 0 and all(map(is_hidden, test)) and not any(map(is_hidden, train.values))
        return LabelReading("numbers", bool(columns), columns=columns, hidden=hidden, words=MISSING_WORDS), []
    reading, findings = _form(train, data, kind)
    findings += composed_names(cells.values())
    known = [normal(name) for name in data.label_names or train.declared or ()]
    if reading.blank:
        findings.append(
            Finding("note", f"{train.where}: an empty cell in a column of data.label_column means 0, as no cell says 0")
        )
    if reading.form in ("indicators", "columns"):
        return replace(reading, hidden=True), findings + _one_hot(train, reading, kind)
    if reading.form == "names" and not known:
        refuse_numbers(train, kind)
    names = _count_names(train, reading, "train")
    hidden = "-1" not in (known or names) and not any(whole_number(name) == -1 for name in names)
    labels = {name.strip().lower() for name in (*known, *names)}
    reading = replace(reading, hidden=hidden, words=MISSING_WORDS - labels)
    findings += [] if reading.form != "names" else [*missing_words(names, known), *digit_strings(known or names)]
    others = {role: _count_names(held, reading, role) for role, held in cells.items() if role != "train"}
    if reading.form == "names" and train.declared is None:
        findings += joined_labels(train, names, data.label_names, kind)
    numbers, found = compared_as_numbers(names, others, data.label_names, train.declared is not None)
    findings += found
    if numbers is not None:
        reading = replace(reading, numbers=numbers)
        names, others = _renamed(names, reading), {role: _renamed(held, reading) for role, held in others.items()}
    if reading.form == "names" and not known:
        findings += many_numbers(names)
    elif reading.form == "joined":
        findings += unsplit(train, reading.separator)
    similar, found = similar_names(names, others, known, data.merge_similar_labels)
    findings += found
    return replace(reading, similar=similar), findings


def _count_names(cells: Cells, reading: LabelReading, role: str) -> dict[str, int]:
    """Return the number of occurrences of each name. Raises DataError naming the row."""
    found: dict[str, int] = {}
    for value, index, count in cells.distinct:
        if reading.hides(value, role):
            continue
        try:
            label = reading.read(value, cells.declared)
        except DataError as error:
            raise DataError(f"{cells.place(index)}: {error}") from None
        for name in label if isinstance(label, list) else [label]:
            found[name] = found.get(name, 0) + count
    return found


def _renamed(names: Mapping[str, int], reading: LabelReading) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, count in names.items():
        found[reading.name(name)] = found.get(reading.name(name), 0) + count
    return found


def _form(train: Cells, data: DataSection, kind: str) -> tuple[LabelReading, list[Finding]]:
    single = kind == SINGLE
    if len(train.sources) > 1:
        names = _names_for(data.label_names, train, len(train.sources), "columns") or train.sources
        cells = [item for value, _, _ in train.distinct for item in value]
        blank = any(map(is_missing, cells)) and all(is_missing(item) or yes_or_no(item) for item in cells)
        return LabelReading("columns", not single, names=tuple(names), columns=train.sources, blank=blank), []
    texts = [(value, index) for value, index, _ in train.distinct if isinstance(value, str)]
    if data.label_separator is not None and not (texts and are_vectors(texts, data)):
        _refuse_separator(train, single)
        return LabelReading("joined", True, separator=data.label_separator), []
    lists = [parse_list(value) is not None for value, _ in texts]
    is_list = train.is_list or (bool(train.distinct) and all(isinstance(value, list) for value, _, _ in train.distinct))
    if not is_list and not texts:
        return LabelReading("lists" if kind == MULTI else "names", kind == MULTI, exact=single), []
    if is_list or all(lists) or are_vectors(texts, data):
        if (length := indicator_length(train, data)) is not None:
            names = _names_for(data.label_names, train, length, "numbers") or [str(index) for index in range(length)]
            reading = LabelReading("indicators", not single, names=tuple(names))
            return reading, [_say_indicators(train, length, data.label_names)]
        if is_list or (all(lists) and not single):
            return LabelReading("lists", True), [] if is_list else [_say_lists(train, texts)]
    elif kind == "auto":
        _refuse_half_lists(train, texts, lists)
    return LabelReading("lists" if kind == MULTI else "names", kind == MULTI, exact=single), []


def _names_for(names: Sequence[str] | None, cells: Cells, length: int, what: str) -> Sequence[str] | None:
    if names is not None and len(names) != length:
        raise DataError(
            f"{cells.where}: column {cells.column!r} has {length} {what} for each row, one for each label, and "
            f"data.label_names has {len(names)} names; give {length}, in their order"
        )
    return names


def _refuse_separator(train: Cells, single: bool) -> None:
    if single:
        raise DataError(
            f"data.label_separator splits a text into several labels, and task.problem_type is {SINGLE}; "
            "remove one of the two"
        )
    if train.is_list or train.declared is not None:
        raise DataError(
            f"{train.where}: column {train.column!r} does not hold text that data.label_separator can split; remove it"
        )
    for value, index, _ in train.distinct:
        if isinstance(value, str) and parse_list(value):
            raise DataError(
                f"{train.place(index)}: {value!r:.60} is a list, and data.label_separator splits labels that are "
                "joined in a text; remove it, or write all rows as joined labels"
            )


def _say_indicators(train: Cells, length: int, names: Sequence[str] | None) -> Finding:
    named = (
        f"named by data.label_names: {first_few(names, 5)}"
        if names
        else (f"named 0 to {length - 1}; data.label_names gives them names")
    )
    return Finding(
        "note",
        f"{train.where}: column {train.column!r} holds a 0 or 1 for each of {length} labels, {named} (lists of class "
        "numbers: set data.label_lists: labels)",
    )


def _say_lists(train: Cells, texts: Sequence[tuple[str, int]]) -> Finding:
    return Finding(
        "note", f"{train.where}: column {train.column!r} holds lists of labels as text, such as {texts[0][0]!r:.60}"
    )


def _one_hot(train: Cells, reading: LabelReading, kind: str) -> list[Finding]:
    """Return a note if every row has exactly one label; checks every row. Raises DataError naming the row."""
    one = bool(train.distinct)
    for value, index, _ in train.distinct:
        try:
            label = reading.read(value)
        except DataError as error:
            raise DataError(f"{train.place(index)}: {error}") from None
        one &= label is None or isinstance(label, str) or len(label) == 1
    if kind != "auto" or not one:
        return []
    return [
        Finding(
            "note",
            f"{train.where}: every row has exactly one label; task.problem_type: {SINGLE} trains a model "
            "that chooses one of them",
        )
    ]


def _refuse_half_lists(train: Cells, texts: Sequence[tuple[str, int]], lists: Sequence[bool]) -> None:
    if any(lists):
        other = next(index for (_, index), is_list in zip(texts, lists, strict=True) if not is_list)
        one = next(index for (_, index), is_list in zip(texts, lists, strict=True) if is_list)
        raise DataError(
            f"{train.place(other)}: {train.values[other]!r:.60} is not a list, and row {train.rows[one]} holds one "
            f"({train.values[one]!r:.60}); write all of them as lists; or {AS_TEXT}"
        )
    if all(in_brackets(value) for value, _ in texts) and any(looks_like_list(value) for value, _ in texts):
        value, index = next((value, index) for value, index in texts if looks_like_list(value))
        raise DataError(
            f"{train.place(index)}: {value!r:.80} is not a list that can be read; write a JSON list such as "
            f'["a", "b"]; or {AS_TEXT}'
        )
