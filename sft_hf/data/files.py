"""Tables on disk: CSV, TSV, JSON lines, Parquet and plain text, read a batch of rows at a time.

Nothing is guessed. Every CSV value is text ("001", "NA" and "null" stay as they are), files are UTF-8 (with or without
a byte order mark), and whatever does not fit is a DataError that names the file and the line.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sft_hf.data.json_shape import MAX_COLUMNS, JsonShape
from sft_hf.errors import DataError, StorageError, did_you_mean
from sft_hf.filesystem import STORAGE_ERRNOS

if TYPE_CHECKING:
    from datasets import Dataset, Features

TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet", ".gz")
"""The endings of files with named columns; `.gz` stands behind one of the text formats, as in train.csv.gz."""

READ_BATCH = 10_000  # rows that `read_table` takes at a time
MAX_FIELD = 2**24  # characters of one CSV field: what a quote that is never closed may swallow

MAX_LINE = 2**26  # bytes; a row is on one, except where a CSV field is quoted
MAX_NAME = 1000  # characters of a CSV column's name

_CSV_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_DELIMITER_NAMES = {",": "comma", "\t": "tab", ";": "semicolon"}

Batch = dict[str, list[Any]]


def read_table(
    path: str | Path,
    *,
    delimiter: str | None = None,
    quote_char: str = '"',
    skip_lines: int = 0,
    columns: Sequence[str] | None = None,
) -> Dataset:
    """Read a whole table into memory; nothing is written to a cache.

    CSV columns are text; JSON columns have the type of their values; Parquet keeps its types and, if `datasets` wrote
    it, its features (the names of a ClassLabel). Blank lines are no rows.

    Args:
        path: the file; its ending (see `TABLE_SUFFIXES`, and .txt: one text per line) says what it is.
        delimiter: CSV only; None: a comma for .csv, a tab for .tsv and .tab.
        quote_char: CSV only; "" makes quotes ordinary characters.
        skip_lines: CSV only; lines after the header that are no data.
        columns: read only these, in this order; None: all.

    Raises DataError for whatever is wrong with the file, StorageError if the disk fails.
    """
    from datasets import Dataset  # half a second, which `predict` on a file need not wait for

    path = Path(path)
    options: dict[str, Any] = {"delimiter": delimiter, "quote_char": quote_char, "skip_lines": skip_lines}
    with _plain_errors(path):
        if _kind(path) == ".parquet":
            table = pa.Table.from_batches(list(_parquet_batches(path, columns, READ_BATCH)))
        else:
            batches = iter_rows(path, columns=columns, batch_size=READ_BATCH, **options)
            table = _json_table(path, batches) if _kind(path) in _JSON_LINES else _text_table(batches)
        with _usable_columns(path):
            return Dataset(table)


def iter_rows(
    path: str | Path,
    *,
    delimiter: str | None = None,
    quote_char: str = '"',
    skip_lines: int = 0,
    columns: Sequence[str] | None = None,
    batch_size: int = 1000,
) -> Iterator[Batch]:
    """Yield the rows of a table as {column: values}, at most `batch_size` at a time, in bounded memory.

    Only a .json file that is one array is read whole: it cannot be read otherwise. The arguments are those of
    `read_table`. JSON keys that a row lacks are None; with `columns` None, a key that first turns up in a later batch
    is a column from there on.

    Raises what `read_table` does, at the first row or where it is met.
    """
    path = Path(path)
    with _plain_errors(path):
        kind = _kind(path)
        if kind == ".parquet":
            for arrow_batch in _parquet_batches(path, columns, batch_size):
                yield arrow_batch.to_pydict()
            return
        rows: Iterator[dict[str, Any]]
        if kind == ".txt":
            rows = ({"text": line.rstrip("\r\n")} for _, line in _lines(path) if line.strip())
        elif kind in _JSON_LINES:
            rows = _json_rows(path, kind)
        else:
            rows = _csv_rows(path, _delimiter(path, delimiter, kind, quote_char), quote_char, skip_lines, columns)
        yield from _batched(_checked(path, rows, columns), columns, batch_size)


def text_lines(path: str | Path) -> Iterator[str]:
    """Yield the lines of a text file without their ends, blank ones too. Raises what `read_table` does."""
    with _plain_errors(path := Path(path)):
        for _, line in _lines(path):
            yield line.rstrip("\r\n")


def table_features(
    path: str | Path, *, delimiter: str | None = None, quote_char: str = '"', skip_lines: int = 0
) -> Features | None:
    """Return the features of a table without reading it whole; None for JSON, which only its rows tell.

    Raises what `read_table` does.
    """
    from datasets import Features, Value  # as in `read_table`

    path = Path(path)
    with _plain_errors(path):
        kind = _kind(path)
        if kind == ".parquet":
            first_rows = next(_parquet_batches(path, None, 1))
            with _usable_columns(path):
                return Features.from_arrow_schema(first_rows.schema)
        options: dict[str, Any] = {"delimiter": delimiter, "quote_char": quote_char, "skip_lines": skip_lines}
        first = next(iter_rows(path, batch_size=1, **options))
        return None if kind in _JSON_LINES else Features({name: Value("string") for name in first})


# --- what a file is, and what can go wrong with any ----------------------------------------------------------


def table_stem(name: str) -> str | None:
    """Return a table's name without its ending (`train` for train.csv.gz); None if `name` is no table's."""
    path = Path(name)
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    zipped = plain != path
    suffix = plain.suffix.lower()
    known = suffix in TABLE_SUFFIXES and suffix != ".gz" and not (zipped and suffix == ".parquet")
    return plain.stem if known else None


def _kind(path: Path) -> str:
    if table_stem(path.name) is not None:
        return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
    if path.suffix.lower() == ".txt":
        return ".txt"
    valid = ", ".join((*TABLE_SUFFIXES[:-1], ".txt"))
    raise DataError(f"{path}: no known kind of table; valid endings: {valid}, and .gz behind a text format's")


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        siblings = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        raise DataError(f"{path}: there is no such file; {did_you_mean(path.name, siblings)}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is damaged or no gzip file: {_one_line(error)}") from error
    except OSError as error:
        if error.errno in STORAGE_ERRNOS:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
        # Arrow reports damage as an OSError of its own, which has no number.
        reason = f"cannot be read: {error.strerror}" if error.errno else f"is damaged: {_one_line(error)}"
        raise DataError(f"{path}: {reason}") from error
    except MemoryError:
        raise
    except pa.ArrowException as error:
        raise DataError(f"{path}: is damaged or not what its ending says: {_one_line(error)}") from error


@contextmanager
def _usable_columns(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # `datasets` believes what a Parquet file says of its own columns, whatever that is
        raise DataError(f"{path}: holds columns that cannot be used: {_one_line(error)}") from error


def _one_line(error: BaseException | str) -> str:
    return " ".join(str(error).split())[:300]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line); decoding line by line is what lets an error name the line."""
    with open(path, "rb") as file:
        unzipped: Any = gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file
        # An array of JSON may stand on one line; anything else that never ends would fill the memory.
        most = -1 if _kind(path) == ".json" else MAX_LINE + 1
        for number, line in enumerate(iter(lambda: unzipped.readline(most), b""), start=1):
            if 0 < most == len(line):
                raise DataError(f"{path}: line {number} is longer than {MAX_LINE >> 20} MB; rows stand on lines")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: line {number} is not UTF-8 text (byte {error.start + 1} of the line); "
                    "save the file as UTF-8"
                ) from error


