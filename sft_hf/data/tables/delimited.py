"""CSV, TSV and similar formats: delimited fields, with or without quotes and header.

Uses Python's csv reader, not Arrow's: it detects unclosed quotes, and reports the line of every row.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from sft_hf.core.errors import DataError
from sft_hf.data.tables.bad_rows import BadRows
from sft_hf.data.tables.encodings import open_text
from sft_hf.data.tables.quotes import MAX_FIELD, QUOTE, Lines, choose_quoting, quoting_options
from sft_hf.data.tables.table import Batch, Table, check_width, one_line, separator_hint

MAX_NAME = 1000  # characters of a CSV column's name

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
_DELIMITER_NAMES = {",": "comma", "\t": "tab", ";": "semicolon"}


def delimited_batches(table: Table, kind: str, size: int) -> Iterator[Batch]:
    """Yield the rows of a delimited file, `size` at a time. Raises DataError as `files.iter_rows`."""
    reader = _Reader(table, kind)
    rows: list[list[str]] = []
    for fields in reader:
        rows.append(fields)
        if len(rows) == size:
            yield reader.batch(rows)
            rows = []
    if rows:
        yield reader.batch(rows)


def header_of(table: Table, kind: str) -> list[str]:
    """Return the names of all columns of a file. Raises DataError if there are none."""
    reader = _Reader(table, kind, whole=False)
    with suppress(StopIteration):
        next(iter(reader))
    return reader.header


class _Reader:
    """Iterates over the rows of a file; each row has as many fields as the header."""

    def __init__(self, table: Table, kind: str, whole: bool = True) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))
        self.table, self.path = table, table.path
        self.delimiter = _delimiter(table, kind)
        self.names = table.options.column_names
        self.header: list[str] = []
        self.bad = BadRows(str(self.path), table.options.on_bad_row == "skip", heard=table.options.heard)
        text = open_text(self.path, table.options.encoding, table.notes)
        self._lines = Lines(text, table.options.skip_lines, has_header=not self.names)
        self.quoting = QUOTE
        if whole or table.options.quote_char is not None:
            said = table.options.quote_char
            self.quoting = choose_quoting(self._lines, self.delimiter, said, self.names, table.notes)

    def batch(self, rows: Sequence[Sequence[str]]) -> Batch:
        """Return rows as columns, limited to the required columns."""
        return {name: [row[place] for row in rows] for name, place in self._wanted}

    def __iter__(self) -> Iterator[list[str]]:
        lines = self._lines.fresh()
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True, **quoting_options(self.quoting))
        if self.names:
            self._use_header(_check_names(self.path, list(self.names), self.table.needed))
        width, several, repeated = len(self.header), 0, 0
        plain = [field.strip("\ufeff ") for field in self.header]
        while True:
            before = reader.line_num
            try:
                fields = next(reader, None)
            except csv.Error as error:
                self._unreadable(lines.number - reader.line_num + before + 1, lines.number, error)
                continue
            if fields is None:
                break
            if lines.odd:
                fields = lines.restored(fields)
            if not width:
                if any(field.strip() for field in fields):
                    self._use_header(_header(self.path, fields, self.table.needed))
                    width, plain = len(self.header), [field.strip("\ufeff ") for field in fields]
                continue
            if len(fields) != width:
                if not fields or (len(fields) == 1 and not fields[0].strip()):
                    continue  # a blank line
                self._ragged(lines.number - reader.line_num + before + 1, fields)
            elif lines.odd and any("\0" in field for field in fields):
                self.bad.add(f"line {lines.number} holds a NUL character, which is not text; the file may be corrupt")
            elif width > 1 and [field.strip("\ufeff ") for field in fields] == plain:
                repeated += 1  # from an appended file; with data.column_names, the file has a header after all
            elif not self.bad or self.bad.skip:  # after a bad row, the remaining rows are only counted
                several += reader.line_num > before + 1
                self.bad.total += 1
                yield fields
        if not width:
            raise DataError(f"{self.path}: is empty")
        self.bad.finish(self.table.notes)
        if repeated:
            self.table.notes.append(f"{self.path.name}: {repeated} lines that repeat the header are left out")
        if several:
            self.table.notes.append(f"{self.path.name}: {several} rows run over several lines, inside quotation marks")

    def _use_header(self, header: list[str]) -> None:
        self.header = header
        keep = self.table.kept(header)
        self._wanted = [(name, header.index(name)) for name in keep]

    def _unreadable(self, start: int, end: int, error: csv.Error) -> None:
        advice = (
            'close every quote and double the quotes inside a quoted field, or set data.quote_char: "" if quotes are '
            "ordinary characters"
        )
        problem = f"the row that starts on line {start} cannot be read ({error}); {advice}"
        # An unclosed quote may hide any number of following rows.
        if end > start or not self.header or "unexpected end" in str(error):
            raise DataError(f"{self.path}: {problem}")
        self.bad.add(problem)

    def _ragged(self, start: int, fields: list[str]) -> None:
        if hint := separator_hint(self.header):
            raise DataError(f"{self.path}: has one column ({one_line(self.header[0])}); {hint}")
        held = _DELIMITER_NAMES.get(self.delimiter, repr(self.delimiter))
        whose = "data.column_names" if self.names else "the header"
        self.bad.add(
            f"line {start} has {len(fields)} field{'s' * (len(fields) != 1)}, {whose} has {len(self.header)} "
            f"({one_line(', '.join(self.header))}); quote fields that hold a {held}"
        )


def sniff_delimiter(line: str, wanted: Sequence[str]) -> str | None:
    """Return the separator with which a file's first line has all required columns, if there is one."""
    for mark in "\t,;|":
        with suppress(csv.Error):
            names = next(csv.reader([line], delimiter=mark), [])
            if len(names) > 1 and set(wanted) <= set(names):
                return mark
    return None


def named_header(path: Any, names: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    """Return the column names of a header row; an unnamed column is `Unnamed: <position>`, as in pandas.

    Of columns with the same name, all but the first get a suffix (`text.1`), unless they are among `columns`.
    Raises DataError for those, and for a line that cannot be a header.
    """
    return _header(path, list(names), columns)


def _delimiter(table: Table, kind: str) -> str:
    delimiter, quote_char = table.options.delimiter, table.options.quote_char
    chosen = _DELIMITERS.get(kind, ",") if delimiter is None else delimiter.replace("\\t", "\t")
    if len(chosen) != 1 or chosen in "\r\n" or chosen == ('"' if quote_char is None else quote_char):
        raise DataError(f"{table.path}: data.delimiter {chosen!r} is not one character other than the quote character")
    if quote_char and (len(quote_char) != 1 or quote_char in "\r\n"):
        raise DataError(f'{table.path}: data.quote_char {quote_char!r} is not one character, or "" for none')
    return chosen


def _header(path: Any, names: list[str], columns: Sequence[str] | None) -> list[str]:
    check_width(path, len(names))
    longest = max(map(len, names))
    if longest > MAX_NAME:
        raise DataError(f"{path}: the header has a name of {longest} characters; is its first line the header?")
    names = [name if name.strip() else f"Unnamed: {place}" for place, name in enumerate(names)]
    return _check_names(path, names, columns)


def _check_names(path: Any, names: list[str], columns: Sequence[str] | None) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1 and (columns is None or name in columns)]
    if twice:
        raise DataError(f"{path}: the header names column {twice[0]!r} more than once; rename one of them")
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        unique.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return unique
