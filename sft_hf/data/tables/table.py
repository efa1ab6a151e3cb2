"""One table to read: which file, what of it, and how."""

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
"""The endings of files with named columns; the last ones are written behind a text format's, as in train.csv.gz."""

MAX_COLUMNS = 10_000  # of a table: `datasets` takes two seconds for so many

Batch = dict[str, list[Any]]


@dataclass(frozen=True)
class TableOptions:
    """How a table is to be read; see the keys of the same names in the data section of a recipe.

    `heard` is called with what is wrong with a row that cannot be used, when it is met.
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
    """One file to read: what of it, how, and what there is to say about it.

    `columns` have to be there and come in this order; of `keep`, those that are there are read (none: all are), and a
    column that may say which split a row belongs to. Without `columns` and `keep`, everything is read.
    """

    path: Path
    options: TableOptions
    columns: Sequence[str] | None = None
    keep: Sequence[str] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def suffix(self) -> str:
        """The ending that tells the format, in lower case; "" where there is none."""
        return plain_name(self.path).suffix.lower()

    @property
    def needed(self) -> Sequence[str] | None:
        """The columns that somebody asked for; None: all that there are."""
        return self.keep if self.columns is None else self.columns

    def kept(self, names: Sequence[str]) -> list[str]:
        """Return the columns to read of all those of the file. Raises DataError for one that is missing."""
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
    """Return a table's name without its ending (`train` for train.csv.gz); None if `name` is not a table's."""
    path = Path(name)
    plain = plain_name(path)
    suffix = plain.suffix.lower()
    known = suffix in (TEXT_FORMATS if plain != path else TABLE_SUFFIXES) and suffix not in COMPRESSED
    return plain.stem if known else None


def plain_name(path: Path) -> Path:
    """Return a path without the ending of its compression."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def separator_hint(columns: Sequence[str]) -> str:
    """Return what to do about a table whose only column is a whole row of another separator's fields, else ""."""
    held = [character for character in ";\t|," if len(columns) == 1 and character in columns[0]]
    return f"if {held[0]!r} separates its fields, set data.delimiter: {json.dumps(held[0])}" if held else ""


def require_names(path: Any, columns: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raise DataError for one of `columns` that is not among `known`."""
    for column in columns or ():
        if column not in known:
            raise DataError(f"{path}: no column {column!r}; {separator_hint(known) or did_you_mean(column, known)}")


def check_width(path: Any, columns: int) -> None:
    """Raise DataError for more columns than are read."""
    if columns > MAX_COLUMNS:
        raise DataError(f"{path}: has {columns} columns, and no more than {MAX_COLUMNS} are read; leave some out")


def one_line(error: object) -> str:
    """Return a message without line breaks, cut where it is long."""
    return " ".join(str(error).split())[:300]
