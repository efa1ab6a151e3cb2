"""Atomic writes, and errors of the file system."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft_hf.core.errors import StorageError, did_you_mean
from sft_hf.core.fail_points import reach

WINDOWS = os.name == "nt"

# A full, failing or read-only disk: no change of the recipe would help.
STORAGE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG})


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failure of the file system into StorageError (exit 74)."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
    except Exception as error:  # safetensors wraps the operating system's error in its own exception
        text = str(error)
        if any(f"os error {code}" in text for code in STORAGE_ERRNOS):
            raise StorageError(f"{path}: cannot be written: {text}") from error
        raise


def aside(target: Path) -> Path:
    """Return the temporary name of `target` while it is written."""
    return target.with_name(f".{target.name}.tmp")


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically: readers see the old text or the new one, also after a crash."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside(path), "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            reach(path.name)
            file.flush()
            os.fsync(file.fileno())
        reach(path.name)
        os.replace(aside(path), path)
        reach(path.name)
        sync(path.parent)


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON, atomically as `write_text` does."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk.

    Windows can flush only files that are open for writing, and cannot open folders; its file system journals their
    entries.
    """
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def committed_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `target` once all its files are on disk.

    An existing `target` stays intact until then. Raises StorageError.
    """
    folder, old = aside(target), target.with_name(f".{target.name}.old")
    with storage_errors(target):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        reach(target.name)
        try:
            yield folder
            for path in [*sorted(folder.rglob("*")), folder]:
                sync(path)
                reach(target.name)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.rename(target, old)
            os.rename(folder, target)
            reach(target.name)
            sync(target.parent)
            reach(target.name)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def free_bytes(path: Path) -> int:
    """Return the free bytes on the file system of `path`, which need not exist."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def human_bytes(count: float) -> str:
    """Format a size in bytes, in powers of 1000.

    >>> human_bytes(1_530_000_000)
    '1.5 GB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def remove_leftovers(folder: Path) -> None:
    """Delete leftovers of interrupted writes in a folder."""
    for pattern in (".*.tmp", ".*.old"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def no_such_file(path: str | Path) -> str:
    """Return a hint for a missing file: the closest name in its folder, and the folder's content."""
    if os.path.islink(path):
        return f"is a link to {os.readlink(path)}, which does not exist"
    folder = Path(path).parent
    if not folder.is_dir():
        return f"no such file; the folder does not exist either ({folder})"
    hint = did_you_mean(Path(path).name, sorted(os.listdir(folder)), listing="The folder holds")
    return f"no such file; {hint if any(folder.iterdir()) else 'the folder is empty'}"
