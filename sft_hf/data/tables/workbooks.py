"""Workbooks of spreadsheet programs: the table is one sheet, and the header is its first non-empty row.

Cells are converted to text as in a CSV export: 5 is "5", not "5.0", and an empty cell is "". The value of a formula is
the saved result.
"""

from __future__ import annotations

import datetime
import io
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from sft_hf.core.errors import DataError, did_you_mean
from sft_hf.data.tables.archives import MAX_UNPACKED, whole_bytes
from sft_hf.data.tables.delimited import named_header
from sft_hf.data.tables.table import Batch, Table, one_line

_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing")
_OPENPYXL = (".xlsx", ".xlsm")


def workbook_batches(table: Table, size: int) -> Iterator[Batch]:
    """Yield the rows of a sheet, `size` at a time. Raises DataError as `sft_hf.data.tables.files.iter_rows`."""
    header, rows = _header_and_rows(table)
    wanted = [(name, header.index(name)) for name in table.kept(header)]
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield {name: [row[place] for row in part] for name, place in wanted}


def workbook_header(table: Table) -> list[str]:
    """Return the names of the columns. Raises DataError as `workbook_batches`."""
    return _header_and_rows(table)[0]


def _header_and_rows(table: Table) -> tuple[list[str], list[list[str]]]:
    content = whole_bytes(table.path)
    sheets = _read_openpyxl(table, content) if table.suffix in _OPENPYXL else _read_calamine(table, content)
    name, rows = _choose(table, {name: _trimmed(rows) for name, rows in sheets.items()})
    names = table.options.column_names
    if not rows:
        raise DataError(f"{table.path}: sheet {name!r} is empty")
    width = max(map(len, rows))
    rows = [row + [""] * (width - len(row)) for row in rows]
    if names and len(names) != width:
        raise DataError(
            f"{table.path}: sheet {name!r} has {width} columns, data.column_names has {len(names)}: {', '.join(names)}"
        )
    header = list(names) if names else rows.pop(0)
    if rows and rows[0] == header:
        rows.pop(0)  # there is a header after all
    rows = rows[table.options.skip_lines :]
    filled = [row for row in rows if any(cell.strip() for cell in row)]
    if empty := len(rows) - len(filled):
        table.notes.append(f"{table.path.name}: {empty} empty rows of sheet {name!r} are left out")
    return named_header(table.path, header, table.needed), filled


def _choose(table: Table, sheets: dict[str, list[list[str]]]) -> tuple[str, list[list[str]]]:
    """Return the sheet to read: the one that the recipe names, else the first with the wanted columns."""
    wanted = table.options.sheet
    if wanted is not None:
        if wanted not in sheets:
            raise DataError(f"{table.path}: no sheet {wanted!r} (data.sheet); {did_you_mean(wanted, sheets)}")
        return wanted, sheets[wanted]
    filled = [name for name, rows in sheets.items() if rows]
    if not filled:
        raise DataError(f"{table.path}: is empty")
    columns = set(table.keep or table.columns or ())
    fitting = [name for name in filled if columns and columns <= set(sheets[name][0])]
    chosen = (fitting or [name for name in filled if len(sheets[name]) > 1] or filled)[0]
    splits = [name for name in fitting if name.strip().lower() in _SPLITS]
    if len(splits) > 1:
        raise DataError(
            f"{table.path}: its sheets {' and '.join(map(repr, splits))} look like splits, and a workbook is read as "
            "one; save each as a separate file (train.xlsx, test.xlsx) and give their folder, or choose one by "
            "data.sheet"
        )
    if len(filled) > 1:
        others = ", ".join(repr(name) for name in filled if name != chosen)
        table.notes.append(f"{table.path.name}: sheet {chosen!r} is read, and not {others} (data.sheet chooses)")
    return chosen, sheets[chosen]


def _trimmed(rows: Sequence[list[str]]) -> list[list[str]]:
    """Return rows without leading and trailing empty rows, and without empty columns on the right."""
    filled = [number for number, row in enumerate(rows) if any(cell.strip() for cell in row)]
    if not filled:
        return []
    rows = rows[filled[0] : filled[-1] + 1]
    width = max(place + 1 for row in rows for place, cell in enumerate(row) if cell.strip())
    return [row[:width] for row in rows]


def _read_openpyxl(table: Table, content: io.BytesIO) -> dict[str, list[list[str]]]:
    _check_size(table, content)
    try:
        import openpyxl
    except ImportError:
        raise DataError(_missing(table, "openpyxl")) from None
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about styles and extensions are irrelevant here
            book = openpyxl.load_workbook(content, read_only=True, data_only=True)
            sheets = {}
            for sheet in book.worksheets:
                sheet.reset_dimensions()  # some programs write wrong dimensions
                sheets[sheet.title] = [[_text(cell) for cell in row] for row in sheet.iter_rows(values_only=True)]
            book.close()
            return sheets
    except MemoryError:
        raise
    except Exception as error:  # openpyxl raises many types of exceptions for corrupt files
        raise DataError(f"{table.path}: cannot be read as a workbook: {one_line(error)}") from error


def _read_calamine(table: Table, content: io.BytesIO) -> dict[str, list[list[str]]]:
    if zipfile.is_zipfile(content):
        _check_size(table, content)
    content.seek(0)
    try:
        import python_calamine
    except ImportError:
        raise DataError(_missing(table, "python-calamine")) from None
    try:
        book = python_calamine.load_workbook(content)
        return {
            name: [[_text(cell) for cell in row] for row in book.get_sheet_by_name(name).to_python()]
            for name in book.sheet_names
        }
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise DataError(f"{table.path}: cannot be read as a workbook: {one_line(error)}") from error


def _missing(table: Table, package: str) -> str:
    return (
        f"{table.path}: {package} is needed to read {table.suffix} files and is not installed: pip install {package} "
        "(or this package's extra `excel`); or save the table as CSV"
    )


def _check_size(table: Table, content: io.BytesIO) -> None:
    """Reject a workbook that is small on disk but exhausts memory when unpacked."""
    try:
        with zipfile.ZipFile(content) as archive:
            size = sum(info.file_size for info in archive.infolist())
    except zipfile.BadZipFile as error:
        raise DataError(f"{table.path}: is damaged or not a workbook: {error}") from None
    if size > MAX_UNPACKED:
        raise DataError(f"{table.path}: holds more than {MAX_UNPACKED >> 20} MB once unpacked; save it as CSV")
    content.seek(0)


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, datetime.datetime):
        return cell.date().isoformat() if cell.time() == datetime.time() else cell.isoformat(" ")
    return str(cell)
