"""Folders of images: which files are images, and which folders are splits and classes.

    train/cat/1.jpg                    cat/1.jpg                                train/1.jpg  train/1.cls
    train/dog/2.jpg        or          dog/2.jpg  (held-out splits)     or      train/2.jpg  train/2.json
    test/cat/3.jpg                                                              (WebDataset; see `sidecars`)

The name of a class is the name of its folder. A file is an image if the reader can open it: known extensions are
trusted, other files are inspected. Test images outside of class folders are unlabeled: their label is None.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_hf.core.errors import DataError, first_few
from sft_hf.data.findings import counted
from sft_hf.data.loading import sidecars
from sft_hf.data.loading.split_names import find_split

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".ico", ".tga", ".svg", ".svgz"),
)
"""Extensions of image files, which are not inspected. SVG is included so that it is reported by name."""

SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")

LOOK_AT = 50  # files of a folder that are inspected to determine its content

_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True)
class Listing:
    """The files below a folder, at any depth; each list is sorted by path."""

    pictures: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    system: list[Path] = field(default_factory=list)
    """Files left by the system (Thumbs.db, ._1.jpg), and hidden files."""


@dataclass(frozen=True)
class Layout:
    """The image folder of each split: {split: folder}, with "" for a folder without splits."""

    splits: dict[str, Path]
    notes: list[str] = field(default_factory=list)


class _Folder:
    """A folder, and lazily computed properties of its images."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name

    @cached_property
    def folders(self) -> list[_Folder]:
        return [_Folder(path) for path in subfolders(self.path)]

    @cached_property
    def pictures(self) -> list[Path]:
        """Some images directly in the folder; at most `LOOK_AT` files with unknown extensions are inspected."""
        with os.scandir(self.path) as entries:
            names = sorted(entry.name for entry in entries if not _is_system_file(entry.name) and entry.is_file())
        known = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
        chosen = known or [name for name in names[:LOOK_AT] if _is_picture(self.path / name)]
        return [self.path / name for name in chosen[:LOOK_AT]]

    @cached_property
    def holds_pictures(self) -> bool:
        return bool(self.pictures) or any(folder.holds_pictures for folder in self.folders)

    @cached_property
    def has_classes(self) -> bool:
        return any(folder.holds_pictures for folder in self.folders)

    @cached_property
    def has_labels_beside(self) -> bool:
        shard = re.compile(re.escape(self.name) + r"[-_.]?\d[-\w]*")
        shards = self.folders if all(shard.fullmatch(folder.name) for folder in self.folders) else []
        return any(sidecars.has_labels(folder.pictures) for folder in (self, *shards))

    @property
    def is_labelled(self) -> bool:
        return self.has_classes or self.has_labels_beside


def find_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images below a folder, and the other files except system files."""
    listing = list_pictures(folder)
    return listing.pictures, listing.others


def list_pictures(folder: Path, deep: bool = True) -> Listing:
    """Return the files below a folder by kind; with `deep=False`, only those directly in it.

    Hidden and system folders are skipped; links to folders are followed, but not in cycles.
    """
    found = Listing()
    seen: set[str] = set()
    for top, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        visit = deep and real not in seen
        folders[:] = sorted(name for name in folders if not _is_system_folder(name)) if visit else []
        if real in seen:
            continue
        seen.add(real)
        for name in files:
            path = Path(top, name)
            kind = found.system if _is_system_file(name) else found.pictures if _is_picture(path) else found.others
            kind.append(path)
    return Listing(*(sorted(paths, key=_parts) for paths in (found.pictures, found.others, found.system)))


def subfolders(folder: Path) -> list[Path]:
    """Return the subfolders of a folder, sorted, without hidden and system folders."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry) for entry in entries if not _is_system_folder(entry.name) and entry.is_dir())


