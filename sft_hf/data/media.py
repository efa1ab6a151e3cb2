"""Data whose rows name files: folders of images sorted into classes, and tables with a column of paths.

    train/cat/1.jpg                    cat/1.jpg
    train/dog/2.jpg        or          dog/2.jpg         (validation and test are then held out)
    test/cat/3.jpg

A class is called like its folder. Nothing is opened here: a row holds a path, or the bytes of a file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sft_hf.data.files import table_stem
from sft_hf.errors import DataError, first_few
from sft_hf.filesystem import sha256_of

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

MEDIA_KEYS = ("data.image_column", "data.audio_column")
"""Keys of a recipe that name a column of files; text in such a column is a path, relative to its table's folder."""

METADATA, FILE_NAME = "metadata", "file_name"
"""The table in a folder of files, and its column of paths, as `datasets` has them in its image and audio folders."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")

LISTED = 20  # rows left out that a note names

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
_DIGITS = re.compile(r"([0-9]+)")

AnyDataset = TypeVar("AnyDataset", "Dataset", "IterableDataset")


def find_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the image files below a folder, and the files with other endings: see `find_files`."""
    return find_files(folder, IMAGE_SUFFIXES)


def find_files(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Return the files below a folder, at any depth, with and without these endings; each sorted by path.

    Hidden files and folders are passed over, links to folders followed, a circle of links not.
    """
    chosen: list[Path] = []
    others: list[Path] = []
    seen: set[str] = set()
    for top, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        for name in files:
            if not name.startswith("."):
                kind = chosen if name.lower().endswith(suffixes) else others
                kind.append(Path(top, name))
    return sorted(chosen), sorted(others)


def image_folder_splits(folder: Path, split_names: Sequence[str]) -> dict[str, Path] | None:
    """Return {split: its folder of classes}, {"": folder} where the classes lie in `folder` itself, None for neither.

    It has splits if one of its folders is called like one of `split_names`. Raises DataError for a layout in which
    the classes cannot be told.
    """
    folders = _subfolders(folder)
    if any(path.name in split_names for path in folders):
        return {path.name: path for path in folders}
    holding = [path for path in folders if _holds_images(path)]
    if not holding:
        if find_images(folder)[0]:
            raise DataError(
                f"{folder}: holds images, but not in one folder per class; lay it out as <class>/*.jpg or "
                "train/<class>/*.jpg, or name a table with a column of paths"
            )
        return None
    if not any(path.suffix.lower() in IMAGE_SUFFIXES for child in holding for path in child.iterdir()):
        names = ", ".join(path.name for path in holding[:5])
        raise DataError(
            f"{folder}: the images lie two folders deep, so {names} could be splits or classes; name the folder of "
            "training images by data.train_split, or data.name the folder that holds the classes"
        )
    return {"": folder}


def read_image_folder(folder: Path, image_column: str, label_column: str) -> tuple[Dataset, list[str]]:
    """Return the images below the folders of `folder` as rows of a path and a class, and notes on what was left out.

    Rows are sorted by path; classes are in natural order (class2 before class10). Raises DataError for none.
    """
    from datasets import ClassLabel, Dataset, Features, Value  # half a second, which `predict` need not wait for

    classes = sorted(_subfolders(folder), key=lambda path: natural_key(path.name))
    paths: list[Path] = []
    labels: list[int] = []
    names: list[str] = []
    empty: list[str] = []
    others: list[Path] = []
    for path in classes:
        images, rest = find_images(path)
        others += rest
        if not images:
            empty.append(path.name)
            continue
        labels += [len(names)] * len(images)
        names.append(path.name)
        paths += images
    if not names:
        raise DataError(f"{folder}: no images in folders named after their classes ({', '.join(IMAGE_SUFFIXES)})")
    # Sorted by path, not class by class: "b" and "B" or "2" and "10" stand in another order there.
    order = sorted(range(len(paths)), key=lambda row: paths[row])
    features = Features({image_column: Value("string"), label_column: ClassLabel(names=names)})
    table = Dataset.from_dict(
        {image_column: [str(paths[row]) for row in order], label_column: [labels[row] for row in order]}, features
    )
    return table, _left_out(folder, empty, others)


def file_name(value: Any) -> str:
    """Return the name of the file that a cell of images or recordings stands for, "" for bytes without a name."""
    if isinstance(value, dict):
        value = value.get("path")
    return os.path.basename(value) if isinstance(value, (str, os.PathLike)) else ""


def natural_key(name: str) -> list[Any]:
    """Sort key that puts numbers by value: "2" before "10", "class2" before "class10"."""
    parts = _DIGITS.split(name)
    return [[(int(part), part) if index % 2 else (part.lower(), part) for index, part in enumerate(parts)], name]


def metadata_tables(folder: Path, train_split: str) -> dict[str, Path]:
    """Return {split: its table} of a folder of files with metadata.csv (.tsv, .jsonl, ...) in the folder of each split.

    With one in `folder` itself and none below, that is the train split.
    """
    found: dict[str, Path] = {}
    for place, name in [*((path, path.name) for path in _subfolders(folder)), (folder, train_split)]:
        tables = sorted(path for path in place.iterdir() if table_stem(path.name) == METADATA and path.is_file())
        if tables and not (found and place == folder):
            found[name] = tables[0]
    return found


def file_column(names: Iterable[str], columns: Sequence[str]) -> dict[str, str]:
    """Return {as it is called: as it should be called} of a table's column of paths; {} where that is no other name.

    In a metadata.csv it is called `file_name`.
    """
    names = set(names)
    other = len(columns) == 1 and columns[0] not in names and FILE_NAME in names
    return {FILE_NAME: columns[0]} if other else {}


def content_digest(cell: Any) -> str | None:
    """Return the SHA-256 of the file that a cell names or holds; None where there is none that can be read."""
    if isinstance(cell, dict):
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return hashlib.sha256(cell).hexdigest()
    if not isinstance(cell, (str, os.PathLike)) or not os.path.isfile(cell):
        return None
    try:
        return sha256_of(Path(cell))
    except OSError:
        return None


def absolute_paths(table: Dataset, columns: Sequence[str], folder: Path) -> Dataset:
    """Return the table with the paths in these columns made absolute; other values stay as they are."""
    from datasets import Value  # as in `read_image_folder`

    for column in columns:
        feature = table.features.get(column)
        if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
            values = [absolute_path(value, folder) for value in table.with_format(None)[column]]
            rest = table.remove_columns(column)  # nothing, of a table of names alone, which no column can be added to
            table = rest.add_column(column, values) if rest.column_names else type(table).from_dict({column: values})
    return table


def absolute_path(value: Any, folder: Path) -> Any:
    """Return a path absolute, relative to `folder`; what is none (missing, a URL, bytes) as it is."""
    if not isinstance(value, str) or not value.strip() or URL.match(value):
        return value
    return str(folder / value)


def undecoded(data: AnyDataset) -> AnyDataset:
    """Return the data with images and recordings left as they were encoded: `datasets` would open them unchecked."""
    from datasets import Audio, Image  # as in `read_image_folder`

    for name, feature in (data.features or {}).items():
        for kind in (Audio, Image):
            if isinstance(feature, kind) and feature.decode:
                data = data.cast_column(name, kind(decode=False))
    return data


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _holds_images(folder: Path) -> bool:
    return bool(find_images(folder)[0])


def _left_out(folder: Path, empty: list[str], others: list[Path]) -> list[str]:
    notes = []
    if empty:
        notes.append(f"{folder}: no class, because without images: {first_few(empty, 10)}")
    if others:
        names = [str(path.relative_to(folder)) for path in others]
        notes.append(
            f"{folder}: {len(others)} file(s) left out, because their ending is no image's: {first_few(names, 10)}"
        )
    return notes


def skipped_rows(where: str, problems: Sequence[str], total: int) -> list[str]:
    """Return the note that says how many rows of a split were left out, and lists them; none if there are none."""
    if not problems:
        return []
    more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    listed = "; ".join(problems[:LISTED])
    return [f"{where}: {len(problems)} of {total} rows skipped (data.on_bad_row): {listed}{more}"]