def _checked(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Pass rows on; at the end, complain if there were none, or none with one of `columns`."""
    missing, count = set(columns or ()), 0
    known: dict[str, None] = {}
    for row in rows:
        if missing:
            missing.difference_update(row)
            known.update(dict.fromkeys(row))
        count += 1
        yield row
    if not count:
        raise DataError(f"{path}: holds no rows")
    if missing:
        _require(path, columns, [name for name in known if name not in missing])


def _require(path: Path, columns: Sequence[str] | None, known: Sequence[str]) -> None:
    for column in columns or ():
        if column not in known:
            raise DataError(f"{path}: no column {column!r}; {separator_hint(known) or did_you_mean(column, known)}")


def separator_hint(columns: Sequence[str]) -> str:
    """Return what to do about a table whose only column is a whole row of another separator's fields, else ""."""
    held = [character for character in ";\t|," if len(columns) == 1 and character in columns[0]]
    return f"if {held[0]!r} separates its fields, set data.delimiter: {json.dumps(held[0])}" if held else ""


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


def _json_table(path: Path, batches: Iterable[Batch]) -> pa.Table:
    # All values of a column at once: the first batch alone may hold only integers, or only nulls.
    values: Batch = {}
    count = 0
    for batch in batches:
        size = len(next(iter(batch.values()), []))
        for name, column in batch.items():
            values.setdefault(name, [None] * count).extend(column)  # a key may be new here
        count += size
    arrays = {}
    for name in list(values):
        column = values.pop(name)  # frees the Python values column by column
        try:
            arrays[name] = pa.array(column)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{path}: column {name!r} mixes kinds of values ({_one_line(error)}); write them all the same way"
            ) from error
    return pa.table(arrays)


