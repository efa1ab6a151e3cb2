"""Checks of the data before training: rows shared by two splits, and rows with conflicting labels."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sft_hf.data.columns import column_values
from sft_hf.data.findings import EXAMPLES, Finding

if TYPE_CHECKING:
    from datasets import Dataset


def find_duplicates(
    splits: Mapping[str, Dataset],
    content: Sequence[str],
    label: str | None = None,
    files: Sequence[str] = (),
    held_out: Collection[str] = (),
) -> list[Finding]:
    """Return a warning for each pair of splits that share inputs, and for inputs in train with conflicting labels.

    Scores on rows seen in training do not reflect performance on new data. Texts are equal if they differ only in
    whitespace, case and Unicode form (NFC, NFD); files are equal if all bytes are equal.

    Args:
        splits: rows by role; train, validation and test, in this order.
        content: the columns that make up the input.
        label: the column that must not differ between equal inputs.
        files: those of `content` that contain paths or bytes of files.
        held_out: roles whose rows were held out of train by this program, so that the user cannot edit them separately.
    """
    keys = _keys(splits, content, files)
    findings: list[Finding] = []
    roles = list(splits)
    for later in range(1, len(roles)):
        for earlier in range(later):
            remedy = f"remove them from {roles[later]}"
            if roles[later] in held_out:
                example = "" if files else f" (in pandas: df.drop_duplicates({list(content)}))"
                remedy = f"remove the duplicates from the data, of which {roles[later]} is a part{example}"
            findings += _shared(roles[earlier], roles[later], keys, splits, remedy)
    if label is not None and "train" in splits:
        findings += _contradictions(keys["train"], splits["train"], label)
    return findings


def _shared(
    first: str, second: str, keys: Mapping[str, list[Any]], splits: Mapping[str, Dataset], remedy: str
) -> list[Finding]:
    where = {key: row for row, key in reversed(list(enumerate(keys[first]))) if key is not None}
    pairs = [(where[key], row) for row, key in enumerate(keys[second]) if key in where]
    if not pairs:
        return []
    named = ", ".join(
        f"{_number(splits[second], row)} (is {first} row {_number(splits[first], other)})"
        for other, row in pairs[:EXAMPLES]
    )
    share = f"{max(len(pairs) / len(keys[second]), 0.001):.1%}"
    return [
        Finding(
            "warning",
            f"{len(pairs)} of {len(keys[second])} {second} rows ({share}) are in {first} too: rows {named}"
            f"{', ...' if len(pairs) > EXAMPLES else ''}; they inflate the {second} score; {remedy}",
        )
    ]


def _contradictions(keys: list[Any], train: Dataset, label: str) -> list[Finding]:
    seen: dict[Any, tuple[int, str]] = {}
    found: dict[Any, tuple[int, int]] = {}
    for row, (key, value) in enumerate(zip(keys, column_values(train, label), strict=True)):
        shown = unicodedata.normalize("NFC", repr(value))
        first = seen.setdefault(key, (row, shown))
        if key is not None and first[1] != shown:
            found.setdefault(key, (first[0], row))
    if not found:
        return []
    named = ", ".join(
        f"{_number(train, one)} and {_number(train, other)}" for one, other in list(found.values())[:EXAMPLES]
    )
    return [
        Finding(
            "warning",
            f"{len(found)} training inputs are duplicated with conflicting values of {label!r}: rows {named}"
            f"{', ...' if len(found) > EXAMPLES else ''}; one of each must be wrong",
        )
    ]


def _number(split: Dataset, row: int) -> int:
    """Return the 0-based position of a row in its source."""
    from sft_hf.data.loading.roles import ROW_ID  # imports `datasets` (half a second); not needed by `predict`

    return int(split[row][ROW_ID]) if ROW_ID in split.column_names else row


# --- keys --------------------------------------------------------------------------------------------------------


def _keys(splits: Mapping[str, Dataset], content: Sequence[str], files: Sequence[str]) -> dict[str, list[Any]]:
    """Return a key for every row of every split, shared by equal rows; None for a unique row.

    Files are only read if their size is not unique.
    """
    columns = {(role, name): list(column_values(split, name)) for role, split in splits.items() for name in content}
    sizes = {
        place: [_size(value) if place[1] in files else None for value in values] for place, values in columns.items()
    }
    often = Counter(size for values in sizes.values() for size in values if size is not None)
    keys: dict[str, list[Any]] = {}
    for role, split in splits.items():
        parts = []
        for name in content:
            values, lengths = columns[role, name], sizes[role, name]
            if name in files:
                parts.append(
                    [
                        _digest(value) if length is not None and often[length] > 1 else None
                        for value, length in zip(values, lengths, strict=True)
                    ]
                )
            else:
                parts.append([_plain(value) for value in values])
        keys[role] = (
            [None if None in row else row for row in zip(*parts, strict=True)] if parts else [None] * len(split)
        )
    return keys


def _plain(value: Any) -> bytes:
    text = " ".join(unicodedata.normalize("NFC", str(value)).split()).casefold()
    return hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()


def _held(value: Any) -> Any:
    return value.get("bytes") or value.get("path") if isinstance(value, dict) else value


def _part(value: Any) -> bytes:
    """Return the part of a file that a cell refers to, unless it is the whole file."""
    start, end = (value.get("start"), value.get("end")) if isinstance(value, dict) else (None, None)
    return b"" if start is None and end is None else repr((start, end)).encode()


def _size(value: Any) -> int | None:
    value = _held(value)
    if isinstance(value, bytes):
        return len(value)
    try:
        return os.stat(value).st_size
    except (OSError, TypeError, ValueError):
        return None


def _digest(value: Any) -> bytes | None:
    held = _held(value)
    try:
        content = (
            hashlib.blake2b(held, digest_size=16).digest()
            if isinstance(held, bytes)
            else _file_digest(held, os.stat(held).st_mtime_ns)
        )
    except OSError:
        return None
    return hashlib.blake2b(content + _part(value), digest_size=16).digest()


@lru_cache(maxsize=1024)  # many rows may be parts of one file
def _file_digest(path: str, changed: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
