"""Fingerprints of splits: SHA-256 digests of the content of the rows, independent of their location."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_hf.data.columns import column_values
from sft_hf.data.loading.roles import ROW_ID

if TYPE_CHECKING:
    from datasets import Dataset

HEAD = 1 << 16  # bytes of a file that are read


def fingerprint(split: Dataset, columns: Sequence[str], files: Sequence[str] = ()) -> str:
    """Return the SHA-256 of a split's rows, in order, as hexadecimal digits.

    Args:
        columns: the columns that training reads.
        files: those of `columns` that name files. Of a file, its name, its folder's name, its size and its first 64 KiB
            are hashed; hashing all of it would take as long as a pass over the data.

    The storage format of the rows and the location of their folder have no effect.
    """
    digest = hashlib.sha256()
    for name in columns:
        values = (_file(value) for value in column_values(split, name)) if name in files else column_values(split, name)
        digest.update(f"column {name!r}\n".encode())
        for value in values:
            digest.update(repr(value).encode("utf-8", errors="surrogatepass") + b"\n")
    if ROW_ID in split.column_names:
        digest.update(repr(list(column_values(split, ROW_ID))).encode())
    return digest.hexdigest()


def _file(value: Any) -> Any:
    """Return the content to hash of a cell that names a file or holds its bytes."""
    if isinstance(value, dict):
        part = value.get("start"), value.get("end")
        if part != (None, None):
            return _file({**value, "start": None, "end": None}), part
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return len(value), hashlib.sha256(value).hexdigest()
    if not isinstance(value, str):
        return value
    try:
        if os.path.exists(value) and not os.path.isfile(value):  # e.g. a pipe; such rows are skipped, like those below
            return Path(value).parts[-2:], "no file"
        with open(value, "rb") as file:
            return Path(value).parts[-2:], os.fstat(file.fileno()).st_size, hashlib.sha256(file.read(HEAD)).hexdigest()
    except OSError as error:
        return Path(value).parts[-2:], error.errno
    except ValueError:  # e.g. a NUL character in its name
        return value
