"""JSON as tables: an object per line, an array of objects, and the wrapper documents of other tools.

    {"text": "a"}            [{"text": "a"},         {"version": 1,                     {"text": {"0": "a", "1": "b"}}
    {"text": "b"}             {"text": "b"}]          "data": [{"text": "a"}, ...]}     {"text": ["a", "b"]}

The kind of document is detected from its content, not from the file extension.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from sft_hf.core.errors import DataError, first_few
from sft_hf.data.loading.split_names import SPLIT_COLUMNS
from sft_hf.data.tables.bad_rows import BadRows
from sft_hf.data.tables.encodings import open_text
from sft_hf.data.tables.json_shape import JsonShape
from sft_hf.data.tables.table import Table, one_line

MAX_DOCUMENT = 2**31  # characters of a file that must be read completely
MAX_WRAPPERS = 5  # nested objects around the rows

Row = dict[str, Any]


class _NotRows(Exception):
    """Why a document has no rows, or more than one list of them."""


def json_rows(table: Table) -> Iterator[Row]:
    """Yield the rows of a JSON file of any supported shape as objects with the required keys.

    Lines are read one at a time; a file that is one array or object, or one over several lines, is read completely.
    Raises DataError as `sft_hf.data.tables.files.iter_rows`.
    """
    text = open_text(table.path, table.options.encoding, table.notes)
    lines = enumerate(text.lines(unlimited=table.suffix == ".json"), start=1)
    numbered = ((number, line.lstrip("\ufeff")) for number, line in lines)  # from concatenated files
    first = next(((number, line) for number, line in numbered if line.strip()), None)
    if first is None:
        return
    second = next(((number, line) for number, line in numbered if line.strip()), None)
    rest = chain([second] if second else [], numbered)
    rows = BadRows(str(table.path), table.options.on_bad_row == "skip", heard=table.options.heard)
    shape = JsonShape()
    for place, value in _objects(table, first, second, rest, rows):
        if not isinstance(value, dict):
            rows.add(f'{place} is not an object; every row must look like {{"text": "...", "label": "..."}}')
            continue
        row = {name: value[name] for name in (*table.keep, *SPLIT_COLUMNS) if name in value} if table.keep else value
        if problem := shape.add(row):
            raise DataError(f"{table.path}: {place} {problem}")
        if not rows or rows.skip:  # after a bad row, the remaining rows are only counted
            rows.total += 1
            yield row
    rows.finish(table.notes)


def _objects(
    table: Table, first: tuple[int, str], second: tuple[int, str] | None, rest: Iterator[tuple[int, str]], bad: BadRows
) -> Iterator[tuple[str, Any]]:
    """Yield (position, value) for everything that should be a row."""
    head = first[1].lstrip()
    alone = _valid(head)
    if head.startswith("{") and alone is not None and second is not None:  # an object, and another line
        yield f"line {first[0]}", alone
        for number, line in rest:
            if line.strip():
                value, problem = _value(line)
                if problem:
                    bad.add(f"line {number} is not valid JSON: {problem}")
                else:
                    yield f"line {number}", value
        return
    place, document = _document(table, first, rest) if alone is None or second is not None else ("", [alone])
    if len(document) > 1 or not isinstance(document[0], (dict, list)):  # objects on several lines each
        yield from ((f"{place}object {number}", value) for number, value in enumerate(document))
        return
    try:
        found = list(_rows_of(document[0], table))
    except _NotRows as error:
        raise DataError(f"{table.path}: {error}") from None
    yield from ((f"row {number}", row) for number, row in enumerate(found))


def _valid(line: str) -> Any:
    value, problem = _value(line)
    return None if problem else value


def _value(text: str) -> tuple[Any, str]:
    """Return the value, and its problem, if any."""
    try:
        value = json.loads(text)
        if "\\u" in text and "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # lone surrogates are not valid text
    except (ValueError, RecursionError) as error:
        return None, one_line(error)
    return value, ""


def _document(table: Table, first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> tuple[str, list[Any]]:
    """Return the value or consecutive values of a file that is read completely. Raises DataError."""
    parts, size = [first[1].lstrip()], 0
    for _, line in rest:
        parts.append(line)
        size += len(line)
        if size > MAX_DOCUMENT:
            raise DataError(f"{table.path}: is larger than {MAX_DOCUMENT >> 30} GB; write one object per line (.jsonl)")
    text, place, values = "".join(parts), 0, []
    decoder = json.JSONDecoder()
    while place < len(text):
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{table.path}: {_where(first, text, place, error)}") from None
        values.append(value)
        while end < len(text) and text[end] in " \t\r\n,":
            end += 1
        place = end
    if "\\ud" in text.lower():
        problem = _value(text)[1] if len(values) == 1 else ""
        if problem:
            raise DataError(f"{table.path}: line {first[0]} is not valid JSON: {problem}")
    return "", values


def _where(first: tuple[int, str], text: str, place: int, error: Exception) -> str:
    """Return what is invalid: the array or object that was opened, or the line."""
    if isinstance(error, json.JSONDecodeError) and "\n" in text.strip():
        line = first[0] + error.lineno - 1
        opened = first[0] + text.count("\n", 0, place)
        kind = "array" if text[place : place + 1] == "[" else "object"
        return f"line {line} is not valid JSON: {error.msg} (column {error.colno}, in the {kind} from line {opened})"
    return f"line {first[0]} is not valid JSON: {one_line(error)}"


# --- documents ------------------------------------------------------------------------------------------------


def _rows_of(document: Any, table: Table, depth: int = 0) -> Sequence[Any]:
    """Return the rows of a document. Raises _NotRows."""
    if isinstance(document, list):
        return _lists_as_rows(document, table)
    if not isinstance(document, dict):
        raise _NotRows("holds no rows: it is neither a JSON array nor a JSON object")
    if (split := _split_oriented(document)) is not None:
        return split
    lists = [key for key, value in document.items() if _is_list_of_objects(value)]
    wanted = set(table.keep or table.columns or ())
    if len(lists) == 1 and not wanted & (set(document) - set(lists)):
        if depth or len(document) > 1 or lists[0] != "data":
            table.notes.append(f"{table.path.name}: the rows are the list of objects under {lists[0]!r}")
        return document[lists[0]]
    if len(lists) > 1 and not wanted & set(document):
        raise _NotRows(
            f"holds several lists of objects, under {first_few(lists, 8)}; save the right one as a separate file, "
            "one object per line"
        )
    if (columns := _column_oriented(document, wanted)) is not None:
        return columns
    if (indexed := _index_oriented(document, wanted)) is not None:
        table.notes.append(f"{table.path.name}: the rows are the objects under {first_few(list(document), 3)}")
        return indexed
    inner = [key for key, value in document.items() if isinstance(value, dict)]
    if len(inner) == 1 and depth < MAX_WRAPPERS and not wanted & set(document):
        try:
            return _rows_of(document[inner[0]], table, depth + 1)
        except _NotRows:
            pass
    if depth:
        raise _NotRows("holds no list of objects")
    return [document]


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _lists_as_rows(values: list[Any], table: Table) -> list[Any]:
    """Return the rows of an array; with `data.column_names`, they may also be arrays."""
    names = table.options.column_names
    if not names or not all(isinstance(value, list) for value in values):
        return values
    for number, value in enumerate(values):
        if len(value) != len(names):
            raise _NotRows(f"row {number} has {len(value)} values, data.column_names has {len(names)} names")
    return [dict(zip(names, value, strict=True)) for value in values]


def _split_oriented(document: Row) -> list[Row] | None:
    """The shape {"columns": ["text", ...], "data": [["a", ...], ...]}."""
    names, data = document.get("columns"), document.get("data")
    if not isinstance(names, list) or not isinstance(data, list) or not set(document) <= {"columns", "data", "index"}:
        return None
    names = [str(name) for name in names]
    if not all(isinstance(row, list) for row in data):
        return None
    for number, row in enumerate(data):
        if len(row) != len(names):
            raise _NotRows(f"row {number} under 'data' has {len(row)} values, 'columns' has {len(names)}")
    return [dict(zip(names, row, strict=True)) for row in data]


def _column_oriented(document: Row, wanted: set[str]) -> list[Row] | None:
    """The shapes {"text": {"0": "a", ...}, ...} and {"text": ["a", ...], ...}."""
    values = list(document.values())
    if not values or not wanted <= set(document):
        return None
    if all(isinstance(value, dict) for value in values):
        keys = list(values[0])
        if not wanted and not all(key.isdecimal() for key in keys):
            return None
        if any(value.keys() != values[0].keys() for value in values):
            raise _NotRows("its columns have different keys; each needs the same, one for every row")
        return [{name: column[key] for name, column in document.items()} for key in keys]
    chosen = {name: value for name, value in document.items() if name in wanted} or document
    if not all(isinstance(value, list) for value in chosen.values()):
        return None
    lengths = {name: len(value) for name, value in chosen.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise _NotRows(f"its columns have different lengths ({told[:200]}); each needs a value for every row")
    if wanted:
        document = chosen
    return [dict(zip(document, row, strict=True)) for row in zip(*document.values(), strict=True)]


def _index_oriented(document: Row, wanted: set[str]) -> list[Row] | None:
    """The shape {"first id": {"text": "a", ...}, ...}."""
    values = list(document.values())
    if not values or not all(isinstance(value, dict) for value in values):
        return None
    if wanted:
        return values if all(wanted <= set(value) for value in values) else None
    return values if len(values) > 1 and all(key.isdecimal() for key in document) else None
