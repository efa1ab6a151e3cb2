"""Whether quotation marks in a delimited file enclose values or are ordinary characters.

Conventions differ: CSV files quote fields that contain a delimiter or a line break; many TSV files quote nothing, and a
text may start or end with a quotation mark. Under the wrong convention, such a text silently swallows the rows up to
the next mark. Therefore, the whole file is inspected first if it has any marks and the recipe does not set the
convention.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from typing import Any

from sft_hf.core.errors import DataError
from sft_hf.data.tables.encodings import TextFile

MAX_FIELD = 2**24  # characters of one CSV field, which bounds the effect of an unclosed quote
MAX_KEPT = 2**20  # distinct values of a column that are stored

QUOTE = '"'
SINGLE = "'"
ESCAPED = '\\"'
"""The quoting style in which quotation marks inside a field are escaped by a backslash."""

_CARRIAGE_RETURN = "\ufdd0"  # does not occur in text


def quoting_options(quoting: str) -> dict[str, Any]:
    """Return the quoting options for `csv.reader`."""
    if not quoting:
        return {"quoting": csv.QUOTE_NONE}
    if quoting == ESCAPED:
        return {"quotechar": QUOTE, "escapechar": "\\", "doublequote": False}
    return {"quotechar": quoting}


class Lines:
    """The lines of a file, without `skip` non-data lines after the header (without a header: at the start).

    `number` is that of the last line read. A CR inside a line is hidden from `csv.reader`, which would treat it as a
    line end; `odd` is set if there was one, or a NUL character; `restored` puts it back.
    """

    def __init__(self, text: TextFile, skip: int, has_header: bool = True) -> None:
        self.text, self.skip, self.has_header = text, skip, has_header
        self.number = 0
        self.odd = False
        self._lines = self._read()

    def fresh(self) -> Lines:
        """Return the lines from the start."""
        return Lines(self.text, self.skip, self.has_header)

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def restored(self, fields: list[str]) -> list[str]:
        """Return fields with their original characters."""
        return [field.replace(_CARRIAGE_RETURN, "\r") for field in fields]

    def _read(self) -> Iterator[str]:
        hide = self.text.newline == "\n"
        left = None if self.has_header else self.skip  # lines still to be skipped; None: before the header
        for line in self.text.lines():
            self.number += 1
            if left != 0:
                if left:
                    left -= 1
                    continue
                left = self.skip if line.strip() else None
            if hide and "\r" in line:
                body = line.rstrip("\r\n")
                if "\r" in body:
                    self.odd = True
                    line = body.replace("\r", _CARRIAGE_RETURN) + line[len(body) :]
            if "\0" in line:
                self.odd = True
            yield line


def choose_quoting(
    lines: Lines, delimiter: str, quote_char: str | None, names: Sequence[str] | None, notes: list[str]
) -> str:
    """Return the quote character of a file, "" for none, or `ESCAPED`.

    Args:
        lines: the file; read from the start, and not consumed.
        delimiter: one character.
        quote_char: the recipe's setting; None: quotation marks, unless the file shows that they are ordinary
            characters.
        names: names of the columns of a file without a header.
        notes: receives a line about the decision.

    Raises DataError if a quoted field contains lines that look like rows, and no other convention reads the file.
    """
    if quote_char is not None:
        return quote_char
    if not any(QUOTE in line for line in lines.fresh()):
        return _single_quotes(lines, delimiter, names, notes)
    if _is_clean(lines.fresh(), delimiter):
        return QUOTE
    survey = _Survey(lines.fresh(), delimiter, QUOTE, names)
    survey.judge()
    if not survey.wrong:
        return QUOTE
    path = lines.text.path
    if survey.backslashes:
        escaped = _Survey(lines.fresh(), delimiter, ESCAPED, names)
        escaped.judge()
        if not escaped.wrong:
            notes.append(f'{path.name}: \\" inside a quoted field is read as a quotation mark')
            return ESCAPED
    if survey.ordinary:
        notes.append(
            f"{path.name}: quotation marks are read as ordinary characters, because as quotes "
            f"{survey.wrong}; set data.quote_char: '\"' if they enclose fields"
        )
        return ""
    if survey.swallowed:
        raise DataError(
            f"{path}: {survey.wrong}; close the quote, or set data.quote_char: '\"' if the lines belong together, or "
            '"" if quotation marks are ordinary characters'
        )
    return QUOTE  # the unreadable row is reported when it is reached


def _single_quotes(lines: Lines, delimiter: str, names: Sequence[str] | None, notes: list[str]) -> str:
    """Return "'" if a file has no quotation marks and its first or last fields are all in single quotes."""
    rows = (line.strip() for line in lines.fresh())
    begin = end = True
    count = 0
    for row in rows:
        if not row or not (count or names):  # a blank line, or the header, which may have no quotes
            count += bool(row)
            continue
        count += 1
        begin &= row.startswith(SINGLE)
        end &= row.endswith(SINGLE)
        if not (begin or end):
            return QUOTE
    if count < 3 or not _is_clean(lines.fresh(), delimiter, SINGLE):
        return QUOTE
    notes.append(
        f"{lines.text.path.name}: single quotes enclose fields and are not part of them; set data.quote_char: '\"' if "
        "they are"
    )
    return SINGLE


def _is_clean(lines: Lines, delimiter: str, quote: str = QUOTE) -> bool:
    """Whether every row is on one line with as many fields as the first, so that quoting does not matter."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quotechar=quote)
    count = width = 0
    try:
        for fields in reader:
            count += 1
            if len(fields) != width and fields:
                if width:
                    return False
                width = len(fields)
    except csv.Error:
        return False
    return count == reader.line_num and width > (quote == SINGLE)


