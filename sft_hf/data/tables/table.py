"""A table to read: file, columns and options."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sft_hf.core.errors import DataError, did_you_mean
from sft_hf.data.loading.split_names import SPLIT_COLUMNS
from sft_hf.data.tables.archives import COMPRESSED

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection

DELIMITED = (".csv", ".tsv", ".tab", ".psv")
JSON = (".jsonl", ".ndjson", ".json")
COLUMNAR = (".parquet", ".arrow", ".feather")
TEXT_FORMATS = (*DELIMITED, *JSON)

WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".xlsb", ".ods")

TABLE_SUFFIXES = (*TEXT_FORMATS, ".parquet", ".arrow", ".feather", *WORKBOOKS, *COMPRESSED)
"""Extensions of tables with named columns; the last ones follow the extension of a text format (train.csv.gz)."""

MAX_COLUMNS = 10_000  # of a table: `datasets` takes two seconds for this number

Batch = dict[str, list[Any]]


@dataclass(frozen=True)
class TableOptions:
    """Options for reading a table; see the keys of the same names in the data section of a recipe.

    `heard` is called with the problem of each unusable row as soon as it is found.
    """

    delimiter: str | None = None
    quote_char: str | None = None
    skip_lines: int = 0
    encoding: str | None = None
    column_names: Sequence[str] | None = None
    sheet: str | None = None
    on_bad_row: Literal["stop", "skip"] = "stop"
    heard: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Table:
    """A file to read: columns, options and notes.

    `columns` must exist, and are returned in this order; of `keep`, existing columns are read (all, if none exists),
    plus a column that may name the split of each row. Without `columns` and `keep`, everything is read.
    """

    path: Path
    options: TableOptions
    columns: Sequence[str] | None = None
    keep: Sequence[str] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def suffix(self) -> str:
        """The extension that determines the format, in lower case; "" if there is none."""
        return plain_name(self.path).suffix.lower()

    @property
    def needed(self) -> Sequence[str] | None:
        """The requested columns; None: all columns."""
        return self.keep if self.columns is None else self.columns

    def kept(self, names: Sequence[str]) -> list[str]:
        """Return the columns to read, given all columns of the file. Raises DataError if one is missing."""
        require_names(self.path, self.columns, names)
        if self.columns is not None:
            return list(self.columns)
        keep = self.keep or ()
        if not set(keep) & set(names):
            return list(names)
        return [name for name in names if name in keep or name in SPLIT_COLUMNS]


def table_options(section: DataSection) -> dict[str, Any]:
    """Return the options of a recipe as the keyword arguments of `read_table` and `iter_rows`."""
    return {
        "delimiter": section.delimiter,
        "quote_char": section.quote_char,
        "skip_lines": section.skip_lines,
        "encoding": section.encoding,
        "column_names": section.column_names,
        "sheet": section.sheet,
        "on_bad_row": section.on_bad_row,
    }


def table_stem(name: str) -> str | None:
    """Return the name of a table without extension (`train` for train.csv.gz); None if `name` is not a table."""
    path = Path(name)
    plain = plain_name(path)
    suffix = plain.suffix.lower()
    known = suffix in (TEXT_FORMATS if plain != path else TABLE_SUFFIXES) and suffix not in COMPRESSED
    return plain.stem if known else None


def plain_name(path: Path) -> Path:
    """Return a path without a compression extension."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def separator_hint(columns: Sequence[str]) -> str:
    """Return a hint for a table whose only column contains whole rows with another separator, else ""."""
    held = [character for character in ";\t|," if len(columns) == 1 and character in columns[0]]
    return f"if {held[0]!r} separates its fields, set data.delimiter: {json.dumps(held[0])}" if held else ""


def require_names(path: Any, columns: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raise DataError for one of `columns` that is not among `known`."""
    for column in columns or ():
        if column not in known:
            raise DataError(f"{path}: no column {column!r}; {separator_hint(known) or did_you_mean(column, known)}")


def check_width(path: Any, columns: int) -> None:
    """Raise DataError if there are too many columns."""
    if columns > MAX_COLUMNS:
        raise DataError(f"{path}: has {columns} columns, and no more than {MAX_COLUMNS} are read; leave some out")


def one_line(error: object) -> str:
    """Return a message without line breaks, shortened if it is long."""
    return " ".join(str(error).split())[:300]
