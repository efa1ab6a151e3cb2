"""Local folders and archives as splits: by file names, by layout, or by class folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import pyarrow as pa

from sft_hf.core.errors import DataError, did_you_mean, first_few
from sft_hf.data.loading import media
from sft_hf.data.loading.hub import refuse
from sft_hf.data.loading.image_folders import image_layout, one_flat_folder, read_image_folder, refuse_flat
from sft_hf.data.loading.roles import Splits, by_name, choose, unused
from sft_hf.data.loading.speech_layouts.recognise import corpus_layout, folder_layout
from sft_hf.data.loading.split_files import Wanted, read_parts, reads_recordings
from sft_hf.data.loading.split_names import find_split, split_names
from sft_hf.data.loading.unpacking import inner_folder, only_archives, unpacked_together
from sft_hf.data.tables.archives import ARCHIVE, COMPRESSED, archive_members
from sft_hf.data.tables.files import TABLE_SUFFIXES, iter_rows, table_options, table_stem

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import DataSection
    from sft_hf.data.loading.speech_layouts.rows import Layout

_SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d+)-of-(?P<count>\d+)")


def from_folder(section: DataSection, folder: Path, wanted: Wanted, images: bool) -> Splits:
    """Read a folder by its layout; see `sft_hf.data.loading.loading.load_splits`. `images`: rows refer to images."""
    recordings = reads_recordings(section, wanted.files)
    inner = inner_folder(folder) if wanted.files else None
    if section.data_files:
        there = inner is None or any(_glob(folder, pattern) for pattern in section.data_files.values())
        return _from_mapping(section, folder if there else inner or folder, section.data_files, wanted)
    if recordings and (layout := corpus_layout(folder, section)):
        return from_layout(section, folder, layout)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _from_saved(section, folder)
    files = wanted.files
    if inner is not None and section.train_split != inner.name:
        splits = from_folder(section, inner, wanted, images)
        return replace(splits, notes=[f"{folder}: read from {inner.name} in it", *splits.notes])
    if files and (archives := only_archives(folder)):
        together, notes = unpacked_together(folder, archives)
        splits = from_folder(section, together, wanted, images)
        return replace(splits, notes=notes + splits.notes)
    listing = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    groups: dict[str, list[Path]] = {}
    for name in listing:
        if (folder / name).is_file():
            _group(folder / name, groups)
    if files:
        groups |= {name: [table] for name, table in media.metadata_tables(folder, section.train_split).items()}
        for table in groups.get(section.train_split, []):
            if media.is_metadata(table) and table.parent == folder:
                return _from_one_table(section, folder, table, wanted)
    only = _only_table(groups, section) if files else None
    if only is not None and (_has_columns(only, section, files[0]) or (images and one_flat_folder(folder))):
        return _from_one_table(section, folder, only, wanted)
    has_train = find_split(section.train_split, groups) is not None
    if images and not has_train and (found := _from_image_folder(section, folder)):
        return found
    if only is not None:
        return _from_one_table(section, folder, only, wanted)
    if images and not has_train:
        refuse_flat(folder, [table.name for group in groups.values() for table in group])
    if recordings and not has_train and (layout := folder_layout(folder, section, split_names(section))):
        return from_layout(section, folder, layout)
    held = did_you_mean("", listing).removeprefix("Valid: ")
    endings = ", ".join(suffix for suffix in TABLE_SUFFIXES if suffix not in COMPRESSED)
    beside = ", or a metadata.csv (file_name, transcription)" if files and not images else ""
    advice = f"; a split is a file named after it ({endings}){beside}, or see data.data_files; the folder holds: {held}"
    chosen, notes = choose(section, list(groups), str(folder), advice)
    return _read_groups(section, chosen, {name: groups[name] for name in chosen.values()}, notes, wanted)


def _group(path: Path, groups: dict[str, list[Path]]) -> None:
    """Add a table to the files of the split that its name refers to."""
    stem = table_stem(path.name)
    if stem is None and is_zip(path) and len(tables := _tables_in(path)) == 1:  # train.zip, train.csv.zip
        stem, path = table_stem(path.stem) or path.stem, tables[0]
    if stem is not None:
        shard = _SHARD.fullmatch(stem)
        groups.setdefault(shard["split"] if shard else stem, []).append(path)


def is_zip(path: Path) -> bool:
    """Whether a path has the extension of a zip archive."""
    return path.suffix.lower() == ARCHIVE and path.is_file()


def _tables_in(archive: Path) -> list[Path]:
    return [archive / name for name in sorted(archive_members(archive)) if table_stem(Path(name).name) is not None]


def from_archive(section: DataSection, archive: Path, wanted: Wanted) -> Splits:
    """Read the tables in a zip archive: a single table is train, several are splits by their names."""
    if section.data_files:
        return _from_mapping(section, archive, section.data_files, wanted)
    tables = _tables_in(archive)
    if not tables:
        held = did_you_mean("", archive_members(archive)).removeprefix("Valid: ")
        raise DataError(f"{archive}: no table in the archive; it holds: {held}")
    groups: dict[str, list[Path]] = {}
    for path in tables:
        _group(path, groups)
    if len(groups) == 1 and section.train_split not in groups:
        groups = {"train": groups.popitem()[1]}
        section = section.model_copy(update={"train_split": "train"})
    advice = "; a split is a table of the archive named after it, or see data.data_files"
    chosen, notes = choose(section, list(groups), str(archive), advice)
    notes += unused(chosen, list(groups))
    splits = _read_groups(section, chosen, {name: groups[name] for name in chosen.values()}, notes, wanted)
    return replace(splits, where={role: f"{archive.name}/{where}" for role, where in splits.where.items()})


def _only_table(groups: Mapping[str, list[Path]], section: DataSection) -> Path | None:
    """Return the table of a folder with only one, regardless of its name, unless it is named after a split."""
    tables = [table for group in groups.values() for table in group]
    return tables[0] if len(tables) == 1 and not any(name in split_names(section) for name in groups) else None


def _has_columns(table: Path, section: DataSection, files: str) -> bool:
    """Whether a table has the file and the label column; otherwise class folders take precedence."""
    try:
        names = next(iter_rows(table, batch_size=1, **table_options(section)), {})
    except DataError:
        return False
    return set(section.label_columns.values()) <= set(names) and bool({files, media.FILE_NAME} & set(names))


def _from_one_table(section: DataSection, folder: Path, table: Path, wanted: Wanted) -> Splits:
    """Read one table above the files of all splits: a row belongs to the split whose folder contains its file.

    If no file is in the folder of a split, all rows are train.
    """
    notes: list[str] = []
    files = wanted.files
    rows = read_parts([table], section.model_copy(update={"streaming": False}), "train", wanted, notes)
    by_folder = media.rows_by_folder(rows, files[0], folder) if files[0] in rows.column_names else {}
    names = split_names(section)
    if not any(name in names for name in by_folder):
        said = []
        if len(folders := sorted({*by_folder} - {"."})) > 1:
            listed = first_few(folders, 5)
            said.append(f"{table.name}: no folder of its files is called like a split, so all rows are train: {listed}")
        return _read_groups(section, {"train": section.train_split}, {section.train_split: [table]}, said, wanted)
    counts = ", ".join(f"{name} {len(chosen)}" for name, chosen in by_folder.items())
    notes.append(f"{table.name}: the splits are the folders that hold the files; rows: {counts}")
    for path in media.subfolders(folder):
        if path.name in names and path.name not in by_folder:
            notes.append(f"not used: {path}; {table.name} names no file in it")
    parts = {name: rows.select(chosen) for name, chosen in by_folder.items()}
    splits = by_name(section, parts, table.name, f"{table}, whose files are in these folders")
    return replace(splits, notes=notes + splits.notes)


def _from_image_folder(section: DataSection, folder: Path) -> Splits | None:
    layout = image_layout(folder, section.train_split, split_names(section))
    if layout is None:
        return None
    found = layout.splits
    chosen, notes = ({"train": ""}, []) if "" in found else choose(section, list(found), str(folder))
    splits = Splits({}, {}, [*layout.notes, *notes, *unused(chosen, list(found))])
    classes: list[str] = []
    for role, name in chosen.items():
        may_be_unlabelled = classes if role == "test" else None
        table, left_out = read_image_folder(found[name], section.image_column, section.target_column, may_be_unlabelled)
        classes = classes or getattr(table.features[section.target_column], "names", [])
        splits.notes.extend(left_out)
        splits.by_role[role] = table.to_iterable_dataset() if section.streaming and role == "train" else table
        splits.where[role] = f"{folder.name}/{name}".rstrip("/")
    return splits


def from_layout(section: DataSection, folder: Path, layout: Layout) -> Splits:
    """Read a folder with a known layout."""
    chosen, notes = choose(section, list(layout.splits), f"{folder} ({layout.name})")
    splits = Splits({}, {}, [f"{folder}: read as {layout.name}", *layout.notes, *notes])
    for role, name in chosen.items():
        table, left_out = layout.splits[name]()
        splits.notes.extend(left_out)
        splits.by_role[role] = table.to_iterable_dataset() if section.streaming and role == "train" else table
        splits.where[role] = f"{folder.name}/{name}"
    splits.notes.extend(unused(chosen, list(layout.splits)))
    return splits


def _from_mapping(section: DataSection, folder: Path, data_files: Mapping[str, str], wanted: Wanted) -> Splits:
    chosen, notes = choose(section, list(data_files), "data.data_files")
    groups = {}
    for name in chosen.values():
        pattern = data_files[name]
        if not pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise DataError(f"data.data_files: {name}: {pattern!r} is not inside {folder}; name a file of that folder")
        found = _glob(folder, pattern)
        if not found:
            files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            raise DataError(f"data.data_files: {name}: no file {pattern!r} in {folder}; {did_you_mean(pattern, files)}")
        groups[name] = found
    return _read_groups(section, chosen, groups, notes + unused(chosen, list(data_files)), wanted, ordered=True)


def _glob(folder: Path, pattern: str) -> list[Path]:
    if is_zip(folder):
        return [folder / name for name in sorted(archive_members(folder)) if name == pattern or fnmatch(name, pattern)]
    if (folder / pattern).is_file():  # a file name may contain glob characters
        return [folder / pattern]
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    except ValueError:  # an invalid pattern, such as a**b
        return []


def _read_groups(
    section: DataSection,
    chosen: Mapping[str, str],
    groups: Mapping[str, list[Path]],
    notes: list[str],
    wanted: Wanted,
    ordered: bool = False,
) -> Splits:
    splits = Splits({}, {}, notes)
    for role, name in chosen.items():
        paths = groups[name] if ordered else _check_shards(name, groups[name])
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        splits.by_role[role] = read_parts(paths, section, role, wanted, splits.notes)
        # metadata.csv is the name of the table in every split
        place = paths[0].parent.name + "/" if table_stem(paths[0].name) == media.METADATA else ""
        splits.where[role] = place + paths[0].name + more
    return splits


def _check_shards(name: str, paths: list[Path]) -> list[Path]:
    """Return the files of a split in order. Raises DataError if they conflict, or if a shard is missing."""
    shards = [_SHARD.fullmatch(table_stem(path.name) or "") for path in paths]
    if len(paths) == 1 and shards[0] is None:
        return paths
    names = ", ".join(path.name for path in paths)
    numbers = sorted((int(shard["index"]), int(shard["count"])) for shard in shards if shard)
    if len(numbers) < len(paths) or len({path.suffix for path in paths}) > 1:
        raise DataError(
            f"{paths[0].parent}: several files for the split {name!r} ({names}); say which by data.data_files"
        )
    if numbers != [(index, len(paths)) for index in range(len(paths))]:
        raise DataError(f"{paths[0].parent}: shards of {name!r} are missing or mixed; there is only {names}")
    return [path for _, path in sorted(zip((int(shard["index"]) for shard in shards if shard), paths, strict=True))]


def _from_saved(section: DataSection, folder: Path) -> Splits:
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        refuse(error, f"{folder}: what save_to_disk wrote here cannot be read")
    found = dict(saved) if isinstance(saved, datasets.DatasetDict) else {section.train_split: saved}
    return by_name(section, found, folder.name, str(folder))