class _Survey:
    """How a file reads under one quoting convention.

    `wrong` is the evidence against the convention, "" if there is none; `ordinary` is whether every line with quotation
    marks has as many fields as the header if they are ordinary characters.
    """

    def __init__(self, lines: Lines, delimiter: str, quoting: str, names: Sequence[str] | None) -> None:
        self._source, self.delimiter, self.quoting, self.names = lines, delimiter, quoting, names
        self.wrong, self.swallowed, self.ordinary, self.backslashes = "", False, True, False
        self._spans: list[tuple[int, str, str]] = []  # rows of several lines: start, first and last line
        self._inside: set[int] = set()  # the line numbers of such rows
        mark = re.escape(delimiter)
        field = rf'(?:"(?:[^"\\]|\\.)*"|[^"{mark}]*)'
        self._escaped_row = re.compile(f"{field}(?:{mark}{field})*", re.DOTALL)  # csv.reader is not strict about these
        self._walk()

    def _walk(self) -> None:
        current: list[str] = []

        def tapped() -> Iterator[str]:
            for line in self._source:
                current.append(line)
                yield line

        reader = csv.reader(tapped(), delimiter=self.delimiter, strict=True, **quoting_options(self.quoting))
        width, rows, enclosed = len(self.names or ()), 0, 0
        while True:
            current.clear()
            failed = False
            try:
                fields = next(reader, None)
            except csv.Error as error:
                fields, failed = [], True
                self.wrong = (
                    self.wrong or f"the row that starts on line {self._start(current)} cannot be read ({error})"
                )
            if fields is None:
                break
            if not width and not failed:
                width = len(fields) if any(field.strip() for field in fields) else 0
                self.ordinary &= not any(QUOTE in line for line in current)
                continue
            rows += 1
            enclosed += not failed and current[0].startswith(QUOTE) and current[-1].rstrip("\r\n").endswith(QUOTE)
            self._take(self._start(current), current, fields, failed, width)
        self.ordinary &= width > 1 and 2 * enclosed <= rows  # otherwise the writer quotes everything
        self.width = width

    def _start(self, lines: list[str]) -> int:
        return self._source.number - len(lines) + 1

    def _take(self, start: int, lines: list[str], fields: list[str], failed: bool, width: int) -> None:
        """Add one row, given its lines."""
        if len(lines) == 1 and QUOTE not in lines[0]:
            return
        self.backslashes |= any(ESCAPED in line for line in lines)
        if not failed and fields and len(fields) != width:
            self.wrong = self.wrong or f"line {start} has {len(fields)} fields, not {width}"
        if self.quoting == ESCAPED and not self._escaped_row.fullmatch("".join(lines).rstrip("\r\n")):
            self.wrong = self.wrong or f"the row that starts on line {start} has a quote inside a field"
        if any('""' in line and self._doubles(line) for line in lines):
            self.ordinary = False  # a writer that doubles quotes inside quotes uses them as quotes
        plain = [line for line in lines if line.count(self.delimiter) + 1 == width]
        self.ordinary &= len(plain) == sum(bool(line.strip()) for line in lines)
        if len(lines) > 1 and not failed:
            self._inside.update(range(start, start + len(lines)))
            if lines[0] in plain and lines[-1] in plain:
                self._spans.append((start, lines[0], lines[-1]))

    def _doubles(self, line: str) -> bool:
        """Whether a field on this line is quoted and contains doubled quotes."""
        try:
            fields = next(csv.reader([line], delimiter=self.delimiter, strict=True), [])
        except csv.Error:
            return False
        return any(QUOTE in field and QUOTE + field.replace(QUOTE, 2 * QUOTE) + QUOTE in line for field in fields)

    def judge(self) -> None:
        """Look for rows of several lines whose first and last lines look like rows themselves.

        The number of fields in a line proves nothing: a text may contain a comma in each line. In columns with
        repeating values, such as labels or numbers, the line must also have values that other rows have there.
        """
        if self.width < 2 or not self._spans or self.wrong:
            return
        columns = self._repeating()
        for start, first, last in self._spans:
            # Tabs at exactly the right positions of every line are not a coincidence.
            certain = self.ordinary and self.delimiter in "\t|"
            if certain or (self._looks_like_a_row(first, columns) and self._looks_like_a_row(last, columns)):
                self._found(start, last)
                return
        if self.ordinary:  # both conventions read the file, with no evidence for either
            self._found(self._spans[0][0], self._spans[0][2])
            self.ordinary = False

    def _found(self, start: int, line: str) -> None:
        self.swallowed = True
        shown = " ".join(line.split())[:60]
        self.wrong = f"the row that starts on line {start} takes in lines that are rows themselves ({shown!r})"

    def _repeating(self) -> dict[int, set[str]]:
        """Return the values of columns with repeating values, from single-line rows without quotes."""
        values: list[set[str]] = [set() for _ in range(self.width)]
        rows = 0
        lines = self._source.fresh()
        for line in lines:
            if QUOTE in line or lines.number in self._inside or line.count(self.delimiter) + 1 != self.width:
                continue
            rows += 1
            for known, field in zip(values, line.rstrip("\r\n").split(self.delimiter), strict=True):
                if len(known) < MAX_KEPT:
                    known.add(_shape(field))
        return {place: known - {""} for place, known in enumerate(values) if 2 * len(known) <= rows}

    def _looks_like_a_row(self, line: str, columns: dict[int, set[str]]) -> bool:
        fields = line.rstrip("\r\n").split(self.delimiter)
        return bool(columns) and all(_shape(fields[place]) in known for place, known in columns.items())


def _shape(field: str) -> str:
    """Return a value for comparison: numbers and ids are reduced to their pattern, other values are unchanged."""
    return re.sub("[0-9]+", "9", field.strip().strip(QUOTE))