def image_layout(folder: Path, train_split: str, split_names: Collection[str]) -> Layout | None:
    """Return the splits of a folder of images; None if neither folders nor files define classes.

    A folder with a name in `split_names` is a split. If its images are not in class folders and there are other image
    folders next to it, it is a class with that name. Raises DataError if both are possible.
    """
    root, notes = _unwrapped(_Folder(folder), split_names)
    called = [child for child in root.folders if child.name in split_names]
    classes = [child for child in root.folders if child.name not in split_names and child.holds_pictures]
    if called and classes and not any(child.is_labelled for child in called):
        if any(child.name not in (train_split, "train") and _may_be_unlabelled(child) for child in called):
            raise DataError(
                f"{root.path}: test could be a class, like {classes[0].name}, or pictures without labels; rename it if "
                "it is a class, else move the classes into a folder called train"
            )
        names = first_few([child.name for child in called], 3)
        notes.append(f"{root.path}: {names} is read as a class, since it has no class folders, like {classes[0].name}")
        return Layout({"": root.path}, notes)
    if called:
        known = {child.name: child for child in root.folders}
        train = find_split(train_split, known)
        if train is not None and not known[train].is_labelled:
            return None
        found = {name: child.path for name, child in known.items()}
        if train is not None and len(known[train].folders) == 1:  # seg_train/seg_train/<class>
            inner = {name: _unwrapped(child, ()) for name, child in known.items()}
            found = {name: child.path for name, (child, _) in inner.items()}
            notes += [note for _, said in inner.values() for note in said]
        return Layout(found, notes)
    if root.has_labels_beside and not classes:
        return Layout({"": root.path}, notes)
    if not classes:
        return None
    if not any(child.pictures for child in classes):
        names = ", ".join(child.name for child in classes[:5])
        raise DataError(
            f"{root.path}: the images are two folders deep, so {names} could be splits or classes; name the folder of "
            "training images by data.train_split, or data.name the folder that holds the classes"
        )
    return Layout({"": root.path}, notes)


def one_flat_folder(folder: Path) -> bool:
    """Whether all images are in one folder without subfolders of images; it cannot be the only class."""
    holding = [child for child in _Folder(folder).folders if child.holds_pictures]
    return len(holding) == 1 and not holding[0].has_classes


def _may_be_unlabelled(folder: _Folder) -> bool:
    return folder.name.lower().startswith("test")


def _unwrapped(root: _Folder, split_names: Collection[str]) -> tuple[_Folder, list[str]]:
    """Skip folders that contain only one folder which is not a split, as is common in archives."""
    outer = root
    while len(root.folders) == 1 and not root.pictures:
        (only,) = root.folders
        if only.name in split_names or not only.has_classes:
            break
        root = only
    return root, [f"{outer.path}: read from {root.path.relative_to(outer.path)} in it"] if root is not outer else []


def refuse_flat(folder: Path, tables: Sequence[str] = ()) -> None:
    """Raise DataError for a folder of images without recognizable classes; `tables`: the tables next to it."""
    pictures = list_pictures(folder).pictures
    if pictures:
        beside = f" ({first_few(tables, 3)})" if tables else ""
        raise DataError(
            f"{folder}: holds images ({pictures[0].relative_to(folder)}), but not in one folder per class; lay it out "
            f"as <class>/*.jpg or train/<class>/*.jpg, or name the table of paths{beside} by data.data_files"
        )


def read_image_folder(
    folder: Path, image_column: str, label_column: str, classes: Collection[str] | None = None
) -> tuple[Dataset, list[str]]:
    """Return the images of a split as rows of path and class, and notes on skipped files.

    Rows are sorted by path; classes are in natural order (class2 before class10) and in Unicode form NFC.

    Args:
        folder: the folder of the split.
        image_column: the name of the path column.
        label_column: the name of the class column.
        classes: the classes of train, if the split may be unlabeled; images outside of class folders, or all in one
            folder that is not one of the classes, then have no label (None).

    Raises DataError if there are no images in class folders.
    """
    root = _Folder(folder)
    if root.has_labels_beside:
        listing = list_pictures(folder)
        table, notes = sidecars.read(folder, listing.pictures, image_column, label_column)
        others = [path for path in listing.others if not sidecars.is_sidecar(path)]
        return table, notes + _left_out(folder, [], others, listing.system)
    holding = [child for child in root.folders if child.holds_pictures]
    unlabelled = not holding or (len(holding) == 1 and _nfc(holding[0].name) not in (classes or ()))
    if classes is not None and unlabelled and root.holds_pictures:
        return _read_unlabelled(folder, image_column, label_column)
    return _read_classes(root, image_column, label_column)


