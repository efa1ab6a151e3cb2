"""Tables on disk: CSV, TSV, JSON, Parquet, Arrow, workbooks and plain text, read a batch of rows at a time.

Nothing is guessed silently. Every CSV value is text ("001", "NA" and "null" stay as they are), files are UTF-8 or what
a byte order mark says, decisions are noted, and whatever does not fit is a DataError that names file and line.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sft_hf.core.errors import DataError, StorageError
from sft_hf.core.filesystem import STORAGE_ERRNOS, no_such_file
from sft_hf.data.tables.archives import ARCHIVE, COMPRESSED, open_bytes
from sft_hf.data.tables.columnar import columnar_batches
from sft_hf.data.tables.delimited import delimited_batches, header_of, sniff_delimiter
from sft_hf.data.tables.encodings import open_text
from sft_hf.data.tables.json_columns import json_table
from sft_hf.data.tables.json_tables import json_rows
from sft_hf.data.tables.table import (
    COLUMNAR,
    JSON,
    TABLE_SUFFIXES,
    WORKBOOKS,
    Batch,
    Table,
    TableOptions,
    one_line,
    require_names,
    separator_hint,
    table_options,
    table_stem,
)
from sft_hf.data.tables.workbooks import workbook_batches, workbook_header

if TYPE_CHECKING:
    from datasets import Dataset, Features

__all__ = [
    "TABLE_SUFFIXES",
    "iter_rows",
    "read_table",
    "separator_hint",
    "table_features",
    "table_options",
    "table_stem",
]

READ_BATCH = 10_000  # rows that `read_table` takes at a time


def read_table(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    keep: Sequence[str] | None = None,
    notes: list[str] | None = None,
    **options: Any,
) -> Dataset:
    """Read a whole table into memory; nothing is written to a cache.

    CSV columns are text; JSON columns have the type of their values; Parquet keeps its types and, if `datasets` wrote
    it, its features (the names of a ClassLabel). Blank lines are not rows.

    Args:
        path: the file, or a member of an archive (`reviews.zip/train.csv`); its ending (see `TABLE_SUFFIXES`, and
            .txt: one text per line) says what it is, else its content.
        columns: read only these, which have to be there, in this order.
        keep: read only those of these that are there; all, where there are none. JSON columns that are not among
            them and cannot be typed are left out. None: all columns are read, and have to be typed.
        notes: receives lines about what was decided, and rows that were left out.
        options: see `TableOptions`.

    Raises DataError for whatever is wrong with the file, StorageError if the disk fails.
    """
    from datasets import Dataset  # half a second, which `predict` on a file need not wait for

    table = _table(path, columns, keep, notes, options)
    with plain_errors(table.path):
        kind = _kind(table)
        if kind in COLUMNAR:
            arrow = pa.Table.from_batches(list(columnar_batches(table, kind, READ_BATCH)))
        else:
            batches = _batches(table, kind, READ_BATCH)
            arrow = json_table(table, batches) if kind in JSON else _text_table(batches)
        with _usable_columns(table.path):
            return Dataset(arrow)


def iter_rows(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    keep: Sequence[str] | None = None,
    notes: list[str] | None = None,
    batch_size: int = 1000,
    **options: Any,
) -> Iterator[Batch]:
    """Yield the rows of a table as {column: values}, at most `batch_size` at a time, in bounded memory.

    Only a JSON file that is one document, and a workbook, is read whole: it cannot be read otherwise. The arguments are
    those of `read_table`. JSON keys that a row lacks are None; without `columns`, a key that first turns up in a later
    batch is a column from there on.

    Raises what `read_table` does, at the first row or where it is met.
    """
    table = _table(path, columns, keep, notes, options)
    with plain_errors(table.path):
        kind = _kind(table)
        if kind in COLUMNAR:
            for arrow_batch in columnar_batches(table, kind, batch_size):
                yield arrow_batch.to_pydict()
        else:
            yield from _batches(table, kind, batch_size)


def text_lines(path: str | Path, encoding: str | None = None) -> Iterator[str]:
    """Yield the lines of a text file without their ends, blank ones too. Raises what `read_table` does."""
    path = Path(path)
    with plain_errors(path):
        for line in open_text(path, encoding, []).lines():
            yield line.rstrip("\r\n")


def table_features(path: str | Path, keep: Sequence[str] | None = None, **options: Any) -> Features | None:
    """Return the features of a table without reading it whole; None for JSON, which has to be read for that.

    Raises what `read_table` does.
    """
    from datasets import Features, Value  # as in `read_table`

    table = _table(path, None, keep, None, options)
    with plain_errors(table.path):
        kind = _kind(table)
        if kind in JSON:
            return None
        if kind in COLUMNAR:
            first_rows = next(columnar_batches(table, kind, 1))
            with _usable_columns(table.path):
                return Features.from_arrow_schema(first_rows.schema)
        names = ["text"] if kind == ".txt" else workbook_header(table) if kind in WORKBOOKS else header_of(table, kind)
        return Features({name: Value("string") for name in table.kept(names)})


# --- what a file is, and what can go wrong with any ----------------------------------------------------------


def _table(
    path: str | Path,
    columns: Sequence[str] | None,
    keep: Sequence[str] | None,
    notes: list[str] | None,
    options: dict[str, Any],
) -> Table:
    return Table(Path(path), TableOptions(**options), columns, keep, [] if notes is None else notes)


def _kind(table: Table) -> str:
    """Return the extension that fits a file. Raises DataError for a file that cannot be read."""
    if table_stem(table.path.name) is not None:
        return table.suffix
    if table.path.suffix.lower() in (ARCHIVE, *COMPRESSED) and not table.suffix:
        raise DataError(
            f"{table.path}: its ending does not say what is in it; call it like train.csv{table.path.suffix}"
        )
    return _sniffed(table)


_MAGIC = {b"PAR1": ".parquet", b"ARROW1": ".arrow", b"PK\x03\x04": ".xlsx", b"\xd0\xcf\x11\xe0": ".xls"}


def _sniffed(table: Table) -> str:
    """Recognize the format of a file without a table's extension (.txt, .data, none) by its content."""
    is_text = table.suffix in (".txt", ".text")
    if is_text and not (table.keep or table.columns) and table.options.delimiter is None:
        return ".txt"
    with open_bytes(table.path) as file:
        start = file.read(8)
    found = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if found is None and table.options.delimiter is not None:
        return ".csv"
    wanted = table.keep or table.columns or ()
    if found is None:
        first = next((line for line in open_text(table.path, table.options.encoding, []).lines() if line.strip()), "")
        if first.lstrip("\ufeff \t").startswith(("{", "[")) and not is_text:
            found = ".json"
        elif mark := sniff_delimiter(first, wanted) if len(wanted) > 1 else None:
            found = {"\t": ".tsv", "|": ".psv", ",": ".csv"}.get(mark)
            if found is None:
                raise DataError(f"{table.path}: if {mark!r} separates its fields, set data.delimiter: '{mark}'")
    if found is not None:
        table.notes.append(f"{table.path.name}: read as {found}, by its content")
        return found
    if is_text:
        return ".txt"
    valid = ", ".join((*(suffix for suffix in TABLE_SUFFIXES if suffix not in COMPRESSED), ".txt"))
    raise DataError(
        f"{table.path}: no known kind of table; valid endings: {valid}, and {', '.join(COMPRESSED)} behind a text "
        "format's; or set data.delimiter if it holds fields"
    )


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Raise what goes wrong with a file as a DataError or StorageError of one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: {no_such_file(path)}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        packed = path.suffix.lower().removeprefix(".").replace("gz", "gzip")
        raise DataError(f"{path}: is damaged or no {packed} file: {one_line(error)}") from error
    except OSError as error:
        if error.errno in STORAGE_ERRNOS:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
        # Arrow reports damage as an OSError of its own, which has no number.
        reason = f"cannot be read: {error.strerror}" if error.errno else f"is damaged: {one_line(error)}"
        raise DataError(f"{path}: {reason}") from error
    except MemoryError:
        raise
    except pa.ArrowException as error:
        raise DataError(f"{path}: is damaged or not what its ending says: {one_line(error)}") from error


