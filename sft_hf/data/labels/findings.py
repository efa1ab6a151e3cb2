"""Likely mistakes in label names: similar spellings, several labels in one text, quantities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sft_hf.core.errors import DataError, first_few
from sft_hf.data.findings import Finding
from sft_hf.data.labels.values import (
    DECIMAL_COMMA,
    INTEGER,
    NUMBERS_ADVICE,
    SEPARATORS,
    is_fraction,
    is_number,
    missing_word,
    normal,
    similar_key,
    split_labels,
    whole_number,
)

if TYPE_CHECKING:
    from sft_hf.data.labels.cells import Cells

MANY_NUMBERS = 20  # distinct integers from which they may be quantities rather than classes

_CERTAIN = ("comma", "semicolon", "bar")  # a label name rarely contains these


def refuse_numbers(train: Cells, kind: str) -> None:
    """Raise DataError for a column of fractional numbers, unless the recipe declares each value a class."""
    if kind != "auto":
        return
    values = [(value, index) for value, index, _ in train.distinct]
    if values and all(is_number(value) for value, _ in values):
        found = [(value, index) for value, index in values if is_fraction(value)]
        if found:
            value, index = found[0]
            raise DataError(
                f"{train.place(index)}: {value!r:.40} is a number with a fraction, and so are {len(found)} of "
                f"{len(values)} different values; {NUMBERS_ADVICE}"
            )
    texts = [value.strip() for value, _ in values if isinstance(value, str)]
    if len(texts) == len(values) > 2 and all(map(DECIMAL_COMMA.fullmatch, texts)):
        raise DataError(
            f"{train.place(values[0][1])}: {texts[0]!r} looks like a number with a decimal comma; write a point, and "
            "to predict numbers, set task.problem_type: regression (two labels joined by a comma: data.label_separator)"
        )


def joined_labels(
    train: Cells, names: Mapping[str, int], label_names: Sequence[str] | None, kind: str
) -> list[Finding]:
    """Return a warning if single labels look like several labels in one text: combinations whose parts recur.

    Raises DataError if they are joined by a comma, semicolon or bar, which are rare in label names, unless the recipe
    declares each text a single label.
    """
    if kind == "single_label_classification":
        return []
    found = next((separator for separator in SEPARATORS if _recurring(list(names), separator, label_names)), None)
    if found is None:
        return []
    value, index = next(
        (value, index) for value, index, _ in train.distinct if len(split_labels(str(value), found)) > 1
    )
    text = (
        f"{train.place(index)}: {value!r:.60} looks like several labels in one text, and its parts occur in other rows "
        f"too; if so, set data.label_separator: {found}"
    )
    if found in _CERTAIN or label_names is not None:
        raise DataError(f"{text}; task.problem_type: single_label_classification treats each text as one label")
    return [Finding("warning", f"{text} (currently each of the {len(names)} different texts is a label)")]


def _recurring(names: Sequence[str], separator: str, label_names: Sequence[str] | None) -> bool:
    """Whether the parts between separators recur in other names, as in combinations of labels."""
    parts_of = {name: split_labels(name, separator) for name in names}
    joined = {name: parts for name, parts in parts_of.items() if len(parts) > 1}
    if not joined:
        return False
    if label_names is not None:
        known = set(label_names)
        return any(name not in known and set(parts) <= known for name, parts in joined.items())
    counts: dict[str, int] = {}
    for parts in parts_of.values():
        for part in dict.fromkeys(parts):
            counts[part] = counts.get(part, 0) + 1
    inside = dict.fromkeys(part for parts in joined.values() for part in parts)
    recurring = [part for part in inside if counts[part] > 1]
    # Names of several words share some of their words; combinations of labels share nearly all.
    share = 2 / 3 if separator in _CERTAIN else 0.9
    return len(recurring) >= 2 and len(recurring) >= share * len(inside)


def unsplit(train: Cells, separator: str) -> list[Finding]:
    """Return a warning if no row has two labels, as with the wrong separator."""
    if any(len(split_labels(value, separator)) > 1 for value, _, _ in train.distinct if isinstance(value, str)):
        return []
    return [Finding("warning", f"{train.where}: no label in column {train.column!r} contains data.label_separator")]


def compared_as_numbers(
    names: Mapping[str, int],
    others: Mapping[str, Mapping[str, int]],
    label_names: Sequence[str] | None,
    declared: bool,
) -> tuple[dict[int, str] | None, list[Finding]]:
    """Return the names of integer labels if all labels are integers, so that "1.0" and 1 are the same label.

    The name of a number is its spelling in train, without ".0". None if a label is something else, or if train spells a
    number in two other ways ("01" and "1").
    """
    everywhere = {**names, **{name: count for held in others.values() for name, count in held.items()}}
    if declared or not everywhere or any(whole_number(name) is None for name in everywhere):
        return None, []
    spelled: dict[int, set[str]] = {}
    for name in label_names if label_names and all(whole_number(name) is not None for name in label_names) else names:
        spelled.setdefault(whole_number(name) or 0, set()).add(_plain_spelling(name))
    if twice := next((spellings for spellings in spelled.values() if len(spellings) > 1), None):
        text = (
            f"labels {' and '.join(map(repr, sorted(twice)))} of train are the same number, written in two ways; each "
            "is a label; correct one if they are the same label"
        )
        return None, [Finding("warning", text)]
    numbers = {number: min(spellings) for number, spellings in spelled.items()}
    changed = [name for name in everywhere if numbers.get(whole_number(name) or 0, str(whole_number(name))) != name]
    if not changed:
        return numbers, []
    number = whole_number(changed[0]) or 0
    text = (
        f"labels are whole numbers and are compared by value: {changed[0]!r:.40} is read as "
        f"{numbers.get(number, number)}, and {len(changed)} of {len(everywhere)} spellings likewise"
    )
    return numbers, [Finding("note", text)]


def _plain_spelling(name: str) -> str:
    plain = name.strip().partition(".")[0].removeprefix("+")
    return plain if INTEGER.fullmatch(plain) and "e" not in name.lower() else str(whole_number(name))


def missing_words(names: Mapping[str, int], known: Sequence[str]) -> list[Finding]:
    """Return a warning about labels of train that are probably missing values written as a word.

    "none" and "-" are valid names; Python's "None" is valid only if the recipe or the data set declares it.
    """
    found = {
        name: count
        for name, count in names.items()
        if (word := missing_word(name)) and (word not in ("none", "-") or name.strip() == "None") and name not in known
    }
    if not found:
        return []
    text = (
        f"train has the labels {_counted(found)}, which is how software writes a missing value; each is a label like "
        "any other here; if these rows have no label, empty the cells (data.on_bad_row: skip leaves them out)"
    )
    return [Finding("warning", text)]


def digit_strings(names: Iterable[str]) -> list[Finding]:
    """Return a warning if labels such as "010" may be indicators, one digit per label."""
    held = list(names)
    if len(held) < 2 or len({len(name) for name in held}) > 1 or len(held[0]) < 3 or set("".join(held)) - {"0", "1"}:
        return []
    text = (
        f"labels such as {held[0]!r:.40} may be a 0 or 1 for each of {len(held[0])} labels; currently each text is a "
        "label; if so, separate them by blanks, as in '0 1 0'"
    )
    return [Finding("warning", text)]


def composed_names(splits: Iterable[Cells]) -> list[Finding]:
    """Return a note if labels are not in Unicode form NFC, in which all labels are compared."""
    count, example = 0, ""
    for cells in splits:
        for value, _, times in cells.distinct:
            items = value if isinstance(value, list) else [value]
            names = [cells.name_declared(item) for item in items]
            other = [name for name in names if isinstance(name, str) and normal(name) != name]
            count += times * bool(other)
            example = example or (normal(other[0]) if other else "")
    if not count:
        return []
    text = (
        f"labels of {count} rows, such as {example!r:.60}, are not in Unicode form NFC; all labels are compared in NFC"
    )
    return [Finding("note", text)]


def similar_names(
    names: Mapping[str, int],
    others: Mapping[str, Mapping[str, int]],
    known: Sequence[str],
    merge: bool,
) -> tuple[dict[str, str], list[Finding]]:
    """Return the spellings to use if similar labels are merged, and one warning about all of them if they are not.

    The spelling that is kept is the one in `data.label_names` or in the data set's class names, otherwise the most
    frequent one of train; of equally frequent ones, the first.
    """
    groups: dict[str, dict[str, int]] = {}
    for held in (names, *others.values(), dict.fromkeys(known, 0)):
        for name, count in held.items():
            group = groups.setdefault(similar_key(name), {})
            group[name] = group.get(name, 0) + count
    several = {key: group for key, group in groups.items() if len(group) > 1}
    if not merge:
        return {}, _say_similar(list(several.values())) if several else []
    chosen = {}
    for key, group in groups.items():
        candidates = [name for name in known if name in group] or list(group)
        chosen[key] = max(candidates, key=lambda name: names.get(name, 0))
    if not several:
        return chosen, []
    told = [
        f"{_counted({name: count for name, count in group.items() if name != chosen[key]})} as {chosen[key]!r}"
        for key, group in several.items()
    ]
    return chosen, [Finding("note", f"similar labels are merged (data.merge_similar_labels): {first_few(told, 5)}")]


def _say_similar(groups: Sequence[Mapping[str, int]]) -> list[Finding]:
    more = f"; and {len(groups) - 5} more such groups" if len(groups) > 5 else ""
    told = "; ".join(_counted(group) for group in groups[:5]) + more
    return [
        Finding(
            "warning",
            f"labels differ only in letter case, blanks, hyphens or trailing punctuation: {told}; they are treated as "
            "different labels; data.merge_similar_labels: true treats them as the same",
        )
    ]


def _counted(group: Mapping[str, int]) -> str:
    return ", ".join(f"{name!r:.40} ({count} rows)" for name, count in group.items())


def many_numbers(names: Iterable[str]) -> list[Finding]:
    """Return a note if there are so many distinct integer labels that they may be quantities."""
    numbers = {whole_number(name) for name in names}
    if None in numbers or len(numbers) < MANY_NUMBERS:
        return []
    present = sorted(number for number in numbers if number is not None)
    if present[-1] - present[0] + 1 == len(present) and present[0] in (0, 1):  # consecutive class numbers
        return []
    text = (
        f"labels are {len(present)} different whole numbers, {present[0]} to {present[-1]}, each of which is a "
        "class; if they are quantities, set task.problem_type: regression"
    )
    return [Finding("note", text)]
