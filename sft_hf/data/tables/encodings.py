"""Decode bytes to lines: UTF-8, unless a byte order mark, zero bytes or `data.encoding` indicate another encoding."""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sft_hf.core.errors import DataError, did_you_mean
from sft_hf.data.tables.archives import open_bytes

SAMPLE = 2**16  # bytes from which the encoding and the line ends are detected
MAX_LINE = 2**26  # characters; a row is on one line, except for quoted CSV fields

_MARKS = (  # UTF-32 first: the mark of UTF-16 is a prefix of one of its marks
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BINARY = {
    b"\x1f\x8b": "a gzip file (.gz)",
    b"BZh": "a bzip2 file (.bz2)",
    b"\xfd7zXZ": "an xz file (.xz)",
    b"\x28\xb5\x2f\xfd": "a Zstandard file (.zst)",
    b"PK\x03\x04": "a zip archive (.zip) or a workbook (.xlsx, .ods)",
    b"\xd0\xcf\x11\xe0": "an old workbook (.xls)",
    b"PAR1\x15": "a Parquet file (.parquet)",
    b"ARROW1\0": "an Arrow file (.arrow)",
    b"%PDF-": "a PDF document",
    b"\x89PNG": "a picture (.png)",
    b"\xff\xd8\xff": "a picture (.jpg)",
    b"OggS": "a recording (.ogg)",
    b"fLaC": "a recording (.flac)",
}
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_SUGGESTED = ("cp1252", "cp1251", "gb18030", "shift_jis", "euc_kr")
_KNOWN = ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1250", "cp1254", *_SUGGESTED, "big5")


@dataclass(frozen=True)
class TextFile:
    """The encoding of a text file. `newline` ends its lines: a line feed, possibly after a CR, or a CR alone."""

    path: Path
    encoding: str
    newline: str

    def lines(self, unlimited: bool = False) -> Iterator[str]:
        """Yield the lines with their line ends.

        Raises DataError naming the line for invalid bytes, or, unless `unlimited`, for a line that is too long.
        """
        most = -1 if unlimited else MAX_LINE + 1
        count = 0
        with open_bytes(self.path) as file:
            text = io.TextIOWrapper(file, encoding=self.encoding, newline=self.newline)
            try:
                while line := text.readline(most):
                    count += 1
                    if count == 1:  # a second byte order mark, from a program that added another one
                        line = line.lstrip("\ufeff")
                    if 0 < most == len(line):
                        raise DataError(f"{self.path}: line {count} is longer than {MAX_LINE >> 20} MB")
                    yield line
            except UnicodeError as error:
                raise DataError(f"{self.path}: {self._undecodable(count, error)}") from error

    def _undecodable(self, count: int, error: UnicodeError) -> str:
        """Return which line cannot be decoded; the decoder reads ahead, so it may not be the next line."""
        end = self.newline.encode()
        if self.encoding not in ("utf-8", "utf-8-sig", "ascii"):
            return f"is not {self.encoding} text near line {count + 1} ({error}); set data.encoding to what it is"
        with open_bytes(self.path) as file:
            for number, line in enumerate(_split(file, end), start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as found:
                    return (
                        f"line {number} is not UTF-8 text (byte {found.start + 1} of the line); "
                        f"{_suggestion(line, found.start)}"
                    )
        return f"is not UTF-8 text ({error}); save the file as UTF-8"


def open_text(path: Path, encoding: str | None, notes: list[str]) -> TextFile:
    """Detect the encoding of a text file.

    Args:
        path: the file, or a member of an archive.
        encoding: for files that are not UTF-8 and have no byte order mark; None: only unambiguous encodings are
            detected.
        notes: receives a line about the detected encoding.

    Raises DataError for an encoding unknown to Python, and for a file that is not text; OSError for disk errors.
    """
    with open_bytes(path) as file:
        sample = file.read(SAMPLE)
    if what := next((what for magic, what in _BINARY.items() if sample.startswith(magic)), None):
        raise DataError(f"{path}: is {what} by its content, not text; give it the ending of what it is")
    marked = next((name for mark, name in _MARKS if sample.startswith(mark)), None)
    if encoding is not None:
        _check_encoding(encoding)
    if marked is not None:
        found = marked
    elif (wide := _wide_encoding(sample)) is not None:
        found = wide
        notes.append(f"{path.name}: read as {wide.upper()}, which its zero bytes show (no byte order mark)")
    elif encoding is None:
        found = "utf-8"
    elif _is_utf8(sample) and not sample.isascii():
        found = "utf-8"
        if codecs.lookup(encoding).name != "utf-8":
            notes.append(f"{path.name}: is UTF-8 and read as such, although data.encoding says {encoding}")
    else:
        found = encoding
    text = sample.decode(found, errors="replace")
    return TextFile(path, found, _newline(text))


def _check_encoding(name: str) -> None:
    try:
        "a".encode(name).decode(name)  # rejects rot13 and base64, which are not text encodings
    except (LookupError, UnicodeError, ValueError):
        raise DataError(f"data.encoding: no encoding {name!r:.60}; {did_you_mean(name, _KNOWN)}") from None


def _is_utf8(sample: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # the sample may end within a character
    except UnicodeDecodeError:
        return False
    return True


def _wide_encoding(sample: bytes) -> str | None:
    """Return UTF-16 or UTF-32 if the bytes are almost certainly that: every line end contains zero bytes."""
    zeros = sample.count(0)
    if not zeros or (_is_utf8(sample) and zeros < 0.1 * len(sample)):
        return None
    for name in _WIDE:
        try:
            text = codecs.getincrementaldecoder(name)().decode(sample)
        except UnicodeDecodeError:
            continue
        odd = sum(unicodedata.category(letter) in ("Cc", "Cn", "Co") and letter not in "\t\r\n" for letter in text)
        if odd == 0 and re.search("[\r\n,;\t {]", text):
            return name
    return None


def _newline(sample: str) -> str:
    """Return the end of the first line, outside quotation marks: a CR inside quotes is part of a value."""
    quoted = False
    for place, letter in enumerate(sample):
        if letter == '"':
            quoted = not quoted
        elif letter == "\n" and not quoted:
            return "\n"
        elif letter == "\r" and not quoted:
            # Windows writes CR LF as CR CR LF in text mode.
            return "\n" if sample[place:].lstrip("\r").startswith("\n") else "\r"
    return "\n" if "\n" in sample or "\r" not in sample else "\r"


def _split(file: BinaryIO, end: bytes) -> Iterator[bytes]:
    rest = b""
    while block := file.read(SAMPLE):
        *lines, rest = (rest + block).split(end)
        yield from lines
    yield rest


def _suggestion(line: bytes, place: int) -> str:
    """Return the setting to suggest, showing how the word would read."""
    start = max((line.rfind(mark, 0, place) for mark in (b" ", b"\t", b",", b";", b'"')), default=-1) + 1
    stop = re.compile(rb"[\s,;\"]").search(line, place)
    word = line[max(start, place - 30) : min(stop.start() if stop else len(line), place + 30)]
    readings: dict[str, str] = {}
    for name in _SUGGESTED:
        try:
            line.decode(name)
            reading = word.decode(name)
        except UnicodeDecodeError:
            continue
        if reading.isprintable():
            readings.setdefault(reading, name)
    told = ", ".join(f"{reading!r} in {name}" for reading, name in readings.items())
    if not told:
        return "save the file as UTF-8, or set data.encoding to what it is"
    return f"set data.encoding to what it is (the word reads {told}), or save the file as UTF-8"