@contextmanager
def _usable_columns(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # `datasets` believes what a Parquet file says of its own columns, whatever that is
        raise DataError(f"{path}: holds columns that cannot be used: {one_line(error)}") from error


# --- rows to batches and tables ------------------------------------------------------------------------------


def _batches(table: Table, kind: str, size: int) -> Iterator[Batch]:
    """Yield batches of a text format or a workbook. Raises DataError for a file without rows."""
    if kind in JSON:
        batches = _batched(_checked(table, json_rows(table)), table.columns, size)
    elif kind in WORKBOOKS:
        batches = workbook_batches(table, size)
    elif kind == ".txt":
        lines = open_text(table.path, table.options.encoding, table.notes).lines()
        batches = _batched(({"text": line.rstrip("\r\n")} for line in lines if line.strip()), None, size)
    else:
        batches = delimited_batches(table, kind, size)
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise DataError(f"{table.path}: holds no rows")


def _checked(table: Table, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Pass rows on; at the end, complain if none had one of the columns that have to be there."""
    missing, known = set(table.columns or ()), dict[str, None]()
    for row in rows:
        if missing:
            missing.difference_update(row)
            known.update(dict.fromkeys(row))
        yield row
    if missing and known:
        require_names(table.path, table.columns, [name for name in known if name not in missing])


def _batched(rows: Iterable[dict[str, Any]], columns: Sequence[str] | None, batch_size: int) -> Iterator[Batch]:
    names = dict.fromkeys(columns or ())

    def turned(batch: list[dict[str, Any]]) -> Batch:
        if columns is None:
            for row in batch:
                names.update(dict.fromkeys(row))
        return {name: [row.get(name) for row in batch] for name in names}

    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == batch_size:
            yield turned(batch)
            batch = []
    if batch:
        yield turned(batch)


def _text_table(batches: Iterable[Batch]) -> pa.Table:
    return pa.Table.from_batches([pa.RecordBatch.from_pydict(batch) for batch in batches])