# --- one reader per kind of file -----------------------------------------------------------------------------


def _delimiter(path: Path, delimiter: str | None, kind: str, quote_char: str) -> str:
    chosen = _CSV_DELIMITERS[kind] if delimiter is None else delimiter.replace("\\t", "\t")
    if len(chosen) != 1 or chosen in "\r\n" or chosen == quote_char:
        raise DataError(f"{path}: data.delimiter {chosen!r} is not one character other than the quote character")
    if quote_char and (len(quote_char) != 1 or quote_char in "\r\n"):
        raise DataError(f'{path}: data.quote_char {quote_char!r} is not one character, or "" for none')
    return chosen


def _csv_rows(
    path: Path, delimiter: str, quote_char: str, skip_lines: int, columns: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    # Python's reader, not Arrow's: it notices a quote that is never closed, and knows the line of every row.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))
    lines = _lines(path)
    quoting: dict[str, Any] = {"quotechar": quote_char} if quote_char else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True, **quoting)
    header: list[str] = []
    skipped = 0
    while True:
        start = reader.line_num + skipped + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}: the row that starts on line {start} cannot be read ({error}); close every quote and double "
                'the quotes inside a quoted field, or set data.quote_char: "" if quotes are ordinary characters'
            ) from error
        if fields is None:
            break
        if not header:
            if fields:
                header = _header(path, fields, columns)
                skipped = sum(1 for _, _line in zip(range(skip_lines), lines, strict=False))
            continue
        if not fields or (len(fields) == 1 < len(header) and not fields[0].strip()):
            continue  # a blank line
        if len(fields) != len(header):
            if hint := separator_hint(header):
                raise DataError(f"{path}: has one column ({_one_line(header[0])}); {hint}")
            held = _DELIMITER_NAMES.get(delimiter, repr(delimiter))
            raise DataError(
                f"{path}: line {start} has {len(fields)} field{'s' * (len(fields) != 1)}, the header has {len(header)} "
                f"({_one_line(', '.join(header))}); quote fields that hold a {held}"
            )
        yield dict(zip(header, fields, strict=True))
    if not header:
        raise DataError(f"{path}: is empty")


def _check_width(path: Path, columns: int) -> None:
    if columns > MAX_COLUMNS:
        raise DataError(f"{path}: has {columns} columns, and no more than {MAX_COLUMNS} are read; leave some out")


def _header(path: Path, names: list[str], columns: Sequence[str] | None) -> list[str]:
    if not all(name.strip() for name in names):
        named = _one_line(", ".join(map(repr, names)))
        raise DataError(
            f"{path}: the header has a column without a name ({named}); name it or remove it "
            "(pandas writes one for its index: to_csv(index=False))"
        )
    _check_width(path, len(names))
    longest = max(map(len, names))
    if longest > MAX_NAME:
        raise DataError(f"{path}: the header has a name of {longest} characters; is its first line the header?")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: the header names column {twice[0]!r} more than once; rename one of them")
    _require(path, columns, names)
    return names


def _json_rows(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    lines = _lines(path)
    shape = JsonShape()
    for number, line in lines:
        if not line.strip():
            continue
        if kind == ".json" and line.lstrip().startswith("["):
            whole = _json_value(path, line + "".join(rest for _, rest in lines), f"the array from line {number}")
            for row, item in enumerate(whole):
                yield _json_object(path, item, f"row {row}", shape)
            return
        yield _json_object(path, _json_value(path, line, f"line {number}"), f"line {number}", shape)


def _json_value(path: Path, text: str, what: str) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text and "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {what} is not valid JSON: {_one_line(error)}") from error
    return value


def _json_object(path: Path, value: Any, what: str, shape: JsonShape) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f'{path}: {what} is no object; every row must look like {{"text": "...", "label": "..."}}, on one line'
        )
    problem = shape.add(value)
    if problem:
        raise DataError(f"{path}: {what} {problem}")
    return value


def _parquet_batches(path: Path, columns: Sequence[str] | None, batch_size: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        # Arrow ignores columns that the file lacks.
        _check_width(path, file.metadata.num_columns)
        _require(path, columns, file.schema_arrow.names)
        if not file.metadata.num_rows:
            raise DataError(f"{path}: holds no rows")
        for batch in file.iter_batches(batch_size, columns=None if columns is None else list(columns)):
            batch.validate(full=True)  # text that is not UTF-8 would only fail much later
            yield batch if columns is None else batch.select(list(columns))
