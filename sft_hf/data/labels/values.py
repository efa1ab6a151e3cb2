"""Cells of a label column: a name, a list of names, a 0 or 1 for each label, or nothing.

Functions of a single value. `sft_hf.data.labels.reading` interprets whole columns.
"""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sft_hf.core.errors import DataError

INTEGER = re.compile(r"[+-]?[0-9]{1,300}")  # Python's limit is 4300 digits
WHOLE = re.compile(r"([+-]?[0-9]{1,300})(?:\.0*)?")
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,300}(?:\.[0-9]{0,300})?|\.[0-9]{1,300})(?:[eE][+-]?[0-9]{1,3})?")
DECIMAL_COMMA = re.compile(r"[+-]?[0-9]{1,12},[0-9]{1,12}")

SEPARATORS = {"comma": ",", "semicolon": ";", "bar": "|", "slash": "/", "plus": "+", "space": None}
"""Words for the separators of joined labels, which need no quotes in YAML or a shell; None: any whitespace."""

_YES_NO = {
    **dict.fromkeys(("1", "true", "yes", "t", "y", "x", "\u2713", "\u2714"), True),
    **dict.fromkeys(("0", "false", "no", "f", "n"), False),
}
MISSING_WORDS = frozenset({"na", "n/a", "#n/a", "<na>", "nan", "none", "null", "nil", "?", "-"})
"""Common spellings of missing values, in lower case; some of them are also valid label names."""
_VECTOR = re.compile(r"\s*[01](?:\.0*)?(?:(?:\s*[,;|]\s*|\s+)[01](?:\.0*)?)+\s*")
_FLAG = re.compile(r"[01](?:\.0*)?")


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, or blank text."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def missing_word(value: Any) -> str | None:
    """Return the text if it is one of `MISSING_WORDS`, else None."""
    word = value.strip().lower() if isinstance(value, str) and len(value) < 10 else ""
    return word if word in MISSING_WORDS else None


def is_hidden(value: Any) -> bool:
    """Whether a cell is -1, or -1 for each label, which public data sets use to hide the labels of their test split."""
    if isinstance(value, str) and (parsed := parse_list(value)) is not None:
        value = parsed
    if isinstance(value, list):
        return bool(value) and all(is_hidden(item) for item in value)
    if isinstance(value, str):
        found = WHOLE.fullmatch(value.strip())
        return found is not None and found[1] == "-1"
    return not isinstance(value, bool) and isinstance(value, (int, float, Decimal)) and value == -1


def name_of(value: Any, declared: Sequence[str] | None = None) -> str:
    """Return the name of one label, in Unicode form NFC.

    `declared` are the names that an integer refers to. Raises DataError (without the row) for a value that
    cannot be one label.
    """
    if is_missing(value):
        raise DataError("the label is empty; fill it in or remove the row")
    if declared is not None and isinstance(value, int):
        if value == -1:
            raise DataError("the label is -1: this split's labels are hidden; choose another by data.test_split")
        if not 0 <= value < len(declared):
            raise DataError(f"label {value} is outside the data set's {len(declared)} class names")
        return normal(declared[value])
    if isinstance(value, str):
        return normal(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (float, Decimal)):
        if math.isfinite(value) and value == int(value):
            return str(int(value))
        raise DataError(f"label {value} is a fraction; {NUMBERS_ADVICE}")
    if isinstance(value, list):
        raise DataError("the label is a list; set task.problem_type: multi_label_classification")
    raise DataError(f"label {str(value)[:40]!r} is neither text nor a whole number ({type(value).__name__})")


NUMBERS_ADVICE = (
    "to predict numbers, set task.problem_type: regression; if each value is a class, set task.problem_type: "
    "single_label_classification"
)


def exact_name(value: Any) -> str:
    """Return the class name of a number: "1.5" for 1.5, "2" for 2.0; see also `name_of`."""
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value != int(value):
        return str(value)
    return name_of(value)


def normal(name: str) -> str:
    """Return a name in Unicode form NFC, in which names that look the same are equal."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def whole_number(name: str) -> int | None:
    """Return the integer that a name denotes, including "1.0" and "1e0"; else None."""
    text = name.strip()
    if found := WHOLE.fullmatch(text):
        return int(found[1])
    if NUMBER.fullmatch(text) and "e" in text.lower() and abs(float(text)) < 1e15 and float(text).is_integer():
        return int(float(text))
    return None


def similar_key(name: str) -> str:
    """Return a key shared by names that probably mean the same label.

    They differ only in letter case, blanks, hyphens or underscores between words, full- and half-width characters,
    invisible characters, or a trailing comma, point, colon or semicolon. In numbers, every character is significant.
    """
    if not name.isascii():
        name = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    text = " ".join(unicodedata.normalize("NFKC", name).split())
    if NUMBER.fullmatch(text):
        return text
    text = re.sub(r"(?<=\w)[-_ ]+(?=\w)", " ", text.rstrip(".,;: ") or text)
    return unicodedata.normalize("NFC", text.casefold())


def is_fraction(value: Any) -> bool:
    """Whether a value is a number with a fraction, or the text of one."""
    if isinstance(value, str):
        text = value.strip()
        return bool(NUMBER.fullmatch(text)) and not WHOLE.fullmatch(text) and not float(text).is_integer()
    return isinstance(value, (float, Decimal)) and math.isfinite(value) and value != int(value)


def is_number(value: Any) -> bool:
    """Whether a value is a number or the text of one; true and false are not numbers."""
    if isinstance(value, str):
        return NUMBER.fullmatch(value.strip()) is not None
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


# --- 0 or 1 for one label -----------------------------------------------------------------------------------------


def flag(value: Any) -> bool | None:
    """Return 0 and 1, as numbers or text, as a bool; None for anything else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float, Decimal)):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str) and _FLAG.fullmatch(value.strip()):
        return value.strip()[0] == "1"
    return None


