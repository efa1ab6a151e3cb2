"""Tables on disk: CSV, TSV, JSON, Parquet, Arrow, workbooks and plain text, read in batches of rows.

Nothing is guessed silently. All CSV values are text ("001", "NA" and "null" are unchanged), files are UTF-8 or as their
byte order mark says, decisions are noted, and anything unexpected is a DataError that names file and line.
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

READ_BATCH = 10_000  # rows per batch in `read_table`


def read_table(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    keep: Sequence[str] | None = None,
    notes: list[str] | None = None,
    **options: Any,
) -> Dataset:
    """Read a whole table into memory, without a cache on disk.

    CSV columns are text; JSON columns have the type of their values; Parquet columns keep their types and, if written
    by `datasets`, their features (the names of a ClassLabel). Blank lines are not rows.

    Args:
        path: the file, or a member of an archive (`reviews.zip/train.csv`); its format is determined by its extension
            (see `TABLE_SUFFIXES`, and .txt: one text per line), otherwise by its content.
        columns: read only these columns, which must exist, in this order.
        keep: read only those of these columns that exist; all columns, if none exists. Other JSON columns are skipped
            if their values have no common type. None: all columns are read and need a type.
        notes: receives lines about decisions and skipped rows.
        options: see `TableOptions`.

    Raises DataError if the file is invalid, StorageError for disk errors.
    """
    from datasets import Dataset  # takes half a second to import; not needed by `predict` on a file

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
    """Yield the rows of a table as {column: values}, at most `batch_size` at a time, with bounded memory.

    Only a JSON file that is a single document, and a workbook, are read completely. The arguments are those of
    `read_table`. JSON keys missing in a row are None; without `columns`, a key that first appears in a later batch is a
    column from that batch on.

    Raises the same exceptions as `read_table`, immediately or during iteration.
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
    """Yield the lines of a text file without line ends, including blank lines. Raises as `read_table`."""
    path = Path(path)
    with plain_errors(path):
        for line in open_text(path, encoding, []).lines():
            yield line.rstrip("\r\n")


def table_features(path: str | Path, keep: Sequence[str] | None = None, **options: Any) -> Features | None:
    """Return the features of a table without reading all of it; None for JSON, where this is impossible.

    Raises as `read_table`.
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


# --- formats and errors --------------------------------------------------------------------------------------


def _table(
    path: str | Path,
    columns: Sequence[str] | None,
    keep: Sequence[str] | None,
    notes: list[str] | None,
    options: dict[str, Any],
) -> Table:
    return Table(Path(path), TableOptions(**options), columns, keep, [] if notes is None else notes)


def _kind(table: Table) -> str:
    """Return the extension for the format of a file. Raises DataError if it cannot be read."""
    if table_stem(table.path.name) is not None:
        return table.suffix
    if table.path.suffix.lower() in (ARCHIVE, *COMPRESSED) and not table.suffix:
        raise DataError(
            f"{table.path}: its ending does not say what is in it; call it like train.csv{table.path.suffix}"
        )
    return _sniffed(table)


_MAGIC = {b"PAR1": ".parquet", b"ARROW1": ".arrow", b"PK\x03\x04": ".xlsx", b"\xd0\xcf\x11\xe0": ".xls"}


def _sniffed(table: Table) -> str:
    """Detect the format of a file without a table extension (.txt, .data, none) from its content."""
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
        f"{table.path}: not a known table format; valid endings: {valid}, and {', '.join(COMPRESSED)} after a text "
        "format's; or set data.delimiter if it holds fields"
    )


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Convert errors of a file to a one-line DataError or StorageError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: {no_such_file(path)}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        packed = path.suffix.lower().removeprefix(".").replace("gz", "gzip")
        raise DataError(f"{path}: is damaged or not a {packed} file: {one_line(error)}") from error
    except OSError as error:
        if error.errno in STORAGE_ERRNOS:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
        # Arrow reports corrupt files as an OSError without errno.
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
    except Exception as error:  # `datasets` trusts the metadata of a Parquet file
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
    """Yield the rows unchanged; at the end, raise if none had one of the required columns."""
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
