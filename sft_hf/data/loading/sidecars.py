"""Labels in files next to the images, as in WebDataset: 17.jpg with 17.cls, or 17.json with a label in it.

Files belong together if they have the same folder and the same name up to the first dot.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_hf.core.errors import DataError, did_you_mean, first_few
from sft_hf.data.findings import counted

if TYPE_CHECKING:
    from datasets import Dataset

ENDINGS = (".cls", ".json")
MAX_BYTES = 2**20  # of a label file
LOOK_AT = 20  # images that are checked for label files

_KEYS = ("label", "cls", "class", "category")


def is_sidecar(path: Path) -> bool:
    """Whether a file has the extension of a label file."""
    return path.name.lower().endswith(ENDINGS)


def has_labels(pictures: Sequence[Path]) -> bool:
    """Whether there are label files next to the images; only the first images are checked."""
    return any(_sidecar_of(path) is not None for path in pictures[:LOOK_AT])


def read(folder: Path, pictures: Sequence[Path], image_column: str, label_column: str) -> tuple[Dataset, list[str]]:
    """Return the images that have a label as rows, in order, and notes. Raises DataError for an invalid label."""
    from datasets import Dataset

    rows: dict[str, list[Any]] = {image_column: [], label_column: []}
    without: list[str] = []
    for path in pictures:
        beside = _sidecar_of(path)
        if beside is None:
            without.append(str(path.relative_to(folder)))
            continue
        rows[image_column].append(str(path))
        rows[label_column].append(_label(beside, label_column))
    several = any(isinstance(label, list) for label in rows[label_column])
    if several:
        rows[label_column] = [label if isinstance(label, list) else [label] for label in rows[label_column]]
    notes = [f"{folder}: labels of {len(rows[image_column])} pictures are in the files next to them (.cls, .json)"]
    if without:
        notes.append(f"{folder}: {counted(len(without), 'picture')} without a label left out: {first_few(without, 10)}")
    return Dataset.from_dict(rows), notes


def _sidecar_of(picture: Path) -> Path | None:
    key = picture.name.split(".")[0]
    return next((path for ending in ENDINGS if (path := picture.with_name(key + ending)).is_file()), None)


def _label(path: Path, label_column: str) -> str | list[str]:
    try:
        text = path.read_bytes()[:MAX_BYTES].decode("utf-8-sig").strip()
        value = json.loads(text) if path.suffix.lower() == ".json" else text
    except ValueError as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from error
    if isinstance(value, dict):
        key = next((key for key in (label_column, *_KEYS) if key in value), None)
        if key is None:
            raise DataError(f"{path}: no key {label_column!r} (data.label_column); {did_you_mean(label_column, value)}")
        value = value[key]
    if isinstance(value, list) and all(isinstance(part, (str, int)) for part in value):
        return [str(part) for part in value]
    if not isinstance(value, (str, int)) or not str(value).strip():
        raise DataError(f"{path}: {value!r:.80} is not a label")
    return str(value)
