"""Parquet and Arrow files: their columns have types, and only the required columns are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from sft_hf.core.errors import DataError
from sft_hf.data.tables.archives import split_member, whole_bytes
from sft_hf.data.tables.table import Table, check_width


def columnar_batches(table: Table, kind: str, batch_size: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, at most `batch_size` at a time. Raises DataError; ArrowException if it is corrupt."""
    source: Any = table.path if split_member(table.path) is None else whole_bytes(table.path)
    with ExitStack() as stack:
        names, batches = (_parquet if kind == ".parquet" else _arrow)(table, source, batch_size, stack)
        empty = True
        for batch in batches:
            if not batch.num_rows:
                continue
            batch.validate(full=True)  # otherwise invalid UTF-8 would only fail much later
            empty = False
            yield batch if names is None else batch.select(names)
        if empty:
            raise DataError(f"{table.path}: holds no rows")


def _chosen(table: Table, names: Sequence[str]) -> list[str] | None:
    """Return the columns to read; None for all, in which case names may occur twice."""
    check_width(table.path, len(names))
    chosen = table.kept(names)
    return None if chosen == list(names) else chosen


def _parquet(
    table: Table, source: Any, size: int, stack: ExitStack
) -> tuple[list[str] | None, Iterator[pa.RecordBatch]]:
    import pyarrow.parquet as pq

    file = stack.enter_context(pq.ParquetFile(source))
    check_width(table.path, file.metadata.num_columns)
    names = _chosen(table, file.schema_arrow.names)
    return names, file.iter_batches(size, columns=names)


def _arrow(table: Table, source: Any, size: int, stack: ExitStack) -> tuple[list[str] | None, Iterator[pa.RecordBatch]]:
    """Read a file or a stream of Arrow batches, as written by `datasets` and Feather."""
    import pyarrow.ipc as ipc

    mapped = pa.memory_map(str(source)) if isinstance(source, Path) else pa.BufferReader(source.getvalue())
    opened = stack.enter_context(mapped)
    is_file = opened.read(6) == b"ARROW1"
    opened.seek(0)
    reader = stack.enter_context(ipc.open_file(opened) if is_file else ipc.open_stream(opened))
    names = _chosen(table, reader.schema.names)
    batches = (reader.get_batch(place) for place in range(reader.num_record_batches)) if is_file else iter(reader)
    return names, _slices(table, batches, size)


def _slices(table: Table, batches: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    try:
        for batch in batches:
            yield from (batch.slice(start, size) for start in range(0, batch.num_rows, size))
    except pa.ArrowMemoryError as error:  # a corrupt file may request any number of bytes
        raise DataError(f"{table.path}: is damaged, or too large for the memory: {error}") from error