def _read_unlabelled(folder: Path, image_column: str, label_column: str) -> tuple[Dataset, list[str]]:
    from datasets import Dataset, Features, Value

    listing = list_pictures(folder)
    rows = {image_column: [str(path) for path in listing.pictures], label_column: [None] * len(listing.pictures)}
    table = Dataset.from_dict(rows, Features({image_column: Value("string"), label_column: Value("string")}))
    note = f"{folder}: {len(listing.pictures)} pictures in no folder of a class: they have no labels"
    return table, [note, *_left_out(folder, [], listing.others, listing.system)]


def _read_classes(root: _Folder, image_column: str, label_column: str) -> tuple[Dataset, list[str]]:
    from datasets import ClassLabel, Dataset, Features, Value  # takes half a second to import; not needed by `predict`

    paths: list[Path] = []
    labels: list[str] = []
    empty: list[str] = []
    direct = list_pictures(root.path, deep=False)
    others, system = list(direct.others), list(direct.system)
    for child in root.folders:
        listing = list_pictures(child.path)
        others += listing.others
        system += listing.system
        paths += listing.pictures
        labels += [_nfc(child.name)] * len(listing.pictures)
        empty += [] if listing.pictures else [child.name]
    if not paths:
        raise DataError(
            f"{root.path}: no images in folders named after their classes; move them into such folders, or leave the "
            "split out (data.validation_split: null holds one out of train)"
        )
    names = sorted(set(labels), key=natural_key)
    # Sorted by path, not class by class: "b" and "B", or "2" and "10", are in a different order there.
    order = sorted(range(len(paths)), key=lambda row: _parts(paths[row]))
    numbers = {name: number for number, name in enumerate(names)}
    features = Features({image_column: Value("string"), label_column: ClassLabel(names=names)})
    columns = {image_column: [str(paths[row]) for row in order], label_column: [numbers[labels[row]] for row in order]}
    notes = _left_out(root.path, empty, others, system, direct.pictures)
    return Dataset.from_dict(columns, features), notes + _merged(root)


def natural_key(name: str) -> list[Any]:
    """Sort key that orders numbers by value: "2" before "10", "class2" before "class10"."""
    parts = _DIGITS.split(name)
    return [[(int(part), part) if index % 2 else (part.lower(), part) for index, part in enumerate(parts)], name]


def _merged(root: _Folder) -> list[str]:
    """Return notes on folders that are merged to one class because their names differ only in Unicode form."""
    names: dict[str, int] = {}
    for child in root.folders:
        names[_nfc(child.name)] = names.get(_nfc(child.name), 0) + 1
    same = "folders whose names differ only in Unicode's form (NFC, NFD) are one class"
    return [f"{root.path}: {name}: {count} {same}" for name, count in names.items() if count > 1]


def _left_out(
    folder: Path,
    empty: Sequence[str],
    others: Sequence[Path],
    system: Sequence[Path],
    loose: Sequence[Path] = (),
) -> list[str]:
    def listed(paths: Sequence[Path]) -> str:
        return first_few([str(path.relative_to(folder)) for path in paths], 10)

    notes = []
    if empty:
        notes.append(f"{folder}: not used as classes: folders without images: {first_few(empty, 10)}")
    if loose:
        notes.append(f"{folder}: {counted(len(loose), 'image')} skipped: not in a class folder: {listed(loose)}")
    if others:
        notes.append(f"{folder}: {counted(len(others), 'file')} skipped: not images: {listed(others)}")
    if system:
        notes.append(f"{folder}: {counted(len(system), 'hidden or system file')} left out: {listed(system)}")
    return notes


def _parts(path: Path) -> list[str]:
    """Sort key equivalent to comparing paths, which is slow."""
    return str(path).split(os.sep)


def is_system_path(path: Path) -> bool:
    """Whether a file is a hidden or system file, or is in a folder of such files."""
    return _is_system_file(path.name) or any(_is_system_folder(part) for part in path.parts[:-1])


def _is_system_file(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def _is_system_folder(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _is_picture(path: Path) -> bool:
    if path.name.lower().endswith(IMAGE_SUFFIXES):
        return True
    from sft_hf.data.loading.image_formats import is_picture  # imports Pillow, needed only for unknown extensions

    return is_picture(path)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)