def yes_or_no(value: Any) -> bool | None:
    """Return a cell of a column for one label as a bool: 0, 1, true, false, yes, no, x, ...; None for anything else."""
    found = flag(value)
    return _YES_NO.get(value.strip().lower()) if found is None and isinstance(value, str) else found


# --- lists as text -----------------------------------------------------------------------------------------------

_WRAPPED = re.compile(r"(?:(?:np|numpy|torch)\.)?(?:array|tensor|list|tuple|set|frozenset)\((.*)\)", re.DOTALL)
_OPTION = re.compile(r",\s*\w+\s*=\s*(?:'[^']*'|[\w.:<]+)\s*$")  # dtype=object, device='cuda:0'
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_ITEM = re.compile(
    r"""(?P<numpy>(?:np|numpy)\.\w+\()?
        (?: (?P<quoted> '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" )
          | (?P<number> [-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)? )
          | (?P<word> True|true|False|false|None|null|nan|NaN ) )
        (?(numpy)\s*\))""",
    re.VERBOSE | re.DOTALL,
)
_BETWEEN = re.compile(r"\s*(,)\s*|\s+")
_WORDS = {"true": True, "false": False}


def parse_list(text: str) -> list[Any] | None:
    """Parse a list written by JSON, Python or NumPy; return None for any other text.

    Python: lists, tuples and sets of quoted strings and numbers, with commas. NumPy: without commas, on several lines.
    Separators must not be mixed: `['a', 'b' 'c']` is ambiguous and is not read as a list.
    """
    text = text.strip()
    if text.startswith("["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            return value if isinstance(value, list) else None
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[1].strip()
        while option := _OPTION.search(text):
            text = text[: option.start()].rstrip()
        if not text:
            return []
    if len(text) < 2 or _BRACKETS.get(text[0]) != text[-1] or text == "{}":
        return None
    if text[0] == "(" and "," not in text:  # a number in parentheses
        return [] if not text[1:-1].strip() else None
    return _items(text[1:-1].strip())


def _items(text: str) -> list[Any] | None:
    items: list[Any] = []
    separators: set[str | None] = set()
    place = 0
    while place < len(text):
        found = _ITEM.match(text, place)
        if found is None:
            return None
        try:
            items.append(_item(found))
        except (ValueError, SyntaxError):
            return None
        place = found.end()
        if place < len(text):
            between = _BETWEEN.match(text, place)
            if between is None:
                return None
            place = between.end()
            if place < len(text):
                separators.add(between[1])
    return items if len(separators) < 2 else None


def _item(found: re.Match[str]) -> Any:
    if found["quoted"] is not None:
        return ast.literal_eval(found["quoted"])  # a single quoted string, as matched above
    if found["number"] is not None:
        return int(found["number"]) if INTEGER.fullmatch(found["number"]) else float(found["number"])
    return _WORDS.get(found["word"].lower())


def parse_vector(text: str) -> list[int] | None:
    """Return the numbers in a text such as "1 0 1" or "1,0,1"; None for a text with anything but 0 and 1."""
    return [int(part[0]) for part in _FLAG.findall(text)] if _VECTOR.fullmatch(text) else None


def split_labels(text: str, separator: str) -> list[str]:
    """Split a text of joined labels; `separator` is a key of `SEPARATORS`, or the separator itself."""
    return [part.strip() for part in text.split(SEPARATORS.get(separator, separator)) if part.strip()]


def in_brackets(text: str) -> bool:
    """Whether a text is in brackets."""
    text = text.strip()
    return len(text) > 1 and _BRACKETS.get(text[0]) == text[-1]


def looks_like_list(text: str) -> bool:
    """Whether a text is in brackets and has more than one word, as a list in an unknown notation."""
    return in_brackets(text) and re.search(r"[,;'\"]|\s", text.strip()[1:-1].strip()) is not None


def list_of(value: Any) -> list[Any]:
    """Return the list of labels of a cell. Raises DataError (without the row) for anything but a list."""
    values = parse_list(value) if isinstance(value, str) and value.strip() else value
    if isinstance(values, list):
        return values
    if value is None or isinstance(value, str):
        held = f"{value!r:.80} is not a list of labels" if value else "the list of labels is missing"
        raise DataError(
            f'{held}; write a JSON list such as ["a", "b"], or [] for none (labels joined in one text: set '
            "data.label_separator)"
        )
    raise DataError(f"{value!r:.80} is not a list of labels; a multi-label column holds lists only")
